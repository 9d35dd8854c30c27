"""Progress bars of files that are sent or received. They need rich, of the extra ``cli``."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ..core.text import printable
from .display import Rows, encoded
from .stdio import is_capable

if TYPE_CHECKING:
    from rich.progress import Progress

Count = Callable[[int], object]  # is called with the number of bytes of each piece


class Bars:
    """Progress bars on the terminal, one for each file, in a ``with`` block.

    There are none if standard error is not a terminal, or if rich is not installed. The functions
    that `add` returns may be called in any thread, the methods in the main thread alone.
    """

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._rows = Rows()

    def add(self, path: str) -> Count:
        """Show the bar of a file, and return the function that moves it on. OSError."""
        if not is_capable(sys.stderr) or find_spec("rich") is None:
            return lambda _: None
        if self._progress is None:
            self._progress = _progress()
            self._progress.start()
        progress = self._progress
        task = progress.add_task(printable(os.path.basename(path)), total=_size(path))
        return lambda count: progress.update(task, advance=count)

    def print(self, text: str) -> bool:
        """Show the lines of `text` above the bars. Returns False if there are no bars."""
        if self._progress is None:
            return False
        self._write(self._rows.add(text))
        return True

    def _write(self, text: str) -> None:
        if self._progress is not None and text:
            text = encoded(text).decode(sys.stdout.encoding)
            self._progress.console.out(text, end="", highlight=False)

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._write(self._rows.rest())


def _size(path: str) -> int | None:
    """Return the size of a file in bytes. None for a pipe, and for a file that is still empty."""
    status = os.stat(path)
    return (status.st_size or None) if stat.S_ISREG(status.st_mode) else None


def _progress() -> Progress:
    from rich.console import Console  # here because few commands have a bar
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TransferSpeedColumn,
    )

    shared = is_capable(sys.stdout)  # with data that is received
    console = Console(file=sys.stdout if shared else sys.stderr)
    # A hidden cursor would stay hidden in the shell after Ctrl+Z, and after a signal that kills.
    console.show_cursor = lambda show=True: False  # type: ignore[method-assign]
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=console,
        redirect_stdout=False,
        redirect_stderr=False,
    )
