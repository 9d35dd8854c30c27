"""Logs handlers that are stuck: that neither read nor write, and are in no read or write.

One thread looks at all connections, four times in the period that counts as stuck. Nothing is noted
for each read and write: a connection that has not moved between two looks, and that was in a read
or a write at neither, is stuck since the first of them. So a handler is found to be stuck at most a
quarter of the period too late. Nothing of this runs while it is off.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ..core import events
from ..core.kinds import check_seconds
from ..core.record import NamedTuple
from ..net import sockopts
from ..net.bare import Bare
from ..net.connection import Connection
from ..net.tcpinfo import unread
from ..server.threads import join
from .stacks import NOWHERE, stacks_of
from .states import state_of

LOOKS = 4  # in the period
_SHORTEST = 0.02  # between two looks (seconds)

Progress = tuple[int, int]  # how many bytes a handler has read and written


class Mark(NamedTuple):
    """What the last look has seen of one connection."""

    connection: Connection
    progress: Progress
    since: float  # on the monotonic clock
    is_reported: bool


class StuckWatch:
    """Looks for handlers that are stuck for `seconds`. Thread-safe.

    `live` returns the open connections. It is called in the thread of the watch.
    """

    def __init__(self, seconds: float, live: Callable[[], Iterable[Connection]]) -> None:
        """Nothing is watched until `start`. TypeError or ValueError for an invalid time."""
        self._seconds = check_seconds("stuck", seconds, zero=False)
        self._live = live
        self._marks: dict[int, Mark] = {}  # by identifier; only the thread uses it
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="netkit-stuck", daemon=True)

    def start(self) -> None:
        """Start the thread. RuntimeError if the system gives none."""
        self._thread.start()

    def close(self) -> None:
        """End the thread, and wait a moment for its end. Idempotent."""
        self._closed.set()
        join(self._thread, 1.0)

    def _run(self) -> None:
        while not self._closed.wait(max(_SHORTEST, self._seconds / LOOKS)):
            for event, server in self.look(time.monotonic()):
                events.emit(event, server)

    def look(self, now: float) -> list[tuple[events.Event, Any]]:
        """Look at all connections. Return the events, each with the server that it names."""
        before, self._marks = self._marks, {}
        stuck = []
        for connection in self._live():
            mark = _mark(connection, before.get(connection.id), now)
            if mark is None:
                continue
            if not mark.is_reported and now - mark.since >= self._seconds:
                stuck.append(mark)
                mark = mark._replace(is_reported=True)
            self._marks[connection.id] = mark
        after = self._marks
        over = (
            mark
            for number, mark in before.items()
            if mark.is_reported and not (number in after and after[number].is_reported)
        )
        return [*(_resumed(mark, now) for mark in over), *_stuck(stuck, now)]


def _mark(connection: Connection, before: Mark | None, now: float) -> Mark | None:
    """Return what is to be kept of a look; None if the handler reads, writes, or does not run."""
    progress = progress_of(connection)
    if progress is None:
        return None
    if before is not None and before.progress == progress:
        return before
    is_new = before is None and not any(progress)
    return Mark(connection, progress, connection.opened_at if is_new else now, False)


def progress_of(connection: Connection) -> Progress | None:
    """Return how many bytes a handler has read and written; None while it does either.

    Of a handler that uses the bare socket, only the kernel knows them (Linux, TCP): it counts as
    reading unless received bytes wait for it. None also before the handler is called, and after it
    has returned.
    """
    link = connection._link
    with link.lock:  # so that the descriptor is not closed meanwhile
        if connection.began_at is None or state_of(connection) not in ("serving", "killed"):
            return None
        if not isinstance(link.wire, Bare):
            is_busy = link.waiting or link.writing
            return None if is_busy else (connection.bytes_read, connection.bytes_written)
        with link.wire.reached() as sock:
            waiting, carried = unread(sock), link.wire.traffic()
            if not waiting or carried is None or not sockopts.writable(sock):
                return None
    return carried.received - waiting, carried.sent


def _stuck(marks: list[Mark], now: float) -> Iterator[tuple[events.Event, Any]]:
    stacks = stacks_of(mark.connection.thread for mark in marks) if marks else {}
    for connection, _, since, _ in marks:
        stack = stacks.get(connection.thread, NOWHERE)
        ends = (
            connection.id,
            connection.peer,
            now - since,
            tuple(line.text() for line in stack.lines),
        )
        yield events.HandlerStuck(*ends, connection.local), connection.server


def _resumed(mark: Mark, now: float) -> tuple[events.Event, Any]:
    connection = mark.connection
    ends = connection.id, connection.peer, now - mark.since, connection.local
    return events.HandlerResumed(*ends), connection.server
