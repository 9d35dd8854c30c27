"""What a worker process loads: an application of the program, or only a handler."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ..core import events
from ..core.addresses import format_unix, is_loopback
from ..core.record import NamedTuple
from ..server.reload import configure, lists_in_files
from ..server.server import Server
from .channel import Loaded
from .hooks import Hooks
from .worker import Worker


class Application(NamedTuple):
    """What the function `load` of `Workers` may return in the place of a handler."""

    complete: Callable[[Server], Server]
    """Is called with the server that the options of the parent make, which does not listen.

    Returns the server that is to serve: the same one, or a server of the program. A Failure if the
    application cannot serve.
    """
    hooks: Hooks


if TYPE_CHECKING:
    from ..server.signatures import AnyHandler

    Load = Callable[[], AnyHandler | Application]


def to_be_loaded(connection: Any, **_: Any) -> None:
    """The handler of a server which an application completes."""


def learn(workers: Iterable[Worker], server: Server) -> None:
    """Have the server of a parent adopt the options of workers that have loaded an application."""
    for worker in workers:
        if worker.loaded is not None and not worker.is_known:
            worker.is_known = True
            _adopt(worker.loaded, server)


def _adopt(loaded: Loaded, server: Server) -> None:
    times = {"drain_timeout": loaded.drain_timeout, "stop_delay": loaded.stop_delay}
    configure(server._configuration, times)
    listeners = server._listeners
    if listeners.is_silent and not listeners.announced:
        listeners.announced.extend(news_of(server, loaded))
        for event in tuple(listeners.announced):
            events.emit(event, server)


def news_of(server: Server, loaded: Loaded) -> Iterator[events.Event]:
    """The events of a parent about the listeners of `server`, which its workers' options decide."""
    is_announced = loaded.is_limited
    for where, layers in zip(server.addresses, server._listeners.layers, strict=True):
        address = format_unix(where) if isinstance(where, str) else str(where)
        tls = loaded.speaks_tls if layers.tls is None else layers.tls
        yield events.Listening(address, tls, layers.proxy)
        if not (isinstance(where, str) or is_announced or is_loopback(where.address)):
            is_announced = True
            yield events.Unlimited(address)
    for name, addresses in lists_in_files(server._options).items():
        yield events.ListLoaded(name, len(addresses), addresses.path or "")
