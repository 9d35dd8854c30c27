"""Shows received data on a terminal, as text that is safe there, and progress bars of files.

The bars need rich, of the extra ``cli``.
"""

from __future__ import annotations

import codecs
import os
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING
from unicodedata import east_asian_width

from ..core.text import Escapes, printable
from .stdio import is_capable

if TYPE_CHECKING:
    from rich.progress import Progress

Count = Callable[[int], object]  # is called with the number of bytes of each piece

# Control characters as ``cat -v`` shows them (``^[``), and other unprintable ones as numbers.
_CARETS = {code: "^" + chr(code ^ 0x40) for code in (*range(0x20), 0x7F)}
VISIBLE = Escapes({**_CARETS, ord("\n"): "\n", ord("\t"): "\t"})


class Text:
    r"""A sink that passes each piece to `show` as text, which is safe to show on a terminal.

    The data is UTF-8. Lines end with ``\n``, even if they ended with ``\r\n``. Control characters
    become ``^[``, other unprintable characters ``\u202e``, and invalid bytes ``\xff``.
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
        self._show(text.replace("\r\n", "\n").translate(VISIBLE))


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


def encoded(text: str) -> bytes:
    """Encode `text` for standard output. Characters that its encoding lacks are escaped."""
    return text.encode(sys.stdout.encoding, "backslashreplace")


def uncounted(_: int) -> None:
    """Count nothing."""


class Bars:
    """Progress bars on the terminal, one for each file, in a ``with`` block.

    There are none if standard error is not a terminal, or if rich is not installed. The functions
    that `add` returns may be called in any thread, the methods in the main thread alone.
    """

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._rows = Rows()

    def add(self, path: str | None) -> Count:
        """Show the bar of a file, if there is one, and return the function that moves it on."""
        if path is None or not is_capable(sys.stderr) or find_spec("rich") is None:
            return uncounted
        size = os.path.getsize(path) if os.path.isfile(path) else 0  # 0: it is not known
        if self._progress is None:
            self._progress = _progress()
            self._progress.start()
        progress = self._progress
        task = progress.add_task(printable(os.path.basename(path)), total=size or None)
        return lambda count: progress.update(task, advance=count)

    def print(self, text: str) -> bool:
        """Show the lines of `text` above the bars. Returns False if there are no bars."""
        if self._progress is not None:
            _print(self._progress, self._rows.add(text))
        return self._progress is not None

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()
            _print(self._progress, self._rows.rest())


def _print(progress: Progress, text: str) -> None:
    if text:
        text = encoded(text).decode(sys.stdout.encoding)
        progress.console.out(text, end="", highlight=False)


def _progress() -> Progress:
    from rich import console, progress  # here because few commands have a bar

    shared = is_capable(sys.stdout)  # with data that is received
    screen = console.Console(file=sys.stdout if shared else sys.stderr)
    # A hidden cursor would stay hidden in the shell after Ctrl+Z, and after a signal that kills.
    screen.show_cursor = lambda show=True: False  # type: ignore[method-assign]
    return progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        console=screen,
        redirect_stdout=False,
        redirect_stderr=False,
    )
