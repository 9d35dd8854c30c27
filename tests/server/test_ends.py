"""Why each connection ended: with real clients, and handlers of every kind."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from secure import contexts, files
from support import (
    EchoRequest,
    client,
    connected,
    each_echo,
    echo,
    exchange,
    fill,
    in_thread,
    observed,
    receive_all,
    receive_exactly,
    reset,
    serving,
    silent_log,
    wait_until,
)

import netkit
from netkit.core import events
from netkit.core.ends import ENDS
from netkit.core.errors import KilledError
from netkit.net.endings import carried
from netkit.net.timeouts import Timer

Act = Callable[[socket.socket, netkit.Server], object]
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts the bytes")
LOUD = (events.ClientFailed, events.HandlerFailed, events.AcceptFailed)


@contextlib.contextmanager
def closings() -> Iterator[list[events.ConnectionClosed]]:
    with silent_log(), observed(events.ConnectionClosed) as seen:
        yield seen


def end_of(handler: Any, act: Act, **options: Any) -> events.ConnectionClosed:
    """The event about the end of one client, with whose socket `act` is called."""
    with closings() as seen, serving(handler, **options) as server:
        with client(server) as sock:
            act(sock, server)
            with contextlib.suppress(OSError):  # the client is there until the server ends it
                receive_all(sock)
        wait_until(lambda: seen, "the end")
    [closed] = seen
    assert closed.end in ENDS
    return closed


def served(sock: socket.socket, server: netkit.Server) -> netkit.Connection:
    """The connection of the only client, which has exchanged a byte with its handler."""
    sock.sendall(b"x")
    assert sock.recv(1) == b"x"
    return server.connections[0]


def send_and_end(sock: socket.socket, _: Any) -> None:
    sock.sendall(b"hello")
    sock.shutdown(socket.SHUT_WR)
    receive_all(sock)


def exchange_and_reset(sock: socket.socket, server: netkit.Server) -> None:
    served(sock, server)
    reset(sock)


def leave(sock: socket.socket, server: netkit.Server) -> None:
    server.wait_for_connections(1)
    sock.close()


def leave_by_reset(sock: socket.socket, server: netkit.Server) -> None:
    server.wait_for_connections(1)
    reset(sock)


def exchange_and_stop(sock: socket.socket, server: netkit.Server) -> None:
    served(sock, server)
    server.stop()


def exchange_and_be_killed(sock: socket.socket, server: netkit.Server) -> None:
    connection = served(sock, server)
    assert connection.interrupt(KilledError(connection.peer), hard=True)


def exchange_and_wait(sock: socket.socket, server: netkit.Server) -> None:
    served(sock, server)
    receive_all(sock)


@each_echo
@pytest.mark.parametrize(
    ("act", "options", "end"),
    [
        (send_and_end, {}, "done"),
        (exchange_and_reset, {}, "reset"),
        (leave, {}, "probe"),
        (leave_by_reset, {}, "probe"),
        (exchange_and_stop, {}, "drained"),
        (exchange_and_be_killed, {}, "killed"),
        (exchange_and_wait, {"idle_timeout": 0.2}, "idle_timeout"),
        (exchange_and_wait, {"lifetime": 0.2}, "lifetime"),
    ],
)
def test_each_end_has_its_reason_whatever_reads_the_socket(
    handler: Any, act: Act, options: dict[str, Any], end: str
) -> None:
    if end == "probe" and handler is EchoRequest and sys.platform != "linux":
        pytest.skip("only Linux knows what a bare socket has received")
    assert end_of(handler, act, **options).end == end


class Class(netkit.Handler):
    """As `echo`."""

    def received(self, data: bytes) -> None:
        self.conn.write(data)


@pytest.mark.parametrize(
    ("act", "end"), [(send_and_end, "done"), (exchange_and_reset, "reset"), (leave, "probe")]
)
def test_a_handler_class_has_the_same_reasons(act: Act, end: str) -> None:
    assert end_of(Class, act).end == end


@pytest.mark.parametrize(
    ("act", "end"),
    [
        (send_and_end, "done"),
        (exchange_and_reset, "reset"),
        (leave, "probe"),
        (exchange_and_be_killed, "killed"),
    ],
)
def test_so_has_the_iteration_over_a_server(act: Act, end: str) -> None:
    def serve(server: netkit.Server) -> None:
        for conn in server:
            with contextlib.suppress(OSError), conn:
                echo(conn)

    with closings() as seen, netkit.create_server().listen(0, "127.0.0.1") as server:
        with in_thread(serve, server):
            with client(server) as sock:
                act(sock, server)
                wait_until(lambda: seen)
            server.stop()
    assert [(closed.end, closed.waited < closed.seconds) for closed in seen] == [(end, True)]


# --- One reason each ---


def refuse(conn: netkit.Connection) -> None:
    conn.read(1)
    raise ValueError("a fault of the program")


def read_whole(conn: netkit.Connection) -> None:
    conn.readexactly(100)


def read_line(conn: netkit.Connection) -> None:
    conn.readline()


def read_message(conn: netkit.Connection) -> None:
    conn.read_message(netkit.LengthPrefix())


def read_text(conn: netkit.Connection) -> None:
    conn.set_encoding("utf-8", "strict").readline()


def flood(conn: netkit.Connection) -> None:
    conn.read(100)
    while True:
        conn.write(bytes(1_000_000))


def limit_itself(conn: netkit.Connection) -> None:
    conn.read(100)
    with conn.deadline(0.1):
        conn.read(100)


def say_goodbye(conn: netkit.Connection) -> None:
    with contextlib.suppress(TimeoutError):
        while conn.read(100):
            pass
    conn.write("bye")


def post_much(conn: netkit.Connection) -> None:
    conn.read(100)
    conn.outbox.max_bytes = 1000
    for _ in range(100_000):
        conn.post(bytes(100))
    conn.read(100)


def say(data: bytes) -> Act:
    return lambda sock, _: sock.sendall(data)


def say_and_ignore(sock: socket.socket, server: netkit.Server) -> None:
    sock.sendall(b"x")
    server.wait_for_connections(1)
    wait_until(lambda: not server.connections)


def say_and_end(data: bytes) -> Act:
    def act(sock: socket.socket, _: netkit.Server) -> None:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)

    return act


@pytest.mark.parametrize(
    ("handler", "act", "options", "end"),
    [
        (refuse, say(b"x"), {}, "handler"),
        (read_whole, say_and_end(b"too little"), {}, "reset"),
        (read_whole, say_and_end(b""), {}, "probe"),
        (read_line, say(bytes(200)), {"max_line": 100}, "protocol"),
        (read_message, say(b"\xff\xff\xff\xff"), {}, "protocol"),
        (read_text, say(b"\xff\n"), {}, "protocol"),
        (echo, say(b""), {"read_timeout": 0.1}, "read_timeout"),
        (read_line, say(b"half"), {"min_rate": 1_000_000.0}, "min_rate"),
        (flood, say_and_ignore, {"write_timeout": 0.2}, "write_timeout"),
        (limit_itself, say(b"x"), {}, "deadline"),
        (say_goodbye, say(b"x"), {"idle_timeout": 0.1}, "idle_timeout"),
        (post_much, say_and_ignore, {}, "outbox_full"),
    ],
    ids=lambda it: getattr(it, "__name__", None),
)
def test_a_fault_or_a_limit_is_the_reason(
    handler: Any, act: Act, options: dict[str, Any], end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Timer, "grace", 0.1)
    assert end_of(handler, act, **options).end == end


def test_a_limit_that_the_handler_has_outlasted_is_not_the_reason() -> None:
    def handler(conn: netkit.Connection) -> None:
        with contextlib.suppress(TimeoutError):
            conn.read(100)
        conn.write("still there?")
        assert conn.read(100) == b"yes"

    def answer_late(sock: socket.socket, _: netkit.Server) -> None:
        receive_exactly(sock, 12)
        sock.sendall(b"yes")

    assert end_of(handler, answer_late, idle_timeout=0.1).end == "done"


def test_a_wait_that_the_handler_has_limited_itself_is_not_the_reason() -> None:
    def handler(conn: netkit.Connection) -> None:
        with contextlib.suppress(TimeoutError), conn.deadline(0.01):
            conn.read(100)

    assert end_of(handler, lambda *_: None).end == "done"


def test_a_client_that_verify_request_refuses() -> None:
    class Choosy(netkit.Server):
        def verify_request(self, request: Any, client_address: Any) -> bool:
            return False

    with closings() as seen, Choosy(("127.0.0.1", 0), echo).start() as server:
        assert exchange(server, b"") == b""
        wait_until(lambda: seen)
    assert [closed.end for closed in seen] == ["refused"]


# --- Stops ---


@each_echo
def test_a_handler_that_does_not_finish_at_a_stop_is_cut(handler: Any) -> None:
    """Also one that was asked to finish before, and was about to."""
    begun, release = threading.Event(), threading.Event()

    def busy(conn: netkit.Connection) -> None:
        while conn.read(100):
            begun.set()
        release.wait()  # it has seen the end of input, that is, the drain

    class Busy(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while self.request.recv(10):
                begun.set()
            release.wait()

    with closings() as seen, serving(busy if handler is echo else Busy) as server:
        with client(server) as sock:
            sock.sendall(b"x")
            begun.wait()
            with in_thread(server.stop, 0.2):
                wait_until(lambda: not server.connections or server.connections[0].was_cut)
                release.set()
    assert [closed.end for closed in seen] == ["cut"]


def test_a_busy_client_that_finishes_by_itself_during_a_drain_is_done() -> None:
    begun, stopping = threading.Event(), threading.Event()

    def handler(conn: netkit.Connection) -> None:
        conn.read(100)
        begun.set()
        stopping.wait()
        conn.write("the rest")

    with closings() as seen, serving(handler) as server, client(server) as sock:
        sock.sendall(b"x")
        begun.wait()
        with in_thread(server.stop):
            wait_until(lambda: not server.connections[0]._link.input.is_over())
            stopping.set()
            assert receive_all(sock) == b"the rest"
    assert [closed.end for closed in seen] == ["done"]


# --- Two causes ---


def test_the_first_of_two_causes_wins() -> None:
    """A limit and then a reset; a reset and then the handler's error; a cut and then that error."""
    passed, gone = threading.Event(), threading.Event()

    def limit_then_reset(conn: netkit.Connection) -> None:
        try:
            conn.readline()
        finally:
            passed.set()
            gone.wait()

    def reset_after_limit(sock: socket.socket, _: netkit.Server) -> None:
        sock.sendall(b"half")
        passed.wait()
        reset(sock)
        gone.set()

    def fail_after(conn: netkit.Connection) -> None:
        with contextlib.suppress(OSError):
            while data := conn.read(100):
                conn.write(data)
        raise ValueError("what it makes of that")

    def cut(sock: socket.socket, server: netkit.Server) -> None:
        served(sock, server).cut()

    assert end_of(limit_then_reset, reset_after_limit, read_timeout=0.1).end == "read_timeout"
    assert end_of(fail_after, exchange_and_reset).end == "reset"
    assert end_of(fail_after, cut).end == "cut"
    assert end_of(fail_after, exchange_and_stop).end == "drained"


def test_a_reset_that_meets_a_stop_has_one_of_the_two_reasons() -> None:
    for _ in range(20):
        with closings() as seen, serving(echo) as server, client(server) as sock:
            served(sock, server)
            with in_thread(server.stop):
                reset(sock)
        assert [closed.end in ("reset", "drained") for closed in seen] == [True]


# --- TLS ---


@each_echo
@pytest.mark.parametrize(
    ("act", "end"),
    [
        (leave, "probe"),
        (leave_by_reset, "probe"),
        (say(b"GET / HTTP/1.1\r\n\r\n"), "handshake"),
        (say_and_end(b"\x16\x03\x01"), "handshake"),
        (lambda sock, _: receive_all(sock), "handshake_timeout"),
    ],
)
def test_a_handshake_that_fails(handler: Any, act: Act, end: str) -> None:
    options = {"tls": contexts()[0], "handshake_timeout": 0.3 if "timeout" in end else 30.0}
    closed = end_of(handler, act, **options)
    assert (closed.end, closed.tls_version) == (end, "")
    assert closed.waited >= closed.seconds - 0.1  # no handler was called


@each_echo
def test_a_reset_while_a_handshake_is_prepared_is_a_probe(handler: Any) -> None:
    with closings() as seen, socket.socket() as sock, observed(*LOUD) as told:

        class Late(ssl.SSLContext):
            def wrap_socket(self, *arguments: Any, **options: Any) -> Any:
                reset(sock)
                return super().wrap_socket(*arguments, **options)

            def wrap_bio(self, *arguments: Any, **options: Any) -> Any:
                reset(sock)
                return super().wrap_bio(*arguments, **options)

        context = Late(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files().server)
        with serving(handler, tls=context) as server:
            sock.connect(server.server_address)
            wait_until(lambda: seen)
    assert [closed.end for closed in seen] == ["probe"]
    assert told == []


@each_echo
def test_the_event_has_the_version_of_tls_and_the_name_that_the_client_has_asked_for(
    handler: Any,
) -> None:
    with closings() as seen, serving(handler, tls=contexts()[0]) as server:
        with client(server) as sock:
            with contexts()[1].wrap_socket(sock, server_hostname="localhost") as secured:
                secured.sendall(b"hello")
                assert receive_exactly(secured, 5) == b"hello"
                served(secured, server)
                secured.unwrap()
            wait_until(lambda: seen)
    [closed] = seen
    assert (closed.end, closed.tls_version) == ("done", "TLSv1.3")
    if handler is echo:
        assert (closed.server_name, closed.bytes_read, closed.bytes_written) == ("localhost", 6, 6)
    assert 0 < closed.waited < closed.seconds


def test_a_client_that_hangs_up_without_the_end_of_tls_has_reset() -> None:
    def leave_tls(sock: socket.socket, server: netkit.Server) -> None:
        secured = contexts()[1].wrap_socket(sock, server_hostname="localhost")
        served(secured, server)
        secured.shutdown(socket.SHUT_WR)
        secured.close()

    assert end_of(echo, leave_tls, tls=contexts()[0]).end == "reset"


# --- Probes ---


def greet(conn: netkit.Connection) -> None:
    conn.write("220 ready\r\n")
    conn.read(100)


class Greet(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.sendall(b"220 ready\r\n")
        self.request.recv(10)


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("handler", [echo, EchoRequest, greet, Greet])
@pytest.mark.parametrize("go", [socket.socket.close, reset])
def test_a_probe_is_a_record_of_the_level_debug_alone(
    handler: Any, go: Any, secure: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "netkit")
    options: dict[str, Any] = {"tls": contexts()[0]} if secure else {}
    with observed(*LOUD) as loud, observed(events.ConnectionClosed) as seen:
        with serving(handler, **options) as server:
            with socket.create_connection(server.server_address[:2]) as sock:
                go(sock)
            wait_until(lambda: seen)
    assert loud == []
    loud_records = [r.message for r in caplog.records if r.levelname != "DEBUG"]
    assert [text.split(":")[0].split()[0] for text in loud_records] == ["listening", "stopped"]
    if go is reset or secure or handler in (echo, EchoRequest):
        assert seen[0].end == "probe" or sys.platform != "linux"


def test_a_client_that_only_listens_is_no_probe() -> None:
    def tell_much(conn: netkit.Connection) -> None:
        while True:
            conn.write(bytes(10_000))

    def leave_early(sock: socket.socket, _: netkit.Server) -> None:
        receive_exactly(sock, 100_000)
        reset(sock)

    def tell(conn: netkit.Connection) -> None:
        conn.write("the time")

    def hear(sock: socket.socket, _: netkit.Server) -> None:
        assert receive_all(sock) == b"the time"

    assert end_of(tell, hear).end == "done"
    assert end_of(tell_much, leave_early).end == "reset"


# --- Bytes and times ---


@linux_only
@pytest.mark.parametrize("size", [1, 1_000_000])
def test_the_kernel_counts_the_bytes_of_a_bare_socket(size: int) -> None:
    class Doubling(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            left = size
            while left:
                data = self.request.recv(65536)
                left -= len(data)
                self.request.sendall(data * 2)

    def act(sock: socket.socket, _: netkit.Server) -> None:
        with in_thread(sock.sendall, bytes(size)):
            assert len(receive_all(sock)) == 2 * size

    closed = end_of(Doubling, act)
    assert (closed.bytes_read, closed.bytes_written) == (size, 2 * size)
    assert end_of(EchoRequest, send_and_end).bytes_read == 5  # the client's end is no byte of it


@linux_only
def test_what_a_client_has_not_acknowledged_counts_as_written() -> None:
    class Filling(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1)
            filled.append(fill(self.request))

    filled: list[int] = []

    def act(sock: socket.socket, _: netkit.Server) -> None:
        sock.sendall(b"x")
        wait_until(lambda: filled)
        receive_all(sock)

    assert end_of(Filling, act).bytes_written == filled[0]


@linux_only
def test_a_reset_does_not_count_as_a_byte() -> None:
    closed = end_of(EchoRequest, exchange_and_reset)
    assert (closed.bytes_read, closed.bytes_written) == (1, 1)


@linux_only
def test_a_socket_that_its_handler_closes_is_counted_if_it_is_still_there() -> None:
    class Closing(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(10)
            self.request.close()

    closed = end_of(Closing, say(b"hello"))
    assert (closed.end, closed.bytes_read, closed.bytes_written) == ("done", None, None)


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here")
def test_the_bytes_of_a_bare_unix_socket_are_not_known(tmp_path: Any) -> None:
    path = str(tmp_path / "s")
    with closings() as seen, netkit.create_server(EchoRequest).listen(path=path):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            send_and_end(sock, None)
        wait_until(lambda: seen)
    [closed] = seen
    assert (closed.end, closed.bytes_read, closed.bytes_written) == ("done", None, None)


def test_the_bytes_of_an_object_that_is_no_socket_are_not_known() -> None:
    with connected(opaque=True) as (conn, _):
        sock = conn.socket
        conn.socket = SimpleNamespace(recv=sock.recv, send=sock.send, fileno=sock.fileno)
        assert carried(conn) == (None, None)
        conn.socket = sock


def test_a_handler_of_a_socket_that_the_server_does_not_know_may_fail() -> None:
    def fail(*_: Any) -> None:
        raise ValueError("as in socketserver")

    with socket.socket() as unknown, netkit.Server(("127.0.0.1", 0), fail) as server:
        with pytest.raises(ValueError, match="as in"):
            server.finish_request(unknown, ("127.0.0.1", 1))


def test_a_client_that_was_held_has_waited() -> None:
    waits: list[float] = []

    def handler(conn: netkit.Connection) -> None:
        waits.append(conn.waited)
        conn.read(100)
        waits.append(conn.waited)

    options: dict[str, Any] = {"max_connections": 1, "when_full": 30.0}
    with closings() as seen, serving(handler, **options) as server:
        with client(server) as first:
            wait_until(lambda: waits)
            with client(server) as second:
                wait_until(lambda: server._overflow.held)
                threading.Event().wait(0.1)
                first.sendall(b"x")
                wait_until(lambda: len(waits) == 3)
                second.sendall(b"x")
                wait_until(lambda: len(seen) == 2)
    assert waits[0] == waits[1]
    assert waits[2] == waits[3] >= 0.1
    assert {closed.waited for closed in seen} == {waits[0], waits[2]}


def test_a_connection_says_what_ends_it_before_it_is_closed() -> None:
    with connected() as (conn, _):
        assert conn.end_reason == ""
        assert conn.waited == 0.0
        conn.cut()
        assert conn.end_reason == "cut"
        conn.close()
        assert conn.end_reason == "cut"
    with connected() as (conn, peer):
        peer.sendall(b"x")
        conn.read(100)
        conn.close()
        assert conn.end_reason == "done"
