"""How a server stops.

A stop has an order: it ends the turn of accepting; has idle clients see the end of input; accepts
the queued clients; waits for the busy ones until the deadline; cuts the rest; joins the threads;
reports.

Rules:

1. All waits have one deadline, which a second call may bring forward. A stop waits for the threads
   that may run code of the program (the accepting thread, a client's, the watchdog) until then,
   and for `CUT_GRACE` more; then it leaves them behind, and they end once that code returns.
2. A thread that a stop waits for, and that stops the server itself (a handler, an observer), does
   not wait for that stop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from ..core import events
from ..core.deadline import Deadline
from ..core.options import check_seconds
from .listeners import ListeningServer, State
from .registry import StopReport
from .threads import join

# How long a stop waits for the threads of the clients that it has cut (seconds).
CUT_GRACE = 1.0

# How much longer than the deadline and the grace a stop may take before a thread that waits for it
# goes on without it (seconds).
_SLACK = 0.05


class Supervisor(Protocol):
    """What a server needs of `netkit.process.supervisor.Workers`."""

    stopping: bool

    def stop(self, timeout: float | None, patience: float) -> None: ...

    def outcome(self) -> StopReport: ...


class StoppableServer(ListeningServer):
    """The part of `Server` that stops it. Not used by itself."""

    def _prepare(self) -> None:
        super()._prepare()
        self._background: threading.Thread | None = None
        self._closing_thread: int | None = None
        self._supervisor: Supervisor | None = None  # of worker processes that serve in its stead
        self._report = StopReport(0, 0)

    def request_stop(self, timeout: float | None = None, patience: float = 0.0) -> None:
        """End `serve_forever` soon; returns at once, from wherever it is called.

        `timeout` and `patience` are for the `stop` that follows, if it is given none of its own.
        """
        if self._supervisor is not None:
            self._supervisor.stop(timeout, patience)
            return
        with self._changed:
            self._stop_order = (timeout, patience)
            if self._state is State.DRAINING:
                self._limit_locked(timeout, patience)
        self._accepting.request_stop()

    def _limit_locked(self, timeout: float | None, patience: float) -> None:
        seconds = self._options.drain_timeout if timeout is None else timeout
        self._connections.limit(Deadline(patience + seconds), Deadline(patience))
        self._changed.notify_all()  # the wait for the stop may be shorter now

    def shutdown(self) -> None:
        """End `serve_forever`, and wait until it has ended (milliseconds).

        Clients stay connected, and new ones are queued by the kernel until the server serves again
        or is closed. In the serving thread itself (a signal handler), it does not wait. Before the
        server has ever served, the next `serve_forever` returns at once.
        """
        self._accepting.request_stop()
        self._accepting.wait_for_end()

    def stop(self, timeout: float | None = None, patience: float = 0.0) -> StopReport:
        """Stop gracefully, and report how many clients finished and how many were cut.

        The clients that are queued already are the last to be accepted. For `patience` seconds
        clients go on as before. Then idle ones see the end of input; busy ones get `timeout`
        seconds (by default the option `drain_timeout`) before they are cut. Idempotent; a second
        call, from another thread, waits for the first, and the shorter of the two time limits
        counts. A handler that calls this does not wait for its own connection; other threads that
        call this later, and the interpreter's exit, give that connection its time.
        """
        with self._changed:
            if timeout is None:
                timeout, patience = self._stop_order
            else:
                check_seconds("timeout", timeout)
                check_seconds("patience", patience)
                self._stop_order = (None, 0.0)  # an order that comes from now on counts, too
            supervisor = self._supervisor
            if self._state is not State.CLOSED and supervisor is None:
                self._limit_locked(timeout, patience)
        if supervisor is not None:
            supervisor.stop(timeout, patience)
            return supervisor.outcome()
        self.server_close()
        self._close_down()  # an override may have closed the socket, and no more
        if self._state is State.CLOSED and self._connections.limited:
            seconds = self._options.drain_timeout if timeout is None else timeout
            self._connections.finish_spared(seconds, spare=_me())
        return self._report if self._state is State.CLOSED else self._connections.drained()

    def close(self) -> StopReport:
        """Stop now: as `stop`, with no time for busy clients."""
        return self.stop(0)

    def server_close(self) -> None:
        """Stop gracefully within `drain_timeout`, as `stop` does; idempotent.

        If `block_on_close` is False, it closes the listeners and leaves the clients connected.
        """
        self._close_down()

    def _close_down(self) -> None:
        if self._supervisor is not None and not self._supervisor.stopping:
            self.stop()
            return
        with self._changed:
            if self._opener != _me():  # else its sockets would be closed while it uses them
                self._changed.wait_for(lambda: self._opener is None, CUT_GRACE)
            if not self._is_waited_for():
                self._wait_for_other_stop_locked()
            if self._state in (State.DRAINING, State.CLOSED):
                return
            if not hasattr(self, "socket"):
                if self._opener is not None:  # `listen` closes what it has opened so far
                    self._enter(State.CLOSED)
                return
            self._enter(State.DRAINING)
            self._closing_thread = _me()
            self._report = StopReport(0, 0)  # not that of an earlier life
            if self._stop_order[0] is not None:  # it came since, or is all that was said
                self._limit_locked(*self._stop_order)
        try:
            self._remove_files()
            self._accepting.request_stop()
            if self.block_on_close or self._connections.limited:
                self._drain()
            else:
                over, seconds = self._accepting.has_ended(), self._options.drain_timeout
                self._connections.wait_until(over, seconds)
        finally:
            try:
                self._client_threads.close()
                self._lifetimes.close(0)
                self._close_listeners()
                self._shut_doors()
            finally:  # others wait for it
                self._closing_thread = None
                self._enter(State.CLOSED)

    def _is_waited_for(self) -> bool:
        """Whether a stop under way waits for the calling thread, which cannot wait for it then."""
        return (
            self._closing_thread == _me()
            or self._connections.waits_for(_me())
            or self._accepting.runs_here()
            or self._lifetimes.runs_here()
        )

    def _wait_for_other_stop_locked(self) -> None:
        """Wait until it has ended or is overdue: an observer that it calls may never return."""
        while self._state is State.DRAINING and self._connections.time_left() != 0:
            self._changed.wait(self._connections.time_left())
        self._changed.wait_for(lambda: self._state is not State.DRAINING, CUT_GRACE + _SLACK)

    def _drain(self) -> None:
        connections, over = self._connections, self._accepting.has_ended()
        everybody = connections.all_left(spare=_me())
        if not connections.limited:  # not by `stop`
            connections.limit(Deadline(self._options.drain_timeout))
        try:
            if connections.patient:
                if connections.wait_for_leaving(over):
                    self._end_accepting()
                connections.wait_for_leaving(everybody)
            connections.begin_draining()
            if connections.wait_while_draining(over):
                self._end_accepting()
            connections.wait_while_draining(everybody)
        finally:  # a second Ctrl+C may have ended the wait
            connections.cut(spare=_me())
            self._report = connections.drained()
        self._wait_for_threads(over, everybody)
        self._report = connections.drained()
        self._refusals.end_episodes(quiet=0)
        if self._accepting.has_begun:
            events.emit(events.Stopped(*self._report), self)

    def _end_accepting(self) -> None:
        """After the turn of accepting: accept the queued clients, and close the listeners."""
        self._join_background(self._connections.time_left())
        self._accept_queued()
        self._close_listeners()

    def _wait_for_threads(self, over: Callable[[], bool], everybody: Callable[[], bool]) -> None:
        """Wait for at most `CUT_GRACE`, and leave the other threads behind."""
        self._client_threads.close()
        grace = Deadline(CUT_GRACE)
        if self._connections.wait_until(over, CUT_GRACE):
            self._join_background(grace.remaining())
        self._connections.wait_until(everybody, grace.remaining())
        self._client_threads.join(grace.remaining())
        self._lifetimes.close(grace.remaining())

    def _keeps_alive(self) -> bool:
        """Whether its thread is one that Python waits for at the end of the program."""
        thread = self._background
        return thread is not None and thread.is_alive() and not thread.daemon

    def _join_background(self, timeout: float | None) -> None:
        if self._background is not None:
            join(self._background, timeout)


def _me() -> int:
    return threading.get_ident()
