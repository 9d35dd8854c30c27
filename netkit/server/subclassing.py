"""Lets a class derive from `Server` and from a server class of another library.

Such a class is written as if `Server` were `socketserver.ThreadingTCPServer`:

1. `ThreadingMixIn` may be another base.
2. `ThreadingTCPServer` has no constructor, and no hooks but those of `ThreadingMixIn`. So the
   constructor and the other hooks of the library are used, even if `Server` is the first base.
3. A method may be called by the name of a base: ``socketserver.TCPServer.shutdown(self)``.
"""

from __future__ import annotations

import socketserver
import threading
from abc import ABCMeta
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from .accept_loop import AcceptLoop
    from .acceptor import Acceptor
    from .selector import ListenerSelector
    from .serving import Serving

# The methods that a library's class replaces, though `Server` is the first base.
_REPLACED = (
    *("__init__", "get_request", "finish_request", "shutdown_request", "close_request"),
    "handle_error",
)
_PACKAGE = __name__.partition(".")[0]

_T = TypeVar("_T")


class Shown(Generic[_T]):
    """A read-only property that an attribute of the same name replaces.

    Subclasses written for `socketserver` may use netkit's names for attributes of their own, so
    netkit itself never reads such a property.
    """

    def __init__(self, get: Callable[[Any], _T]) -> None:
        self._get = get
        self.__doc__ = get.__doc__

    def __get__(self, server: Any, _: type) -> _T:
        return self if server is None else self._get(server)  # type: ignore[return-value]


class ServerType(ABCMeta):
    """The metaclass of `Server`. It changes the bases of a subclass.

    It removes `ThreadingMixIn`, which is a base of `Server`: Python finds no method order for a
    class that names it first. It inserts a class before `Server` with those methods of a library
    that replace the server's. It derives from ABCMeta, so that a server class may be abstract.
    """

    def __new__(
        cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **more: Any
    ) -> ServerType:
        bases = tuple(base for base in bases if base is not socketserver.ThreadingMixIn)
        ours = next((at for at, base in enumerate(bases) if isinstance(base, ServerType)), None)
        if ours is not None:
            later = list(_later_libraries(bases, ours))
            if later:
                bases = (*bases[:ours], _class_of_methods(later, bases[ours]), *bases[ours:])
        return super().__new__(cls, name, bases, namespace, **more)


def _later_libraries(bases: tuple[type, ...], ours: int) -> Iterator[type]:
    """Yield the server classes of libraries after ``bases[ours]`` in the method order."""
    known = bases[ours].__mro__
    for at, base in enumerate(bases):
        later = at > ours
        for kind in base.__mro__:
            later = later or kind in known  # a class after a common base comes later, too
            if later and kind not in known and issubclass(kind, socketserver.BaseServer):
                yield kind


def _class_of_methods(libraries: list[type], ours: type) -> type:
    """Return a class with the methods of `libraries` that replace those of netkit in `ours`."""
    methods: dict[str, Any] = {}
    for name in _REPLACED:
        definer = next(kind for kind in ours.__mro__ if name in vars(kind))
        found = [vars(kind)[name] for kind in libraries if name in vars(kind)]
        if found and definer.__module__.partition(".")[0] == _PACKAGE:
            methods[name] = found[0]
    library: Any = type("LibraryServer", (), methods)
    closers = [kind.server_close for kind in libraries if "server_close" in vars(kind)]  # type: ignore[attr-defined]
    if closers:

        def server_close(self: Any) -> None:
            """Close the server, and then call the library's `server_close`."""
            try:
                super(library, self).server_close()
            finally:
                closers[0](self)

        library.server_close = server_close
    return library  # type: ignore[no-any-return]


class Threads(list[threading.Thread]):
    """The threads of a server's clients, as the attribute `_threads` of `socketserver`.

    `ThreadingMixIn.server_close`, if it is called by name, calls `join`. Here that closes the
    server, which waits for the threads for a limited time.
    """

    def __init__(self, threads: list[threading.Thread], close: Callable[[], None]) -> None:
        super().__init__(threads)
        self._close = close

    def join(self) -> None:
        self._close()


class CalledByName:
    """Makes `BaseServer.serve_forever` and `shutdown` work if a program calls them by name.

    The two communicate by an event and a flag, private to `BaseServer`. Here both act on the
    server's accept loop, so each of the two methods works together with those of netkit.
    """

    _accept_loop: AcceptLoop
    _acceptor: Acceptor
    _serving: Serving
    _by_name: ListenerSelector | None = None
    """That of the accept loop that a `BaseServer.serve_forever` called by name runs."""

    @property
    def _BaseServer__is_shut_down(self) -> SimpleNamespace:
        """The event that `serve_forever` clears first and sets last, and `shutdown` waits for."""
        wait = self._accept_loop.wait_for_end
        return SimpleNamespace(clear=self._begin_by_name, set=self._end_by_name, wait=wait)

    @_BaseServer__is_shut_down.setter
    def _BaseServer__is_shut_down(self, _: Any) -> None:
        """Ignore the event that the constructor of `BaseServer` sets."""

    def _begin_by_name(self) -> None:
        self._by_name = None
        selector = self._by_name = self._serving.begin()
        if selector is not None:
            self._accept_loop.take_over(selector)

    def _end_by_name(self) -> None:
        selector, self._by_name = self._by_name, None
        if selector is not None:
            self._accept_loop.end(selector)

    @property
    def _BaseServer__shutdown_request(self) -> bool:
        return self._by_name is None or self._by_name.stopped

    @_BaseServer__shutdown_request.setter
    def _BaseServer__shutdown_request(self, wanted: bool) -> None:
        if wanted:
            self._accept_loop.request_stop()

    def _handle_request_noblock(self) -> None:
        self._acceptor.accept()
