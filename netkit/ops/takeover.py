"""One program takes over the listeners of another one, which then stops: ``--take-over``.

Rules:

1. The new program listens on a Unix socket in a folder of its own, and gives the old one the
   command ``hand-over PATH``. The old one connects there, and sends the listeners of its endpoints;
   each of its processes that serve sends those of its servers (SCM_RIGHTS, unix(7)). From then on
   both programs have the listeners, so no client is refused.
2. Once the new program serves, it says so, and the old one stops. If the new one ends before that,
   the old one goes on.
3. A client that the old one has accepted may not have sent its request yet. So the old one leaves
   its clients in peace for their `drain_timeout`, and then drains, as a worker that is replaced.
4. Before the old one stops, it leaves the files of its Unix sockets to the new one. A new one that
   ends before it serves removes none of them. Its endpoints accept nobody before it serves.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from ..core import events
from ..core.endpoint import Endpoint
from ..core.errors import Failure
from ..core.text import one_line, said, several
from ..net import bind
from ..server import log
from ..server.server import Server

PATIENCE = 10.0  # seconds for each step of the other program
GO = b"!"  # the new program serves
MOST_ANSWER = 64 * 1024  # the most bytes of the old program's answer


class Endpoints(Protocol):
    """The endpoints of the process that carries out a command."""

    def listeners(self) -> Sequence[socket.socket]:
        """Return all their listeners."""
        ...

    def leave(self) -> None:
        """Accept no operator any more. Does not wait."""
        ...


# The old program


@contextlib.contextmanager
def connected(path: str) -> Iterator[socket.socket]:
    """A connection to the new program, which takes listeners at `path`. ValueError if it fails."""
    try:
        with socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(PATIENCE)
            channel.connect(path)
            yield channel
    except OSError as error:
        raise ValueError(f"listeners cannot be sent to {path!r}: {said(error)}") from None


def send(channel: socket.socket, listeners: Iterable[socket.socket]) -> int:
    """Send listeners, and return how many. OSError."""
    count = 0
    for listener in listeners:
        socket.send_fds(channel, [b"\0"], [listener.fileno()])
        count += 1
    return count


def send_those_of(servers: Sequence[Server], path: str) -> float:
    """Send the listeners of `servers`, and return their longest `drain_timeout`. ValueError."""
    with connected(path) as channel:
        send(channel, (it for each in servers for it in each._listeners.sockets))
    return max(each._options.drain_timeout for each in servers)


def may_go(channel: socket.socket, seconds: float = 1.0) -> bool:
    """Whether the new program has said that it serves, or says so within `seconds`. OSError."""
    channel.settimeout(seconds)
    with contextlib.suppress(TimeoutError):
        return channel.recv(len(GO)) == GO
    return False


# The new program


def _answer(operator: socket.socket) -> dict[str, Any]:
    """Return the object that says how many listeners of endpoints come. OSError, ValueError."""
    with operator.makefile("rb") as file:
        line = file.readline(MOST_ANSWER)
    try:
        row = json.loads(line or b"{}")
    except RecursionError:
        row = None
    if not isinstance(row, dict) or type(row.get("endpoints", 0)) is not int:
        raise ValueError("its answer is invalid")
    if "endpoints" not in row:
        raise ValueError(row.get("error", "no answer"))
    return row


class TakeOver:
    """The listeners of the program that has run so far, and the way to have it stop.

    For a ``with`` block of one thread, which closes the listeners that `place` has not returned.
    """

    def __init__(self, control: Endpoint) -> None:
        """Ask the program whose control socket is `control`, if one runs there. Failure."""
        self._listeners: list[socket.socket] = []
        self._channel: socket.socket | None = None
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            operator = stack.enter_context(socket.socket(socket.AF_UNIX))
            operator.settimeout(PATIENCE)
            try:
                if _connect(operator, control.path):
                    self._ask(operator, stack)
            except (OSError, ValueError) as error:
                text = f"the program of {control.path} has not handed over: {said(error)}"
                raise Failure(one_line(text)) from None
            self._operator = operator
            stack.callback(self._hang_up)
            self._stack = stack.pop_all()

    @property
    def is_begun(self) -> bool:
        """Whether another program runs, and stops once this one is ready."""
        return self._channel is not None

    def _ask(self, operator: socket.socket, stack: contextlib.ExitStack) -> None:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="netkit-"))
        path = os.path.join(folder, "listeners")
        with socket.socket(socket.AF_UNIX) as rendezvous:
            rendezvous.bind(path)
            rendezvous.listen()
            rendezvous.setblocking(False)
            operator.sendall(f"json hand-over {path}\n".encode())
            row = _answer(operator)
            stack.callback(self._close_unused)
            self._channel = stack.enter_context(rendezvous.accept()[0])
            self._receive(self._channel, row["endpoints"])
            with contextlib.suppress(BlockingIOError):
                while True:
                    with rendezvous.accept()[0] as process:
                        self._receive(process, None)
        text = several(len(self._listeners), "listener")
        log.logger.info("taking over %s of process %s", text, row.get("pid"))

    def _receive(self, channel: socket.socket, count: int | None) -> None:
        """Receive `count` listeners, or all up to the end of input."""
        channel.settimeout(PATIENCE)
        while count is None or count > 0:
            data, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
            if not data:
                return
            for descriptor in descriptors:
                listener = socket.socket(fileno=descriptor)
                listener.set_inheritable(False)
                self._listeners.append(listener)
            count = count and count - 1

    def place(self, endpoint: Endpoint) -> Endpoint:
        """Return where to listen instead of at `endpoint`: the descriptor of its listener.

        Without such a listener, that is `endpoint` itself.
        """
        for name in _names_of(endpoint):
            for listener in self._listeners:
                if _is_named(listener.getsockname(), name):
                    self._listeners.remove(listener)
                    path = name if isinstance(name, str) else ""
                    tls, proxy = endpoint.layers
                    return Endpoint("fd", fd=listener.detach(), path=path, tls=tls, proxy=proxy)
        return endpoint

    def end_when_ready(self, claim: Callable[[], object]) -> None:
        """Have the other program stop as soon as this one is ready, and close what is not used.

        `claim` is called then: it has this program remove the files of the other one's Unix sockets
        at its end. If this program ends before that, the other one still needs them.
        """
        self._close_unused()
        if self.is_begun:
            self._stack.callback(events.subscribe(lambda event: self._notice(event, claim)))

    def _notice(self, event: events.Event, claim: Callable[[], object]) -> None:
        if isinstance(event, events.Ready) and self._channel is not None:
            claim()
            with contextlib.suppress(OSError):  # the other program has ended
                self._channel.sendall(GO)
            self._hang_up()

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):  # it is closed
            self._operator.shutdown(socket.SHUT_RDWR)  # a forked process has a copy of it

    def _close_unused(self) -> None:
        while self._listeners:
            self._listeners.pop().close()

    def __enter__(self) -> TakeOver:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _connect(operator: socket.socket, path: str) -> bool:
    """Connect to a control socket. Return whether a program has it. OSError."""
    try:
        operator.connect(path)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ECONNREFUSED):
            raise
        return False
    return True


def _names_of(endpoint: Endpoint) -> Iterator[Any]:
    """The names that a listener at `endpoint` may have. OSError."""
    if endpoint.kind == "unix":
        is_abstract = endpoint.path.startswith("\0")
        yield os.fsencode(endpoint.path) if is_abstract else endpoint.path
    elif endpoint.kind == "tcp" and endpoint.port:
        for candidate in bind.candidates(endpoint.host, endpoint.port, endpoint.ipv6_only):
            yield candidate.address[:2]


def _is_named(name: Any, wanted: Any) -> bool:
    return bool((name[:2] if isinstance(name, tuple) else name) == wanted)
