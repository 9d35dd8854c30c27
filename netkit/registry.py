"""The live connections of a server, and the wait until there are none."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from . import events
from .connection import Connection
from .deadline import Deadline

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
    """Who is connected. All methods may be called from any thread.

    Keyed by what `socketserver` calls the request, the accepted socket, since its methods hand on
    nothing else. Adding and removing take constant time.
    """

    def __init__(self, left: Callable[[Connection], None] = _nobody_asks) -> None:
        """`left` is called with each connection that is over."""
        self._left = left
        self._waiting = 0  # threads that wait for a change
        # Guards what follows. Re-entrant, since a signal handler may stop the server from within.
        self._lock = threading.RLock()
        # Notified when a connection is over or the limit has changed.
        self._changed = threading.Condition(self._lock)
        self._live: dict[Any, Connection] = {}
        # The connection of an accepted socket. The dictionary's own: it is asked all the time.
        self.get: Callable[[Any], Connection | None] = self._live.get
        self._draining = False
        self._limit = self._patience = Deadline(None)
        self._counting = False
        self._involved = 0  # connections that the present drain began with, or took in
        self._cut = 0  # those of them that were cut

    def add(self, connection: Connection) -> None:
        """Note a connection, before a thread is started for it; `announce` it then."""
        with self._lock:
            self._live[connection.socket] = connection
            self._involved += 1
            if self._waiting:
                self._changed.notify_all()

    def announce(self, connection: Connection) -> None:
        """Tell of a connection that has been added, and ask it to finish if all others are."""
        events.emit(events.ConnectionOpened(connection.id, connection.peer))
        if self._draining:
            connection.end_input()

    def claim(self, connection: Connection) -> bool:
        """Make the calling thread the one that serves it, or that closes it unserved.

        False if another thread is that already, or if it is over.
        """
        me = threading.get_ident()
        with self._lock:
            if connection.thread not in (None, me) or connection.socket not in self._live:
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

    def adopt(self, request: Any) -> Connection | None:
        """The connection of the calling thread, which from now on goes by `request`.

        For servers that wrap the accepted socket in another one before they serve it. If that has
        not taken over the descriptor (as TLS does), and a handler reads it, we watch the old one.
        """
        thread = threading.get_ident()
        with self._lock:
            for connection in self._live.values():
                if connection.thread == thread:
                    if connection.opaque and connection.fileno() >= 0:
                        return connection
                    del self._live[connection.socket]
                    connection.socket = request
                    self._live[request] = connection
                    return connection
        return None

    def remove(self, connection: Connection) -> None:
        """Forget a connection that is over. Idempotent."""
        if connection.socket not in self._live:
            return
        with self._lock:
            if self._live.pop(connection.socket, None) is None:
                return
        self._left(connection)
        if self._waiting:  # who is told of it finds its place free
            with self._changed:
                self._changed.notify_all()
        seconds = time.monotonic() - connection.opened_at
        read: int | None = connection.bytes_read
        written: int | None = connection.bytes_written
        if connection.opaque:
            read = written = None
        events.emit(events.ConnectionClosed(connection.id, connection.peer, read, written, seconds))

    def live(self) -> tuple[Connection, ...]:
        """The connections that are open now."""
        with self._lock:
            return tuple(self._live.values())

    def of_thread(self, thread: int) -> Connection | None:
        """The connection that the thread with this identifier serves, if it does serve one."""
        return next((each for each in self.live() if each.thread == thread), None)

    def serves(self, thread: int) -> bool:
        """Whether it serves one."""
        return self.of_thread(thread) is not None

    def wait_for(self, count: int, seconds: float | None) -> bool:
        """Until there are at least `count` (0: none); False if that takes more than `seconds`."""
        with self._waiting_for_changes() as changed:
            return changed.wait_for(
                lambda: len(self._live) >= count if count else not self._live, seconds
            )

    @contextlib.contextmanager
    def _waiting_for_changes(self) -> Iterator[threading.Condition]:
        with self._changed:
            self._waiting += 1
            try:
                yield self._changed
            finally:
                self._waiting -= 1

    # Draining

    def limit(self, deadline: Deadline, patience: Deadline = _NOW) -> None:
        """Drain until `deadline` at the latest; leave all in peace until `patience`.

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
        """Whether a drain leaves all in peace for a while."""
        remaining = self._patience.remaining()
        return remaining is not None and remaining > 0

    def out_of_time(self) -> bool:
        """Whether the limit has passed."""
        return self._limit.expired()

    def begin_draining(self) -> None:
        """Ask all connections, and those to come, to finish: `Connection.end_input`."""
        with self._changed:
            self._draining = True
            self._begin_counting_locked()
        if self._live:
            events.emit(events.Stopping(len(self._live), self._limit.remaining()))
        self._end_inputs()

    def _begin_counting_locked(self) -> None:
        if not self._counting:
            self._counting = True
            self._involved = len(self._live)
            self._cut = 0

    def _end_inputs(self) -> float | None:
        """Seconds until it is worth asking again; None: never."""
        waits = [connection.end_input() for connection in self.live()]
        return min((wait for wait in waits if wait is not None), default=None)

    def wait_while_draining(self, spare: int) -> None:
        """Until all have finished, or the limit has passed."""
        while not self._limit.expired():
            again = Deadline(self._end_inputs())
            with self._waiting_for_changes() as changed:
                while self._any_but(spare):
                    until = again.earlier(self._limit)  # which may change during the wait
                    if until.expired():
                        break
                    changed.wait(until.remaining())
                else:
                    return

    def wait_for_leaving(self, spare: int) -> None:
        """Until all have left by themselves, the patience is over, or the limit has passed."""
        with self._waiting_for_changes() as changed:
            self._begin_counting_locked()
            while self._any_but(spare):
                until = self._patience.earlier(self._limit)  # both may change during the wait
                if until.expired():
                    return
                changed.wait(until.remaining())

    def wait_until_empty(self, seconds: float, spare: int) -> bool:
        """Until all are over but those that the thread `spare` serves; False if time ran out."""
        with self._waiting_for_changes() as changed:
            return changed.wait_for(lambda: not self._any_but(spare), seconds)

    def wait_for_one(self, seconds: float) -> None:
        """Until one of them is over, or the limit changes, or `seconds` have passed."""
        with self._waiting_for_changes() as changed:
            changed.wait(seconds)

    def _any_but(self, spare: int) -> bool:
        return any(connection.thread != spare for connection in self._live.values())

    def cut(self, spare: int) -> None:
        """`Connection.cut` for all but those that the thread `spare` serves."""
        with self._changed:
            for connection in self._live.values():
                if connection.thread == spare or connection.was_cut:
                    continue
                if connection.cut():
                    self._cut += 1
            self._changed.notify_all()

    def finish_spared(self, seconds: float, spare: int) -> None:
        """Give who was spared by a drain `seconds` to finish, and then cut them, too."""
        with self._waiting_for_changes() as changed:
            changed.wait_for(
                lambda: all(c.was_cut or c.thread == spare for c in self._live.values()), seconds
            )
        self.cut(spare)

    def drained(self) -> StopReport:
        """What became of the connections since the drain began, its patience included."""
        with self._changed:
            return StopReport(self._involved - self._cut, self._cut)

    def reopen(self) -> None:
        """Connections that come from now on are not asked to finish."""
        with self._changed:
            self._draining = self._counting = False
            self._limit = self._patience = Deadline(None)
