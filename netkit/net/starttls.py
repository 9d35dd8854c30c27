"""Begins TLS on a connection, at once or after an exchange in clear text (STARTTLS)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..core.errors import HandshakeError
from . import endings
from .states import OutputState
from .transport import Tls

if TYPE_CHECKING:
    import ssl

    from .connection import Connection

HANDSHAKE_SECONDS = 10.0  # several round trips over a bad network
_BY_DEFAULT: Any = object()


def start_tls(
    conn: Connection[Any],
    context: ssl.SSLContext | None = None,
    *,
    server_hostname: str | None = None,
    server_side: bool | None = None,
    timeout: float | None = _BY_DEFAULT,
) -> None:
    """Speak TLS from now on, after a handshake of at most `timeout` seconds.

    None is no limit; by default it is the server's `handshake_timeout`, else 10 seconds. A
    connection that a server has accepted is the server in the handshake, by default with the
    `context` of the server's options; so is any other with `server_side=True`. Else it is the
    client, and checks that the certificate is for `server_hostname` if its context says so
    (``ssl.create_default_context()`` does). No other thread may write meanwhile.

    HandshakeError if it fails: close the connection then, since every write raises the same error.
    HandshakeError also if bytes have been received and not read: they were not encrypted, and
    anybody on the way may have sent them. TimeoutError (`handshake_timeout`). ValueError if TLS has
    begun already; TypeError without a context.
    """
    if conn.tls is not None:
        raise ValueError("this connection speaks TLS already")
    if conn._holds_input():
        raise HandshakeError(f"{conn.peer} sent more, unencrypted, before TLS began")
    accepted = conn.server is not None
    if context is None and accepted:
        context = conn.server.tls_context()
    if context is None:
        raise TypeError("start_tls() needs an ssl.SSLContext")
    if timeout is _BY_DEFAULT:
        timeout = handshake_seconds(conn)
    server_side = accepted if server_side is None else server_side
    tls = Tls(conn._link, context, server_side, server_hostname)
    with conn._output.held():
        if conn._output.outbox is not None:
            conn._output.outbox.send_all()  # in clear text, as it was posted
        _replace_transport(conn, tls, timeout)


def handshake_seconds(conn: Connection[Any]) -> float | None:
    """How long the next handshake may take: `handshake_timeout`, or 10 seconds without a server.

    The time for a PROXY header just before it is included.
    """
    if conn.server is None:
        return HANDSHAKE_SECONDS
    until = vars(conn).pop("handshake_until", None)
    whole: float | None = conn.server._options.handshake_timeout
    left: float | None = None if until is None else until.remaining()
    return whole if left is None else max(0.1, round(left, 1))


def _replace_transport(conn: Connection, tls: Tls, seconds: float | None) -> None:
    """Do the handshake of `tls`, and use it as the transport.

    If it fails, no write may follow in clear text. An alert tells the peer; a reset could destroy
    it, and there is no reply to wait for.
    """
    link, output = conn._link, conn._output
    output.check()
    try:
        link.waiting = True
        link.transport = tls
        if seconds is not None:
            link.limit_step(seconds, "handshake_timeout")
        tls.handshake()
        link.set_limits(link.wire.limits)
    except BaseException as error:
        link.transport = link.wire
        endings.note_handshake(link, error)
        failure = link.failure(error) if isinstance(error, OSError) else error
        output.break_off(failure, OutputState.REFUSED)
        link.heard = link.bytes_written
        if failure is error:
            raise
        raise failure from None
    finally:
        link.waiting = False
