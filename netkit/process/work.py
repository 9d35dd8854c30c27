"""The life of a worker process: a server of its own, on the listeners of its parent."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading

from ..core import events
from ..core.errors import Failure
from ..core.record import NamedTuple
from ..net.forks import undo_in_children
from ..net.ids import number_by
from ..server import log, log_hooks
from ..server.registry import StopReport
from ..server.server import Server
from .channel import Channel, Failed, News, Ready, Stop
from .child import HELD_BACK, PARENTS_SIGNALS
from .numbering import SharedNumbers
from .recipe import Load, Recipe
from .semaphore import SharedPlaces
from .service import supervise
from .signals import StopSignals


class Share(NamedTuple):
    """A worker's share of what the workers have together."""

    number: int = 0
    """The least number that no other worker has."""
    places: SharedPlaces | None = None
    """The limit of connections of all workers together; None if there is no limit."""
    numbers: SharedNumbers | None = None
    """The source of connection numbers; None if each worker numbers its own."""
    core: int | None = None
    """Where the process stays; None if it runs on any core."""


def work(channel: Channel, source: Server | Recipe, load: Load | None, share: Share) -> None:
    """Serve until the parent orders a stop, or ends. Runs in the main thread of a new process.

    `source`: the parent's own server if the process was forked, else how to make it. `load`
    returns the handler; it is called here, so that it imports the present code.
    """
    undo_in_children(channel.close)
    if isinstance(source, Recipe):
        source.prepare_process()
    if share.numbers is not None:
        number_by(share.numbers.take)
    if share.core is not None:
        with contextlib.suppress(OSError):  # the process may not use it any more: any will do
            os.sched_setaffinity(0, {share.core})
    log.hide(events.Stopping, events.Stopped)  # the parent logs them once for all workers
    with StopSignals(afterwards=signal.SIG_IGN) as signals:
        signals.disregard(*PARENTS_SIGNALS)
        if hasattr(signal, "pthread_sigmask"):  # pragma: no branch - not on Windows
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)
        try:
            report = _serve(channel, source, load, share, signals)
        except Exception as error:
            told = str(error) if isinstance(error, Failure) else f"{type(error).__name__}: {error}"
            _send(channel, Failed(told))
            sys.exit(1)
        log_hooks.report_rest()  # `multiprocessing` ends a worker without `atexit`
        _send(channel, report)


def _serve(
    channel: Channel,
    source: Server | Recipe,
    load: Load | None,
    share: Share,
    signals: StopSignals,
) -> StopReport:
    made = _Made()
    arguments = (made, channel)
    threading.Thread(None, _obey, "netkit-orders", arguments, daemon=True).start()
    server = _make(source, load)
    if share.places is not None:
        share.places.index = share.number
        server.share_places(share.places)
    server._serving.when_accepting = lambda: _send(channel, Ready())
    made.put(server)
    report = supervise(server, signals)
    return StopReport(report.finished, report.cut)


def _make(source: Server | Recipe, load: Load | None) -> Server:
    if isinstance(source, Recipe):
        server, listeners = source.make(), source.listeners
    else:
        server, listeners = source, source._listeners.sockets
        server._drain.workers = None  # which is the parent's
    if load is not None:
        server.RequestHandlerClass = load()
    server.take_over(*listeners)
    return server


def _send(channel: Channel, news: News) -> None:
    with contextlib.suppress(OSError):  # the parent is gone
        channel.send(news)


class _Made:
    """The server of this process, once it has been made."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the server
        self._server: Server | None = None

    def put(self, server: Server) -> None:
        with self._lock:
            self._server = server

    def request_stop(self, *order: float) -> None:
        """Stop the server. While it is being made, which may hang, end the process at once."""
        with self._lock:
            server = self._server
            if server is None:
                os._exit(1)
        server.request_stop(*order)


def _obey(server: _Made, channel: Channel) -> None:
    """Carry out orders. Stop gracefully once the parent is gone."""
    with contextlib.suppress(EOFError, OSError, ValueError):
        while True:
            for order in channel.receive(Stop):
                server.request_stop(*order)
    server.request_stop()
