"""Writing to one connected socket: bytes, text, many small pieces as one, and files.

The writing half of a `Connection`, by the rules of `netkit.net.stream`. One lock is held for the
whole of a write, so that what one call writes stays together.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn, Protocol

from ..core.encodings import to_bytes
from ..core.errors import ConnectionClosedError, WriteAfterEndError
from ..core.reader import CHUNK
from . import sockopts
from .stream import FREE_THREADED, IN_FILE, IN_SOCKET, Stream

if TYPE_CHECKING:
    from .timeouts import Timer

Writable = str | bytes | bytearray | memoryview
_Bytes = bytes | bytearray | memoryview


class Sink(Protocol):
    """What bytes are written to: a connection, or a binary file."""

    def write(self, data: bytes, /) -> int | None:
        """Take `data`, or the first part of it: then return how many bytes.

        None stands for all of it, but of an ``io.RawIOBase`` for nothing, as Python has it: a
        non-blocking file takes no more at present.
        """


# How much of a file one system call sends (bytes): between two of them, time limits are looked at.
AT_ONCE = 1024 * 1024

_FILES = (io.FileIO, io.BufferedReader, io.BufferedRandom)
# What sendfile(2) says to a file that it cannot send, as some of /proc: reading it may work.
_NOT_BY_KERNEL = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


class WritableStream(Stream):
    """What `Connection` derives from; not used by itself."""

    __slots__ = ()

    def write(self, data: Writable, encoding: str | None = None) -> int:
        """Send all of `data` and return its number of bytes once the kernel has them.

        Text is encoded with `encoding`, or else with this connection's. Waits while the peer's
        window and the kernel's buffer are full: a slow peer slows this thread and no other.
        Thread-safe: what one call writes stays together.

        WriteAfterEndError after `end`, ConnectionClosedError after `close`, BrokenPipeError or
        ConnectionResetError if the peer is gone, TimeoutError once a time limit has passed. Once a
        write has failed, every further one raises the same error, and the peer sees a reset in the
        end; but without TLS a time limit that has passed before anything was sent breaks nothing.
        RuntimeError, and nothing is sent, in a signal handler that has interrupted a write of this
        connection, or a read that sends something for TLS.
        """
        payload = data if type(data) is bytes else self._encoded(data, encoding)
        with self._write_lock:
            if self._writing:
                raise self._interrupted_write()
            try:
                self._writing = IN_SOCKET
                if FREE_THREADED:  # pragma: no cover - free-threaded builds only
                    self._fence()
                if self._changed:
                    self._check_writable()
                if self._special:
                    self._write_specially(payload)
                elif payload:
                    try:
                        sent = self.socket.send(payload)
                        self.bytes_written += sent
                        if sent < len(payload):
                            self._send_rest(payload, sent)
                    except BaseException as error:
                        self._fail_write(error)
            finally:
                self._writing = 0
                if self._changed or FREE_THREADED:
                    self._leave_socket()
        return len(payload)

    def _interrupted_write(self) -> RuntimeError:
        return RuntimeError(f"a signal handler cannot write amid a write to {self.peer}")

    @contextlib.contextmanager
    def _output(self) -> Iterator[None]:
        """Alone with the output and in the socket, as `write` is: for all the others."""
        with self._write_lock:
            if self._writing:
                raise self._interrupted_write()
            try:
                self._writing = IN_SOCKET
                self._fence()
                yield
            finally:
                self._writing = 0
                self._leave_socket()

    def _encoded(self, data: Writable, encoding: str | None) -> _Bytes:
        if isinstance(data, (bytes, bytearray)):
            return data
        if isinstance(data, memoryview) and data.c_contiguous:
            return data.cast("B")
        return to_bytes(data, encoding or self.encoding)

    def _check_writable(self) -> None:
        if self._closed or self._closing:
            raise ConnectionClosedError
        if self._broken is not None:
            if self._broken.__cause__ is None:  # it came from the socket
                self.error = self._broken
            raise self._broken
        if self._ended:
            raise WriteAfterEndError
        if self._interruption is not None:
            raise self._failure(self._interruption)

    def _fail_write(self, error: BaseException) -> NoReturn:
        """Raise what a write raises that has met `error` in the socket."""
        if not isinstance(error, OSError):
            if self.tls is None or not self.tls.is_interrupted():
                self._break_off(error)  # of a signal handler: how much is sent is not known
            raise error
        failure = self._failure(error)
        if self._untouched and self.tls is None:  # what TLS has encrypted must be sent, or nothing
            self._untouched = False
        else:
            self._break_off(failure)
        raise failure from None

    def _break_off(self, error: BaseException) -> None:
        """No write is possible any more: one that has met `error` has sent a part, maybe."""
        if self._broken is not None:
            return
        if error is self.error and isinstance(error, OSError):
            broken = error
        else:
            text = f"a write to {self.peer} was broken off: {type(error).__name__}"
            broken = ConnectionAbortedError(errno.ECONNABORTED, text)
            broken.__cause__ = error
        self._broken = broken
        self._failed = self._changed = True

    @contextlib.contextmanager
    def corked(self) -> Iterator[None]:
        """Gather what is written in this block, and send it as one at its end.

        For a reply that is written in many small pieces: fewer system calls, packets and TLS
        records. What has been gathered is also sent once it is `CHUNK` bytes, and by `end` and
        `close`. Errors of sending are raised there, and by the block's end.
        """
        with self._output():
            self._corks += 1
            self._special = True
        try:
            yield
        finally:
            with self._output():
                self._corks -= 1
                self._special = self._is_special()
                if not self._corks:
                    self._send_corked()

    def flush(self) -> None:
        """Send what a block of `corked` has gathered so far; without such a block, nothing is left.

        So a connection may be the file of ``print(..., flush=True)``. Errors as of `write`.
        """
        with self._output():
            self._send_corked()

    def _is_special(self) -> bool:
        return bool(self._corks) or self.tls is not None or self._timer is not None

    def _write_specially(self, payload: _Bytes) -> None:
        if not self._corks:
            self._send_whole(payload)
            return
        self._corked += payload
        if len(self._corked) >= CHUNK:
            self._send_corked()

    def _send_corked(self) -> None:
        """The write lock is held. What cannot be sent is lost, as of any write that fails."""
        payload, self._corked = self._corked, bytearray()
        if payload and not (self._closed or self._ended or self._broken):
            self._send_whole(payload)

    def _send_whole(self, payload: _Bytes) -> None:
        if not payload:
            return
        try:
            if self.tls is None:
                self._send_rest(payload, 0)
            else:
                self._begin_write(0)
                self.bytes_written += self.tls.send(payload)
        except BaseException as error:
            self._fail_write(error)

    def sendfile(self, file: BinaryIO, offset: int = 0, count: int | None = None) -> int:
        """Send a binary file from byte `offset` on; how many bytes were sent.

        `count` is the most bytes that are sent, None for all up to the file's end. The kernel
        copies them where it can (sendfile(2)): from a regular file, and without TLS. The file's own
        position does not count, and is undefined afterwards. A non-blocking file is waited for;
        BlockingIOError if it has no descriptor. ValueError for a number below 0; errors as of
        `write`, and those of reading the file, which break the output if a part has been sent.
        """
        if offset < 0 or (count is not None and count < 0):
            raise ValueError(f"offset and count must be 0 or more, not {offset} and {count}")
        if not hasattr(file, "read"):
            raise _not_binary(file)
        with self._output():
            if self._changed:
                self._check_writable()
            self._send_corked()
            self._begin_write(0)
            before = self.bytes_written
            try:
                return self._send_file(file, offset, count)
            except BaseException as error:
                if self.bytes_written > before:
                    self._break_off(error)
                raise

    def _send_file(self, file: BinaryIO, offset: int, count: int | None) -> int:
        descriptor = None
        if self.tls is None:
            with self._out_of_socket():
                descriptor = _regular(file)
        if descriptor is not None and (sent := self._send_by_kernel(descriptor, offset, count)):
            return sent
        return self._send_pieces(file, offset, count)

    @contextlib.contextmanager
    def _out_of_socket(self) -> Iterator[None]:
        """Foreign code runs in this block, amid a write: others may close the connection."""
        try:
            self._writing = IN_FILE
            self._leave_socket()
            yield
        finally:
            self._writing = IN_SOCKET
            self._fence()
        if self._changed:
            self._check_writable()

    def _send_by_kernel(self, descriptor: int, offset: int, count: int | None) -> int:
        """How many bytes were sent; 0 also of a file that the kernel does not send."""
        sent, to = 0, self.socket.fileno()
        while count is None or sent < count:
            most = AT_ONCE if count is None else min(count - sent, AT_ONCE)
            left = os.fstat(descriptor).st_size - offset - sent
            if left <= 0:
                break
            size = min(most, left)
            try:
                more = self._send_in_time(os.sendfile, size, to, descriptor, offset + sent, size)
            except OSError as error:
                if not sent and error.errno in _NOT_BY_KERNEL:
                    break
                if error.errno == errno.EIO:  # of reading the file
                    raise
                self._fail_write(error)
            if not more:  # the file has just become shorter
                break
            self.bytes_written += more
            sent += more
        return sent

    def _send_pieces(self, file: BinaryIO, offset: int, count: int | None) -> int:
        with self._out_of_socket():
            if offset or file.seekable():
                file.seek(offset)
        sent = 0
        while count is None or sent < count:
            with self._out_of_socket():
                data = _read(file, CHUNK if count is None else min(count - sent, CHUNK))
            if not data:
                break
            self._send_whole(data)
            sent += len(data)
        return sent

    def _send_rest(self, payload: _Bytes, sent: int) -> None:
        self._begin_write(sent)
        if not sent:
            sent = self._send_some(payload)
            self.bytes_written += sent
            if sent == len(payload):
                return
        with memoryview(payload) as whole:  # given up even if `self.error` keeps this frame
            while sent < len(whole):
                with whole[sent:] as rest:
                    more = self._send_some(rest)
                self.bytes_written += more
                sent += more

    def _begin_write(self, sent: int) -> None:
        timer = self._timer
        self._write_began = 0.0 if timer is None else timer.now()
        self._write_sent = sent

    def _send_some(self, data: _Bytes) -> int:
        """Send a part of `data`, within the time limits; how many bytes, at least one."""
        return self._send_in_time(self.socket.send, len(data), data)

    def _send_in_time(self, send: Callable[..., int], size: int, *arguments: Any) -> int:
        """What ``send(*arguments)`` returns, which is to send `size` bytes."""
        timer = self._timer
        if timer is None:
            return send(*arguments)
        while True:
            try:
                timer.outlast_signals(writing=True)
                sent = send(*arguments)
                break
            except BlockingIOError:
                self._check_time(timer, stalled=True)
        self._write_sent += sent
        if sent < size:
            self._check_time(timer, stalled=False)
        return sent

    def _check_time(self, timer: Timer, stalled: bool) -> None:
        self._untouched = not self._write_sent
        timer.after_send(self._write_began, self._write_sent, stalled)
        self._untouched = False


def write_all(sink: Sink, data: bytes) -> None:
    """Write all of `data` to `sink`, and wait where that is a non-blocking file.

    BlockingIOError if it has no descriptor to wait for; OSError (EIO) if it takes nothing, and does
    not say that it would block.
    """
    rest = data
    while rest:
        try:
            taken = sink.write(rest)
        except BlockingIOError as error:  # of a buffer, which has taken a part
            rest = rest[error.characters_written :]
            _wait_for(sink, writing=True)
            continue
        if taken is None:
            if not isinstance(sink, io.RawIOBase):  # it takes all, and does not count
                return
            _wait_for(sink, writing=True)
        elif 0 < taken <= len(rest):
            rest = rest[taken:]
        else:
            text = f"{sink!r} says that it has written {taken} of {len(rest)} bytes"
            raise OSError(errno.EIO, text)


def _read(file: BinaryIO, size: int) -> bytes:
    """From 1 to `size` bytes; ``b""`` at the end. Waits where `file` is a non-blocking one."""
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
    """The descriptor of a file that the kernel can send by itself, or None.

    Only of what `open` returns: another object may read something else than its descriptor has, as
    ``gzip.GzipFile`` does.
    """
    if not hasattr(os, "sendfile"):  # pragma: no cover - Windows
        return None
    if type(file) not in _FILES or type(getattr(file, "raw", file)) is not io.FileIO:
        return None
    if type(file) is io.BufferedRandom:
        file.flush()
    descriptor: int = file.fileno()
    return descriptor if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
