"""TLS as programs for `socketserver` have it: the listener, or each client, wrapped by `ssl`."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from secure import contexts
from support import PATIENCE, Shout, client, observed, receive_all, serving_forever, wait_until

import netkit
from netkit.core import events

LOCAL = ("127.0.0.1", 0)


class Pool(netkit.Server):
    """Clients are served in threads of the program; `wrap` makes the sockets that it uses."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.pool = ThreadPoolExecutor(4)

    def wrap(self, request: Any) -> Any:
        return request

    def process_request(self, request: Any, client_address: Any) -> None:
        self.pool.submit(self.process_request_thread, self.wrap(request), client_address)

    def server_close(self) -> None:
        super().server_close()
        self.pool.shutdown()


def shout(conn: netkit.Connection) -> None:
    for line in conn.lines():
        conn.write(line.upper() + "\n")


each_handler = pytest.mark.parametrize("handler", [Shout, shout])


def shouts(sock: Any) -> bool:
    sock.sendall(b"hello\n")
    return bool(sock.recv(9) == b"HELLO\n")


class WrapsEach(netkit.Server):
    """Each client is wrapped by `get_request`."""

    at_once = False

    def get_request(self) -> Any:
        request, client_address = super().get_request()
        secured = secured_later(request)
        if self.at_once:
            secured.do_handshake()
        return secured, client_address


def wrapped(handler: Any, kind: Any = netkit.Server, **options: Any) -> netkit.Server:
    """A server with a wrapped listener."""
    server: netkit.Server = kind(LOCAL, handler, **options)
    server.socket = contexts()[0].wrap_socket(server.socket, server_side=True)
    return server


def each(handler: Any, **options: Any) -> netkit.Server:
    return WrapsEach(LOCAL, handler, **options)


def in_a_pool(handler: Any, **options: Any) -> netkit.Server:
    return wrapped(handler, Pool, **options)


def secured_later(request: Any) -> ssl.SSLSocket:
    """A socket whose handshake is still to be done."""
    return contexts()[0].wrap_socket(request, server_side=True, do_handshake_on_connect=False)


@contextlib.contextmanager
def secured(server: netkit.Server) -> Iterator[ssl.SSLSocket]:
    with client(server) as sock:
        with contexts()[1].wrap_socket(sock, server_hostname="localhost") as tls:
            yield tls


@each_handler
@pytest.mark.parametrize("make", [wrapped, each, in_a_pool])
def test_a_silent_client_keeps_no_other_waiting(make: Any, handler: Any) -> None:
    with make(handler, drain_timeout=PATIENCE) as server, serving_forever(server):
        with client(server) as silent, secured(server) as sock:
            assert shouts(sock)
            assert server.stop() == netkit.StopReport(finished=2, cut=0)
            assert sock.recv(9) == b""
            receive_all(silent)  # perhaps an alert, and the end


@each_handler
@pytest.mark.parametrize("make", [wrapped, each, in_a_pool])
def test_the_handshake_has_its_time_limit(make: Any, handler: Any) -> None:
    with observed(events.ClientFailed, events.HandlerFailed) as told:
        with make(handler, handshake_timeout=0.1) as server, serving_forever(server):
            with client(server) as silent:
                assert receive_all(silent) == b""
    assert [type(event) for event in told] == [events.ClientFailed]
    assert "handshake_timeout" in str(told[0].error)


@each_handler
def test_a_probe_is_no_failure_and_plain_text_is_one(handler: Any) -> None:
    with observed(events.ClientFailed, events.HandlerFailed) as told:
        with wrapped(handler) as server, serving_forever(server):
            with observed(events.ConnectionClosed) as closed:
                socket.create_connection(server.server_address).close()
                wait_until(lambda: closed)
            with client(server) as sock:
                sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
                receive_all(sock)
            wait_until(lambda: told)
    assert [type(event) for event in told] == [events.ClientFailed]
    assert "HTTP" in str(told[0].error)


@pytest.mark.parametrize("limit", ["idle_timeout", "read_timeout"])
@each_handler
def test_limits_hold(handler: Any, limit: str) -> None:
    with observed(events.ClientFailed, events.HandlerFailed) as told:
        with wrapped(handler, **{limit: 0.1}) as server, serving_forever(server):
            with secured(server) as sock:
                sock.sendall(b"half a li")
                assert receive_all(sock) == b""
            wait_until(lambda: told)
    assert [type(event) for event in told] == [events.ClientFailed], told
    assert limit in str(told[0].error), told


@each_handler
def test_verify_request_comes_after_the_handshake(handler: Any) -> None:
    class Verifying(netkit.Server):
        def verify_request(self, request: Any, client_address: Any) -> bool:
            (connection,) = self.connections
            asked.append(connection.tls is not None or request.version() is not None)
            return len(asked) > 1

    asked: list[bool] = []
    with wrapped(handler, Verifying) as server, serving_forever(server):
        with secured(server) as sock:
            assert sock.recv(9) == b""
        assert server.wait_for_connections(0, PATIENCE)
        with secured(server) as sock:
            assert shouts(sock)
    assert asked == [True, True]


def test_a_handshake_in_get_request_is_warned_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with each(Shout) as server, serving_forever(server):
        server.at_once = True  # type: ignore[attr-defined]
        for _ in range(3):
            with secured(server) as sock:
                assert shouts(sock)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "get_request does TLS handshakes" in warnings[0]
    assert "use the option tls" in warnings[0]


def test_a_handler_may_do_the_handshake_itself() -> None:
    class Handshake(Shout):
        def setup(self) -> None:
            self.request.do_handshake()
            super().setup()

    with each(Handshake) as server, serving_forever(server), secured(server) as sock:
        assert shouts(sock)
        server.stop()
        assert sock.recv(9) == b""


@each_handler
def test_a_program_that_serves_each_client_by_itself_ends_it_by_its_accepted_socket(
    handler: Any,
) -> None:
    class Sequential(netkit.Server):
        def process_request(self, request: Any, client_address: Any) -> None:
            self.finish_request(request, client_address)
            self.shutdown_request(request)

    with Sequential(LOCAL, handler, tls=contexts()[0]) as server, serving_forever(server):
        for _ in range(2):
            with secured(server) as sock:
                assert shouts(sock)
            wait_until(lambda: not server.connections)
        assert server.stop().cut == 0


class _Wrapper:
    """An object of the program's around a socket."""

    def __init__(self, sock: Any) -> None:
        self.wrapped = sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self.wrapped, name)


class Wraps(netkit.Server):
    """As `Pool`, in threads of netkit."""

    wrap = Pool.wrap

    def process_request(self, request: Any, client_address: Any) -> None:
        super().process_request(self.wrap(request), client_address)


@each_handler
@pytest.mark.parametrize("kind", [Wraps, Pool])
def test_a_socket_that_process_request_wraps_is_that_of_the_client(handler: Any, kind: Any) -> None:
    with kind(LOCAL, handler, max_connections=1) as server, serving_forever(server):
        server.wrap = secured_later
        for _ in range(2):  # the first client gives its place back
            with secured(server) as sock:
                assert shouts(sock)
        with secured(server) as sock:
            assert shouts(sock)
            wait_until(lambda: server.connection_count == 1)  # a place is free a moment earlier
            assert server.stop(PATIENCE) == netkit.StopReport(finished=1, cut=0)
            assert sock.recv(9) == b""


@pytest.mark.parametrize("kind", [Wraps, Pool])
def test_a_request_handler_gets_the_object_that_process_request_passes_on(kind: Any) -> None:
    class Told(Shout):
        def setup(self) -> None:
            kinds.append(type(self.request))
            super().setup()

    kinds: list[type] = []
    with kind(LOCAL, Told, max_connections=1) as server, serving_forever(server):
        server.wrap = _Wrapper
        for _ in range(2):
            with client(server) as sock:
                assert shouts(sock)
    assert kinds == [_Wrapper, _Wrapper]
