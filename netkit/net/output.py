"""The output of a connection: bytes, many small pieces as one, and files.

One lock is held for the whole of a write, so what one call writes stays together. A thread takes it
before `Link.lock`. Once a write has failed with a part of its data sent, no other write may follow:
the peer would take its data for the rest.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from typing import BinaryIO, NoReturn

from ..core.buffer import CHUNK
from ..core.deadline import Deadline
from ..core.encodings import to_bytes
from . import files
from .link import FREE_THREADED, IN_FILE, IN_SOCKET, Link
from .states import Life, OutputState
from .transport import Bytes, Writable

# How much of a file one system call sends (bytes): time limits are checked between two calls.
AT_ONCE = 1024 * 1024

# The errors of sendfile(2) for a file that the kernel cannot send, some of /proc for example.
# Reading such a file may work.
_NOT_BY_KERNEL = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


def as_bytes(data: Writable, encoding: str) -> Bytes:
    """The bytes of `data`, without a copy where it is bytes already. TypeError."""
    if isinstance(data, (bytes, bytearray)):
        return data
    if isinstance(data, memoryview) and data.c_contiguous:
        return data.cast("B")
    return to_bytes(data, encoding)


class Output:
    """The output of one connection. Thread-safe; errors as of `Connection.write`."""

    __slots__ = ("_corks", "_link", "gathered", "lock")

    def __init__(self, link: Link) -> None:
        self._link = link
        # Re-entrant, so that a signal handler that writes does not wait for the thread that it has
        # interrupted; `Link.writing` shows that it must not write.
        self.lock = threading.RLock()
        self._corks = 0  # how many blocks of `corked` have been entered
        self.gathered = bytearray()  # what has been written in them and not been sent

    def free_locks(self) -> None:
        """Make the lock anew, in a forked child."""
        self.lock = threading.RLock()

    # Bytes

    def write(self, payload: Bytes) -> None:
        """Send all of `payload`."""
        link = self._link
        try:
            with self.lock:
                if link.writing:
                    raise self._interrupted()
                try:
                    link.writing = IN_SOCKET
                    if FREE_THREADED:  # pragma: no cover - free-threaded builds only
                        link.fence()
                    if link.changed:
                        link.check_output()
                    if self._corks:
                        self._gather(payload)
                    elif link.special:
                        self._send_whole(payload)
                    elif payload:
                        sent = 0
                        try:
                            sent = link.sock.send(payload)
                            link.bytes_written += sent
                            if sent < len(payload):
                                self._send_rest(payload, sent)
                        except BaseException as error:
                            self._fail(error, sent)
                finally:
                    link.writing = 0
        finally:  # without the lock: if this closes the connection, observers are called
            if link.changed or FREE_THREADED:
                link.leave()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """In this block, the calling thread alone uses the output, and may use the socket."""
        try:
            with self.lock, self._in_socket():
                yield
        finally:  # without the lock, as in `write`
            self._link.leave()

    @contextlib.contextmanager
    def _in_socket(self) -> Iterator[None]:
        link = self._link
        if link.writing:
            raise self._interrupted()
        try:
            link.writing = IN_SOCKET
            link.fence()
            yield
        finally:
            link.writing = 0

    def _interrupted(self) -> RuntimeError:
        return RuntimeError(f"a signal handler cannot write amid a write to {self._link.peer}")

    def _send_whole(self, payload: Bytes) -> None:
        if not payload:
            return
        link = self._link
        sent = 0
        try:
            timer = link.wire.timer
            if timer is not None:
                timer.begin_write()
            sent = link.transport.send(payload)
            link.bytes_written += sent
            if sent < len(payload):
                self._send_rest(payload, sent)
        except BaseException as error:
            self._fail(error, sent)

    def _send_rest(self, payload: Bytes, sent: int) -> None:
        link = self._link
        with memoryview(payload) as whole:  # released even if an error keeps this frame
            while sent < len(whole):
                with whole[sent:] as rest:
                    more = link.transport.send(rest)
                link.bytes_written += more
                sent += more

    def _fail(self, error: BaseException, sent: int) -> NoReturn:
        """Raise what a write raises that has met `error` in the socket, after `sent` bytes."""
        link = self._link
        # How much has been sent before a signal handler has raised an error is unknown.
        failure = link.failure(error) if isinstance(error, OSError) else error
        if sent or link.transport.breaks(error):
            link.break_off(failure)
        if isinstance(error, OSError):
            raise failure from None
        raise error

    # Many small pieces

    @contextlib.contextmanager
    def corked(self) -> Iterator[None]:
        """As of `Connection.corked`."""
        with self.held():
            self._corks += 1
        try:
            yield
        except BaseException:  # it says more than an error of sending
            with contextlib.suppress(OSError):
                self._uncork()
            raise
        self._uncork()

    def _uncork(self) -> None:
        with self.held():
            self._corks -= 1
            if not self._corks:
                self.send_gathered()

    def flush(self) -> None:
        """Send what has been gathered."""
        with self.held():
            self.send_gathered()

    def _gather(self, payload: Bytes) -> None:
        self.gathered += payload
        if len(self.gathered) >= CHUNK:
            self.send_gathered()

    def send_gathered(self) -> None:
        """Send what blocks of `corked` have gathered. The output must be `held`."""
        payload, self.gathered = self.gathered, bytearray()
        if payload and not self._is_over():
            self._send_whole(payload)

    def _is_over(self) -> bool:
        link = self._link
        ended = link.output is OutputState.ENDED or link.broken is not None
        return ended or link.life is Life.CLOSED

    # The end

    def end(self) -> None:
        """As of `Connection.end`, without data."""
        link = self._link
        with self.held():
            if link.broken is not None and link.life is Life.OPEN:
                link.check_output()
            self.send_gathered()
            try:
                self._announce_end()
            except TimeoutError as error:
                link.end_output()
                raise link.failure(error) from None
            link.end_output()

    def _announce_end(self) -> None:
        if not self._is_over():
            self._link.transport.end()

    def finish(self, deadline: Deadline) -> bool:
        """Send what is left, until `deadline`; of a TLS connection its end, too.

        False if a write of another thread, or of the thread that this signal handler has
        interrupted, is still under way by then.
        """
        link = self._link
        if not self.lock.acquire(timeout=deadline.remaining() or 0):
            return False
        try:
            with self._in_socket():
                if self.gathered or link.transport is not link.wire:
                    link.limit_step(deadline.remaining() or 0, "close")
                self.send_gathered()
                if not link.output.is_incomplete():
                    self._announce_end()
        except OSError:  # the peer takes nothing any more
            pass
        except RuntimeError:  # of `_in_socket`
            return False
        finally:
            self.lock.release()
            link.leave()
        return True

    # Files

    def sendfile(self, file: BinaryIO, offset: int, count: int | None) -> int:
        """As of `Connection.sendfile`."""
        files.check(file)
        link = self._link
        with self.held():
            if link.changed:
                link.check_output()
            self.send_gathered()
            timer = link.wire.timer
            if timer is not None:
                timer.begin_write()
            before = link.bytes_written
            try:
                sent = self._send_by_kernel(file, offset, count)
                return sent or self._send_pieces(file, offset, count)
            except BaseException as error:
                if link.bytes_written > before:
                    link.break_off(error)
                raise

    @contextlib.contextmanager
    def _in_file(self) -> Iterator[None]:
        """In this block, the code of a file runs, and another thread may close the descriptor."""
        link = self._link
        try:
            link.writing = IN_FILE
            link.leave()
            yield
        finally:
            link.writing = IN_SOCKET
            link.fence()
        if link.changed:
            link.check_output()

    def _send_by_kernel(self, file: BinaryIO, offset: int, count: int | None) -> int:
        """How many bytes were sent; 0 also if the kernel cannot send this file."""
        link = self._link
        if link.transport is not link.wire:  # it encrypts
            return 0
        with self._in_file():
            descriptor = files.regular(file)
        if descriptor is None:
            return 0
        sent = 0
        while count is None or sent < count:
            most = AT_ONCE if count is None else min(count - sent, AT_ONCE)
            size = min(most, os.fstat(descriptor).st_size - offset - sent)
            if size <= 0:
                break
            try:
                more = link.wire.sendfile(descriptor, offset + sent, size)
            except OSError as error:
                if not sent and error.errno in _NOT_BY_KERNEL:
                    break
                if error.errno == errno.EIO:  # of reading the file
                    raise
                self._fail(error, sent)
            if not more:  # the file has just become shorter
                break
            link.bytes_written += more
            sent += more
        return sent

    def _send_pieces(self, file: BinaryIO, offset: int, count: int | None) -> int:
        with self._in_file():
            if offset or file.seekable():
                file.seek(offset)
        sent = 0
        while count is None or sent < count:
            with self._in_file():
                data = files.read(file, CHUNK if count is None else min(count - sent, CHUNK))
            if not data:
                break
            self._send_whole(data)
            sent += len(data)
        return sent
