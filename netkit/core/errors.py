"""The exceptions that netkit defines, by whose fault they are.

Where Python has an exception for a failure, netkit raises that one: ``TimeoutError``,
``ConnectionResetError``, ``BrokenPipeError``, or ``OSError`` with its ``errno``. The classes here
are for all other failures. Each of them derives from `NetkitError`, and most from one of these:

- `LocalError` is a fault of the program that called netkit.
- `PeerError` is a fault of the other end of the connection.

A failure of the machine (no descriptors, no memory, a port in use) is an ``OSError``.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Sequence
from typing import Any

from .text import said


class NetkitError(Exception):
    """The base class of all exceptions of netkit. They can be copied and pickled."""

    def __reduce__(self) -> tuple[Any, ...]:  # that of exceptions calls `__init__` with `args`
        return _restored, (type(self), self.args, vars(self))


def _restored(kind: type[NetkitError], args: tuple[Any, ...], state: dict[str, Any]) -> NetkitError:
    error = kind.__new__(kind, *args)  # which sets the attributes of an OSError
    error.args = args
    vars(error).update(state)
    return error


class LocalError(NetkitError):
    """The program that called netkit made an error, such as a write after the end."""


class PeerError(NetkitError):
    """The other end sent invalid data, or stopped sending too early."""


class ServerStateError(LocalError, RuntimeError):
    """The state of the server does not allow the call (to listen twice, to start unbound)."""


class WriteAfterEndError(LocalError, ConnectionError):
    """Data was written after `Connection.end`."""

    def __init__(self) -> None:
        super().__init__("write after end: this side of the connection has been ended")


class ConnectionClosedError(LocalError, ConnectionError):
    """A read or a write of a connection that this side has closed."""

    def __init__(self) -> None:
        super().__init__("the connection is closed")


class OutboxFullError(NetkitError, OSError):
    """A message was posted to a connection whose peer reads too slowly, and the outbox is full.

    `peer` is the address of the peer as text; `queued` is how many bytes were queued, and
    `max_bytes` is the limit of the outbox.
    """

    def __init__(self, peer: str, queued: int, max_bytes: int) -> None:
        where = f"the outbox of the connection to {peer} is full"
        super().__init__(f"{where}: {queued} bytes of at most {max_bytes} (max_bytes) are queued")
        self.peer = peer
        self.queued = queued
        self.max_bytes = max_bytes


class CancelledError(LocalError, ConnectionAbortedError):
    """Another thread has cancelled the call."""

    def __init__(self) -> None:
        super().__init__("cancelled")


class KilledError(NetkitError, ConnectionAbortedError):
    """An operator has ended the connection, with the command ``kill`` of the control socket.

    `peer` is the address of the other end as text.
    """

    def __init__(self, peer: str) -> None:
        super().__init__(f"an operator has killed the connection to {peer}")
        self.peer = peer


class ConnectError(NetkitError, OSError):
    """No address could be connected to. The message has the reason for each of them.

    It is also a TimeoutError if a time limit ended the call, or a ConnectionRefusedError,
    TimeoutError or PermissionError if all of `errors` are. `errors` has ``(address, error)`` for
    each attempt of the last round, and `errno` is that of the first. `address` and `port` are the
    target; for a Unix socket they are the path and None.
    """

    errors: tuple[tuple[str, OSError], ...] = ()
    address: str | None = None
    port: int | None = None
    syscall = "connect"

    @classmethod
    def of(
        cls, target: str, errors: Sequence[tuple[str, OSError]], timed_out: bool = False
    ) -> ConnectError:
        """Make the error. `target` is the target of the call as the message names it."""
        kind: Any = TimeoutError if timed_out else None
        for each in (ConnectionRefusedError, TimeoutError, PermissionError):
            if errors and not kind and all(isinstance(error, each) for _, error in errors):
                kind = each
        tried = "; ".join(
            said(error) if address == target else f"{address} {said(error)}"
            for address, error in errors
        )
        text = f"connect to {target} {'timed out' if timed_out else 'failed'}"
        number = errno.ETIMEDOUT if timed_out or not errors else errors[0][1].errno
        failure = _connect_error(kind)(number, f"{text}: {tried}" if tried else text)
        failure.errors = tuple(errors)
        return failure

    @property
    def code(self) -> str | None:
        """The name of `errno`, as in Node: ``"ECONNREFUSED"``."""
        return errno.errorcode.get(self.errno or 0)

    def __str__(self) -> str:
        return str(self.strerror)

    def __reduce__(self) -> tuple[Any, ...]:  # pickle cannot find its class by name
        kind = None if type(self) is ConnectError else type(self).__bases__[1]
        return _restored_connect_error, (kind, self.args, vars(self))


def _restored_connect_error(kind: Any, *rest: Any) -> NetkitError:
    return _restored(_connect_error(kind), *rest)


@functools.cache
def _connect_error(kind: type[OSError] | None) -> type[ConnectError]:
    if kind is None:
        return ConnectError
    return type("ConnectError", (ConnectError, kind), {"__module__": __name__})


class UnknownEncodingError(LocalError, LookupError):
    """No encoding has the name `name`. `close` lists similar names, the most similar first."""

    def __init__(self, name: str, close: Sequence[str] = ()) -> None:
        hint = f"; did you mean {', '.join(map(repr, close))}?" if close else ""
        super().__init__(f"unknown encoding {name!r}{hint}")
        self.name = name
        self.close = tuple(close)


class IncompleteReadError(PeerError, EOFError):
    """The input ended before a read was complete.

    `partial` has the bytes (or the text) that were received. `expected` is the number of bytes that
    the read needed, or None for a read up to a separator. The names are those of asyncio.
    """

    def __init__(self, partial: bytes | str, expected: int | None) -> None:
        size = len(partial)
        where = f"after {size} of {expected} bytes"
        if expected is None:
            where = f"{size} bytes after the last separator"
        super().__init__(f"the input ended {where}")
        self.partial = partial
        self.expected = expected


class InvalidTextError(PeerError, UnicodeDecodeError):
    """Received bytes are invalid in their encoding, and were decoded with ``errors="strict"``.

    `object` has the bytes of the line or chunk, which have been taken from the input. `encoding`,
    `start`, `end` and `reason` are as in UnicodeDecodeError.
    """

    @classmethod
    def of(cls, error: UnicodeError, encoding: str = "", data: bytes = b"") -> InvalidTextError:
        """Return the error for `error` of a codec, which has decoded `data` in `encoding`."""
        if isinstance(error, UnicodeDecodeError):
            return cls(error.encoding, error.object, error.start, error.end, error.reason)
        return cls(encoding, data, 0, len(data), str(error))

    def __reduce__(self) -> tuple[Any, ...]:  # only `__init__` sets the attributes
        return type(self), self.args, vars(self)


class LineTooLongError(PeerError, ValueError):
    """A line, or the input up to a separator of `readuntil`, is longer than `limit` bytes.

    The next read drops the line to its end, and returns what follows. For a `separator` other than
    a newline, the message names the way to read longer messages.
    """

    def __init__(self, limit: int, separator: bytes = b"\n") -> None:
        text = f"line longer than {limit} bytes (max_line)"
        if separator != b"\n":
            text += f"; read_message(Delimiter({separator!r})) reads longer messages"
        super().__init__(text)
        self.limit = limit


class MessageTooLongError(PeerError, ValueError):
    """A message, or the result of a read, would have more than `limit` bytes.

    `size` is its number of bytes, None if that is not known. The error's message names the option
    that sets the limit, if there is one. Nothing has been taken from the input, and the beginning
    of the next message is not known, so close the connection.
    """

    def __init__(
        self,
        limit: int,
        size: int | None = None,
        option: str | None = "max_message",
        what: str = "message",
    ) -> None:
        text = f"{what} longer than {limit} bytes"
        if size is not None:
            text = f"{what} of {size} bytes, where {limit} are allowed"
        super().__init__(f"{text} ({option})" if option else text)
        self.limit = limit
        self.size = size


class FramingError(PeerError, ValueError):
    """The input is no message of the expected framing; the error's message shows its beginning.

    The beginning of the next message is not known, so close the connection.
    """


class ProxyHeaderError(PeerError, ValueError):
    """What a proxy sent first is no valid PROXY header; the error's message says why."""


class TlsError(PeerError, ConnectionError):
    """The peer violated TLS or ended it with an alert. No more can be read or written."""


class HandshakeError(TlsError):
    """The TLS handshake failed. The message gives the reason, in one line.

    A read after the handshake also raises this if the peer rejects our certificate only then (RFC
    8446 section 4.4.2.4).
    """

    by_end = False
    """Whether the end of the TCP input is the cause. The connection knows which side ended it."""


class NotBegunError(HandshakeError):
    """A client disconnected from a TLS port without sending a byte, as a port scan does."""

    by_end = True

    def __init__(self) -> None:
        super().__init__("the client disconnected before the handshake")


class TruncatedError(TlsError, EOFError):
    """The TCP input ended without TLS's close_notify, as an attacker on the network can cause."""

    def __init__(self) -> None:
        super().__init__(
            "the peer ended the connection without TLS's close_notify: the data may be incomplete"
        )


class TlsConfigError(LocalError, ValueError):
    """A certificate or a key cannot be used. The message names the file and the problem."""


class MissingExtraError(LocalError, ImportError):
    """An optional package is not installed. The message names it and the way to install it."""


class WorkersFailedError(NetkitError):
    """No worker process could be made to serve. `exit_status` is that of the last one, or 1."""

    exit_status = 1


class Failure(NetkitError):
    """A command cannot do its work. The message is one line for the user, without a traceback."""

    exit_status = 1
