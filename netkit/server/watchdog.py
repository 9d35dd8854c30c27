"""Ends connections that have lasted too long, whatever their threads do.

Unlike the limits of a single wait (`netkit.net.timeouts`), this one also counts while a handler
computes or waits for something else, and for handlers that read the socket themselves. So a server
that has the limit has a thread for it, which sleeps until the first connection is due.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from ..core import events
from ..net.connection import Connection
from ..net.explain import timed_out
from .threads import join

# How long a handler may still write once it has been interrupted (seconds); then it is cut.
LAST_WORD_SECONDS = 1.0


class Lifetimes:
    """`live`: the connections that there are, the oldest first. Thread-safe."""

    def __init__(self, live: Callable[[], Iterable[Connection]]) -> None:
        self._live = live
        # Guards what follows; notified when the thread has something to look at. Re-entrant, since
        # a signal handler may stop the server from within. Nothing is ended under it.
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        # The lifetimes of all connections: one, unless the option has changed.
        self._lifetimes: frozenset[float] = frozenset()
        self._due: float | None = None  # when it looks again, on the monotonic clock
        self._has_come = False  # a connection has, while the thread looked
        self._told: dict[int, int] = {}  # the thread's own: how often, by the connection's id
        self._closed = False

    def watch(self, opened_at: float, lifetime: float) -> None:
        """There is one more connection, with this `Connection.lifetime`.

        To be called after it has been added to those that live. If no thread can be started for
        it, the next call tries again: the client's own thread meets the same shortage, which is
        reported there.
        """
        with self._changed:
            due = self._due
            if due is not None and due <= opened_at + lifetime and lifetime in self._lifetimes:
                return  # it looks in time
            self._lifetimes |= {lifetime}
            self._has_come = True
            self._changed.notify_all()
            if self._thread is not None or self._closed:
                return
            # A daemon: it must not keep the interpreter if the server is never closed.
            self._thread = thread = threading.Thread(
                target=self._run, name="netkit-lifetimes", daemon=True
            )
        try:
            thread.start()
        except BaseException as error:
            if thread.ident is None:  # not even a Ctrl+C while waiting for a thread that runs
                self._thread = None
            if not isinstance(error, RuntimeError):
                raise

    def close(self, timeout: float | None = None) -> None:
        """End the thread, and wait for it at most so many seconds; idempotent.

        It may take longer to end, if an observer of what it has ended is slow.
        """
        with self._changed:
            self._closed = True
            thread = self._thread
            self._changed.notify_all()
        if thread is not None:
            join(thread, timeout)

    def runs_here(self) -> bool:
        """Whether the calling thread is its own."""
        return self._thread is threading.current_thread()

    def _run(self) -> None:
        while not self._closed:
            with self._changed:
                self._due = None  # a connection that comes meanwhile wakes it
                self._has_come = False
                lifetimes = self._lifetimes
            over, due, seen = self._look(lifetimes)
            _end(over)
            with self._changed:
                if not (self._has_come or self._closed):
                    self._lifetimes, self._due = seen, due
                    self._changed.wait(None if due is None else max(0.0, due - time.monotonic()))

    def _look(
        self, lifetimes: frozenset[float]
    ) -> tuple[list[_Over], float | None, frozenset[float]]:
        """The connections whose time is over; the next one's moment, if any; all lifetimes."""
        told, self._told = self._told, {}
        now = time.monotonic()
        over: list[_Over] = []
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
                over.append((connection, lifetime, times == 1))
                times += 1
                moment += LAST_WORD_SECONDS
            if times < 2:
                due.append(moment)
            if times:
                self._told[connection.id] = times
                continue
            young.add(lifetime)
            if young >= lifetimes:
                return over, min(due), lifetimes
        return over, min(due, default=None), frozenset(seen)


_Over = tuple[Connection, float, bool]  # one whose time is over, its lifetime, and whether for good


def _end(over: list[_Over]) -> None:
    """End all of them, and emit the events only then: an observer may be slow."""
    told = []
    for connection, lifetime, hard in over:
        reason = timed_out("lifetime", lifetime, connection.peer)
        if connection.interrupt(reason, hard) and connection.opaque and not hard:
            number, peer, local = connection.id, connection.peer, connection.local
            told.append((events.ClientFailed(number, peer, reason, local), connection.server))
    for event, server in told:
        events.emit(event, server)
