"""How bytes travel over the socket of a connection: `Plain`, or `Tls` above it.

A connection holds one transport, and STARTTLS replaces it. Each transport can receive, send, and
announce the end of output; everything else is a question of the connection about what the transport
has received or sent. The socket itself, its shutdown and its timeouts belong to `Plain`.
"""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..core.errors import TlsError, TruncatedError
from ..core.options import TimeLimits
from . import gate, sockopts
from .explain import peer_is_gone, unacknowledged
from .timeouts import Due, Timer

if TYPE_CHECKING:
    import ssl

    from ..tls.stream import TlsStream
    from .link import Link

NO_LIMITS = TimeLimits()
_NO_WAIT: int | None = getattr(socket, "MSG_DONTWAIT", None)  # Windows has none
Bytes = bytes | bytearray | memoryview
Writable = str | Bytes


class Plain:
    """A connected socket, whose bytes are sent and received as they are, within time limits."""

    __slots__ = ("held", "limits", "sock", "sock_recv", "sock_send", "start", "timer")

    tls: TlsStream | None = None
    """The stream that encrypts, once its handshake is over."""
    opaque = False
    """Whether a handler reads and writes the socket itself."""
    handshaking = False
    """Whether a TLS handshake is under way."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        # All that a connection receives and sends, but for a file, goes by these two. They are
        # bound here, and where another socket takes over the descriptor.
        self.sock_recv: Callable[[int], bytes] = sock.recv
        self.sock_send: Callable[..., int] = sock.send
        if type(sock) is gate.UNGATED:
            self.sock_recv, self.sock_send = gate.calls(sock)
        self.limits = NO_LIMITS
        self.timer: Timer | None = None
        # Of the message under way: where in the stream it begins, and how many bytes are here.
        self.start = self.held = 0

    def replace_socket(self, sock: socket.socket) -> None:
        """Use `sock`, which has taken over the descriptor, and so the timeouts in the kernel."""
        self.sock = sock
        self.sock_recv, self.sock_send = sock.recv, sock.send
        if type(sock) is gate.UNGATED:
            self.sock_recv, self.sock_send = gate.calls(sock)
        if self.timer is not None:
            self.timer.sock = sock

    def recv(self, size: int, held: int = 0) -> bytes:
        """Return 1 to `size` bytes; ``b""`` at the end of input. TimeoutError names the limit.

        `held` are bytes of the message under way in addition to those in `self.held`.
        """
        timer = self.timer
        if timer is None:
            return self.sock_recv(size)
        timer.before_receive(self.start, self.held or held)
        while True:
            try:
                timer.outlast_signals(writing=False)
                return self.sock_recv(size)
            except BlockingIOError:
                timer.after_wait()

    def begin_write(self) -> None:
        """Have the time limits of a write count from now on. TimeoutError as of `Timer`."""
        if self.timer is not None:
            self.timer.begin_write()

    def send(self, data: Bytes) -> int:
        """Send at least the first byte of `data`, and return how many were sent. TimeoutError."""
        if self.timer is None:
            return self.sock_send(data)
        return self._send_in_time(len(data), self.sock_send, data)

    def send_now(self, data: Bytes) -> int:
        """Send what the kernel takes without waiting, and return how many bytes that are, or 0."""
        try:
            return 0 if self.opaque or _NO_WAIT is None else self.sock_send(data, _NO_WAIT)
        except BlockingIOError:
            return 0

    def owes(self) -> bool:
        """Whether something is left to be sent of what `send_now` has taken."""
        return False

    def sendfile(self, descriptor: int, offset: int, size: int) -> int:
        """As `send`, of a file from byte `offset` on (sendfile(2)); 0 at its end."""
        to = self.sock.fileno()
        return self._send_in_time(size, os.sendfile, to, descriptor, offset, size)

    def _send_in_time(self, size: int, send: Callable[..., int], *arguments: Any) -> int:
        timer = self.timer
        if timer is None:
            return send(*arguments)
        while True:
            try:
                if timer.deadlines:
                    timer.before_send()
                timer.outlast_signals(writing=True)
                sent = send(*arguments)
                break
            except BlockingIOError:
                timer.after_stall()
        timer.after_send(sent, size)
        return sent

    def end(self) -> None:
        """Announce the end of output to the peer. Here the end of the TCP stream does it."""

    def shut_down(self, how: int) -> None:
        """Shut down the socket; nothing if the connection is over."""
        sockopts.shut_down(self.sock, how)

    def set_limits(
        self, limits: TimeLimits, peer: str, step: tuple[str, float] | None = None
    ) -> None:
        """Replace the limits, or have one for a whole `step` (`Timer.set`) until the next call."""
        self.limits = limits
        if self.timer is not None or step is not None or any(limits):
            timer = self.timer or Timer(self.sock, peer)
            timer.set(limits, step)
            is_needed = step is not None or any(limits) or timer.deadlines
            self.timer = timer if is_needed else None

    def add_deadline(self, due: Due, peer: str) -> None:
        """Add a limit for all that the thread of `due` receives and sends."""
        timer = self.timer = self.timer or Timer(self.sock, peer)
        timer.deadlines += (due,)

    def remove_deadline(self, due: Due) -> None:
        """Remove what `add_deadline` has added. The timer stays, as does the kernel's timeout."""
        if self.timer is not None:
            self.timer.deadlines = tuple(each for each in self.timer.deadlines if each is not due)

    def explained(self, error: OSError, peer: str) -> OSError:
        """Return the error to raise for `error` of the socket, in words that name the peer."""
        limit = self.limits.write_timeout
        if limit is not None and sockopts.unsent(self.sock):
            error = unacknowledged(error, limit, peer)
        return peer_is_gone(error, peer)

    def pending(self, held: int = 0) -> int:
        """Return `held` and the number of bytes that `recv` returns without using the socket.

        1 instead of 0 if `recv` would raise an error or return the end of input.
        """
        return held

    def has_begun(self) -> bool:
        """Whether bytes have been received that `recv` can return only after further ones."""
        return False

    def is_input_over(self, ended: bool) -> bool:
        """Whether the peer has ended its side of TCP. `ended`: `recv` has returned the end."""
        return ended

    def breaks(self, error: BaseException) -> bool:
        """Whether `error` of a write forbids all later ones, since a part may have been sent.

        Not if a time limit has passed before anything was sent.
        """
        timer = self.timer
        return not (isinstance(error, TimeoutError) and timer is not None and timer.untouched)


class Tls:
    """TLS over a `Plain` transport. Before its handshake it neither receives nor sends."""

    __slots__ = (
        *("_below", "_link", "_stream", "free_locks", "handshaking", "has_begun", "owes"),
        *("release", "send", "tls"),
    )

    def __init__(
        self,
        link: Link,
        context: ssl.SSLContext,
        server_side: bool,
        server_hostname: str | None,
    ) -> None:
        """Nothing is sent yet. ValueError for an invalid or missing `server_hostname`."""
        self._link = link
        self._below = link.wire
        self._stream = tls_stream()(
            self._receive,
            self._below.send,
            context,
            server_side=server_side,
            server_hostname=server_hostname,
        )
        # As of the stream: `send` sends all of its argument; the others are as of `Plain`.
        self.send, self.has_begun = self._stream.send, self._stream.has_begun
        self.owes = self._stream.owes
        self.free_locks, self.release = self._stream.free_locks, self._stream.release
        self.handshaking = True
        self.tls: TlsStream | None = None

    def _receive(self, size: int) -> bytes:
        """Ciphertext for OpenSSL, unless the connection has ended in the meantime."""
        link = self._link
        if link.changed and link.is_at_end():
            return b""
        # With limits, a part of a record counts: it is a part of a message.
        counts = self._below.timer is not None and self.tls is not None
        return self._below.recv(size, int(counts and self._stream.has_begun()))

    def handshake(self) -> None:
        """Do the handshake. Errors as of `TlsStream.handshake`."""
        self._stream.handshake()
        self.tls = self._stream
        self.handshaking = False

    def recv(self, size: int) -> bytes:
        """As of `Plain`. TruncatedError if only the TCP input has ended, and the peer did it."""
        try:
            return self._stream.recv(size)
        except TruncatedError:
            if self._link.has_ended_input():
                return b""
            raise

    def send_now(self, data: Bytes) -> int:
        """As of `Plain`."""
        return self._stream.send_now(data, self._below.send_now)

    def end(self) -> None:
        """Send a close_notify, so that the peer does not take the end for a truncation."""
        self._below.begin_write()
        try:
            self._stream.end()
        except (ConnectionError, TlsError):  # the peer is gone
            return

    def pending(self, held: int = 0) -> int:
        """As of `Plain`."""
        at_once = self._stream.pending()  # which decrypts
        return held + self._stream.buffered() or int(at_once)

    def is_input_over(self, ended: bool) -> bool:
        """As of `Plain`."""
        return self._stream.eof

    def breaks(self, error: BaseException) -> bool:
        """As of `Plain`. What has been encrypted must be sent before anything else.

        Not if the error comes from a signal handler that has interrupted a `send` of its thread and
        tried to write.
        """
        return isinstance(error, OSError) or not self._stream.is_interrupted()


@functools.cache
def tls_stream() -> type[TlsStream]:
    """Return the class, imported when first used, since most programs do without TLS."""
    from ..tls.stream import TlsStream

    return TlsStream
