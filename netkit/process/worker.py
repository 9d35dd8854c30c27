"""One worker process: a server of its own, on the listeners of its parent.

The parent sends orders. The worker reports that it is ready, or why it cannot serve, and in the end
how many clients it has finished with (`netkit.process.channel`). Each sees the end of input once
the other one has ended in any way. A worker that sends an invalid message is killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..core import events
from ..core.deadline import Deadline
from ..core.errors import LoadError
from ..net.forks import do_not_undo, undo_in_children
from ..net.ids import number_by
from ..server import log, log_hooks
from ..server.drain import CUT_GRACE
from ..server.registry import StopReport
from ..server.server import Server
from .channel import Channel, Failed, News, Ready, Stop, channel_pair
from .numbering import SharedNumbers
from .recipe import HELD_BACK, PARENTS_SIGNALS, Load, Recipe, signals_held_back
from .semaphore import SharedPlaces
from .signals import StopSignals

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext

# Seconds that one gets to end by itself, from when its clients are cut: the threads of those get
# `CUT_GRACE`, and all must be over before a supervisor loses patience (docker stop: 10 seconds).
KILL_GRACE = 1.9 * CUT_GRACE
READY_SECONDS = 300.0  # for loading a handler: models may be large


class Worker:
    """A worker process, as its parent sees it."""

    def __init__(self, generation: int, index: int) -> None:
        """`index`: its number among the workers that there are."""
        self.generation = generation
        self.index = index
        self.round = 0  # of the parent's starting workers
        self.ready = False
        self.told: Stop | None = None
        self._kill_unready_at, self._kill_ready_at = Deadline(READY_SECONDS), Deadline(None)
        self.failure: str | None = None
        self.report = StopReport(0, 0)
        self.status: int | None = 0
        self.has_ended = False
        self.started_at = time.monotonic()
        self.channel, self._theirs = channel_pair()
        self.process: Any = None
        self.pid = 0
        self._pidfd: int | None = None
        self.end = -1
        """A descriptor, or a sentinel of multiprocessing, that is readable once it has ended."""

    def start(
        self,
        context: BaseContext,
        source: Server | Recipe,
        load: Load | None,
        places: SharedPlaces | None = None,
        numbers: SharedNumbers | None = None,
        cores: Sequence[int] = (),
    ) -> None:
        """Start it. If that fails, or a signal handler raises, it has ended after `kill`.

        `places`: shared with the other workers; None if the server has no limit. `numbers`: shared,
        too; None if each worker numbers its own connections. `cores`: it stays on one of them, and
        each has equally many workers; empty if it may run on any. Raises OSError if the system
        cannot start it, and what pickling raises if `source` is a `Recipe`.
        """
        core = cores[self.index % len(cores)] if cores else None
        # A child that kept its copy of our end would keep the worker from seeing that we are gone.
        undo_in_children(self.channel.close)
        self.process = context.Process(  # type: ignore[attr-defined] # not in typeshed
            target=work,
            args=(source, load, self._theirs, places, numbers, self.index, core),
            name="netkit-worker",
        )
        try:
            with signals_held_back():
                self.process.start()
        except OSError as error:
            _close_pipes(error)
            raise
        self._theirs.close()
        self.pid = self.process.pid
        self._pidfd = _pidfd(self.process)
        self.end = self.process.sentinel if self._pidfd is None else self._pidfd

    @property
    def age(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self.started_at

    @property
    def leaving(self) -> bool:
        """Whether it has been told to stop."""
        return self.told is not None

    @property
    def kill_at(self) -> Deadline:
        """When it should have ended, or should have become ready."""
        return self._kill_ready_at if self.ready else self._kill_unready_at

    def tell(self, order: Stop) -> None:
        """Give an order, and time to obey it; nothing if it is gone.

        An order that is no stricter than those before is not given: of one that hangs, and reads
        none, the channel would be full some day, and its parent hang, too.
        """
        self._allow(sum(order) + KILL_GRACE)
        strictest = order if self.told is None else Stop(*map(min, order, self.told))
        if strictest == self.told:
            return
        self.told = strictest
        with contextlib.suppress(OSError):
            self.channel.send(order)

    def _allow(self, seconds: float) -> None:
        """Have it end within `seconds`, or sooner if it is not ready, and so has no clients."""
        self._kill_ready_at = self._kill_ready_at.earlier(Deadline(seconds))
        self._kill_unready_at = self._kill_unready_at.earlier(Deadline(min(seconds, KILL_GRACE)))

    def kill(self) -> None:
        """End it at once, and wait for that; nothing if it has `ended`."""
        if self.has_ended:
            return
        if not (self.ready or self.leaving or self.failure):
            self.failure = f"not ready after {READY_SECONDS:g} seconds"
        if self._is_started():
            self.process.kill()
            self.process.join()

    def _is_started(self) -> bool:
        return self.process is not None and self.process.pid is not None

    def listen(self) -> None:
        """Read the messages that have come so far. Never waits."""
        try:
            while not self.channel.closed:
                for news in self.channel.receive(Ready, Failed, StopReport):
                    self._take_in(news)
        except BlockingIOError:
            return
        except (EOFError, OSError):  # that was all, and it is to end; it may be another program now
            self.channel.close()
            self._allow(KILL_GRACE)
        except ValueError as error:
            self.failure = f"worker {self.pid} has sent {error}"
            self.channel.close()
            self._allow(0)

    def _take_in(self, news: News) -> None:
        if isinstance(news, Ready):
            self.ready = True
            return
        if isinstance(news, Failed):
            self.failure = news.reason
        else:
            self.report = news
        self._allow(KILL_GRACE)  # it has nothing more to do

    def ended(self) -> bool:
        """Whether it is gone; then its last words have been taken in, and all it held is free."""
        if not self.has_ended and self._is_started():
            status = self.process.exitcode
            if status is None:
                if not self._is_lost():
                    return False
                status = self.process.exitcode  # it may have ended since
            self.listen()
            self.status = status
        self.has_ended = True
        self._release()
        return True

    def _release(self) -> None:
        """Give back all that it held here; idempotent, since a signal handler may raise."""
        do_not_undo(self.channel.close)
        self.channel.close()
        self._theirs.close()
        if self.process is not None:
            with contextlib.suppress(ValueError):  # it takes a lost one for one that runs
                self.process.close()
        if self._pidfd is not None:
            pidfd, self._pidfd = self._pidfd, None
            os.close(pidfd)

    def _is_lost(self) -> bool:
        """Whether it has ended, and SIGCHLD is ignored or other code has waited for it."""
        from multiprocessing.connection import wait

        if not wait([self.end], 0):
            return False
        try:
            os.kill(self.pid, 0)
        except OSError:  # there is none, or by now it is another user's
            return True
        return False


def _pidfd(process: Any) -> int | None:
    """A descriptor that is readable once it has ended; None if the system has none.

    A sentinel is readable only after the end of all processes that the worker has forked, too. Not
    for a process of a forkserver, whose sentinel is not inherited.
    """
    if hasattr(os, "pidfd_open") and process._start_method != "forkserver":
        with contextlib.suppress(OSError):
            return os.pidfd_open(process.pid)
    return None


def _close_pipes(error: OSError) -> None:
    """Close the pipes that multiprocessing leaves open if a fork fails: it may fail many times."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        at = (frame.f_globals.get("__name__"), frame.f_code.co_name)
        if at == ("multiprocessing.popen_fork", "_launch"):
            for name in ("parent_r", "child_w", "child_r", "parent_w"):
                if name in frame.f_locals:
                    os.close(frame.f_locals[name])


# In the worker's process


def work(
    source: Server | Recipe,
    load: Load | None,
    channel: Channel,
    places: SharedPlaces | None,
    numbers: SharedNumbers | None,
    index: int,
    core: int | None,
) -> None:
    """The life of a worker. `source`: the parent's own server (fork), or how to make one (spawn).

    `load` returns its handler. It is called in this process, so that it imports the present code.
    """
    undo_in_children(channel.close)
    if isinstance(source, Recipe):
        source.prepare_process()
    if numbers is not None:
        number_by(numbers.take)
    if core is not None:
        with contextlib.suppress(OSError):  # it has been taken from us: then any will do
            os.sched_setaffinity(0, {core})
    log.hide(events.Stopping, events.Stopped)  # the parent tells, once for all workers
    with StopSignals(afterwards=signal.SIG_IGN) as signals:
        signals.disregard(*PARENTS_SIGNALS)
        if hasattr(signal, "pthread_sigmask"):  # pragma: no branch - Windows has none
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)
        made = _Made()
        try:
            args = (made, channel)
            threading.Thread(None, _obey, "netkit-orders", args, daemon=True).start()
            server = _make(source, load)
            if places is not None:
                places.index = index
                server.share_places(places)
            server._serving.when_accepting = lambda: _say(channel, Ready())
            made.put(server)
            report = signals.supervise(server)
        except LoadError as error:
            _say(channel, Failed(str(error)))
            sys.exit(1)
        except Exception as error:
            _say(channel, Failed(f"{type(error).__name__}: {error}"))
            sys.exit(1)
        log_hooks.report_rest()  # `multiprocessing` ends a worker without `atexit`
        _say(channel, StopReport(report.finished, report.cut))


def _make(source: Server | Recipe, load: Load | None) -> Server:
    if isinstance(source, Recipe):
        server, listeners = source.make(), source.listeners
    else:
        server, listeners = source, source._listeners.sockets
        server._drain.workers = None  # that is its parent
    if load is not None:
        server.RequestHandlerClass = load()
    server.take_over(*listeners)
    return server


def _say(channel: Channel, news: Ready | Failed | StopReport) -> None:
    with contextlib.suppress(OSError):  # the parent is gone
        channel.send(news)


class _Made:
    """The server of this process, once there is one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._server: Server | None = None

    def put(self, server: Server) -> None:
        with self._lock:
            self._server = server

    def request_stop(self, *order: float) -> None:
        """As of the server. While it is being made, which may hang, the process ends at once."""
        with self._lock:
            server = self._server
            if server is None:
                os._exit(1)
        server.request_stop(*order)


def _obey(server: _Made, channel: Channel) -> None:
    """Carry out orders; stop gracefully once the parent is gone."""
    with contextlib.suppress(EOFError, OSError, ValueError):
        while True:
            for order in channel.receive(Stop):
                server.request_stop(*order)
    server.request_stop()
