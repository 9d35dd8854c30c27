"""The client's end of a connection."""

from __future__ import annotations

import socket

import pytest
from support import needs_ipv6, reset, serving, tcp_pair, wait_until

import netkit
from netkit import sockets
from netkit.client import connect


def shout(conn: netkit.Connection) -> None:
    conn.set_encoding()
    for line in conn.lines():
        conn.write(line.upper() + "\n")


def test_a_client_talks_to_a_server_in_the_same_words() -> None:
    with serving(shout) as server:
        with connect(server.server_address[1], "127.0.0.1") as conn:
            conn.end("hello\nworld\n")
            assert conn.read() == b"HELLO\nWORLD\n"
        assert conn.closed
        assert (conn.bytes_written, conn.bytes_read) == (12, 12)


def test_a_client_knows_both_ends_and_has_no_server() -> None:
    with serving(shout) as server:
        with connect(server.server_address[1], "127.0.0.1") as conn:
            assert (conn.remote_address, conn.remote_port) == server.server_address
            wait_until(lambda: server.connections)
            assert server.connections[0].remote_port == conn.local_port
            assert conn.server is None
            assert conn.thread is None


def test_a_port_may_be_digits_and_the_host_is_localhost() -> None:
    with serving(shout) as server:
        with connect(str(server.server_address[1])) as conn:
            assert conn.remote_address == "127.0.0.1"


@needs_ipv6
def test_a_client_reaches_an_ipv6_server() -> None:
    with netkit.create_server(shout).listen(0, "::1") as server:
        with connect(server.server_address[1], "::1") as conn:
            assert (conn.remote_address, conn.remote_family) == ("::1", "IPv6")


def test_the_time_limit_is_for_connecting_and_not_for_reading() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with connect(listener.getsockname()[1], "127.0.0.1", timeout=5) as conn:
            assert conn.socket.gettimeout() is None


def test_connecting_is_given_up_after_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        port = listener.getsockname()[1]
        others = []
        try:
            with pytest.raises(TimeoutError):
                for _ in range(20):  # until the queue of those not accepted is full
                    others.append(connect(port, "127.0.0.1", timeout=0.2))
        finally:
            for other in others:
                other.destroy()


def test_a_refused_connection_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        connect(port, "127.0.0.1")


@pytest.mark.parametrize("port", [-1, 65536, "abc"])
def test_a_port_that_is_none_is_a_value_error(port: int | str) -> None:
    with pytest.raises(ValueError, match="^port must be a number from 0 to 65535"):
        connect(port)


def test_a_server_that_resets_at_once_is_an_error_and_leaves_nothing_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with tcp_pair() as (ours, peer):
        reset(peer)
        wait_until(lambda: sockets.hung_up(ours))
        monkeypatch.setattr(socket, "create_connection", lambda *_: ours)
        with pytest.raises(OSError, match="not connected|Invalid argument"):
            connect(80)
        assert ours.fileno() == -1
