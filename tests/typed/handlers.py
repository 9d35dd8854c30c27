# pyright: strict
"""A program with handlers of each kind, and with what cannot be a handler."""

import functools
import http.server
import socketserver
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import netkit

if TYPE_CHECKING:
    from typing_extensions import assert_type


# Functions


def shout(conn: netkit.Connection) -> None:
    for line in conn.lines():
        conn.write(line.upper() + "\n")


def greet(conn: netkit.Connection, greeting: str, *, times: int = 1) -> int:
    return conn.write(greeting * times)


def serve_number(number: int) -> None: ...


netkit.serve(shout)
netkit.create_server()
netkit.create_server(lambda conn: conn.write("hello"))
netkit.create_server(lambda conn: conn.wriet("hello"))  # error: pyright
netkit.create_server(greet, handler_args={"greeting": "hello"})
netkit.create_server(functools.partial(greet, greeting="hello"))
netkit.create_server(serve_number)  # error
netkit.serve(42)  # error
netkit.serve("shout")  # error
netkit.create_server(shout(netkit.connect(8080)))  # error
netkit.create_server(None)  # error
netkit.Server(("127.0.0.1", 8080), 42)  # error


# Classes


class MyServer(netkit.Server):
    members: dict[str, netkit.Connection]


class Plain(netkit.Handler):
    greeting = "hello"

    def connected(self) -> None:
        self.conn.write(self.greeting)
        self.server.any_name_is_fine = 1

    def closed(self, reason: str) -> None: ...  # error


class Typed(netkit.Handler[MyServer]):
    def connected(self) -> None:
        assert_type(self.server, MyServer)
        self.server.members[self.conn.peer] = self.conn
        self.server.membres.clear()  # error


class Annotated(netkit.Handler):
    server: MyServer

    def connected(self) -> None:
        assert_type(self.server, MyServer)


AnyServer = TypeVar("AnyServer", bound=netkit.Server)


class Counting(netkit.Handler[AnyServer], Generic[AnyServer]):
    def connected(self) -> None:
        self.conn.write(str(self.server.connection_count))


class CountingMembers(Counting[MyServer]):
    def closed(self) -> None:
        assert_type(self.server, MyServer)


class Other:
    def __init__(self, name: str) -> None: ...


for kind in (Plain, Typed, Annotated, CountingMembers, netkit.EchoHandler):
    netkit.create_server(kind)
netkit.create_server(netkit.Handler[MyServer])
netkit.create_server(netkit.GreeterHandler, handler_args={"greeting": "hello\n"})
netkit.create_server(Plain(netkit.connect(8080)))  # error
netkit.create_server(Other)  # error


# Request handlers


class Request(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(self.rfile.readline())


class Files(http.server.SimpleHTTPRequestHandler): ...


def wrapped(request: Any, client_address: Any, server: Any) -> Request:
    return Request(request, client_address, server)


netkit.Server(("127.0.0.1", 8080), Request)
netkit.create_server(Files)
netkit.create_server(functools.partial(Files, directory="/srv"))
netkit.create_server(wrapped)


class Overriding(netkit.Server):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 8080), None)  # `finish_request` needs no handler

    def finish_request(self, request: Any, client_address: Any) -> None:
        Request(request, client_address, self)
