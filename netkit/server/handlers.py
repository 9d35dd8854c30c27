"""The base class of handlers, and the handlers of netkit: echo, logger and greeter."""

from __future__ import annotations

import io
import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

from ..core import events
from ..core.encodings import encode_separator, printable_bytes
from ..core.errors import LineTooLongError
from ..core.generic import DataT, Generic, ServerT
from ..core.text import in_bytes
from ..net.connection import Connection
from ..net.files import write_all
from ..net.forks import call_in_children


class Handler(Generic[ServerT, DataT]):
    """Serves one client. Derive a class and override its methods; each client gets a new object.

    `connected` is called first, `received` with each chunk of input, and `closed` last, even if one
    of the others has raised. A class may instead override `handle`, and read the connection there.
    All of them run in the client's own thread and may block. The connection is closed after
    `handle` and before `closed`, by `Connection.close`.

    The settings of a class are class attributes. The option `handler_args` changes them::

        class Greeter(netkit.Handler):
            greeting = "hello\\n"
            def handle(self): self.conn.write(self.greeting)

        netkit.create_server(Greeter, handler_args={"greeting": "bonjour\\n"})

    For type checkers, ``netkit.Handler[MyServer]`` is a handler whose attribute `server` is a
    ``MyServer``, and ``netkit.Handler[MyServer, str]`` one that reads text. When the program runs,
    both are `Handler` itself.
    """

    def __init__(self, conn: Connection[DataT], **settings: Any) -> None:
        """TypeError for an unknown setting, as by `check_settings`."""
        self.conn = conn
        if settings:
            self.check_settings(settings)
            vars(self).update(settings)

    @classmethod
    def check_settings(cls, settings: Mapping[str, Any]) -> None:
        """Raise TypeError for a setting that is not a class attribute. Override it to check more.

        A server calls it once, when it is given the handler.
        """
        for name in settings:
            if not hasattr(cls, name) or hasattr(Handler, name):
                raise TypeError(f"{cls.__name__} has no setting {name!r}")

    if TYPE_CHECKING:  # an attribute, so that a derived class may annotate it: `server: MyServer`
        server: ServerT
    else:

        @property
        def server(self):
            """The `Server` that accepted the client."""
            return self.conn.server

    def connected(self) -> None:
        """Called first. Nothing has been read yet."""

    def handle(self) -> None:
        """Serve the client; the connection is closed afterwards. Calls `received` by default."""
        for data in self.conn:
            self.received(data)

    def received(self, data: DataT) -> None:
        """Called with each chunk of input: bytes, or str after ``self.conn.set_encoding``."""

    def closed(self) -> None:
        """Called last. The connection is closed, but its addresses and counts can be read."""


def served_by(
    kind: type[Handler[Any, Any]], settings: Mapping[str, Any]
) -> Callable[[Connection], None]:
    """Return a function that serves a connection by a new object of the class `kind`."""

    def serve(conn: Connection) -> None:
        handler = kind(conn, **settings)
        try:
            connected = handler.connected
            if getattr(connected, "__func__", None) is not Handler.connected:  # saves a call
                connected()
            handler.handle()
        except BaseException as error:
            conn.fail(error)
            raise
        finally:
            try:
                conn.close()
            finally:
                closed = handler.closed
                if getattr(closed, "__func__", None) is not Handler.closed:
                    closed()

    return serve


class EchoHandler(Handler):
    """Sends all input back at once."""

    def received(self, data: bytes) -> None:
        self.conn.write(data)


# A lock for each output, by its identity, which a thread holds while it writes. The lock stays
# when the output is gone: the next object with the same identity uses it.
_writing: dict[int, threading.Lock] = {}
call_in_children(_writing.clear)  # a thread of the parent may hold a lock


class LoggerHandler(Handler):
    """Logs each client that connects or leaves, and writes the client's input to `output`.

    The `style` ``"text"`` writes lines and escapes control characters, so that no client can forge
    a line or control a terminal; ``"hex"`` writes a dump of each chunk, ``"raw"`` the bytes as they
    are. With `prefix`, a line begins with the time (UTC, RFC 3339, milliseconds) and the peer; a
    space in the name of a Unix peer is escaped.

    `output` is a binary file; None is standard output. All clients share it, and one thread at a
    time writes to it, a whole line. The thread waits for a non-blocking file. An error of the
    output (a full disk, a closed pipe) is raised.

    `output` may also be a `logging.Handler`, such as a `logging.handlers.RotatingFileHandler`. It
    handles a record of the level INFO for each line or dump, whose attributes `peer` and `id` are
    those of the connection. The handler's own `handleError` reports errors. A handler takes text,
    so the style ``"raw"`` is not for it. The program closes the output.
    """

    style: str = "text"
    prefix: bool = False
    output: BinaryIO | logging.Handler | None = None

    @classmethod
    def check_settings(cls, settings: Mapping[str, Any]) -> None:
        """TypeError also for an unknown style, a text file, and what does not go with raw bytes."""
        super().check_settings(settings)
        style = settings.get("style", cls.style)
        output = settings.get("output", cls.output)
        if style not in ("text", "hex", "raw"):
            raise TypeError(f"style must be text, hex or raw, not {style!r}")
        if isinstance(output, io.TextIOBase):
            raise TypeError(f"output must be a binary file or a logging.Handler, not {output!r}")
        if style == "raw" and settings.get("prefix", cls.prefix):
            raise TypeError("raw bytes have no lines that a prefix could begin")
        if style == "raw" and isinstance(output, logging.Handler):
            raise TypeError("a logging.Handler takes text: style must be text or hex, not 'raw'")

    def connected(self) -> None:
        self._report(f"got connection from {self.conn.peer}")

    def handle(self) -> None:
        while self.style == "text":
            try:
                line = self.conn.readline()
            except LineTooLongError as error:
                self._report(f"{self.conn.peer}: {error}; it is skipped")
                continue
            if not line:
                return
            encoding = self.conn.encoding
            for ending in "\n\r":
                line = line.removesuffix(encode_separator(ending, encoding)[0])
            self._put(printable_bytes(line, encoding).encode() + b"\n")
        super().handle()

    def received(self, data: bytes) -> None:
        self._put(hex_dump(data, self.conn.bytes_read) if self.style == "hex" else data)

    def closed(self) -> None:
        conn = self.conn
        seconds = time.monotonic() - conn.opened_at
        self._report(
            f"{conn.peer} closed: {in_bytes(conn.bytes_read)} received, "
            f"{conn.bytes_written} sent, {seconds:.1f} s"
        )

    def _put(self, data: bytes) -> None:
        if self.prefix:
            peer = self.conn.peer.replace(" ", r"\x20")  # it is printable
            head = f"{_now()} {peer} ".encode()
            data = b"".join(head + line for line in data.splitlines(keepends=True))
        if isinstance(self.output, logging.Handler):
            self._log(self.output, data.decode().removesuffix("\n"))
        else:
            self._write(data)

    def _log(self, handler: logging.Handler, text: str) -> None:
        record = logging.LogRecord("netkit.logger", logging.INFO, "", 0, text, None, None)
        vars(record).update(peer=self.conn.peer, id=self.conn.id)
        if record.levelno >= handler.level:
            handler.handle(record)

    def _write(self, data: bytes) -> None:
        """Write whole lines, or raw bytes, to the output, which is a file."""
        output: Any = self.output or sys.stdout.buffer
        with _writing.setdefault(id(output), threading.Lock()):
            write_all(output, data)
            output.flush()

    def _report(self, text: str) -> None:
        conn = self.conn
        events.emit(events.Report(conn.id, conn.peer, text, conn.local), conn.server)


def _now() -> str:
    """Return the time for a prefix: ``2026-11-27T13:03:09.870Z``."""
    now = time.time()
    return time.strftime(f"%Y-%m-%dT%H:%M:%S.{int(now % 1 * 1000):03d}Z", time.gmtime(now))


def hex_dump(data: bytes, end: int) -> bytes:
    """Return `data` as lines of offset, hexadecimal and text.

    `end` is the offset in the stream after `data`.
    """
    lines = []
    for at in range(0, len(data), 16):
        row = data[at : at + 16]
        text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        lines.append(f"{end - len(data) + at:08x}  {row.hex(' '):47}  |{text}|\n")
    return "".join(lines).encode()


class GreeterHandler(Handler):
    """Greets each client with a few lines and ends the connection.

    In `greeting`, ``{address}`` and ``{port}`` are replaced by those of the client. Each line is
    one write. A client of a Unix socket has no port; its address is ``unix``, or the path that it
    has bound.
    """

    greeting: str = "Hello, {address}:{port}!\nThis is netkit.\nGoodbye.\n"

    def connected(self) -> None:
        conn, text = self.conn, self.greeting
        if conn.remote_address is None:
            text = text.replace("{address}:{port}", "{address}")
        text = text.replace("{port}", str(conn.remote_port))
        text = text.replace("{address}", conn.remote_address or conn.peer)
        for line in text.splitlines(keepends=True):
            conn.write(line)
        conn.end()

    def handle(self) -> None:
        """Read nothing: the close of the connection discards the client's input."""
