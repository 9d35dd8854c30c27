"""The open connections of a server, and the waits until they are closed.

A connection is added before its thread is started, and removed once, by the thread that has served
it. Between the two, any thread may ask all connections to finish, or cut them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

from ..core import events
from ..core.deadline import Deadline
from ..core.record import NamedTuple
from ..net.connection import Connection
from ..net.proxied import via_of
from .closed import closed_event

_NOW = Deadline(0)


class StopReport(NamedTuple):
    """How many clients of a stopped server have finished, and how many it had to cut.

    Clients that the kernel had queued are included, since the server accepts them first.
    """

    finished: int
    cut: int

    def __str__(self) -> str:
        return f"stopped: {self.finished} finished, {self.cut} cut"


class Tally(NamedTuple):
    """How many connections have been opened and closed, and the bytes of those that are closed."""

    opened: int
    closed: int
    received: int
    sent: int


class Registry:
    """The open connections of one server. Thread-safe; adding and removing take constant time."""

    def __init__(
        self, on_close: Callable[[Connection], object] = lambda _: None, server: Any = None
    ) -> None:
        """`on_close` is called with each closed connection. The events name `server`."""
        self._on_close = on_close
        self._server = server
        # Guards the attributes below. Re-entrant, since a signal handler may stop the server while
        # its thread holds it. No connection is ended under it: its socket may be an object of the
        # program's. Notified when a connection comes or goes, a limit changes, and by `notify`.
        self._changed = threading.Condition()
        self._live: dict[Connection, None] = {}  # a set that keeps the order: the oldest first
        self._closed = self._received = self._sent = 0  # as of `Tally`
        # The threads that call the observers of `ConnectionClosed`, by the connection's id.
        self._ending: dict[int, int] = {}
        self._draining = False
        self._limit = self._patience = Deadline(None)
        self._involved = 0  # the connections of the present drain
        self._cut: set[int] = set()  # the ids of those that were cut
        self._cutting = False  # whether new connections are cut, too

    def add(self, connection: Connection) -> None:
        """Add a connection, before a thread is started for it, and emit the event about it.

        It is asked to finish at once if the server drains. The event about a connection that begins
        with a PROXY header is emitted by `introduced`.
        """
        with self._changed:
            self._live[connection] = None
            self._involved += 1
            late = self._cutting
            self._changed.notify_all()
        if late:
            self._cut_these([connection])
        if events.is_wanted(events.ConnectionOpened.level) and not connection.expects_proxy:
            event = events.ConnectionOpened(connection.id, connection.peer, connection.local)
            events.emit(event, self._server)
        if self._draining:
            connection.end_input()

    def introduced(self, connection: Connection) -> None:
        """Emit the event about a connection whose PROXY header has been read, or has failed."""
        connection.expects_proxy = False
        if events.is_wanted(events.ConnectionOpened.level):
            names = connection.id, connection.peer, connection.local, via_of(connection.proxy)
            events.emit(events.ConnectionOpened(*names), self._server)

    def claim(self, connection: Connection) -> bool:
        """Have the calling thread serve `connection`, or close it unserved.

        False if another thread has claimed it, or if it has been removed.
        """
        me = threading.get_ident()
        with self._changed:
            if connection.thread not in (None, me) or connection not in self._live:
                return False
            connection.thread = me
            return True

    def remove(self, connection: Connection) -> None:
        """Remove a closed connection, and emit the event about its end. Idempotent.

        Threads that wait for the end of all connections go on only after the observers have been
        called: the event `Stopped` of a server comes after every `ConnectionClosed`.
        """
        with self._changed:
            if connection not in self._live:
                return
            del self._live[connection]
            self._closed += 1
            self._received += connection.bytes_read
            self._sent += connection.bytes_written
            self._ending[connection.id] = threading.get_ident()
        try:
            self._on_close(connection)
            if events.is_wanted(events.ConnectionClosed.level):
                events.emit(closed_event(connection), self._server)
        finally:
            with self._changed:
                self._ending.pop(connection.id, None)  # a forked child has none
                self._changed.notify_all()

    def live(self) -> tuple[Connection, ...]:
        """Return the open connections, the oldest first."""
        with self._changed:
            return tuple(self._live)

    def snapshot(self) -> tuple[Tally, tuple[Connection, ...]]:
        """Return the sums of the connections that are closed, and the connections that are open.

        Both are of the same moment: each connection is in one of them, and in one only.
        """
        with self._changed:
            live = tuple(self._live)
            closed = self._closed
            return Tally(closed + len(live), closed, self._received, self._sent), live

    def waits_for(self, thread: int) -> bool:
        """Whether a drain waits for a thread: it serves a connection, or reports its end."""
        with self._changed:
            serves = any(each.thread == thread for each in self._live)
            return serves or thread in self._ending.values()

    def wait_for(self, count: int, seconds: float | None) -> bool:
        """Wait until at least `count` connections are open, or, for 0, until none is.

        An observer of `ConnectionClosed` does not wait for itself. False after `seconds`.
        """
        me = threading.get_ident()

        def are_there() -> bool:
            if count:
                return len(self._live) >= count
            return not self._live and not self._any_but(me)

        with self._changed:
            return self._changed.wait_for(are_there, seconds)

    def notify(self) -> None:
        """Have each waiting thread check its condition again."""
        with self._changed:
            self._changed.notify_all()

    # Draining

    def limit(self, deadline: Deadline, patience: Deadline = _NOW) -> None:
        """Drain until `deadline` at the latest; ask no connection to finish before `patience`.

        If it is called several times, the earliest deadline counts, and the earliest `patience`.
        """
        with self._changed:
            if not self.limited:
                self._involved = len(self._live)
                self._cut = set()
            self._limit = self._limit.earlier(deadline)
            self._patience = self._patience.earlier(patience)
            self._changed.notify_all()

    @property
    def limited(self) -> bool:
        """Whether `limit` has been called with a deadline."""
        return self._limit.remaining() is not None

    @property
    def patient(self) -> bool:
        """Whether it is too early to ask connections to finish."""
        remaining = self._patience.remaining()
        return remaining is not None and remaining > 0

    def begin_draining(self) -> None:
        """Call `Connection.end_input` of all connections, and of new ones."""
        with self._changed:
            self._draining = True
        if self._live:
            event = events.Stopping(len(self._live), self._limit.remaining())
            events.emit(event, self._server)
        self._end_inputs()

    def _end_inputs(self) -> float | None:
        """Ask all connections to finish.

        Returns the seconds until another call is worth it; None if no connection needs one.
        """
        waits = [connection.end_input() for connection in self.live()]
        return min((wait for wait in waits if wait is not None), default=None)

    def all_left(self, but: int) -> Callable[[], bool]:
        """Return a function that tells whether no thread but `but` serves a connection.

        It is a condition for `wait_while_draining` and `wait_until`.
        """
        return lambda: not self._any_but(but)

    def _end(self) -> Deadline:
        """When the present phase of the stop ends, as far as is known now."""
        return self._limit if self._draining else self._patience.earlier(self._limit)

    def is_phase_over(self) -> bool:
        """Whether the patience of the stop has passed, or, once the server drains, the limit."""
        return self._end().expired()

    def wait_while_draining(self, over: Callable[[], bool]) -> bool:
        """Wait until ``over()`` is true. False if `is_phase_over` is true before.

        Once the server drains, it asks the connections to finish that could not be asked before.
        ``over`` is called with the lock held, so it must not wait.
        """
        while not self.is_phase_over():
            again = Deadline(self._end_inputs() if self._draining else None)
            with self._changed:
                while not over():
                    until = again.earlier(self._end())  # which may change during the wait
                    if until.expired():
                        break
                    self._changed.wait(until.remaining())
                else:
                    return True
        return over()

    def wait_until(self, over: Callable[[], bool], seconds: float | None) -> bool:
        """Wait until ``over()`` is true. False after `seconds`. It asks no connection to finish."""
        with self._changed:
            return self._changed.wait_for(over, seconds)

    def time_left(self) -> float | None:
        """Return the seconds until the limit; None if there is no limit."""
        return self._limit.remaining()

    def wait_for_one(self, seconds: float) -> None:
        """Wait for a change for `seconds`, but not beyond the present phase of the stop.

        Once the server drains, it asks the connections to finish that could not be asked before.
        """
        again = Deadline(self._end_inputs() if self._draining else None)
        until = Deadline(seconds).earlier(self._end()).earlier(again)
        with self._changed:
            self._changed.wait(until.remaining())

    def _any_but(self, but: int) -> bool:
        return any(connection.thread != but for connection in self._live) or any(
            thread != but for thread in self._ending.values()
        )

    def cut(self, but: int) -> None:
        """Cut all connections, and new ones, except those that the thread `but` serves."""
        with self._changed:
            self._cutting = True
            others = [each for each in self._live if each.thread != but]
        self._cut_these(others)
        self.notify()

    def _cut_these(self, connections: Iterable[Connection]) -> None:
        for connection in connections:
            with self._changed:
                known = connection.id in self._cut
                self._cut.add(connection.id)
            if not known and not connection.cut():  # it had finished
                with self._changed:
                    self._cut.discard(connection.id)

    def wait_and_cut(self, seconds: float, but: int) -> None:
        """Wait `seconds` for the connections that are not cut yet, and then call `cut`."""
        with self._changed:
            self._changed.wait_for(
                lambda: all(c.was_cut or c.thread == but for c in self._live), seconds
            )
        self.cut(but)

    def drained(self) -> StopReport:
        """Return the report of the present drain, or of the last one."""
        with self._changed:
            return StopReport(self._involved - len(self._cut), len(self._cut))

    def end_in_child(self) -> None:
        """Forget, in a forked child, all connections but that of the calling thread.

        The parent gives back their places, and counts them. A thread that is not here may have held
        the lock.
        """
        self._changed = threading.Condition()
        self._ending = {}
        for connection in self.live():
            if connection.thread == threading.get_ident():
                connection.free_locks()
                connection.ticket = None
            else:
                del self._live[connection]

    def reopen(self) -> None:
        """End the drain: new connections are not asked to finish."""
        with self._changed:
            self._draining = self._cutting = False
            self._limit = self._patience = Deadline(None)
