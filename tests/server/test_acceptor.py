"""Accepting one client, and what is done after an accept that failed."""

from __future__ import annotations

import errno
import socket
import ssl
import sys
from typing import Any

import pytest
from support import observed

import netkit
from netkit.server.acceptor import Answer, answer_to, is_lost_race


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        *(
            (OSError(getattr(errno, name), ""), Answer.NEXT)
            for name in ("EINTR", "ECONNABORTED", "ECONNRESET", "EPROTO", "EPERM")
        ),
        *(
            (OSError(getattr(errno, name), ""), Answer.BACK_OFF)
            for name in ("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "EOPNOTSUPP")
        ),
        *(
            (OSError(getattr(errno, name), ""), Answer.STOP)
            for name in ("EBADF", "EINVAL", "ENOTSOCK")
        ),
        (OSError(errno.EAGAIN, ""), Answer.EMPTY),
        (TimeoutError(), Answer.EMPTY),
        (ssl.SSLError(1, "bad handshake"), Answer.NEXT),
        (OSError("without a number"), Answer.BACK_OFF),
        (RuntimeError("can't start new thread"), Answer.BACK_OFF),
        (ValueError(), Answer.BACK_OFF),
    ],
)
def test_a_failed_accept_has_one_of_these_answers(error: Exception, answer: Answer) -> None:
    assert answer_to(error) is answer


def test_ssl_is_not_imported_to_answer_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ssl")
    assert answer_to(OSError(errno.EMFILE, "")) is Answer.BACK_OFF
    assert "ssl" not in sys.modules


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (BlockingIOError(), True),
        (ConnectionAbortedError(), True),
        (InterruptedError(), True),
        (OSError(errno.EPROTO, ""), False),
        (TimeoutError(), False),
    ],
)
def test_a_client_that_has_gone_away_is_not_reported(error: Exception, expected: bool) -> None:
    assert is_lost_race(error) is expected


def test_an_accepted_socket_has_not_the_default_timeout_of_the_program() -> None:
    with netkit.Server(("127.0.0.1", 0), netkit.EchoHandler) as server:
        with socket.create_connection(server.server_address):
            socket.setdefaulttimeout(60.0)
            try:
                request, client_address = server.get_request()
            finally:
                socket.setdefaulttimeout(None)
            assert request.gettimeout() is None
            assert client_address[0] == "127.0.0.1"
            request.close()


@pytest.mark.parametrize("stopping", [True, False])
def test_a_listener_that_is_lost_is_reported_unless_the_server_stops(
    stopping: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> Any:
        raise OSError(errno.EBADF, "Bad file descriptor")

    server = netkit.create_server(netkit.EchoHandler)
    server._accept_loop.stop_requested = stopping
    monkeypatch.setattr(server, "get_request", fail)
    with observed() as seen:
        assert server._acceptor.accept() is Answer.STOP
    assert [type(event) for event in seen] == [] if stopping else [netkit.ListenerLost]
