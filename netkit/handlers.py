"""The class of handlers to derive from, and three that ship."""

from __future__ import annotations

import contextlib
import errno
import io
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, ClassVar

from . import events
from .connection import Connection
from .encodings import encode_separator, printable
from .errors import LineTooLongError
from .forks import call_in_children
from .logs import in_bytes


class Handler:
    """Serves one client; made anew for each. Derive from it and override what you need.

    `connected` is called first, `received` with each chunk of input, and `closed` last, whatever
    happened before; or override `handle` and read the connection yourself. All of them run in the
    client's own thread and may block. The connection is closed politely after `handle`, even if it
    raised, and before `closed`.

    Settings of a class are class attributes. A server gives others with ``handler_args``::

        class Greeter(netkit.Handler):
            greeting = "hello\\n"
            def handle(self): self.conn.write(self.greeting)

        netkit.create_server(Greeter, handler_args={"greeting": "bonjour\\n"})
    """

    def __init__(self, conn: Connection, **settings: Any) -> None:
        """As `check_settings` for settings that there are not."""
        self.conn = conn
        if settings:
            self.check_settings(settings)
            vars(self).update(settings)

    @classmethod
    def check_settings(cls, settings: Mapping[str, Any]) -> None:
        """TypeError for a setting that the class has no attribute for. Override it to check more.

        A server calls it once, before any client comes.
        """
        for name in settings:
            if not hasattr(cls, name) or hasattr(Handler, name):
                raise TypeError(f"{cls.__name__} has no setting {name!r}")

    @property
    def server(self) -> Any:
        """The `Server` that accepted the client."""
        return self.conn.server

    def connected(self) -> None:
        """The client is there; nothing has been read yet."""

    def handle(self) -> None:
        """Serve the client until this returns. As it stands: `received` with each chunk."""
        for data in self.conn:
            self.received(data)

    def received(self, data: Any) -> None:
        """A chunk of input has come: bytes, or str after ``self.conn.set_encoding``."""

    def closed(self) -> None:
        """The connection is closed; its addresses and counts are still there."""


class EchoHandler(Handler):
    """Sends back every byte it gets, while they come."""

    def received(self, data: Any) -> None:
        self.conn.write(data)


class _Turns:
    """Lets one thread at a time write to an output, in the order in which they come.

    No lock is held while one writes: the output may be the program's own, and do anything.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the queues
        # By the identity of each output that is being written to: the thread whose turn it is, and
        # those that wait for it. Each waits for a lock of its own, which is released for it.
        self._queues: dict[int, deque[threading.Lock]] = {}
        call_in_children(self._forget_others)

    def _forget_others(self) -> None:
        """In a forked child: those that have a turn, or wait for one, are not here."""
        self._lock, self._queues = threading.Lock(), {}

    @contextlib.contextmanager
    def of(self, output: object) -> Iterator[None]:
        key, turn = id(output), threading.Lock()
        with self._lock:
            queue = self._queues.setdefault(key, deque())
            if queue:
                turn.acquire()
            queue.append(turn)
        try:
            with turn:
                yield
        finally:
            with self._lock:
                had_it = queue[0] is turn  # or else it has given up
                queue.remove(turn)
                if not queue:
                    self._queues.pop(key, None)
                elif had_it:
                    queue[0].release()


def _write_whole(output: BinaryIO, data: bytes) -> None:
    while data:
        taken = output.write(data)
        if taken is None and not isinstance(output, io.RawIOBase):
            return  # of an object that is no file of Python's, and does not say
        if not taken:
            raise BlockingIOError(errno.EAGAIN, "the output takes nothing at the moment")
        data = data[taken:]


class LoggerHandler(Handler):
    """Reports who connects and leaves, and writes what they send to `output`.

    `style` is ``"text"``: each line, with control characters shown escaped, so that no client can
    forge a line or command a terminal; ``"hex"``: a dump of each chunk; ``"raw"``: the bytes as
    they are. `output` is a binary file (None: standard output), shared by all clients: one thread
    at a time writes to it, a whole line. What goes wrong with it (a full disk, a closed pipe) is
    raised.
    """

    style: str = "text"
    output: BinaryIO | None = None
    _turns: ClassVar[_Turns] = _Turns()

    @classmethod
    def check_settings(cls, settings: Mapping[str, Any]) -> None:
        """TypeError also for a style that there is not."""
        super().check_settings(settings)
        style = settings.get("style", cls.style)
        if style not in ("text", "hex", "raw"):
            raise TypeError(f"style must be text, hex or raw, not {style!r}")

    def connected(self) -> None:
        self._report(f"got connection from {self.conn.peer}")

    def handle(self) -> None:
        if self.style == "text":
            while self._log_line():
                pass
        else:
            super().handle()

    def _log_line(self) -> bool:
        try:
            line = self.conn.readline()
        except LineTooLongError as error:
            self._report(f"{self.conn.peer}: {error}; it is skipped")
            return True
        more = bool(line)
        if more:
            encoding = self.conn.encoding
            for ending in "\n\r":
                line = line.removesuffix(encode_separator(ending, encoding)[0])
            self._put(printable(line, encoding).encode() + b"\n")
        return more

    def received(self, data: Any) -> None:
        self._put(hex_dump(data, self.conn.bytes_read) if self.style == "hex" else data)

    def closed(self) -> None:
        conn = self.conn
        seconds = time.monotonic() - conn.opened_at
        self._report(
            f"{conn.peer} closed: {in_bytes(conn.bytes_read)} received, "
            f"{conn.bytes_written} sent, {seconds:.1f} s"
        )

    def _put(self, data: bytes) -> None:
        output = self.output or sys.stdout.buffer
        with self._turns.of(output):
            _write_whole(output, data)
            output.flush()

    def _report(self, text: str) -> None:
        events.emit(events.Report(self.conn.id, self.conn.peer, text, self.conn.local))


def hex_dump(data: bytes, end: int) -> bytes:
    """`data` as lines of offset, hexadecimal and text; `end` is the stream offset after it."""
    lines = []
    for at in range(0, len(data), 16):
        row = data[at : at + 16]
        text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        lines.append(f"{end - len(data) + at:08x}  {row.hex(' '):47}  |{text}|\n")
    return "".join(lines).encode()


class GreeterHandler(Handler):
    """Greets each client with a few lines and ends the connection.

    In `greeting`, ``{address}`` and ``{port}`` stand for the client's. Each line is one write. A
    Unix socket's client has no port: it is ``unix``, or the name that it has bound.
    """

    greeting: str = "Hello, {address}:{port}!\nThis is netkit.\nGoodbye.\n"

    def connected(self) -> None:
        conn, text = self.conn, self.greeting
        if conn.remote_address is None:
            text = text.replace("{address}:{port}", "{address}")
        text = text.replace("{port}", str(conn.remote_port))
        text = text.replace("{address}", conn.remote_address or conn.peer)
        for line in text.splitlines(keepends=True):
            self.conn.write(line)
        self.conn.end()

    def handle(self) -> None:
        """Nothing is read: what the client sends is swallowed when the connection is closed."""
