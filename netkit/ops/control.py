"""The control socket: a Unix socket that takes commands from operators.

A client sends one line, and receives lines until the end of output, so that ``nc -U PATH`` will do.
The mode of the socket's file decides who may connect; there is no other permission.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable
from typing import Any

from ..core import events
from ..core.endpoint import control_endpoint
from ..core.errors import LineTooLongError
from ..core.text import printable
from ..net import sockopts
from ..net.connection import Connection
from ..process.program import Program
from ..server.server import Server
from .commands import answer
from .internal import InternalEndpoint, InternalServer, Placing, unchanged
from .takeover import Endpoints

MAX_LINE = 64 * 1024  # bytes of a command
COMMAND_SECONDS = 10.0  # for the line of a client
READER_SECONDS = 30.0  # for a client that reads nothing
LINGER_SECONDS = 1.0  # for a client that sends more than its command
MAX_CLIENTS = 32
_CHUNK = 32 * 1024  # characters that are gathered before they are sent


class Control(InternalEndpoint):
    """The control socket of one program."""

    def __init__(self, address: str | os.PathLike[str], *listeners: socket.socket) -> None:
        """`address` is a path, perhaps with ``?mode=660``. ValueError if it is invalid."""
        path = os.fspath(address)
        super().__init__(path, control_endpoint(path), listeners)

    def open(self, place: Placing = unchanged) -> None:
        """Listen on the path, or where `place` says. OSError if it cannot be had."""
        self.listen(place)

    def serve(
        self, program: Program, endpoints: Endpoints | None = None, suspended: bool = False
    ) -> Server:
        """Take commands for `program` in the background, as `InternalEndpoint.start` says.

        `endpoints` are those of this process.
        """
        server = InternalServer(
            None,
            lambda conn: serve_operator(conn, program, endpoints),
            max_connections=MAX_CLIENTS,
            when_full="refuse",
            refusal=f"error: there are {MAX_CLIENTS} operators already\n",
            idle_timeout=COMMAND_SECONDS,
            read_timeout=COMMAND_SECONDS,
            write_timeout=READER_SECONDS,
            max_line=MAX_LINE,
            drain_timeout=LINGER_SECONDS,
        )
        return self.start(server, suspended)


def serve_operator(
    conn: Connection[Any], program: Program, endpoints: Endpoints | None = None
) -> None:
    """Read one command, and write what it answers."""
    conn.linger_seconds = LINGER_SECONDS
    try:
        line = _read_command(conn)
    except ValueError as error:
        conn.write(f"error: {error}\n")
        return

    def is_gone(seconds: float) -> bool:
        return sockopts.hung_up(conn.socket, seconds)

    def log_command(error: str) -> None:
        events.emit(events.OperatorCommand(printable(line), _who(conn), printable(error)))

    with contextlib.closing(answer(line, program, is_gone, log_command, endpoints)) as lines:
        _send(conn, lines)


def _read_command(conn: Connection[Any]) -> str:
    """Return the first line. ValueError if there is none in time, or if it is invalid."""
    try:
        line: bytes = conn.readline()
        return line.decode().strip()
    except TimeoutError:
        raise ValueError(f"no command within {COMMAND_SECONDS:g} seconds") from None
    except LineTooLongError:
        raise ValueError(f"a command has at most {MAX_LINE} bytes") from None
    except UnicodeDecodeError:
        raise ValueError("a command is text in UTF-8") from None


def _who(conn: Connection[Any]) -> str:
    try:
        peer = conn.peer_credentials
    except OSError:  # a system that does not tell
        return "an unknown user"
    return f"uid {peer.uid}" if peer.pid is None else f"uid {peer.uid}, pid {peer.pid}"


def _send(conn: Connection[Any], lines: Iterable[str]) -> None:
    """Send the lines, many at once. An empty line means that those before it are to be sent now."""
    gathered: list[str] = []
    size = 0
    for line in lines:
        gathered.append(line)
        size += len(line)
        if size > _CHUNK or (size and not line):
            conn.write("".join(gathered))
            gathered, size = [], 0
    if size:
        conn.write("".join(gathered))
