"""The output of a connection: bytes, many small pieces as one, posted messages, and files.

One lock is held for the whole of a write, so what one call writes stays together. A thread takes it
before `Link.lock`. Once a write has failed with a part of its data sent, no other write may follow:
the peer would take its data for the rest.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

from ..core.buffer import CHUNK
from ..core.deadline import Deadline
from ..core.encodings import to_bytes
from ..core.errors import ConnectionClosedError, WriteAfterEndError
from .link import FREE_THREADED, IN_FILE, IN_SOCKET, Link
from .states import Life, OutputState
from .timeouts import Timer
from .transport import Bytes, Writable

if TYPE_CHECKING:
    from .outbox import Outbox


def as_bytes(data: Writable, encoding: str) -> Bytes:
    """Return the bytes of `data`, without a copy if it is bytes already. TypeError."""
    if isinstance(data, (bytes, bytearray)):
        return data
    if isinstance(data, memoryview) and data.c_contiguous:
        return data.cast("B")
    return to_bytes(data, encoding)


class Output:
    """The output of one connection. Thread-safe; errors as of `Connection.write`."""

    __slots__ = ("_corks", "gathered", "link", "lock", "outbox")

    def __init__(self, link: Link) -> None:
        self.link = link
        # Held during a write. Re-entrant, so that a signal handler that writes does not wait for
        # the thread that it has interrupted; `Link.writing` shows that it must not write.
        self.lock = threading.RLock()
        self._corks = 0  # how many blocks of `corked` have been entered
        self.gathered = bytearray()  # what has been written in them and not been sent
        self.outbox: Outbox | None = None  # made by the first post

    # Bytes

    def write(self, payload: Bytes) -> None:
        """Send all of `payload`."""
        link = self.link
        timed = (timer := link.wire.timer) and timer.deadlines and self._acquire_in_time(timer)
        try:
            with self.lock:
                if link.writing:
                    raise self._interrupted()
                try:
                    link.writing = IN_SOCKET
                    if FREE_THREADED:  # pragma: no cover - free-threaded builds only
                        link.fence()
                    if link.changed:
                        self.check()
                    if self.outbox is not None and self.outbox.messages:
                        self.send_gathered()
                    if self._corks:
                        self._gather(payload)
                    elif (send := link.send) is None:
                        self.send(payload)
                    elif payload:
                        sent = 0
                        try:
                            sent = send(payload)
                            link.bytes_written += sent
                            if sent < len(payload):
                                self._send_rest(payload, sent)
                        except BaseException as error:
                            self.fail(error, sent)
                finally:
                    link.writing = 0
        finally:  # without the lock: if this closes the connection, observers are called
            if timed:
                self.lock.release()
            if link.changed or FREE_THREADED:
                link.leave()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """In this block, the calling thread alone uses the output, and may use the socket."""
        timer = self.link.wire.timer
        timed = timer is not None and self._acquire_in_time(timer)
        try:
            with self.lock, self._in_socket():
                yield
        finally:  # without the lock, as in `write`
            if timed:
                self.lock.release()
            self.link.leave()

    def _acquire_in_time(self, timer: Timer) -> bool:
        """Acquire the lock if a deadline bounds the wait for it; the caller releases it then.

        Another thread may write for long. TimeoutError.
        """
        try:
            return timer.acquire(self.lock)
        except TimeoutError as error:
            raise self.link.failure(error) from None

    @contextlib.contextmanager
    def _in_socket(self) -> Iterator[None]:
        link = self.link
        if link.writing:
            raise self._interrupted()
        try:
            link.writing = IN_SOCKET
            link.fence()
            yield
        finally:
            link.writing = 0

    @contextlib.contextmanager
    def in_file(self) -> Iterator[None]:
        """In this block, the code of a file runs, and another thread may close the descriptor.

        Only another thread: here, observers of the close would be called with the lock held.
        """
        link = self.link
        try:
            link.writing = IN_FILE
            link.fence()
            if link.changed:
                self.check()
            yield
        finally:
            link.writing = IN_SOCKET
            link.fence()
        if link.changed:
            self.check()

    def _interrupted(self) -> RuntimeError:
        return RuntimeError(f"a signal handler cannot write amid a write to {self.link.peer}")

    def check(self) -> None:
        """Raise the error that a write raises in the present state, if it must not send."""
        self.check_open()
        link = self.link
        if link.interruption is not None:
            raise link.failure(link.interruption)

    def check_open(self) -> None:
        """As `check`, but without the error of an interruption, which is not the output's."""
        link = self.link
        if link.life is not Life.OPEN:
            raise ConnectionClosedError
        if link.broken is not None:
            if link.broken.__cause__ is None:  # it came from the socket
                link.error = link.broken
            raise link.broken
        if link.output is OutputState.ENDED:
            raise WriteAfterEndError

    def send(self, payload: Bytes) -> None:
        """Send all of `payload` within the time limits. The output must be `held`.

        If it is empty, send what the transport owes.
        """
        link = self.link
        if not payload and not link.transport.owes():
            return
        self.begin_write()
        sent = 0
        try:
            sent = link.transport.send(payload)
            link.bytes_written += sent
            if sent < len(payload):
                self._send_rest(payload, sent)
        except BaseException as error:
            self.fail(error, sent)

    def begin_write(self) -> None:
        """Let the time limits of a write count. TimeoutError if a deadline has passed."""
        try:
            self.link.wire.begin_write()
        except TimeoutError as error:  # nothing has been sent, nor encrypted
            raise self.link.failure(error) from None

    def _send_rest(self, payload: Bytes, sent: int) -> None:
        link = self.link
        with memoryview(payload) as whole:  # released even if an error keeps this frame
            while sent < len(whole):
                with whole[sent:] as rest:
                    more = link.transport.send(rest)
                link.bytes_written += more
                sent += more

    def fail(self, error: BaseException, sent: int) -> NoReturn:
        """Raise the exception of a write in which the socket raised `error` after `sent` bytes."""
        link = self.link
        # How much has been sent before a signal handler has raised an error is unknown.
        failure = link.failure(error) if isinstance(error, OSError) else error
        if sent or link.transport.breaks(error):
            self.break_off(failure)
        if isinstance(error, OSError):
            raise failure from None
        raise error

    def break_off(self, error: BaseException, state: OutputState = OutputState.BROKEN) -> None:
        """Make every later write fail: `error` ended a write of which a part may have been sent."""
        link = self.link
        with link.lock:
            if link.broken is not None:
                return
            if error is link.error and isinstance(error, OSError):
                link.broken = error
            else:
                text = f"a write to {link.peer} was broken off: {type(error).__name__}"
                link.broken = ConnectionAbortedError(errno.ECONNABORTED, text)
                link.broken.__cause__ = error
            link.changed = True
            link.output = state

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

    def _gather(self, payload: Bytes) -> None:
        self.gathered += payload
        if len(self.gathered) >= CHUNK:
            self.send_gathered()

    def flush(self) -> None:
        """Send what has been gathered, and what is posted."""
        with self.held():
            self.send_gathered()

    def send_gathered(self) -> None:
        """Send what blocks of `corked` have gathered, and what is posted. It must be `held`.

        What has been gathered is the older of the two, since a write in a block sends both first if
        anything is posted.
        """
        payload, self.gathered = self.gathered, bytearray()
        if payload and not self.is_over():
            self.send(payload)
        if self.outbox is not None:
            self.outbox.send_all()

    def is_over(self) -> bool:
        """Whether nothing more can be sent."""
        link = self.link
        ended = link.output is OutputState.ENDED or link.broken is not None
        return ended or link.life is Life.CLOSED

    # The end

    def abandon(self) -> None:
        """Have the close send a reset: the handler has failed, so the output is not whole."""
        link = self.link
        with link.lock:
            if link.output is OutputState.OPEN:
                link.changed = True
                link.output = OutputState.ABANDONED

    def end(self) -> None:
        """As of `Connection.end`, without data."""
        link = self.link
        with self.held():
            if link.broken is not None and link.life is Life.OPEN:
                self.check()
            self.send_gathered()
            failure = None
            try:
                self._announce_end()
            except TimeoutError as error:
                failure = link.failure(error)
            with link.lock:
                can_end = link.output in (OutputState.OPEN, OutputState.ABANDONED)
                if can_end and link.life is not Life.CLOSED:
                    link.changed = True
                    link.output = OutputState.ENDED
                    link.wire.shut_down(socket.SHUT_WR)
            if failure is not None:
                raise failure

    def _announce_end(self) -> None:
        if not self.is_over():
            self.link.transport.end()

    def finish(self, deadline: Deadline) -> bool:
        """Send what is left, until `deadline`; of a TLS connection its end, too.

        False if a write of another thread, or of the thread that this signal handler has
        interrupted, is still under way by then.
        """
        link = self.link
        if not self.lock.acquire(timeout=deadline.remaining() or 0):
            return False
        try:
            with self._in_socket():
                if self.gathered or self.outbox or link.transport is not link.wire:
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
