"""Binary files that are sent, or that bytes are written to, also non-blocking ones."""

from __future__ import annotations

import errno
import io
import os
import stat
from typing import Any, BinaryIO, Protocol

from . import sockopts

_FILES = (io.FileIO, io.BufferedReader, io.BufferedRandom)


class Sink(Protocol):
    """The target of written bytes: a connection, or a binary file."""

    def write(self, data: bytes, /) -> int | None:
        """Take `data`, or its first bytes, and return how many were taken.

        None stands for all of `data`. Only an ``io.RawIOBase`` returns None for nothing, if it is a
        non-blocking file without room.
        """


def write_all(sink: Sink, data: bytes) -> None:
    """Write all of `data` to `sink`, and wait while a non-blocking file has no room.

    BlockingIOError if `sink` has no descriptor to wait for. OSError (EIO) if it takes nothing
    without saying that it would block. What its `write` raises passes through.
    """
    rest = data
    while rest:
        try:
            taken = sink.write(rest)
        except BlockingIOError as error:  # of a buffered file, which has taken a part
            rest = rest[error.characters_written :]
            _wait_for(sink, writing=True)
            continue
        if taken is None:
            if not isinstance(sink, io.RawIOBase):  # it takes everything and returns no size
                return
            _wait_for(sink, writing=True)
        elif 0 < taken <= len(rest):
            rest = rest[taken:]
        else:
            text = f"{sink!r} says that it has written {taken} of {len(rest)} bytes"
            raise OSError(errno.EIO, text)


def check(file: object) -> None:
    """TypeError unless `file` is one that can be read."""
    if not hasattr(file, "read"):
        raise _not_binary(file)


def read(file: BinaryIO, size: int) -> bytes:
    """From 1 to `size` bytes of `file`; ``b""`` at its end. Waits for a non-blocking file.

    TypeError for a text file; ValueError if `file` returns more than `size` bytes.
    """
    while (data := file.read(size)) is None:
        _wait_for(file, writing=False)
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise _not_binary(file)
    if len(data) > size:
        raise ValueError(f"{file!r} has read {len(data)} bytes, where {size} were asked for")
    return data


def _not_binary(file: object) -> TypeError:
    return TypeError(f"a file to be sent must be a binary one, not {file!r}")


def _wait_for(file: Any, writing: bool) -> None:
    try:
        file.fileno()
    except (AttributeError, OSError):
        text = f"{file!r} would block, and has no descriptor to wait for"
        raise BlockingIOError(errno.EAGAIN, text) from None
    sockopts.wait_until_ready(file, writing, None)


def regular(file: Any) -> int | None:
    """The descriptor of a regular file that the kernel can send by itself, or None.

    Only of what `open` returns. Other objects may return other bytes than their descriptor has:
    ``gzip.GzipFile`` for example.
    """
    if not hasattr(os, "sendfile"):  # pragma: no cover - Windows
        return None
    if type(file) not in _FILES or type(getattr(file, "raw", file)) is not io.FileIO:
        return None
    if type(file) is io.BufferedRandom:
        file.flush()
    descriptor: int = file.fileno()
    return descriptor if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
