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
from .delay import Delay
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

    def stop(self, timeout: float | None, patience: float, delay: float) -> None: ...

    def outcome(self) -> StopReport: ...


class Order(NamedTuple):
    """The times that `request_stop` was given, for the stop that follows (seconds)."""

    timeout: float | None = None  # None stands for the option drain_timeout
    patience: float = 0.0
    delay: float = 0.0


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
        self.reopen()
        self._postponed: Callable[[], object] | None = None  # see rule 3
        self.workers: Workers | None = None
        """The worker processes that serve in the server's place; None if there are none."""
        self.report = StopReport(0, 0)
        """The report of the last stop."""

    def reopen(self) -> None:
        """Forget the last stop, since the server listens again, or is that of a forked child."""
        self.order = Order()
        self._is_announced = False
        self._delay = Delay(self._server, self._end_delay)

    def is_announced(self) -> bool:
        """Whether the server is to stop, or has stopped."""
        return self._is_announced or self._life.state in (State.DRAINING, State.CLOSED)

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

    def request(self, timeout: float | None, patience: float, delay: float = 0.0) -> None:
        """As `Server.request_stop`."""
        self._request(Order(timeout, patience, delay))

    def _end_delay(self, delay: Delay) -> None:
        self._request(None, delay)

    def _request(self, order: Order | None, passed: Delay | None = None) -> None:
        """Request the stop that `order` is for, or the one that waited for the delay `passed`."""
        with self._life.changed:
            if passed not in (None, self._delay):
                return  # it belongs to an earlier life of the server
            order = order or self.order._replace(delay=0.0)
            workers = self.workers
            is_delayed = workers is None and self._announce_locked(order)
            if workers is None and not is_delayed:
                if self._life.state is State.DRAINING:
                    self._limit_locked(order)
                self._loop.request_stop()
        if workers is not None:
            workers.stop(*order)
        elif is_delayed:
            self._delay.begin(order.delay)

    def _announce_locked(self, order: Order) -> bool:
        """Note that the server is to stop. Return whether it goes on serving for a while."""
        self.order = order
        self._is_announced = True
        if order.delay and self._life.state is State.LISTENING and not self._loop.stop_requested:
            return True
        self._delay.end()
        return False

    def stop(self, timeout: float | None, patience: float, delay: float = 0.0) -> StopReport:
        """As `Server.stop`."""
        life = self._life
        with life.changed:
            order = self._take_order_locked(timeout, patience, delay)
            workers = self.workers
            if workers is None and not order.delay:
                self._delay.end()
                if life.state is not State.CLOSED:
                    self._limit_locked(order)
        if workers is not None:
            workers.stop(*order)
            return workers.outcome()
        if order.delay:
            return self._stop_later(order)
        if self._loop.accepts_here():
            self.order = order
            self._postpone(lambda: self.stop(*self.order))
            return StopReport(0, 0)
        self._server.server_close()
        self.close()  # an overridden server_close may have closed the socket, and no more
        if life.state is State.CLOSED and self._registry.limited:
            self._registry.wait_and_cut(self._seconds(order), but=_me())
        return self.report if life.state is State.CLOSED else self._registry.drained()

    def _stop_later(self, order: Order) -> StopReport:
        self.request(*order)
        if not self._loop.accepts_here():
            self._delay.wait()
            return self.stop(order.timeout, order.patience)
        self._postponed = self._postponed or (lambda: self.stop(*self.order[:2]))
        return StopReport(0, 0)

    def _postpone(self, stop: Callable[[], object]) -> None:
        self._postponed = self._postponed or stop
        self._loop.request_stop()

    def carry_out(self) -> None:
        """Stop the server if the thread that ran the accept loop has requested that."""
        stop, self._postponed = self._postponed, None
        if stop is not None:
            stop()

    def _take_order_locked(self, timeout: float | None, patience: float, delay: float) -> Order:
        check_seconds("delay", delay)
        check_seconds("patience", patience)
        if timeout is None:
            return self.order._replace(delay=delay)
        check_seconds("timeout", timeout)
        self.order = Order()  # an order that comes from now on counts, too
        return Order(timeout, patience, delay)

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
            self._delay.end()
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
