"""Standard input and output, or files, without buffers.

Input is passed on as soon as it has been read, and output is never flushed, so a process may end
while a thread still waits for input.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from io import FileIO
from typing import TextIO

from ..net.files import OutputError, failure, write_all
from ..net.waker import Waker

PIECE = 64 * 1024  # the most bytes read at once: what a pipe holds (pipe(7))


def is_interactive() -> bool:
    """Whether standard input and output are a terminal that can move its cursor."""
    return all(map(is_capable, (sys.stdin, sys.stdout)))


def is_capable(stream: TextIO | None) -> bool:
    """Whether `stream` is a terminal that can move its cursor. None is a closed stream."""
    dumb = os.environ.get("TERM", "").lower() in ("", "dumb", "unknown")
    return stream is not None and stream.isatty() and not dumb


class Input:
    """An input that one thread reads in pieces, until it ends or another thread ends it.

    `file` is a path, the descriptor of standard input, or None if that is closed. OSErrors name it.
    """

    def __init__(self, file: str | int | None) -> None:
        self._name = "standard input" if isinstance(file, int) else file or repr(file)
        self._file = None if file is None else _open(file, "rb", self._name)
        self._patience: float | None = None
        self._waker = Waker()

    def __iter__(self) -> Iterator[bytes]:
        """Yield each piece as it comes."""
        while self._file is not None and self._is_ready(self._file.fileno()):
            try:
                data = os.read(self._file.fileno(), PIECE)
            except BlockingIOError:  # another process has read it, and made it non-blocking
                continue
            except OSError as error:
                raise OSError(error.errno, failure("read", self._name, error)) from None
            if not data:
                return
            yield data

    def end_after(self, seconds: float) -> None:
        """Count this much silence as the end of the input from now on. Thread-safe.

        Input that has arrived by then is still read, and a file to its end. For a terminal the time
        is 0.
        """
        self._patience = 0 if self._file is not None and self._file.isatty() else seconds
        self._waker.wake()

    def close(self) -> None:
        """Close the file, but not standard input. A thread that reads it ends with the process."""
        self._waker.close()
        if self._file is not None:
            self._file.close()

    def _is_ready(self, descriptor: int) -> bool:
        """Wait for input. Returns False once the time of `end_after` has passed."""
        while True:
            ready, _, _ = select.select([descriptor, self._waker.fileno()], [], [], self._patience)
            if descriptor in ready or not ready:
                return bool(ready)
            self._waker.clear()


class Output:
    """A file to which all of each piece is written at once. Any thread may write to it.

    `file` is a path or the descriptor of standard output. OSError if it cannot be opened, and
    OutputError if it cannot be written to; both name it.
    """

    def __init__(self, file: str | int, mode: str = "wb") -> None:
        self._name = "standard output" if isinstance(file, int) else file or repr(file)
        self._file = _open(file, mode, self._name)

    def write(self, data: bytes) -> int:
        """Write all of `data`, also to a non-blocking file."""
        try:
            write_all(self._file, data)
        except OSError as error:
            raise OutputError(error.errno, failure("write to", self._name, error)) from None
        return len(data)

    def close(self) -> None:
        """Close the file, but not standard output."""
        self._file.close()


def _open(file: str | int, mode: str, name: str) -> FileIO:
    try:
        return FileIO(file, mode, closefd=isinstance(file, str))
    except OSError as error:
        raise OSError(error.errno, failure("open", name, error)) from None
