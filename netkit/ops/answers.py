"""Answers the questions of operators in a process that serves.

The questions and their arguments are those that `netkit.ops.commands` asks. Arguments and answers
are JSON values, since another process may have asked.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from ..core import events
from ..core.errors import KilledError
from ..core.options import Options
from ..net.connection import Connection
from ..server import log
from ..server.server import Server
from . import settings, takeover
from .clients import Filters, connections_of, page_of_clients, page_of_stacks
from .feed import Feeds
from .figures import totals_of
from .summary import COUNTERS


class Answers:
    """Answers questions about the servers of this process. Thread-safe.

    `questions` has a function for each question, which takes its arguments, and raises ValueError
    for wrong ones, with a text for the operator.
    """

    def __init__(self, servers: Sequence[Server]) -> None:
        self._servers = tuple(servers)
        self._feeds = Feeds()
        self._ending = _Ending()
        self.questions: dict[str, Callable[..., Any]] = {
            "status": self._status,
            "conns": lambda **given: page_of_clients(self._servers, **given),
            "stacks": lambda **given: page_of_stacks(self._servers, **given),
            "kill": self._kill,
            "end": self._end,
            "suspend": lambda: self._suspend(True),
            "resume": lambda: self._suspend(False),
            "get": lambda: settings.every(self._options()),
            "set": lambda name, value: settings.change(self._servers, name, value),
            "log": _set_level,
            "metrics": self._counters,
            "listeners": lambda path: takeover.send_those_of(self._servers, path),
            "events": self._events,
        }

    def close(self) -> None:
        """Collect no more events for operators. Idempotent."""
        self._feeds.close()

    def _options(self) -> Options:
        return self._servers[0]._options

    def _status(self) -> dict[str, Any]:
        servers = self._servers
        limits = [server._options.max_connections for server in servers]
        sums = [_sums(server) for server in servers]
        return {
            **{name: sum(each[name] for each in sums) for name in sums[0]},
            "held": sum(len(server._overflow.waiting()) for server in servers),
            "refused": sum(server._refusals.count for server in servers),
            "limit": None if None in limits else sum(filter(None, limits)),
            "threads": threading.active_count(),
            "suspended": any(server._admission.suspended for server in servers),
        }

    def _counters(self) -> dict[str, dict[str, int]]:
        """The counters of the status, for the sums of processes that have ended.

        Without `netkit.ops.metrics`, which counts more, and has the same names.
        """
        status = self._status()
        return {
            "counters": {counter: status[name] for name, counter in COUNTERS.items()},
            "gauges": {},
        }

    def _kill(self, **filters: Any) -> list[dict[str, Any]]:
        """End clients now. A handler that computes ends when it next touches the connection."""
        return [_brief(each) for each in self._wanted(filters) if _kill(each)]

    def _end(self, **filters: Any) -> list[dict[str, Any]]:
        """Have clients finish, as in a drain."""
        wanted = list(self._wanted(filters))
        self._ending.add(wanted)
        return [_brief(each) for each in wanted]

    def _wanted(self, filters: dict[str, Any]) -> list[Connection]:
        return list(connections_of(self._servers, Filters(**filters)))

    def _suspend(self, on: bool) -> None:
        for server in self._servers:
            server._admission.suspend(on)

    def _events(self, name: str, kinds: Sequence[str] = (), end: bool = False) -> Any:
        if end:
            return self._feeds.end(name)
        return self._feeds.take(name, kinds)


def _sums(server: Server) -> dict[str, int]:
    tally, live = totals_of(server)
    return {
        "connected": len(live),
        "accepted": tally.opened,
        "closed": tally.closed,
        "received": tally.received,
        "sent": tally.sent,
    }


def _brief(connection: Connection) -> dict[str, Any]:
    return {"id": connection.id, "peer": connection.peer}


def _kill(connection: Connection) -> bool:
    reason = KilledError(connection.peer)
    if not connection.interrupt(reason, hard=True):
        return False
    if connection.opaque:  # its handler sees the end of both directions, and raises nothing
        ends = connection.id, connection.peer, reason, connection.local
        events.emit(events.ClientFailed(*ends), connection.server)
    return True


def _set_level(level: str) -> None:
    log.logger.setLevel(getattr(logging, level.upper()))


class _Ending:
    """Asks connections to finish, again and again if they cannot be asked at once. Thread-safe.

    A handler that uses the bare socket can be asked only while its client is silent.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the attributes that follow
        self._connections: list[Connection] = []
        self._runs = False

    def add(self, connections: Sequence[Connection]) -> None:
        """Ask `connections`, and in a thread those that cannot be asked yet.

        RuntimeError if the system gives no thread.
        """
        later = [each for each in connections if each.end_input() is not None]
        with self._lock:
            self._connections += later
            start, self._runs = bool(later) and not self._runs, self._runs or bool(later)
        if start:
            self._start()

    def _start(self) -> None:
        try:
            threading.Thread(target=self._ask, name="netkit-end", daemon=True).start()
        except RuntimeError:  # the system gives none; a later call tries again
            with self._lock:
                self._runs = False
            raise

    def _ask(self) -> None:
        while True:
            with self._lock:
                connections, self._connections = self._connections, []
                if not connections:
                    self._runs = False
                    return
            waits = [(each.end_input(), each) for each in connections]
            with self._lock:
                self._connections += [each for wait, each in waits if wait is not None]
            time.sleep(min((wait for wait, _ in waits if wait is not None), default=0.0))
