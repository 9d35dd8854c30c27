"""What the kernel knows of a connection."""

from __future__ import annotations

import socket
import sys

import pytest
from support import fill, receive_exactly, reset, tcp_pair, wait_until

from netkit.net.tcpinfo import send_queue, tcp_info, unread, waits_for_window

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has TCP_INFO")


@linux_only
def test_the_kernel_counts_the_bytes_of_each_direction() -> None:
    with tcp_pair() as (ours, peer):
        peer.sendall(bytes(1000))
        ours.sendall(bytes(500))
        receive_exactly(ours, 1000)
        receive_exactly(peer, 500)
        wait_until(lambda: (info := tcp_info(ours)) and info.acknowledged == 500)
        info = tcp_info(ours)
        assert info is not None
        assert (info.received, info.retransmits) == (1000, 0)
        assert 0 < info.rtt < 10


@linux_only
def test_the_end_of_a_side_counts_as_one_byte() -> None:
    with tcp_pair() as (ours, peer):
        peer.shutdown(socket.SHUT_WR)
        assert ours.recv(1) == b""
        info = tcp_info(ours)
        assert info is not None
        assert info.received == 1


@linux_only
def test_the_idle_time_begins_anew_with_each_byte() -> None:
    with tcp_pair() as (ours, peer):
        wait_until(lambda: (info := tcp_info(ours)) and info.idle >= 0.3)
        peer.sendall(b"x")
        ours.recv(1)
        info = tcp_info(ours)
        assert info is not None
        assert info.idle < 0.3


@linux_only
def test_what_the_peer_has_not_acknowledged_is_in_the_send_queue() -> None:
    with tcp_pair(receive_buffer=4096) as (ours, _):
        assert send_queue(ours) == 0
        sent = fill(ours)
        queued = send_queue(ours)
        assert queued is not None
        assert 0 < queued <= sent


@linux_only
def test_received_bytes_are_unread_until_they_are_read() -> None:
    with tcp_pair() as (ours, peer):
        peer.sendall(bytes(1000))
        wait_until(lambda: unread(ours) == 1000)
        receive_exactly(ours, 600)
        assert unread(ours) == 400


def test_a_closed_socket_and_a_unix_socket_have_no_counters() -> None:
    with tcp_pair() as (ours, _):
        ours.close()
        assert (tcp_info(ours), send_queue(ours), unread(ours)) == (None, None, None)
    one, other = socket.socketpair()
    with one, other:
        assert (tcp_info(one), send_queue(one), unread(one)) == (None, None, None)


@linux_only
def test_a_peer_waits_for_the_window_once_it_has_filled_it_and_our_side_has_ended() -> None:
    with tcp_pair() as (ours, peer):
        fill(peer)
        assert not waits_for_window(ours)
        ours.shutdown(socket.SHUT_WR)
        wait_until(lambda: waits_for_window(ours))
        reset(peer)
        wait_until(lambda: not waits_for_window(ours))
    assert not waits_for_window(ours)
    with socket.socket(socket.AF_UNIX) as unix_socket:
        assert not waits_for_window(unix_socket)
