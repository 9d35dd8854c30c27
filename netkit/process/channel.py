"""The few small messages between a parent process and its workers, and its front process.

A message is a line of JSON: an array of the name of its kind, and its fields. A handler, or a
program that it starts, may take over the process of a worker. So the parent checks the size and
each field of a message, and limits the number of messages. Only a parent sends descriptors.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable
from typing import Any

from ..core.record import NamedTuple
from ..net import sockopts
from ..server.registry import StopReport

MAX_SIZE = 16384  # bytes of one message
MAX_REASON = 1000  # characters
MAX_MESSAGES = 1000  # in one direction of a channel, beside those that `allow` is called for
_CHUNK = 65536


class Loaded(NamedTuple):
    """A worker has loaded the application. The parent cannot know its options otherwise."""

    drain_timeout: float
    """The option of this name, in seconds."""
    hook_seconds: float
    """How long `on_stop` may take after the clients are gone."""
    is_limited: bool
    """`Options.limited`"""
    speaks_tls: bool
    """`Setup.speaks_tls`"""
    stop_delay: float
    """The option of this name, in seconds."""


class Ready(NamedTuple):
    """A worker accepts clients."""


class Failed(NamedTuple):
    """A worker cannot serve."""

    reason: str


class Stop(NamedTuple):
    """The order to stop, with the arguments of `Server.stop` (seconds)."""

    timeout: float
    patience: float = 0.0


class Ask(NamedTuple):
    """The question whether the worker accepts clients, or only hangs."""


class Alive(NamedTuple):
    """The answer to `Ask`, by the accepting thread of the worker."""

    connections: int
    """How many are open."""


class Tell(NamedTuple):
    """A command that needs no answer: a question for a worker, or an order from the front."""

    command: str
    arguments: str
    """The text of a JSON object."""


class Questions(NamedTuple):
    """A socket comes with this message: for questions to a worker, or for those of the front."""

    number: int
    """`Worker.number`"""
    pid: int


class State(NamedTuple):
    """Those fields of a `ProgramState` that change, for the front."""

    phase: str
    workers: int
    restarts: int
    ok: int
    failed: int


News = Loaded | Ready | Failed | Alive | StopReport  # from a worker
Message = News | Stop | Ask | Tell | Questions | State


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_seconds(value: object) -> bool:
    return _is_count(value) or (type(value) is float and value >= 0)


def _is_switch(value: object) -> bool:
    return type(value) is bool


def _is_reason(value: object) -> bool:
    return type(value) is str and len(value) <= MAX_REASON


def _is_text(value: object) -> bool:
    return type(value) is str


# The checks of each kind's fields.
_FIELDS: dict[type[Message], tuple[Callable[[object], bool], ...]] = {
    Loaded: (_is_seconds, _is_seconds, _is_switch, _is_switch, _is_seconds),
    Ready: (),
    Failed: (_is_reason,),
    StopReport: (_is_count, _is_count),
    Ask: (),
    Alive: (_is_count,),
    Stop: (_is_seconds, _is_seconds),
    Tell: (_is_reason, _is_text),
    Questions: (_is_count, _is_count),
    State: (_is_reason, *[_is_count] * 4),
}


class Channel:
    """One end of the connection between a parent and a worker.

    Any thread may send, one thread may receive. Holds a descriptor until `close`, which is
    idempotent.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sockopts.blocking(sock)
        self._rest = b""
        self._count = 0
        self._descriptors: list[int] | None = None  # None if none are received

    def __reduce__(self) -> tuple[Any, ...]:
        return Channel, (SentSocket(self._socket),)

    def trust(self) -> Channel:
        """Receive any number of messages, and descriptors. For the channel to a parent."""
        self._descriptors = []
        return self

    def send(self, message: Message, descriptor: int | None = None) -> None:
        """Send a message, and a copy of `descriptor` with it.

        OSError if the other end is closed, or has not read for long.
        """
        if isinstance(message, Failed):
            message = Failed(message.reason[:MAX_REASON])
        line = json.dumps([type(message).__name__, *message]).encode() + b"\n"
        if descriptor is None:
            self._socket.sendall(line)
        else:
            socket.send_fds(self._socket, [line], [descriptor])

    def take_socket(self) -> socket.socket:
        """Return the socket that has come with the oldest `Questions` whose socket is not taken."""
        assert self._descriptors, "a parent sends one with each message of that kind"
        return sockopts.blocking(socket.socket(fileno=self._descriptors.pop(0)))

    def allow(self) -> None:
        """Receive one message more: there is no limit to questions and their answers."""
        self._count -= 1

    def receive(self, *kinds: type[Message]) -> list[Any]:
        """Read once, and return the messages that are complete then, perhaps none.

        EOFError at the end of input, ValueError for anything but a message of `kinds`, OSError.
        """
        chunk = self._receive()
        if not chunk:
            raise EOFError
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if max(map(len, (*lines, self._rest))) > MAX_SIZE:
            raise ValueError("a message that is too long")
        if self._rest[:1] not in (b"", b"["):
            raise ValueError("an invalid message")
        self._count += len(lines)
        if self._count > MAX_MESSAGES and self._descriptors is None:
            raise ValueError("too many messages")
        return [_parsed(line, kinds) for line in lines]

    def _receive(self) -> bytes:
        if self._descriptors is None:
            return self._socket.recv(_CHUNK)
        flags = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
        chunk, descriptors, *_ = socket.recv_fds(self._socket, _CHUNK, 1, flags)
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)  # where there is no MSG_CMSG_CLOEXEC
            self._descriptors.append(descriptor)
        return chunk

    def fileno(self) -> int:
        """The descriptor to wait for. -1 once it is closed."""
        return self._socket.fileno()

    @property
    def closed(self) -> bool:
        return self._socket.fileno() < 0

    def close(self) -> None:
        self._socket.close()


def _parsed(line: bytes, kinds: tuple[type[Message], ...]) -> Any:
    with contextlib.suppress(ValueError, RecursionError):
        message = json.loads(line)
        for kind in kinds:
            if isinstance(message, list) and message[:1] == [kind.__name__]:
                return _made(kind, message[1:])
    raise ValueError("an invalid message")


def _made(kind: Any, values: list[Any]) -> Any:
    checks = _FIELDS[kind]
    if len(values) != len(checks) or not all(map(lambda check, it: check(it), checks, values)):
        raise ValueError
    return kind(*values)


def channel_pair() -> tuple[Channel, Channel]:
    """Return both ends of a new channel.

    Methods of the first one raise BlockingIOError, an OSError, where they would wait.
    """
    ours, theirs = map(Channel, sockopts.socket_pair())
    ours._socket.setblocking(False)
    return ours, theirs


class SentSocket:
    """A socket to be sent to a process that is being started, where it becomes a socket again.

    The way in which `multiprocessing` sends sockets fails if a library has replaced
    `socket.socket` by its own class, and gives the copy the default timeout of its process.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, duplicates(self._socket.fileno())


def _received(descriptor: Any) -> socket.socket:
    return sockopts.blocking(socket.socket(fileno=descriptor.detach()))


def duplicates(*descriptors: int) -> tuple[Any, ...]:
    """Return descriptors in the form that can be sent to a process that is being started."""
    from multiprocessing.reduction import DupFd  # here because most programs have one process

    return tuple(map(DupFd, descriptors))
