"""The state of a connection that any thread may read, also after the close."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .bare import Bare
from .link import Link
from .states import Life

if TYPE_CHECKING:
    import socket as sockets

    from ..tls.stream import TlsStream


class Status:
    """For classes that have a `_link`. Thread-safe, and without a lock."""

    __slots__ = ()
    _link: Link

    @property
    def tls(self) -> TlsStream | None:
        """The result of the TLS handshake; None without TLS, and until the handshake ends."""
        return self._link.transport.tls

    def is_secured(self) -> bool:
        """Whether the connection speaks TLS, also if the handler reads a TLS socket itself."""
        return self.tls is not None or hasattr(self.socket, "do_handshake")

    @property
    def socket(self) -> sockets.socket:
        """The socket, for options that have no method here."""
        return self._link.sock

    @socket.setter
    def socket(self, sock: Any) -> None:
        self._link.replace_socket(sock)

    @property
    def opaque(self) -> bool:
        """Whether the handler reads and writes the socket itself."""
        return self._link.wire.opaque

    @property
    def closed(self) -> bool:
        """Whether this side has closed the connection."""
        return self._link.life is Life.CLOSED

    @property
    def was_cut(self) -> bool:
        """Whether a stopping server has ended the connection before its handler was done."""
        return self._link.was_cut

    @property
    def bytes_read(self) -> int:
        """How many bytes have been received."""
        return self._link.bytes_read

    @property
    def bytes_written(self) -> int:
        """How many bytes have been sent."""
        return self._link.bytes_written

    @property
    def error(self) -> BaseException | None:
        """The last failure of a read or a write, or None."""
        return self._link.error

    def fileno(self) -> int:
        """The descriptor, -1 after the close: for `selectors` and for socket options.

        `select` does not see what has been received already (`pending`).
        """
        return self._link.sock.fileno()

    def is_to_blame(self, error: BaseException) -> bool:
        """Whether the peer has caused `error`, which a handler has raised."""
        link = self._link
        if error is link.error:
            return True
        return isinstance(link.wire, Bare) and link.wire.is_to_blame(error)

    def forget_frames(self) -> None:
        """Drop the tracebacks of the connection's errors, after they have been logged.

        A traceback refers to the frames of the handler, and so to this connection and to all that
        the handler has read. The garbage collector might find this cycle much later.
        """
        link = self._link
        for error in (link.error, link.broken, link.interruption):
            for each in (error, error and error.__cause__):
                if each is not None:
                    each.__traceback__ = each.__context__ = None
