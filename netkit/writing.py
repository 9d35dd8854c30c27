"""Writing to one connected socket: bytes, text, many small pieces as one, and files.

The writing half of a `Connection`, by the rules of `netkit.stream`. One lock is held for the whole
of a write, so that what one call writes stays together.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Protocol

from .encodings import to_bytes
from .errors import ConnectionClosedError, WriteAfterEndError
from .reading import CHUNK
from .stream import Stream

Writable = str | bytes | bytearray | memoryview
_Bytes = bytes | bytearray | memoryview


class Sink(Protocol):
    """What bytes are written to: a connection, or a binary file."""

    def write(self, data: bytes, /) -> int | None:
        """Take `data`, or the first part of it: then return how many bytes."""


# How much of a file one system call sends (bytes): between two of them, time limits are looked at.
AT_ONCE = 1024 * 1024


class WritableStream(Stream):
    """What `Connection` derives from; not used by itself."""

    __slots__ = ()

    def write(self, data: Writable, encoding: str | None = None) -> int:
        """Send all of `data` and return its number of bytes once the kernel has them.

        Text is encoded with `encoding`, or else with this connection's. Waits while the peer's
        window and the kernel's buffer are full: a slow peer slows this thread and no other.
        Thread-safe: what one call writes stays together.

        WriteAfterEndError after `end`, ConnectionClosedError after `close`, BrokenPipeError or
        ConnectionResetError if the peer is gone, TimeoutError once a time limit has passed.
        """
        payload = data if type(data) is bytes else self._encoded(data, encoding)
        with self._write_lock:
            if self._changed:
                self._check_writable()
            if not payload:
                return 0
            try:
                if self._special:
                    self._write_specially(payload)
                else:
                    sent = self.socket.send(payload)
                    self.bytes_written += sent
                    if sent < len(payload):
                        self._send_rest(payload, sent)
            except OSError as error:
                raise self._failure(error) from None
        return len(payload)

    def _encoded(self, data: Writable, encoding: str | None) -> _Bytes:
        if isinstance(data, (bytes, bytearray)):
            return data
        if isinstance(data, memoryview) and data.c_contiguous:
            return data.cast("B")
        return to_bytes(data, encoding or self.encoding)

    def _check_writable(self) -> None:
        if self._closed or self._closing:
            raise ConnectionClosedError
        if self._ended:
            raise WriteAfterEndError
        if self._interruption is not None:
            raise self._failure(self._interruption)

    @contextlib.contextmanager
    def corked(self) -> Iterator[None]:
        """Gather what is written in this block, and send it as one at its end.

        For a reply that is written in many small pieces: fewer system calls, packets and TLS
        records. What has been gathered is also sent once it is `CHUNK` bytes, and by `end` and
        `close`. Errors of sending are raised there, and by the block's end.
        """
        with self._write_lock:
            self._corks += 1
            self._special = True
        try:
            yield
        finally:
            with self._write_lock:
                self._corks -= 1
                self._special = self._is_special()
                if not self._corks:
                    self._send_corked()

    def flush(self) -> None:
        """Send what a block of `corked` has gathered so far; without such a block, nothing is left.

        So a connection may be the file of ``print(..., flush=True)``. Errors as of `write`.
        """
        with self._write_lock:
            self._send_corked()

    def _is_special(self) -> bool:
        return bool(self._corks) or self.tls is not None or self._timer is not None

    def _write_specially(self, payload: _Bytes) -> None:
        if not self._corks:
            return self._send_specially(payload)
        self._corked += payload
        if len(self._corked) >= CHUNK:
            self._send_corked()
        return None

    def _send_corked(self) -> None:
        """The write lock is held. What cannot be sent is lost, as of any write that fails."""
        payload, self._corked = self._corked, bytearray()
        if payload and not (self._closed or self._ended):
            try:
                self._send_specially(payload)
            except OSError as error:
                raise self._failure(error) from None

    def sendfile(self, file: BinaryIO, offset: int = 0, count: int | None = None) -> int:
        """Send a binary file from byte `offset` on; how many bytes were sent.

        `count`: at most so many (None: up to the file's end). The kernel copies them where it can
        (sendfile(2)), which is for regular files and without TLS. The file's own position does not
        count, and is undefined afterwards. ValueError for a number below 0; errors as of `write`,
        and those of reading the file.
        """
        if offset < 0 or (count is not None and count < 0):
            raise ValueError(f"offset and count must be 0 or more, not {offset} and {count}")
        with self._write_lock:
            if self._changed:
                self._check_writable()
            self._send_corked()
            self._begin_write(0)
            descriptor = self._descriptor_of(file)
            if descriptor is None:
                return self._send_pieces(file, offset, count)
            return self._send_by_kernel(descriptor, offset, count)

    def _descriptor_of(self, file: BinaryIO) -> int | None:
        """That of a file which the kernel can send by itself."""
        if self.tls is not None or not hasattr(os, "sendfile"):
            return None
        try:
            descriptor = file.fileno()
        except (AttributeError, OSError):  # it is in memory
            return None
        return descriptor if stat.S_ISREG(os.fstat(descriptor).st_mode) else None

    def _send_by_kernel(self, descriptor: int, offset: int, count: int | None) -> int:
        sent = 0
        while count is None or sent < count:
            most = AT_ONCE if count is None else min(count - sent, AT_ONCE)
            left = os.fstat(descriptor).st_size - offset - sent
            if left <= 0:
                break
            try:
                size, to = min(most, left), self.socket.fileno()
                more = self._send_in_time(os.sendfile, size, to, descriptor, offset + sent, size)
            except OSError as error:
                raise self._failure(error) from None
            self.bytes_written += more
            sent += more
        return sent

    def _send_pieces(self, file: BinaryIO, offset: int, count: int | None) -> int:
        if offset or file.seekable():
            file.seek(offset)
        sent = 0
        while count is None or sent < count:
            data = file.read(CHUNK if count is None else min(count - sent, CHUNK))
            if not data:
                break
            try:
                self._send_specially(data)
            except OSError as error:
                raise self._failure(error) from None
            sent += len(data)
        return sent

    def _send_specially(self, payload: _Bytes) -> None:
        if self.tls is None:
            self._send_rest(payload, 0)
        else:
            if self._timer is not None:
                self._begin_write(0)
            self.bytes_written += self.tls.send(payload)

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
        """Send a part of `data`, within the time limits; how many bytes, maybe none."""
        return self._send_in_time(self.socket.send, len(data), data)

    def _send_in_time(self, send: Callable[..., int], size: int, *arguments: Any) -> int:
        """What ``send(*arguments)`` returns, which is to send `size` bytes."""
        timer = self._timer
        if timer is None:
            return send(*arguments)
        try:
            timer.outlast_signals(writing=True)
            sent = send(*arguments)
        except BlockingIOError:
            sent = 0
        self._write_sent += sent
        if sent < size:
            timer.after_send(self._write_began, self._write_sent, stalled=not sent)
        return sent
