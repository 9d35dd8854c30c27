"""The hooks of socketserver: which clients take them, and whose connection a socket is."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest
from support import Shout, client, exchange, in_thread, served, serving, tcp_pair, wait_until

import netkit

LOCAL = ("127.0.0.1", 0)
HOOKS = (
    *("verify_request", "process_request", "process_request_thread", "finish_request"),
    *("shutdown_request", "close_request"),
)


def takes_hooks(server: netkit.Server) -> bool:
    """Whether a client of `server` is served through the hooks."""
    taken: list[Any] = []
    start = server._compat.start
    server._compat.start = lambda *args: (taken.append(args), start(*args))[1]  # type: ignore[func-returns-value,method-assign]
    try:
        assert exchange(server, b"hello\n").lower() == b"hello\n"
    finally:
        server._compat.start = start  # type: ignore[method-assign]
    return bool(taken)


def hooked(hook: str) -> Any:
    def method(self: Any, *arguments: Any) -> Any:
        return getattr(super(kind, self), hook)(*arguments)

    kind = type(netkit.Server)("Hooked", (netkit.Server,), {hook: method})
    return kind


def test_a_client_of_a_function_or_a_handler_class_takes_no_hook() -> None:
    def echo(conn: netkit.Connection) -> None:
        conn.write(conn.read())

    for handler in (echo, netkit.EchoHandler):
        with serving(handler) as server:
            assert not takes_hooks(server)


def test_a_client_of_a_request_handler_takes_the_hooks() -> None:
    with served(netkit.Server(LOCAL, Shout)) as server:
        assert takes_hooks(server)


@pytest.mark.parametrize("hook", HOOKS)
def test_a_client_takes_the_hooks_if_one_is_overridden(hook: str) -> None:
    with served(hooked(hook)(LOCAL, netkit.EchoHandler)) as server:
        assert takes_hooks(server)


@pytest.mark.parametrize("hook", ["get_request", "handle_error", "service_actions"])
def test_the_other_hooks_do_not_change_the_way_of_a_client(hook: str) -> None:
    with served(hooked(hook)(LOCAL, netkit.EchoHandler)) as server:
        assert not takes_hooks(server)


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_may_be_set_on_a_server_that_serves(hook: str) -> None:
    with serving(netkit.EchoHandler) as server:
        assert not takes_hooks(server)
        setattr(server, hook, getattr(server, hook))
        assert takes_hooks(server)
        delattr(server, hook)
        assert not takes_hooks(server)


def test_a_hook_that_is_called_for_a_client_without_hooks_finds_its_connection() -> None:
    def handler(conn: netkit.Connection) -> None:
        conn.write("bye")
        server.shutdown_request(conn.socket)
        assert conn.closed

    with serving(handler) as server:
        assert exchange(server, b"") == b"bye"
        assert server.wait_for_connections(0)


def test_a_socket_from_elsewhere_is_served_within_the_lifetime_of_its_server() -> None:
    server = netkit.create_server(lambda conn: conn.read(), lifetime=0.05)
    with server.listen(0, "127.0.0.1"), tcp_pair() as (ours, _):
        with pytest.raises(TimeoutError, match="lifetime: the connection to"):
            server.finish_request(ours, ours.getpeername())
        server.close_request(ours)


def test_a_socket_that_wraps_the_accepted_one_replaces_it() -> None:
    server = netkit.create_server(netkit.EchoHandler)
    with tcp_pair() as (ours, _), tcp_pair() as (others, _):
        connection = server._compat._register(ours, ours.getpeername())
        wrapped = socket.socket(fileno=ours.detach())
        assert server._compat._adopt(wrapped) is connection
        assert connection.socket is wrapped
        assert server._compat.connection_of(wrapped) is connection
        assert server._compat.connection_of(ours) is connection
        found: list[Any] = []
        with in_thread(lambda: found.append(server._compat._adopt(others))):
            pass
        assert found == [None]  # that thread serves no connection
        server.close_request(wrapped)
        assert server.connections == ()
        assert server._compat.connection_of(ours) is None
        assert server._compat._adopt(others) is None


def test_a_wrapper_that_keeps_the_descriptor_does_not_replace_the_socket_of_a_request_handler() -> (
    None
):
    server = netkit.Server(None, Shout)
    with tcp_pair() as (ours, _):
        connection = server._compat._register(ours, ours.getpeername())
        assert server._compat._adopt(object()) is connection
        assert connection.socket is ours
        server.close_request(ours)


def test_a_wrapped_socket_is_found_without_a_look_at_the_other_connections() -> None:
    class Wraps(netkit.Server):
        def finish_request(self, request: Any, client_address: Any) -> None:
            threads.add(threading.get_ident())
            super().finish_request(socket.socket(fileno=request.detach()), client_address)

    threads: set[int] = set()
    searching: set[int] = set()
    with served(Wraps(LOCAL, Shout)) as server, client(server):
        live = server._connections.live
        server._connections.live = lambda: (searching.add(threading.get_ident()), live())[1]  # type: ignore[func-returns-value,method-assign]
        assert exchange(server, b"a\n") == b"A\n"
    assert len(threads) == 2
    assert not threads & searching


@pytest.mark.parametrize("hook", ["finish_request", "process_request"])
def test_nothing_is_left_of_a_connection_that_is_over(hook: str) -> None:
    with served(hooked(hook)(LOCAL, Shout)) as server:
        for _ in range(3):
            assert exchange(server, b"a\n") == b"A\n"
        wait_until(lambda: not server.connections)
        compat = server._compat
        wait_until(lambda: not (compat._of_request or compat._of_thread or compat._replaced))
        assert not compat._scheduled
        assert threading.get_ident() not in compat._of_thread
