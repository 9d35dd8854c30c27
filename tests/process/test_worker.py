"""One worker process: its start, its messages, its orders and its end."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from support import ROOT, client, in_thread, receive_all, receive_exactly, wait_until

import netkit
from netkit.net.forks import do_not_undo
from netkit.process import child, recipe, work, worker
from netkit.process.channel import Channel, Failed, Ready, Stop, channel_pair
from netkit.process.child import PARENTS_SIGNALS
from netkit.process.recipe import Recipe
from netkit.process.worker import Worker
from netkit.server.registry import StopReport

LONG = 60.0  # seconds: a deadline that no test reaches, nor waits for


class FakeProcess:
    """What `multiprocessing` makes, but that nothing runs."""

    def __init__(self, target: Any, args: Any, name: str) -> None:
        self.arguments = args
        channel, *_ = args
        self.their_end = socket.socket(fileno=os.dup(channel.fileno()))
        self.exitcode: int | None = None
        self.calls: list[str] = []
        self.held_back: set[int] = set()
        self.pid: int | None = None

    def start(self) -> None:
        self.pid = os.getpid()
        self.sentinel, self.at_its_end = socket.socketpair()
        self.held_back = set(signal.pthread_sigmask(signal.SIG_BLOCK, []))

    def kill(self) -> None:
        self.calls.append("kill")

    def join(self) -> None:
        self.calls.append("join")

    def close(self) -> None:
        self.calls.append("close")
        if self.exitcode is None:
            raise ValueError("it runs")


class FakeContext:
    """Makes such processes."""

    Process: Any = FakeProcess

    def get_start_method(self) -> str:
        return "forkserver"


def process_of(made: Worker) -> Any:
    assert made._child is not None
    return made._child._process


@pytest.fixture
def server() -> Iterator[netkit.Server]:
    with netkit.create_server(netkit.EchoHandler).listen(0, "127.0.0.1") as server:
        yield server


@contextlib.contextmanager
def started(server: netkit.Server) -> Iterator[tuple[Worker, Any]]:
    """A worker, and the other end of its channel."""
    made = Worker(0, 0)
    made.start(FakeContext(), work.work, server, None, work.Share())  # type: ignore[arg-type]
    theirs = Channel(process_of(made).their_end)
    try:
        yield made, theirs
    finally:
        theirs.close()
        made.channel.close()
        do_not_undo(made.channel.close)
        process_of(made).sentinel.close()
        process_of(made).at_its_end.close()


@pytest.fixture
def ends(server: netkit.Server) -> Iterator[tuple[Worker, Any]]:
    with started(server) as both:
        yield both


# The parent's view


def test_a_signal_finds_no_worker_without_handlers(ends: tuple[Worker, Any]) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    made, _ = ends
    assert {signal.SIGINT, signal.SIGTERM, *PARENTS_SIGNALS} <= process_of(made).held_back
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_a_process_that_cannot_be_started_leaves_nothing_behind(
    server: netkit.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[FakeProcess] = []

    class Failing(FakeProcess):
        def start(self) -> None:
            made.append(self)
            raise BlockingIOError("no more processes")

    monkeypatch.setattr(FakeContext, "Process", Failing)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    failed = Worker(0, 0)
    with pytest.raises(BlockingIOError, match="no more processes"):
        failed.start(FakeContext(), work.work, server, None, work.Share())  # type: ignore[arg-type]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
    failed.kill()
    assert failed.check()
    assert made[0].calls == ["close"]
    with made[0].their_end as their_end:
        assert their_end.recv(1) == b""


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # of fork, from 3.12 on
def test_a_forked_process_has_no_copy_of_the_parents_end_of_a_channel(
    server: netkit.Server,
) -> None:
    with started(server) as (one, _), started(server) as (two, _):
        child = os.fork()
        if child == 0:
            os._exit(one.channel.closed and two.channel.closed)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
        assert not (one.channel.closed or two.channel.closed)


def test_its_messages_are_taken_in(ends: tuple[Worker, Any]) -> None:
    made, theirs = ends
    made.listen()
    assert (made.ready, made.failure, made.report) == (False, None, (0, 0))
    theirs.send(Ready())
    theirs.send(StopReport(3, 1))
    made.listen()
    assert (made.ready, made.failure, made.report) == (True, None, (3, 1))
    theirs.send(Failed("no such module"))
    theirs.close()
    assert not made.check()
    process_of(made).exitcode = 1
    assert made.check()
    assert (made.failure, made.status) == ("no such module", 1)
    assert process_of(made).calls == ["close"]
    assert made.channel.closed


@pytest.mark.parametrize("rest", [b"", b"\0\0\0\x50half"])
def test_one_that_has_closed_its_end_of_the_channel_is_to_end_soon(
    rest: bytes, ends: tuple[Worker, Any]
) -> None:
    made, theirs = ends
    theirs.send(Ready())
    theirs._socket.sendall(rest)
    theirs.close()
    made.listen()
    assert made.channel.closed
    assert (made.kill_at.remaining() or LONG) <= worker.KILL_GRACE
    made.listen()


def test_one_that_is_killed_after_it_has_closed_its_end_was_not_late_to_be_ready(
    ends: tuple[Worker, Any],
) -> None:
    made, theirs = ends
    theirs.close()
    process_of(made).their_end.close()
    made.listen()
    made.kill()
    assert made.failure is None
    assert process_of(made).calls == ["kill", "join"]


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"\xff\xff\xff\xff", "a message of 4294967295 bytes"),
        (b"\0\0\0\4\x80\x04N.", "a message that is not JSON"),
        (b'\0\0\0\x11{"kind": "Ready"}' * 1001, "more than 1000 messages"),
    ],
)
def test_one_that_sends_no_message_is_to_be_killed_at_once(
    data: bytes, what: str, ends: tuple[Worker, Any]
) -> None:
    made, theirs = ends
    made.listen()
    assert not made.kill_at.expired()
    theirs._socket.sendall(data)
    made.listen()
    assert made.kill_at.expired()
    assert made.channel.closed
    assert made.failure == f"worker {made.pid} has sent {what}"


def test_an_order_reaches_it_unless_it_is_gone(ends: tuple[Worker, Any]) -> None:
    made, theirs = ends
    assert not made.leaving
    made.tell(Stop(10, 5))
    assert made.leaving
    assert theirs.receive(Stop) == [(10, 5)]
    theirs.close()
    made.tell(Stop(0))


def test_only_a_stricter_order_is_given(ends: tuple[Worker, Any]) -> None:
    made, theirs = ends
    for _ in range(10_000):  # more than the channel holds
        made.tell(Stop(10, 10))
    for order in (Stop(20), Stop(20), Stop(5, 20), Stop(10, 10), Stop(0), Stop(0)):
        made.tell(order)
    told = theirs.receive(Stop)
    assert told == [(10, 10), (20, 0), (5, 20), (0, 0)]


def test_it_is_killed_a_while_after_it_should_have_ended(
    ends: tuple[Worker, Any],
) -> None:
    made, theirs = ends
    assert 0 < (made.kill_at.remaining() or 0) <= worker.READY_SECONDS
    theirs.send(Ready())
    made.listen()
    assert made.kill_at.remaining() is None
    made.tell(Stop(50, 30))
    assert 80 < (made.kill_at.remaining() or 0) <= 80 + worker.KILL_GRACE
    made.tell(Stop(20))
    made.tell(Stop(40))
    assert 0 < (made.kill_at.remaining() or 0) <= 20 + worker.KILL_GRACE
    made.kill()
    assert process_of(made).calls == ["kill", "join"]


def test_one_that_is_killed_before_it_was_ready_has_failed(ends: tuple[Worker, Any]) -> None:
    made, _ = ends
    made.kill()
    assert made.failure == f"not ready after {worker.READY_SECONDS:g} seconds"


@pytest.mark.parametrize("news", [[Ready(), StopReport(1, 0)], [Failed("no such module")]])
def test_one_that_has_reported_is_to_end_soon(news: list[Any], ends: tuple[Worker, Any]) -> None:
    made, theirs = ends
    for message in news:
        theirs.send(message)
    made.listen()
    assert (made.kill_at.remaining() or LONG) <= worker.KILL_GRACE
    made.kill()
    assert made.failure in (None, "no such module")


def test_one_whose_status_is_lost_has_ended(ends: tuple[Worker, Any]) -> None:
    with subprocess.Popen(["true"]) as gone:
        pass
    made, _ = ends
    assert not made.check()
    process_of(made).at_its_end.close()
    assert not made.check()  # its exit status is still to come
    made._child.pid = gone.pid  # type: ignore[union-attr]
    assert made.check()
    assert made.status is None


FORK_FAILS = """
import multiprocessing, os
import netkit
from netkit.process.worker import Worker

def fail():
    raise BlockingIOError("no more processes")

def limited_pipe():
    made.append(1)
    return pipe() if len(made) <= PIPES else fail()

pipe, made = os.pipe, []
os.fork, os.pipe = fail, limited_pipe
before = os.listdir("/dev/fd")
failed = Worker(0, 0)
try:
    failed.start(multiprocessing.get_context("fork"), int)
except BlockingIOError as error:
    print(error)
failed.kill()
print(failed.check(), len(os.listdir("/dev/fd")) - len(before))
"""


@pytest.mark.parametrize("pipes", [0, 1, 2])
def test_a_fork_that_fails_leaves_no_descriptor_open(pipes: int) -> None:
    code = FORK_FAILS.replace("PIPES", str(pipes))
    output = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT)
    assert output == "no more processes\nTrue 0\n"


def test_one_that_has_ended_is_neither_killed_nor_released_again(ends: tuple[Worker, Any]) -> None:
    made, _ = ends
    process_of(made).exitcode = 0
    assert made.check()
    assert made.check()
    made.kill()
    assert set(process_of(made).calls) == {"close"}


def test_one_that_was_never_started_has_ended() -> None:
    made = Worker(0, 0)
    made.kill()
    assert made.check()


def test_one_without_a_channel_is_not_started(
    server: netkit.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> Any:
        raise OSError(errno.EMFILE, "no more descriptors")

    monkeypatch.setattr(worker, "channel_pair", fail)
    made = Worker(0, 0)
    with pytest.raises(OSError, match="no more descriptors"):
        made.start(FakeContext(), work.work, server, None, work.Share())  # type: ignore[arg-type]
    made.kill()
    assert made.check()


def test_its_age_is_counted_from_its_start(ends: tuple[Worker, Any]) -> None:
    made, _ = ends
    time.sleep(0.02)
    assert 0.02 <= made.age < LONG


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is forked")
def test_a_process_with_threads_of_any_library_is_not_forked() -> None:
    code = """
import _thread, threading, time
from netkit.process.child import context_of
thread = threading.Thread(target=int)
thread.start()
thread.join()
print(context_of(False).get_start_method(), context_of(True).get_start_method())
_thread.start_new_thread(time.sleep, (60,))
print(threading.active_count(), context_of(False).get_start_method())
"""
    output = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT)
    assert output.split() == ["fork", "spawn", "1", "spawn"]


def test_where_threads_cannot_be_counted_nothing_is_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> Any:
        raise FileNotFoundError

    monkeypatch.setattr(os, "listdir", fail)
    assert not child.has_one_thread()
    assert child.context_of(fresh=False).get_start_method() == "spawn"


@pytest.mark.parametrize(
    ("count", "with_gil", "core"), [(2, True, None), (3, True, 1), (7, True, 1), (3, False, None)]
)
def test_each_stays_on_a_core_unless_they_are_few_or_need_no_gil(
    count: int, with_gil: bool, core: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: with_gil, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 7, 1}, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: None, raising=False)
    assert recipe.core_of(4, count) == core
    monkeypatch.delattr(os, "sched_setaffinity")
    assert recipe.core_of(4, count) is None


# In the worker's process


class Shouting(netkit.Server):
    """With hooks of its own."""


def shout(conn: netkit.Connection) -> None:
    conn.end(conn.read().upper())


def whisper(conn: netkit.Connection) -> None:
    conn.end(conn.read().lower())


def test_a_recipe_makes_the_same_server(server: netkit.Server) -> None:
    options = {"drain_timeout": 3.0, "handler_args": {}}
    made = Recipe(Shouting, shout, options, (server.socket,)).make()
    assert type(made) is Shouting
    assert made.RequestHandlerClass is shout
    assert made._options.drain_timeout == 3.0
    assert repr(Recipe(Shouting, shout, {"tls_key": b"secret"}, ())) == "<Recipe>"
    assert not made.listening


def test_a_class_whose_constructor_does_not_take_the_options_cannot_be_spawned() -> None:
    class Server(netkit.Server):
        def __init__(self, host: str, port: int) -> None:
            super().__init__((host, port), shout)

    with Server("127.0.0.1", 0) as server:
        with pytest.raises(TypeError, match=r"Server cannot be made in a spawned .*: its constr"):
            recipe.recipe_of(server, None, {})


@pytest.mark.parametrize(
    ("load", "answer"), [(None, b"HELLO THERE"), (lambda: whisper, b"hello there")]
)
def test_it_serves_on_the_listener_of_its_parent(load: Any, answer: bytes) -> None:
    parent = netkit.create_server(shout).listen(0, "127.0.0.1")
    recipe = Recipe(Shouting, shout, {}, (parent.socket,))
    made = work._make(recipe, load)
    assert made.address == parent.address
    with made, made.start(), client(made) as sock:
        sock.sendall(b"hello There")
        sock.shutdown(socket.SHUT_WR)
        assert receive_all(sock) == answer
    parent.close()


@contextlib.contextmanager
def obeying(server: netkit.Server) -> Iterator[Any]:
    """The server takes orders; the parent's end of the channel."""
    ours, theirs = channel_pair()
    made = work._Made()
    made.put(server)
    with closing(theirs), closing(ours), in_thread(work._obey, made, theirs):
        yield ours
        ours.close()


def test_an_order_that_comes_before_there_is_a_server_ends_it_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def leave(status: int) -> Any:
        raise SystemExit(status)

    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(SystemExit):
        work._Made().request_stop()


def test_an_order_stops_its_server(server: netkit.Server) -> None:
    with client(server) as sock, obeying(server) as channel:
        sock.sendall(b"x")
        assert receive_exactly(sock, 1) == b"x"
        channel.send(Stop(LONG, LONG))
        wait_until(lambda: not server._accept_loop.under_way)
        assert server._drain.order == (LONG, LONG)
        channel.close()


def test_without_a_parent_it_stops_by_itself(server: netkit.Server) -> None:
    with obeying(server) as channel:
        channel.close()
        wait_until(lambda: not server._accept_loop.under_way)
        assert server._drain.order == (None, 0.0)


def test_a_message_to_a_parent_that_is_gone_is_dropped() -> None:
    ours, theirs = channel_pair()
    with closing(theirs):
        ours.close()
        work._send(theirs, Ready())
