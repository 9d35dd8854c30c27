"""A deadline: one point in time for all steps of an operation.

A timeout begins anew in each step that it is passed to. A deadline does not.
"""

from __future__ import annotations

import time
from collections.abc import Callable

# The longest wait of poll(2) and epoll_wait(2), in seconds: a C int of milliseconds, 24 days.
LONGEST_WAIT = (2**31 - 1) // 1000


def wait_time(seconds: float | None) -> float | None:
    """Return the part of `seconds` that one wait can take; None is a wait without limit.

    So a wait may end too early, and the caller must check whether the time is over.
    """
    return None if seconds is None else min(seconds, LONGEST_WAIT)


class Deadline:
    """A point in time, `timeout` seconds from now by the monotonic clock, or never if that is None.

    Immutable, so threads may share it. `at` is that point, None for never. Tests pass a `clock` of
    their own.
    """

    __slots__ = ("_clock", "at")

    def __init__(self, timeout: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.at: float | None = None if timeout is None else clock() + timeout

    def remaining(self) -> float | None:
        """Return the seconds left: 0.0 after the deadline, None if there is none."""
        return None if self.at is None else max(0.0, self.at - self._clock())

    def expired(self) -> bool:
        """Whether the deadline has passed."""
        return self.at is not None and self._clock() >= self.at

    def earlier(self, other: Deadline) -> Deadline:
        """Return the earlier one of the two."""
        if self.at is None or (other.at is not None and other.at < self.at):
            return other
        return self
