"""Server classes made of `netkit.Server` and of those of other libraries."""

from __future__ import annotations

import abc
import contextlib
import http.server
import importlib.util
import inspect
import os
import socket
import socketserver
import subprocess
import sys
import wsgiref.simple_server
import xmlrpc.client
import xmlrpc.server
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from support import (
    PATIENCE,
    ROOT,
    Shout,
    client,
    exchange,
    needs_ipv6,
    receive_all,
    serving_forever,
    wait_until,
)

import netkit

LOCAL = ("127.0.0.1", 0)


def made_of(bases: Sequence[Any], **attributes: Any) -> Any:
    return type(netkit.Server)("Made", tuple(bases), attributes)


def orders(*bases: Any) -> list[Any]:
    """Both orders of two bases, and `ThreadingMixIn` as the first and as the last base."""
    mix_in = socketserver.ThreadingMixIn
    found = [bases, bases[::-1], (mix_in, *bases), (*bases[::-1], mix_in)]
    return [pytest.param(each, id="-".join(base.__name__ for base in each)) for each in found]


@contextlib.contextmanager
def shouting(server: Any) -> Iterator[Any]:
    """The server serves in the block, after it has answered a client."""
    with server, serving_forever(server):
        assert exchange(server, b"hello\n") == b"HELLO\n"
        yield server


@pytest.mark.parametrize("base", [socketserver.TCPServer, socketserver.ThreadingTCPServer])
def test_a_constructor_may_call_that_of_socketserver_by_name(base: Any) -> None:
    class Server(netkit.Server):
        def __init__(self, address: Any) -> None:
            base.__init__(self, address, Shout)

    with shouting(Server(LOCAL)) as server:
        server.configure(max_line=1000)


@pytest.mark.parametrize("bases", orders(netkit.Server)[2:])
def test_threading_mix_in_may_be_among_the_bases(bases: Any) -> None:
    kind = made_of(bases)
    assert kind.process_request is netkit.Server.process_request
    with shouting(kind(LOCAL, Shout, idle_timeout=PATIENCE)) as server:
        assert server.daemon_threads


@pytest.mark.parametrize("bases", orders(netkit.Server, xmlrpc.server.SimpleXMLRPCServer))
def test_an_xmlrpc_server_may_be_among_the_bases_in_any_order(bases: Any) -> None:
    server = made_of(bases)(LOCAL, logRequests=False)
    with server, serving_forever(server):
        server.register_function(lambda a, b: a + b, "add")
        uri = f"http://127.0.0.1:{server.server_address[1]}/"
        with xmlrpc.client.ServerProxy(uri) as proxy:
            assert proxy.add(2, 3) == 5


class Quiet(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [environ["PATH_INFO"].encode()]


@pytest.mark.parametrize("bases", orders(netkit.Server, wsgiref.simple_server.WSGIServer))
def test_a_wsgi_server_may_be_among_the_bases_in_any_order(bases: Any) -> None:
    server = made_of(bases)(LOCAL, Quiet)
    server.set_app(application)
    with server, serving_forever(server):
        assert exchange(server, b"GET /hello HTTP/1.0\r\n\r\n").endswith(b"\r\n\r\n/hello")


@pytest.mark.parametrize("bases", orders(netkit.Server, http.server.ThreadingHTTPServer))
def test_a_threading_http_server_may_be_among_the_bases_in_any_order(bases: Any) -> None:
    with shouting(made_of(bases)(LOCAL, Shout)) as server:
        assert server.server_port == server.server_address[1]


class Library(http.server.HTTPServer):
    """A server class with a constructor of its own, as those of web frameworks have it."""

    def __init__(self, host: str, port: int, app: str) -> None:
        super().__init__((host, port), Shout)
        self.app = app


class Threaded(socketserver.ThreadingMixIn, Library):
    """As libraries have it: of its bases, those with the constructor come after netkit's."""


@pytest.mark.parametrize(
    "bases", [*orders(netkit.Server, Library), *orders(netkit.Server, Threaded)]
)
def test_the_constructor_of_a_librarys_class_counts_in_any_order_of_bases(bases: Any) -> None:
    class Server(made_of(bases)):  # type: ignore[misc]
        def __init__(self, app: str) -> None:
            super().__init__("127.0.0.1", 0, app)

    with shouting(Server("the application")) as server:
        assert server.app == "the application"


def test_the_constructor_of_netkit_may_be_called_by_name() -> None:
    class Server(netkit.Server, Library):
        def __init__(self) -> None:
            netkit.Server.__init__(self, LOCAL, Shout, idle_timeout=PATIENCE)

    with shouting(Server()) as server:
        assert not hasattr(server, "app")


class Hooked(http.server.HTTPServer):
    """A server class that overrides the hooks that are not about threads."""

    def __init__(self, address: Any, handler: Any, called: set[str]) -> None:
        self.called = called
        super().__init__(address, handler)


def overridden(hook: str) -> Any:
    def method(self: Any, *arguments: Any) -> Any:
        self.called.add(hook)
        return getattr(super(Hooked, self), hook)(*arguments)

    return method


HOOKS = {
    *("server_bind", "server_activate", "server_close", "service_actions", "get_request"),
    *("verify_request", "finish_request", "shutdown_request", "close_request", "handle_error"),
}
for hook in HOOKS:
    setattr(Hooked, hook, overridden(hook))


class Fails(Shout):
    def finish(self) -> None:
        super().finish()
        raise ValueError("on purpose")


@pytest.mark.parametrize("bases", orders(netkit.Server, Hooked))
def test_the_hooks_of_a_librarys_class_count_in_any_order_of_bases(bases: Any) -> None:
    called: set[str] = set()
    with shouting(made_of(bases)(LOCAL, Fails, called)) as server:
        wait_until(lambda: not server.connections)
        with client(server) as idle:
            wait_until(lambda: server.connection_count == 1)
            assert server.stop() == netkit.StopReport(finished=1, cut=0)
            assert idle.recv(1) == b""
    assert called == HOOKS


def test_a_hook_of_the_programs_own_counts_before_that_of_a_library() -> None:
    class Mine(netkit.Server):
        def finish_request(self, request: Any, client_address: Any) -> None:
            request.sendall(b"mine")

    called: set[str] = set()
    server = made_of([Mine, Hooked])(LOCAL, Shout, called)
    with server, serving_forever(server):
        assert exchange(server, b"") == b"mine"
    assert called == HOOKS - {"finish_request", "handle_error"}


@needs_ipv6
@pytest.mark.parametrize("bases", orders(netkit.Server, xmlrpc.server.SimpleXMLRPCServer)[:2])
def test_an_ipv6_address_is_bound_whichever_constructor_is_called(bases: Any) -> None:
    with shouting(made_of(bases)(("::1", 0), Shout, logRequests=False)) as server:
        assert server.address_family == socket.AF_INET6


def by_name(*methods: str) -> Any:
    """A class that calls these methods of its base by the name of that, as old programs do."""
    base = socketserver.ThreadingTCPServer

    def calling(name: str) -> Any:
        more = {"poll_interval": 0.01} if name == "serve_forever" else {}
        return lambda self, *arguments: getattr(base, name)(self, *arguments, **more)

    return made_of([netkit.Server], **{name: calling(name) for name in methods})


@pytest.mark.parametrize("base", [socketserver.TCPServer, socketserver.ThreadingMixIn])
def test_a_server_close_that_calls_that_of_a_base_by_name_closes_the_server(base: Any) -> None:
    class Server(netkit.Server):
        def server_close(self) -> None:
            base.server_close(self)

    server = Server(LOCAL, Shout, drain_timeout=PATIENCE)
    with serving_forever(server) as thread, client(server) as idle:
        assert server.wait_for_connections(1, PATIENCE)
        server.server_close()
        assert server.fileno() == -1
        server.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive()
        assert idle.recv(1) == b""


def test_a_class_may_name_its_handler() -> None:
    class Server(netkit.Server):
        RequestHandlerClass = Shout

        def __init__(self) -> None:
            super().__init__(LOCAL, self.RequestHandlerClass)

    with shouting(Server()) as server:
        assert server.RequestHandlerClass is Shout
        server.RequestHandlerClass = lambda conn: conn.end("another")
        assert exchange(server, b"") == b"another"


OVERRIDABLE = (
    *("__init__", "server_bind", "server_activate", "serve_forever", "handle_request", "shutdown"),
    *("get_request", "verify_request", "process_request", "process_request_thread"),
    *("finish_request", "shutdown_request", "close_request"),
)
# One of these has to be netkit's, which learns there that a client is gone.
ENDS = {"all but close_request", "all but shutdown_request"}


@pytest.mark.parametrize("method", [*OVERRIDABLE, *sorted(ENDS)])
@pytest.mark.parametrize("serves_before", [False, True])
def test_each_method_of_the_base_may_be_called_by_name(method: str, serves_before: bool) -> None:
    chosen = [name for name in OVERRIDABLE if method == name or method in ENDS]
    chosen = [name for name in chosen if method != f"all but {name}"]
    with by_name(*chosen)(LOCAL, Shout) as server:
        if serves_before:
            with client(server) as sock:
                sock.sendall(b"first\n")
                server.handle_request()
                assert sock.recv(6) == b"FIRST\n"
        with serving_forever(server) as thread:
            assert exchange(server, b"hello\n") == b"HELLO\n"
            server.shutdown()
            thread.join(PATIENCE)
            assert not thread.is_alive()
            wait_until(lambda: not server.connections)
        assert server.stop().cut == 0


LoopByName = by_name("serve_forever", "shutdown")


def test_a_shutdown_by_name_before_the_server_ever_served_counts_once() -> None:
    server = LoopByName(LOCAL, Shout)
    server.shutdown()
    server.serve_forever()  # returns at once
    with shouting(server):
        pass


def test_a_hook_of_a_loop_that_is_called_by_name_only_requests_a_stop() -> None:
    reports: list[Any] = []

    class Stopped(LoopByName):  # type: ignore[misc, valid-type]
        def service_actions(self) -> None:
            if self.connection_count and not reports:
                reports.append(self.stop(0))

    server = Stopped(LOCAL, Shout)
    with client(server) as sock:
        server.serve_forever()
        assert receive_all(sock) == b""
    assert reports == [(0, 0)]
    assert sum(server.stop()) == 1


def test_limits_hold_for_a_loop_that_is_called_by_name() -> None:
    server = LoopByName(LOCAL, Shout, max_connections=1, when_full="refuse")
    with server, serving_forever(server), client(server) as silent:
        wait_until(lambda: server.connection_count == 1)
        assert exchange(server, b"") == b""
        assert server.refused_count == 1
        silent.sendall(b"hello\n")
        assert silent.recv(6) == b"HELLO\n"


def test_a_server_class_may_be_abstract() -> None:
    class Server(netkit.Server, abc.ABC):
        @abc.abstractmethod
        def name(self) -> str: ...

    with pytest.raises(TypeError, match="abstract"):
        Server(LOCAL, Shout)


def test_the_signature_of_a_server_class_is_that_of_its_constructor() -> None:
    parameters = ["server_address", "RequestHandlerClass", "bind_and_activate", "options"]
    assert list(inspect.signature(netkit.Server).parameters) == parameters
    assert "OSError" in (netkit.Server.__init__.__doc__ or "")


# What cannot be a server


DATAGRAMS = (
    "socket_type must be SOCK_STREAM, not SOCK_DGRAM: .* use socketserver.ThreadingUDPServer"
)


@pytest.mark.parametrize(
    "kind",
    [
        made_of([netkit.Server], socket_type=socket.SOCK_DGRAM),
        made_of([netkit.Server, socketserver.UDPServer]),
        made_of([socketserver.UDPServer, netkit.Server]),
    ],
)
def test_a_server_of_datagrams_is_refused_in_one_line(kind: Any) -> None:
    with pytest.raises(TypeError, match=DATAGRAMS):
        kind(LOCAL, Shout)


@pytest.mark.parametrize("address", ["/tmp/socket", ["127.0.0.1", 0], 8080])
def test_an_address_that_is_not_of_tcp_is_refused_in_one_line(address: Any) -> None:
    with pytest.raises(TypeError, match=r"must be \(host, port\), not .*listen\(path=...\) is for"):
        netkit.Server(address, Shout)


def test_an_address_that_is_no_path_is_refused_for_a_unix_socket() -> None:
    kind = made_of([netkit.Server], address_family=socket.AF_UNIX)
    with pytest.raises(TypeError, match="must be the path of a Unix socket, not"):
        kind(LOCAL, Shout)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork(2)")
def test_a_class_with_forking_mix_in_can_be_made_and_is_refused_when_it_serves() -> None:
    kind = made_of([socketserver.ForkingMixIn, netkit.Server])
    for serve in ("serve_forever", "handle_request", "start"):
        with kind(LOCAL, Shout) as server:
            with pytest.raises(TypeError, match="does not fork: leave out ForkingMixIn, or serve"):
                getattr(server, serve)()


@pytest.mark.parametrize("hook", ["verify_request", "handle_error", "service_actions"])
def test_a_hook_that_is_a_coroutine_function_is_refused_with_its_class(hook: str) -> None:
    async def method(self: Any, *_: Any) -> bool:
        return True

    with pytest.raises(TypeError, match=rf"Made.{hook}: it is a coroutine function"):
        made_of([netkit.Server], **{hook: method})
    with pytest.raises(TypeError, match=rf"Made.{hook}: it is a coroutine function"):
        made_of([type("MixIn", (), {hook: method}), netkit.Server])


# The tests of CPython

STAND_IN = """
import socket, socketserver, sys, unittest
sys.path.insert(0, ROOT)
import netkit
for name in NAMES:
    family = getattr(socketserver, name).address_family
    attributes = {"__module__": "socketserver", "address_family": family}
    setattr(socketserver, name, type(netkit.Server)(name, (netkit.Server,), attributes))
from test import test_socketserver

def chosen(suite):
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from chosen(test)
        elif not any(word in test.id() for word in LEFT_OUT):
            yield test

every = unittest.defaultTestLoader.loadTestsFromModule(test_socketserver)
result = unittest.TextTestRunner().run(unittest.TestSuite(chosen(every)))
print("ran", result.testsRun)
sys.exit(not result.wasSuccessful())
"""
THREADING = ("ThreadingTCPServer", "ThreadingUnixStreamServer")


def has_tests_of_python() -> bool:
    try:
        return importlib.util.find_spec("test.test_socketserver") is not None
    except ModuleNotFoundError:
        return False


# Left out where they stand in for the classes without threads, too: those that fork, that take an
# exit of a handler for one of the server, that ask for the result of a thread at once, that have a
# handler which takes no argument, or that want an OverflowError for a port which is none.
OF_NO_THREADS = (
    *("orking", "not_handled", "verify_request_false", "close_immediately", "bind_leak"),
    "SocketWriterTest.test_basics",
)


@pytest.mark.skipif(not has_tests_of_python(), reason="Python is installed without its tests")
@pytest.mark.parametrize(
    ("classes", "left_out"),
    [
        (THREADING, ()),
        ((*THREADING, "TCPServer", "UnixStreamServer"), OF_NO_THREADS),
    ],
)
def test_the_tests_of_socketserver_pass(classes: Any, left_out: Any, tmp_path: Any) -> None:
    settings = f"NAMES = {classes!r}; LEFT_OUT = {left_out!r}; ROOT = {str(ROOT)!r}"
    done = subprocess.run(
        [sys.executable, "-c", f"{settings}\n{STAND_IN}"],
        cwd=tmp_path,
        capture_output=True,
        timeout=4 * PATIENCE,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) >= 15
