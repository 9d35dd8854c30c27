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
from netkit.net import sockopts
from netkit.net.forks import do_not_undo
from netkit.process import child, work, worker
from netkit.process.channel import (
    Alive,
    Ask,
    Channel,
    Failed,
    Questions,
    Ready,
    Stop,
    Tell,
    channel_pair,
)
from netkit.process.child import Child
from netkit.process.hooks import Hooks
from netkit.process.orders import Attached, Orders
from netkit.process.questions import packed, receive
from netkit.process.work import Recipe
from netkit.process.worker import PARENTS_SIGNALS, Worker
from netkit.server.registry import StopReport

from .attachments import Noting

LONG = 60.0  # seconds: a deadline that no test reaches, nor waits for


class FakeProcess:
    """What `multiprocessing` makes, but that nothing runs."""

    def __init__(self, target: Any, args: Any, name: str) -> None:
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

    def __init__(self, kind: Any = FakeProcess) -> None:
        self.kind = kind
        self.made: list[Any] = []

    def Process(self, **arguments: Any) -> Any:
        self.made.append(self.kind(**arguments))
        return self.made[-1]

    def get_start_method(self) -> str:
        return "forkserver"


Ends = tuple[Worker, Channel, Any]


@contextlib.contextmanager
def started() -> Iterator[Ends]:
    """A worker, the other end of its channel, and its process."""
    made, context = Worker(0, 0), FakeContext()
    made.start(context, int)  # type: ignore[arg-type]
    (process,) = context.made
    theirs = Channel(process.their_end)
    try:
        yield made, theirs, process
    finally:
        theirs.close()
        made.channel.close()
        do_not_undo(made.channel.close)
        process.sentinel.close()
        process.at_its_end.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    with started() as all_three:
        yield all_three


@pytest.fixture
def server() -> Iterator[netkit.Server]:
    with netkit.create_server(netkit.EchoHandler).listen(0, "127.0.0.1") as server:
        yield server


# The parent's view


def test_a_signal_finds_no_worker_without_handlers() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with started() as (_, _, process):
        assert {signal.SIGINT, signal.SIGTERM, *PARENTS_SIGNALS} <= process.held_back
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_a_process_that_cannot_be_started_leaves_nothing_behind() -> None:
    class Failing(FakeProcess):
        def start(self) -> None:
            raise BlockingIOError("no more processes")

    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    failed, context = Worker(0, 0), FakeContext(Failing)
    with pytest.raises(BlockingIOError, match="no more processes"):
        failed.start(context, int)  # type: ignore[arg-type]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
    failed.kill()
    assert failed.check()
    assert context.made[0].calls == ["close"]
    with context.made[0].their_end as their_end:
        assert their_end.recv(1) == b""


def test_a_worker_that_was_never_started_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Any:
        raise OSError(errno.EMFILE, "no more descriptors")

    made = Worker(0, 0)
    monkeypatch.setattr(child, "channel_pair", fail)
    with pytest.raises(OSError, match="no more descriptors"):
        made.start(FakeContext(), int)  # type: ignore[arg-type]
    made.kill()
    assert made.check()


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # of fork, from 3.12 on
def test_a_forked_process_has_no_copy_of_the_parents_end_of_a_channel() -> None:
    with started() as (one, *_), started() as (two, *_):
        forked = os.fork()
        if forked == 0:
            os._exit(one.channel.closed and two.channel.closed)
        assert os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1]) == 1
        assert not (one.channel.closed or two.channel.closed)


def test_its_messages_are_taken_in(ends: Ends) -> None:
    made, theirs, process = ends
    made.listen()
    assert (made.ready, made.failure, made.report) == (False, None, (0, 0))
    theirs.send(Ready())
    theirs.send(StopReport(3, 1))
    made.listen()
    assert (made.ready, made.failure, made.report) == (True, None, (3, 1))
    theirs.send(Failed("no such module"))
    theirs.close()
    assert not made.check()
    process.exitcode = 1
    assert made.check()
    assert made.check()
    made.kill()
    assert (made.failure, made.status) == ("no such module", 1)
    assert process.calls == ["close"]
    assert made.channel.closed


@pytest.mark.parametrize("rest", [b"", b'["Re'])
def test_one_that_has_closed_its_end_of_the_channel_is_to_end_soon(rest: bytes, ends: Ends) -> None:
    made, theirs, process = ends
    theirs._socket.sendall(rest)
    theirs.close()
    made.listen()
    assert made.channel.closed
    assert (made.kill_at.remaining() or LONG) <= worker.KILL_GRACE
    made.listen()
    made.kill()  # it was not late to be ready
    assert (made.failure, process.calls) == (None, ["kill", "join"])


def test_one_that_sends_no_message_is_to_be_killed_at_once(ends: Ends) -> None:
    made, theirs, _ = ends
    made.listen()
    assert not made.kill_at.expired()
    theirs._socket.sendall(b"\x80\x04N.\n")
    made.listen()
    assert made.kill_at.expired()
    assert made.channel.closed
    assert made.failure == f"worker {made.pid} has sent an invalid message"


def test_only_a_stricter_order_is_given(ends: Ends) -> None:
    made, theirs, _ = ends
    assert not made.leaving
    for _ in range(10_000):  # more than the channel holds
        made.tell(Stop(10, 10))
    assert made.leaving
    for order in (Stop(20), Stop(20), Stop(5, 20), Stop(10, 10), Stop(0), Stop(0)):
        made.tell(order)
    assert theirs.receive(Stop) == [(10, 10), (20, 0), (5, 20), (0, 0)]
    theirs.close()
    made.told = None
    made.tell(Stop(0))  # it is gone


def test_it_is_killed_a_while_after_it_should_have_ended(ends: Ends) -> None:
    made, theirs, process = ends
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
    assert process.calls == ["kill", "join"]


def test_one_that_does_not_answer_in_time_is_to_be_killed(ends: Ends) -> None:
    made, theirs, _ = ends
    made.ask(0)  # it is not ready, so it has a limit already
    theirs.send(Ready())
    made.listen()
    assert made.kill_at.remaining() is None
    made.ask(None)
    theirs.send(Alive(7))
    made.listen()
    assert made.connections == 7
    made.ask(LONG)
    made.ask(0)  # it is to answer the first question
    assert 0 < (made.kill_at.remaining() or 0) <= LONG
    theirs.send(Alive(8))
    made.listen()
    assert made.kill_at.remaining() is None
    made.ask(0)
    assert theirs.receive(Ask) == [Ask(), Ask(), Ask()]
    assert made.kill_at.expired()
    made.kill()
    assert made.failure == f"worker {made.pid} has hung for 0 s"


def test_one_that_is_leaving_has_its_limit_already(ends: Ends) -> None:
    made, theirs, _ = ends
    theirs.send(Ready())
    made.listen()
    made.tell(Stop(LONG))
    made.ask(0)
    assert not made.kill_at.expired()
    theirs.close()
    made.listen()
    made._is_asked = False
    made.ask(0)  # it is gone


def test_one_that_is_killed_before_it_was_ready_has_failed(ends: Ends) -> None:
    ends[0].kill()
    assert ends[0].failure == f"not ready after {worker.READY_SECONDS:g} seconds"


@pytest.mark.parametrize("news", [[Ready(), StopReport(1, 0)], [Failed("no such module")]])
def test_one_that_has_reported_is_to_end_soon(news: list[Any], ends: Ends) -> None:
    made, theirs, _ = ends
    for message in news:
        theirs.send(message)
    made.listen()
    assert (made.kill_at.remaining() or LONG) <= worker.KILL_GRACE
    made.kill()
    assert made.failure in (None, "no such module")


def test_one_whose_status_is_lost_has_ended(ends: Ends) -> None:
    with subprocess.Popen(["true"]) as gone:
        pass
    made, _, process = ends
    assert not made.check()
    process.at_its_end.close()
    assert not made.check()  # its exit status is still to come
    made.pid = gone.pid
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
    return pipe() if len(made) <= pipes else fail()

pipe = os.pipe
os.fork, os.pipe = fail, limited_pipe
before = os.listdir("/dev/fd")
for pipes in (0, 1, 2):
    made = []
    failed = Worker(0, 0)
    try:
        failed.start(multiprocessing.get_context("fork"), int)
    except BlockingIOError as error:
        print(error)
    failed.kill()
    print(failed.check(), len(os.listdir("/dev/fd")) - len(before))
"""


def test_a_fork_that_fails_leaves_no_descriptor_open() -> None:
    output = subprocess.check_output([sys.executable, "-c", FORK_FAILS], text=True, cwd=ROOT)
    assert output == "no more processes\nTrue 0\n" * 3


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
    assert work.core_of(4, count) == core
    monkeypatch.delattr(os, "sched_setaffinity")
    assert work.core_of(4, count) is None


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
            work.recipe_of(server, None, {})


@pytest.mark.parametrize(
    ("load", "answer"), [(None, b"HELLO THERE"), (lambda: whisper, b"hello there")]
)
def test_it_serves_on_the_listener_of_its_parent(load: Any, answer: bytes) -> None:
    parent = netkit.create_server(shout).listen(0, "127.0.0.1")
    recipe = Recipe(Shouting, shout, {}, (parent.socket,))
    made, _ = work._make(recipe, load, Hooks())
    assert made.address == parent.address
    with made, made.start(), client(made) as sock:
        sock.sendall(b"hello There")
        sock.shutdown(socket.SHUT_WR)
        assert receive_all(sock) == answer
    parent.close()


def test_an_order_that_comes_before_there_is_a_server_ends_it_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    statuses: list[int] = []

    def leave(status: int) -> Any:
        statuses.append(status)
        raise SystemExit

    monkeypatch.setattr(os, "_exit", leave)
    ours, theirs = channel_pair()
    with closing(theirs):
        ours.close()
        with pytest.raises(SystemExit):
            Orders(theirs).obey()
    assert statuses == [1]


@pytest.mark.parametrize(("order", "seen"), [(Stop(9, 8), (9, 8, 0)), (None, (None, 0, 0))])
def test_an_order_or_the_end_of_its_parent_stops_its_server(
    order: Stop | None, seen: Any, server: netkit.Server
) -> None:
    ours, theirs = channel_pair()
    orders = Orders(theirs)
    orders.made(server)
    with closing(theirs), closing(ours), client(server) as sock, in_thread(orders.obey):
        sock.sendall(b"x")
        assert receive_exactly(sock, 1) == b"x"
        if order is None:
            ours.close()
        else:
            ours.send(order)
        wait_until(lambda: not server._accept_loop.under_way)
        assert server._drain.order == seen
        ours.close()


def test_its_accepting_thread_answers_the_parent(server: netkit.Server) -> None:
    ours, theirs = channel_pair()
    orders = Orders(theirs)
    orders._answer()  # too early
    orders.made(server)
    ours._socket.setblocking(True)
    with closing(theirs), closing(ours), client(server) as sock, in_thread(orders.obey):
        sock.sendall(b"x")
        assert receive_exactly(sock, 1) == b"x"
        ours.send(Ask())
        assert ours.receive(Alive) == [Alive(1)]
        ours.close()


def test_a_message_to_a_parent_that_is_gone_is_dropped() -> None:
    ours, theirs = channel_pair()
    with closing(theirs):
        ours.close()
        work._send(theirs, Ready())


# What it is told beside its server


def test_standing_commands_come_before_it_serves_and_others_later(
    server: netkit.Server,
) -> None:
    attachment, forgotten = Noting(), []
    ours, theirs = channel_pair()
    orders = Orders(theirs.trust())
    attached = Attached(attachment, (("suspend", "{}"), ("log", "{}")), lambda: forgotten.append(1))
    attached.forget_others()
    assert (attachment.calls, forgotten) == (["forget"], [1])
    with closing(theirs), closing(ours), in_thread(orders.obey):
        ours.send(Tell("early", "{}"))
        wait_until(lambda: orders._commands)
        with orders.carried_out(server, attached):
            assert attachment.calls[1:] == ["attach", "suspend", "log", "early"]
            ours.send(Tell("reopen", "{}"))
            ours.send(Tell("late", "{}"))
            wait_until(lambda: attachment.calls[-2:] == ["reopen", "late"])
            asker, sock = sockopts.socket_pair()
            with asker, sock:
                ours.send(Questions(1, 2), sock.fileno())
                wait_until(lambda: orders._responder and orders._responder._socket)
                until = time.monotonic() + 60
                asker.sendall(
                    packed({"id": 1, "command": "hello", "arguments": {}, "until": until})
                )
                assert receive(asker) == {"id": 1, "value": {}, "error": ""}
        assert attachment.calls[-1] == "detach"
        ours.close()


def test_an_order_that_comes_as_it_begins_to_serve_is_carried_out(
    server: netkit.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    attachment = Noting(attaches=False)
    ours, theirs = channel_pair()
    orders = Orders(theirs.trust())

    def carry_out_all(self: Orders, *given: Any) -> None:
        original(self, *given)
        if not attachment.calls:
            self._commands.append(Tell("just now", "{}"))
            attachment.calls.append("begun")

    original = Orders._carry_out_all
    monkeypatch.setattr(Orders, "_carry_out_all", carry_out_all)
    with closing(theirs), closing(ours):
        with orders.carried_out(server, Attached(attachment)):
            wait_until(lambda: "just now" in attachment.calls)


def test_one_that_was_not_started_is_not_killed() -> None:
    Child().kill()
    Child().release()
