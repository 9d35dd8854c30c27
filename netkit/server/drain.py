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

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from ..core import events
from ..core.deadline import Deadline
from ..core.kinds import check_seconds
from ..core.record import NamedTuple
from .life import State
from .registry import StopReport
from .threads import join

if TYPE_CHECKING:
    from .server import Server

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

    def __init__(self, server: Server) -> None:
        self._server = server
        self._life = server._life
        self._thread: int | None = None  # the one that stops the server
        self.order = Order()
        self._postponed: Callable[[], object] | None = None  # see rule 3
        self.workers: Workers | None = None
        """The worker processes that serve in the server's place; None if there are none."""
        self.background: threading.Thread | None = None
        """The accepting thread of `Server.start`."""
        self.report = StopReport(0, 0)
        """The report of the last stop."""

    # Worker processes

    def hand_over(self, workers: Workers) -> Order | None:
        """Have `workers` stop from now on. Return the stop that was requested before, or None."""
        with self._life.changed:
            self.workers = workers
            return self.order if self._server._accept_loop.stop_requested else None

    def take_back(self, report: StopReport) -> None:
        """The workers have ended, and `report` is about their clients."""
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
                self._server._accept_loop.request_stop()
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
        if self._server._accept_loop.accepts_here():
            self.order = order
            self._postpone(self._stop_as_ordered)
            return StopReport(0, 0)
        self._server.server_close()
        self.close()  # an overridden server_close may have closed the socket, and no more
        connections = self._server._connections
        if life.state is State.CLOSED and connections.limited:
            connections.finish_spared(self._seconds(order), spare=_me())
        return self.report if life.state is State.CLOSED else connections.drained()

    def _stop_as_ordered(self) -> None:
        self.stop(*self.order)

    def _postpone(self, stop: Callable[[], object]) -> None:
        self._postponed = self._postponed or stop
        self._server._accept_loop.request_stop()

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
        self._server._connections.limit(limit, Deadline(order.patience))
        self._life.changed.notify_all()  # the wait for the stop may be shorter now

    def _seconds(self, order: Order) -> float:
        return self._server._options.drain_timeout if order.timeout is None else order.timeout

    # The stop

    def close(self) -> None:
        """Stop the server, unless it is stopped, or wait for the stop under way. Idempotent."""
        if self.workers is not None and not self.workers.stopping:
            self._server.stop()
        elif self._server._accept_loop.accepts_here():
            self._postpone(self.close)
        elif self._begin():
            try:
                self._close()
            finally:
                self._thread = None
                self._life.enter(State.CLOSED)

    def _begin(self) -> bool:
        """Whether the calling thread is to stop the server."""
        life, server = self._life, self._server
        with life.changed:
            self._wait_for_opener_locked()
            if not self._is_waited_for():
                self._wait_for_other_stop_locked()
                self._wait_for_opener_locked()  # of a server that listens again since then
            if life.state in (State.DRAINING, State.CLOSED):
                return False
            if not hasattr(server, "socket"):
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
        server = self._server
        return (
            self._thread == _me()
            or self.background is threading.current_thread()
            or server._connections.waits_for(_me())
            or server._accept_loop.runs_here()
            or server._watchdog.runs_here()
        )

    def _wait_for_other_stop_locked(self) -> None:
        """Wait until it has ended or is overdue: an observer that it calls may never return."""
        life, connections = self._life, self._server._connections
        while life.state is State.DRAINING and connections.time_left() != 0:
            life.changed.wait(connections.time_left())
        life.changed.wait_for(lambda: life.state is not State.DRAINING, self.grace + _SLACK)

    def _close(self) -> None:
        server = self._server
        accepting, connections = server._accept_loop, server._connections
        try:
            server._listeners.remove_files()
            accepting.request_stop()
            if server.block_on_close or connections.limited:
                self._drain()
            else:
                connections.wait_until(accepting.has_ended(), server._options.drain_timeout)
        finally:
            server._client_threads.close()
            server._watchdog.close(0)
            server._listeners.close()
            server._acceptor.close()

    def _drain(self) -> None:
        server = self._server
        connections, has_ended = server._connections, server._accept_loop.has_ended()
        all_left = connections.all_left(spare=_me())
        if not connections.limited:  # not by `stop`
            connections.limit(Deadline(server._options.drain_timeout))
        try:
            if connections.patient:
                if connections.wait_for_leaving(has_ended):
                    self._end_accepting()
                connections.wait_for_leaving(all_left)
            connections.begin_draining()
            if connections.wait_while_draining(has_ended):
                self._end_accepting()
            connections.wait_while_draining(all_left)
        finally:  # a second Ctrl+C may have ended the wait
            connections.cut(spare=_me())
            self.report = connections.drained()
        self._wait_for_threads(has_ended, all_left)
        self.report = connections.drained()
        server._refusals.end_episodes(quiet=0)
        if server._accept_loop.has_begun:
            events.emit(events.Stopped(*self.report), server)

    def _end_accepting(self) -> None:
        """After the end of the accepting thread: accept the queued clients, close the listeners."""
        self.join_background(self._server._connections.time_left())
        if self._server._acceptor.accept_queued():
            self._server._listeners.close()

    def _wait_for_threads(
        self, has_ended: Callable[[], bool], all_left: Callable[[], bool]
    ) -> None:
        """Wait for at most `grace` seconds, and leave behind the threads that are busy then."""
        server, grace = self._server, Deadline(self.grace)
        server._client_threads.close()
        if server._connections.wait_until(has_ended, grace.remaining()):
            self.join_background(grace.remaining())
        server._connections.wait_until(all_left, grace.remaining())
        server._client_threads.join(grace.remaining())
        server._watchdog.close(grace.remaining())

    # The accepting thread of `Server.start`

    def keeps_alive(self) -> bool:
        """Whether Python waits for the accepting thread at the end of the program."""
        thread = self.background
        return thread is not None and thread.is_alive() and not thread.daemon

    def join_background(self, timeout: float | None) -> None:
        """Wait for the end of the accepting thread, at most `timeout` seconds."""
        if self.background is not None:
            join(self.background, timeout)


def _me() -> int:
    return threading.get_ident()
