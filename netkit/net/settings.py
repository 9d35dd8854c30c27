"""The time limits and the socket options of a connection: methods and properties of `Connection`.

All of them are thread-safe. Those that set something do nothing after the close.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

from ..core.encodings import REPLACE
from ..core.kinds import check_seconds
from ..core.reader import Reader
from . import sockopts, unix

if TYPE_CHECKING:
    from .connection import Connection


@overload
def set_encoding(
    conn: Connection[Any], encoding: None, errors: str = REPLACE
) -> Connection[bytes]: ...


@overload
def set_encoding(
    conn: Connection[Any], encoding: str = "utf-8", errors: str = REPLACE
) -> Connection[str]: ...


@overload
def set_encoding(
    conn: Connection[Any], encoding: str | None = "utf-8", errors: str = REPLACE
) -> Connection[Any]: ...


def set_encoding(
    conn: Connection[Any], encoding: str | None = "utf-8", errors: str = REPLACE
) -> Any:
    """Have reads return text in this encoding, or bytes again if it is None.

    Returns the connection itself. Type checkers know the result as a ``Connection[str]``, or a
    ``Connection[bytes]``, whose reads return what it says.

    This includes bytes that have been received and not read. A read returns whole characters only.
    `write` uses the same encoding. `errors` says what becomes of invalid bytes, as in
    ``bytes.decode``: ``"replace"`` makes each of them U+FFFD; with ``"strict"`` the read raises
    InvalidTextError, and the next read goes on with the bytes that follow those of the error's
    `object`. UnknownEncodingError; LookupError if `errors` is unknown.
    """
    return Reader.set_encoding(conn, encoding, errors)


def set_timeout(conn: Connection[Any], seconds: float | None) -> None:
    """Limit the wait of each read for input, and of each write for progress, in seconds.

    Replaces the options `idle_timeout` and `write_timeout`; None is no limit. TypeError or
    ValueError unless `seconds` is more than 0.
    """
    if seconds is not None:
        check_seconds("timeout", seconds, zero=False)
    limits = conn._link.wire.limits
    conn._link.set_limits(limits._replace(idle_timeout=seconds, write_timeout=seconds))


def set_no_delay(conn: Connection[Any], on: bool = True) -> None:
    """Send small writes at once (TCP_NODELAY), instead of waiting to fill a packet."""
    conn._link.set_option(sockopts.set_no_delay, on)


def set_keep_alive(
    conn: Connection[Any],
    on: bool = True,
    idle: float | None = None,
    interval: float | None = None,
    count: int | None = None,
) -> None:
    """Have the kernel probe a silent peer, and reset the connection if no probe is answered.

    The first probe comes after `idle` seconds of silence (60), and further ones each `interval`
    seconds (10), up to `count` probes (6). Seconds are rounded down. ValueError below 1, TypeError.
    """
    sockopts.check_keep_alive(idle, interval, count)
    conn._link.set_option(sockopts.set_keep_alive, on, idle, interval, count)


def tos(conn: Connection[Any]) -> int:
    """The type of service (IP_TOS), or traffic class (IPV6_TCLASS), of sent packets: 0 to 255.

    May be set: TypeError or ValueError for an invalid value. The kernel may keep the lowest two
    bits, which are for congestion (RFC 3168). 0 for a Unix socket. Reading it raises
    ConnectionClosedError after the close.
    """
    return sockopts.tos(conn._link.open_socket())


def set_tos(conn: Connection[Any], value: int) -> None:
    """Set `tos`."""
    sockopts.check_tos("tos", value)
    conn._link.set_option(sockopts.set_tos, value)


def peer_credentials(conn: Connection[Any]) -> unix.PeerCredentials:
    """The process, user and group that connected a Unix socket, as the kernel knows them.

    OSError (EOPNOTSUPP) for any other connection; ConnectionClosedError after the close.
    """
    return unix.peer_credentials(conn._link.open_socket())
