"""Standard input and output, or files, without buffers.

Input is passed on as soon as it has been read, and output is never flushed, so a process may end
while a thread still waits for input. Descriptors that are passed in are not closed here.
"""

from __future__ import annotations

import errno
import os
import select
import sys
from collections.abc import Iterator
from typing import TextIO

from ..net.files import write_all
from ..net.waker import Waker

PIECE = 64 * 1024  # the most bytes read at once: what a pipe holds (pipe(7))


class OutputClosedError(Exception):
    """The reader of the output is gone (EPIPE)."""


def is_interactive() -> bool:
    """Whether standard input and output are a terminal that can move its cursor."""
    return all(map(is_capable, (sys.stdin, sys.stdout)))


def is_capable(stream: TextIO | None) -> bool:
    """Whether `stream` is a terminal that can move its cursor. None is a closed stream."""
    dumb = os.environ.get("TERM", "dumb").lower() in ("dumb", "unknown")
    return stream is not None and stream.isatty() and not dumb


class Input:
    """A descriptor that one thread reads in pieces, until it ends or another thread ends it.

    The descriptor None stands for a closed input, which has ended. A failed read raises an OSError
    whose message contains `name`.
    """

    def __init__(self, descriptor: int | None, name: str = "standard input") -> None:
        self._descriptor = descriptor
        self._name = name
        self._patience: float | None = None
        self._waker = Waker()

    def __iter__(self) -> Iterator[bytes]:
        """Yield each piece as it comes."""
        descriptor = self._descriptor
        while descriptor is not None and self._wait(descriptor):
            try:
                data = os.read(descriptor, PIECE)
            except BlockingIOError:  # another process has read it, and made it non-blocking
                continue
            except OSError as error:
                raise _named("read", self._name, error) from None
            if not data:
                return
            yield data

    def end_after(self, seconds: float) -> None:
        """Count this much silence as the end of the input from now on. Thread-safe.

        Input that has arrived by then is still read, and a file to its end. For a terminal the time
        is 0.
        """
        typed = self._descriptor is not None and os.isatty(self._descriptor)
        self._patience = 0 if typed else seconds
        self._waker.wake()

    def close(self) -> None:
        """Close its own descriptors. A thread that still reads ends with the process."""
        self._waker.close()

    def _wait(self, descriptor: int) -> bool:
        """Wait for input, or for its end. Returns False once the time of `end_after` has passed."""
        while True:
            ready, _, _ = select.select([descriptor, self._waker.fileno()], [], [], self._patience)
            if descriptor in ready:
                return True
            if not ready:
                return False
            self._waker.clear()


class Output:
    """A descriptor to write to.

    A failed write raises OutputClosedError if the reader is gone, or else an OSError whose message
    contains `name`.
    """

    def __init__(self, descriptor: int, name: str = "standard output") -> None:
        self._file = open(descriptor, "wb", 0, closefd=False)  # noqa: SIM115 - there is nothing to close
        self._name = name

    def write(self, data: bytes) -> int:
        """Write all of `data`, also to a non-blocking descriptor."""
        try:
            write_all(self._file, data)
        except BrokenPipeError:
            raise OutputClosedError from None
        except OSError as error:
            raise _named("write to", self._name, error) from None
        return len(data)


def _named(what: str, name: str, error: OSError) -> OSError:
    number = error.errno or errno.EIO
    return OSError(number, f"cannot {what} {name}: {os.strerror(number).lower()}")
