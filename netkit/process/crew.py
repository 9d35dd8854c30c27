"""Decides which workers there are to be: how many, of which code, and when one is replaced.

Rules:

1. A worker that ends without an order is replaced: at once if it has served for a while, else after
   a pause that doubles. If no worker has ever been ready, the crew gives up.
2. A reload starts the new workers first. Only when all of them are ready do the old ones stop
   accepting; they go on serving their clients. If a new one fails, the old ones stay.

The states of a reload:

| state    | meaning                              | ends when                               |
|----------|--------------------------------------|-----------------------------------------|
| NONE     | there is no reload                   | a reload is asked for: READING          |
| READING  | another thread reads files           | they have been read: STARTING           |
| STARTING | workers of the next generation start | all are ready, or one has failed: NONE  |

A reload that is asked for meanwhile begins at the end. It ends a STARTING that has lasted for
`Pace.steady`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

from ..core import events
from ..core.backoff import BackOff
from ..core.deadline import Deadline
from ..core.record import NamedTuple
from .channel import Stop
from .worker import Worker


class Pace(NamedTuple):
    """How fast workers that fail are replaced, and when that is given up."""

    steady: float = 5.0
    """Seconds after which a worker that has served is not one that failed to start."""
    first_pause: float = 0.1
    """Seconds before a worker is started in place of one that has failed; doubles."""
    longest_pause: float = 5.0
    failures: int = 8
    """So many rounds of workers may fail in a row if none has ever been ready."""


class Reload(Enum):
    """The state of a reload: see the table of this module."""

    NONE = "none"
    READING = "reading"
    STARTING = "starting"


class Crew:
    """The workers of one parent, and what is decided about them. For one thread.

    It starts no process, and reads no file; `start`, `leave` and `read` do that for it.
    """

    def __init__(
        self,
        count: int,
        start: Callable[[Worker], None],
        leave: Callable[[], Stop],
        read: Callable[[], None],
        emit: Callable[[events.Event], None],
        pace: Pace,
    ) -> None:
        """`start` starts a worker; what it raises counts as a failure of that worker.

        `leave` returns the order for workers that are not needed any more. `read` begins to read
        files for a reload, and has `files_are_read` called later.
        """
        self.workers: list[Worker] = []
        self.count = count
        self.stopping = False
        """Whether all of them are to end."""
        self.why_failed: str | None = None
        """Why the crew has given up; None if it has not. All workers are to be stopped then."""
        self.exit_status = 1
        """The exit status of a program whose crew has given up."""
        self.reload = Reload.NONE
        self._start, self._leave, self._read = start, leave, read
        self._emit, self._pace = emit, pace
        self._reload_again = False
        self._reload_patience = Deadline(None)
        self._generation = 0
        self._announced = 0  # the number of workers in the last event
        self.proven = False
        """Whether a worker has ever been ready."""
        self._round = 0  # the number of the last round: workers that are started together
        self._failed_round = 0  # the number of the last round that had a failure
        self._failures = 0  # how many rounds in a row had a failure
        self._back_off = BackOff(pace.first_pause, pace.longest_pause)
        self._not_before = Deadline(0)  # when the next round may begin

    def current(self) -> list[Worker]:
        """The workers of the present generation, without those that are leaving."""
        return [w for w in self.workers if w.generation == self._generation and not w.leaving]

    def descriptors(self) -> Iterator[Any]:
        """The descriptors, and objects with one, to wait for before `check`."""
        for worker in self.workers:
            yield worker.end
            if not worker.channel.closed:
                yield worker.channel

    def next_step(self) -> Deadline:
        """When `check` and `step` are due even if nothing happens."""
        due = self._not_before if self._missing() > 0 else Deadline(None)
        for worker in self.workers:
            due = due.earlier(worker.kill_at)
        return due

    def check(self) -> list[Worker]:
        """Note what has happened to the workers, and return those that have ended."""
        ended = [worker for worker in self.workers if worker.check()]
        self.proven = self.proven or any(worker.ready for worker in self.workers)
        return ended

    def step(self) -> None:
        """Do what is due. All workers that have ended must have been passed to `lost`."""
        self._end_reload()
        missing = self._missing()
        if missing > 0 and self._not_before.expired():
            self._round += 1
            while missing and self._add():
                missing -= 1

    # Workers that come and go

    def _missing(self) -> int:
        """How many workers to start. The first worker of all is alone until it is ready."""
        if self.stopping or self.why_failed is not None:
            return 0
        wanted = self.count if self._generation or self.proven else 1
        return wanted - len(self.current())

    def _add(self) -> bool:
        """Start a worker. Return whether that succeeded."""
        taken = {worker.index for worker in self.workers}
        index = min(set(range(len(taken) + 1)) - taken)
        worker = Worker(self._generation, index, self._round)
        self.workers.append(worker)  # first, so that it is killed if a signal handler raises
        try:
            self._start(worker)
            return True
        except Exception as error:
            worker.kill()
            worker.check()
            self.workers.remove(worker)
            # Neither the machine nor a forkserver has failed: the server cannot be pickled.
            hopeless = not isinstance(error, (OSError, EOFError))
            self._failed(f"{type(error).__name__}: {error}", worker, hopeless)
            return False

    def lost(self, worker: Worker) -> None:
        self.workers.remove(worker)
        if not worker.leaving:
            reason = worker.failure or f"worker {worker.pid} ended with status {worker.status}"
            killed = (worker.status or 0) < 0
            self._failed(reason, worker, hopeless=not (killed or worker.ready))

    def _failed(self, reason: str, worker: Worker, hopeless: bool) -> None:
        """Note a worker that could not be started (it has no `pid`), or ended without an order."""
        new = worker.generation == self._generation
        if self.reload is Reload.STARTING and (new or not any(w.ready for w in self.workers)):
            self._abandon_reload(reason)
            return
        pause = self._pause_after(worker)
        self._not_before = Deadline(pause)
        if not self.proven and (hopeless or self._failures >= self._pace.failures):
            # Once one has served, a client that can crash it must not end the server.
            self.why_failed = reason
            self.exit_status = worker.status or 1 if worker.failure else 1
        elif worker.failure is not None or not worker.pid:
            self._emit(events.WorkerFailed(reason, pause))
        else:
            self._emit(events.WorkerEnded(worker.pid, worker.status, pause))

    def _pause_after(self, worker: Worker) -> float:
        """Return the seconds until the next round, after the failure of `worker`."""
        if worker.ready and time.monotonic() - worker.started_at >= self._pace.steady:
            self._failures = 0
            self._back_off.succeeded()
            return 0.0
        if worker.round > self._failed_round:  # all that fail together count once
            self._failed_round = self._round
            self._failures += 1
            self._back_off.failed()
        return self._back_off.pause if self._failures > 1 or not worker.pid else 0.0

    def resize(self, count: int) -> None:
        """Have `count` workers from now on; those above it finish with their clients."""
        self.count = count
        for worker in self.current()[count:]:
            worker.tell(self._leave())

    # Reloads

    def begin_reload(self) -> None:
        """Replace all workers by new ones; after the present reload if there is one."""
        if self.stopping:
            return
        if self.reload is Reload.NONE:
            self.reload, self._reload_again = Reload.READING, False
            self._read()
            return
        self._reload_again = True  # the present one may have read files and code too early
        if self.reload is Reload.STARTING and self._reload_patience.expired():
            self._abandon_reload("its workers are not ready yet, and it is asked for anew")

    def files_are_read(self) -> None:
        """Go on with the reload: start the next generation."""
        if not self.stopping:
            self.reload = Reload.STARTING
            self._reload_patience = Deadline(self._pace.steady)
            self._generation += 1

    def _end_reload(self) -> None:
        """Once all of a generation are ready, announce that, and have older ones leave."""
        current = self.current()
        if self.stopping or len(current) < self.count or not all(w.ready for w in current):
            return
        if self.reload is Reload.STARTING:
            for worker in self.workers:
                if worker.generation < self._generation and not worker.leaving:
                    worker.tell(self._leave())
            self._emit(events.Reloaded(len(current)))
            self._begin_next_reload()
        elif self._announced != len(current):
            self._emit(events.WorkersReady(len(current)))
        self._announced = len(current)

    def _abandon_reload(self, reason: str) -> None:
        for worker in self.current():
            worker.tell(self._leave())
        remaining = [worker.generation for worker in self.workers if not worker.leaving]
        self._generation = max(remaining, default=0)
        self.resize(self.count)  # which may have changed meanwhile
        self._emit(events.ReloadFailed(reason))
        self._begin_next_reload()

    def _begin_next_reload(self) -> None:
        self.reload = Reload.NONE
        if self._reload_again:
            self.begin_reload()

    # Stopping

    def stop(self, order: Stop) -> None:
        """Have all workers stop; or stop sooner, if they have been told."""
        self.stopping = True
        for worker in self.workers:
            worker.tell(order)
