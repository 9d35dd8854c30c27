"""The transport of a connection whose handler reads and writes the socket itself.

A handler for `socketserver` may wrap the socket, ``context.wrap_socket(self.request)``, which moves
the descriptor to another socket. A stop must reach that one, too. Rules:

1. The descriptor keeps its number, by which netkit finds it. The program may have closed it since
   then, and its number may belong to another connection: it counts only if both ends are the same.
2. The handler's thread may close the descriptor at any time. So netkit examines and shuts down a
   duplicate: a shutdown acts on the connection, whatever descriptor it is given (shutdown(2)).
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any

from . import sockopts
from .explain import is_broken_tls, is_hang_up
from .tcpinfo import Traffic, traffic
from .transport import Plain

# How often a stop looks for a socket that it does not find (seconds): the socket is about to be
# closed, or the handler has wrapped it in an unknown way.
OUT_OF_SIGHT_SECONDS = 0.05


class Bare(Plain):
    """A socket that its handler reads itself, also after the handler has wrapped it."""

    __slots__ = ("_descriptor", "_mark", "_traffic", "introduced", "tls_version")

    opaque = True

    def __init__(self, sock: socket.socket, remote_name: Any, local_name: Any) -> None:
        super().__init__(sock)
        self._descriptor = sock.fileno()
        is_tcp = isinstance(remote_name, tuple)
        self._mark: Any = (remote_name, local_name) if is_tcp else _inode(self._descriptor)
        self._traffic: Traffic | None = None
        self.introduced = 0
        """How many bytes of a PROXY header were received, which are not the client's."""
        self.tls_version = ""
        """The version that an ``ssl.SSLSocket`` has agreed on; empty until `count` is called."""

    def traffic(self) -> Traffic | None:
        """Return what has been carried until `count` was called, or until now.

        None if that is not known: a Unix socket, another system, a socket that the program closed.
        """
        if self._traffic is not None:
            return self._traffic
        known = None  # also if the program has replaced the socket by an object of its own
        with contextlib.suppress(AttributeError), self.reached() as sock:
            known = traffic(sock)
        if known is not None and self.introduced:
            known = known._replace(received=known.received - self.introduced)
        return known

    def count(self) -> None:
        """Have `traffic` return from now on what has been carried until now. Idempotent."""
        self._traffic = self.traffic()
        version: Any = getattr(self.sock, "version", None)
        if callable(version):
            self.tls_version = self.tls_version or str(version() or "")

    def end(self) -> None:
        """Have an ``ssl.SSLSocket`` send its close_notify. Does not wait for the peer's."""
        sock: Any = self.sock
        if hasattr(sock, "unwrap"):
            with contextlib.suppress(OSError, ValueError):  # ValueError: there was no handshake
                sock.settimeout(0.0)
                sock.unwrap()

    def shut_down(self, how: int) -> None:
        """As of `Plain`, also if the descriptor has moved to another socket."""
        with self.reached() as sock:
            sockopts.shut_down(sock, how)

    def seconds_until_quiet(self, quiet: float) -> float:
        with self.reached() as sock:
            if sock.fileno() < 0:
                return OUT_OF_SIGHT_SECONDS
            return sockopts.seconds_until_quiet(sock, quiet)

    def is_to_blame(self, error: BaseException) -> bool:
        """Whether `error`, which the handler has raised, was caused by the peer."""
        if isinstance(error, TimeoutError) and self.sock.gettimeout() is not None:
            return True  # of a read with the timeout of the socket
        if is_hang_up(error):
            return sockopts.hung_up(self.sock)
        return is_broken_tls(error, self.sock)

    @contextlib.contextmanager
    def reached(self) -> Iterator[socket.socket]:
        """Yield the socket, or a duplicate of the one that its descriptor has moved to."""
        copy = self.copy() if self.sock.fileno() < 0 else None
        try:
            yield self.sock if copy is None else copy
        finally:
            if copy is not None:
                copy.close()

    def copy(self) -> socket.socket | None:
        """Return a duplicate, which the caller closes; None if closed, or if none can be made."""
        try:
            descriptor = os.dup(self._descriptor)
        except OSError:
            return None
        try:
            blocking = os.get_blocking(descriptor)
            copy = socket.socket(fileno=descriptor)
            if socket.getdefaulttimeout() is not None:  # then `socket` has changed it for both
                os.set_blocking(descriptor, blocking)
        except OSError:  # the number belongs to a file now
            os.close(descriptor)
            return None
        if _mark(copy) == self._mark:
            return copy
        copy.close()
        return None


def _mark(sock: socket.socket) -> Any:
    """Both ends, or the inode of a Unix socket: no other open socket has the same."""
    try:
        name = sock.getpeername()
    except OSError:  # it is not connected
        return None
    return (name, sock.getsockname()) if isinstance(name, tuple) else _inode(sock.fileno())


def _inode(descriptor: int) -> int:
    return os.fstat(descriptor).st_ino
