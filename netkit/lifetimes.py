"""Ends connections that have lasted too long, whatever their threads are at.

Unlike the limits of a single wait (`netkit.timing`), this one also counts while a handler computes
or waits for something else, and for handlers that read the socket themselves. So a thread watches:
one for a server that has the limit. It sleeps until the first connection is due.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from . import events
from .connection import Connection
from .timing import timed_out

# What a handler gets for a last word, once it has been told (seconds); then its client is cut off.
LAST_WORD_SECONDS = 1.0


class Lifetimes:
    """`live`: the connections that there are, the oldest first. Thread-safe."""

    def __init__(self, live: Callable[[], Iterable[Connection]]) -> None:
        self._live = live
        # Guards what follows; notified when the thread has something to look at. Re-entrant, since
        # a signal handler may stop the server from within.
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        # The lifetimes that there are. All are the same, unless the option has changed.
        self._lifetimes: set[float] = set()
        self._due: float | None = None  # when it looks again, on the monotonic clock
        self._told: dict[int, int] = {}  # how often, by the connection's id
        self._closed = False

    def watch(self, opened_at: float, lifetime: float) -> None:
        """There is one more connection, with this `Connection.lifetime`.

        To be called after it has been added to those that live.
        """
        due = self._due
        if due is not None and due <= opened_at + lifetime and lifetime in self._lifetimes:
            return  # it looks in time
        with self._changed:
            self._lifetimes.add(lifetime)
            if self._thread is None and not self._closed:
                # A daemon: it must not keep the interpreter if the server is never closed.
                self._thread = threading.Thread(
                    target=self._run, name="netkit-lifetimes", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()

    def close(self) -> None:
        """End the thread; idempotent."""
        with self._changed:
            self._closed = True
            thread = self._thread
            self._changed.notify_all()
        if thread not in (None, threading.current_thread()):
            thread.join()

    def _run(self) -> None:
        with self._changed:
            while not self._closed:
                self._due = None  # who comes while it looks waits to tell it
                self._due = self._end_the_old()
                left = None if self._due is None else self._due - time.monotonic()
                self._changed.wait(left and max(0.0, left))

    def _end_the_old(self) -> float | None:
        """Tell those whose time is over. When the next one is; None: there is nobody."""
        told, self._told = self._told, {}
        now = time.monotonic()
        due = []
        seen: set[float] = set()
        young: set[float] = set()  # lifetimes of which one is not over: nor are those behind it
        for connection in self._live():
            lifetime = connection.lifetime
            if lifetime is None or lifetime in young:
                continue
            seen.add(lifetime)
            times = told.get(connection.id, 0)
            moment = connection.opened_at + lifetime + times * LAST_WORD_SECONDS
            if times < 2 and moment <= now:
                self._end(connection, lifetime, hard=times == 1)
                times += 1
                moment += LAST_WORD_SECONDS
            if times < 2:
                due.append(moment)
            if times:
                self._told[connection.id] = times
                continue
            young.add(lifetime)
            if young >= self._lifetimes:
                return min(due)
        self._lifetimes = seen
        return min(due, default=None)

    def _end(self, connection: Connection, seconds: float, hard: bool) -> None:
        reason = timed_out("lifetime", seconds, connection.peer)
        if connection.interrupt(reason, hard) and connection.opaque and not hard:
            events.emit(events.ClientFailed(connection.id, connection.peer, reason))
