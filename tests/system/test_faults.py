"""Faults of docs/faults.md, while good clients exchange bytes that must stay intact.

Those of TLS are in test_faults_tls.py.
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
    fault,
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
from netkit.core import events

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's limits or its /proc")


def test_each_row_of_the_page_has_a_test() -> None:
    text = (ROOT / "docs/faults.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w-]+)`:", text, re.MULTILINE)
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    tested = re.findall(r'^@fault\("([\w-]+)"\)', "\n".join(sources), re.MULTILINE)
    assert set(tested) == set(rows)
    assert len(rows) >= 20


# A machine that runs out of something


class Counting(netkit.Server):
    """Counts how often it tries to accept."""

    attempts = 0

    def get_request(self) -> Any:
        self.attempts += 1
        return super().get_request()


@fault("descriptors")
@pytest.mark.parametrize("cls", [netkit.Server, Counting])
def test_without_descriptors_new_clients_wait_and_connected_ones_are_served(
    cls: type[netkit.Server],
) -> None:
    pytest.importorskip("resource")
    with unharmed(returning=0, cls=cls) as (server, good), socket.socket() as late:
        late.settimeout(PATIENCE)
        gc.collect()  # so that no descriptor is closed in the block
        server._accept_loop.quiet = 0.0
        with observed(events.AcceptPaused, events.AcceptResumed) as seen:
            with descriptors_left(0):
                before = getattr(server, "attempts", 0)
                late.connect(server.server_address)
                late.sendall(b"late\n")
                wait_until(lambda: seen, "the pause")
                good.go_on()
                time.sleep(0.2)  # in which a loop without pauses makes thousands of attempts
                assert getattr(server, "attempts", 0) - before <= 30
            assert receive_exactly(late, 5) == b"late\n"
            wait_until(lambda: len(seen) == 2, "the end of the pause")
    assert seen[0].error.errno == errno.EMFILE


class Failing(netkit.Server):
    """Each accept fails, with `errors` in turn, until there are none left."""

    errors: list[int]

    def get_request(self) -> Any:
        if self.errors:
            number = self.errors.pop(0)
            raise OSError(number, os.strerror(number))
        return super().get_request()


@fault("accept")
@pytest.mark.parametrize("number", [errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_no_client_is_lost_while_accept_fails_for_a_reason_of_the_machine(number: int) -> None:
    with silent_log(), Failing(None, echo).listen(0, "127.0.0.1") as server:
        server.errors = []
        server._accept_loop.quiet = 0.0
        with good_clients(connecting(server)) as good:
            with observed(events.AcceptPaused, events.AcceptResumed) as emitted:
                server.errors = [number] * 5
                assert exchange(server, b"late\n") == b"late\n"
                wait_until(lambda: len(emitted) == 2, "the end of the pause")
                good.go_on()
    assert emitted[0].error.errno == number


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


@fault("thread-start")
@linux
def test_without_memory_for_a_thread_a_client_waits_until_there_is_some() -> None:
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


@fault("log-full")
@linux
def test_a_log_on_a_full_disk_loses_records_and_nothing_else() -> None:
    with open("/dev/full", "wb") as full, Child(stderr=full) as child:
        with good_clients(child.connect) as good:
            fail_often(child.connect)
            good.go_on()
        assert child.stop() in (0, 120)  # Python's own, if it cannot write the rest in the end


@fault("log-stalled")
def test_a_log_that_is_not_read_loses_records_and_nothing_else() -> None:
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


@fault("log-closed")
@pytest.mark.skipif(os.name != "posix", reason="closes a descriptor by its number")
@pytest.mark.parametrize("how", ["descriptor", "file", "pipe"])
def test_a_log_that_is_closed_loses_records_and_nothing_else(how: str) -> None:
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


@fault("signals")
@needs_timer
@each_kind_of_call
def test_signals_in_the_threads_of_clients_change_nothing(options: dict[str, Any]) -> None:
    with silent_log(), serving(echo, **options) as server:
        # What starts from here on is sent none, so all of them hit the server's own threads.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
        try:
            with good_clients(connecting(server)) as good, signals() as got:
                many_calls(server, good, got)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


@fault("signals")
@needs_timer
@each_kind_of_call
def test_signals_in_the_accepting_thread_change_nothing(options: dict[str, Any]) -> None:
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


@fault("signals")
@needs_timer
@pytest.mark.parametrize("call", ["read", "write"])
def test_signals_do_not_extend_a_time_limit(call: str) -> None:
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


@fault("reset-queued")
def test_a_client_that_resets_before_it_is_accepted_harms_no_other() -> None:
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


@fault("reset-reading")
def test_a_reset_during_a_read_ends_that_client_alone() -> None:
    with observed(events.ClientFailed) as failed, unharmed() as (server, _):
        with bad_client(server, b"!line\n") as sock:
            sock.sendall(b"half a li")
            reset(sock)
        wait_until(lambda: failed, "the report")
    assert isinstance(failed[0].error, ConnectionResetError)


@fault("reset-writing")
def test_a_reset_during_a_write_ends_that_client_alone() -> None:
    with unharmed() as (server, good), bad_client(server, b"!flood\n") as sock:
        good.go_on()
        reset(sock)


@fault("half-written")
def test_a_write_that_fails_in_the_middle_is_followed_by_a_reset() -> None:
    with observed(events.ClientFailed) as emitted, unharmed(write_timeout=0.1) as (server, good):
        with bad_client(server, b"!flood\n") as sock:
            wait_until(lambda: emitted)
            good.go_on()
            with pytest.raises(ConnectionResetError):
                receive_all(sock)
    assert [type(event.error) for event in emitted] == [TimeoutError]


@fault("network")
@linux
@pytest.mark.parametrize("kind", ["writes", "reads", "request", "client"])
def test_a_dead_network_is_noticed_within_the_write_timeout(kind: str) -> None:
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


@fault("reset-closing")
def test_a_reset_during_a_close_ends_that_client_alone() -> None:
    with unharmed() as (server, good), client(server) as sock:
        sock.sendall(b"a line\n")
        assert receive_exactly(sock, 7) == b"a line\n"
        sock.sendall(b"!last\n")
        assert receive_exactly(sock, 5) == b"last\n"
        assert sock.recv(1) == b""  # the server waits for our end, too
        good.go_on()
        reset(sock)


@fault("resets")
def test_a_thousand_resets_at_once_harm_no_other_client() -> None:
    with unharmed(staying=1) as (server, _):
        for said in (b"", b"a line\n", b"!line\n", b"!leave\n", b""):
            # 200 each time, which the usual limit on descriptors allows
            crowd = [connecting(server)() for _ in range(200)]
            for sock in crowd:
                sock.sendall(said)
            for sock in crowd:
                reset(sock)


@fault("killed")
def test_a_client_whose_process_is_killed_harms_no_other() -> None:
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


@fault("sigstop")
@pytest.mark.skipif(os.name != "posix", reason="needs SIGSTOP")
def test_a_client_whose_process_is_stopped_for_a_while_loses_nothing() -> None:
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


@fault("clock")
def test_a_jump_of_the_clock_changes_no_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
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


@fault("clock")
def test_the_wall_clock_is_read_for_records_only() -> None:
    used = set()
    for path in (ROOT / "netkit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = {alias.name for alias in node.names} | {getattr(node, "module", "")}
                assert path.parent.name == "tls" or not {"datetime", "sched"} & names, path
                assert getattr(node, "module", "") != "time", path
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "time":
                used.add((path.name, node.attr))
    of_records = {("log_format.py", "gmtime")}
    of_records |= {("handlers.py", name) for name in ("time", "gmtime", "strftime")}
    for name in ("access.py", "feed.py", "summary.py", "local.py", "launch.py"):
        of_records |= {(name, "time"), (name, "gmtime")}
    of_records |= {("layout.py", name) for name in ("strftime", "localtime")}
    of_other_clocks = ("monotonic", "sleep", "process_time", "clock_gettime_ns", "CLOCK_MONOTONIC")
    assert {use for use in used if use[1] not in of_other_clocks} <= of_records


# Handlers that misbehave


@fault("fork")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_that_a_handler_forks_keeps_no_client_connected() -> None:
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


EVERYWHERE = [
    *((FailingHandler, where) for where in ("connected", "handle", "received", "closed")),
    *((FailingRequest, where) for where in ("setup", "handle", "finish")),
]
OTHER_KINDS = [Stop, SystemExit, KeyboardInterrupt, GeneratorExit]


@fault("raises")
@pytest.mark.parametrize(
    ("handler", "where", "kind"),
    [(*place, ValueError) for place in EVERYWHERE]
    + [
        (*place, kind)
        for place, kind in zip(EVERYWHERE[1:3] + EVERYWHERE[5:], OTHER_KINDS, strict=True)
    ],
)
def test_an_exception_of_a_handler_is_logged_once_and_ends_that_client_alone(
    handler: Any, where: str, kind: type[BaseException]
) -> None:
    with observed(events.HandlerFailed) as emitted:
        with unharmed(handler, handler_args={"where": where, "kind": kind}) as (server, _):
            for _ in range(5):
                if handler is FailingHandler and where != "closed":
                    assert exchange_and_fail(server, b"!\n") == b""
                else:
                    reply = exchange(server, b"!\n")
                    assert reply == (b"!\n" if where in ("closed", "finish") else b"")
    assert [(type(event.error), str(event.error)) for event in emitted] == [
        (kind, "on purpose")
    ] * 5


@fault("observer")
def test_an_observer_that_raises_is_logged_once_and_the_others_are_called() -> None:
    def fail(event: object) -> None:
        raise ValueError("on purpose")

    with observed(events.ConnectionClosed) as closed, observed(events.ObserverFailed) as emitted:
        unsubscribe = events.subscribe(fail)
        try:
            with unharmed() as (server, _):
                for _ in range(5):
                    assert exchange(server, b"hi\n") == b"hi\n"
                wait_until(lambda: len(closed) >= 5)
        finally:
            unsubscribe()
    assert [str(event.error) for event in emitted] == ["on purpose"]


@fault("makefile")
def test_a_file_that_a_handler_has_made_of_its_socket_keeps_no_descriptor() -> None:
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


@fault("stop")
def test_a_stop_during_all_that_ends_in_time_and_loses_no_reply() -> None:
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
