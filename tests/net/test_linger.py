"""The wait at the end of a connection: input is dropped, for a bounded time and size."""

from __future__ import annotations

import contextlib
import socket
import sys
import time

import pytest
from support import connected, fill, in_thread, reset, tcp_pair, wait_until

from netkit.core.deadline import Deadline
from netkit.net import linger, sockopts

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux's kernel")


def test_input_is_dropped_until_the_peer_ends_its_side() -> None:
    with tcp_pair() as (ours, peer):

        def send() -> None:
            peer.sendall(b"x" * 1_000_000)
            peer.shutdown(socket.SHUT_WR)

        with in_thread(send):
            assert linger.swallow(ours, Deadline(10), 2_000_000)


def test_dropping_input_ends_with_a_reset_and_with_the_descriptor() -> None:
    with tcp_pair() as (ours, peer):
        reset(peer)
        assert not linger.swallow(ours, Deadline(60), 1000)
        ours.close()
        assert not linger.swallow(ours, Deadline(60), 1000)


@linux_only
def test_input_is_dropped_until_the_peers_kernel_has_everything() -> None:
    with tcp_pair() as (ours, peer):
        fill(ours)
        size = 0

        def read_on() -> None:
            nonlocal size
            while not ours_is_done:
                with contextlib.suppress(TimeoutError):
                    size += len(peer.recv(1_000_000))

        peer.settimeout(0.05)
        ours_is_done: list[bool] = []
        with in_thread(read_on):
            assert not linger.swallow_until_sent(ours, Deadline(60), 1000)
            ours_is_done.append(True)
        assert size > 0
        assert not sockopts.unsent(ours)


@linux_only
def test_dropping_input_until_everything_is_sent_ends_with_the_peer_and_with_its_time() -> None:
    with tcp_pair() as (ours, peer):
        fill(ours)
        began = time.monotonic()
        assert not linger.swallow_until_sent(ours, Deadline(0.05), 1000)
        assert 0.05 <= time.monotonic() - began < 5
        peer.shutdown(socket.SHUT_WR)
        assert linger.swallow_until_sent(ours, Deadline(60), 1000)
        reset(peer)
        wait_until(lambda: sockopts.hung_up(ours))
        assert not linger.swallow_until_sent(ours, Deadline(60), 1000)


def test_what_is_sent_is_waited_for_though_the_peer_has_ended_its_side() -> None:
    with tcp_pair() as (sock, peer):
        fill(sock)
        peer.shutdown(socket.SHUT_WR)
        deadline = Deadline(0.2)
        linger.deliver(sock, deadline, 1024)
        assert deadline.expired()
        assert sockopts.unsent(sock)


@linux_only
def test_a_peer_that_waits_for_the_window_sees_that_an_interrupted_connection_ends() -> None:
    """Both directions are shut down while the window is full, and the input is read after that."""
    with connected() as (conn, peer):
        fill(peer)
        conn.end()
        conn.interrupt(OSError("enough"))
        with pytest.raises(OSError, match="enough"):
            conn.read(1)
        while conn.read(100_000):
            pass
        conn.close()
        with pytest.raises(ConnectionError):
            peer.sendall(bytes(20_000_000))
