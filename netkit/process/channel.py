"""The few small messages between a parent process and its workers.

A message is a length and a JSON object. A handler, or a program that it starts, may take over the
process of a worker. So the parent checks the size and each field of a message, and limits the
number of messages.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable
from typing import Any

from ..core.record import NamedTuple
from ..net import sockopts
from ..server.registry import StopReport

MAX_SIZE = 16384  # bytes of one message
MAX_REASON = 1000  # characters
MAX_MESSAGES = 1000  # in one direction of a channel; a worker sends three, a parent a few more
_SIZE = struct.Struct("!I")
_CHUNK = 65536


class Ready(NamedTuple):
    """A worker accepts clients."""


class Failed(NamedTuple):
    """A worker cannot serve."""

    reason: str


class Stop(NamedTuple):
    """The order to stop, with the arguments of `Server.stop` (seconds)."""

    timeout: float
    patience: float = 0.0


News = Ready | Failed | StopReport  # from a worker
Message = News | Stop


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_seconds(value: object) -> bool:
    return _is_count(value) or (type(value) is float and value >= 0)


def _is_reason(value: object) -> bool:
    return type(value) is str and len(value) <= MAX_REASON


# The valid values of each field.
_FIELDS: dict[type[Message], dict[str, Callable[[object], bool]]] = {
    Ready: {},
    Failed: {"reason": _is_reason},
    StopReport: {"finished": _is_count, "cut": _is_count},
    Stop: {"timeout": _is_seconds, "patience": _is_seconds},
}


class Channel:
    """One end of the connection between a parent and a worker.

    Any thread may send, one thread may receive. Holds a descriptor until `close`.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sockopts.blocking(sock)
        self._received = bytearray()
        self._count = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return Channel, (SentSocket(self._socket),)

    def send(self, message: Message) -> None:
        """Send a message. OSError if the other end is closed, or has not read for long."""
        fields = {"kind": type(message).__name__, **message._asdict()}
        if isinstance(message, Failed):
            fields["reason"] = message.reason[:MAX_REASON]
        data = json.dumps(fields).encode()
        self._socket.sendall(_SIZE.pack(len(data)) + data)

    def receive(self, *kinds: type[Message]) -> list[Any]:
        """Read once, and return the messages that are complete then, perhaps none.

        EOFError at the end of input, ValueError for anything but a message of `kinds`, OSError.
        """
        chunk = self._socket.recv(_CHUNK)
        if not chunk:
            raise EOFError
        self._received += chunk
        messages = []
        while (end := self._end_of_first()) <= len(self._received):
            messages.append(_parsed(bytes(self._received[_SIZE.size : end]), kinds))
            del self._received[:end]
            self._count += 1
            if self._count > MAX_MESSAGES:
                raise ValueError(f"more than {MAX_MESSAGES} messages")
        return messages

    def _end_of_first(self) -> int:
        """The index of the end of the first message. ValueError if it is too long."""
        if len(self._received) < _SIZE.size:
            return _SIZE.size + MAX_SIZE
        (size,) = _SIZE.unpack_from(self._received)
        if size > MAX_SIZE:
            raise ValueError(f"a message of {size} bytes")
        return int(_SIZE.size + size)

    def do_not_wait(self) -> None:
        """Have `send` and `receive` raise BlockingIOError, an OSError, where they would wait."""
        self._socket.setblocking(False)

    def fileno(self) -> int:
        """The descriptor to wait for. -1 once it is closed."""
        return self._socket.fileno()

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self._socket.fileno() < 0

    def close(self) -> None:
        """Close the descriptor. Idempotent."""
        self._socket.close()


class SentSocket:
    """A socket to be sent to a process that is being started, where it becomes a socket again.

    The way in which `multiprocessing` sends sockets fails if a library has replaced
    `socket.socket` by its own class, and gives the copy the default timeout of its process.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def __reduce__(self) -> tuple[Any, ...]:
        from multiprocessing.reduction import DupFd  # which only a process being started needs

        sock = self._socket
        return _received, (sock.family, sock.type, sock.proto, DupFd(sock.fileno()))


def _received(family: int, kind: int, proto: int, descriptor: Any) -> socket.socket:
    return sockopts.blocking(socket.socket(family, kind, proto, fileno=descriptor.detach()))


def channel_pair() -> tuple[Channel, Channel]:
    """Return both ends of a new channel. The first one never waits."""
    ours, theirs = map(Channel, sockopts.socket_pair())
    ours.do_not_wait()
    return ours, theirs


def _parsed(data: bytes, kinds: tuple[type[Any], ...]) -> Any:
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("a message that is not JSON") from None
    name = fields.pop("kind", None) if isinstance(fields, dict) else None
    kind = next((each for each in kinds if each.__name__ == name), None)
    if kind is None or fields.keys() != _FIELDS[kind].keys():
        raise ValueError("an unknown message")
    for field, is_valid in _FIELDS[kind].items():
        if not is_valid(fields[field]):
            raise ValueError(f"a message with an invalid {field}")
    return kind(**fields)
