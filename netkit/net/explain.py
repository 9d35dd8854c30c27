"""Errors of a connected socket: what each of them means, in words that name the peer."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from typing import Any

_TEXTS = {
    "idle_timeout": "nothing received from {peer} for {seconds}",
    "read_timeout": "no whole message from {peer} within {seconds}",
    "write_timeout": "nothing could be sent to {peer} for {seconds}",
    "min_rate": "{peer} is slower than {limit:g} bytes a second",
    "handshake_timeout": "no TLS handshake with {peer} within {seconds}",
    "close": "{peer} has not taken the rest within {seconds}",
    "lifetime": "the connection to {peer} has lasted {seconds}",
    "deadline": "the exchange with {peer} was not over within {seconds}",
    "timeout": "the read from {peer} was not done within {seconds}",
}

# With these the kernel gives up a connection, for its own time limit or the last ICMP error that it
# has received. Other errors have the same numbers, and texts that say more.
_GIVEN_UP = {os.strerror(n) for n in (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)}


def in_seconds(number: float) -> str:
    """Return ``1 second`` or ``0.5 seconds``, for example."""
    return f"{number:g} second{'' if number == 1 else 's'}"


def timed_out(name: str, limit: float, peer: str) -> TimeoutError:
    """Return the error for the time limit `name`, which has passed after `limit` seconds."""
    text = _TEXTS[name].format(limit=limit, seconds=in_seconds(limit), peer=peer)
    return TimeoutError(errno.ETIMEDOUT, f"{name}: {text}")


def is_silence(error: OSError) -> bool:
    """Whether `error` was raised because the peer has sent nothing for some time."""
    return str(error.strerror).startswith(("idle_timeout:", "read_timeout:"))


def unacknowledged(error: OSError, limit: float, peer: str) -> OSError:
    """Return an error that names `write_timeout` (`limit` seconds) if the kernel has given up.

    Else `error`. For a connection with unacknowledged bytes.
    """
    if error.strerror not in _GIVEN_UP:
        return error
    text = f"{peer} has acknowledged nothing for {in_seconds(limit)}"
    return TimeoutError(errno.ETIMEDOUT, f"write_timeout: {text}")


def peer_is_gone(error: OSError, peer: str) -> OSError:
    """Return an error that names `peer` if `error` says that the peer is gone, else `error`."""
    if isinstance(error, BrokenPipeError):
        return BrokenPipeError(
            errno.EPIPE, f"This socket has been ended by the other party ({peer})"
        )
    if isinstance(error, ConnectionResetError):
        return ConnectionResetError(errno.ECONNRESET, f"connection reset by {peer}")
    return error


def is_hang_up(error: BaseException) -> bool:
    """Whether `error` is one that a socket raises once its peer is gone."""
    return isinstance(error, ConnectionError) or (
        isinstance(error, OSError)
        and error.errno in (errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)
    )


def is_broken_tls(error: BaseException, sock: Any) -> bool:
    """Whether `error` was raised by the ``ssl.SSLSocket`` `sock`, whose peer has broken TLS.

    A handler may be a TLS client of another server, too, so the frames of the traceback decide.
    """
    ssl = sys.modules.get("ssl")  # code that has met such an error has imported it
    if ssl is None or not isinstance(error, ssl.SSLError):
        return False
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_locals.get("self") is sock for frame, _ in frames)
