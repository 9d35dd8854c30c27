"""Classes made of `Server` and of a server class of another library, in whichever order of bases.

Such a class is written as if `Server` were `socketserver.ThreadingTCPServer`, which has no
constructor of its own, and may come together with `ThreadingMixIn`.
"""

from __future__ import annotations

import socketserver
from abc import ABCMeta
from collections.abc import Callable
from types import MethodType
from typing import Any, TypeVar, cast

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
