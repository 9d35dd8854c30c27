"""The front process as the parent sees it: started, told, obeyed, replaced and ended."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

import netkit
from netkit.core import events
from netkit.core.deadline import Deadline
from netkit.process.channel import Channel, Questions, State, Tell, channel_pair
from netkit.process.child import Child
from netkit.process.operators import Operators
from netkit.process.worker import Worker

from .attachments import Noting

READY = State("ready", 1, 0, 0, 0)


class Fronts:
    """Starts front processes that are ends of channels, and no processes."""

    def __init__(self, attachment: Noting | None) -> None:
        self.theirs: list[Channel] = []
        self.orders: list[Any] = []
        self.events: list[Any] = []
        self.error: Exception | None = None
        self.ended = False
        self.operators = Operators(attachment, self.start, self.obey, self.events.append)
        self.workers: list[Worker] = []
        self._pipes: list[int] = []

    def obey(self, command: str, arguments: dict[str, Any]) -> None:
        self.orders.append((command, arguments))

    def start(self, child: Child) -> None:
        if self.error is not None:
            raise self.error
        child.channel, theirs = channel_pair()
        self.theirs.append(theirs.trust())
        child._theirs = theirs
        child.end = self._pipe()
        child.pid = len(self.theirs)
        self.ended = False
        child.has_ended = lambda: self.ended  # type: ignore[method-assign]
        child.kill = self.kill  # type: ignore[method-assign]
        child.release = child._forget  # type: ignore[method-assign]

    def _pipe(self) -> int:
        self._pipes += os.pipe()
        return self._pipes[-2]

    def kill(self) -> None:
        self.ended = True

    def worker(self) -> tuple[Worker, Channel]:
        worker = Worker(0, len(self.workers))
        worker.channel, worker._theirs = channel_pair()
        worker.ready, worker.pid = True, 100 + len(self.workers)
        self.workers.append(worker)
        return worker, worker._theirs.trust()

    def step(self, state: State = READY) -> None:
        self.operators.step(self.workers, lambda: state)

    def told(self) -> list[Any]:
        """What the newest front process has been told since the last call."""
        channel, found = self.theirs[-1], []
        channel._socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                found += channel.receive(Questions, State, Tell)
        for message in found:
            if isinstance(message, Questions):
                channel.take_socket().close()
        return found

    def close(self) -> None:
        self.operators.kill()
        for worker in self.workers:
            worker.channel.close()
            worker._theirs.close()
        for channel in self.theirs:
            channel.close()
        for descriptor in self._pipes:
            os.close(descriptor)


@pytest.fixture
def attachment() -> Noting:
    return Noting()


@pytest.fixture
def fronts(attachment: Noting) -> Iterator[Fronts]:
    fronts = Fronts(attachment)
    yield fronts
    fronts.close()


def test_the_front_process_knows_the_ready_workers_before_the_state(fronts: Fronts) -> None:
    worker, theirs = fronts.worker()
    late, _ = fronts.worker()
    late.ready = False
    fronts.step()
    assert fronts.told() == [Questions(1, worker.pid), READY]
    (message,) = theirs.receive(Questions)
    assert message == Questions(1, worker.pid)
    theirs.take_socket().close()
    late.ready = True
    fronts.step(READY._replace(workers=2))
    assert fronts.told() == [Questions(2, late.pid), READY._replace(workers=2)]
    fronts.step(READY._replace(workers=2))
    assert fronts.told() == []
    assert len(list(fronts.operators.descriptors())) == 2


def test_a_worker_that_has_just_ended_is_introduced_all_the_same(fronts: Fronts) -> None:
    worker, theirs = fronts.worker()
    theirs.close()
    fronts.step()
    assert fronts.told() == [Questions(1, worker.pid), READY]


def test_a_front_process_that_dies_is_replaced_after_a_pause_that_grows(fronts: Fronts) -> None:
    worker, _ = fronts.worker()
    fronts.step()
    for number, pause in enumerate((0.0, 0.1, 0.2), 1):
        assert fronts.told() == [Questions(1, worker.pid), READY]  # it has the same number
        fronts.theirs[-1].close()
        fronts.step()
        assert not fronts.operators.has_ended  # it has some time to end
        assert fronts.operators.next_step().at is not None
        fronts.ended = True
        fronts.step()
        assert fronts.events[-1] == events.FrontEnded(number, 0, pause)
        assert fronts.operators.has_ended == (pause > 0)
        fronts.operators._not_before = Deadline(0)
        fronts.step()
    fronts.operators._steady_at = Deadline(0)
    fronts.theirs[-1].close()
    fronts.step()
    fronts.operators._kill_at = Deadline(0)
    fronts.step()
    assert fronts.events[-1].pause == 0


def test_one_that_cannot_be_started_is_tried_again(fronts: Fronts) -> None:
    fronts.error = OSError("no process")
    fronts.step()
    fronts.operators.report()
    fronts.step()
    assert fronts.events[0] == events.WorkerFailed(
        "the process for operators cannot be started: OSError: no process", 0.1
    )
    assert list(fronts.operators.descriptors()) == []
    fronts.error = None
    fronts.operators._not_before = Deadline(0)
    fronts.step()
    assert fronts.told() == [READY]


def test_it_learns_the_state_that_its_orders_have_brought_about(fronts: Fronts) -> None:
    def state() -> State:
        return READY._replace(phase="suspended") if fronts.operators.is_suspended else READY

    fronts.step()
    assert fronts.told() == [READY]
    for command, phase in (("suspend", "suspended"), ("resume", "ready")):
        order = {"command": command, "arguments": {}, "key": "suspend"}
        fronts.theirs[-1].send(Tell("standing", json.dumps(order)))
        fronts.operators.step(fronts.workers, state)
        assert fronts.told() == [READY._replace(phase=phase)]


def test_its_orders_are_carried_out_and_those_that_stand_are_kept(fronts: Fronts) -> None:
    _, theirs = fronts.worker()
    fronts.step()
    theirs.receive(Questions)
    theirs.take_socket().close()
    front = fronts.theirs[-1]
    for command, arguments in (
        ("resize", {"count": 2}),
        ("standing", {"command": "log", "arguments": {"level": "debug"}}),
        ("standing", {"command": "suspend", "arguments": {}, "key": "suspend"}),
        ("standing", {"command": "log", "arguments": {"level": "info"}}),
    ):
        front.send(Tell(command, json.dumps(arguments)))
    fronts.step()
    assert fronts.orders == [("resize", {"count": 2})]
    suspend, log = ("suspend", "{}"), ("log", '{"level": "info"}')
    assert fronts.operators.standing() == [suspend, log]
    assert fronts.operators.is_suspended
    assert [tuple(it) for it in theirs.receive(Tell)][1:] == [suspend, log]
    fronts.workers[0].channel.close()
    fronts.operators.tell("reopen")  # to nobody


@pytest.mark.parametrize(
    "order",
    [
        Tell("dance", "{}"),
        Tell("stop", "[]"),
        Tell("stop", '{"speed": 1}'),
        Tell("resize", "{}"),
        Tell("standing", '{"command": "x"}'),
        Tell("stop", "no JSON"),
        Tell("stop", "[" * 15_000),
    ],
)
def test_a_front_process_that_gives_an_invalid_order_is_replaced(
    fronts: Fronts, order: Tell
) -> None:
    fronts.step()
    fronts.theirs[-1].send(order)
    fronts.step()
    assert fronts.orders == []
    fronts.operators._kill_at = Deadline(0)
    fronts.step()
    assert isinstance(fronts.events[-1], events.FrontEnded)


def test_what_cannot_be_sent_is_sent_later(fronts: Fronts) -> None:
    fronts.step()
    assert fronts.told() == [READY]
    for number in range(100_000):  # as if it were stopped
        before = fronts.operators._sent
        fronts.step(READY._replace(restarts=number + 1))
        if fronts.operators._sent == before:
            break
    last = READY._replace(restarts=number + 1)
    while fronts.told():
        pass
    fronts.step(last)
    assert fronts.told() == [last]


def test_a_report_is_written_by_the_front_process_that_there_is(fronts: Fronts) -> None:
    fronts.step()
    fronts.operators.report()
    fronts.step()
    assert fronts.told() == [READY, Tell("report", "{}")]


def test_without_endpoints_there_is_one_for_a_report_only(attachment: Noting) -> None:
    attachment.has_endpoints = False
    fronts = Fronts(attachment)
    fronts.step()
    assert fronts.operators.has_ended
    assert fronts.operators.next_step().at is None
    fronts.operators.report()
    fronts.step()
    assert fronts.told() == [READY, Tell("report", "{}")]
    fronts.ended = True
    fronts.step()
    assert (fronts.operators.has_ended, fronts.events) == (True, [])
    fronts.close()


def test_without_an_attachment_there_is_none() -> None:
    fronts = Fronts(None)
    fronts.operators.report()
    fronts.step()
    assert fronts.operators.has_ended
    assert not fronts.operators.is_suspended
    fronts.close()


def test_at_the_end_it_has_a_moment_to_end_and_is_not_replaced(fronts: Fronts) -> None:
    fronts.step()
    fronts.operators.end()
    fronts.operators.end()
    with pytest.raises(EOFError):
        while True:
            fronts.theirs[-1].receive(State)
    fronts.step()
    assert not fronts.operators.has_ended
    fronts.ended = True
    fronts.step()
    assert (fronts.operators.has_ended, fronts.events) == (True, [])


def test_a_program_whose_workers_are_suspended_is_not_ready() -> None:
    with netkit.create_server(netkit.EchoHandler).listen(0, "127.0.0.1") as server:
        workers = netkit.Workers(server, 2)
        assert workers._phase() == "starting"
        workers._operators._keep_standing("suspend", {"on": True}, "suspend")
        assert workers._phase() == "suspended"
        workers._launch._forget()  # what a forked front process does; nothing is shared yet
        assert server.socket.fileno() < 0
