"""The time limits of one connection, and which of them has passed.

Rules:

1. The kernel ends a wait (SO_RCVTIMEO and SO_SNDTIMEO, socket(7)): no thread watches, and in the
   common case, a message that comes in one piece, no read and no write costs a further call.
2. A message has a moment by which it must be there, however many pieces it comes in. Before the
   wait for another piece, the kernel's time is made shorter if it is longer than what is left.
3. The kernel's time may be too short, never much too long: when it is over, it is looked up here
   whether a limit has passed; if none has, the wait goes on.
4. After a signal Python begins the kernel's wait anew: a timer could put off a limit for ever. So
   where signals arrive, in the main thread, poll(2) waits first: it goes on with what is left.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from ..core.options import TimeLimits
from . import sockopts
from .forks import call_in_children

# What a peer gets before its rate counts (seconds): the first packets are slow on any network.
RATE_GRACE = 5.0

# How much later than its moment a limit may be noticed (a share of what is left): else each piece
# of a message would cost a call to make the kernel's time a little shorter.
TOLERANCE = 0.1


_TEXTS = {
    "idle_timeout": "nothing received from {peer} for {seconds}",
    "read_timeout": "no whole message from {peer} within {seconds}",
    "write_timeout": "nothing could be sent to {peer} for {seconds}",
    "min_rate": "{peer} is slower than {limit:g} bytes a second",
    "handshake_timeout": "no TLS handshake with {peer} within {seconds}",
    "close": "{peer} has not taken the rest within {seconds}",
    "lifetime": "the connection to {peer} has lasted {seconds}",
}


def timed_out(name: str, limit: float, peer: str) -> TimeoutError:
    """The error that says which limit has passed."""
    text = _TEXTS[name].format(limit=limit, seconds=in_seconds(limit), peer=peer)
    return TimeoutError(errno.ETIMEDOUT, f"{name}: {text}")


def unacknowledged(error: OSError, limit: float, peer: str) -> OSError:
    """The error that names `write_timeout`, if `error` is the kernel's word for that."""
    if error.strerror not in _GIVEN_UP:
        return error
    text = f"{peer} has acknowledged nothing for {in_seconds(limit)}"
    return TimeoutError(errno.ETIMEDOUT, f"write_timeout: {text}")


def in_seconds(number: float) -> str:
    """``1 second``, ``0.5 seconds``."""
    return f"{number:g} second{'' if number == 1 else 's'}"


# What the kernel says when it gives up a connection: the last that the network has told it, if it
# has. (By their texts, since other errors have these numbers and say more.)
_GIVEN_UP = {os.strerror(n) for n in (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)}

_main_thread: int | None = None


def _note_main_thread() -> None:
    global _main_thread
    _main_thread = threading.main_thread().ident


_note_main_thread()
call_in_children(_note_main_thread)  # it is the one that has forked


class _Due(NamedTuple):
    """When a limit passes, and which."""

    at: float
    name: str
    limit: float


class Timer:
    """Keeps the limits of one connection. One thread may receive while another one sends.

    Its methods raise TimeoutError, naming the limit, once one has passed.
    """

    __slots__ = (
        *("_sock", "_limits", "_peer", "_clock", "_longest", "_since", "_place", "_held", "_began"),
        *("_kernels", "_kernels_send", "_kernels_unacknowledged"),
    )

    def __init__(
        self,
        sock: socket.socket,
        limits: TimeLimits,
        peer: str,
        former: Timer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """For a blocking socket, whose kernel timeouts are this one's from now on.

        `former`: the one whose they were so far.
        """
        self._take_over(sock, peer, former, clock)
        self._limits = limits
        self._since = 0.0  # when this wait has begun
        self._place = -1  # where in the stream the present message begins
        self._held = 0  # how many bytes of it are there
        self._began = 0.0  # when its first bytes were found to be not all of it
        self._longest = limits.idle_timeout or limits.read_timeout  # for a message's first byte
        self._set_wait(self._longest)
        stall = self._stall()
        self._set_send_wait(stall.limit if stall else limits.min_rate and RATE_GRACE)
        self._set_unacknowledged(limits.write_timeout)

    def _take_over(
        self, sock: socket.socket, peer: str, former: Timer | None, clock: Callable[[], float]
    ) -> None:
        self._sock = sock
        self._peer = peer
        self._clock = clock
        # What the kernel gives a wait for input, one for room to send, and what has been sent.
        self._kernels: float | None = former._kernels if former else None
        self._kernels_send: float | None = former._kernels_send if former else None
        self._kernels_unacknowledged: float | None = (
            former._kernels_unacknowledged if former else None
        )

    def release(self) -> None:
        """There are no limits any more: the kernel ends no wait."""
        self._set_wait(None)
        self._set_send_wait(None)
        self._set_unacknowledged(None)

    def outlast_signals(self, writing: bool) -> None:
        """To be called before each recv or send. BlockingIOError, as of those, after its time."""
        if threading.get_ident() != _main_thread:
            return
        seconds = self._kernels_send if writing else self._kernels
        if seconds is not None and not sockopts.wait_until_ready(self._sock, writing, seconds):
            raise BlockingIOError

    # Receiving

    def before_receive(self, place: int, held: int) -> None:
        """A wait for input is about to begin. `held`: bytes of an unfinished message there are.

        `place`: where in the stream that message begins, which tells it from the one before.
        """
        self._since = now = self._clock()
        self._held = held
        if not held and self._kernels == self._longest:  # as nearly always
            return
        if held and place != self._place:
            self._place, self._began = place, now
        due = self._due()
        if due is None:
            return
        left = self._left_to_receive(due, now)
        longest = left * (1 + TOLERANCE)
        if self._kernels is None or self._kernels > longest:
            self._set_wait(due.limit if due.limit <= longest else left)

    def after_wait(self) -> None:
        """The kernel has ended the wait; unless a limit has passed, try again."""
        due = self._due()
        self._set_wait(None if due is None else self._left_to_receive(due, self._clock()))

    def _due(self) -> _Due | None:
        idle, read, _, rate = self._limits
        found = []
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
            self._began = now  # a handler that catches the error gives it its time anew
        return self._left(due, now)

    def _left(self, due: _Due, now: float) -> float:
        if now >= due.at:
            raise timed_out(due.name, due.limit, self._peer)
        return due.at - now

    def _set_wait(self, seconds: float | None) -> None:
        if seconds != self._kernels:
            self._kernels = seconds
            sockopts.set_receive_timeout(self._sock, seconds)

    # Sending

    def _set_send_wait(self, seconds: float | None) -> None:
        if seconds != self._kernels_send:
            self._kernels_send = seconds
            sockopts.set_send_timeout(self._sock, seconds)

    def _set_unacknowledged(self, seconds: float | None) -> None:
        if seconds != self._kernels_unacknowledged:
            self._kernels_unacknowledged = seconds
            sockopts.set_acknowledgement_timeout(self._sock, seconds)

    def _stall(self) -> _Due | None:
        for name in ("write_timeout", "idle_timeout"):
            limit = getattr(self._limits, name)
            if limit is not None:
                return _Due(0.0, name, limit)
        return None

    def now(self) -> float:
        """When a write begins, for `after_send`."""
        return self._clock()

    def after_send(self, began: float, sent: int, stalled: bool) -> None:
        """Of a write that `began`, so much has been sent, and there is more.

        `stalled`: none of it within the kernel's time.
        """
        stall = self._stall()
        if stalled and stall is not None:
            raise timed_out(stall.name, stall.limit, self._peer)
        if self._limits.min_rate is not None:
            self._left(self._at_rate(began, sent, self._limits.min_rate), self._clock())

    def _at_rate(self, began: float, size: int, rate: float) -> _Due:
        return _Due(began + RATE_GRACE + size / rate, "min_rate", rate)


class HandshakeTimer(Timer):
    """Keeps one limit only, that of a whole TLS handshake, or of a close, from now on."""

    __slots__ = ("_end",)

    def __init__(
        self,
        sock: socket.socket,
        seconds: float,
        peer: str,
        former: Timer | None = None,
        clock: Callable[[], float] = time.monotonic,
        name: str = "handshake_timeout",
    ) -> None:
        self._take_over(sock, peer, former, clock)  # and none of a `Timer`'s limits
        self._end = _Due(clock() + seconds, name, seconds)
        self._set_wait(seconds)
        self._set_send_wait(seconds)

    def before_receive(self, place: int, held: int) -> None:
        """As of any `Timer`."""
        left = self._left(self._end, self._clock())
        if self._kernels is None or self._kernels > left * (1 + TOLERANCE):
            self._set_wait(left)

    def _due(self) -> _Due:
        return self._end

    def after_send(self, began: float, sent: int, stalled: bool) -> None:
        """As of any `Timer`."""
        self._set_send_wait(self._left(self._end, self._clock()))
