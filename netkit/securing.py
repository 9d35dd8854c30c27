"""TLS on a connection that has begun without it, and the time limits of both.

The handshake is done by the thread that the connection belongs to, and holds the locks of reading
and writing: nobody else can get a word in.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from . import sockets
from .errors import HandshakeError, TlsError
from .options import TimeLimits, check_seconds
from .timing import HandshakeTimer, Timer
from .writing import WritableStream

if TYPE_CHECKING:
    import ssl

    from .tls import TlsStream

# How long a TLS handshake may take (seconds): several round trips over a bad network.
HANDSHAKE_SECONDS = 10.0


@functools.cache
def tls_stream() -> type[TlsStream]:
    """The class, from the module that it takes."""
    from .tls import TlsStream  # here because most programs do without

    return TlsStream


class SecurableStream(WritableStream):
    """What `Connection` derives from; not used by itself."""

    __slots__ = ()

    server: Any

    def start_tls(
        self,
        context: ssl.SSLContext | None = None,
        *,
        server_hostname: str | None = None,
        server_side: bool | None = None,
        timeout: float | None = HANDSHAKE_SECONDS,
    ) -> None:
        """Speak TLS from now on, after a handshake of at most `timeout` seconds (STARTTLS).

        As the server, if a server has accepted it; without a `context`, with that of its options.
        `server_side=True` says so for a connection that was accepted elsewhere. As the client else,
        which verifies that the certificate is for `server_hostname`, if its context says so
        (``ssl.create_default_context()`` does). Nobody else may write meanwhile.

        HandshakeError if it fails (close the connection then), or if bytes have come that nobody
        has read: they were not encrypted, whoever sent them. TimeoutError (`handshake_timeout`).
        ValueError if TLS has begun already, TypeError without a context.
        """
        if self.tls is not None:
            raise ValueError("this connection speaks TLS already")
        decoder = self._decoder
        if self._buffer or self._ahead or self._overlong or (decoder and decoder.pending):
            raise HandshakeError(f"{self.peer} sent more, unencrypted, before TLS began")
        accepted = self.server is not None
        if context is None and accepted:
            context = self.server.tls_context()
        if context is None:
            raise TypeError("start_tls() needs an ssl.SSLContext")
        tls = tls_stream()(
            self._receive_raw,
            self._send_some,
            context,
            server_side=accepted if server_side is None else server_side,
            server_hostname=server_hostname,
        )
        try:
            with self._write_lock:
                self._shake_hands(tls, timeout)
        finally:
            if self._changed:
                self._stop_waiting()

    def is_secured(self) -> bool:
        """Whether it speaks TLS, by itself or through its socket."""
        return self.tls is not None or hasattr(self.socket, "do_handshake")

    def _shake_hands(self, tls: TlsStream, timeout: float | None) -> None:
        self._handshaking = tls
        try:
            self._waiting = True
            if self._changed:
                self._check_writable()
            if timeout is not None:
                self._timer = HandshakeTimer(self.socket, timeout, self.peer, self._timer)
            tls.handshake()
            self.tls = tls
            self.set_limits(self._limits)
        except OSError as error:
            raise self._failure(error) from None
        finally:
            self._waiting = False
            self._handshaking = None

    def _say_goodbye(self) -> None:
        """Tell a TLS peer that this is all, and no truncation; the write lock is held."""
        if self._ended or self._closed:
            return
        if self.tls is not None:
            self._begin_write(0)
            try:
                self.tls.end()
            except (ConnectionError, TlsError):  # it is gone
                return
        elif self.opaque:
            sockets.end_tls(self.socket)

    def set_timeout(self, seconds: float | None) -> None:
        """How long each read may wait for input, and each write for progress; None: for ever.

        Instead of the options `idle_timeout` and `write_timeout`. TypeError or ValueError unless it
        is more than 0.
        """
        if seconds is not None:
            check_seconds("timeout", seconds, zero=False)
        self.set_limits(self._limits._replace(idle_timeout=seconds, write_timeout=seconds))

    def set_limits(self, limits: TimeLimits) -> None:
        """Replace all time limits of reading and writing; a wait under way may keep its own.

        Nothing once it is closed.
        """
        if self._closed:
            return
        self._limits = limits
        former = self._timer
        if any(limits):
            self._timer = Timer(self.socket, limits, self.peer, former)
        elif former is not None:
            former.release()
            self._timer = None
        self._special = self._is_special()
