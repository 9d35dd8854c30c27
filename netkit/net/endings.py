"""Why a connection ended, how long it waited for its handler, and how many bytes it carried.

The first cause counts: a reset that follows a time limit changes nothing. There is one exception.
`drained` only says that the connection was asked to finish, so a cut or an operator's kill prevails
over it.

An error is noted where a read or a write raises it, since a handler may catch it and return. But a
time limit may pass and the handler go on, so a limit that was caught counts only if the connection
has received nothing after it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ..core.ends import LIMITS, limit_of, reason_of
from ..core.errors import HandshakeError, LocalError, NotBegunError, OutboxFullError
from .bare import Bare
from .states import InputState, Life

if TYPE_CHECKING:
    from .connection import Connection
    from .link import Link

# How soon a health check hangs up, and the most bytes of a greeting that it is sent before that.
PROBE_SECONDS, GREETING = 1.0, 4096

_FINAL = ("cut", "killed")  # the causes that prevail over `drained`


def note(link: Link, reason: str) -> None:
    """Note why the connection ends, unless an earlier cause is known. Thread-safe; never waits."""
    with link.lock:
        if not link.ending or (link.ending == "drained" and reason in _FINAL):
            link.ending = reason


def note_failure(link: Link, error: BaseException) -> None:
    """Note the `error` of a read or a write, unless a handler may catch it and go on."""
    if not (limit := limit_of(error)):
        _note_error(link, error)
    elif limit == "handshake_timeout":
        note(link, limit)
    elif limit in LIMITS:
        link.stalled = link.bytes_read


def _note_error(link: Link, error: BaseException) -> None:
    reason = reason_of(error)
    if reason:
        note(link, reason)


def note_handshake(link: Link, error: BaseException) -> None:
    """Note that a TLS handshake has failed with `error`; a client that sent nothing is a probe."""
    if isinstance(error, ConnectionError) and not isinstance(error, NotBegunError | LocalError):
        note(link, "handshake")


def ended_handshake(link: Link, error: BaseException) -> bool:
    """Whether a stop has ended the input, and so the TLS handshake that has failed with `error`.

    False on a TLS port before the first byte, since a server reports no handshake before that.
    """
    with link.lock:
        drained = link.ending == "drained" and link.interruption is None
        begun = link.bytes_read > 0 or not isinstance(error, NotBegunError)
        by_end = isinstance(error, HandshakeError) and error.by_end
        return drained and begun and by_end and link.life is Life.OPEN


def note_drained(link: Link) -> None:
    """Note that a stop ends the input, unless the peer has, or the handler is done."""
    if link.life is Life.OPEN and link.input is InputState.DRAINING:
        note(link, "drained")


def note_interruption(link: Link, error: BaseException | None) -> None:
    """Note that another thread ends the connection: with `error`, or None for a cut."""
    if error is None:
        note(link, "cut")
    elif isinstance(error, OutboxFullError) or error is link.broken or limit_of(error):
        note(link, reason_of(error))
    elif getattr(error, "is_reason", True):  # else it only ends a wait, and the reason follows
        note(link, "killed")


def note_error(link: Link, error: BaseException, by_peer: bool) -> None:
    """Note that the handler has raised `error`, for which the peer is to blame if `by_peer`."""
    if by_peer:
        _note_error(link, error)
    else:
        note(link, "handler")


def count_locked(link: Link) -> None:
    """Keep what a bare socket has carried, before it is closed, and before our side is ended.

    Under the lock no other thread closes the socket meanwhile.
    """
    if isinstance(link.wire, Bare):
        link.wire.count()
        link.bytes_read, link.bytes_written = (number or 0 for number in _of_bare(link.wire))


def end_reason(conn: Connection[Any]) -> str:
    """Why the connection ends or has ended, in one word; empty while nothing ends it.

    The first cause counts. docs/operations.md explains the words. From any thread.
    """
    link = conn._link
    reason = link.ending or _unnoted(link, conn.server is None or conn.began_at is not None)
    if reason in ("done", "reset") and _is_probe(conn, link, reason):
        return _note_probe(link)  # also if it is asked for later
    if reason == "probe" and link.bytes_read:  # before STARTTLS
        return "reset"
    return reason


def _note_probe(link: Link) -> str:
    with link.lock:  # another thread may have noted a cause since
        link.ending = "probe" if link.ending in ("", "reset") else link.ending
        return link.ending


def _unnoted(link: Link, is_served: bool) -> str:
    error: BaseException | None = link.broken
    if error is None and link.stalled == link.bytes_read:
        error = link.error
    if error is not None:
        return reason_of(error.__cause__ or error)
    if link.life is not Life.CLOSED:
        return ""
    return "done" if is_served else "refused"


def _is_probe(conn: Connection[Any], link: Link, reason: str) -> bool:
    """Whether the peer has hung up before its first byte.

    A peer that was greeted is one only if it has reset the connection soon: it may as well be a
    client that only listens.
    """
    if isinstance(link.wire, Bare):
        known = link.wire.traffic()
        if known is None:
            return False
        received, sent, ended = known
    else:
        received, sent = link.bytes_read, link.bytes_written
        ended = link.input is InputState.ENDED and link.transport.tls is None
    if received or not (ended or reason == "reset") or conn.tls is not None:
        return False
    is_soon = time.monotonic() - conn.opened_at < PROBE_SECONDS
    return not sent or (reason == "reset" and is_soon and sent <= GREETING)


def carried(conn: Connection[Any]) -> tuple[int | None, int | None]:
    """How many bytes have been received and sent so far. None if the handler reads the socket.

    On Linux the kernel knows also these, of TCP: the bytes that this kernel has received, and those
    that it has taken to be sent, with TLS encrypted. Fixed once the handler is done. From any
    thread.
    """
    link = conn._link
    if isinstance(link.wire, Bare):
        return _of_bare(link.wire)
    return link.bytes_read, link.bytes_written


def _of_bare(wire: Bare) -> tuple[int | None, int | None]:
    known = wire.traffic()
    return (None, None) if known is None else (known.received, known.sent)


def waited(conn: Connection[Any]) -> float:
    """The seconds from the accept to the call of the handler, or until now if it is not called yet.

    The time in which the client was held (`when_full`), and those of a PROXY header and of a TLS
    handshake, count. 0.0 for a connection without a server, as that of `netkit.connect`.
    """
    if conn.server is None:
        return 0.0
    began = conn.began_at
    return (time.monotonic() if began is None else began) - conn.accepted_at
