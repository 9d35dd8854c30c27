"""Clients that are too slow for the time limits of a server."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

import pytest
from support import EchoRequest, client, observed, receive_all, receive_exactly, serving, wait_until

import netkit
from netkit.core import events


def send_lines_back(conn: netkit.Connection) -> None:
    for line in conn.lines():
        conn.write(line + "\n")


def write_much(conn: netkit.Connection) -> None:
    conn.write(bytes(50_000_000))


def trickle(sock: socket.socket) -> None:
    """Send a byte after another until the server has closed the connection."""
    sock.settimeout(0.02)
    for _ in range(500):
        sock.sendall(b"x")
        with contextlib.suppress(TimeoutError):
            while sock.recv(1):
                pass
            return


class Hurried(EchoRequest):
    def handle(self) -> None:
        self.request.settimeout(0.05)
        super().handle()


def test_a_handler_that_reads_the_socket_has_a_limit_for_each_call_of_it() -> None:
    for handler, text in (
        (EchoRequest, "read_timeout: PEER kept a read or a write waiting for 0.1 seconds"),
        (Hurried, "timed out"),
    ):
        with observed(events.ClientFailed) as failed:
            with serving(handler, read_timeout=0.1) as server, client(server) as sock:
                sock.sendall(b"x")
                assert receive_exactly(sock, 1) == b"x"
                assert receive_all(sock) == b""
        (event,) = failed
        assert isinstance(event.error, TimeoutError)
        assert str(event.error).endswith(text.replace("PEER", event.peer))


@pytest.mark.parametrize(
    ("options", "sent", "name"),
    [
        ({"idle_timeout": 0.1}, b"", "idle_timeout"),
        ({"read_timeout": 0.1}, b"", "read_timeout"),
        ({"read_timeout": 0.1, "idle_timeout": 60}, b"half a line", "read_timeout"),
        ({"idle_timeout": 0.1, "read_timeout": 60}, b"half a line", "idle_timeout"),
    ],
)
def test_a_client_that_falls_silent_gets_what_was_written_and_the_end(
    options: dict[str, Any], sent: bytes, name: str
) -> None:
    def handler(conn: netkit.Connection) -> None:
        conn.write("welcome\n")
        for line in conn.lines():
            conn.write(line)

    with observed(events.ClientFailed) as failed:
        with serving(handler, **options) as server, client(server) as sock:
            sock.sendall(sent)
            assert receive_all(sock) == b"welcome\n"
    assert [str(event.error).split("] ")[1].split(":")[0] for event in failed] == [name]


def test_a_line_that_comes_byte_by_byte_meets_the_read_timeout() -> None:
    with observed(events.ClientFailed) as failed:
        with serving(send_lines_back, read_timeout=0.3) as server, client(server) as sock:
            trickle(sock)
    assert "read_timeout" in str(failed[0].error)


@pytest.mark.parametrize(
    ("name", "encoding"), [("read_timeout", "utf-8"), ("min_rate", "utf-16-le")]
)
def test_the_rest_of_a_line_that_is_too_long_meets_the_limits_as_well(
    name: str, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netkit.net.timeouts.Timer.grace", 0.1)

    def handler(conn: netkit.Connection) -> None:
        with pytest.raises(netkit.LineTooLongError):
            conn.readline()
        conn.write("!")
        conn.readline()

    options = {name: 0.3 if name == "read_timeout" else 1000, "encoding": encoding, "max_line": 100}
    with observed(events.ClientFailed) as failed, serving(handler, **options) as server:
        with client(server) as sock:
            sock.sendall(b"x" * 102)
            assert receive_exactly(sock, 1) == b"!"
            trickle(sock)
    assert name in str(failed[0].error)


@pytest.mark.parametrize(("name", "value"), [("write_timeout", 0.1), ("min_rate", 1e9)])
def test_a_client_that_reads_too_slowly_meets_the_limit(
    name: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netkit.net.timeouts.Timer.grace", 0.2)
    with observed(events.ClientFailed) as failed:
        with serving(write_much, **{name: value}) as server, client(server):
            wait_until(lambda: failed)
    assert f"] {name}: " in str(failed[0].error)
