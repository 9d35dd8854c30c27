"""The socket of a handler that reads it itself, wherever the handler has put its descriptor.

``context.wrap_socket(self.request)``, in a handler of `socketserver`'s, takes the descriptor away
from the socket that netkit knows, and gives it to another one. A stop must reach that one, too.
Rules:

1. The descriptor keeps its number, so it is looked for there. It may have been closed, and the
   number be another connection's by now: it counts only if it has the ends of this one.
2. It may be closed while it is looked at, by its own thread. So a copy is what is looked at, and
   shut down: that acts on the connection, whichever descriptor it is done by (shutdown(2)).
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any


class BareSocket:
    """What is known of it when its client was accepted."""

    __slots__ = ("_descriptor", "_mark")

    def __init__(self, sock: socket.socket, remote_name: Any, local_name: Any) -> None:
        self._descriptor = sock.fileno()
        self._mark: Any = remote_name, local_name
        if not isinstance(remote_name, tuple):
            self._mark = _inode(self._descriptor)

    def copy(self) -> socket.socket | None:
        """Of whichever socket has its descriptor now; None if none has, or there is no other."""
        try:
            descriptor = os.dup(self._descriptor)
        except OSError:  # it is closed, or there is none left for a copy
            return None
        try:
            blocking = os.get_blocking(descriptor)
            copy = socket.socket(fileno=descriptor)
            if socket.getdefaulttimeout() is not None:  # which it has set for the other one, too
                os.set_blocking(descriptor, blocking)
        except OSError:  # a file has its number
            os.close(descriptor)
            return None
        if _mark(copy) == self._mark:
            return copy
        copy.close()
        return None


@contextlib.contextmanager
def reached(sock: socket.socket, bare: BareSocket | None) -> Iterator[socket.socket]:
    """`sock`, or a copy of the socket that has its descriptor now; for a look, or a shutdown."""
    copy = bare.copy() if bare is not None and sock.fileno() < 0 else None
    try:
        yield sock if copy is None else copy
    finally:
        if copy is not None:
            copy.close()


def _mark(sock: socket.socket) -> Any:
    """What no other socket that is open has: both ends, or for a Unix socket its inode."""
    try:
        name = sock.getpeername()
    except OSError:  # it is not connected, or not any more
        return None
    return (name, sock.getsockname()) if isinstance(name, tuple) else _inode(sock.fileno())


def _inode(descriptor: int) -> int:
    return os.fstat(descriptor).st_ino
