"""The socket of a handler that reads it itself, also after the handler has wrapped it.

``context.wrap_socket(self.request)``, in a handler for `socketserver`, moves the descriptor from
the socket that netkit knows to another one. A stop must reach that one, too. Rules:

1. The descriptor keeps its number, by which it is found. It may have been closed since, and the
   number may belong to another connection: it counts only if both ends are the same.
2. The thread of the handler may close it at any time. So a duplicate is examined and shut down: a
   shutdown acts on the connection, by whichever descriptor (shutdown(2)).
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any


class BareSocket:
    """The number of its descriptor, and both ends, from when its client was accepted."""

    __slots__ = ("_descriptor", "_mark")

    def __init__(self, sock: socket.socket, remote_name: Any, local_name: Any) -> None:
        self._descriptor = sock.fileno()
        self._mark: Any = remote_name, local_name
        if not isinstance(remote_name, tuple):
            self._mark = _inode(self._descriptor)

    def copy(self) -> socket.socket | None:
        """A duplicate of the descriptor; None if it is closed, or if none can be made."""
        try:
            descriptor = os.dup(self._descriptor)
        except OSError:  # it is closed, or there is no descriptor for the duplicate
            return None
        try:
            blocking = os.get_blocking(descriptor)
            copy = socket.socket(fileno=descriptor)
            if socket.getdefaulttimeout() is not None:  # then `socket` has changed it for both
                os.set_blocking(descriptor, blocking)
        except OSError:  # by now it is a file
            os.close(descriptor)
            return None
        if _mark(copy) == self._mark:
            return copy
        copy.close()
        return None


@contextlib.contextmanager
def reached(sock: socket.socket, bare: BareSocket | None) -> Iterator[socket.socket]:
    """`sock`; or, if its descriptor has moved to another socket, a duplicate of that."""
    copy = bare.copy() if bare is not None and sock.fileno() < 0 else None
    try:
        yield sock if copy is None else copy
    finally:
        if copy is not None:
            copy.close()


def _mark(sock: socket.socket) -> Any:
    """Both ends, or the inode of a Unix socket: no other open socket has the same."""
    try:
        name = sock.getpeername()
    except OSError:  # it is not connected
        return None
    return (name, sock.getsockname()) if isinstance(name, tuple) else _inode(sock.fileno())


def _inode(descriptor: int) -> int:
    return os.fstat(descriptor).st_ino
