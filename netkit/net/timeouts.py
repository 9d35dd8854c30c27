"""The time limits of one connection, and which of them has passed.

Rules:

1. The kernel ends a wait (SO_RCVTIMEO and SO_SNDTIMEO, socket(7)). No thread watches, and a message
   that arrives in one piece costs no further system call.
2. A message must be complete by one moment, however many pieces it arrives in. Before the wait for
   another piece, the kernel's timeout is lowered if it is longer than the time left.
3. The kernel's timeout may be too short, and never much too long: when it has passed, the timer
   looks up whether a limit has passed; if none has, the wait goes on.
4. After a signal, Python starts the kernel's wait anew, so a program's timer could postpone a limit
   forever. So in the main thread, where signals arrive, poll(2) waits first: Python continues that
   with the time left.
5. A deadline (`netkit.net.deadlines`) is one more limit, for the calls of one thread. After its
   block the kernel keeps the shorter timeout, by rule 3: the next block needs no system call.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

from ..core.options import TimeLimits
from ..core.record import NamedTuple
from . import sockopts
from .explain import timed_out
from .forks import call_in_children

# How much later than its moment a limit may be noticed (a share of the time left). Otherwise each
# piece of a message would cost a system call that makes the kernel's timeout a little shorter.
TOLERANCE = 0.1

_main_thread: int | None = None  # noted, since to ask for it would cost two calls for each call


def _note_main_thread() -> None:
    global _main_thread
    _main_thread = threading.main_thread().ident


_note_main_thread()
call_in_children(_note_main_thread)  # the main thread of a child is the one that has forked


class Due(NamedTuple):
    """When a limit passes, and which one."""

    at: float
    name: str
    limit: float
    thread: int | None = None
    """The thread whose calls the limit is for; None for any."""


class Timer:
    """The limits of one connection. One thread may receive while another one sends.

    A method raises TimeoutError, which names the limit, once a limit has passed.
    """

    # How many seconds `min_rate` is not applied for: the first packets are slow on any network.
    grace = 5.0

    __slots__ = (
        *("sock", "peer", "_clock", "_limits", "_step", "_kernel_receive", "_kernel_send"),
        *("_kernel_unacknowledged", "_longest", "_since", "_start", "_held", "_began"),
        *("_write_began", "_progress", "_written", "_is_prepared", "deadlines", "untouched"),
    )

    def __init__(
        self, sock: socket.socket, peer: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Without limits, until `set`."""
        self.sock = sock
        self.peer = peer
        self._clock = clock
        # The timeouts that the kernel has: a value that it has already costs no system call.
        self._kernel_receive: float | None = None
        self._kernel_send: float | None = None
        self._kernel_unacknowledged: float | None = None
        self._since = 0.0  # when the present wait for input began
        self._held = 0  # how many bytes of the present message have been received
        self._began = 0.0  # when it was first found to be incomplete
        # Of the blocks that have been entered, by any thread. `Link.lock` guards this.
        self.deadlines: tuple[Due, ...] = ()
        self.set(TimeLimits())

    def set(self, limits: TimeLimits, step: tuple[str, float] | None = None) -> None:
        """Replace all limits but the deadlines, by `step` unless it is None.

        `step` is one limit for all that is received and sent from now on, a TLS handshake or a
        close: the name for its TimeoutError, and seconds. No deadline applies to a close.
        """
        self._limits = limits if step is None else TimeLimits()
        self._start = -1  # where in the stream the present message begins
        self._step: Due | None = None
        self._longest: float | None = None  # the kernel's timeout for a message's first byte
        if step is None:
            self._longest = limits.idle_timeout or limits.read_timeout
            stall = limits.write_timeout or limits.idle_timeout or (limits.min_rate and self.grace)
            self._set_receive(self._longest)
            self._set_send(stall)
            if limits.write_timeout != self._kernel_unacknowledged:
                self._kernel_unacknowledged = limits.write_timeout
                sockopts.set_acknowledgement_timeout(self.sock, limits.write_timeout)
        else:
            name, seconds = step
            self._step = Due(self._clock() + seconds, name, seconds)
            self._set_receive(seconds)
            self._set_send(seconds)
        self._restart_write()

    def outlast_signals(self, writing: bool) -> None:
        """Call before each recv or send. BlockingIOError, as they raise it, after the timeout."""
        if threading.get_ident() != _main_thread:
            return
        seconds = self._kernel_send if writing else self._kernel_receive
        if seconds is not None and not sockopts.wait_until_ready(self.sock, writing, seconds):
            raise BlockingIOError

    def _set_receive(self, seconds: float | None) -> None:
        if seconds != self._kernel_receive:
            self._kernel_receive = seconds
            sockopts.limit_wait(self.sock, socket.SO_RCVTIMEO, seconds)

    def _set_send(self, seconds: float | None) -> None:
        if seconds != self._kernel_send:
            self._kernel_send = seconds
            sockopts.limit_wait(self.sock, socket.SO_SNDTIMEO, seconds)

    def acquire(self, lock: threading.RLock) -> bool:
        """Acquire `lock` before the deadlines of the calling thread have passed.

        False, and the lock is not acquired, if that thread has no deadline. TimeoutError.
        """
        if not self.deadlines:
            return False
        if lock.acquire(blocking=False):  # as nearly always
            return True
        due = min(self._bounds(), default=None)
        if due is not None and not lock.acquire(timeout=max(0.0, due.at - self._clock())):
            raise timed_out(due.name, due.limit, self.peer)
        return due is not None

    # Receiving

    def before_receive(self, start: int, held: int) -> None:
        """Prepare a wait for input.

        `held` is the number of bytes of an incomplete message that have been received, and `start`
        is where in the stream this message begins, which identifies it.
        """
        self._since = now = self._clock()
        self._held = held
        if not (held or self.deadlines) and self._kernel_receive == self._longest:
            return  # as nearly always
        if held and start != self._start:
            self._start, self._began = start, now
        due = self._due()
        if due is None:
            return
        left = self._left_to_receive(due, now)
        self._set_receive(_shortened(self._kernel_receive, due, left))

    def after_wait(self) -> None:
        """The kernel's timeout has passed. Unless a limit has, the caller waits again."""
        due = self._due()
        left = None if due is None else self._left_to_receive(due, self._clock())
        self._set_receive(left)

    def _due(self) -> Due | None:
        idle, read, _, rate = self._limits
        found = self._bounds()
        if idle is not None:
            found.append(Due(self._since + idle, "idle_timeout", idle))
        if read is not None and (self._held or idle is None):
            since = self._began if self._held else self._since
            found.append(Due(since + read, "read_timeout", read))
        if rate is not None and self._held:
            found.append(self._at_rate(self._began, self._held, rate))
        return min(found, default=None)

    def _bounds(self) -> list[Due]:
        """Return the limits for all that the calling thread receives and sends."""
        step, deadlines = self._step, self.deadlines
        found = [] if step is None else [step]
        if deadlines and (step is None or step.name != "close"):
            thread = threading.get_ident()
            found += [each for each in deadlines if each.thread == thread]
        return found

    def _left_to_receive(self, due: Due, now: float) -> float:
        if now >= due.at and due.name in ("read_timeout", "min_rate"):
            self._began = now  # a handler that catches the error may go on for as long again
        return self._left(due, now, writing=False)

    def _left(self, due: Due, now: float, writing: bool) -> float:
        if now < due.at:
            return due.at - now
        if not due.limit and sockopts.wait_until_ready(self.sock, writing, 0):
            return 0.0  # the call does not wait
        raise timed_out(due.name, due.limit, self.peer)

    # Sending

    def begin_write(self) -> None:
        """A write begins: its limits count from now on. TimeoutError if a deadline has passed."""
        self._restart_write()
        if self.deadlines:
            self.before_send()
            self._is_prepared = True

    def _restart_write(self) -> None:
        self._write_began = self._progress = self._clock()
        self._written = 0
        self._is_prepared = False  # for the first send
        self.untouched = False
        """Whether a limit of this write has passed before anything of it was sent."""

    def before_send(self) -> None:
        """Call before each send if there are `deadlines`: the kernel must not wait for longer."""
        if self._is_prepared:
            self._is_prepared = False
            return
        due = min(self._bounds(), default=None)
        if due is not None:
            left = self._left_to_send(due, self._clock())
            self._set_send(_shortened(self._kernel_send, due, left))

    def after_stall(self) -> None:
        """Nothing could be sent within the kernel's timeout. Unless a limit has passed, go on."""
        idle, _, write, rate = self._limits
        found = self._bounds()
        if write is not None:
            found.append(Due(self._progress + write, "write_timeout", write))
        elif idle is not None:
            found.append(Due(self._progress + idle, "idle_timeout", idle))
        if rate is not None:
            found.append(self._at_rate(self._write_began, self._written, rate))
        due = min(found, default=None)
        self._set_send(None if due is None else self._left_to_send(due, self._clock()))

    def after_send(self, sent: int, size: int) -> None:
        """`sent` of `size` bytes have been sent."""
        self._written += sent
        if sent < size:
            self._progress = self._clock()
            self.after_stall()

    def _left_to_send(self, due: Due, now: float) -> float:
        self.untouched = not self._written and due is not self._step
        return self._left(due, now, writing=True)

    def _at_rate(self, began: float, size: int, rate: float) -> Due:
        return Due(began + self.grace + size / rate, "min_rate", rate)


def _shortened(timeout: float | None, due: Due, left: float) -> float | None:
    """Return the kernel's `timeout`, or a shorter one if it is much longer than `left`."""
    longest = left * (1 + TOLERANCE)
    if timeout is not None and timeout <= longest:
        return timeout
    return due.limit if due.limit <= longest else left
