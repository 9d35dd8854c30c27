"""The kinds of handlers, and objects that are refused as handlers."""

from __future__ import annotations

import functools
import socketserver
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from support import exchange, exchange_and_fail, observed, served, serving, silent_log

import netkit
from netkit.core import events
from netkit.server.adapting import adapt


def record(*arguments: Any, **keywords: Any) -> None:
    """Only its signature matters."""


class OldStyleWithMore(socketserver.BaseRequestHandler):
    def __init__(self, request: Any, client_address: Any, server: Any, colour: str) -> None:
        request.sendall(colour.encode())


class OldStyle(socketserver.BaseRequestHandler):
    pass


class Callable1:
    def __call__(self, conn: Any) -> None:
        pass

    @classmethod
    def of_the_class(cls, conn: Any) -> None:
        pass

    @staticmethod
    def static(conn: Any) -> None:
        pass


class Proxy:
    """Has an attribute of each name, as `xmlrpc.client.ServerProxy` and its methods."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *arguments: Any) -> None:
        pass


def three(request: Any, client_address: Any, server: Any) -> None:
    pass


WANT_A_CONNECTION: list[tuple[Any, dict[str, Any]]] = [
    (netkit.Handler, {}),
    (netkit.EchoHandler, {}),
    (lambda conn: None, {}),
    (lambda conn, greeting="hi", *, loud=False: None, {}),
    (lambda conn, *, loud: None, {"loud": True}),
    (lambda conn, **settings: None, {"any": "thing"}),
    (lambda conn=None: None, {}),
    (lambda conn, /: None, {}),
    (lambda conn, database: None, {"database": "db"}),
    (functools.partial(lambda conn, database: None, database="db"), {}),
    (functools.partial(lambda database, conn: None, "db"), {}),
    (Callable1(), {}),
    (Callable1().__call__, {}),
    (Callable1.of_the_class, {}),
    (Callable1.static, {}),
    (type("Takes1", (), {"__init__": lambda self, conn: None}), {}),
    (len, {}),
]
WANT_THE_SOCKET: list[tuple[Any, dict[str, Any]]] = [
    (socketserver.BaseRequestHandler, {}),
    (socketserver.StreamRequestHandler, {}),
    (OldStyle, {}),
    (OldStyleWithMore, {"colour": "red"}),
    (functools.partial(OldStyleWithMore, colour="red"), {}),
    (three, {}),
    (lambda request, client_address, server=None: None, {}),
    (lambda request, client_address, server, colour: None, {"colour": "red"}),
    (lambda *arguments: OldStyle(*arguments), {}),
    (record, {}),
    (record, {"any": "thing"}),
    (max, {}),  # has no signature
    (Proxy(), {}),
]


@pytest.mark.parametrize(
    ("handler", "arguments", "takes_socket"),
    [(*row, False) for row in WANT_A_CONNECTION] + [(*row, True) for row in WANT_THE_SOCKET],
)
def test_a_handler_takes_a_connection_or_the_arguments_of_socketserver(
    handler: Any, arguments: dict[str, Any], takes_socket: bool
) -> None:
    assert (adapt(handler, arguments, check=True) is None) is takes_socket


ONE = r"cannot serve a client: a handler takes one argument, the connection; further ones come from"


class NotDerived:
    def handle(self) -> None:
        pass


async def coroutine(conn: Any) -> None:
    pass


def generator(conn: Any) -> Iterator[None]:
    yield


async def asynchronous_generator(conn: Any) -> AsyncIterator[None]:
    yield


class AsyncCallable:
    async def __call__(self, conn: Any) -> None:
        pass


CANNOT_SERVE: list[tuple[Any, dict[str, Any], str]] = [
    (None, {}, "a handler must be a class or a function, not None"),
    ("echo", {}, "a handler must be a class or a function, not 'echo'"),
    (socketserver, {}, "a handler must be a class or a function, not <module 'socketserver'"),
    (netkit.create_server(), {}, "a handler must be a class or a function, not <Server not bound>"),
    (lambda: None, {}, rf"^<lambda>\(\) {ONE}"),
    (lambda conn, db: None, {}, rf"^<lambda>\(conn, db\) {ONE} handler_args$"),
    (lambda a, b, c, d: None, {}, rf"^<lambda>\(a, b, c, d\) {ONE}"),
    (Callable1, {}, "^Callable1 cannot .*: derive it from netkit.Handler or from socketserver"),
    (NotDerived, {}, "^NotDerived cannot serve a client: derive it from netkit.Handler"),
    (dict, {}, "^dict cannot serve a client: derive it"),
    (
        type("Deaf", (netkit.Handler,), {"received": lambda self: None}),
        {},
        r"^Deaf cannot serve a client: received: .*; write def received\(self, data\)$",
    ),
    (
        type("Odd", (netkit.Handler,), {"connected": lambda self, conn: None}),
        {},
        r"connected: it is called as connected\(\); write def connected\(self\)$",
    ),
    (
        type("Bare", (socketserver.BaseRequestHandler,), {"handle": lambda self, sock: None}),
        {},
        r"handle: it is called as handle\(\); write def handle\(self\)$",
    ),
    (ValueError, {}, "^ValueError cannot serve a client: derive it"),
    (type("Two", (), {"__init__": lambda self: None}), {}, "handler Two cannot be called: too"),
    (netkit.Server, {}, "^Server cannot serve a client: it is a server: give the class or the"),
    (socketserver.TCPServer, {}, "^TCPServer cannot serve a client: it is a server"),
    (socketserver.DatagramRequestHandler, {}, "cannot serve a client: it is for datagrams"),
    (netkit.EchoHandler.__new__(netkit.EchoHandler), {}, "it is a handler already: give its class"),
    (OldStyle.__new__(OldStyle), {}, "it is a handler already: give its class"),
    (coroutine, {}, "^coroutine cannot serve a client: it is a coroutine function; a handler is a"),
    (generator, {}, "^generator cannot serve a client: it is a generator function, which does no"),
    (asynchronous_generator, {}, "cannot serve a client: it is an asynchronous generator"),
    (functools.partial(coroutine), {}, "cannot serve a client: it is a coroutine function"),
    (AsyncCallable(), {}, "cannot serve a client: it is a coroutine function"),
    (functools.partial(AsyncCallable()), {}, "cannot serve a client: it is a coroutine function"),
    (AsyncCallable().__call__, {}, "^__call__ cannot serve a client: it is a coroutine function"),
    *(
        (type("Mine", (kind,), {name: method}), {}, f"^Mine cannot serve a client: {name}: it is a")
        for kind, method, names in (
            (netkit.Handler, coroutine, ("connected", "handle", "received", "closed")),
            (OldStyle, generator, ("setup", "handle", "finish")),
        )
        for name in names
    ),
    (lambda conn, *, loud: None, {}, "handler <lambda> cannot be called: missing .* 'loud'"),
    (lambda conn: None, {"loud": 1}, "handler <lambda> cannot be called: got an unexp.*'loud'"),
    (lambda conn: None, {"conn": 1}, "handler <lambda> cannot be called: multiple values"),
    (three, {"loud": 1}, "handler three cannot be called: got an unexpected .*'loud'"),
    (OldStyle, {"colour": "red"}, "handler OldStyle cannot be called: .*'colour'"),
    (OldStyleWithMore, {}, "handler OldStyleWithMore cannot be called: missing .*'colour'"),
    (netkit.Handler, {"conn": 1}, "Handler has no setting 'conn'"),
    (netkit.GreeterHandler, {"greting": "hi"}, "GreeterHandler has no setting 'greting'"),
]


@pytest.mark.parametrize(("handler", "arguments", "message"), CANNOT_SERVE)
def test_a_handler_that_cannot_serve_is_refused_when_the_server_is_made(
    handler: Any, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError, match=message) as raised:
        netkit.create_server(handler, handler_args=arguments)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("handler", "arguments", "_"), CANNOT_SERVE[::5])
def test_a_server_that_overrides_finish_request_may_have_any_handler(
    handler: Any, arguments: dict[str, Any], _: str
) -> None:
    class Server(netkit.Server):
        def finish_request(self, request: Any, client_address: Any) -> None:
            request.sendall(b"served")

    with served(Server(("127.0.0.1", 0), handler, handler_args=arguments)) as server:
        assert exchange(server, b"") == b"served"


class Lenient(netkit.Handler):
    """Methods that take more than they are given, or another kind of thing than a function."""

    connected = staticmethod(lambda: None)
    closed = functools.partial(int)  # type: ignore[assignment]

    def received(self, *data: Any) -> None:
        self.conn.write(data[0])

    def handle(self, chunks: int = 1) -> None:
        super().handle()


def test_methods_may_take_more_than_they_are_given() -> None:
    with serving(Lenient) as server:
        assert exchange(server, b"x") == b"x"


@functools.wraps(coroutine)
def decorated(conn: netkit.Connection) -> None:
    conn.write("decorated")


def test_a_decorator_may_make_a_handler_of_a_coroutine_function() -> None:
    with serving(decorated) as server:
        assert exchange(server, b"") == b"decorated"


@pytest.mark.parametrize("result", [coroutine, generator, asynchronous_generator])
def test_a_handler_that_returns_a_coroutine_or_generator_has_failed(result: Any) -> None:
    with observed(events.HandlerFailed) as failures, silent_log():
        with serving(lambda conn: result(conn)) as server:
            assert exchange_and_fail(server, b"") == b""
    (failure,) = failures
    assert isinstance(failure.error, TypeError)
    assert "of which nothing has run" in str(failure.error)


@pytest.mark.parametrize(
    "handler",
    [
        lambda conn, colour: conn.end(colour),
        lambda request, client_address, server, colour: request.sendall(colour.encode()),
        OldStyleWithMore,
        type("New", (netkit.Handler,), {"colour": "", "connected": lambda s: s.conn.end(s.colour)}),
    ],
)
def test_handlers_of_each_kind_get_the_handler_args(handler: Callable[..., Any]) -> None:
    with serving(handler, handler_args={"colour": "red"}) as server:
        assert exchange(server, b"") == b"red"


def test_the_handler_of_a_server_can_be_exchanged_and_is_checked_again() -> None:
    with serving(lambda conn: conn.end("one")) as server:
        server.RequestHandlerClass = lambda conn: conn.end("two")
        assert exchange(server, b"") == b"two"
        with pytest.raises(TypeError, match="a handler must be"):
            server.RequestHandlerClass = "three"
        assert exchange(server, b"") == b"two"
