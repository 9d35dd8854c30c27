"""Each row of the table in docs/faults.md, while good clients exchange what must stay intact.

The rows that begin with ``tls-`` are in test_faults_tls.py.
"""

from __future__ import annotations

import ast
import contextlib
import errno
import gc
import os
import re
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from faults import (
    BAD,
    KEPT,
    MUCH,
    RELEASED,
    Process,
    bad_client,
    connecting,
    descriptors_left,
    echo,
    unharmed,
)
from goodclients import GoodClients, good_clients
from support import (
    PATIENCE,
    ROOT,
    client,
    exchange,
    exchange_and_fail,
    in_thread,
    observed,
    receive_all,
    receive_exactly,
    reset,
    serving,
    silent_log,
    tcp_pair,
    tool,
    until_reset,
    wait_until,
)

import netkit
import netkit.server.server
from netkit.core import events
from netkit.server.hooks import HookedServer

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's limits or its /proc")


def test_every_row_has_its_test() -> None:
    text = (ROOT / "docs/faults.md").read_text(encoding="utf-8")
    rows = {row.replace("-", "_") for row in re.findall(r"^\| `([\w-]+)`:", text, re.MULTILINE)}
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_faults*.py"))
    tests = re.findall(r"^def test_row_(\w+?)__\w+\(", sources, re.MULTILINE)
    assert set(tests) == rows
    assert len(rows) >= 20


# What the machine runs out of


@contextlib.contextmanager
def counted_accepts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[None]]:
    """One for each time that a server tries to accept meanwhile."""
    accepts: list[None] = []
    get_request = HookedServer.get_request

    def counting(server: HookedServer) -> Any:
        accepts.append(None)
        return get_request(server)

    with monkeypatch.context() as patch:
        patch.setattr(HookedServer, "get_request", counting)
        yield accepts


def test_row_descriptors__who_comes_waits_and_who_is_there_is_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("resource")
    with unharmed(returning=0) as (server, good), socket.socket() as late:
        late.settimeout(PATIENCE)
        gc.collect()  # so that nothing gives a descriptor back meanwhile
        with observed(events.AcceptPaused, events.AcceptResumed) as told:
            with descriptors_left(0), counted_accepts(monkeypatch) as accepts:
                late.connect(server.server_address)
                late.sendall(b"late\n")
                wait_until(lambda: told, "the pause")
                good.go_on()
                time.sleep(0.2)  # in which a loop that does not pause is round thousands of times
                assert len(accepts) <= 20
            assert receive_exactly(late, 5) == b"late\n"
            wait_until(lambda: len(told) == 2, "the end of the pause")
    assert told[0].error.errno == errno.EMFILE


class Failing(netkit.Server):
    """Each accept fails, with `errors` in turn, until there are none left."""

    errors: list[int]

    def get_request(self) -> Any:
        if self.errors:
            number = self.errors.pop(0)
            raise OSError(number, os.strerror(number))
        return super().get_request()


@pytest.mark.parametrize("number", [errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_row_accept__fails_for_a_while_and_nobody_is_lost(number: int) -> None:
    with silent_log(), Failing(None, echo).listen(0, "127.0.0.1") as server:
        server.errors = []
        with good_clients(connecting(server)) as good:
            with observed(events.AcceptPaused, events.AcceptResumed) as told:
                server.errors = [number] * 5
                assert exchange(server, b"late\n") == b"late\n"
                wait_until(lambda: len(told) == 2, "the end of the pause")
                good.go_on()
    assert told[0].error.errno == number


class Child:
    """A server in a process of its own, whose port it prints."""

    PRELUDE = """
import sys, threading, netkit
def echo(conn):
    for chunk in conn:
        if chunk.startswith(b"!"):
            raise ValueError("on purpose")
        conn.write(chunk)
server = netkit.create_server(echo, drain_timeout=5).listen(0, "127.0.0.1")
print(server.address.port, flush=True)
"""

    def __init__(self, source: str = "", stderr: Any = subprocess.PIPE, **more: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.PRELUDE + source + "\nnetkit.run(server)"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            **more,
        )
        assert self.process.stdout
        self.port = int(self.process.stdout.readline())

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def wait_for_line(self, part: bytes) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            if part in line:
                return
        pytest.fail(f"no {part!r} on standard error")

    def stop(self) -> int:
        """As a supervisor does; its exit status."""
        self.process.terminate()
        return self.process.wait(PATIENCE)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for file in (self.process.stdout, self.process.stderr):
            if file:
                file.close()


STACK = 1 << 30  # bytes of each thread in the child, so that one more is what does not fit


@linux
def test_row_thread_start__waits_until_a_thread_can_be_had() -> None:
    resource = pytest.importorskip("resource")
    with Child(f"threading.stack_size({STACK})") as child:
        with good_clients(child.connect, returning=0) as good:
            pid, (_, hard) = child.process.pid, resource.getrlimit(resource.RLIMIT_AS)
            with open(f"/proc/{pid}/statm") as file:
                size = int(file.read().split()[0]) * resource.getpagesize()
            resource.prlimit(pid, resource.RLIMIT_AS, (size + STACK // 4, hard))
            with child.connect() as late:
                late.sendall(b"late\n")
                child.wait_for_line(b"can't start new thread")
                good.go_on()
                resource.prlimit(pid, resource.RLIMIT_AS, (hard, hard))
                assert receive_exactly(late, 5) == b"late\n"
        assert child.stop() == 0


def fail_often(connect: Callable[[], socket.socket]) -> None:
    for _ in range(10):
        with connect() as sock:
            assert until_reset(sock, b"!") == b""


@linux
def test_row_log_full__costs_the_records_and_nothing_else() -> None:
    with open("/dev/full", "wb") as full, Child(stderr=full) as child:
        with good_clients(child.connect) as good:
            fail_often(child.connect)
            good.go_on()
        assert child.stop() in (0, 120)  # Python's own, if it cannot write the rest in the end


def test_row_log_stalled__costs_the_records_and_nothing_else() -> None:
    ours, theirs = os.pipe()
    with open(ours, "rb", 0), open(theirs, "wb", 0) as full:
        os.set_blocking(theirs, False)
        while full.write(bytes(4096)):
            pass
        os.set_blocking(theirs, True)
        with Child(stderr=full) as child:
            with good_clients(child.connect) as good:
                fail_often(child.connect)
                good.go_on()
            assert child.stop() == 0


@pytest.mark.skipif(os.name != "posix", reason="closes a descriptor by its number")
@pytest.mark.parametrize("how", ["descriptor", "file", "pipe"])
def test_row_log_closed__costs_the_records_and_nothing_else(how: str) -> None:
    source = "sys.stderr.close()" if how == "file" else ""
    close = (lambda: os.close(2)) if how == "descriptor" else None
    with Child(source, preexec_fn=close) as child:
        if how == "pipe":
            assert child.process.stderr
            child.process.stderr.close()
        with good_clients(child.connect) as good:
            fail_often(child.connect)
            good.go_on()
        assert child.stop() in (0, 120)  # Python's own, if it cannot write the rest in the end


# Signals


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """A timer that sends one each millisecond, to a handler in Python; those it has got."""
    got: list[int] = []
    handler = signal.signal(signal.SIGALRM, lambda number, _: got.append(number))
    timer = signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        yield got
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        time.sleep(0.02)  # what is on its way is not for the handler that was there before
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *timer)


each_kind_of_call = pytest.mark.parametrize(
    "options", [{}, {"idle_timeout": PATIENCE, "write_timeout": PATIENCE}], ids=["plain", "timed"]
)


def many_calls(server: netkit.Server, good: GoodClients, got: list[int]) -> None:
    """Accepts, reads, long writes and closes, until there have been enough signals."""
    while len(got) < 100:
        with client(server) as sock:
            sock.sendall(b"!much\n")
            assert receive_all(sock) == MUCH
        good.go_on(1)


needs_timer = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs setitimer")


@needs_timer
@each_kind_of_call
def test_row_signals__in_the_clients_threads_are_not_noticed(options: dict[str, Any]) -> None:
    with silent_log(), serving(echo, **options) as server:
        # What starts from here on is sent none, so all of them hit the server's own threads.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
        try:
            with good_clients(connecting(server)) as good, signals() as got:
                many_calls(server, good, got)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


@needs_timer
@each_kind_of_call
def test_row_signals__in_the_accepting_thread_are_not_noticed(options: dict[str, Any]) -> None:
    def attack() -> None:
        try:
            with good_clients(connecting(server)) as good:
                many_calls(server, good, got)
        finally:
            server.shutdown()

    with silent_log(), signals() as got:
        with netkit.create_server(echo, **options) as server:
            server.listen(0, "127.0.0.1")
            with in_thread(attack):
                server.serve_forever()


class Slow:
    """What a peer does that does nothing in time, but does not let the test hang."""

    def __init__(self, peer: socket.socket) -> None:
        self.over = threading.Event()
        self.peer = peer

    def __call__(self) -> None:
        if not self.over.wait(PATIENCE):
            reset(self.peer)


@needs_timer
@pytest.mark.parametrize("call", ["read", "write"])
def test_row_signals__do_not_put_off_a_time_limit(call: str) -> None:
    with tcp_pair() as (ours, peer), netkit.Connection(ours) as conn:
        slow = Slow(peer)
        conn.set_timeout(0.1)
        with in_thread(slow), signals() as got:
            try:
                with pytest.raises(TimeoutError, match="for 0.1 seconds"):
                    if call == "read":
                        conn.read(1)
                    else:
                        conn.write(MUCH * 10)
            finally:
                slow.over.set()
        assert len(got) > 10
        conn.destroy()


# Clients that go away


def test_row_reset_queued__is_as_if_it_had_never_come() -> None:
    with unharmed(returning=0) as (server, good):
        server.suspend()
        for request in (b"", b"half a li", b"a line\n"):
            for _ in range(3):
                sock = connecting(server)()
                sock.sendall(request)
                reset(sock)
        with client(server) as late:
            late.sendall(b"late\n")
            good.go_on()
            server.resume()
            assert receive_exactly(late, 5) == b"late\n"


def test_row_reset_reading__ends_that_client_alone() -> None:
    with observed(events.ClientFailed) as failed, unharmed() as (server, _):
        with bad_client(server, b"!line\n") as sock:
            sock.sendall(b"half a li")
            reset(sock)
        wait_until(lambda: failed, "the report")
    assert isinstance(failed[0].error, ConnectionResetError)


def test_row_reset_writing__ends_that_client_alone() -> None:
    with unharmed() as (server, good), bad_client(server, b"!flood\n") as sock:
        good.go_on()
        reset(sock)


def test_row_half_written__is_followed_by_a_reset() -> None:
    with observed(events.ClientFailed) as told, unharmed(write_timeout=0.1) as (server, good):
        with bad_client(server, b"!flood\n") as sock:
            wait_until(lambda: told)
            good.go_on()
            with pytest.raises(ConnectionResetError):
                receive_all(sock)
    assert [type(event.error) for event in told] == [TimeoutError]


@linux
@pytest.mark.parametrize("kind", ["writes", "reads", "request", "client"])
def test_row_network__is_noticed_within_the_write_timeout(kind: str) -> None:
    """In a network namespace of its own, where packets of one client are dropped."""
    inside = [tool("unshare"), "--net", "--map-root-user"]
    for name in ("iptables", "ip"):
        tool(name)
    script = f"ip link set lo up && exec {sys.executable} tests/deadnetwork.py {kind}"
    if subprocess.run([*inside, "iptables", "-L"], capture_output=True).returncode:
        if os.environ.get("CI") == "true":
            pytest.fail("no network namespace can be made, or iptables does not work there")
        pytest.skip("no network namespace can be made here, or iptables does not work there")
    done = subprocess.run(
        [*inside, "sh", "-c", script],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
    )
    peer = r"127\.0\.0\.1:\d+"
    text = rf"\[Errno 110\] write_timeout: {peer} has acknowledged nothing for 1 second\n"
    assert re.fullmatch(("" if kind == "client" else "ClientFailed ") + text, done.stdout), done


def test_row_reset_closing__ends_that_client_alone() -> None:
    with unharmed() as (server, good), client(server) as sock:
        sock.sendall(b"a line\n")
        assert receive_exactly(sock, 7) == b"a line\n"
        sock.sendall(b"!last\n")
        assert receive_exactly(sock, 5) == b"last\n"
        assert sock.recv(1) == b""  # the server waits for our end, too
        good.go_on()
        reset(sock)


def test_row_resets__of_a_thousand_at_once_are_a_thousand_ends() -> None:
    with unharmed(staying=1) as (server, _):
        for said in (b"", b"a line\n", b"!line\n", b"!leave\n", b""):
            # 200 each time, which the usual limit on descriptors allows
            crowd = [connecting(server)() for _ in range(200)]
            for sock in crowd:
                sock.sendall(said)
            for sock in crowd:
                reset(sock)


def test_row_killed__is_as_a_reset() -> None:
    source = """
clients = [connect() for _ in range(5)]
for s, said in zip(clients, (b"", b"half a li", b"a line\\n", b"!flood\\n", b"!much\\n")):
    s.sendall(said)
print("ready", flush=True)
sys.stdin.read(1)
os._exit(1)
"""
    with unharmed() as (server, good), Process(server, source) as process:
        assert process.line() == b"ready\n"
        good.go_on()
        assert process.process.stdin
        process.process.stdin.close()
        assert process.process.wait(PATIENCE) == 1


@pytest.mark.skipif(os.name != "posix", reason="needs SIGSTOP")
def test_row_sigstop__costs_a_thread_and_nothing_is_lost() -> None:
    source = """
s = connect()
s.sendall(b"!much\\n")
received = s.recv(5)
print("ready", flush=True)
sys.stdin.read(1)
while part := s.recv(100000):
    received += part
sys.exit(received != b"".join(b"%07d\\n" % number for number in range(500000)))
"""
    with unharmed() as (server, good), Process(server, source) as process:
        assert process.line() == b"ready\n"
        process.process.send_signal(signal.SIGSTOP)
        assert process.process.stdin
        process.process.stdin.close()
        good.go_on(10)
        assert process.process.poll() is None
        process.process.send_signal(signal.SIGCONT)
        assert process.process.wait(PATIENCE) == 0


# The clock


def test_row_clock__that_jumps_changes_no_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    jumps = [10_000_000.0]

    def jumping() -> float:
        jumps[0] *= -1.5
        return jumps[0]

    monkeypatch.setattr(time, "time", jumping)
    monkeypatch.setattr(time, "time_ns", lambda: int(jumping()) * 10**9)
    limits = {"idle_timeout": 60, "lifetime": 60, "min_rate": 1, "max_connection_rate": 10_000}
    with unharmed(**limits) as (server, good):
        with bad_client(server, b"!impatient\n") as sock:
            assert receive_all(sock) == b""
        good.go_on(10)
        assert server.wait_for_connections(1000, 0.01) is False


def test_row_clock__is_asked_for_the_time_of_a_record_only() -> None:
    used = set()
    for path in (ROOT / "netkit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = {alias.name for alias in node.names} | {getattr(node, "module", "")}
                assert path.name == "context.py" or not {"datetime", "sched"} & names, path
                assert getattr(node, "module", "") != "time", path
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "time":
                used.add((path.name, node.attr))
    of_records = {("log_format.py", "gmtime")}
    of_records.add(("handlers.py", "strftime"))
    assert {use for use in used if use[1] not in ("monotonic", "sleep")} <= of_records


# Handlers that misbehave


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_row_fork__a_child_that_lives_on_keeps_nobody_connected() -> None:
    children = []
    ours, childs = os.pipe()

    def forks(conn: netkit.Connection) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python's own, from 3.12 on
            child = os.fork()
        if child == 0:
            os.close(childs)
            os.read(ours, 1)  # until the test closes the other end
            os._exit(0)
        children.append(child)
        conn.write(b"forked\n")

    try:
        BAD["!fork"] = forks
        with unharmed() as (server, good):
            for _ in range(3):
                assert exchange(server, b"!fork\n") == b"forked\n"
            good.go_on()
    finally:
        os.close(childs)
        os.close(ours)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]


def is_bad(sock: socket.socket) -> bool:
    return sock.recv(1, socket.MSG_PEEK) == b"!"


class FailingHandler(netkit.Handler):
    """Echoes; a bad client meets an exception in the method that `where` names."""

    where = ""
    kind: type[BaseException] = ValueError

    def fail(self, method: str) -> None:
        if method == self.where and self.bad:
            raise self.kind("on purpose")

    def connected(self) -> None:
        self.bad = is_bad(self.conn.socket)
        self.fail("connected")

    def handle(self) -> None:
        self.fail("handle")
        super().handle()

    def received(self, data: bytes) -> None:
        self.fail("received")
        self.conn.write(data)

    def closed(self) -> None:
        self.fail("closed")


class FailingRequest(socketserver.StreamRequestHandler):
    """The same, of `socketserver`'s kind."""

    def __init__(self, *arguments: Any, where: str, kind: type[BaseException]) -> None:
        self.where, self.kind = where, kind
        super().__init__(*arguments)

    def fail(self, method: str) -> None:
        if method == self.where and self.bad:
            raise self.kind("on purpose")

    def setup(self) -> None:
        super().setup()
        self.bad = is_bad(self.request)
        self.fail("setup")

    def handle(self) -> None:
        self.fail("handle")
        for line in self.rfile:
            self.wfile.write(line)

    def finish(self) -> None:
        super().finish()
        self.fail("finish")


class Stop(BaseException):
    """Of a program's own, and no Exception."""


@pytest.mark.parametrize("kind", [ValueError, Stop, SystemExit, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize(
    ("handler", "where"),
    [(FailingHandler, where) for where in ("connected", "handle", "received", "closed")]
    + [(FailingRequest, where) for where in ("setup", "handle", "finish")],
)
def test_row_raises__is_told_once_and_ends_that_client_alone(
    handler: Any, where: str, kind: type[BaseException]
) -> None:
    with observed(events.HandlerFailed) as told:
        with unharmed(handler, handler_args={"where": where, "kind": kind}) as (server, _):
            for _ in range(5):
                if handler is FailingHandler and where != "closed":
                    assert exchange_and_fail(server, b"!\n") == b""
                else:
                    reply = exchange(server, b"!\n")
                    assert reply == (b"!\n" if where in ("closed", "finish") else b"")
    assert [(type(event.error), str(event.error)) for event in told] == [(kind, "on purpose")] * 5


def test_row_observer__that_raises_is_told_of_once() -> None:
    def fail(event: object) -> None:
        raise ValueError("on purpose")

    with observed(events.ConnectionClosed) as closed, observed(events.ObserverFailed) as told:
        unsubscribe = events.subscribe(fail)
        try:
            with unharmed() as (server, _):
                for _ in range(5):
                    assert exchange(server, b"hi\n") == b"hi\n"
                wait_until(lambda: len(closed) >= 5)
        finally:
            unsubscribe()
    assert [str(event.error) for event in told] == ["on purpose"]


def test_row_blocks__and_a_stop_is_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """With every hook and observer: tests/test_foreign_code.py."""
    monkeypatch.setattr("netkit.server.drain.Drain.grace", 0.1)
    blocked, go_on = threading.Event(), threading.Event()

    class Server(netkit.Server):
        def service_actions(self) -> None:
            blocked.set()
            assert go_on.wait(2 * PATIENCE)

    server = Server(None, netkit.EchoHandler).listen(0, "127.0.0.1").start()
    with client(server) as sock:
        assert blocked.wait(PATIENCE)
        with in_thread(server.stop, 0.1):
            assert receive_all(sock) == b""
        go_on.set()


def test_row_makefile__of_a_handler_that_keeps_it_keeps_no_descriptor() -> None:
    with unharmed() as (server, _):
        for _ in range(5):
            assert exchange(server, b"!makefile\n") == b""
    files, sockets = KEPT[1::2], KEPT[::2]
    KEPT.clear()
    assert [sock.fileno() for sock in sockets] == [-1] * 5
    for file in files:
        file.close()


# Stopping amid all that


def misbehave(server: netkit.Server, number: int) -> None:
    """One client after the other that does no good, until the server is gone."""
    with contextlib.suppress(OSError):
        while True:
            with client(server) as sock:
                sock.sendall((b"half a li", b"!flood\n", b"!leave\n", b"!oh\n", b"")[number])
                sock.setblocking(False)
                sock.recv(100)
                reset(sock)


def test_row_stop__amid_all_that_ends_in_time_and_loses_no_reply(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(netkit.server.drain.Drain, "grace", 0.1)
    RELEASED.clear()
    with silent_log(), serving(echo) as server, contextlib.ExitStack() as stack:
        for number in range(5):
            stack.enter_context(in_thread(misbehave, server, number))
        with good_clients(connecting(server), staying=3, returning=0) as good:
            good.go_on()
            stack.enter_context(bad_client(server, b"!flood\n"))
            stack.enter_context(bad_client(server, b"!deaf\n"))
            reports: list[Any] = []
            stopping = threading.Thread(
                target=lambda: reports.append(server.stop(0.1, patience=PATIENCE))
            )
            stopping.start()
            wait_until(lambda: not server.listening, "the stop")
            good.go_on()
        server.stop(0.1)  # the good ones have left: no more patience
        stopping.join(PATIENCE)
        RELEASED.set()
    (report,) = reports
    assert report.finished >= 3
    assert report.cut >= 1
