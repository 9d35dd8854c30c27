"""What has become of a program with workers: whether it is ready, and what has been replaced."""

from __future__ import annotations

from collections.abc import Callable

from ..core import events
from ..server.server import Server
from .channel import State
from .crew import Crew
from .reloading import Counts


class Progress:
    """Sees the events of a crew, and makes the events of the program. For one thread."""

    def __init__(self, server: Server, emit: Callable[[events.Event], None]) -> None:
        self._server = server
        self._emit = emit
        self._counts = Counts()
        self._restarts = 0
        self._was_ready = False
        self.failures: list[str] = []
        """What the present reload could not read. The thread that reloads fills it."""

    def note(self, event: events.Event) -> None:
        """Emit an event of the crew, and what follows from it."""
        self._emit(event)
        if isinstance(event, events.WorkersReady) and not self._was_ready:
            self._was_ready = True
            self._emit(events.Ready())
        elif isinstance(event, (events.WorkerEnded, events.WorkerFailed)):
            self._restarts += 1
        elif isinstance(event, events.Reloaded):
            self._counts.add("; ".join(self.failures), self._server)
        elif isinstance(event, events.ReloadFailed):
            self._counts.add(event.reason, self._server)

    def begin_reload(self) -> None:
        """Emit that a reload begins."""
        self.failures = []
        self._emit(events.ReloadBegun())

    def is_ready(self, crew: Crew) -> bool:
        """Whether clients are accepted, and all workers have been ready at the same time."""
        accepts = any(worker.ready and not worker.leaving for worker in crew.workers)
        return self._was_ready and accepts

    def state(self, crew: Crew, phase: str) -> State:
        """Return the present state, for operators."""
        counts = self._counts
        return State(phase, crew.count, self._restarts, counts["ok"], counts["failed"])
