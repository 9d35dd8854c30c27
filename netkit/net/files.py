"""Sends binary files, and copies input to them, also where a file is non-blocking."""

from __future__ import annotations

import errno
import io
import os
import stat
import sys
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from ..core.buffer import CHUNK
from . import sockopts

if TYPE_CHECKING:
    from .connection import Connection
    from .output import Output

# How much of a file one system call sends (bytes): time limits are checked between two calls.
AT_ONCE = 1024 * 1024

# The errors of sendfile(2) for a file that the kernel cannot send, some of /proc for example.
# Reading such a file may work.
_NOT_BY_KERNEL = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)

_FILES = (io.FileIO, io.BufferedReader, io.BufferedRandom)


class Sink(Protocol):
    """The target of written bytes: a connection, or a binary file."""

    def write(self, data: bytes, /) -> int | None:
        """Take `data`, or its first bytes, and return how many were taken.

        None stands for all of `data`. Only an ``io.RawIOBase`` returns None for nothing, if it is a
        non-blocking file without room.
        """


class OutputError(OSError):
    """An output takes no more data. `errno` is EPIPE if its reader is gone."""


def failure(what: str, name: str, error: OSError) -> str:
    """Return the text of an error: ``cannot write to a.log: no space left on device``."""
    if error.errno == errno.ENXIO:
        return f"cannot {what} {name}: it is a pipe that no process reads, or a socket"
    return f"cannot {what} {name}: {os.strerror(error.errno or errno.EIO).lower()}"


def open_at_once(path: str, flags: int) -> int:
    """Open a file as `os.open` does, but do not wait for the reader of a named pipe. OSError."""
    if not hasattr(os, "mkfifo"):  # pragma: no cover - Windows
        return os.open(path, flags, 0o666)
    fd = os.open(path, flags | os.O_NONBLOCK, 0o666)
    os.set_blocking(fd, True)
    return fd


def write_all(sink: Sink, data: bytes) -> None:
    """Write all of `data` to `sink`, and wait while a non-blocking file has no room.

    BlockingIOError if `sink` has no descriptor to wait for. OSError (EIO) if it takes nothing
    without saying that it would block. The errors of its `write`.
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


def sendfile(
    conn: Connection[Any], file: BinaryIO, offset: int = 0, count: int | None = None
) -> int:
    """Send a binary file from byte `offset` on, and return how many bytes were sent.

    `count` is the most bytes to send; None for all up to the file's end. The kernel copies them
    from a regular file (sendfile(2)), without TLS. The file's own position does not count, and is
    undefined afterwards. Waits for a non-blocking file; BlockingIOError if it has no descriptor.
    ValueError for a negative number, TypeError for a file of text, the errors of `write`, and those
    of the file, which break the output if a part has been sent.
    """
    if offset < 0 or (count is not None and count < 0):
        raise ValueError(f"offset and count must be 0 or more, not {offset} and {count}")
    if not hasattr(file, "read"):
        raise _not_binary(file)
    output, link = conn._output, conn._link
    most = sys.maxsize - offset if count is None else count
    with output.held():
        output.check()
        output.send_gathered()
        output.begin_write()
        before = link.bytes_written
        try:
            if not _send_by_kernel(output, file, offset, most):
                _send_pieces(output, file, offset, most)
        except BaseException as error:
            if link.bytes_written > before:
                output.break_off(error)
            raise
        return link.bytes_written - before


def copy_input(conn: Connection[Any], sink: Sink) -> int:
    """Copy all input of `conn` to `sink`, and return how many bytes were copied."""
    copied = 0
    conn._settle()
    while data := conn._buffer.take(CHUNK) or conn._receive():
        write_all(sink, data)
        copied += len(data)
    return copied


def _send_by_kernel(output: Output, file: BinaryIO, offset: int, most: int) -> bool:
    """Return whether anything was sent. The kernel cannot encrypt, nor send every file."""
    link = output.link
    if link.transport is not link.wire:
        return False
    with output.in_file():
        descriptor = _regular(file)
    if descriptor is None:
        return False
    at, end = offset, offset + most
    at_once = CHUNK if link.wire.timer is not None and link.wire.timer.deadlines else AT_ONCE
    while (size := min(at_once, end - at, os.fstat(descriptor).st_size - at)) > 0:
        try:
            sent = link.wire.sendfile(descriptor, at, size)
        except OSError as error:
            if at == offset and error.errno in _NOT_BY_KERNEL:
                break
            if error.errno == errno.EIO:  # of reading the file
                raise
            output.fail(error, at - offset)
        if not sent:  # the file has just become shorter
            break
        link.bytes_written += sent
        at += sent
    return at > offset


def _send_pieces(output: Output, file: BinaryIO, offset: int, most: int) -> None:
    with output.in_file():
        if offset or file.seekable():
            file.seek(offset)
    while most:
        with output.in_file():
            data = _read(file, min(most, CHUNK))
        if not data:
            break
        output.send(data)
        most -= len(data)


def _read(file: BinaryIO, size: int) -> bytes:
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


def _regular(file: Any) -> int | None:
    """Return the descriptor of a regular file that `open` has returned, for the kernel; else None.

    Other objects, such as ``gzip.GzipFile``, may return other bytes than their descriptor has.
    """
    if not hasattr(os, "sendfile"):  # pragma: no cover - Windows
        return None
    if type(file) not in _FILES or type(getattr(file, "raw", file)) is not io.FileIO:
        return None
    if type(file) is io.BufferedRandom:
        file.flush()
    descriptor: int = file.fileno()
    return descriptor if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
