"""TLS on a connection that has begun without it, its time limits, and the options of its socket.

The thread that the connection belongs to does the handshake. It reads and writes alone then: the
write lock is held, and `_waiting` is set.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..core.errors import ConnectionClosedError, HandshakeError, NotBegunError, TlsError
from ..core.kinds import check_seconds
from ..core.options import TimeLimits
from . import sockopts
from .timeouts import HandshakeTimer, Timer
from .unix import PeerCredentials, peer_credentials
from .writing import WritableStream

if TYPE_CHECKING:
    import ssl

    from ..tls.stream import TlsStream

# How long a TLS handshake may take where no server says it (seconds): several round trips over a
# bad network.
HANDSHAKE_SECONDS = 10.0
_BY_DEFAULT: Any = object()


@functools.cache
def tls_stream() -> type[TlsStream]:
    """The class, from the module that it takes."""
    from ..tls.stream import TlsStream  # here because most programs do without

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
        timeout: float | None = _BY_DEFAULT,
    ) -> None:
        """Speak TLS from now on, after a handshake of at most `timeout` seconds (STARTTLS).

        With None there is no limit. By default it is the `handshake_timeout` of the server that has
        accepted the connection, else 10 seconds. A connection that a server has accepted takes the
        server's part, by default with the `context` of its options; so does any other one with
        `server_side=True`. Else it takes the client's, and verifies that the certificate is for
        `server_hostname` if its context says so (``ssl.create_default_context()`` does). No other
        thread may write meanwhile.

        HandshakeError if it fails (close the connection then: every write raises the same error),
        or if bytes have come that are not read yet: they were not encrypted, and may come from
        anybody on the way. TimeoutError (`handshake_timeout`). ValueError if TLS has begun already,
        TypeError without a context.
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
        if timeout is _BY_DEFAULT:
            timeout = self.server._options.handshake_timeout if accepted else HANDSHAKE_SECONDS
        tls = tls_stream()(
            self._receive_raw,
            self._send_some,
            context,
            server_side=accepted if server_side is None else server_side,
            server_hostname=server_hostname,
        )
        with self._output():
            if self._changed:
                self._check_writable()
            self._shake_hands(tls, timeout)

    def shake_hands(self, sock: Any, seconds: float | None, limit: float | None) -> Any:
        """Do the handshake of `sock`, which its handler reads itself; `limit` is its timeout then.

        Returns `sock`. The error says why the handshake failed; NotBegunError if `interrupt` has
        ended it, whose caller knows why.
        """
        from ..tls.context import shake_hands

        try:
            shake_hands(sock, seconds, self.peer)
        except OSError as error:
            if self._interruption is not None:
                raise NotBegunError from None
            raise self._failure(error) from None
        sock.settimeout(limit)
        return sock

    def is_secured(self) -> bool:
        """Whether it speaks TLS, by itself or through its socket."""
        return self.tls is not None or hasattr(self.socket, "do_handshake")

    def _shake_hands(self, tls: TlsStream, timeout: float | None) -> None:
        self._handshaking = tls
        try:
            self._waiting = True
            if timeout is not None:
                self._timer = HandshakeTimer(self.socket, timeout, self.peer, self._timer)
            tls.handshake()
            self.tls = tls
            self.set_limits(self._limits)
        except BaseException as error:
            failure = self._failure(error) if isinstance(error, OSError) else error
            self._break_off(failure)  # nothing may follow in clear text
            self._failed = False  # an alert says so, and a reset could destroy it
            self._heard = self.bytes_written  # nor is there a reply to wait for
            if failure is error:
                raise
            raise failure from None
        finally:
            self._waiting = False
            self._handshaking = None

    def _say_goodbye(self) -> None:
        """Tell a TLS peer that this is all, and no truncation; the write lock is held."""
        if self._ended or self._closed or self._broken is not None:
            return
        if self.tls is not None:
            self._begin_write(0)
            try:
                self.tls.end()
            except (ConnectionError, TlsError):  # it is gone
                return
        elif self.opaque:
            sockopts.end_tls(self.socket)

    def set_timeout(self, seconds: float | None) -> None:
        """Bound the wait of each read for input, and of each write for progress, in seconds.

        It replaces the options `idle_timeout` and `write_timeout`; None is no limit. TypeError or
        ValueError unless it is more than 0.
        """
        if seconds is not None:
            check_seconds("timeout", seconds, zero=False)
        self.set_limits(self._limits._replace(idle_timeout=seconds, write_timeout=seconds))

    def set_limits(self, limits: TimeLimits) -> None:
        """Replace all time limits of reading and writing; a wait under way may keep its own.

        Nothing once it is closed.
        """
        with self._lock:
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

    def set_no_delay(self, on: bool = True) -> None:
        """Send small writes at once (TCP_NODELAY), instead of waiting to fill a packet."""
        self._set(sockopts.set_no_delay, on)

    def set_keep_alive(
        self,
        on: bool = True,
        idle: float | None = None,
        interval: float | None = None,
        count: int | None = None,
    ) -> None:
        """Let the kernel probe a silent peer, and reset the connection once it does not answer.

        After `idle` seconds of silence (60), each `interval` seconds (10), `count` times (6). Whole
        seconds, at least 1: ValueError, or TypeError.
        """
        sockopts.check_keep_alive(idle, interval, count)
        self._set(sockopts.set_keep_alive, on, idle, interval, count)

    def _set(self, setter: Callable[..., None], *values: Any) -> None:
        """Set an option of the socket, unless a thread has closed the connection."""
        with self._lock:
            if not self._closed:
                setter(self.socket, *values)

    @property
    def tos(self) -> int:
        """The type of service (IP_TOS), or traffic class (IPV6_TCLASS), of what is sent; 0 to 255.

        May be set: TypeError or ValueError for what is none. The kernel may keep the lowest two
        bits, which are for congestion (RFC 3168). 0 for a Unix socket. ConnectionClosedError after
        `close`, if it is asked for.
        """
        if self._closed:
            raise ConnectionClosedError
        return sockopts.tos(self.socket)

    @tos.setter
    def tos(self, value: int) -> None:
        sockopts.check_tos(value)
        self._set(sockopts.set_tos, value)

    @property
    def peer_credentials(self) -> PeerCredentials:
        """The process, user and group that connected a Unix socket, as the kernel knows them.

        OSError (EOPNOTSUPP) for any other connection, and ConnectionClosedError after `close`.
        """
        if self._closed:
            raise ConnectionClosedError
        return peer_credentials(self.socket)
