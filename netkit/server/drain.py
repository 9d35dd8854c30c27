"""How a server stops.

A stop has an order. It ends accepting; has idle clients see the end of their input; accepts the
clients that the kernel has queued; waits for busy clients until the deadline; cuts the rest; joins
the threads; reports.

Rules:

1. All waits share one deadline, which a second stop may bring forward. A stop waits for the threads
   that may run code of the program (the accepting thread, a client's, the watchdog) until then,
   and for `CUT_GRACE` more. Then it leaves them behind, and they end once that code returns.
2. A thread that a stop waits for, and that stops the server itself (a handler, an observer), does
   not wait for that stop.
3. The thread that runs the accept loop only requests a stop: it may be in a signal handler, which
   has interrupted code that holds a lock. It carries out the stop once its loop has ended.
"""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Callable
from typing import Protocol

from ..core import events
from ..core.deadline import Deadline
from ..core.kinds import check_seconds
from ..core.record import NamedTuple
from .accept_loop import AcceptLoop
from .acceptor import Acceptor
from .life import Life, State
from .listeners import Listeners
from .registry import Registry, StopReport
from .setup import Configuration
from .threads import ClientThreads
from .watchdog import Watchdog

# How long a stop waits for the threads of the clients that it has cut (seconds).
CUT_GRACE = 1.0

# How much longer than the deadline and the grace a stop may take before another thread that waits
# for it goes on without it (seconds).
_SLACK = 0.05


class Workers(Protocol):
    """The interface of the worker processes that serve in the place of a server."""

    @property
    def stopping(self) -> bool: ...

    def stop(self, timeout: float | None, patience: float) -> None: ...

    def outcome(self) -> StopReport: ...


class Order(NamedTuple):
    """The time limits that `request_stop` was given, for the stop that follows (seconds)."""

    timeout: float | None = None  # None stands for the option drain_timeout
    patience: float = 0.0


class Drain:
    """Stops one server and reports what became of its clients. Thread-safe.

    `Life.changed` guards the attributes.
    """

    grace = CUT_GRACE

    def __init__(
        self,
        server: socketserver.ThreadingTCPServer,
        configuration: Configuration,
        life: Life,
        listeners: Listeners,
        loop: AcceptLoop,
        acceptor: Acceptor,
        registry: Registry,
        threads: ClientThreads,
        watchdog: Watchdog,
    ) -> None:
        """The hook `server_close` of `server` is called for each stop."""
        self._server = server
        self._configuration = configuration
        self._life = life
        self._listeners = listeners
        self._loop = loop
        self._acceptor = acceptor
        self._registry = registry
        self._threads = threads
        self._watchdog = watchdog
        self._thread: int | None = None  # the one that stops the server
        self.order = Order()
        self._postponed: Callable[[], object] | None = None  # see rule 3
        self.workers: Workers | None = None
        """The worker processes that serve in the server's place; None if there are none."""
        self.report = StopReport(0, 0)
        """The report of the last stop."""

    # Worker processes

    def delegate(self, workers: Workers) -> Order | None:
        """Have `workers` stop from now on. Return the stop that was requested before, or None."""
        with self._life.changed:
            self.workers = workers
            return self.order if self._loop.stop_requested else None

    def end_delegation(self, report: StopReport) -> None:
        """Note that the workers have ended; `report` is about their clients."""
        with self._life.changed:
            self.report, self.workers = report, None

    # Requests

    def request(self, timeout: float | None, patience: float) -> None:
        """As `Server.request_stop`."""
        with self._life.changed:
            workers = self.workers
            if workers is None:
                self.order = Order(timeout, patience)
                if self._life.state is State.DRAINING:
                    self._limit_locked(self.order)
                self._loop.request_stop()
        if workers is not None:
            workers.stop(timeout, patience)

    def stop(self, timeout: float | None, patience: float) -> StopReport:
        """As `Server.stop`."""
        life = self._life
        with life.changed:
            order = self._take_order_locked(timeout, patience)
            workers = self.workers
            if life.state is not State.CLOSED and workers is None:
                self._limit_locked(order)
        if workers is not None:
            workers.stop(*order)
            return workers.outcome()
        if self._loop.accepts_here():
            self.order = order
            self._postpone(lambda: self.stop(*self.order))
            return StopReport(0, 0)
        self._server.server_close()
        self.close()  # an overridden server_close may have closed the socket, and no more
        if life.state is State.CLOSED and self._registry.limited:
            self._registry.wait_and_cut(self._seconds(order), but=_me())
        return self.report if life.state is State.CLOSED else self._registry.drained()

    def _postpone(self, stop: Callable[[], object]) -> None:
        self._postponed = self._postponed or stop
        self._loop.request_stop()

    def carry_out(self) -> None:
        """Stop the server if the thread that ran the accept loop has requested that."""
        stop, self._postponed = self._postponed, None
        if stop is not None:
            stop()

    def _take_order_locked(self, timeout: float | None, patience: float) -> Order:
        if timeout is None:
            return self.order
        check_seconds("timeout", timeout)
        check_seconds("patience", patience)
        self.order = Order()  # an order that comes from now on counts, too
        return Order(timeout, patience)

    def _limit_locked(self, order: Order) -> None:
        limit = Deadline(order.patience + self._seconds(order))
        self._registry.limit(limit, Deadline(order.patience))
        self._life.changed.notify_all()  # the wait for the stop may be shorter now

    def _seconds(self, order: Order) -> float:
        configured = self._configuration.setup.options.drain_timeout
        return configured if order.timeout is None else order.timeout

    # The stop

    def close(self) -> None:
        """Stop the server, unless it is stopped, or wait for the stop under way. Idempotent."""
        if self.workers is not None and not self.workers.stopping:
            self.stop(None, 0.0)
        elif self._loop.accepts_here():
            self._postpone(self.close)
        elif self._begin():
            try:
                self._close()
            finally:
                self._thread = None
                self._life.enter(State.CLOSED)

    def _begin(self) -> bool:
        """Whether the calling thread is to stop the server."""
        life = self._life
        with life.changed:
            self._wait_for_opener_locked()
            if not self._is_waited_for():
                self._wait_for_other_stop_locked()
                self._wait_for_opener_locked()  # of a server that listens again since then
            if life.state in (State.DRAINING, State.CLOSED):
                return False
            if not hasattr(self._server, "socket"):
                if life.opener is not None:  # `listen` closes what it has opened so far
                    life.enter(State.CLOSED)
                return False
            life.enter(State.DRAINING)
            self._thread = _me()
            self.report = StopReport(0, 0)  # not that of an earlier life
            if self.order.timeout is not None:  # it has come since, or there is no other
                self._limit_locked(self.order)
            return True

    def _wait_for_opener_locked(self) -> None:
        """Wait for the end of a `listen`, whose sockets would be closed while it uses them."""
        life = self._life
        if life.opener != _me():
            life.changed.wait_for(lambda: life.opener is None, self.grace)

    def _is_waited_for(self) -> bool:
        """Whether a stop under way waits for the calling thread, which cannot wait for it then."""
        return (
            self._thread == _me()
            or self._loop.background is threading.current_thread()
            or self._registry.waits_for(_me())
            or self._loop.runs_here()
            or self._watchdog.runs_here()
        )

    def _wait_for_other_stop_locked(self) -> None:
        """Wait until the other stop has ended, or is overdue since an observer does not return."""
        life, registry = self._life, self._registry
        while life.state is State.DRAINING and registry.time_left() != 0:
            life.changed.wait(registry.time_left())
        life.changed.wait_for(lambda: life.state is not State.DRAINING, self.grace + _SLACK)

    def _close(self) -> None:
        registry = self._registry
        try:
            self._listeners.remove_files()
            self._loop.request_stop()
            if self._server.block_on_close or registry.limited:
                self._drain()
            else:
                seconds = self._configuration.setup.options.drain_timeout
                registry.wait_until(self._loop.has_ended(), seconds)
        finally:
            self._threads.close()
            self._watchdog.close(0)
            self._listeners.close()
            self._acceptor.close()

    def _drain(self) -> None:
        registry, has_ended = self._registry, self._loop.has_ended()
        all_left = registry.all_left(but=_me())
        if not registry.limited:  # not by `stop`
            registry.limit(Deadline(self._configuration.setup.options.drain_timeout))
        try:
            if registry.patient:
                if registry.wait_while_draining(has_ended):
                    self._end_accepting()
                registry.wait_while_draining(all_left)
            registry.begin_draining()
            if registry.wait_while_draining(has_ended):
                self._end_accepting()
            registry.wait_while_draining(all_left)
        finally:  # a second Ctrl+C may have ended the wait
            registry.cut(but=_me())
            self.report = registry.drained()
        self._wait_for_threads(has_ended, all_left)
        self.report = registry.drained()
        self._acceptor.end_episodes()
        if self._loop.has_begun:
            events.emit(events.Stopped(*self.report), self._server)

    def _end_accepting(self) -> None:
        """After the end of the accepting thread: accept the queued clients, close the listeners."""
        self._loop.join_background(self._registry.time_left())
        if self._acceptor.accept_queued():
            self._listeners.close()

    def _wait_for_threads(
        self, has_ended: Callable[[], bool], all_left: Callable[[], bool]
    ) -> None:
        """Wait for at most `grace` seconds, and leave behind the threads that are busy then."""
        grace = Deadline(self.grace)
        self._threads.close()
        if self._registry.wait_until(has_ended, grace.remaining()):
            self._loop.join_background(grace.remaining())
        self._registry.wait_until(all_left, grace.remaining())
        self._threads.join(grace.remaining())
        self._watchdog.close(grace.remaining())


def _me() -> int:
    return threading.get_ident()
