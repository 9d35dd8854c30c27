"""Each row of the table in docs/stopping.md, and the ways to stop a server."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import (
    PATIENCE,
    ROOT,
    client,
    each_echo,
    echo,
    in_thread,
    observed,
    receive_all,
    receive_exactly,
    serving,
    silent_log,
    wait_until,
)

import netkit
from netkit.core import events
from netkit.server.life import State

LONG = 60.0  # seconds: a deadline that no test reaches, nor waits for
SHORT = 0.1  # seconds: a deadline that is to pass
BIG = 20_000_000  # bytes: more than the kernel's buffers on both sides
MEDIUM = 300_000  # bytes: fits in the server's buffer, and not in the window of a `slow_reader`

TABLE = dict(
    re.findall(
        r"^\| `([\w-]+)`:.*?\|.*?\| (.*?) ?\|$",
        (ROOT / "docs/stopping.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
)


@contextlib.contextmanager
def being_stopped(server: netkit.Server, timeout: float = LONG) -> Iterator[list[Any]]:
    """`server.stop(timeout)` in another thread, already under way; in the end, its report."""
    reports: list[Any] = []
    listening = server.listening
    thread = threading.Thread(target=lambda: reports.append(server.stop(timeout)))
    try:
        with observed(events.Stopping) as seen:
            thread.start()
            wait_until(lambda: seen or not listening, "the stop")
        yield reports
    finally:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def the_connection(server: netkit.Server) -> netkit.Connection:
    wait_until(lambda: server.connection_count == 1, "a connection")
    (connection,) = server.connections
    return connection


@contextlib.contextmanager
def slow_reader(server: netkit.Server) -> Iterator[socket.socket]:
    """A client with a small window that has sent a byte."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(PATIENCE)
        sock.connect(server.server_address[:2])
        sock.sendall(b"?")
        yield sock


def shout(conn: netkit.Connection) -> None:
    for line in conn.lines():
        conn.write(line.upper() + "\n")
    conn.write("bye\n")


class ShoutRequest(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line.upper())


class Worker:
    """A handler that is busy, without reading, until the test has it go on."""

    def __init__(self, then: Callable[[netkit.Connection], object]) -> None:
        self.busy, self.go_on = threading.Event(), threading.Event()
        self.then = then
        self.errors: list[BaseException] = []

    def __call__(self, conn: netkit.Connection) -> None:
        self.busy.set()
        assert self.go_on.wait(PATIENCE)
        try:
            self.then(conn)
        except BaseException as error:
            self.errors.append(error)


@contextlib.contextmanager
def at_work(worker: Worker) -> Iterator[netkit.Server]:
    with serving(worker) as server:
        server._drain.grace = SHORT  # until the handler is left behind that does not end
        try:
            yield server
        finally:
            server._drain.grace = PATIENCE
            worker.go_on.set()


# The table


def test_every_row_has_its_tests() -> None:
    tests = [name for name in globals() if name.startswith("test_row_")]
    rows = {row: f"test_row_{row.replace('-', '_')}_" for row in TABLE}
    assert len(rows) == 11
    for row, start in rows.items():
        mine = [name for name in tests if name.startswith(start)]
        assert any(not name.endswith("_at_the_deadline") for name in mine), row
        assert any(name.endswith("_at_the_deadline") for name in mine) == bool(TABLE[row]), row
    assert all(name.startswith(tuple(rows.values())) for name in tests)


@contextlib.contextmanager
def with_a_queued_client() -> Iterator[tuple[netkit.Server, socket.socket]]:
    with serving(shout) as server:
        server.shutdown()
        with client(server) as sock:
            yield server, sock


def test_row_queued_data_is_served() -> None:
    with with_a_queued_client() as (server, sock):
        sock.sendall(b"hello\nthere\n")
        assert server.stop(LONG) == (1, 0)
        assert receive_all(sock) == b"HELLO\nTHERE\nbye\n"


def test_row_queued_data_that_came_before_the_first_accept_is_served() -> None:
    server = netkit.create_server(shout).listen(0, "127.0.0.1")
    with client(server) as sock:
        sock.sendall(b"hello\n")
        server.request_stop()
        server.serve_forever()
        assert server.stop(LONG) == (1, 0)
        assert receive_all(sock) == b"HELLO\nbye\n"


def test_row_queued_data_is_reset_at_the_deadline() -> None:
    with with_a_queued_client() as (server, sock):
        sock.sendall(b"hello\n")
        assert server.close() == (0, 0)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)


def test_row_queued_silent_sees_the_end() -> None:
    with with_a_queued_client() as (server, sock):
        assert server.stop(LONG) == (1, 0)
        assert receive_all(sock) == b"bye\n"


def test_row_queued_silent_is_reset_at_the_deadline() -> None:
    with with_a_queued_client() as (server, sock):
        assert server.close() == (0, 0)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)


def test_row_idle_sees_the_end_after_a_last_word() -> None:
    with serving(shout) as server, client(server) as sock:
        sock.sendall(b"hello\n")
        assert receive_exactly(sock, 6) == b"HELLO\n"
        assert server.stop(LONG) == (1, 0)
        assert receive_all(sock) == b"bye\n"


def test_row_idle_ends_for_many_at_once() -> None:
    count = 50
    with serving(netkit.EchoHandler) as server, contextlib.ExitStack() as stack:
        socks = [stack.enter_context(client(server)) for _ in range(count)]
        wait_until(lambda: server.connection_count == count, "the connections")
        assert server.stop(LONG) == (count, 0)
        assert [receive_all(sock) for sock in socks] == [b""] * count


def test_row_mid_line_is_answered_once_the_rest_has_come() -> None:
    with serving(shout) as server, client(server) as sock:
        sock.sendall(b"hel")
        wait_until(lambda: the_connection(server).bytes_read == 3)
        with being_stopped(server) as reports:
            sock.sendall(b"lo\n")
            assert receive_all(sock) == b"HELLO\nbye\n"
        assert reports == [(1, 0)]


@pytest.mark.parametrize(
    "read", [lambda conn: [*conn.lines()], lambda conn: conn.read(), lambda conn: conn.readline()]
)
def test_row_mid_line_is_not_taken_for_a_message_at_the_deadline(
    read: Callable[[netkit.Connection], object],
) -> None:
    outcomes = []

    def handler(conn: netkit.Connection) -> None:
        try:
            outcomes.append(read(conn))
        except OSError as error:
            outcomes.append(type(error))
            raise

    with serving(handler) as server, client(server) as sock, observed(events.ClientFailed) as seen:
        sock.sendall(b"delete 1")
        wait_until(lambda: the_connection(server).bytes_read == 8)
        assert server.stop(SHORT) == (0, 1)
        assert receive_all(sock) == b""
    assert outcomes == [ConnectionAbortedError]
    assert str(seen[0].error).endswith("was cut, since the server stops")


def test_row_mid_write_the_reader_gets_everything() -> None:
    with serving(lambda conn: conn.write(bytes(BIG))) as server, client(server) as sock:
        first = receive_exactly(sock, 1)
        with being_stopped(server) as reports:
            assert len(first + receive_all(sock)) == BIG
        assert reports == [(1, 0)]


def test_row_mid_write_fails_at_the_deadline() -> None:
    with (
        serving(lambda conn: conn.write(bytes(BIG))) as server,
        client(server) as sock,
        observed(events.ClientFailed) as seen,
    ):
        receive_exactly(sock, 1)
        assert server.stop(SHORT) == (0, 1)
        with pytest.raises(ConnectionResetError):  # half a reply does not pass for a whole one
            receive_all(sock)
    assert isinstance(seen[0].error, ConnectionAbortedError)


def test_row_computing_answers_what_was_asked_before() -> None:
    worker = Worker(shout)
    with at_work(worker) as server, client(server) as sock:
        sock.sendall(b"one\ntwo\n")
        assert worker.busy.wait(PATIENCE)
        with being_stopped(server) as reports:
            worker.go_on.set()
            assert receive_all(sock) == b"ONE\nTWO\nbye\n"
        assert reports == [(1, 0)]


def test_row_computing_cannot_write_at_the_deadline() -> None:
    worker = Worker(lambda conn: conn.write("done\n"))
    with at_work(worker) as server, client(server) as sock:
        assert worker.busy.wait(PATIENCE)
        with being_stopped(server, SHORT) as reports:
            assert receive_all(sock) == b""
            worker.go_on.set()
        assert reports == [(0, 1)]
    wait_until(lambda: worker.errors)
    assert isinstance(worker.errors[0], ConnectionAbortedError)


def test_row_unread_data_does_not_destroy_the_reply() -> None:
    worker = Worker(lambda conn: conn.write(bytes(MEDIUM)))
    with at_work(worker) as server, slow_reader(server) as sock:
        assert worker.busy.wait(PATIENCE)
        with being_stopped(server) as reports:
            worker.go_on.set()
            first = receive_exactly(sock, 1)
            sock.sendall(b"more")
            assert len(first + receive_all(sock)) == MEDIUM
            sock.close()
        assert reports == [(1, 0)]


def test_row_unread_data_is_waited_for_no_longer_at_the_deadline() -> None:
    with serving(lambda conn: conn.write(bytes(MEDIUM))) as server, slow_reader(server) as sock:
        receive_exactly(sock, 1)
        assert server.stop(SHORT) == (0, 1)


def test_row_blocked_is_waited_for() -> None:
    worker = Worker(lambda conn: None)
    with at_work(worker) as server, client(server):
        assert worker.busy.wait(PATIENCE)
        with being_stopped(server) as reports:
            assert not reports
            worker.go_on.set()
        assert reports == [(1, 0)]


def test_row_blocked_is_left_behind_at_the_deadline() -> None:
    worker = Worker(lambda conn: None)
    with at_work(worker) as server, client(server) as sock:
        assert worker.busy.wait(PATIENCE)
        assert server.stop(SHORT) == (0, 1)
        assert receive_all(sock) == b""
        (connection,) = server.connections
        assert connection.was_cut


def test_row_linger_ends_at_once_when_the_client_has_it_all() -> None:
    with serving(lambda conn: conn.end("bye")) as server, client(server) as sock:
        assert receive_all(sock) == b"bye"
        assert server.stop(LONG) == (1, 0)


def test_row_linger_lasts_until_the_client_has_it_all() -> None:
    returned = threading.Event()

    def handler(conn: netkit.Connection) -> None:
        conn.write(bytes(MEDIUM))
        returned.set()

    with serving(handler) as server, slow_reader(server) as sock:
        assert returned.wait(PATIENCE)
        with being_stopped(server) as reports:
            assert not reports
            sock.sendall(b"more")  # which would reset a connection that is closed
            assert len(receive_all(sock)) == MEDIUM
        assert reports == [(1, 0)]


def test_row_linger_ends_at_the_deadline() -> None:
    returned = threading.Event()

    def handler(conn: netkit.Connection) -> None:
        conn.read(1)
        conn.write(bytes(MEDIUM))
        returned.set()

    with serving(handler) as server, slow_reader(server):
        assert returned.wait(PATIENCE)
        assert server.stop(SHORT) == (0, 1)


def test_row_socketserver_idle_sees_the_end_when_it_was_answered() -> None:
    with serving(ShoutRequest) as server, client(server) as sock:
        sock.sendall(b"hello\n")
        assert receive_exactly(sock, 6) == b"HELLO\n"
        assert server.stop(LONG) == (1, 0)
        assert receive_all(sock) == b""


def test_row_socketserver_idle_sees_the_end_when_it_is_silent() -> None:
    with serving(ShoutRequest) as server, client(server) as sock:
        sock.sendall(b"hel")
        the_connection(server)
        assert server.stop(LONG) == (1, 0)
        assert receive_all(sock) == b"HEL"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel does not tell")
def test_row_socketserver_busy_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netkit.net.connection.Connection.quiet_seconds", 1.5)
    with serving(ShoutRequest) as server, client(server) as sock:
        sock.sendall(b"hel")
        the_connection(server)
        with being_stopped(server) as reports:
            sock.sendall(b"lo\n")
            assert receive_all(sock) == b"HELLO\n"
        assert reports == [(1, 0)]


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel does not tell")
def test_row_socketserver_busy_cannot_write_at_the_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("netkit.net.connection.Connection.quiet_seconds", LONG)
    outcomes: list[object] = []

    class Request(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            outcomes.append(self.rfile.readline())
            try:
                self.wfile.write(b"late")
            except OSError as error:
                outcomes.append(type(error))

    with serving(Request) as server, client(server) as sock:
        sock.sendall(b"hel")
        the_connection(server)
        assert server.stop(SHORT) == (0, 1)
        assert receive_all(sock) == b""
    assert outcomes == [b"hel", BrokenPipeError]


# Ways to stop


@pytest.mark.parametrize("how", ["server_close", "__exit__"])
def test_the_end_of_a_with_block_lets_busy_clients_finish(how: str) -> None:
    worker = Worker(lambda conn: conn.write("done"))
    with at_work(worker) as server, client(server) as sock:
        assert worker.busy.wait(PATIENCE)
        thread = threading.Thread(target=getattr(server, how))
        with observed(events.Stopping) as seen:
            thread.start()
            wait_until(lambda: seen, "the stop")
        worker.go_on.set()
        assert receive_all(sock) == b"done"
        thread.join(PATIENCE)
        assert not thread.is_alive()


@pytest.mark.parametrize("how", ["stop", "close", "server_close"])
def test_in_a_signal_handler_a_stop_is_a_request_and_the_serving_thread_carries_it_out(
    how: str,
) -> None:
    """The handler interrupts the main thread while that serves, and holds a lock, say."""
    locked = threading.Lock()
    reports: list[object] = []

    class Locks(netkit.Server):
        def service_actions(self) -> None:
            with locked:
                for _ in range(1000):
                    pass

    def handler(conn: netkit.Connection) -> None:
        for line in conn.lines():
            with locked:
                conn.write(line.upper() + "\n")
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            wait_until(lambda: reports)

    server = Locks(("127.0.0.1", 0), handler)
    previous = signal.signal(signal.SIGUSR1, lambda *_: reports.append(getattr(server, how)()))
    try:
        with client(server) as sock, observed(events.Stopped) as stopped:
            sock.sendall(b"hello\n")
            server.serve_forever(poll_interval=0.001)
            assert not server.listening
            assert stopped == [events.Stopped(*((0, 1) if how == "close" else (1, 0)))]
            assert receive_exactly(sock, 6) == b"HELLO\n"
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert reports == [None if how == "server_close" else (0, 0)]


@pytest.mark.parametrize("serve", ["serve_forever", "handle_request"])
def test_a_hook_of_the_accepting_thread_may_stop_the_server(serve: str) -> None:
    class Choosy(netkit.Server):
        def get_request(self) -> Any:
            if self.listening:  # else the stop accepts the clients that are queued
                assert self.stop(LONG) == (0, 0)
                assert self.listening
            return super().get_request()

    server = Choosy(("127.0.0.1", 0), shout)
    with client(server) as sock:
        sock.sendall(b"hello\n")
        getattr(server, serve)()
        assert not server.listening
        assert receive_all(sock) == b"HELLO\nbye\n"
    assert server.stop() == (1, 0)


def test_a_hook_of_the_accepting_thread_may_stop_a_server_that_is_being_stopped() -> None:
    """The stop under way waits for that thread, which must not wait for the stop."""
    entered = threading.Event()

    class Late(netkit.Server):
        def service_actions(self) -> None:
            if not entered.is_set():
                entered.set()
                wait_until(lambda: not self.listening, "the stop")
                assert self.stop(LONG) == (0, 0)

    server = Late(("127.0.0.1", 0), shout).start()
    assert entered.wait(PATIENCE)
    began = time.monotonic()
    assert server.stop(LONG) == (0, 0)
    assert time.monotonic() - began < PATIENCE


def test_close_during_a_stop_cuts_at_once() -> None:
    worker = Worker(lambda conn: None)
    with at_work(worker) as server, client(server) as sock:
        assert worker.busy.wait(PATIENCE)
        with being_stopped(server, LONG) as reports:
            assert server.close() == (0, 1)
        assert reports == [(0, 1)]
        assert receive_all(sock) == b""


def test_shutdown_leaves_the_clients_connected() -> None:
    with serving(shout) as server, client(server) as sock:
        the_connection(server)
        server.shutdown()
        sock.sendall(b"hello\n")
        assert receive_exactly(sock, 6) == b"HELLO\n"


def test_without_block_on_close_the_clients_are_left_alone() -> None:
    with serving(shout) as server, client(server) as sock:
        server.block_on_close = False
        connection = the_connection(server)
        server.server_close()
        assert server.stop() == (0, 0)
        sock.sendall(b"hello\n")
        assert receive_exactly(sock, 6) == b"HELLO\n"
        sock.shutdown(socket.SHUT_WR)
        assert receive_all(sock) == b"bye\n"
        wait_until(lambda: connection.closed)


def test_a_handler_that_stops_its_server_can_still_reply_while_others_wait() -> None:
    stopped = threading.Event()

    def handler(conn: netkit.Connection) -> None:
        conn.readline()
        conn.server.stop(LONG)
        stopped.set()
        assert go_on.wait(PATIENCE)
        conn.write("stopped\n")

    go_on = threading.Event()
    with serving(handler) as server, client(server) as sock:
        sock.sendall(b"stop\n")
        assert stopped.wait(PATIENCE)
        with being_stopped(server) as reports:
            assert not reports
            go_on.set()
            assert receive_all(sock) == b"stopped\n"
        assert reports == [(1, 0)]


def test_a_handler_that_stops_its_server_and_stays_is_cut_in_the_end() -> None:
    stopped, go_on = threading.Event(), threading.Event()

    def handler(conn: netkit.Connection) -> None:
        conn.server.stop()
        stopped.set()
        assert go_on.wait(PATIENCE)

    with serving(handler) as server, client(server) as sock:
        assert stopped.wait(PATIENCE)
        server.stop(SHORT)
        assert receive_all(sock) == b""
        go_on.set()


def test_a_handler_can_close_its_server_and_all_other_connections() -> None:
    def handler(conn: netkit.Connection) -> None:
        if conn.readline():
            report = conn.server.close()
            conn.write(str(report))

    with serving(handler) as server, client(server) as other:
        the_connection(server)
        with client(server) as sock:
            sock.sendall(b"close\n")
            assert receive_all(sock).startswith(b"stopped: ")
        assert receive_all(other) == b""


PROGRAM = """
import sys, threading, time
import netkit

def handler(conn):
    conn.readline()
    {handler}
    conn.write("late\\n")

server = netkit.create_server(handler, drain_timeout={timeout}).listen(0, "127.0.0.1")
server._drain.grace = 0.1
{serve}
print(server.address.port, flush=True)
sys.stdin.readline()
"""


IN_A_THREAD = "threading.Thread(target=server.serve_forever, daemon=True).start()"


@contextlib.contextmanager
def program(
    handler: str, timeout: float = LONG, serve: str = IN_A_THREAD
) -> Iterator[tuple[Any, socket.socket]]:
    """A program with a server in a daemon thread, which ends when told to; and its client."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(handler=handler, timeout=timeout, serve=serve)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        try:
            port = int(process.stdout.readline())  # type: ignore[union-attr]
            with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
                yield process, sock
        finally:
            process.kill()


@pytest.mark.parametrize("serve", [IN_A_THREAD, "server.start(daemon=True)"])
def test_the_end_of_the_program_lets_busy_clients_finish(serve: str) -> None:
    with program("conn.write('busy\\n'); time.sleep(0.5)", serve=serve) as (process, sock):
        sock.sendall(b"x\n")
        assert receive_exactly(sock, 5) == b"busy\n"
        process.stdin.close()
        assert receive_all(sock) == b"late\n"
        assert process.wait(PATIENCE) == 0


def test_the_end_of_the_program_waits_for_the_handler_that_stops_the_server() -> None:
    with program("conn.server.stop(); conn.write('stopped\\n'); time.sleep(0.5)") as (
        process,
        sock,
    ):
        sock.sendall(b"x\n")
        assert receive_exactly(sock, 8) == b"stopped\n"
        process.stdin.close()
        assert receive_all(sock) == b"late\n"
        assert process.wait(PATIENCE) == 0


def test_the_end_of_the_program_does_not_wait_for_ever() -> None:
    with program("conn.write('busy\\n'); time.sleep(1000)", timeout=SHORT) as (process, sock):
        sock.sendall(b"x\n")
        assert receive_exactly(sock, 5) == b"busy\n"
        process.stdin.close()
        assert receive_all(sock) == b""
        assert process.wait(PATIENCE) == 0


def test_the_report_counts_and_is_one_line() -> None:
    with serving(shout) as server, silent_log(), observed(events.Stopping, events.Stopped) as seen:
        with client(server), client(server):
            wait_until(lambda: server.connection_count == 2)
            report = server.stop(LONG)
    assert str(report) == "stopped: 2 finished, 0 cut"
    assert [type(event) for event in seen] == [events.Stopping, events.Stopped]
    assert seen[1] == events.Stopped(report.finished, report.cut)


def test_during_the_patience_of_a_stop_clients_go_on_and_no_new_client_is_served() -> None:
    with serving(netkit.EchoHandler) as server, client(server) as idle, client(server) as leaving:
        for sock in (idle, leaving):
            sock.sendall(b"1")
            assert sock.recv(1) == b"1"
        reports: list[netkit.StopReport] = []
        with in_thread(lambda: reports.append(server.stop(PATIENCE, patience=PATIENCE))):
            wait_until(lambda: server.socket.fileno() < 0)
            with pytest.raises(ConnectionRefusedError):
                client(server).__enter__()
            for sock in (idle, leaving):
                sock.sendall(b"2")
                assert sock.recv(1) == b"2"
            leaving.close()
            wait_until(lambda: server.connection_count == 1)
            server.request_stop()  # which has none
            assert receive_all(idle) == b""
            idle.close()
        assert reports == [(2, 0)]


def test_after_the_patience_of_a_stop_idle_clients_see_the_end() -> None:
    with serving(netkit.EchoHandler) as server, client(server) as sock:
        sock.sendall(b"1")
        assert sock.recv(1) == b"1"
        with in_thread(server.stop, PATIENCE, 0.1):
            assert receive_all(sock) == b""
            sock.close()


@contextlib.contextmanager
def serving_a_busy_client() -> Iterator[netkit.Server]:
    """Its handler sees no end of input, and is not done before the end of the block."""
    released = threading.Event()

    def busy(conn: netkit.Connection) -> None:
        conn.write("?")
        released.wait(PATIENCE)

    with serving(busy, drain_timeout=1000.0) as server, client(server) as sock:
        server._drain.grace = SHORT
        assert sock.recv(1) == b"?"
        yield server
        released.set()


def test_a_request_to_stop_may_have_time_limits_for_the_stop() -> None:
    with serving_a_busy_client() as server:
        server.request_stop(timeout=0.0)
        assert server.stop() == (0, 1)


def test_a_request_that_comes_as_the_stop_begins_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving_a_busy_client() as server:
        close = server.server_close

        def order_and_close() -> None:
            server.request_stop(timeout=0.0)
            close()

        with monkeypatch.context() as patch:
            patch.setattr(server, "server_close", order_and_close)
            assert server.stop(1000) == (0, 1)


@pytest.mark.parametrize("patience", [-1, "1", float("nan")])
def test_patience_is_a_number_of_seconds(patience: Any) -> None:
    with serving(netkit.EchoHandler) as server:
        with pytest.raises((TypeError, ValueError), match="patience must be"):
            server.stop(1, patience)


def test_a_stop_serves_clients_queued_behind_one_that_went_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = netkit.Server(("127.0.0.1", 0), netkit.EchoHandler)
    server._accept_loop.has_begun = True  # it has served, and was shut down
    accept = server.get_request
    errors = [ConnectionAbortedError(errno.ECONNABORTED, "gone"), None, None]

    def get_request() -> Any:
        error = errors.pop(0)
        if error:
            raise error
        return accept()

    monkeypatch.setattr(server, "get_request", get_request)
    with client(server) as sock:
        sock.sendall(b"hello")
        assert server.stop() == (1, 0)
        assert receive_all(sock) == b"hello"


def test_a_report_is_not_that_of_an_earlier_life() -> None:
    with serving(shout) as server, client(server):
        the_connection(server)
        assert server.stop(LONG) == (1, 0)
        server.block_on_close = False
        server.listen(0, "127.0.0.1").start().server_close()
        assert server.stop(LONG) == (0, 0)


def test_an_interrupted_stop_has_cut_the_clients_that_were_left_and_reports_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(_: object) -> bool:
        raise KeyboardInterrupt

    worker = Worker(lambda conn: None)
    with at_work(worker) as server, client(server) as sock:
        assert worker.busy.wait(PATIENCE)
        with monkeypatch.context() as patch:
            patch.setattr(server._connections, "wait_while_draining", interrupted)
            with pytest.raises(KeyboardInterrupt):
                server.stop(LONG)
        assert receive_all(sock) == b""
        assert server.stop(LONG) == (0, 1)


@pytest.mark.parametrize("patience", [0.0, SHORT])
@pytest.mark.parametrize("queued", [0, 2])
@each_echo
def test_a_full_server_asks_its_clients_to_finish_before_it_serves_the_queued_ones(
    handler: Any, queued: int, patience: float
) -> None:
    with serving(handler, max_connections=1) as server, contextlib.ExitStack() as stack:
        idle = stack.enter_context(client(server))
        for request in (b"a", b"b"):  # not silent for long, and it has not answered the reply
            idle.sendall(request)
            assert idle.recv(9) == request
        waiting = [stack.enter_context(client(server)) for _ in range(queued)]
        for sock in waiting:
            sock.sendall(b"c")
        assert server.stop(LONG, patience) == (1 + queued, 0)
        assert [sock.recv(9) for sock in waiting] == [b"c"] * queued


def test_a_stop_waits_for_a_listen_that_has_begun_while_it_waited_for_another_stop() -> None:
    def listen() -> None:
        life.opener = -1  # another thread
        threading.Timer(SHORT, end_listen).start()

    def end_listen() -> None:
        with life.changed:
            states.append(life.state)
            life.opener = None
            life.changed.notify_all()

    states: list[State] = []
    with serving(echo) as server:
        life = server._life
        server._drain._wait_for_other_stop_locked = listen  # type: ignore[method-assign]
        server.stop()
        assert states[0] is State.LISTENING
        assert life.state is State.CLOSED
