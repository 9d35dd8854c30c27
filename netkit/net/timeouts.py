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
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import NoReturn

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


class _Due(NamedTuple):
    """When a limit passes, and which one."""

    at: float
    name: str
    limit: float


class Timer:
    """The limits of one connection. One thread may receive while another one sends.

    A method raises TimeoutError, which names the limit, once a limit has passed.
    """

    # How many seconds `min_rate` is not applied for: the first packets are slow on any network.
    grace = 5.0

    __slots__ = (
        *("sock", "_peer", "_clock", "_limits", "_step", "_kernel_receive", "_kernel_send"),
        *("_kernel_unacknowledged", "_longest", "_since", "_start", "_held", "_began"),
        *("_write_began", "_written", "untouched"),
    )

    def __init__(
        self, sock: socket.socket, peer: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Without limits, until `set`."""
        self.sock = sock
        self._peer = peer
        self._clock = clock
        # The timeouts that the kernel has: a value that it has already costs no system call.
        self._kernel_receive: float | None = None
        self._kernel_send: float | None = None
        self._kernel_unacknowledged: float | None = None
        self._since = 0.0  # when the present wait for input began
        self._held = 0  # how many bytes of the present message have been received
        self._began = 0.0  # when it was first found to be incomplete
        self.set(TimeLimits())

    def set(self, limits: TimeLimits, step: tuple[str, float] | None = None) -> None:
        """Replace all limits, by `step` unless it is None.

        `step` is one limit for all that is received and sent from now on, a TLS handshake or a
        close: the name for its TimeoutError, and seconds.
        """
        self._limits = limits if step is None else TimeLimits()
        self._start = -1  # where in the stream the present message begins
        self._step: _Due | None = None
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
            self._step = _Due(self._clock() + seconds, name, seconds)
            self._set_receive(seconds)
            self._set_send(seconds)
        self.begin_write()

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

    # Receiving

    def before_receive(self, start: int, held: int) -> None:
        """Prepare a wait for input.

        `held` is the number of bytes of an incomplete message that have been received, and `start`
        is where in the stream this message begins, which identifies it.
        """
        self._since = now = self._clock()
        self._held = held
        if not held and self._kernel_receive == self._longest:  # as nearly always
            return
        if held and start != self._start:
            self._start, self._began = start, now
        due = self._due()
        if due is None:
            return
        left = self._left_to_receive(due, now)
        longest = left * (1 + TOLERANCE)
        if self._kernel_receive is None or self._kernel_receive > longest:
            self._set_receive(due.limit if due.limit <= longest else left)

    def after_wait(self) -> None:
        """The kernel's timeout has passed. Unless a limit has, the caller waits again."""
        due = self._due()
        left = None if due is None else self._left_to_receive(due, self._clock())
        self._set_receive(left)

    def _due(self) -> _Due | None:
        idle, read, _, rate = self._limits
        found = [] if self._step is None else [self._step]
        if idle is not None:
            found.append(_Due(self._since + idle, "idle_timeout", idle))
        if read is not None and (self._held or idle is None):
            since = self._began if self._held else self._since
            found.append(_Due(since + read, "read_timeout", read))
        if rate is not None and self._held:
            found.append(self._at_rate(self._began, self._held, rate))
        return min(found, default=None)

    def _left_to_receive(self, due: _Due, now: float) -> float:
        if now >= due.at and due.name != "idle_timeout":
            self._began = now  # a handler that catches the error may go on for as long again
        return self._left(due, now)

    def _left(self, due: _Due, now: float) -> float:
        if now >= due.at:
            raise timed_out(due.name, due.limit, self._peer)
        return due.at - now

    # Sending

    def begin_write(self) -> None:
        """A write begins: its limits count from now on."""
        self._write_began = self._clock()
        self._written = 0
        self.untouched = False
        """Whether a limit of this write has passed before anything of it was sent."""

    def after_stall(self) -> None:
        """Nothing could be sent within the kernel's timeout. Unless a limit has passed, go on."""
        if self._step is None:
            for name in ("write_timeout", "idle_timeout"):
                limit = getattr(self._limits, name)
                if limit is not None:
                    self._fail_write(name, limit)
        self._check_write()

    def after_send(self, sent: int, size: int) -> None:
        """`sent` of `size` bytes have been sent."""
        self._written += sent
        if sent < size:
            self._check_write()

    def _check_write(self) -> None:
        rate = self._limits.min_rate
        if self._step is not None:
            self._set_send(self._left(self._step, self._clock()))
        elif rate is not None:
            due = self._at_rate(self._write_began, self._written, rate)
            if self._clock() >= due.at:
                self._fail_write(due.name, due.limit)

    def _fail_write(self, name: str, limit: float) -> NoReturn:
        self.untouched = not self._written
        raise timed_out(name, limit, self._peer)

    def _at_rate(self, began: float, size: int, rate: float) -> _Due:
        return _Due(began + self.grace + size / rate, "min_rate", rate)
