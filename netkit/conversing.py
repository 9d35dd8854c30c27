"""What ``netkit connect`` does once it is connected: input to the server, its words to the output.

Rules:

1. Two threads, one for each direction, and each blocks. The main thread is the one that Ctrl+C
   interrupts: it receives, or reads the lines that are typed on a terminal. The other one is a
   daemon, and nothing is ever buffered: the process may end while it waits for input.
2. The end of our input is told to the server, and the connection goes on. The end of the server's
   side is the end of all, but what has been given to us by then is still sent.
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

from .connection import Connection
from .handlers import hex_dump
from .progress import Progress
from .relaying import copy
from .stdio import Input, Output
from .terminal import Terminal, Visible, encoded, is_interactive
from .writing import Sink

# How long input may be silent once the server has ended its side (seconds), as with socat: what a
# pipe brings without a pause is sent, and what nobody writes is not waited for.
GRACE = 0.5

# What the other thread gets to end when something has failed (seconds). It needs next to nothing,
# unless another process reads the same input and has been faster: then it waits in a read.
LEAVING = 1.0


def transfer(connected: Callable[[], Connection], arguments: argparse.Namespace) -> Connection:
    """Make the connection, pass on both directions to the end, and return it, closed.

    The files are looked at first. OSError for what failed, OutputClosedError.
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
    elif sys.stdin is not None:  # else its number may be the one of our socket
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
    # Only now: a server that cannot be reached leaves an older file as it is.
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
    """Writes a dump of what the connection has just received."""

    def __init__(self, conn: Connection, sink: Sink) -> None:
        self._conn = conn
        self._sink = sink

    def write(self, data: bytes) -> None:
        self._sink.write(hex_dump(data, self._conn.bytes_read))


class _Text:
    """Shows what has been received, without harm to a terminal."""

    def __init__(self, show: Callable[[str], object]) -> None:
        self._show = show
        self._visible = Visible()

    def write(self, data: bytes) -> None:
        self._show(self._visible.text(data, final=not data))


def _shown(conn: Connection, as_hex: bool, show: Callable[[str], object]) -> Sink:
    text = _Text(show)
    return _Hex(conn, text) if as_hex else text


class _Crlf:
    r"""Lines that end with ``\n`` end with ``\r\n`` then; those that did already stay as they are.

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


class _Sender:
    """From our input to the server; `error` is what went wrong, once `run` has returned."""

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
        """To the end of input. If the server takes no more, what it has sent is still received."""
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
    thread = threading.Thread(target=sender.run, name="netkit-sender", daemon=True)
    thread.start()
    try:
        copy(conn, sink)
        sink.write(b"")  # the end, for who keeps half a character
        source.end_after(0 if _is_typed(source) else GRACE)
        thread.join()
    except BaseException:
        conn.destroy()
        source.end_after(0)
        thread.join(LEAVING)
        raise
    if sender.error is not None:
        raise sender.error


def _is_typed(source: Input) -> bool:
    return source.descriptor is not None and os.isatty(source.descriptor)


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

    thread = threading.Thread(target=receive, name="netkit-receiver", daemon=True)
    thread.start()
    sender.run()
    thread.join()
    for error in (*errors, sender.error):
        if error is not None:
            raise error
