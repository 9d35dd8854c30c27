"""Passes input to the server and the server's data to the output, for ``netkit connect``.

Rules:

1. Two threads, one for each direction, and each blocks. Ctrl+C interrupts the main thread, which
   receives, or reads the lines that are typed on a terminal. The other thread is a daemon, and
   nothing is buffered: the process may end while that thread waits for input.
2. The end of our input is passed on to the server, and the connection goes on. The end of the
   server's side ends the command, once the input that has come by then has been sent.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ..net.connection import Connection
from ..net.relay import copy
from ..net.writing import Sink
from ..server.handlers import hex_dump
from .progress import Progress
from .stdio import Input, Output
from .terminal import Terminal, Visible, encoded, is_interactive

# The longest silence of the input once the server has ended its side (seconds), as with socat: data
# that comes through a pipe without a pause is sent, and a silent pipe does not delay the end.
GRACE = 0.5

# The time that the other thread has to end after a failure (seconds). It needs next to none, unless
# another process has read the same input first: then the thread waits in a read.
LEAVING = 1.0


def transfer(connected: Callable[[], Connection], arguments: argparse.Namespace) -> Connection:
    """Make the connection, pass on both directions to the end, and return the closed connection.

    The input is opened first. OSError, OutputClosedError.
    """
    files = (arguments.send, arguments.receive)
    talking = files == (None, None) and is_interactive()
    with contextlib.ExitStack() as stack:
        source = None if talking else _source(arguments, stack)
        if arguments.receive is None and sys.stdout is None:
            raise OSError("standard output is closed: name a file with --receive")
        conn = stack.enter_context(connected())
        conn.set_timeout(arguments.idle_timeout)
        convert = _Crlf() if arguments.crlf else bytes
        if source is None:
            terminal = stack.enter_context(Terminal())
            sender = _Sender(conn, terminal.lines(), convert, not arguments.no_half_close)
            _converse(conn, sender, terminal, _shown(conn, arguments.hex, terminal.write))
        else:
            pieces = source if arguments.send is None else _with_progress(source, arguments, stack)
            sender = _Sender(conn, pieces, convert, not arguments.no_half_close)
            _exchange(conn, sender, source, _sink(conn, arguments, stack))
    return conn


def _source(arguments: argparse.Namespace, stack: contextlib.ExitStack) -> Input:
    name, descriptor = "standard input", None
    if arguments.send is not None:
        file = stack.enter_context(_open(arguments.send, "rb"))
        name, descriptor = arguments.send, file.fileno()
    elif sys.stdin is not None:  # if it is closed, its number may be our socket's
        descriptor = sys.stdin.fileno()
    source = Input(descriptor, name)
    stack.callback(source.close)
    return source


def _with_progress(
    source: Input, arguments: argparse.Namespace, stack: contextlib.ExitStack
) -> Iterable[bytes]:
    status = os.stat(arguments.send)
    size = status.st_size if stat.S_ISREG(status.st_mode) else None
    progress = _progress(arguments.send, size, stack)
    return source if progress is None else _counted(source, progress)


def _counted(source: Iterable[bytes], progress: Progress) -> Iterator[bytes]:
    for data in source:
        yield data
        progress.add(len(data))


def _progress(name: str, size: int | None, stack: contextlib.ExitStack) -> Progress | None:
    if sys.stderr is None or not sys.stderr.isatty():
        return None
    progress = Progress(sys.stderr, os.path.basename(name), size)
    stack.callback(progress.finish)
    return progress


def _sink(conn: Connection, arguments: argparse.Namespace, stack: contextlib.ExitStack) -> Sink:
    if arguments.receive is None:
        output = Output(sys.stdout.fileno())
        if not sys.stdout.isatty():
            return _Hex(conn, output) if arguments.hex else output
        return _shown(conn, arguments.hex, lambda text: output.write(encoded(text)))
    # Opened only now: if the server cannot be reached, an older file stays as it is.
    file = Output(stack.enter_context(_open(arguments.receive, "wb")).fileno(), arguments.receive)
    sink = _Hex(conn, file) if arguments.hex else file
    progress = _progress(arguments.receive, None, stack)
    return sink if progress is None else _Watched(sink, progress)


def _open(path: str, mode: str) -> Any:
    try:
        return open(path, mode, buffering=0)
    except OSError as error:
        raise OSError(
            error.errno, f"cannot open {path or repr(path)}: {str(error.strerror).lower()}"
        ) from None


class _Watched:
    """A sink with a progress bar."""

    def __init__(self, sink: Sink, progress: Progress) -> None:
        self._sink = sink
        self._progress = progress

    def write(self, data: bytes) -> None:
        self._sink.write(data)
        self._progress.add(len(data))


class _Hex:
    """Writes a hex dump of the data that the connection has just received."""

    def __init__(self, conn: Connection, sink: Sink) -> None:
        self._conn = conn
        self._sink = sink

    def write(self, data: bytes) -> None:
        self._sink.write(hex_dump(data, self._conn.bytes_read))


class _Text:
    """Shows received data on a terminal, with control characters made visible."""

    def __init__(self, show: Callable[[str], object]) -> None:
        self._show = show
        self._visible = Visible()

    def write(self, data: bytes) -> None:
        self._show(self._visible.text(data, final=not data))


def _shown(conn: Connection, as_hex: bool, show: Callable[[str], object]) -> Sink:
    text = _Text(show)
    return _Hex(conn, text) if as_hex else text


class _Crlf:
    r"""Ends lines with ``\r\n`` that end with ``\n``; lines with ``\r\n`` stay as they are.

    Called with one piece after the other.
    """

    def __init__(self) -> None:
        self._last = b""

    def __call__(self, data: bytes) -> bytes:
        joined = (self._last + data).replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        joined = joined[len(self._last) :]
        self._last = data[-1:] if data.endswith(b"\r") else b""
        return joined


# Both directions


def _start(target: Callable[[], None], name: str) -> threading.Thread:
    """Start a daemon thread. OSError if the system allows no more threads."""
    thread = threading.Thread(target=target, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise OSError(f"cannot start a thread: {error}") from None
    return thread


class _Sender:
    """Sends our input to the server. `error` is the reason if `run` has failed."""

    def __init__(
        self,
        conn: Connection,
        pieces: Iterable[bytes],
        convert: Callable[[bytes], bytes],
        half_close: bool,
    ) -> None:
        self._conn = conn
        self._pieces = pieces
        self._convert = convert
        self._half_close = half_close
        self.error: OSError | None = None

    def run(self) -> None:
        """Send to the end of input. If the server takes no more, its data is still received."""
        try:
            for data in self._pieces:
                self._conn.write(self._convert(data))
            if self._half_close:
                self._conn.end()
        except OSError as error:
            self.error = error
            if not isinstance(error, ConnectionError):
                self._conn.interrupt(error)


def _exchange(conn: Connection, sender: _Sender, source: Input, sink: Sink) -> None:
    thread = _start(sender.run, "netkit-sender")
    try:
        copy(conn, sink)
        sink.write(b"")  # the end: it may hold half a character
        typed = source.descriptor is not None and os.isatty(source.descriptor)
        source.end_after(0 if typed else GRACE)
        thread.join()
    except BaseException:
        conn.destroy()
        source.end_after(0)
        thread.join(LEAVING)
        raise
    if sender.error is not None:
        raise sender.error


def _converse(conn: Connection, sender: _Sender, terminal: Terminal, sink: Sink) -> None:
    errors: list[Exception] = []

    def receive() -> None:
        try:
            copy(conn, sink)
            sink.write(b"")
        except Exception as error:
            errors.append(error)
        finally:
            terminal.end()

    thread = _start(receive, "netkit-receiver")
    sender.run()
    thread.join()
    for error in (*errors, sender.error):
        if error is not None:
            raise error
