"""Why a connection ended: the words for it, and the word for each error.

The words are values of `ConnectionClosed.end`, of the access log and of a label of the metrics, so
programs and dashboards compare them. docs/operations.md explains each to users.
"""

from __future__ import annotations

import errno

from .errors import (
    HandshakeError,
    IncompleteReadError,
    LocalError,
    NotBegunError,
    OutboxFullError,
    PeerError,
    TruncatedError,
)

LIMITS = (
    *("idle_timeout", "read_timeout", "write_timeout", "min_rate", "lifetime"),
    "handshake_timeout",
)
"""The time limits that are options of a server."""

ENDS = (
    *("done", "reset", "probe", "proxy_header", "handshake", "protocol", "handler"),
    *LIMITS,
    *("deadline", "outbox_full"),
    *("drained", "cut", "killed", "refused"),
)
"""All reasons for which a connection ends."""

# The names that the messages of other time limits begin with (`netkit.net.explain`).
_OTHER_LIMITS = {"close": "write_timeout", "deadline": "deadline", "timeout": "deadline"}

_GONE = (errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)
# By name, since only a program that uses `ssl` has these classes.
_TLS_ENDED = ("SSLEOFError", "SSLZeroReturnError")


def limit_of(error: BaseException) -> str:
    """Return the reason for an error that names its time limit; empty for any other error."""
    if not isinstance(error, TimeoutError):
        return ""
    name = str(error.strerror).partition(":")[0]
    return name if name in LIMITS else _OTHER_LIMITS.get(name, "")


def reason_of(error: BaseException) -> str:
    """Return why a connection ends with `error`, for which its peer, or a limit, is to blame.

    Empty if the error says nothing about it, such as that of a read after the close.
    """
    if isinstance(error, TruncatedError | IncompleteReadError):
        return "reset"  # the peer hung up amid a message
    if isinstance(error, HandshakeError):
        return "probe" if isinstance(error, NotBegunError) else "handshake"
    if isinstance(error, OutboxFullError):
        return "outbox_full"
    if isinstance(error, LocalError):
        return ""
    return limit_of(error) or ("reset" if _is_hang_up(error) else "protocol")


def _is_hang_up(error: BaseException) -> bool:
    if isinstance(error, PeerError) or not isinstance(error, OSError):
        return False
    is_gone = isinstance(error, ConnectionError | TimeoutError) or error.errno in _GONE
    return is_gone or type(error).__name__ in _TLS_ENDED
