"""How a parent has its workers stop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from support import echo

import netkit
from netkit.core import events
from netkit.core.deadline import Deadline
from netkit.process.channel import State, Stop
from netkit.process.crew import Crew, Pace
from netkit.process.ending import Ending
from netkit.process.progress import Progress
from netkit.process.worker import Worker
from netkit.server.registry import StopReport


class Ended:
    """An `Ending` of workers that are no processes."""

    def __init__(self, server: netkit.Server) -> None:
        self.events: list[Any] = []
        self.progress = Progress(server, self.events.append)
        self.crew = Crew(
            2, lambda worker: None, lambda: Stop(1), lambda: None, self.progress.note, Pace()
        )
        self.ending = Ending(server, self.crew, self.events.append)
        self.orders: list[Any] = []

    def worker(self, status: int | None = 0) -> Worker:
        worker = Worker(0, 0)
        worker.status, worker.ready, worker.pid = status, True, 7
        worker.report = StopReport(2, 1)
        worker.tell = self.tell(worker)  # type: ignore[method-assign]
        self.crew.workers.append(worker)
        return worker

    def tell(self, worker: Worker) -> Any:
        def note(order: Stop) -> None:
            worker.told = order
            self.orders.append(order)

        return note


@pytest.fixture
def ended() -> Iterator[Ended]:
    with netkit.create_server(echo, drain_timeout=3).listen(0, "127.0.0.1") as server:
        ended = Ended(server)
        server._drain.delegate(ended.crew)  # type: ignore[arg-type]
        yield ended
        server._drain.end_delegation(StopReport(0, 0))


def test_a_delay_passes_before_the_workers_are_told(ended: Ended) -> None:
    worker, ending = ended.worker(), ended.ending
    assert not ending.is_announced
    ending.later(60, None, 1)
    ending.later(90, 5)
    assert ended.events == [events.StopDelayed(60)]
    assert ending.is_announced
    assert 0 < (ending.due().remaining() or 0) <= 60
    assert ending.seconds() == 95
    ending.step()
    assert ended.orders == []
    ending._begins = Deadline(0)
    ending.step()
    assert (ended.orders, worker.told) == ([Stop(5, 0)], Stop(5, 0))
    assert ended.events[1:] == [events.WorkersStopping(1, 5)]
    assert (ending.due().at, ending.seconds()) == (None, 5)
    ending.later(9)  # now
    assert ended.orders == [Stop(5, 0), Stop(3, 0)]


def test_a_worker_that_ends_by_its_own_delay_ends_that_of_all(ended: Ended) -> None:
    worker, other = ended.worker(), ended.worker()
    ended.ending.later(60)
    assert ended.ending.seconds() == 63
    ended.ending.lost(worker)
    assert other.told == Stop(3, 0)
    assert ended.ending.report == (2, 1)
    assert not [it for it in ended.events if isinstance(it, events.WorkerEnded)]


def test_a_worker_that_is_killed_in_a_delay_is_replaced(ended: Ended) -> None:
    ended.ending.later(60)
    ended.ending.lost(ended.worker(status=-9))
    assert isinstance(ended.events[-1], events.WorkerEnded)
    assert ended.ending.report == (0, 0)
    assert ended.progress.state(ended.crew, "stopping") == State("stopping", 2, 1, 0, 0)


def test_a_crew_that_has_given_up_is_stopped(ended: Ended) -> None:
    ended.crew.why_failed = "no"
    ended.ending.step()
    assert ended.crew.stopping


def test_the_program_is_ready_once_all_workers_have_been(ended: Ended) -> None:
    progress, crew = ended.progress, ended.crew
    assert not progress.is_ready(crew)
    worker = ended.worker()
    assert not progress.is_ready(crew)
    for _ in range(2):
        progress.note(events.WorkersReady(1))
    assert [type(it).__name__ for it in ended.events] == ["WorkersReady", "Ready", "WorkersReady"]
    assert progress.is_ready(crew)
    worker.told = Stop(1)
    assert not progress.is_ready(crew)


def test_a_reload_is_counted_with_what_it_could_not_read(ended: Ended) -> None:
    with_events: list[Any] = []
    end = netkit.subscribe(with_events.append)
    ended.progress.begin_reload()
    ended.progress.note(events.Reloaded(2))
    ended.progress.failures = ["TLS not reloaded"]
    ended.progress.note(events.Reloaded(2))
    ended.progress.note(events.ReloadFailed("SyntaxError"))
    end()
    assert ended.events[0] == events.ReloadBegun()
    assert with_events == [
        events.ReloadEnded(""),
        events.ReloadEnded("TLS not reloaded"),
        events.ReloadEnded("SyntaxError"),
    ]
    assert ended.progress.state(ended.crew, "ready") == State("ready", 2, 0, 1, 2)
