"""Classes made of `Server` and of a server class of another library, in whichever order of bases.

Such a class is written as if `Server` were `socketserver.ThreadingTCPServer`:

1. This may come together with `ThreadingMixIn`.
2. It has no constructor of its own, and no hooks but those of `ThreadingMixIn`. So those of the
   library count, although `Server` comes first and has some, too.
3. Its methods may be called by the name of a base: ``socketserver.TCPServer.shutdown(self)``.
"""

from __future__ import annotations

import socketserver
import threading
from abc import ABCMeta
from collections.abc import Callable, Iterator
from typing import Any

from .accepting import Accepting

# What a library's class counts for, of the methods that `Server` has.
_LIBRARYS = (
    *("__init__", "get_request", "finish_request", "shutdown_request", "close_request"),
    "handle_error",
)
_PACKAGE = __name__.partition(".")[0]


class ServerType(ABCMeta):
    """The class of netkit's server classes, which makes the bases of a new one fit together.

    `ThreadingMixIn` is left out: they have it among their own bases, and Python would find no order
    for the two. What counts of a library's classes that come after them is put before them. (As a
    subclass of ABCMeta this does not keep them from being abstract.)
    """

    def __new__(
        cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **more: Any
    ) -> ServerType:
        bases = tuple(base for base in bases if base is not socketserver.ThreadingMixIn)
        ours = next((at for at, base in enumerate(bases) if isinstance(base, ServerType)), None)
        if ours is not None:
            later = list(_come_later(bases, ours))
            if later:
                bases = (*bases[:ours], _what_counts(later, bases[ours]), *bases[ours:])
        return super().__new__(cls, name, bases, namespace, **more)


def _come_later(bases: tuple[type, ...], ours: int) -> Iterator[type]:
    """The server classes of libraries that come after ``bases[ours]`` in the order of methods."""
    known = bases[ours].__mro__
    for at, base in enumerate(bases):
        later = at > ours
        for kind in base.__mro__:
            later = later or kind in known  # so does what comes after a base of both
            if later and kind not in known and issubclass(kind, socketserver.BaseServer):
                yield kind


def _what_counts(libraries: list[type], ours: type) -> type:
    """A class with the methods of `libraries` that count although `ours` comes before them."""
    methods: dict[str, Any] = {}
    for name in _LIBRARYS:
        definer = next(kind for kind in ours.__mro__ if name in vars(kind))
        found = [vars(kind)[name] for kind in libraries if name in vars(kind)]
        if found and definer.__module__.partition(".")[0] == _PACKAGE:
            methods[name] = found[0]
    counts: Any = type("LibraryServer", (), methods)
    more_to_close = [kind.server_close for kind in libraries if "server_close" in vars(kind)]  # type: ignore[attr-defined]
    if more_to_close:

        def server_close(self: Any) -> None:
            """Netkit's, and then that of the library, which may have more to close."""
            try:
                super(counts, self).server_close()
            finally:
                more_to_close[0](self)

        counts.server_close = server_close
    return counts  # type: ignore[no-any-return]


class Threads(list[threading.Thread]):
    """Those of a server's clients.

    `ThreadingMixIn.server_close`, if it is called by name, joins them: then the server is closed,
    which waits for them, but not for ever.
    """

    def __init__(self, threads: list[threading.Thread], close: Callable[[], None]) -> None:
        super().__init__(threads)
        self._close = close

    def join(self) -> None:
        self._close()


class _ShutDownEvent:
    """What `BaseServer` takes for the event that is set while its `serve_forever` does not run."""

    def __init__(self, server: CalledByName) -> None:
        self._server = server

    def clear(self) -> None:
        """The first thing that `BaseServer.serve_forever` does."""
        accepting = self._server._accepting
        acceptor = self._server._begin_accepting(single=True)
        self._server._by_name = None if acceptor is None else accepting

    def set(self) -> None:
        """The last thing that it does."""
        accepting, self._server._by_name = self._server._by_name, None
        if accepting is not None:
            accepting.end()

    def wait(self) -> None:
        """The last thing that `BaseServer.shutdown` does."""
        self._server._accepting.wait_for_end()


class CalledByName:
    """Has `BaseServer.serve_forever` and `shutdown` work where a program calls them by name.

    They know of each other by an event and a flag that are private to `BaseServer`. Here, these are
    the server's turn of accepting: so each of the two goes with netkit's own methods as well.
    """

    _accepting: Accepting
    _begin_accepting: Callable[..., Any]
    _accept_one: Callable[[], Any]
    _by_name: Accepting | None = None
    """Whose turn `BaseServer.serve_forever` is in, if it was called by name."""

    @property
    def _BaseServer__is_shut_down(self) -> _ShutDownEvent:
        return _ShutDownEvent(self)

    @_BaseServer__is_shut_down.setter
    def _BaseServer__is_shut_down(self, _: Any) -> None:
        """The constructor of `BaseServer` makes an event of its own, which nobody needs."""

    @property
    def _BaseServer__shutdown_request(self) -> bool:
        return self._by_name is None or self._by_name.stop_requested

    @_BaseServer__shutdown_request.setter
    def _BaseServer__shutdown_request(self, wanted: bool) -> None:
        if wanted:
            self._accepting.request_stop()

    def _handle_request_noblock(self) -> None:
        self._accept_one()
