"""What netkit asks of sockets, seen from outside: options, buffers, the peer."""

from __future__ import annotations

import contextlib
import os
import socket
import socketserver
import struct
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import fill, in_thread, tcp_pair, wait_until

import netkit
from netkit.net import sockopts
from netkit.net.bare import Bare

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux's kernel")

TCP = socket.IPPROTO_TCP


@pytest.fixture
def unix_socket() -> Any:
    ours, peer = socket.socketpair()
    with ours, peer:
        yield ours


@pytest.fixture
def closed_socket() -> socket.socket:
    with socket.socket() as sock:
        pass
    return sock


@linux_only
def test_keep_alive_finds_a_dead_peer_within_minutes() -> None:
    with tcp_pair() as (ours, _):
        sockopts.set_keep_alive(ours, True)
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        idle = ours.getsockopt(TCP, socket.TCP_KEEPIDLE)
        interval = ours.getsockopt(TCP, socket.TCP_KEEPINTVL)
        count = ours.getsockopt(TCP, socket.TCP_KEEPCNT)
        assert idle + interval * count == 120
        sockopts.set_keep_alive(ours, False)
        assert not ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


@pytest.mark.parametrize("seconds", [0.05, 0.000_000_1, 0.0])
def test_a_time_limit_bounds_a_receive_and_a_send(seconds: float) -> None:
    with tcp_pair() as (ours, _):
        sockopts.limit_wait(ours, socket.SO_RCVTIMEO, seconds)
        sockopts.limit_wait(ours, socket.SO_SNDTIMEO, seconds)
        assert ours.gettimeout() is None
        with pytest.raises(BlockingIOError):
            ours.recv(1)
        with pytest.raises(BlockingIOError):
            while True:
                ours.send(b"x" * 1_000_000)


def test_a_time_limit_of_seconds_and_a_fraction_is_both() -> None:
    with tcp_pair() as (ours, _):
        sockopts.limit_wait(ours, socket.SO_RCVTIMEO, 1.5)
        kernels = ours.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16)
        assert struct.unpack("@ll", kernels) == (1, 500_000)


def test_a_time_limit_can_be_taken_away() -> None:
    with tcp_pair() as (ours, peer):
        sockopts.limit_wait(ours, socket.SO_RCVTIMEO, 0.000_001)
        sockopts.limit_wait(ours, socket.SO_RCVTIMEO, None)
        received: list[bytes] = []
        with in_thread(lambda: received.append(ours.recv(1))):
            peer.sendall(b"x")
        assert received == [b"x"]


def test_a_socket_is_readable_with_data_and_at_the_end() -> None:
    with tcp_pair() as (ours, peer):
        assert not sockopts.readable(ours)
        peer.sendall(b"x")
        wait_until(lambda: sockopts.readable(ours))
        ours.recv(1)
        assert not sockopts.readable(ours)
        peer.shutdown(socket.SHUT_WR)
        wait_until(lambda: sockopts.readable(ours))


def test_a_connection_has_hung_up_when_it_is_over_both_ways() -> None:
    with tcp_pair() as (ours, peer):
        assert not sockopts.hung_up(ours)
        peer.shutdown(socket.SHUT_WR)
        wait_until(lambda: sockopts.readable(ours))
        assert not sockopts.hung_up(ours)
        ours.shutdown(socket.SHUT_WR)
        wait_until(lambda: sockopts.hung_up(ours))
    assert sockopts.hung_up(ours)


@linux_only
def test_bytes_are_unsent_until_the_peers_kernel_has_them() -> None:
    with tcp_pair() as (ours, peer):
        assert not sockopts.unsent(ours)
        fill(ours)
        assert sockopts.unsent(ours)
        peer.setblocking(False)

        def read_on() -> bool:
            with contextlib.suppress(BlockingIOError):
                peer.recv(1_000_000)
            return not sockopts.unsent(ours)

        wait_until(read_on)


def test_a_call_of_a_closed_socket_would_not_wait(closed_socket: socket.socket) -> None:
    assert not sockopts.unsent(closed_socket)
    assert sockopts.readable(closed_socket)
    assert sockopts.wait_until_ready(closed_socket, True, 60)


@linux_only
def test_a_peer_is_idle_after_a_reply() -> None:
    with tcp_pair() as (ours, peer):
        peer.sendall(b"request")
        ours.recv(7)
        wait = sockopts.seconds_until_quiet(ours, 60)
        assert 50 < wait <= 60
        wait_until(lambda: sockopts.seconds_until_quiet(ours, 60) < wait)  # the time runs
        time.sleep(0.02)  # the kernel's clock: so that the reply is later by some ticks of it
        ours.sendall(b"reply")
        assert sockopts.seconds_until_quiet(ours, 60) == 0.0


@linux_only
def test_a_peer_that_has_been_silent_for_long_is_idle() -> None:
    with tcp_pair() as (ours, peer):
        peer.sendall(b"request")
        ours.recv(7)
        wait_until(lambda: sockopts.seconds_until_quiet(ours, 0.02) == 0.0)


def test_where_the_kernel_does_not_say_it_a_peer_is_idle(
    unix_socket: socket.socket, closed_socket: socket.socket
) -> None:
    assert sockopts.seconds_until_quiet(unix_socket, 60) == 0.0
    assert sockopts.seconds_until_quiet(closed_socket, 60) == 0.0


def test_shutting_down_what_is_over_does_nothing(closed_socket: socket.socket) -> None:
    sockopts.shut_down(closed_socket, socket.SHUT_RDWR)
    with tcp_pair() as (ours, peer):
        sockopts.shut_down(ours, socket.SHUT_WR)
        assert peer.recv(1) == b""
        sockopts.shut_down(ours, socket.SHUT_WR)


def test_closing_by_force_closes_even_with_a_file_open() -> None:
    with tcp_pair() as (ours, peer):
        file = ours.makefile("rb")
        sockopts.force_close(ours)
        assert ours.fileno() == -1
        assert peer.recv(1) == b""
        sockopts.force_close(ours)
        file.close()


def test_closing_by_force_survives_a_descriptor_that_is_gone() -> None:
    """As left behind by a program that has closed the number behind the socket's back."""
    sock = socket.socket()
    file = sock.makefile("rb")
    os.close(sock.fileno())
    sockopts.force_close(sock)
    assert sock.fileno() == -1
    file.close()


def test_a_close_can_be_made_a_reset(closed_socket: socket.socket) -> None:
    with tcp_pair() as (ours, peer):
        sockopts.reset_on_close(ours)
        ours.close()
        with pytest.raises(ConnectionResetError):
            peer.recv(1)
    sockopts.reset_on_close(closed_socket)


def test_a_wait_takes_any_number_of_seconds() -> None:
    with tcp_pair() as (ours, _):
        assert not sockopts.wait_until_ready(ours, writing=False, seconds=0)
        assert sockopts.wait_until_ready(ours, writing=True, seconds=1e9)


# --- The default time limit of the process ---


@pytest.fixture
def hasty() -> Iterator[None]:
    """A program that has set a default for all sockets, which is over at once."""
    socket.setdefaulttimeout(0.01)
    yield
    socket.setdefaulttimeout(None)


def read_twice(conn: netkit.Connection) -> None:
    for line in conn.lines():
        conn.write(line + "\n")


class ReadTwice(netkit.Handler):
    def handle(self) -> None:
        read_twice(self.conn)


class ReadBare(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line)


def is_slow(conn: netkit.Connection) -> None:
    """Longer than the default of the process, and then a line both ways."""
    threading.Event().wait(0.1)
    conn.write("a line\n")
    assert conn.readline() == b"a line\n"


@pytest.mark.parametrize("handler", [read_twice, ReadTwice, ReadBare])
def test_no_default_of_the_process_ends_a_wait_of_a_server_or_a_client(
    handler: Any, tmp_path: Path, hasty: None
) -> None:
    path = f"unix:{tmp_path / 'sock'}"
    with netkit.create_server(handler).listen_on("127.0.0.1:0", path) as server:
        assert server.socket.gettimeout() is None
        for _ in range(2):  # of which the second may be accepted by the first one's thread
            with netkit.connect(server.address.port, "127.0.0.1") as conn:
                is_slow(conn)
        with netkit.connect(path=tmp_path / "sock") as conn:
            is_slow(conn)


def test_no_default_of_the_process_reaches_the_sockets_of_netkit(hasty: None) -> None:
    taken: list[Any] = []

    def take(server: netkit.Server) -> None:
        for conn in server:
            taken.append(conn)
            conn.write(conn.readline())
            conn.close()

    with netkit.create_server().listen(0, "127.0.0.1") as server, in_thread(take, server):
        with netkit.connect(server.address.port, "127.0.0.1") as conn:
            is_slow(conn)
        server.stop()
    assert len(taken) == 1
    ours, theirs = sockopts.socket_pair()
    with ours, theirs:
        assert (ours.gettimeout(), theirs.gettimeout()) == (None, None)
    ours, theirs = socket.socketpair()
    with theirs, netkit.Connection(ours) as conn:
        assert conn.socket.gettimeout() is None
        detached, _ = conn.detach()
        with detached:
            assert detached.gettimeout() is None


@pytest.mark.parametrize("blocking", [True, False])
def test_a_look_at_a_socket_by_its_descriptor_leaves_it_as_it_is(
    blocking: bool, hasty: None
) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(blocking)
        bare = Bare(ours, None, None)
        with bare.copy() or pytest.fail("no copy"):
            assert os.get_blocking(ours.fileno()) is blocking
