"""Programs written for `socketserver.ThreadingTCPServer` run on `netkit.Server` as they are."""

from __future__ import annotations

import contextlib
import errno
import functools
import http.client
import http.server
import logging
import logging.handlers
import pickle
import select
import socket
import socketserver
import struct
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support import (
    PATIENCE,
    Shout,
    client,
    exchange,
    in_thread,
    needs_ipv6,
    observed,
    receive_all,
    reset,
    served,
    serving_forever,
    wait_until,
)

import netkit
from netkit.core import events

LOCAL = ("127.0.0.1", 0)
needs_unix_sockets = pytest.mark.skipif(
    not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here"
)


class BareShout(socketserver.BaseRequestHandler):
    """The same, without files."""

    def handle(self) -> None:
        while data := self.request.recv(1024):
            self.request.sendall(data.upper())


def shouts(server: netkit.Server) -> bool:
    return exchange(server, b"hello\n") == b"HELLO\n"


# What there is


def test_it_is_a_threading_tcp_server_with_its_attributes() -> None:
    with netkit.Server(LOCAL, Shout) as server:
        assert isinstance(server, socketserver.ThreadingTCPServer)
        for name in vars(socketserver.BaseServer):
            assert hasattr(server, name)
        assert server.RequestHandlerClass is Shout
        assert server.server_address == server.socket.getsockname()
        assert server.fileno() == server.socket.fileno() >= 0
        assert server.address_family == socket.AF_INET
        assert server.socket_type == socket.SOCK_STREAM
        assert server.timeout is None
        assert (server.allow_reuse_address, server.allow_reuse_port) == (True, False)
        assert server.daemon_threads
        assert server.block_on_close
        assert list(server._threads) == []
    assert server.fileno() == -1


def test_a_server_that_was_never_activated_may_be_bound_and_activated_later() -> None:
    server = netkit.Server(server_address=LOCAL, RequestHandlerClass=Shout, bind_and_activate=False)
    with server:
        assert server.server_address == LOCAL
        assert server.socket.getsockname() == ("0.0.0.0", 0)
        server.allow_reuse_address = False
        server.request_queue_size = 3
        server.server_bind()
        assert server.server_address[1] > 0
        server.server_activate()
        with serving_forever(server):
            assert shouts(server)


def test_the_socket_of_a_server_may_be_swapped_for_another_one() -> None:
    server = netkit.Server(LOCAL, Shout, bind_and_activate=False)
    server.socket.close()
    server.socket = socket.create_server(LOCAL)
    server.server_address = server.socket.getsockname()
    with served(server):
        assert shouts(server)


def test_daemon_threads_may_be_set_on_the_server() -> None:
    server = netkit.Server(LOCAL, Shout)
    server.daemon_threads = False
    with served(server), client(server) as sock:
        sock.sendall(b"a\n")
        assert sock.recv(2) == b"A\n"
        assert [thread.daemon for thread in server._threads] == [False]


def test_a_subclass_may_have_attributes_of_its_own_and_other_uses_for_netkits_names() -> None:
    class Chat(netkit.Server):
        def __init__(self, *arguments: Any) -> None:
            self._handler = self._thread = self.options = self.address = self.listening = None
            self.connections: list[Any] = []
            self.connection_count = 0
            super().__init__(*arguments)
            self.ready = threading.Event()

    with served(Chat(LOCAL, Shout)) as server:
        assert shouts(server)
        assert (server.connections, server.connection_count, server.address) == ([], 0, None)


# Handlers


def shout(request: socket.socket, client_address: Any, server: Any) -> None:
    BareShout(request, client_address, server)


class Loud:
    """Not derived from anything, but called like a request handler class."""

    def __init__(self, request: socket.socket, client_address: Any, server: Any) -> None:
        shout(request, client_address, server)


class Suffixed(socketserver.StreamRequestHandler):
    def __init__(self, suffix: bytes, *arguments: Any) -> None:
        self.suffix = suffix
        super().__init__(*arguments)

    def handle(self) -> None:
        self.wfile.write(self.rfile.readline().strip().upper() + self.suffix)


@pytest.mark.parametrize(
    "handler",
    [
        BareShout,
        Loud,
        shout,
        functools.partial(Suffixed, b"\n"),
        lambda *args, **kwargs: Shout(*args, **kwargs),
    ],
    ids=["base", "class", "function", "partial", "lambda"],
)
def test_any_object_that_is_called_like_a_request_handler_class_serves(handler: Any) -> None:
    with served(netkit.Server(LOCAL, handler)) as server:
        assert shouts(server)


def test_a_handler_gets_its_arguments_and_its_methods_are_called_in_order() -> None:
    class Note(socketserver.BaseRequestHandler):
        def setup(self) -> None:
            noted.append((self.client_address, self.server, self.request.gettimeout()))

        def handle(self) -> None:
            noted.append("handle")
            raise ValueError("on purpose")

        def finish(self) -> None:
            noted.append("finish")

    noted: list[Any] = []
    with served(netkit.Server(LOCAL, Note)) as server, client(server) as sock:
        assert receive_all(sock) == b""
        assert noted == [(sock.getsockname(), server, None), "handle", "finish"]


def test_the_settings_of_a_stream_request_handler_hold() -> None:
    class Settings(Shout):
        timeout = 0.05
        disable_nagle_algorithm = True
        wbufsize = -1
        rbufsize = 0

        def handle(self) -> None:
            self.wfile.write(b"before")
            with pytest.raises(TimeoutError):
                self.rfile.readline()
            self.wfile.write(b" and after")

    with served(netkit.Server(LOCAL, Settings)) as server, client(server) as sock:
        assert receive_all(sock) == b"before and after"


@pytest.mark.parametrize("method", ["setup", "handle", "finish"])
def test_system_exit_in_a_handler_ends_that_client_alone(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(_: Any) -> None:
        server.RequestHandlerClass = Shout
        sys.exit("on purpose")

    ends: list[Any] = []
    errors: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", ends.append)
    leaving = type("Exit", (socketserver.BaseRequestHandler,), {method: leave})
    with observed(events.HandlerFailed) as told, served(netkit.Server(LOCAL, leaving)) as server:
        server.handle_error = lambda *_: errors.append(sys.exc_info())  # type: ignore[method-assign]
        assert exchange(server, b"hello\n") == b""
        assert shouts(server)
    assert [str(event.error) for event in told] == ["on purpose"]
    assert (ends, errors) == ([], [])  # `handle_error` is for other exceptions, as in socketserver


# Hooks, in the order in which they are called


def test_server_bind_and_server_activate_may_be_extended() -> None:
    class Server(netkit.Server):
        def server_bind(self) -> None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            super().server_bind()
            self.port = self.server_address[1]

        def server_activate(self) -> None:
            calls.append(self.port)
            super().server_activate()

    calls: list[int] = []
    with served(Server(LOCAL, Shout)) as server:
        assert calls == [server.server_address[1]]
        assert shouts(server)


def test_server_bind_and_server_activate_may_be_replaced() -> None:
    class Server(netkit.Server):
        def server_bind(self) -> None:
            self.socket.bind(self.server_address)
            self.server_address = self.socket.getsockname()

        def server_activate(self) -> None:
            self.socket.listen(5)

    with served(Server(LOCAL, Shout)) as server:
        assert shouts(server)


class Swapping:
    """Has what a handler needs of a socket, and swaps the case of the letters."""

    def __init__(self, wrapped: socket.socket) -> None:
        self._wrapped = wrapped

    def recv(self, size: int) -> bytes:
        return self._wrapped.recv(size).swapcase()

    def sendall(self, data: bytes) -> None:
        self._wrapped.sendall(data.swapcase())


class Wrapper(Swapping):
    """The same with all the rest of a socket, as those of TLS libraries."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)


class WrapsAccepted(netkit.Server):
    def get_request(self) -> Any:
        request, client_address = super().get_request()
        return Wrapper(request), client_address


class WrapsServed(netkit.Server):
    def finish_request(self, request: Any, client_address: Any) -> None:
        super().finish_request(Swapping(request), client_address)


@pytest.mark.parametrize("kind", [WrapsAccepted, WrapsServed])
def test_get_request_and_finish_request_may_wrap_the_socket(kind: type[netkit.Server]) -> None:
    with served(kind(LOCAL, BareShout)) as server, client(server) as sock:
        sock.sendall(b"Hello\n")
        assert sock.recv(9) == b"hello\n"
        assert server.stop() == netkit.StopReport(finished=1, cut=0)
        assert sock.recv(9) == b""


def test_get_request_may_replace_accept() -> None:
    class Server(netkit.Server):
        def get_request(self) -> Any:
            request, client_address = self.socket.accept()
            return request, ("masked", client_address[1])

    class Address(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(self.client_address[0].encode())

    with served(Server(LOCAL, Address)) as server:
        assert exchange(server, b"") == b"masked"


def test_verify_request_decides_whether_a_client_is_served() -> None:
    class Server(netkit.Server):
        def verify_request(self, request: Any, client_address: Any) -> bool:
            asked.append(client_address[1])
            return len(asked) > 1

        def shutdown_request(self, request: Any) -> None:
            super().shutdown_request(request)
            ended.append(request.fileno())

    asked: list[int] = []
    ended: list[int] = []
    with served(Server(LOCAL, Shout)) as server:
        with client(server) as sock:
            assert receive_all(sock) == b""
            assert asked == [sock.getsockname()[1]]
        wait_until(lambda: ended == [-1])
        assert shouts(server)


def test_the_hooks_of_a_client_may_be_extended() -> None:
    class Server(netkit.Server):
        def verify_request(self, request: Any, client_address: Any) -> bool:
            calls.append("verify")
            return True

        def process_request(self, request: Any, client_address: Any) -> None:
            calls.append("process")
            super().process_request(request, client_address)

        def process_request_thread(self, request: Any, client_address: Any) -> None:
            calls.append("begin")
            super().process_request_thread(request, client_address)
            calls.append("end")

    calls: list[str] = []
    with served(Server(LOCAL, Shout)) as server:
        assert shouts(server)
    assert calls == ["verify", "process", "begin", "end"]


class PoolServer(netkit.Server):
    """With a pool of threads of its own, as many programs have it."""

    def __init__(self, address: Any, handler: Any) -> None:
        self.pool = ThreadPoolExecutor(2, "pool")
        super().__init__(address, handler, drain_timeout=5)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.pool.submit(self.process_request_thread, request, client_address)

    def server_close(self) -> None:
        super().server_close()
        self.pool.shutdown()


def test_process_request_may_hand_clients_to_a_pool_of_the_programs_own() -> None:
    class Name(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(threading.current_thread().name.encode())

    with served(PoolServer(LOCAL, Name)) as server:
        for _ in range(5):
            assert exchange(server, b"").startswith(b"pool_")
        wait_until(lambda: not server.connections)
        server.RequestHandlerClass = Shout
        with client(server) as sock:
            sock.sendall(b"a\n")
            assert sock.recv(2) == b"A\n"
            assert server.stop() == netkit.StopReport(finished=1, cut=0)
            assert sock.recv(1) == b""


def test_a_handler_in_a_pool_may_close_the_server() -> None:
    class Close(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            netkit.Server.server_close(self.server)  # type: ignore[arg-type]
            self.wfile.write(b"closed")

    with observed(events.Stopped) as stopped, served(PoolServer(LOCAL, Close)) as server:
        assert exchange(server, b"") == b"closed"
        wait_until(lambda: stopped)
    assert stopped[0].cut == 0


def test_a_program_may_accept_clients_itself_and_hand_them_to_process_request() -> None:
    with netkit.Server(LOCAL, Shout) as server, client(server) as sock:
        sock.sendall(b"hello\n")
        sock.shutdown(socket.SHUT_WR)
        server.process_request(*server.get_request())
        assert receive_all(sock) == b"HELLO\n"


def test_process_request_may_serve_in_the_accepting_thread_itself() -> None:
    class Server(netkit.Server):
        def process_request(self, request: Any, client_address: Any) -> None:
            self.finish_request(request, client_address)
            self.shutdown_request(request)

    class Name(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            if threading.current_thread() is accepting:
                self.wfile.write(b"served by the accepting thread")

    with Server(LOCAL, Name) as server, serving_forever(server) as accepting:
        assert exchange(server, b"") == b"served by the accepting thread"


def test_finish_request_may_give_the_handler_arguments_that_it_needs() -> None:
    class Server(netkit.Server):
        def finish_request(self, request: Any, client_address: Any) -> None:
            self.RequestHandlerClass(b"!", request, client_address, self)

    with served(Server(LOCAL, Suffixed)) as server:
        assert exchange(server, b"hello\n") == b"HELLO!"


def test_finish_request_may_do_without_a_handler() -> None:
    class Server(netkit.Server):
        def finish_request(self, request: Any, client_address: Any) -> None:
            BareShout(request, client_address, self)

    with served(Server(LOCAL, None)) as server:
        assert server.RequestHandlerClass is None
        assert shouts(server)


class ReplacesSocket(netkit.Server):
    def finish_request(self, request: Any, client_address: Any) -> None:
        self.replaced = socket.socket(fileno=request.detach())  # as ssl.wrap_socket does
        super().finish_request(self.replaced, client_address)


@pytest.mark.parametrize("handler", [BareShout, lambda conn: [conn.write(x.upper()) for x in conn]])
def test_finish_request_may_put_another_socket_in_the_place_of_the_accepted_one(
    handler: Any,
) -> None:
    with served(ReplacesSocket(LOCAL, handler)) as server:
        assert shouts(server)
        wait_until(lambda: not server.connections)
        assert server.replaced.fileno() == -1
        with client(server) as sock:
            sock.sendall(b"idle\n")
            assert sock.recv(9) == b"IDLE\n"
            assert server.stop() == netkit.StopReport(finished=1, cut=0)
            assert sock.recv(1) == b""


def test_an_error_of_a_client_whose_socket_was_replaced_has_the_id_of_its_connection() -> None:
    with served(ReplacesSocket(LOCAL, lambda conn: conn.readline())) as server:
        with observed(events.ClientFailed, events.HandlerFailed) as told:
            with client(server) as sock:
                sock.sendall(b"half a li")
                wait_until(lambda: any(conn.bytes_read for conn in server.connections))
                (connection,) = server.connections
                reset(sock)
            wait_until(lambda: told)
    assert [(type(event), event.id) for event in told] == [(events.ClientFailed, connection.id)]


def close(self: Any, request: Any) -> None:
    request.close()


def shut_down(self: Any, request: Any) -> None:
    request.shutdown(socket.SHUT_WR)
    self.close_request(request)


@pytest.mark.parametrize("base", [netkit.Server, PoolServer])
@pytest.mark.parametrize(
    "hooks", [{"close_request": close}, {"close_request": close, "shutdown_request": shut_down}]
)
def test_a_client_is_forgotten_even_if_the_hooks_that_close_it_are_replaced(
    base: Any, hooks: dict[str, Any]
) -> None:
    with served(type("Server", (base,), hooks)(LOCAL, Shout)) as server:
        assert shouts(server)
        wait_until(lambda: not server.connections)
        assert server.stop() == netkit.StopReport(finished=0, cut=0)


def test_handle_error_is_called_while_the_exception_is_handled() -> None:
    class Server(netkit.Server):
        def handle_error(self, request: Any, client_address: Any) -> None:
            told.append((request.fileno() >= 0, client_address, traceback.format_exc()[-23:]))

    def fail(*_: Any) -> None:
        raise ValueError("on purpose")

    told: list[tuple[bool, Any, str]] = []
    with observed(events.HandlerFailed) as failures:
        with served(Server(LOCAL, fail)) as server, client(server) as sock:
            assert receive_all(sock) == b""
            assert told == [(True, sock.getsockname(), "ValueError: on purpose\n")]
    assert not failures  # an override alone decides what is logged


def test_service_actions_is_called_at_each_poll_interval_and_after_each_client() -> None:
    class Server(netkit.Server):
        def service_actions(self) -> None:
            calls.append(threading.get_ident())

    calls: list[int] = []
    with Server(LOCAL, Shout) as server:
        with in_thread(server.serve_forever, 0.01):
            wait_until(lambda: len(calls) >= 3)
            server.shutdown()
        assert len(set(calls)) == 1
        calls.clear()
        with serving_forever(server):  # whose poll interval is longer
            assert shouts(server)
            wait_until(lambda: calls)


# handle_request


def test_handle_request_serves_one_client() -> None:
    with netkit.Server(LOCAL, Shout) as server, client(server) as one, client(server) as two:
        for sock in (one, two):
            sock.sendall(b"hello\n")
        server.handle_request()
        assert one.recv(6) == b"HELLO\n"
        assert server.connection_count == 1
        server.handle_request()
        assert two.recv(6) == b"HELLO\n"


def test_handle_request_goes_on_when_another_process_was_faster() -> None:
    class Racing(netkit.Server):
        lost = 0

        def get_request(self) -> Any:
            if not self.lost:
                self.lost += 1
                raise BlockingIOError(errno.EAGAIN, "somebody was faster")
            return super().get_request()

    with Racing(LOCAL, Shout) as server, client(server) as sock:
        sock.sendall(b"hello\n")
        server.handle_request()
        assert sock.recv(6) == b"HELLO\n"


@pytest.mark.parametrize(("own", "of_socket"), [(0.02, None), (PATIENCE, 0.02)])
def test_handle_request_calls_handle_timeout_after_the_shorter_timeout(
    own: float, of_socket: float | None
) -> None:
    calls: list[str] = []
    with netkit.Server(LOCAL, Shout) as server:
        server.timeout = own
        server.socket.settimeout(of_socket)
        server.handle_timeout = lambda: calls.append("timeout")  # type: ignore[method-assign]
        server.handle_request()
    assert calls == ["timeout"]


def test_a_loop_of_the_programs_own_around_select_works() -> None:
    with netkit.Server(LOCAL, Shout) as server, client(server) as sock:
        sock.sendall(b"hello\n")
        ready, _, _ = select.select([server], [], [], PATIENCE)
        assert ready == [server]
        server.timeout = 0
        server.handle_request()
        assert sock.recv(6) == b"HELLO\n"


def test_handle_request_is_ended_by_a_stop() -> None:
    with netkit.Server(LOCAL, Shout) as server, in_thread(server.handle_request):
        wait_until(lambda: server._accept_loop.under_way)
        server.shutdown()


# Other families, and servers of the standard library


@needs_unix_sockets
def test_a_unix_server_is_a_subclass_with_another_family(tmp_path: Path) -> None:
    class UnixServer(netkit.Server):
        address_family = socket.AF_UNIX

    path = str(tmp_path / "socket")
    with served(UnixServer(path, Shout)) as server, socket.socket(socket.AF_UNIX) as sock:
        assert server.server_address == path
        sock.settimeout(PATIENCE)
        sock.connect(path)
        sock.sendall(b"hello\n")
        assert sock.recv(6) == b"HELLO\n"
        assert server.stop().cut == 0
        assert sock.recv(1) == b""


@needs_ipv6
def test_an_ipv6_server_is_a_subclass_with_another_family() -> None:
    class V6Server(netkit.Server):
        address_family = socket.AF_INET6

    with served(V6Server(("::1", 0), Shout)) as server:
        assert len(server.server_address) == 4
        assert shouts(server)


def test_an_http_server_of_the_standard_library_runs_on_it() -> None:
    class Server(netkit.Server, http.server.HTTPServer):
        pass

    class Hello(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, *_: object) -> None:
            pass

    with served(Server(LOCAL, Hello)) as server:
        assert server.server_port == server.server_address[1]
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=PATIENCE)
        with contextlib.closing(connection):
            for _ in range(3):  # on one connection, which is kept
                connection.request("GET", "/")
                assert connection.getresponse().read() == b"hello"
            assert server.stop() == netkit.StopReport(finished=1, cut=0)


# The recipe "Sending and receiving logging events across a network" of Python's documentation, as
# it stands there but for the base class, the port, the logger's name and how `abort` comes to be 1.


class LogRecordStreamHandler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        while True:
            chunk = self.connection.recv(4)
            if len(chunk) < 4:
                break
            slen = struct.unpack(">L", chunk)[0]
            chunk = self.connection.recv(slen)
            while len(chunk) < slen:
                chunk = chunk + self.connection.recv(slen - len(chunk))
            obj = self.unPickle(chunk)
            record = logging.makeLogRecord(obj)
            self.handleLogRecord(record)

    def unPickle(self, data: bytes) -> Any:
        return pickle.loads(data)

    def handleLogRecord(self, record: logging.LogRecord) -> None:
        name = self.server.logname if self.server.logname is not None else record.name  # type: ignore[attr-defined]
        logger = logging.getLogger(name)
        logger.handle(record)


class LogRecordSocketReceiver(netkit.Server):
    allow_reuse_address = True

    def __init__(
        self, host: str = "localhost", port: int = 0, handler: Any = LogRecordStreamHandler
    ) -> None:
        netkit.Server.__init__(self, (host, port), handler)
        self.abort = 0
        self.timeout = 1
        self.logname = None

    def serve_until_stopped(self) -> None:
        abort = 0
        while not abort:
            rd, _wr, _ex = select.select([self.socket.fileno()], [], [], self.timeout)
            if rd:
                self.handle_request()
            abort = self.abort


def test_the_socket_receiver_recipe_for_logging_runs_unchanged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    receiver = LogRecordSocketReceiver()
    where = receiver.server_address
    sender, other = (logging.handlers.SocketHandler("localhost", where[1]) for _ in range(2))
    with contextlib.closing(sender), contextlib.closing(other), receiver:
        with in_thread(receiver.serve_until_stopped):
            for number, handler in enumerate((sender, other, sender)):
                text = f"no {number}"
                handler.emit(logging.LogRecord("remote", logging.WARNING, "", 0, text, (), None))
                wait_until(lambda text=text: text in caplog.text)
            receiver.abort = 1
            socket.create_connection(where).close()
        sender.close()
        other.close()
    records = [record.message for record in caplog.records if record.name == "remote"]
    assert records == ["no 0", "no 1", "no 2"]
