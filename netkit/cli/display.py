"""Shows received data: as text that is safe on a terminal, or as a hex dump."""

from __future__ import annotations

import codecs
import shutil
import sys
from collections.abc import Callable
from unicodedata import east_asian_width

from ..core.text import Escapes
from ..net.connection import Connection
from ..net.files import Sink

# Control characters as ``cat -v`` shows them (``^[``), and other unprintable ones as numbers.
_CARETS = {code: "^" + chr(code ^ 0x40) for code in (*range(0x20), 0x7F)}
_VISIBLE = Escapes({**_CARETS, ord("\n"): "\n", ord("\t"): "\t"})


class Text:
    r"""A sink that decodes UTF-8 and passes each piece to `show`, safe to show on a terminal.

    Lines end with ``\n``, even if they ended with ``\r\n``. Control characters become ``^[``,
    other unprintable characters ``\u202e``, and invalid bytes ``\xff``.
    """

    def __init__(self, show: Callable[[str], object]) -> None:
        self._show = show
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._return = ""  # a carriage return, until the next piece shows whether a newline follows

    def write(self, data: bytes) -> None:
        """Show the next piece; an empty one is the end."""
        text = self._return + self._decoder.decode(data, final=not data)
        self._return = "\r" if text.endswith("\r") and data else ""
        text = text[: len(text) - len(self._return)]
        self._show(text.replace("\r\n", "\n").translate(_VISIBLE))


class Rows:
    """Divides text into whole lines, to be shown at once, and an unfinished row at its end."""

    def __init__(self) -> None:
        self.unfinished = ""

    def add(self, text: str) -> str:
        """Return the whole lines up to the end of `text`.

        A row that is as wide as the terminal counts as one, and gets a newline.
        """
        whole, newline, rest = (self.unfinished + text).rpartition("\n")
        columns = shutil.get_terminal_size().columns
        width = sum(1 + (east_asian_width(char) in "WF") for char in rest[:columns].expandtabs())
        if width >= columns:
            whole, newline, rest = whole + newline + rest, "\n", ""
        self.unfinished = rest
        return whole + newline

    def rest(self) -> str:
        """Return the unfinished row, and begin a new one."""
        rest, self.unfinished = self.unfinished, ""
        return rest


class Hex:
    """A sink that writes a hex dump of the data that `conn` has just received."""

    def __init__(self, conn: Connection, sink: Sink) -> None:
        self._conn = conn
        self._sink = sink

    def write(self, data: bytes) -> None:
        from ..server.handlers import hex_dump  # here because most clients do without

        self._sink.write(hex_dump(data, self._conn.bytes_read))


def encoded(text: str) -> bytes:
    """Encode `text` for standard output. Characters that its encoding lacks are escaped."""
    return text.encode(sys.stdout.encoding, "backslashreplace")
