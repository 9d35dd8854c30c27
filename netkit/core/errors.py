"""What netkit raises, and whose fault each error is.

Where Python has a word for a failure, netkit uses it: ``TimeoutError``, ``ConnectionResetError``,
``BrokenPipeError``, ``OSError`` with its ``errno``. The classes here are for what Python has no
word for. Each derives from `NetkitError` and says whose fault it is: `LocalError`, the program that
called netkit; `PeerError`, the other end of the connection. What the machine does (no descriptors,
no memory, a port in use) stays an ``OSError``.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Sequence
from typing import Any


class NetkitError(Exception):
    """Base of every error that netkit itself defines. Can be copied, and sent between processes."""

    def __reduce__(self) -> tuple[Any, ...]:  # an exception's own would call `__init__` with `args`
        return _restored, (type(self), self.args, vars(self))


def _restored(kind: type[NetkitError], args: tuple[Any, ...], state: dict[str, Any]) -> NetkitError:
    error = kind.__new__(kind)
    error.args = args
    vars(error).update(state)
    return error


class LocalError(NetkitError):
    """The calling program did something that cannot work; mending it is in its hands."""


class PeerError(NetkitError):
    """The other end sent, or stopped sending, something that the caller cannot accept."""


class ServerStateError(LocalError, RuntimeError):
    """The server is not in a state that allows the call (listening twice, starting unbound)."""


class WriteAfterEndError(LocalError, ConnectionError):
    """`Connection.write` or `Connection.end` with data, after `Connection.end`."""

    def __init__(self) -> None:
        super().__init__("write after end: this side of the connection has been ended")


class ConnectionClosedError(LocalError, ConnectionError):
    """A read or a write on a connection that this side has closed."""

    def __init__(self) -> None:
        super().__init__("the connection is closed")


class CancelledError(LocalError, ConnectionAbortedError):
    """Another thread has cancelled the call."""

    def __init__(self) -> None:
        super().__init__("cancelled")


class ConnectError(NetkitError, OSError):
    """None of the addresses could be connected to; the message says what each of them answered.

    Also a ConnectionRefusedError, TimeoutError or PermissionError, if all of `errors` are, and a
    TimeoutError if the time was up. `errors` has ``(address, error)`` for each attempt of the last
    round; `errno` is the first one's. `address` and `port` are what was to be connected to; `port`
    is None for a Unix socket.
    """

    errors: tuple[tuple[str, OSError], ...] = ()
    address: str | None = None
    port: int | None = None
    syscall = "connect"

    @classmethod
    def of(
        cls, target: str, errors: Sequence[tuple[str, OSError]], timed_out: bool = False
    ) -> ConnectError:
        """`target`: what was to be connected to, for people."""
        kinds = [
            kind
            for kind in (ConnectionRefusedError, TimeoutError, PermissionError)
            if errors and all(isinstance(error, kind) for _, error in errors)
        ]
        kind = TimeoutError if timed_out else kinds[0] if kinds else None
        tried = "; ".join(_attempt(address, error, target) for address, error in errors)
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

    def __reduce__(self) -> tuple[Any, ...]:  # its class has no name that pickle could look up
        kinds = [kind for kind in type(self).__bases__ if kind is not ConnectError]
        kind = kinds[0] if type(self) is not ConnectError else None
        return _restored_connect_error, (kind, self.args, vars(self))


def _restored_connect_error(
    kind: Any, args: tuple[Any, ...], state: dict[str, Any]
) -> ConnectError:
    error = _connect_error(kind)(*args)
    vars(error).update(state)
    return error


def _attempt(address: str, error: OSError, target: str) -> str:
    reason = error.strerror or str(error)
    return reason if address == target else f"{address} {reason}"


@functools.cache
def _connect_error(kind: type[OSError] | None) -> type[ConnectError]:
    if kind is None:
        return ConnectError
    return type("ConnectError", (ConnectError, kind), {"__module__": __name__})


class UnknownEncodingError(LocalError, LookupError):
    """No encoding has this name. `close` lists the names that look like it, best first."""

    def __init__(self, name: str, close: Sequence[str] = ()) -> None:
        hint = f"; did you mean {', '.join(map(repr, close))}?" if close else ""
        super().__init__(f"unknown encoding {name!r}{hint}")
        self.name = name
        self.close = tuple(close)


class IncompleteReadError(PeerError, EOFError):
    """The input ended before a read was complete.

    `partial` holds the bytes (or the text) that did come; `expected` is the number of bytes wanted,
    or None where the read was for a separator. Named as in asyncio.
    """

    def __init__(self, partial: bytes | str, expected: int | None) -> None:
        if expected is None:
            text = f"the input ended {len(partial)} bytes after the last separator"
        else:
            text = f"the input ended after {len(partial)} of {expected} bytes"
        super().__init__(text)
        self.partial = partial
        self.expected = expected


class LineTooLongError(PeerError, ValueError):
    """A line, or what `readuntil` looks for, is longer than `limit` bytes.

    The next read drops the line up to its end, and goes on with what follows. `separator` is what
    `readuntil` was asked for: the text then says how to read a longer message that ends with it.
    """

    def __init__(self, limit: int, separator: bytes = b"\n") -> None:
        text = f"line longer than {limit} bytes (max_line)"
        if separator != b"\n":
            text += f"; read_message(Delimiter({separator!r})) reads longer messages"
        super().__init__(text)
        self.limit = limit


class MessageTooLongError(PeerError, ValueError):
    """A message, or what a read asks for, has more than `limit` bytes.

    `size` is the number of bytes that it has, where that is known, or else None. Nothing of it has
    been taken from the input: where the next message begins, nobody knows, so close the connection.
    The text names the option that sets the limit, if there is one.
    """

    def __init__(
        self,
        limit: int,
        size: int | None = None,
        option: str | None = "max_message",
        what: str = "message",
    ) -> None:
        if size is None:
            text = f"{what} longer than {limit} bytes"
        else:
            text = f"{what} of {size} bytes, where {limit} are allowed"
        super().__init__(f"{text} ({option})" if option else text)
        self.limit = limit
        self.size = size


class FramingError(PeerError, ValueError):
    """What came is no message of the framing that is expected: the message says what it is.

    Where the next message begins, nobody knows, so close the connection.
    """


class TlsError(PeerError, ConnectionError):
    """The peer broke TLS, or broke it off: nothing more can be read or written."""


class HandshakeError(TlsError):
    """TLS could not be agreed on with the peer; the message says why, in one line.

    Also raised by a read after the handshake, where the peer rejects our certificate only then
    (RFC 8446 section 4.4.2.4).
    """


class NotBegunError(HandshakeError):
    """A client left a server's TLS port without a byte, as a probe for an open port does."""

    def __init__(self) -> None:
        super().__init__("the client left before it began the handshake")


class TruncatedError(TlsError, EOFError):
    """The TCP input ended without TLS's close_notify, as anybody on the way can make it do."""

    def __init__(self) -> None:
        super().__init__(
            "the peer ended the connection without TLS's close_notify: what came may be only a part"
        )


class TlsConfigError(LocalError, ValueError):
    """A certificate or a key cannot be used; the message names the file and what is wrong."""


class MissingExtraError(LocalError, ImportError):
    """An optional package is not installed: the message says what for, and how to install it."""


class WorkersFailedError(NetkitError):
    """No worker process could be brought to serve."""


class LoadError(Exception):
    """A handler cannot be loaded: the message is all there is to say."""


class Failure(LoadError):
    """What a command cannot do, in one line for its user."""
