"""TLS sockets of Python's own, ``ssl.SSLSocket``, for handlers that read the socket themselves."""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING, Any

from ..core.deadline import Deadline
from ..core.errors import ConnectionClosedError, NotBegunError
from ..tls.context import OwnContext
from ..tls.explain import SHOWN, handshake_failure, plain_text
from . import endings, sockopts
from .explain import timed_out

if TYPE_CHECKING:
    from .connection import Connection


class StoppableSocket(ssl.SSLSocket):
    """A TLS socket whose input a stopping server can end, and which can still write after that.

    The server shuts down the TCP input. OpenSSL 3 would fail at its end, send an alert and write no
    more, unless the context said otherwise. So OpenSSL never sees the end.
    """

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        """As of ``ssl.SSLSocket``, whose `recv`, `recv_into` and `makefile` call it."""
        try:
            if not self.pending() and not socket.socket.recv(self, 1, socket.MSG_PEEK):
                return b"" if buffer is None else 0
        except BlockingIOError:  # OpenSSL raises SSLWantReadError
            pass
        return super().read(len, buffer)


def wrap(request: socket.socket, context: ssl.SSLContext) -> ssl.SSLSocket:
    """Return a server's TLS socket before its handshake. It takes over the descriptor of `request`.

    A `StoppableSocket`, unless the context has its own class. OSError if the client is gone.
    """
    request.getpeername()  # before Python 3.12, `wrap_socket` would leak the descriptor if it fails
    secured = context.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
    make_stoppable(secured)
    return secured


def make_stoppable(sock: ssl.SSLSocket) -> None:
    """Make a plain ``ssl.SSLSocket`` a `StoppableSocket`. Its context does not change."""
    if type(sock) is ssl.SSLSocket:
        sock.__class__ = StoppableSocket


def is_pending(sock: Any) -> bool:
    """Whether `sock` is an ``ssl.SSLSocket`` before its handshake."""
    return isinstance(sock, ssl.SSLSocket) and sock.version() is None


def handshake(sock: ssl.SSLSocket, seconds: float | None, peer: str) -> None:
    """Do a server's handshake within `seconds` in all; the timeout of a socket is for each packet.

    Opens no descriptor, since none may be left. `sock` is non-blocking afterwards. HandshakeError
    and TimeoutError name `peer`; ConnectionClosedError if another thread has closed `sock`.
    """
    deadline = Deadline(seconds)
    first = b""
    writing = False
    while True:
        sockopts.wait_until_ready(sock, writing, deadline.remaining())
        if deadline.expired():
            assert seconds is not None
            raise timed_out("handshake_timeout", seconds, peer)
        try:
            sock.settimeout(0.0)
            # For the log, if this is not TLS. `SSLSocket.recv` takes no flags.
            first = first or socket.socket.recv(sock, SHOWN + 1, socket.MSG_PEEK)
            return sock.do_handshake()
        except ssl.SSLWantReadError:
            writing = False
            if plain_text(first):
                raise handshake_failure(None, "client", first) from None
        except ssl.SSLWantWriteError:  # pragma: no cover - more than the kernel's buffer
            writing = True
        except ssl.SSLError as error:
            certified = isinstance(sock.context, OwnContext)
            raise handshake_failure(error, "client", first, certified) from None
        except BlockingIOError:  # a single wait may be shorter than `seconds`
            continue
        except ConnectionError:
            raise handshake_failure(None, "client", first) from None
        except (OSError, AttributeError):
            if sock.fileno() < 0:  # another thread has closed it, and `ssl` may find no object
                raise ConnectionClosedError from None
            raise


def secure(
    connection: Connection, sock: ssl.SSLSocket, seconds: float | None, timeout: float | None
) -> ssl.SSLSocket:
    """Do the handshake of `sock`, the socket of an opaque `connection`, and return `sock`.

    `seconds` limits the whole handshake, and `timeout` is the timeout of `sock` afterwards. The
    errors of `handshake`; NotBegunError if `Connection.interrupt` has ended the handshake.
    """
    link = connection._link
    try:
        handshake(sock, seconds, connection.peer)
    except OSError as error:
        if link.interruption is not None:
            raise NotBegunError from None
        endings.note_handshake(link, error)
        raise link.failure(error) from None
    sock.settimeout(timeout)
    return sock
