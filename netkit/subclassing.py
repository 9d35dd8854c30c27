"""Classes made of `Server` and of a server class of another library, in whichever order of bases.

Such a class is written as if `Server` were `socketserver.ThreadingTCPServer`: this has no
constructor of its own, may come together with `ThreadingMixIn`, and its methods may be called by
the name of a base class (``socketserver.TCPServer.shutdown(self)``).
"""

from __future__ import annotations

import socketserver
from abc import ABCMeta
from collections.abc import Callable
from types import MethodType
from typing import Any, TypeVar, cast

from .accepting import Accepting

_Function = TypeVar("_Function", bound=Callable[..., Any])


class ServerType(ABCMeta):
    """The class of netkit's server classes. It lets `ThreadingMixIn` be named before them.

    They have it among their own bases, so that Python finds no order for the two. (As a subclass of
    ABCMeta it does not keep them from being abstract.)
    """

    def __new__(
        cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **more: Any
    ) -> ServerType:
        bases = tuple(base for base in bases if base is not socketserver.ThreadingMixIn)
        return super().__new__(cls, name, bases, namespace, **more)


class _Constructor:
    """A constructor that is passed over for that of a server class which comes after it.

    As `socketserver.ThreadingTCPServer` is: of ``class S(netkit.Server, SimpleXMLRPCServer)``, the
    constructor is that of `SimpleXMLRPCServer`, which then calls `TCPServer.__init__`.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function
        self.__doc__ = function.__doc__

    def __set_name__(self, owner: type, _: str) -> None:
        self._owner = owner

    def __get__(self, server: Any, kind: Any = None) -> Callable[..., None]:
        if server is None:
            return self._function
        mro = (server if isinstance(server, type) else type(server)).__mro__  # `inspect` has a type
        for base in mro[mro.index(self._owner) + 1 :]:
            own = vars(base).get("__init__")
            if own is not None and issubclass(base, socketserver.BaseServer):
                if base is not socketserver.TCPServer:
                    return cast(Callable[..., None], own.__get__(server, kind))
                break
        return MethodType(self._function, server)


def gives_way(function: _Function) -> _Function:
    """Make a constructor one that a library's server class takes the place of."""
    return cast(_Function, _Constructor(function))


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
