"""One point in time shared by the steps of an operation.

A timeout that is handed from step to step starts anew at each of them; a deadline does not.
"""

from __future__ import annotations

import time
from collections.abc import Callable

# The longest wait that poll(2) and epoll_wait(2) take, milliseconds in a C int (seconds): 24 days.
LONGEST_WAIT = (2**31 - 1) // 1000


def wait_time(seconds: float | None) -> float | None:
    """What of `seconds` can be waited for at once; None: for ever.

    So a wait that is over may have been too short, and who asks looks whether it was.
    """
    return None if seconds is None else min(seconds, LONGEST_WAIT)


class Deadline:
    """A moment on the monotonic clock, `timeout` seconds from now; None: never.

    Immutable, so it may be shared between threads. `clock` is there for tests.
    """

    __slots__ = ("_at", "_clock")

    def __init__(self, timeout: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at = None if timeout is None else clock() + timeout

    def remaining(self) -> float | None:
        """Seconds left, 0.0 once it has passed, None where it never does."""
        return None if self._at is None else max(0.0, self._at - self._clock())

    def expired(self) -> bool:
        """Whether the moment has come."""
        return self._at is not None and self._clock() >= self._at

    def earlier(self, other: Deadline) -> Deadline:
        """Whichever of the two comes first."""
        if self._at is None or (other._at is not None and other._at < self._at):
            return other
        return self
