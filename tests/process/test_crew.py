"""What is decided about workers, without a process: how many, of which code, and when."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from netkit.core import events
from netkit.core.deadline import Deadline
from netkit.process.channel import Stop, channel_pair
from netkit.process.crew import Crew, Pace, Reload
from netkit.process.worker import Worker

PACE = Pace(steady=5.0, first_pause=0.1, longest_pause=0.8, failures=3)


class Made(Crew):
    """A crew of workers without a process, and what it has done."""

    def __init__(self, count: int, pace: Pace = PACE) -> None:
        super().__init__(count, self.start, lambda: Stop(7, 7), self.read, self.note, pace)
        self.pids = itertools.count(1)
        self.made: list[Worker] = []
        self.events: list[Any] = []
        self.reads = 0
        self.error: Exception | None = None

    def start(self, worker: Worker) -> None:
        self.made.append(worker)
        worker.channel, worker._theirs = channel_pair()
        if self.error is not None:
            raise self.error
        worker.pid = next(self.pids)

    def read(self) -> None:
        self.reads += 1

    def note(self, event: Any) -> None:
        self.events.append(event)

    def go_on(self) -> list[Worker]:
        """Have all present workers be ready, step by step, and return them."""
        self.step()
        while any(not worker.ready for worker in self.current()):
            for worker in self.current():
                worker.ready = True
            self.proven = True
            self.step()
        return self.current()

    def end(self, worker: Worker, status: int = -9) -> Any:
        """`worker` ends without an order; the event of that, if it is one."""
        self.events.clear()
        worker.status = status
        self.lost(worker)
        return self.events[-1] if self.events else None

    def retry(self) -> None:
        """The next round, as if its pause were over."""
        self._not_before = Deadline(0)
        self.step()


@pytest.fixture
def crews() -> Iterator[list[Made]]:
    crews: list[Made] = []
    yield crews
    for crew in crews:
        for worker in crew.made:
            worker.check()
            worker.channel.close()
            worker._theirs.close()


@pytest.fixture
def crew(crews: list[Made]) -> Made:
    crews.append(Made(2))
    return crews[0]


def ids(workers: list[Worker]) -> list[int]:
    return [worker.pid for worker in workers]


def leaving(crew: Made) -> list[int]:
    return [worker.pid for worker in crew.workers if worker.leaving]


def test_the_first_worker_is_alone_until_it_is_ready(crew: Made) -> None:
    crew.step()
    assert ids(crew.current()) == [1]
    crew.step()
    assert ids(crew.current()) == [1]
    assert ids(crew.go_on()) == [1, 2]
    assert [worker.index for worker in crew.workers] == [0, 1]
    assert crew.events == [events.WorkersReady(2)]


def test_more_workers_are_started_and_the_newest_of_too_many_leave(crew: Made) -> None:
    crew.go_on()
    crew.resize(4)
    assert ids(crew.go_on()) == [1, 2, 3, 4]
    crew.resize(1)
    assert leaving(crew) == [2, 3, 4]
    assert {worker.told for worker in crew.workers[1:]} == {Stop(7, 7)}
    crew.step()
    assert crew.events[-2:] == [events.WorkersReady(4), events.WorkersReady(1)]
    assert crew.end(crew.workers[1], 0) is None
    assert ids(crew.go_on()) == [1]


def test_the_number_of_a_worker_is_the_least_that_is_free(crew: Made) -> None:
    crew.resize(3)
    _, second, _ = crew.go_on()
    crew.end(second)
    assert [worker.index for worker in crew.go_on()] == [0, 2, 1]


def test_a_worker_that_has_served_for_a_while_is_replaced_at_once(crew: Made) -> None:
    for _ in range(5):
        worker = crew.go_on()[0]
        worker.started_at -= 6
        assert crew.end(worker) == events.WorkerEnded(worker.pid, -9, 0.0)


def test_workers_that_end_soon_are_replaced_after_longer_and_longer_pauses(crew: Made) -> None:
    pauses = []
    for _ in range(6):
        crew.retry()
        newest = crew.go_on()[-1]
        pauses.append(crew.end(newest).pause)
        assert (crew.next_step().remaining() or 0.0) <= pauses[-1]
        crew.step()
        assert len(crew.current()) == (1 if pauses[-1] else 2)
    assert pauses == [0.0, 0.2, 0.4, 0.8, 0.8, 0.8]


def test_workers_that_fail_together_count_once(crew: Made) -> None:
    one, two = crew.go_on()
    assert [crew.end(one).pause, crew.end(two).pause] == [0.0, 0.0]


def test_a_process_that_cannot_be_started_is_tried_again_and_leaves_nothing(crew: Made) -> None:
    crew.go_on()
    crew.end(crew.workers[0])
    crew.error = BlockingIOError("no more processes")
    crew.events.clear()
    for _ in range(20):
        crew.retry()
    assert len(crew.workers) == 1
    assert all(worker.check() for worker in crew.made[2:])
    assert crew.events[0] == events.WorkerFailed("BlockingIOError: no more processes", 0.2)
    assert crew.events[-1].pause == 0.8
    assert crew.why_failed is None
    crew.error = None
    crew.retry()
    assert len(crew.go_on()) == 2


@pytest.mark.parametrize("error", [BlockingIOError("no memory"), EOFError("forkserver ended")])
def test_a_machine_that_never_starts_a_process_is_given_up(error: Exception, crew: Made) -> None:
    crew.error = error
    for _ in range(5):
        crew.retry()
    assert [event.pause for event in crew.events] == [0.1, 0.2]
    assert crew.why_failed == f"{type(error).__name__}: {error}"
    assert len(crew.made) == 3


def test_what_cannot_be_pickled_is_given_up_at_once(crew: Made) -> None:
    crew.error = TypeError("cannot pickle")
    crew.step()
    assert (crew.why_failed, crew.events) == ("TypeError: cannot pickle", [])
    crew.retry()
    assert len(crew.made) == 1


@pytest.mark.parametrize(
    ("failure", "status", "reason"),
    [
        (None, 3, "worker 1 ended with status 3"),
        ("no such module", 1, "no such module"),
        (None, -9, None),  # another process has killed it
    ],
)
def test_a_first_worker_that_cannot_serve_is_the_end(
    failure: str | None, status: int, reason: str | None, crew: Made
) -> None:
    crew.step()
    crew.workers[0].failure = failure
    crew.end(crew.workers[0], status)
    assert crew.why_failed == reason


def test_once_a_worker_has_been_ready_no_number_of_failures_is_the_end(crew: Made) -> None:
    crew.go_on()
    for _ in range(1200):
        crew.retry()
        crew.end(crew.current()[0], 3)
    assert crew.why_failed is None


def test_a_worker_that_is_ready_proves_that_workers_can_serve(crew: Made) -> None:
    crew.step()
    crew.workers[0].ready = True
    (ended,) = crew.check()  # it has no process
    crew.end(ended, 3)
    assert crew.why_failed is None


# Reloads


def reloading(crew: Made) -> None:
    """All workers are ready, and those of the next generation have been started."""
    crew.go_on()
    crew.begin_reload()
    assert crew.reload is Reload.READING
    crew.step()
    assert len(crew.workers) == 2
    crew.files_are_read()
    crew.step()
    assert ids(crew.current()) == [3, 4]


def test_the_old_workers_leave_once_all_new_ones_are_ready(crew: Made) -> None:
    reloading(crew)
    crew.current()[0].ready = True
    crew.step()
    assert leaving(crew) == []
    crew.go_on()
    assert leaving(crew) == [1, 2]
    assert crew.events[-1] == events.Reloaded(2)
    assert (crew.reload, crew.reads) == (Reload.NONE, 1)


def test_a_new_worker_that_fails_leaves_the_old_ones_as_they_are(crew: Made) -> None:
    reloading(crew)
    crew.workers[2].failure = "no module"
    assert crew.end(crew.workers[2], 1) == events.ReloadFailed("no module")
    assert leaving(crew) == [4]
    assert ids(crew.go_on()) == [1, 2]


def test_workers_that_went_unneeded_during_a_reload_that_fails_leave_after_it(crew: Made) -> None:
    reloading(crew)
    crew.resize(1)
    assert leaving(crew) == [4]
    crew.end(crew.workers[2], 1)
    assert leaving(crew) == [2, 4]


@pytest.mark.parametrize("fails", [False, True])
def test_a_reload_that_is_asked_for_during_another_one_begins_after_it(
    fails: bool, crew: Made
) -> None:
    reloading(crew)
    crew.begin_reload()
    assert crew.reads == 1
    if fails:
        crew.end(crew.workers[2], 1)
    else:
        crew.go_on()
    assert (crew.reload, crew.reads) == (Reload.READING, 2)
    crew.files_are_read()
    crew.go_on()
    assert crew.events[-1] == events.Reloaded(2)
    assert crew.reload is Reload.NONE


def test_a_reload_that_is_asked_for_while_files_are_read_begins_after_it(crew: Made) -> None:
    crew.go_on()
    for _ in range(3):
        crew.begin_reload()
    crew.files_are_read()
    crew.go_on()
    assert (crew.reload, crew.reads) == (Reload.READING, 2)


def test_a_reload_that_hangs_is_given_up_when_another_is_asked_for(crews: list[Made]) -> None:
    crew = Made(2, PACE._replace(steady=0.0))
    crews.append(crew)
    reloading(crew)
    crew.begin_reload()
    assert "asked for anew" in crew.events[-1].reason
    assert leaving(crew) == [3, 4]
    assert crew.reload is Reload.READING


def test_a_reload_that_hangs_is_given_up_when_no_old_worker_serves_any_more(crew: Made) -> None:
    reloading(crew)
    one, two, *_ = crew.workers
    assert crew.end(one) == events.WorkerEnded(1, -9, 0.0)
    assert crew.end(two) == events.ReloadFailed("worker 2 ended with status -9")
    crew.step()
    assert [worker.generation for worker in crew.current()] == [0, 0]


def test_a_stop_ends_all_workers_and_starts_no_more(crew: Made) -> None:
    reloading(crew)
    crew.stop(Stop(3))
    assert {worker.told for worker in crew.workers} == {Stop(3)}
    crew.begin_reload()
    crew.files_are_read()
    crew.lost(crew.workers[0])
    crew.step()
    assert (len(crew.made), crew.reads) == (4, 1)
    assert crew.next_step().remaining() is not None  # when they are killed
