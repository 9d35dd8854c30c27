"""How a worker process is started: by which method, with what, on which core, and amid signals."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from ..core.cores import has_gil, usable_cores
from ..server import log, log_config
from ..server.server import Server
from .channel import SentSocket
from .signals import StopSignals

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext

Load = Callable[[], Any]

# What a parent handles and passes on as orders. All of them may come to the whole process group,
# from a terminal: a worker must not take them for its own.
PARENTS_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGHUP", "SIGTTIN", "SIGTTOU") if hasattr(signal, name)
)
HELD_BACK = {*StopSignals.SIGNALS, *PARENTS_SIGNALS}


def to_be_loaded(connection: Any, **_: Any) -> None:
    """Stands for a handler until a worker has loaded its own."""


class Recipe(NamedTuple):
    """The parts of a server that can be pickled, for another process to make the same server."""

    kind: type[Server]
    handler: Any
    options: dict[str, Any]
    listeners: tuple[Any, ...]  # sockets, or what becomes one as it is sent
    status_lines: bool = False

    def __repr__(self) -> str:  # there may be keys in it
        return f"<{type(self).__name__}>"

    def make(self) -> Server:
        """The server, not listening yet."""
        return self.kind(None, self.handler, **self.options)

    def prepare_process(self) -> None:
        """Make a new interpreter like the parent, as far as a copy would have it from there."""
        _end_inheritance()
        if self.status_lines and not log.logger.hasHandlers():
            log_config.add_status_lines()


def cores_of(count: int) -> tuple[int, ...]:
    """The cores on which `count` workers stay, one each; empty if the kernel may move them.

    With the GIL, a thread that wakes up on another core than the one that has the lock only gets in
    its way: on one core they take turns by themselves, without waiting for the lock. Where there
    are fewer workers than cores, an idle core must not be closed to them.
    """
    cores = usable_cores()
    pinned = has_gil() and hasattr(os, "sched_setaffinity") and count >= len(cores)
    return cores if pinned else ()


def ingredients(
    server: Server, method: str | None, load: Load | None, anew: bool, pems: dict[str, Any]
) -> tuple[BaseContext, Server | Recipe]:
    """The context that starts a `Worker`, and the server, or a recipe of it.

    `method`: the start method that the program has chosen, or None. `anew`: the worker must not be
    a copy of this process. `pems`: options of TLS in the place of those that name files.
    """
    import multiprocessing
    from multiprocessing import resource_tracker

    if method is None:
        method = "fork" if sys.platform == "linux" and _has_one_thread() else "spawn"
    if anew:
        method = "spawn"
    context = multiprocessing.get_context(method)
    if method == "fork":
        return context, server
    handler = server.RequestHandlerClass if load is None else to_be_loaded
    options = {**server._options.as_dict(), **pems}
    options["handler_args"] = dict(options["handler_args"])
    _check_constructor(type(server), handler, options)
    with signals_held_back():  # of which a terminal that is closed sends it one, too
        resource_tracker.ensure_running()  # else with the first of them, whose signals it lets in
    if method == "forkserver":
        from multiprocessing import forkserver

        forkserver.ensure_running()  # else with the first of them, whose signals are held back
    listeners = tuple(map(SentSocket, server._listeners.sockets))
    lines = log_config.shows_status_lines()
    return context, Recipe(type(server), handler, options, listeners, lines)


def _check_constructor(kind: type[Server], handler: Any, options: dict[str, Any]) -> None:
    """TypeError, before a process is started, if `Recipe.make` cannot call the constructor."""
    import inspect

    try:
        inspect.signature(kind).bind(None, handler, **options)
    except TypeError as error:
        raise TypeError(
            f"{kind.__name__} cannot be made in a spawned worker ({error}): its constructor must"
            " take (server_address, handler, **options)"
        ) from None


def _has_one_thread() -> bool:
    """Whether this process may be forked: the threads of libraries count, too (Linux, proc(5))."""
    if threading.active_count() > 1:
        return False
    for pause in (0.0, 0.001, 0.01, 0.1):  # one that has been joined may be there for a moment
        time.sleep(pause)
        try:
            if len(os.listdir("/proc/self/task")) == 1:
                return True
        except OSError:  # there is no such folder, or no descriptor left
            return True
    return False


def _end_inheritance() -> None:
    """Have programs that a new interpreter executes inherit none of its descriptors.

    It has itself inherited those of `netkit` and `multiprocessing`.
    """
    for name in os.listdir("/dev/fd"):
        if int(name) > 2:
            with contextlib.suppress(OSError):  # the list's own
                os.set_inheritable(int(name), False)


@contextlib.contextmanager
def signals_held_back() -> Iterator[None]:
    """Block what a worker handles, while it is started: it inherits that, and ends it itself."""
    if not hasattr(signal, "pthread_sigmask"):  # pragma: no cover - Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
