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
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ..net.connection import Connection
from ..net.files import Sink
from ..net.relay import Direction, copy, copy_both_ways
from .arguments import say
from .display import Bars, Count, Text, encoded, uncounted
from .stdio import Input, Output, is_interactive

if TYPE_CHECKING:
    from .terminal import Terminal

    Source = Input | Terminal

Write = Callable[[bytes], object]

# The longest silence of the input once the peer has ended its side (seconds), as with socat: data
# that comes through a pipe without a pause is sent, and a silent pipe does not delay the end.
GRACE = 0.5

# The longest wait for the end of the sending thread after a failure (seconds). It ends at once,
# unless another process has read the input that it was about to read.
LEAVING = 1.0

_HINT = "netkit: hint: install prompt_toolkit (the extra netkit-tcp[cli]) to edit lines"


def transfer(connected: Callable[[], Connection], arguments: argparse.Namespace) -> Connection:
    """Make the connection, copy in both directions to the end, and return the closed connection.

    The input is opened before the connection is made. OSError, also of the connection; OutputError.
    """
    interactive = (arguments.send, arguments.receive) == (None, None) and is_interactive()
    editing = interactive and find_spec("prompt_toolkit") is not None
    with contextlib.ExitStack() as stack:
        if not editing:
            standard = None if sys.stdin is None else sys.stdin.fileno()
            file = standard if arguments.send is None else arguments.send
            source: Source = stack.enter_context(contextlib.closing(Input(file)))
        if arguments.receive is None and sys.stdout is None:
            raise OSError("standard output is closed: name a file with --receive")
        conn = stack.enter_context(connected())
        conn.set_timeout(arguments.idle_timeout)
        bars = stack.enter_context(Bars())
        if editing:
            from .terminal import Terminal  # here because only a terminal needs prompt_toolkit

            source = terminal = stack.enter_context(Terminal())
            write: Write = Text(terminal.write).write
        else:
            if interactive:
                say(_HINT)
            write = _output(arguments, bars, stack)
        if arguments.hex:
            write = _dumping(write, conn)
        sink = _Sink(write, bars.add(arguments.receive))
        exchange(conn, source, sink, arguments, bars.add(arguments.send), main_sends=editing)
    return conn


def _output(arguments: argparse.Namespace, bars: Bars, stack: contextlib.ExitStack) -> Write:
    if arguments.receive is not None:
        # Opened only now: if the server cannot be reached, an older file stays as it is.
        return stack.enter_context(contextlib.closing(Output(arguments.receive))).write
    output = Output(sys.stdout.fileno())
    if sys.stdout.isatty():
        return Text(lambda text: bars.print(text) or output.write(encoded(text))).write
    return output.write


class _Sink:
    """Passes received data to `write`, and its size to `count`."""

    def __init__(self, write: Write, count: Count) -> None:
        self._write = write
        self._count = count

    def write(self, data: bytes) -> None:
        self._write(data)
        self._count(len(data))


def _dumping(write: Write, conn: Connection) -> Write:
    from ..server.handlers import hex_dump  # here because most clients do without

    return lambda data: write(hex_dump(data, conn.bytes_read))


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


def exchange(
    conn: Connection,
    source: Source,
    sink: Sink,
    arguments: argparse.Namespace,
    count: Count = uncounted,
    main_sends: bool = False,
) -> None:
    """Copy `source` to the connection, and the connection to `sink`, until both have ended.

    The calling thread receives, or sends if `main_sends`; a new thread does the other. `count` is
    called with the number of bytes of each piece that was sent. Raises the error of receiving, or
    else that of sending; OSError if no thread can be started. The connection must not be used
    after receiving or the input has failed.
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
    for failure in filter(None, (received, sent)):
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

    def end_receiving(error: BaseException) -> bool:
        if isinstance(error, ConnectionError):  # the peer takes no more, but may send some
            return False
        if isinstance(error, OSError):
            conn.interrupt(error)
        else:
            conn.destroy()
        return True

    return Direction(send, end_receiving)


def _receiving(conn: Connection, source: Source, sink: Sink) -> Direction:
    def receive() -> None:
        copy(conn, sink)
        sink.write(b"")  # the end: the sink may hold half a character
        source.end_after(GRACE)

    def end_sending(_: BaseException) -> bool:
        conn.destroy()
        source.end_after(0)
        return True

    return Direction(receive, end_sending)
