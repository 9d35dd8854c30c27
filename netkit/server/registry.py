"""The live connections of a server, and the wait until there are none."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from ..core import events
from ..core.deadline import Deadline
from ..net.connection import Connection

_NOW = Deadline(0)


class StopReport(NamedTuple):
    """What became of the clients that were connected, or queued, when a server was stopped."""

    finished: int
    cut: int

    def __str__(self) -> str:
        return f"stopped: {self.finished} finished, {self.cut} cut"


def _nobody_asks(_: Any) -> None:
    pass


class Registry:
    """The connections that are open. All methods may be called from any thread.

    Adding and removing a connection take constant time.
    """

    def __init__(
        self, left: Callable[[Connection], None] = _nobody_asks, server: Any = None
    ) -> None:
        """`left` is called with each connection that is over. `server` emits the events."""
        self._left = left
        self._server = server
        # Guards what follows. Re-entrant, since a signal handler may stop the server from within.
        # No connection is ended under it: its socket may be an object of the program's.
        self._lock = threading.RLock()
        # Notified when a connection is over, the limit has changed, or `notify` is called.
        self._changed = threading.Condition(self._lock)
        self._live: dict[Connection, None] = {}  # a set that keeps the order: the oldest first
        # Those that are over, while observers are called with the event: the threads that do it.
        self._ending: dict[int, int] = {}
        self._draining = False
        self._limit = self._patience = Deadline(None)
        self._counting = False
        self._involved = 0  # connections that the present drain began with, or took in
        self._cut: set[int] = set()  # those of them that were cut, by their ids
        self._cutting = False  # connections that come now are cut, too

    def add(self, connection: Connection) -> None:
        """Note a connection, before a thread is started for it; `announce` it then."""
        with self._lock:
            self._live[connection] = None
            self._involved += 1
            late = self._cutting
            self._changed.notify_all()
        if late:
            self._cut_these([connection])

    def announce(self, connection: Connection) -> None:
        """Tell of a connection that has been added, and ask it to finish if all others are."""
        event = events.ConnectionOpened(connection.id, connection.peer, connection.local)
        events.emit(event, self._server)
        if self._draining:
            connection.end_input()

    def claim(self, connection: Connection) -> bool:
        """Make the calling thread the one that serves it, or that closes it unserved.

        False if another thread is that already, or if it is over.
        """
        me = threading.get_ident()
        with self._lock:
            if connection.thread not in (None, me) or connection not in self._live:
                return False
            connection.thread = me
            return True

    @contextlib.contextmanager
    def claimed(self, connection: Connection) -> Iterator[None]:
        """Meanwhile the calling thread is the one that serves it."""
        self.claim(connection)
        try:
            yield
        finally:
            with self._lock:
                connection.thread = None

    def remove(self, connection: Connection) -> None:
        """Forget a connection that is over. Idempotent.

        Observers are called before anybody who waits for the end of all goes on: a server's
        `Stopped` comes after every `ConnectionClosed`.
        """
        with self._lock:
            if connection not in self._live:
                return
            del self._live[connection]
            self._ending[connection.id] = threading.get_ident()
        try:
            self._left(connection)
            self._announce_end(connection)
        finally:
            with self._changed:
                self._ending.pop(connection.id, None)  # a child that was forked has none
                self._changed.notify_all()

    def _announce_end(self, connection: Connection) -> None:
        seconds = time.monotonic() - connection.opened_at
        read: int | None = connection.bytes_read
        written: int | None = connection.bytes_written
        if connection.opaque:
            read = written = None
        number, peer, local = connection.id, connection.peer, connection.local
        event = events.ConnectionClosed(number, peer, read, written, seconds, local)
        events.emit(event, self._server)

    def live(self) -> tuple[Connection, ...]:
        """The connections that are open now."""
        with self._lock:
            return tuple(self._live)

    def of_thread(self, thread: int) -> Connection | None:
        """The connection that the thread with this identifier serves, if it does serve one."""
        return next((each for each in self.live() if each.thread == thread), None)

    def waits_for(self, thread: int) -> bool:
        """Whether a drain waits for this thread: it serves one, or has just ended one."""
        with self._lock:
            return self.of_thread(thread) is not None or thread in self._ending.values()

    def wait_for(self, count: int, seconds: float | None) -> bool:
        """Wait until there are at least `count`, or none for 0; False after `seconds`."""
        me = threading.get_ident()

        def are_there() -> bool:
            if count:
                return len(self._live) >= count
            return not self._live and not self._any_but(me)

        with self._changed:
            return self._changed.wait_for(are_there, seconds)

    def notify(self) -> None:
        """Have each thread that waits look again at what it waits for."""
        with self._changed:
            self._changed.notify_all()

    # Draining

    def limit(self, deadline: Deadline, patience: Deadline = _NOW) -> None:
        """Drain until `deadline` at the latest; ask no connection to finish before `patience`.

        Of several, the earliest counts.
        """
        with self._changed:
            self._limit = self._limit.earlier(deadline)
            self._patience = self._patience.earlier(patience)
            self._changed.notify_all()

    @property
    def limited(self) -> bool:
        """Whether there is a limit."""
        return self._limit.remaining() is not None

    @property
    def patient(self) -> bool:
        """Whether a drain does not ask connections to finish yet."""
        remaining = self._patience.remaining()
        return remaining is not None and remaining > 0

    def begin_draining(self) -> None:
        """Ask all connections, and those to come, to finish: `Connection.end_input`."""
        with self._changed:
            self._draining = True
            self._begin_counting_locked()
        if self._live:
            event = events.Stopping(len(self._live), self._limit.remaining())
            events.emit(event, self._server)
        self._end_inputs()

    def _begin_counting_locked(self) -> None:
        if not self._counting:
            self._counting = True
            self._involved = len(self._live)
            self._cut = set()

    def _end_inputs(self) -> float | None:
        """Ask all to finish. Seconds until this is worth another call; None if it is not."""
        waits = [connection.end_input() for connection in self.live()]
        return min((wait for wait in waits if wait is not None), default=None)

    def all_left(self, spare: int) -> Callable[[], bool]:
        """For the waits below: a function that says whether only the thread `spare` serves any."""
        return lambda: not self._any_but(spare)

    def wait_while_draining(self, over: Callable[[], bool]) -> bool:
        """Wait until ``over()``; False if the limit has passed before.

        Meanwhile connections that could not be asked to finish before are asked. ``over`` is called
        when a connection is over, and after `notify`, under the lock: it must not wait.
        """
        while not self._limit.expired():
            again = Deadline(self._end_inputs())
            with self._changed:
                while not over():
                    until = again.earlier(self._limit)  # which may change during the wait
                    if until.expired():
                        break
                    self._changed.wait(until.remaining())
                else:
                    return True
        return over()

    def wait_for_leaving(self, over: Callable[[], bool]) -> bool:
        """Wait until ``over()`` (True), or until the patience or the limit has passed."""
        with self._changed:
            self._begin_counting_locked()
            while not over():
                until = self._patience.earlier(self._limit)  # both may change during the wait
                if until.expired():
                    return False
                self._changed.wait(until.remaining())
            return True

    def wait_until(self, over: Callable[[], bool], seconds: float | None) -> bool:
        """Wait until ``over()``, as in `wait_while_draining`; False if `seconds` have passed."""
        with self._changed:
            return self._changed.wait_for(over, seconds)

    def time_left(self) -> float | None:
        """Seconds until the limit; None if there is none."""
        return self._limit.remaining()

    def wait_for_one(self, seconds: float) -> None:
        """Wait until a connection is over, the limit changes or passes, or for `seconds`."""
        with self._changed:
            self._changed.wait(Deadline(seconds).earlier(self._limit).remaining())

    def _any_but(self, spare: int) -> bool:
        return any(connection.thread != spare for connection in self._live) or any(
            thread != spare for thread in self._ending.values()
        )

    def cut(self, spare: int) -> None:
        """`Connection.cut` for all but those that the thread `spare` serves, and for late ones."""
        with self._lock:
            self._cutting = True
            doomed = [each for each in self._live if each.thread != spare]
        self._cut_these(doomed)
        self.notify()

    def _cut_these(self, connections: Iterable[Connection]) -> None:
        for connection in connections:
            with self._lock:
                known = connection.id in self._cut
                self._cut.add(connection.id)
            if not known and not connection.cut():  # it was over
                with self._lock:
                    self._cut.discard(connection.id)

    def finish_spared(self, seconds: float, spare: int) -> None:
        """Give connections that a drain has spared `seconds` to finish, and then cut them, too."""
        with self._changed:
            self._changed.wait_for(
                lambda: all(c.was_cut or c.thread == spare for c in self._live), seconds
            )
        self.cut(spare)

    def drained(self) -> StopReport:
        """What became of the connections since the drain began, its patience included."""
        with self._changed:
            return StopReport(self._involved - len(self._cut), len(self._cut))

    def end_in_child(self) -> None:
        """In a forked child: only the connections of the calling thread are its own.

        What they take is given back by the parent. Any lock may be held for ever.
        """
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._left = _nobody_asks
        self._ending = {}
        for connection in self.live():
            if connection.thread == threading.get_ident():
                connection.free_locks()
            else:
                del self._live[connection]

    def reopen(self) -> None:
        """Connections that come from now on are not asked to finish."""
        with self._changed:
            self._draining = self._counting = self._cutting = False
            self._limit = self._patience = Deadline(None)
