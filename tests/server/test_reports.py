"""The option `raise_errors`: a ``with`` block raises what handlers have raised."""

from __future__ import annotations

import contextlib
import socketserver
import sys
from collections.abc import Callable
from typing import Any

import pytest
from support import client, observed, receive_all, reset, send_and_end, wait_until

import netkit
from netkit.core import events
from netkit.server import reports

has_groups = sys.version_info >= (3, 11)


@contextlib.contextmanager
def serving(handler: Any, **options: Any) -> Any:
    server = netkit.create_server(handler, raise_errors=True, **options)
    with server.listen(0, "127.0.0.1"):
        yield server


def visit(server: netkit.Server, clients: int = 1) -> None:
    """Have clients served, one after another."""
    with observed(events.ConnectionClosed) as seen:
        for _ in range(clients):
            with client(server) as sock, contextlib.suppress(ConnectionError):
                send_and_end(sock, b"hello")
                receive_all(sock)
        wait_until(lambda: len(seen) == clients, "the end of the clients")


def fail(conn: netkit.Connection) -> None:
    conn.read()
    raise ValueError("wrong double")


class Fails(netkit.Handler):
    def closed(self) -> None:
        raise ValueError("wrong double")


class Old(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.rfile.read()
        raise ValueError("wrong double")


@pytest.mark.parametrize("handler", [fail, Fails, Old])
def test_a_block_raises_what_the_handler_of_any_kind_has_raised(handler: Any) -> None:
    with observed(events.HandlerFailed) as seen:
        with pytest.raises(ValueError, match="wrong double") as caught, serving(handler) as server:
            visit(server)
    assert [event.error for event in seen] == [caught.value]  # it is logged as well
    assert caught.traceback[-1].frame.code.name in ("fail", "closed", "handle")
    assert not server.listening


def test_without_the_option_errors_of_handlers_are_only_logged() -> None:
    with observed(events.HandlerFailed) as seen:
        with netkit.create_server(fail).listen(0, "127.0.0.1") as server:
            visit(server)
    assert len(seen) == 1


def test_several_errors_are_a_group() -> None:
    with pytest.raises(Exception) as caught, serving(fail) as server:  # noqa: PT011
        visit(server, 3)
    if has_groups:
        assert str(caught.value) == "3 errors of handlers (3 sub-exceptions)"
        assert [str(each) for each in caught.value.exceptions] == ["wrong double"] * 3
    else:
        assert str(caught.value) == "wrong double"


def test_what_the_block_itself_raises_comes_first() -> None:
    with pytest.raises(KeyError), serving(fail) as server:
        visit(server)
        raise KeyError


def test_a_block_raises_no_error_of_a_block_before() -> None:
    server = netkit.create_server(fail, raise_errors=True)
    with pytest.raises(ValueError, match="wrong double"), server.listen(0, "127.0.0.1"):
        visit(server)
    with server.listen(0, "127.0.0.1"):
        pass


def read(conn: netkit.Connection) -> None:
    conn.write("ready")
    conn.read()


def write(conn: netkit.Connection) -> None:
    conn.write("ready")
    while True:
        conn.write(bytes(1 << 20))


def read_exactly(conn: netkit.Connection) -> None:
    conn.write("ready")
    conn.readexactly(100)


@pytest.mark.parametrize("handler", [read, write, read_exactly])
@pytest.mark.parametrize("leave", [reset, lambda sock: sock.close(), None])
def test_a_client_that_goes_and_one_that_the_end_cuts_are_no_errors_of_the_handler(
    handler: Callable[[netkit.Connection], None], leave: Callable[[Any], None] | None
) -> None:
    with contextlib.ExitStack() as stack:
        with serving(handler, drain_timeout=0.05) as server:
            sock = stack.enter_context(client(server))
            assert sock.recv(5) == b"ready"
            if leave is not None:
                leave(sock)


def test_the_errors_that_are_kept_are_not_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "MOST_ERRORS", 2)
    with pytest.raises(Exception) as caught, serving(fail) as server:  # noqa: PT011
        visit(server, 3)
    assert not has_groups or len(caught.value.exceptions) == 2


def leave_program(conn: netkit.Connection) -> None:
    conn.read()
    sys.exit(3)


def test_an_error_that_ends_a_thread_is_raised_as_well() -> None:
    with pytest.raises(SystemExit), serving(leave_program) as server:
        visit(server)
