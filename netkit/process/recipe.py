"""What a worker process needs to make the same server as its parent, and on which core it runs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

from ..core.cores import has_gil, usable_cores
from ..core.record import NamedTuple
from ..server import log, log_config
from ..server.server import Server
from .channel import SentSocket

Load = Callable[[], Any]


def to_be_loaded(connection: Any, **_: Any) -> None:
    """The handler of a server whose workers load theirs."""


class Recipe(NamedTuple):
    """The parts of a server that can be pickled, for another process to make the same server."""

    kind: type[Server]
    handler: Any
    options: dict[str, Any]
    listeners: tuple[Any, ...]  # sockets, or what becomes one when it is sent
    status_lines: bool = False

    def __repr__(self) -> str:  # without options: there may be keys among them
        return f"<{type(self).__name__}>"

    def make(self) -> Server:
        """Make the server, which does not listen yet."""
        return self.kind(None, self.handler, **self.options)

    def prepare_process(self) -> None:
        """Give a new interpreter what a forked process would have from its parent."""
        _end_inheritance()
        if self.status_lines and not log.logger.hasHandlers():
            log_config.add_status_lines()


def recipe_of(server: Server, load: Load | None, pems: dict[str, Any]) -> Recipe:
    """Return how to make `server`. With `load`, it has no handler of its own.

    `pems`: what the options of TLS have in place of the names of files. TypeError if the class of
    `server` has another constructor than `Server`.
    """
    handler = server.RequestHandlerClass if load is None else to_be_loaded
    options = {**server._options.as_dict(), **pems}
    options["handler_args"] = dict(options["handler_args"])
    _check_constructor(type(server), handler, options)
    listeners = tuple(map(SentSocket, server._listeners.sockets))
    return Recipe(type(server), handler, options, listeners, log_config.shows_status_lines())


def _check_constructor(kind: type[Server], handler: Any, options: dict[str, Any]) -> None:
    import inspect

    try:
        inspect.signature(kind).bind(None, handler, **options)
    except TypeError as error:
        raise TypeError(
            f"{kind.__name__} cannot be made in a spawned worker ({error}): its constructor must"
            " take (server_address, handler, **options)"
        ) from None


def core_of(index: int, count: int) -> int | None:
    """Return the core on which a worker stays if there are `count`; None if it runs on any.

    `index`: its number among the workers. With the GIL, a thread that wakes up on another core than
    the thread that holds the GIL only gets in its way. On one core the threads take turns, and do
    not wait for the GIL. With fewer workers than cores, no worker may leave a core idle.
    """
    cores = usable_cores()
    pinned = has_gil() and hasattr(os, "sched_setaffinity") and count >= len(cores)
    return cores[index % len(cores)] if pinned else None


def _end_inheritance() -> None:
    """Have programs that this interpreter executes inherit none of its descriptors.

    It has itself inherited those of `netkit` and of `multiprocessing`.
    """
    for name in os.listdir("/dev/fd"):
        if int(name) > 2:
            with contextlib.suppress(OSError):  # the list's own
                os.set_inheritable(int(name), False)
