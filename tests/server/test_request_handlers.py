"""Request handlers of socketserver that fail, and what they leave open."""

from __future__ import annotations

import contextlib
import socketserver
from typing import Any

import pytest
from support import (
    client,
    exchange,
    observed,
    receive_all,
    reset,
    serving_forever,
    silent_log,
    wait_until,
)

import netkit
from netkit.core import events

LOCAL = ("127.0.0.1", 0)


def test_the_socket_is_closed_if_setup_fails() -> None:
    class HalfSetUp(socketserver.StreamRequestHandler):
        def setup(self) -> None:
            super().setup()
            kept.append(self)
            raise ValueError("half set up")

    kept: list[Any] = []
    with silent_log(), netkit.Server(LOCAL, HalfSetUp) as server, serving_forever(server):
        with observed(events.HandlerFailed) as failures, client(server) as sock:
            assert receive_all(sock) == b""
        wait_until(lambda: not server.connections)
        assert kept[0].request.fileno() == -1
        assert len(failures) == 1
        kept[0].rfile.close()


def test_an_error_of_finish_does_not_hide_that_of_handle(caplog: pytest.LogCaptureFixture) -> None:
    class TwoErrors(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            raise ValueError("of handle")

        def finish(self) -> None:
            raise ValueError("of finish")

    with netkit.Server(LOCAL, TwoErrors) as server, serving_forever(server):
        assert exchange(server, b"") == b""
    (text,) = [record.exc_text for record in caplog.records if record.exc_info]
    assert "ValueError: of handle" in (text or "")
    assert "ValueError: of finish" in (text or "")


@pytest.mark.parametrize("fails", [True, False])
def test_a_last_flush_to_a_client_that_is_gone_hides_no_error_and_leaves_nothing_open(
    fails: bool, caplog: pytest.LogCaptureFixture
) -> None:
    class Buffers(socketserver.StreamRequestHandler):
        wbufsize = -1  # so that finish has something to send

        def handle(self) -> None:
            handlers.append(self)
            self.wfile.write(b"never sent")
            with contextlib.suppress(ConnectionError):
                self.rfile.read()
            if fails:
                raise ValueError("of handle")

    handlers: list[Any] = []
    kind = events.HandlerFailed if fails else events.ClientFailed
    with netkit.Server(LOCAL, Buffers) as server, serving_forever(server):
        with observed(events.ClientFailed, events.HandlerFailed) as seen:
            with client(server) as sock:
                sock.sendall(b"x")
                wait_until(lambda: handlers)
                reset(sock)
            wait_until(lambda: not server.connections)
        assert [type(event) for event in seen] == [kind]
        assert handlers[0].request.fileno() == -1
        handlers[0].rfile.close()
    assert ("ValueError: of handle" in caplog.text) == fails
    assert ("Traceback" in caplog.text) == fails
