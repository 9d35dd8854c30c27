"""Ends connections that have lasted longer than the option `lifetime` allows.

The limits of a single wait (`netkit.net.timeouts`) and of a TLS handshake need no thread: the
kernel ends the wait of the client's own thread. A lifetime also counts while a handler computes,
waits for something else, or reads the socket itself. So a server that has this limit has one more
thread, which sleeps until the first connection is due.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from ..core import events
from ..net.connection import Connection
from ..net.explain import timed_out
from .threads import join


class Watchdog:
    """The thread that ends the connections of one server when their lifetime is over. Thread-safe.

    `live` returns the open connections, the oldest first. It is called in the thread.
    """

    last_word = 1.0
    """Seconds that a handler may still write after the interruption, before the cut."""

    def __init__(self, live: Callable[[], Iterable[Connection]]) -> None:
        self._live = live
        self._closed = False
        self.reset()

    def reset(self) -> None:
        """Forget the thread, in a forked child, where it does not exist."""
        # Guards the attributes that follow; notified when the thread should look again. Re-entrant,
        # since a signal handler may stop the server in a thread that is in `watch`.
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        # The lifetimes of the open connections: a single one, unless the option was changed.
        self._lifetimes: frozenset[float] = frozenset()
        self._due: float | None = None  # when the thread looks again, on the monotonic clock
        self._look_again = False  # a connection has come while the thread looked
        # How often each connection was ended, by its id. Only the thread uses it.
        self._ended: dict[int, int] = {}

    def watch(self, opened_at: float, lifetime: float) -> None:
        """Watch one more connection, which `live` returns from now on.

        If no thread can be started for the watchdog, the next call tries again, and nothing is
        reported: the client's own thread cannot be started either, which is reported.
        """
        with self._changed:
            due = self._due
            if due is not None and due <= opened_at + lifetime and lifetime in self._lifetimes:
                return  # the thread looks early enough
            self._lifetimes |= {lifetime}
            self._look_again = True
            self._changed.notify_all()
            if self._thread is not None or self._closed:
                return
            # A daemon: it must not keep the interpreter if the server is never closed.
            self._thread = thread = threading.Thread(
                target=self._run, name="netkit-watchdog", daemon=True
            )
        try:
            thread.start()
        except BaseException as error:
            if thread.ident is None:  # else it runs, and a Ctrl+C has ended the wait for its start
                self._thread = None
            if not isinstance(error, RuntimeError):
                raise

    def close(self, timeout: float | None = None) -> None:
        """End the thread, and wait for its end at most `timeout` seconds. Idempotent.

        The thread may take longer, if an observer of an event is slow.
        """
        with self._changed:
            self._closed = True
            thread = self._thread
            self._changed.notify_all()
        if thread is not None:
            join(thread, timeout)

    def reopen(self) -> None:
        """Undo `close`."""
        with self._changed:
            self._closed = False

    def runs_here(self) -> bool:
        """Whether the calling thread is the watchdog's."""
        return self._thread is threading.current_thread()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._due = None  # a connection that comes from now on sets `_look_again`
                if self._closed:
                    self._thread = None
                    return
                self._look_again = False
                lifetimes = self._lifetimes
            failed, due, seen = self._look(lifetimes)
            for event, server in failed:  # only now, since an observer may be slow
                events.emit(event, server)
            with self._changed:
                if not (self._look_again or self._closed):
                    self._lifetimes, self._due = seen, due
                    self._changed.wait(None if due is None else max(0.0, due - time.monotonic()))

    def _look(
        self, lifetimes: frozenset[float]
    ) -> tuple[list[tuple[events.Event, Any]], float | None, frozenset[float]]:
        """End the connections whose time is over.

        Return the events about them, each with its server; the moment when the next connection is
        due (None if no connection is); and the lifetimes of all connections. If all have the same
        lifetime, the search ends at the first connection that has time left: those behind it are
        younger.
        """
        ended, self._ended = self._ended, {}
        now = time.monotonic()
        failed: list[tuple[events.Event, Any]] = []
        due = []
        seen: set[float] = set()
        for connection in self._live():
            lifetime = connection.lifetime
            if lifetime is None:
                continue
            seen.add(lifetime)
            times = ended.get(connection.id, 0)
            moment = connection.opened_at + lifetime + times * self.last_word
            if times < 2 and moment <= now:
                reason = timed_out("lifetime", lifetime, connection.peer)
                is_cut = times == 1
                if connection.interrupt(reason, is_cut) and connection.opaque and not is_cut:
                    ends = connection.id, connection.peer, reason, connection.local
                    failed.append((events.ClientFailed(*ends), connection.server))
                times += 1
                moment += self.last_word
            if times < 2:
                due.append(moment)
            if times:
                self._ended[connection.id] = times
            elif len(lifetimes) == 1:
                return failed, min(due), lifetimes
        return failed, min(due, default=None), frozenset(seen)
