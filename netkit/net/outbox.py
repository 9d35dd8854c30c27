"""The outbox of a connection: the messages that have been posted, and wait to be sent.

Rules:

1. A message is one object of bytes, which is never copied: the members of a group share it. It is
   sent whole or dropped whole, unless the connection ends.
2. Only a thread that holds `Output.lock` sends, and it begins with the first message. The thread
   that posts sends what the kernel takes at once. If that is not everything, a new thread sends
   the rest, and ends once nothing is queued.
3. A write sends what is queued before its own data, and so do `end`, `flush` and `close`: all of
   them call `send_all`.
4. A signal handler may post, whatever it has interrupted. Therefore `_thread` starts the threads:
   `threading.Thread.start` takes a lock that the interrupted thread may hold.
"""

from __future__ import annotations

import _thread
import contextlib
import errno
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn
from weakref import WeakSet

from ..core.errors import OutboxFullError
from ..core.kinds import check_bytes
from ..tls.exclusive import Exclusive
from .forks import call_in_children
from .link import FREE_THREADED, IN_SOCKET

if TYPE_CHECKING:
    from .output import Output
    from .transport import Bytes

# How many bytes are queued by default. The kernels of both ends buffer some MiB before anything is
# queued, so a client that exceeds this has missed many seconds of a busy chat. A thousand clients
# that read nothing cost 1 GiB at most, and far less if the members of a group share the messages.
MAX_BYTES = 1024 * 1024

# What a message counts at least (bytes): its object and its place in the queue take about as much.
# Otherwise a million messages of one byte, which take some 40 MiB, would fit into 1 MiB.
LEAST = 64

# What a post does if the outbox is full. DISCONNECT is the default, since nothing is lost without
# notice: a client that connects again knows that it has missed something. With DROP, it notices a
# gap only if the protocol numbers its messages. With REFUSE, each caller must handle an error that
# has nothing to do with its own client.
DISCONNECT, DROP, REFUSE = "disconnect", "drop", "refuse"

# If messages have been posted while the thread of the outbox has sent those before them, it leaves
# the output alone for this time (seconds). Otherwise a `write` of another thread, which waits for
# the output, would hardly ever get it.
PAUSE = 0.001

_INTERRUPTED = "a signal handler cannot write amid a post to the same connection"


class Outbox:
    """The messages that have been posted to one connection and not been sent. Thread-safe.

    A message is queued whatever its size if nothing is queued before it. So `max_bytes` bounds the
    memory, except for one message.
    """

    __slots__ = (
        *("dropped", "messages", "queued", "__weakref__", "_attended", "_begun"),
        *("_lock", "_max_bytes", "_output", "_when_full"),
    )

    def __init__(self, output: Output) -> None:
        self._output = output
        self._max_bytes, self._when_full = MAX_BYTES, DISCONNECT
        self.dropped = 0
        """How many messages have been dropped because the outbox was full."""
        self._clear()
        _outboxes.add(self)

    def _clear(self) -> None:
        # Guards the attributes below. No thread waits while it holds the lock.
        self._lock = Exclusive(_INTERRUPTED)
        self.messages: deque[Bytes] = deque()  # the first to be sent comes first
        self.queued = 0
        """How many bytes are queued. A message counts as 64 bytes at least."""
        self._begun = 0  # so many of the first messages have been sent in part, or are being sent
        self._attended = False  # a thread sends what is queued, and will look again

    @property
    def max_bytes(self) -> int:
        """How many bytes may be queued: 1 MiB by default. May be set: TypeError, ValueError."""
        return self._max_bytes

    @max_bytes.setter
    def max_bytes(self, value: int) -> None:
        self._max_bytes = check_bytes("max_bytes", value)

    @property
    def when_full(self) -> str:
        """What a post does that would exceed `max_bytes`. May be set: ValueError.

        ``"disconnect"``, the default, resets the connection: the read or write of its thread, and
        every later post, raise OutboxFullError. ``"drop"`` drops the oldest messages that have not
        been begun; the new one, if that is not enough. ``"refuse"`` only raises OutboxFullError.
        """
        return self._when_full

    @when_full.setter
    def when_full(self, value: str) -> None:
        if value not in (DISCONNECT, DROP, REFUSE):
            raise ValueError(f'when_full must be "disconnect", "drop" or "refuse", not {value!r}')
        self._when_full = value

    # Posting

    def offer(self, payload: bytes) -> bool:
        """Queue `payload` and begin to send it. False if the outbox is full and refuses it.

        Never waits. Raises an OSError if the connection can send nothing more.
        """
        if self._output.link.changed:
            self._output.check_open()
        if not payload:
            return True
        if not self._lock.acquire(True):  # a signal handler has interrupted a post
            _start(self._offer_later, payload)
            return True
        attends = False
        try:
            try:
                attends, self._attended = not self._attended, True
                fits = attends or self._make_room_locked(_size(payload))
                if fits and not attends:
                    self._queue_locked(payload)
            finally:
                self._lock.release()
            if attends:
                self._attend(payload)
        except BaseException as error:
            if attends:  # else nobody would send what is posted later
                self._give_up(error)
            raise
        if not fits and self._when_full == DISCONNECT:
            self._disconnect()
        return fits or self._when_full == DROP

    def _offer_later(self, payload: bytes) -> None:
        with contextlib.suppress(OSError):  # the next post raises it
            self.offer(payload)

    def _queue_locked(self, message: Bytes) -> None:
        self.messages.append(message)
        self.queued += _size(message)

    def _make_room_locked(self, size: int) -> bool:
        """Whether a message of `size` bytes may be queued. Drops the oldest ones if it has to."""
        while self.messages and self.queued + size > self._max_bytes:
            if self._when_full != DROP or len(self.messages) == self._begun:
                self.dropped += self._when_full == DROP  # the new one
                return False
            self.queued -= _size(self.messages[self._begun])
            del self.messages[self._begun]
            self.dropped += 1
        return True

    def _disconnect(self) -> NoReturn:
        output, link = self._output, self._output.link
        error = link.error = self.full_error()
        output.break_off(error)
        self._drop_all()
        link.stop(error, hard=False)
        raise error

    def full_error(self) -> OutboxFullError:
        """Return the error of a post that finds the outbox full."""
        return OutboxFullError(self._output.link.peer, self.queued, self._max_bytes)

    # Sending

    def _attend(self, payload: bytes) -> None:
        """Send what the kernel takes at once, queue the rest, and have a thread send that."""
        is_begun = self._has_begun(payload)
        with self._lock:
            if not is_begun:
                self._queue_locked(payload)
            is_left = self._attended = bool(self.messages)
        if is_left:
            _start(self._run)

    def _has_begun(self, payload: bytes) -> bool:
        """Send what the kernel takes at once. If that is a part of `payload`, queue the rest.

        False if nothing of it could be sent.
        """
        output, link = self._output, self._output.link
        if not output.lock.acquire(False):  # another thread writes
            return False
        try:
            if link.writing or output.gathered:
                return False
            try:
                link.writing = IN_SOCKET
                if FREE_THREADED:  # pragma: no cover - free-threaded builds only
                    link.fence()
                if link.changed and output.is_over():
                    return False
                sent = link.transport.send_now(payload)
                link.bytes_written += sent
                if sent < len(payload) or self.messages or link.transport is not link.wire:
                    self._go_on(payload, sent)
            except OSError as error:
                raise link.failure(error) from None
            finally:
                link.writing = 0
            return sent > 0
        finally:
            output.lock.release()
            if link.changed or FREE_THREADED:  # without the lock, as in `Output.write`
                link.leave()

    def _go_on(self, payload: bytes, sent: int) -> None:
        """Do what is left to be done once `sent` bytes of `payload` have been sent."""
        if 0 < sent < len(payload):
            self._put_back(memoryview(payload)[sent:])
        elif sent and self.messages:
            self._send_others()
        if self._output.link.transport.owes():
            self._put_back(b"")

    def _send_others(self) -> None:
        """Send messages that other threads have posted meanwhile."""
        link = self._output.link
        for _ in range(len(self.messages)):
            sent = link.transport.send_now(self._first())
            link.bytes_written += sent
            if not self._note_sent(sent):
                return

    def _put_back(self, rest: Bytes) -> None:
        """Have `rest` sent before all other messages; if it is empty, what the transport owes."""
        with self._lock:
            self.messages.appendleft(rest)
            self.queued += _size(rest)
            self._begun += 1

    def _run(self) -> None:
        """Send what is queued: this is the outbox's own thread."""
        try:
            while self._is_attended():
                with self._output.held():
                    self._output.send_gathered()
                if self.messages:
                    time.sleep(PAUSE)
        except BaseException as error:
            self._give_up(error)

    def _is_attended(self) -> bool:
        """Whether anything is queued. If not, the calling thread no longer attends to the queue."""
        with self._lock:
            self._attended = bool(self.messages)
            return self._attended

    def send_all(self) -> None:
        """Send the messages that are queued now. The output must be `held`. Errors as of a write.

        After an error nothing is queued, and the output is broken; except that all stays queued if
        a deadline of the calling thread has passed before.
        """
        if self.messages:
            self._output.begin_write()
        for _ in range(len(self.messages)):
            message = self._first()
            try:
                if not self._output.is_over():
                    self._output.send(message)
            except BaseException as error:
                self._output.break_off(error)
                self._drop_all()
                raise
            self._note_sent(len(message))

    def _first(self) -> Bytes:
        """Return the first message, which is not dropped from now on; empty if there is none."""
        with self._lock:
            self._begun = max(1, self._begun)
            return self.messages[0] if self.messages else b""

    def _note_sent(self, sent: int) -> bool:
        """Take `sent` bytes of the first message out of the queue. Whether that is all of it."""
        with self._lock:
            if not self.messages:  # `_drop_all` was called meanwhile
                return False
            first = self.messages.popleft()
            self.queued -= _size(first)
            self._begun -= 1
        if sent < len(first):
            self._put_back(memoryview(first)[sent:])
        return sent == len(first)

    def _drop_all(self) -> None:
        with self._lock:
            self.messages.clear()
            self.queued = self._begun = 0

    def _give_up(self, error: BaseException) -> None:
        """End the connection, since `error` has ended the sending of what was posted.

        If the peer is gone, the thread that reads finds out by itself, after the rest of the input.
        """
        output, link = self._output, self._output.link
        if isinstance(error, OSError):
            link.error = error
        output.break_off(error)
        self._drop_all()
        self._is_attended()
        if isinstance(error, Exception) and not isinstance(error, ConnectionError):
            link.stop(link.broken, hard=False)

    def renew(self) -> None:
        """Forget all messages, in a forked child: the parent sends them."""
        output = self._output
        if self._attended:  # by a thread that may hold these locks, and is not in the child
            output.lock = threading.RLock()
            output.link.free_locks()
        self._clear()


def _size(message: Bytes) -> int:
    return max(len(message), LEAST)


def _start(function: Callable[..., object], *arguments: Any) -> None:
    """Call `function` in a new thread. OSError (ENOMEM) if none can be started."""
    try:
        _thread.start_new_thread(function, arguments)
    except RuntimeError as error:
        text = f"no thread can be started to send what is queued: {error}"
        raise OSError(errno.ENOMEM, text) from None


_outboxes: WeakSet[Outbox] = WeakSet()


def _renew_all() -> None:
    for outbox in tuple(_outboxes):
        outbox.renew()


call_in_children(_renew_all)
