"""How a parent has its workers stop: at once, or after a delay, during which they go on serving."""

from __future__ import annotations

import operator
from collections.abc import Callable

from ..core import events
from ..core.deadline import Deadline
from ..server.registry import StopReport
from ..server.server import Server
from .channel import Stop
from .crew import Crew
from .worker import Worker


class Ending:
    """The stop of a program with workers. For one thread."""

    def __init__(self, server: Server, crew: Crew, emit: Callable[[events.Event], None]) -> None:
        self._server, self._crew, self._emit = server, crew, emit
        self._begins = Deadline(None)  # the end of a delay
        self._later: tuple[float | None, float] = None, 0.0  # the stop that comes then
        self._delay = 0.0
        self.report = StopReport(0, 0)
        """The sum of the reports of the workers that have ended since the stop began."""

    @property
    def is_announced(self) -> bool:
        """Whether the program stops, or is to stop after a delay."""
        return self._crew.stopping or self._is_delayed

    @property
    def _is_delayed(self) -> bool:
        return self._begins.at is not None and not self._crew.stopping

    def seconds(self) -> float:
        """How long the stop may take until the last clients are cut."""
        timeout, patience = self._later
        if timeout is None:
            timeout = self._server._options.drain_timeout
        return timeout + patience + (self._delay if self._is_delayed else 0.0)

    def due(self) -> Deadline:
        """When `step` is due even if nothing happens."""
        return Deadline(None) if self._crew.stopping else self._begins

    def step(self) -> None:
        """Begin a stop whose delay has passed, or because the crew has given up."""
        if self._crew.why_failed is not None or (self._is_delayed and self._begins.expired()):
            self.stop(*self._later)

    def later(self, delay: float, timeout: float | None = None, patience: float = 0.0) -> None:
        """Stop after `delay` seconds, or as soon as an earlier delay has passed."""
        if not delay or self._crew.stopping:
            self.stop(timeout, patience)
            return
        if not self._is_delayed:
            self._emit(events.StopDelayed(delay))
        self._begins = self._begins.earlier(Deadline(delay))
        self._later, self._delay = (timeout, patience), delay

    def stop(self, timeout: float | None = None, patience: float = 0.0) -> None:
        """Have all workers stop now. A further call may bring their deadline forward."""
        crew = self._crew
        seconds = self._server._options.drain_timeout if timeout is None else timeout
        self._later = seconds, patience
        begins = not crew.stopping
        crew.stopping = True  # first: `server_close` asks for it
        if begins:
            self._server.server_close()  # the parent's copies of the listeners
            if crew.workers:
                self._emit(events.WorkersStopping(len(crew.workers), seconds))
        crew.stop(Stop(seconds, patience))

    def lost(self, worker: Worker) -> None:
        """Note that a worker has ended."""
        if self._is_delayed and not worker.status and not worker.leaving:
            self.stop(*self._later)  # the same signal came to the worker, whose delay has passed
        if self._crew.stopping:  # else its clients had left before the stop that is reported
            self.report = StopReport(*map(operator.add, self.report, worker.report))
        self._crew.lost(worker)
