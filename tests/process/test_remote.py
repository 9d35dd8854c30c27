"""The front process asks workers: deadlines, counters that do not fall, and what workers send."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from support import in_thread, wait_until

import netkit
from netkit.net import sockopts
from netkit.process import questions, remote
from netkit.process.channel import Channel, State, Tell, channel_pair
from netkit.process.local import LocalProgram
from netkit.process.memory import Memory
from netkit.process.program import Answer, ProgramState
from netkit.process.questions import Responder, packed, receive
from netkit.process.remote import RemoteProgram

from .attachments import Noting

FACTS = ProgramState("", 4711, 1.5, 0, 0, {}, {}, ["127.0.0.1:80"])
SHORT = 1.0  # seconds: for answers of which one does not come, and the others do


class Worker:
    """A worker in threads of this process. `attachment` answers."""

    def __init__(self, number: int) -> None:
        self.pid = number
        self.attachment = Noting()
        self.program = LocalProgram([netkit.create_server()], self.attachment, lambda: None, {})
        self.answers = Responder(self.program)
        self.ours, theirs = sockopts.socket_pair()
        self.theirs = theirs

    def serve(self) -> None:
        self.answers.serve(self.theirs)

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self.theirs.shutdown(socket.SHUT_RDWR)


class Front:
    """A front process in this one. `parent` is the other end of its channel."""

    def __init__(self, memory: Memory) -> None:
        self.parent, self.channel = channel_pair()
        self.parent._socket.setblocking(True)
        self.program = RemoteProgram(self.channel, memory, FACTS)
        self.workers: list[Worker] = []

    def meet(self, *numbers: int, silent: bool = False) -> list[Worker]:
        new = [Worker(number) for number in numbers]
        self.workers += new
        for worker in new:
            if not silent:
                worker.serve()
            self.program.meet(worker.pid, worker.pid, worker.ours)
        return new

    def end(self) -> None:
        for worker in self.workers:
            worker.end()
            worker.theirs.close()
        wait_until(lambda: not self.program._peers)
        self.parent.close()
        self.channel.close()


@pytest.fixture
def memory() -> Iterator[Memory]:
    with contextlib.closing(Memory()) as memory:
        yield memory


@pytest.fixture
def front(memory: Memory) -> Iterator[Front]:
    front = Front(memory)
    yield front
    front.end()


def asked(front: Front, **given: Any) -> dict[int, float]:
    return {
        answer.pid: answer.value["counters"].get("asked_total", 0)
        for answer in front.program.ask("metrics", **given)
    }


def test_all_workers_or_some_are_asked_and_faults_are_theirs(front: Front) -> None:
    front.meet(1, 2)
    ask = front.program.ask
    assert ask("hello", {"a": 1}) == [Answer(1, {"a": 1}), Answer(2, {"a": 1})]
    assert ask("hello", pids=[2, 7]) == [Answer(2, {})]
    assert ask("wrong", pids=[1]) == [Answer(1, None, "a wrong question")]
    assert ask("set", pids=[1]) == [Answer(1, None, "Object of type set is not JSON serializable")]


def test_one_that_is_silent_has_an_error_and_the_counters_it_has_sent(front: Front) -> None:
    front.meet(1)
    (silent,) = front.meet(2, silent=True)
    assert front.program.ask("hello", seconds=SHORT) == [
        Answer(1, {}),
        Answer(2, None, "no answer within 1 s"),
    ]
    assert asked(front, seconds=SHORT) == {1: 1, 2: 0}
    silent.serve()
    assert asked(front) == {1: 2, 2: 1}
    assert silent.attachment.calls == ["attach"]  # what it was asked before is void


def test_one_that_reads_nothing_is_not_waited_for(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_MAX_UNSENT", 1000)
    (silent,) = front.meet(1, silent=True)
    silent.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    began = time.monotonic()
    for _ in range(50):
        front.program.ask("hello", {"text": "x" * 500}, seconds=0)
    assert time.monotonic() - began < 20
    silent.serve()
    wait_until(lambda: front.program.ask("hello") == [Answer(1, {})])


def test_counters_move_to_the_retired_ones_and_never_fall(front: Front) -> None:
    one, two = front.meet(1, 2)
    assert [asked(front) for _ in range(3)][-1] == {1: 3, 2: 3}
    assert front.program.state().retired == {}
    one.end()
    wait_until(lambda: front.program.state().retired == {"asked_total": 3})
    assert asked(front) == {2: 4}
    two.answers.finish()  # asks for the last figures
    two.end()
    wait_until(lambda: front.program.state().retired == {"asked_total": 8})
    assert asked(front) == {}


def test_a_new_front_process_knows_the_counters_of_the_old_one(memory: Memory) -> None:
    old = Front(memory)
    old.meet(1, 2)
    assert asked(old) == {1: 1, 2: 1}
    old.program._memory = Memory()  # it is killed
    old.end()
    old.program._memory.close()
    new = Front(memory)
    new.meet(2, silent=True)
    new.program.has_met_all()
    assert new.program.state().retired == {"asked_total": 1}
    assert asked(new, seconds=SHORT) == {2: 1}
    new.end()
    assert new.program.state().retired == {"asked_total": 2}


def test_one_that_ends_while_it_is_asked_has_an_error(front: Front) -> None:
    (silent,) = front.meet(1, silent=True)
    answers: list[Any] = []
    ask = front.program.ask
    with (
        in_thread(lambda: answers.extend(ask("hello", pids=[1], seconds=20))),
        in_thread(lambda: answers.extend(ask("hello", seconds=20))),  # those that serve
    ):
        wait_until(lambda: len(front.program._peers[1]._pending) == 2)
        silent.end()
    assert answers == [Answer(1, None, "the worker has ended")]


def test_one_that_has_just_ended_has_an_error(front: Front) -> None:
    ours, theirs = sockopts.socket_pair()
    theirs.close()
    peer = remote.Peer(1, 1, ours, lambda peer: None)
    peer._has_ended = True
    pending = peer.ask(1, {})
    assert pending.wait(1, remote.Deadline(0)) == (None, "the worker has ended")
    pending.finish(1, "too late")
    assert pending.wait(1, remote.Deadline(0)) == (None, "the worker has ended")
    ours.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"\xff\xff\xff\xff",
        b"\0\0\0\x02no",
        b"\0\0\0\x02[]",
        b"\0\0\0\x04" + b"[" * 4,
        b"\0\x01\x86\xa0" + b"[" * 100_000,
        b"\0\0",
    ],
    ids=["too long", "no JSON", "no object", "half", "too deep", "a part of a size"],
)
def test_a_worker_that_sends_anything_else_is_not_asked_any_more(front: Front, sent: bytes) -> None:
    (bad,) = front.meet(1, silent=True)
    bad.theirs.sendall(sent)
    bad.theirs.shutdown(socket.SHUT_WR)
    wait_until(lambda: not front.program._peers)


@pytest.mark.parametrize(
    "value",
    [None, [], {"counters": []}, {"counters": {"a": "x", "b": None, "c": True, "d": float("nan")}}],
)
def test_figures_that_are_none_count_for_nothing(front: Front, value: Any) -> None:
    (bad,) = front.meet(1, silent=True)
    bad.theirs.sendall(packed({"id": 99, "value": 1}) + packed({"final": value}))
    bad.end()
    wait_until(lambda: not front.program._peers)
    assert front.program.state().retired == {}


def test_gauges_that_are_none_harm_no_page(front: Front) -> None:
    (bad,) = front.meet(1, silent=True)
    answers: list[Answer] = []
    with in_thread(lambda: answers.extend(front.program.ask("metrics"))):
        number = receive(bad.theirs)["id"]
        value = {"gauges": {"a": "x", "b": float("inf"), "c": 1}}
        bad.theirs.sendall(packed({"id": number, "value": value}))
    assert [answer.value for answer in answers] == [{"counters": {}, "gauges": {"c": 1}}]


def test_figures_of_a_worker_that_has_ended_meanwhile_are_not_kept(front: Front) -> None:
    (worker,) = front.meet(1)
    peer = front.program._peers[1]
    worker.end()
    wait_until(lambda: not front.program._peers)
    (answer,) = front.program._noted([(peer, {"counters": {"a": 1}}, "")])
    assert answer.value == {"counters": {"a": 1}, "gauges": {}}
    assert front.program._known == {}


def test_a_memory_that_is_full_harms_no_answer(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Any) -> None:
        raise OSError("no memory")

    front.meet(1)
    monkeypatch.setattr(front.program._memory, "save", fail)
    assert asked(front) == {1: 1}


# States and orders


def test_the_state_is_that_of_the_parent_and_follows_orders_at_once(front: Front) -> None:
    program = front.program
    assert program.state().phase == "starting"
    program.update(State("ready", 2, 1, 3, 4))
    assert program.state() == FACTS._replace(
        phase="ready", workers=2, restarts=1, reloads={"ok": 3, "failed": 4}
    )
    for command, phase in (("suspend", "suspended"), ("resume", "ready")):
        program.order("standing", command=command, arguments={}, key="suspend")
        assert program.state().phase == phase
    program.order("reload")
    program.order("resize", count="auto")
    program.order("stop", timeout=5, delay=1)
    assert program.state().phase == "stopping"
    got = [it for _ in range(1) for it in _messages(front.parent, 5)]
    assert [(it.command, json.loads(it.arguments)) for it in got[2:]] == [
        ("reload", {}),
        ("resize", {"count": "auto"}),
        ("stop", {"timeout": 5, "delay": 1}),
    ]
    program.order("standing", command="suspend", arguments={}, key="suspend")
    assert program.state().phase == "stopping"


def _messages(channel: Channel, count: int) -> list[Tell]:
    found: list[Tell] = []
    while len(found) < count:
        found += channel.receive(Tell)
    return found


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("stop", {"timeout": -1}),
        ("stop", {"delay": None}),
        ("resize", {"count": 0}),
        ("resize", {"count": 1.5}),
        ("dance", {}),
        ("standing", {"command": "set", "arguments": {"value": "x" * 13_000}, "key": "set"}),
    ],
)
def test_an_invalid_order_is_an_error(front: Front, command: str, arguments: Any) -> None:
    with pytest.raises(ValueError, match=r"must be|unknown order|too long"):
        front.program.order(command, **arguments)


def test_an_order_to_a_parent_that_is_gone_is_dropped(front: Front) -> None:
    front.parent.close()
    front.program.order("reload")


# The side of the worker


@pytest.fixture
def asker() -> Iterator[tuple[socket.socket, Worker]]:
    worker = Worker(1)
    yield worker.ours, worker
    worker.end()
    worker.ours.close()
    worker.theirs.close()


def test_a_question_whose_time_is_over_is_not_answered(asker: tuple[socket.socket, Worker]) -> None:
    ours, worker = asker
    worker.serve()
    question = {"command": "hello", "arguments": {}}
    ours.sendall(packed({"id": 1, **question, "until": time.monotonic() - 1}))
    ours.sendall(packed({"id": 2, **question, "until": time.monotonic() + 60}))
    assert receive(ours)["id"] == 2


def test_an_answer_that_is_too_long_is_an_error(
    asker: tuple[socket.socket, Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, worker = asker
    worker.serve()
    monkeypatch.setattr(questions, "MAX_SIZE", 200)
    until = time.monotonic() + 60
    question = {"id": 1, "command": "metrics", "arguments": {}, "until": until}
    monkeypatch.setattr(worker.attachment, "answer", lambda *_: "x" * 300)
    ours.sendall(packed(question))
    assert receive(ours)["error"] == "the answer has 335 bytes, and may have 200"


def test_a_new_socket_takes_the_place_of_the_old_one(asker: tuple[socket.socket, Worker]) -> None:
    old, worker = asker
    worker.serve()
    ours, theirs = sockopts.socket_pair()
    worker.answers.serve(theirs)
    old.close()
    wait_until(lambda: worker.theirs.fileno() < 0)
    with ours:
        worker.answers.finish()
        assert receive(ours) == {"final": {"counters": {"asked_total": 1}, "gauges": {"x": 1}}}
    wait_until(lambda: worker.answers._socket is None)
    worker.answers.finish()  # to nobody


def test_an_asker_without_a_thread_to_answer_sees_the_end(
    asker: tuple[socket.socket, Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    ours, worker = asker
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    worker.serve()
    with pytest.raises(EOFError):
        receive(ours)
