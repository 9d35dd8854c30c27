"""The life of a worker process: a server of its own, on the listeners of its parent."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

from ..core import events
from ..core.cores import has_gil, usable_cores
from ..core.endpoint import DIRECT, Layers
from ..core.errors import Failure, TlsConfigError
from ..core.record import NamedTuple
from ..net import gate
from ..net.forks import undo_in_children
from ..net.ids import number_by
from ..server import log, log_config, log_hooks
from ..server.registry import StopReport
from ..server.server import Server
from .application import Application, to_be_loaded
from .channel import Channel, Failed, Loaded, News, Ready, SentSocket
from .hooks import Hooks
from .orders import Attached, Orders
from .service import RunReport, supervise
from .shared import SharedNumbers, SharedPlaces, check_places
from .signals import REQUESTS, StopSignals
from .worker import PARENTS_SIGNALS

if TYPE_CHECKING:
    from .application import Load

_OF_PARENT = (
    events.StopDelayed,
    events.Stopping,
    events.Stopped,
)  # logged by the parent, for all workers


def core_of(index: int, count: int) -> int | None:
    """Return the core on which worker number `index` of `count` stays; None if it runs on any.

    With the GIL, a thread that wakes up on another core than the thread that holds the GIL only
    gets in its way. On one core only one thread runs, and has the GIL. With fewer workers than
    cores, no worker may leave a core idle. That holds for a quota of CPU time, too: it is for no
    core in particular, and if each container kept to the first cores, the others would be idle.
    """
    cores = usable_cores()
    pinned = has_gil() and hasattr(os, "sched_setaffinity") and count >= len(cores)
    return cores[index % len(cores)] if pinned else None


def _stay_on(core: int) -> None:
    with contextlib.suppress(OSError):  # the process may not use it any more: any will do
        os.sched_setaffinity(0, {core})
        gate.renew()


# How a process that is not forked makes the server of its parent


class Recipe(NamedTuple):
    """The parts of a server that can be pickled, so that another process makes the same server."""

    kind: type[Server]
    handler: Any
    options: dict[str, Any]
    listeners: tuple[Any, ...]  # sockets, or what becomes one when it is sent
    status_lines: bool = False
    layers: tuple[Layers, ...] = (DIRECT,)  # of each listener

    def __repr__(self) -> str:  # without options: there may be keys among them
        return f"<{type(self).__name__}>"

    def make(self) -> Server:
        """Make the server, which does not listen yet."""
        return self.kind(None, self.handler, **self.options)


def prepare_process(status_lines: bool) -> None:
    """Give a new interpreter what a forked process would have from its parent.

    With `status_lines`, its log goes to standard error, unless the program has configured it.
    """
    # Programs that it executes must not inherit the descriptors that it has inherited itself.
    for descriptor in map(int, os.listdir("/dev/fd")):
        with contextlib.suppress(OSError):  # the list's own
            os.set_inheritable(descriptor, descriptor <= 2)
    if status_lines and not log.logger.hasHandlers():
        log_config.add_status_lines()


def recipe_of(server: Server, load: Load | None, pems: dict[str, Any]) -> Recipe:
    """Return how to make `server`. With `load`, the recipe has no handler.

    `pems` has the contents of files for the TLS options that name files. TypeError if the class of
    `server` has another constructor than `Server`.
    """
    import inspect

    kind = type(server)
    handler = server.RequestHandlerClass if load is None else to_be_loaded
    options = {**server._options.as_dict(), **pems}
    options["handler_args"] = dict(options["handler_args"])
    try:
        inspect.signature(kind).bind(None, handler, **options)
    except TypeError as error:
        raise TypeError(
            f"{kind.__name__} cannot be made in a spawned worker ({error}): its constructor must"
            " take (server_address, handler, **options)"
        ) from None
    listeners = tuple(map(SentSocket, server._listeners.sockets))
    shows_lines = log_config.shows_status_lines()
    return Recipe(kind, handler, options, listeners, shows_lines, server._listeners.layers)


# In the new process


def work(
    channel: Channel,
    source: Server | Recipe,
    load: Load | None,
    hooks: Hooks,
    places: SharedPlaces | None,
    numbers: SharedNumbers | None,
    core: int | None,
    attached: Attached,
) -> None:
    """Serve until the parent orders a stop, or ends. Runs in the main thread of a new process.

    `source` is the parent's own server if the process was forked, else the recipe for that server.
    `load` returns the handler, or the application, whose hooks replace `hooks`; it is called here,
    so that it imports the present code. Without `places`, connections are not limited; without
    `numbers`, the worker numbers its connections itself; without `core`, it runs on any core.
    """
    undo_in_children(channel.close)
    if isinstance(source, Recipe):
        prepare_process(source.status_lines)
    attached.forget_others()
    if numbers is not None:
        number_by(numbers.take)
    if core is not None:
        _stay_on(core)
    log.logger.addFilter(lambda it: not isinstance(getattr(it, "event", None), _OF_PARENT))
    with StopSignals(afterwards=signal.SIG_IGN) as signals:
        signals.disregard(*PARENTS_SIGNALS)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, REQUESTS)
        try:
            orders = Orders(channel.trust())
            threading.Thread(None, orders.obey, "netkit-orders", daemon=True).start()
            server, hooks = _make(source, load, hooks)
            _share(server, places)
            _send(channel, _loaded(server, hooks))
            with orders.carried_out(server, attached):
                report = _serve(server, channel, signals, hooks)
        except Exception as error:
            _send(channel, Failed(_explained(error)))
            sys.exit(error.exit_status if isinstance(error, Failure) else 1)
        log_hooks.report_rest()  # `multiprocessing` ends a worker without `atexit`
        _send(channel, StopReport(report.finished, report.cut))


def _serve(server: Server, channel: Channel, signals: StopSignals, hooks: Hooks) -> RunReport:
    when_ready = partial(_send, channel, Ready())
    return supervise((server,), signals, None, hooks.reporting(), None, when_ready)


def _make(source: Server | Recipe, load: Load | None, hooks: Hooks) -> tuple[Server, Hooks]:
    if isinstance(source, Recipe):
        server, listeners, layers = source.make(), source.listeners, source.layers
    else:
        server, listeners = source, source._listeners.sockets
        layers = source._listeners.layers
    loaded = None if load is None else load()
    if isinstance(loaded, Application):
        server, hooks = loaded.complete(server), loaded.hooks
    elif load is not None:
        server.RequestHandlerClass = loaded
    server.take_over(*listeners, layers=layers)
    server._listeners.check_layers(server._configuration.setup)
    return server, hooks


def _explained(error: Exception) -> str:
    for_users = isinstance(error, (Failure, TlsConfigError))
    return str(error) if for_users else f"{type(error).__name__}: {error}"


def _loaded(server: Server, hooks: Hooks) -> Loaded:
    options = server._options
    hook_seconds = hooks.stop_seconds if hooks else 0.0
    tls = server._configuration.setup.speaks_tls
    times = options.drain_timeout, hook_seconds
    return Loaded(*times, options.limited, tls, options.stop_delay)


def _share(server: Server, places: SharedPlaces | None) -> None:
    """Have `max_connections` of the server hold for all workers together."""
    limit = server._options.max_connections
    if places is not None and limit is not None:
        check_places(limit)
        places.open(limit)
        server.share_places(places)


def _send(channel: Channel, news: News) -> None:
    with contextlib.suppress(OSError):  # the parent is gone
        channel.send(news)
