"""Counts what happens in one process that serves, for /metrics and `netkit.metrics_text`.

Events give the counts of what has happened. What is open is looked up when somebody asks, so the
bytes of open connections cost nothing until then. At each moment a connection is either in the sums
of its registry or among the open ones (`Registry.snapshot`), so a connection that is closed during
a scrape is counted once.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..core import events
from ..core.ends import ENDS
from ..net.forks import do_not_undo, renew_in_children, undo_in_children
from ..server import exiting
from ..server.server import Server
from .exposition import Counts, Histogram, Samples, merged, text_of
from .figures import OF_SERVERS, build_info, figures_of_process, figures_of_server

# The options that refuse clients.
REASONS = (
    *("allow", "deny", "max_connections", "max_connections_per_ip", "max_connection_rate"),
    "proxy_from",
)

DURATIONS = (0.01, 0.1, 1, 10, 60, 600, 3600, 86400)  # seconds
WAITS = (0.001, 0.01, 0.1, 1, 10, 60)  # seconds


class Metrics:
    """The metrics of some servers of this process. Thread-safe.

    Events count from the construction on. Bytes, and the numbers of accepted connections and of
    pauses, count from the start of each server.
    """

    def __init__(self, servers: Iterable[Server] | None = None) -> None:
        """Without `servers`, all servers count that have accepted clients in this process.

        Such a server is kept alive until `close`.
        """
        self._servers = None if servers is None else tuple(servers)
        self._seen: dict[Server, None] = {}
        self._shown: Samples = {}  # the counters of the last answer
        self._durations = Histogram("netkit_connection_duration_seconds", *DURATIONS)
        self._waits = Histogram("netkit_connection_wait_seconds", *WAITS)
        self._ends = Counts("netkit_connections_closed_total", "end", ENDS)
        self._refusals = Counts("netkit_connections_refused_total", "reason", REASONS)
        self._failures = 0
        # Guards the attributes above but the first. Re-entrant, since a signal handler may stop a
        # server while its thread holds the lock.
        self._lock = threading.RLock()
        self._notes: dict[type, Callable[[Any], None]] = {
            events.ConnectionClosed: self._closed_locked,
            events.ClientRefused: lambda event: self._refusals.add(event.reason),
            events.HandlerFailed: self._failed_locked,
        }
        self._unsubscribe = events.subscribe(self._observe)
        undo_in_children(self._end_in_child)

    def close(self) -> None:
        """Count no longer. Idempotent."""
        self._unsubscribe()
        do_not_undo(self._end_in_child)
        _forget(self)

    def _end_in_child(self) -> None:
        # The servers of a forked child are the parent's. A thread that is not here may have held
        # the lock.
        self._lock = threading.RLock()
        self._unsubscribe()
        _forget(self)

    # Counting, in the thread of each event

    def _observe(self, event: events.Event) -> None:
        note = self._notes.get(type(event))
        if note is None or event.server is None:
            return
        if self._servers is None or event.server in self._servers:
            with self._lock:
                note(event)

    def _closed_locked(self, event: events.ConnectionClosed) -> None:
        self._ends.add(event.end)
        self._durations.add(event.seconds)
        self._waits.add(event.waited)

    def _failed_locked(self, _: events.HandlerFailed) -> None:
        self._failures += 1

    def _counts_locked(self) -> Samples:
        return {
            **self._ends.samples(),
            **self._refusals.samples(),
            **self._durations.samples(),
            **self._waits.samples(),
            "netkit_handler_failures_total": self._failures,
        }

    # Answering

    def answer(self, _: Mapping[str, Any] | None = None) -> dict[str, Samples]:
        """Return the present ``{"counters": samples, "gauges": samples}`` of this process.

        No counter is less than in the answer before.
        """
        servers = self._all()
        with self._lock:  # first, so that no more connections are closed than were accepted
            counts = self._counts_locked()
        parts = [*map(figures_of_server, servers), figures_of_process()]
        counters = {
            **dict.fromkeys(OF_SERVERS, 0),
            **merged(counters for counters, _ in parts),
            **counts,
        }
        gauges = merged(gauges for _, gauges in parts)
        with self._lock:
            # A thread may send on a connection that has been removed, and whose sum is made: its
            # last bytes were counted if a scrape was under way, and are missing afterwards.
            for name, value in counters.items():
                counters[name] = self._shown[name] = max(value, self._shown.get(name, 0))
        return {"counters": counters, "gauges": gauges}

    def text(self) -> str:
        """Return the text of the metrics of this process, without those of `process_`."""
        answer = self.answer()
        samples = {**build_info(), **answer["counters"], **answer["gauges"]}
        return text_of({k: v for k, v in samples.items() if not k.startswith("process_")})

    def _all(self) -> tuple[Server, ...]:
        if self._servers is not None:
            return self._servers
        accepting = dict.fromkeys(exiting.accepting())
        with self._lock:
            self._seen.update(accepting)
            return tuple(each for each in self._seen if not getattr(each, "unobserved", False))


_current: Metrics | None = None
_lock = threading.RLock()  # guards `_current`; re-entrant, for signal handlers
renew_in_children(sys.modules[__name__], "_lock")


def _forget(metrics: Metrics) -> None:
    global _current
    with _lock:
        if _current is metrics:
            _current = None


def of_process(servers: Iterable[Server]) -> Metrics:
    """Make the metrics of a process that serves, which `metrics_text` shows until their `close`."""
    global _current
    with _lock:
        _current = Metrics(servers)
        return _current


def metrics_text() -> str:
    """Return the metrics of this process as text for Prometheus (version 0.0.4).

    A program that has a page of its own appends this text to it. The text has the metrics of
    docs/operations.md, without those whose names begin with ``process_``, which a program has from
    the library of its page, and without those about worker processes. They are the metrics of the
    servers that `run` or `serve` serves with ``status=``; in another program, those of all servers
    that have accepted clients in this process. Bytes, connections and pauses count from the start
    of a server, and events from the first call on: call it once before the server starts.
    Thread-safe.
    """
    global _current
    with _lock:
        if _current is None:
            _current = Metrics()
        metrics = _current
    return metrics.text()
