"""A connection that goes on elsewhere: another library, another process."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from secure import contexts
from support import client, in_thread, receive_all, receive_exactly, send_and_end, serving, tcp_pair

import netkit


@pytest.fixture
def channel() -> Iterator[tuple[socket.socket, socket.socket]]:
    here, there = socket.socketpair()
    with here, there:
        yield here, there


def test_another_process_goes_on_with_what_was_not_read(
    channel: tuple[socket.socket, socket.socket],
) -> None:
    here, there = channel

    def handler(conn: netkit.Connection) -> None:
        assert next(conn.lines()) == "first"
        netkit.send_connection(here, conn)

    with serving(handler, read_timeout=5) as server:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python's own, from 3.12 on
            pid = os.fork()
        if not pid:
            try:
                received = netkit.receive_connection(there)
                assert received
                for line in received.lines():
                    received.write(line.upper() + "\n")
                received.close()
            finally:
                os._exit(0)
        with client(server) as sock:
            sock.sendall(b"first\nsecond\nthi")
            assert receive_exactly(sock, 7) == b"SECOND\n"
            send_and_end(sock, b"rd\n")
            assert receive_all(sock) == b"THIRD\n"
        assert os.waitpid(pid, 0)[1] == 0
        server.wait_for_connections(0)
    here.close()
    assert netkit.receive_connection(there) is None


def test_much_that_was_not_read_goes_over_too(
    channel: tuple[socket.socket, socket.socket],
) -> None:
    here, there = channel
    with tcp_pair() as (ours, peer):
        conn = netkit.Connection(ours)
        conn.unread(bytes(500_000))
        received: list[Any] = []
        with in_thread(lambda: received.append(netkit.receive_connection(there, max_line=7))):
            netkit.send_connection(here, conn)
        with received[0] as moved:
            assert moved.max_line == 7
            assert moved.readexactly(500_000) == bytes(500_000)
            peer.close()
            assert moved.read() == b""


def test_a_sender_that_dies_is_told(channel: tuple[socket.socket, socket.socket]) -> None:
    here, there = channel
    with tcp_pair() as (ours, _):
        socket.send_fds(here, [b"\0"], [ours.fileno()])
        here.sendall(b"\0\0")
        here.close()
        with pytest.raises(netkit.IncompleteReadError):
            netkit.receive_connection(there)


def test_a_detached_socket_is_as_good_as_new() -> None:
    with tcp_pair() as (ours, peer):
        conn = netkit.Connection(ours)
        conn.set_timeout(1)
        peer.sendall(b"a line\nmore\neven more")
        assert next(conn.lines()) == "a line"
        with conn.corked():
            conn.write("gathered")
            sock, unread = conn.detach()
        with sock:
            assert unread == b"more\neven more"
            assert receive_exactly(peer, 8) == b"gathered"
            assert (conn.closed, sock.getblocking()) == (True, True)
            conn.close()
            peer.sendall(b"!")
            assert sock.recv(1) == b"!"
        with pytest.raises(netkit.ConnectionClosedError):
            conn.detach()


def test_what_somebody_reads_or_has_encrypted_is_not_detached() -> None:
    raised: list[str] = []

    def handler(conn: netkit.Connection) -> None:
        try:
            conn.detach()
        except ValueError as error:
            raised.append(str(error))

    with serving(handler, tls=contexts()[0]) as server:
        with netkit.connect(server.server_address[1], "127.0.0.1") as conn:
            conn.start_tls(contexts()[1], server_hostname="localhost")
            assert conn.read() == b""
    assert raised == ["only a connection without TLS that nobody reads is detached"]


def test_one_that_was_taken_from_a_server_and_detached_is_no_longer_its() -> None:
    server = netkit.create_server().listen(0, "127.0.0.1")
    with client(server) as sock:
        for conn in server:
            detached, _ = conn.detach()
            break
        assert server.connection_count == 0
        server.close()
        with detached:
            detached.sendall(b"still here")
        assert receive_all(sock) == b"still here"
