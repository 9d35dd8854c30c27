"""Sends input to the peer and writes the peer's data to the output, for ``netkit connect``.

Rules:

1. Two threads, one for each direction, and each blocks. Ctrl+C interrupts the main thread, which
   receives, or edits the lines that are typed on a terminal. The other thread is a daemon, and
   nothing is buffered, so the process may end while that thread waits for input.
2. The end of our input is passed on to the peer, and the connection stays open. The end of the
   peer's data ends the command, after the input that has arrived by then has been sent.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any, Protocol

from ..net.connection import Connection
from ..net.files import Sink
from ..net.relay import Direction, copy, copy_both_ways
from .arguments import say
from .display import Hex, Text, encoded
from .progress import Bars, Count
from .stdio import Input, Output, is_interactive

# The longest silence of the input once the peer has ended its side (seconds), as with socat: data
# that comes through a pipe without a pause is sent, and a silent pipe does not delay the end.
GRACE = 0.5

# The longest wait for the end of the sending thread after a failure (seconds). It ends at once,
# unless another process has read the input that it was about to read.
LEAVING = 1.0

_HINT = "netkit: hint: install prompt_toolkit (the extra netkit-tcp[cli]) to edit lines"


class Source(Protocol):
    """An input: an `Input`, or the lines that are typed on a `Terminal`."""

    def __iter__(self) -> Iterator[bytes]: ...

    def end_after(self, seconds: float) -> None:
        """Count this much silence as the end of the input from now on. Thread-safe."""


def transfer(connected: Callable[[], Connection], arguments: argparse.Namespace) -> Connection:
    """Make the connection, copy in both directions to the end, and return the closed connection.

    The input is opened before the connection is made. Raises OSError, and OutputClosedError if the
    reader of standard output is gone.
    """
    files = (arguments.send, arguments.receive)
    interactive = files == (None, None) and is_interactive()
    editing = interactive and find_spec("prompt_toolkit") is not None
    with contextlib.ExitStack() as stack:
        source: Source | None = None if editing else _input(arguments, stack)
        if arguments.receive is None and sys.stdout is None:
            raise OSError("standard output is closed: name a file with --receive")
        conn = stack.enter_context(connected())
        conn.set_timeout(arguments.idle_timeout)
        bars = stack.enter_context(Bars())
        if source is None:
            from .terminal import Terminal  # here because only a terminal needs prompt_toolkit

            source = terminal = stack.enter_context(Terminal())
            sink: Sink = Text(terminal.write)
        else:
            if interactive:
                say(_HINT)
            sink = _sink(arguments, bars, stack)
        if arguments.hex:
            sink = Hex(conn, sink)
        if arguments.receive is not None:
            sink = _Counted(sink, bars.add(arguments.receive))
        count = _ignored if arguments.send is None else bars.add(arguments.send)
        exchange(conn, source, sink, arguments, count, main_sends=editing)
    return conn


# Input and output


def _input(arguments: argparse.Namespace, stack: contextlib.ExitStack) -> Input:
    if arguments.send is not None:
        file = stack.enter_context(_open(arguments.send, "rb"))
        source = Input(file.fileno(), arguments.send)
    else:  # if standard input is closed, its descriptor may be that of our socket
        source = Input(None if sys.stdin is None else sys.stdin.fileno())
    stack.callback(source.close)
    return source


def _sink(arguments: argparse.Namespace, bars: Bars, stack: contextlib.ExitStack) -> Sink:
    if arguments.receive is not None:
        # Opened only now: if the server cannot be reached, an older file stays as it is.
        file = stack.enter_context(_open(arguments.receive, "wb"))
        return Output(file.fileno(), arguments.receive)
    output = Output(sys.stdout.fileno())
    if sys.stdout.isatty():
        return Text(lambda text: bars.print(text) or output.write(encoded(text)))
    return output


def _open(path: str, mode: str) -> Any:
    try:
        return open(path, mode, buffering=0)
    except OSError as error:
        reason = str(error.strerror).lower()
        raise OSError(error.errno, f"cannot open {path or repr(path)}: {reason}") from None


def _ignored(_: int) -> None:
    """Count nothing."""


class _Counted:
    """A sink that counts its bytes."""

    def __init__(self, sink: Sink, count: Count) -> None:
        self._sink = sink
        self._count = count

    def write(self, data: bytes) -> None:
        self._sink.write(data)
        self._count(len(data))


class Crlf:
    r"""Makes lines end with ``\r\n`` that end with ``\n``; other bytes stay as they are.

    Called with one piece after the other. A line may end in two pieces.
    """

    def __init__(self) -> None:
        self._last = b""

    def __call__(self, data: bytes) -> bytes:
        joined = (self._last + data).replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        joined = joined[len(self._last) :]
        self._last = data[-1:] if data.endswith(b"\r") else b""
        return joined


# Both directions


def exchange(
    conn: Connection,
    source: Source,
    sink: Sink,
    arguments: argparse.Namespace,
    count: Count = _ignored,
    main_sends: bool = False,
) -> None:
    """Copy `source` to the connection, and the connection to `sink`, until both have ended.

    The calling thread receives, or sends if `main_sends`; a new thread does the other. `count` is
    called with the number of bytes of each piece that was sent. Raises the error of receiving, or
    else that of sending. The connection must not be used after receiving or the input has failed.
    """
    sending = _sending(conn, source, arguments, count)
    receiving = _receiving(conn, source, sink)
    try:
        if main_sends:
            sent, received = copy_both_ways(sending, receiving, "netkit-receiver", LEAVING)
        else:
            received, sent = copy_both_ways(receiving, sending, "netkit-sender", LEAVING)
    except RuntimeError as error:
        raise OSError(f"cannot start a thread: {error}") from None
    for failure in (received, sent):
        if failure is not None:
            raise failure


def _sending(
    conn: Connection, source: Source, arguments: argparse.Namespace, count: Count
) -> Direction:
    convert = Crlf() if arguments.crlf else bytes

    def send() -> None:
        for data in source:
            conn.write(convert(data))
            count(len(data))
        if not arguments.no_half_close:
            conn.end()

    def fail(error: BaseException) -> bool:
        if isinstance(error, ConnectionError):  # the peer takes no more, but may send some
            return False
        if isinstance(error, OSError):
            conn.interrupt(error)
        else:
            conn.destroy()
        return True

    return Direction(send, fail)


def _receiving(conn: Connection, source: Source, sink: Sink) -> Direction:
    def receive() -> None:
        copy(conn, sink)
        sink.write(b"")  # the end: the sink may hold half a character
        source.end_after(GRACE)

    def fail(_: BaseException) -> bool:
        conn.destroy()
        source.end_after(0)
        return True

    return Direction(receive, fail)
