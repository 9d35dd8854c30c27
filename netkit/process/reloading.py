"""Reloads the servers of this process after SIGHUP, and counts how often that has succeeded."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence

from ..core import events
from ..server.server import Server
from .errand import Errand

GRACE = 1.0  # seconds that a reload may go on after the server has stopped


class Counts(dict[str, int]):
    """How many reloads have been ``"ok"``, and how many have ``"failed"``. For one thread."""

    def __init__(self) -> None:
        super().__init__(ok=0, failed=0)

    def add(self, error: str, server: Server) -> None:
        """Count a reload, and emit that it has ended. `error` is empty if all was reloaded."""
        self["failed" if error else "ok"] += 1
        events.emit(events.ReloadEnded(error), server)


class Reloads:
    """Reloads servers in a thread of its own, one reload at a time. Thread-safe."""

    def __init__(self, servers: Sequence[Server], reopen: Callable[[], bool] | None = None) -> None:
        """`reopen` is called before each reload, and returns whether it has reopened a file."""
        self._servers = servers
        self._reopen = reopen
        self.counts = Counts()
        self._errand = Errand("reload", self._run, servers[0])
        self.ask, self.join = self._errand.ask, self._errand.join

    def _run(self) -> None:
        first = self._servers[0]
        events.emit(events.ReloadBegun(), first)
        with failures() as failed:
            reopened = self._reopen is not None and self._reopen()
            able = [server for server in self._servers if server.can_reload]
            for server in able:
                reload(server)
            if not (able or reopened):
                events.emit(events.NothingToReload(), first)
        self.counts.add("; ".join(failed), first)


def reload(server: Server) -> None:
    """Call `Server.reload`, which a program may override. What it raises is an event."""
    try:
        server.reload()
    except BaseException as error:  # the original logs all that goes wrong
        events.emit(events.HookFailed("reload", error), server)


@contextlib.contextmanager
def failures() -> Iterator[list[str]]:
    """Yield a list, which gets the messages of what fails to reload in this thread."""
    failed: list[str] = []
    thread = threading.get_ident()

    def note(event: events.Event) -> None:
        of_reload = isinstance(event, (events.SettingsKept, events.HookFailed))
        if of_reload and threading.get_ident() == thread:
            failed.append(event.message())

    end = events.subscribe(note, lambda level: False)
    try:
        yield failed
    finally:
        end()
