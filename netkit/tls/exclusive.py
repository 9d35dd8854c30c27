"""A lock that a signal handler does not wait for."""

from __future__ import annotations

import threading

INTERRUPTED = "a signal handler cannot use TLS while the thread that it has interrupted does"


class Exclusive:
    """A lock for ``with``. RuntimeError in a signal handler that has interrupted its holder.

    So the lock is re-entrant, and `is_held` shows that a thread holds it.
    """

    __slots__ = ("_lock", "is_held")

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.is_held = False

    def __enter__(self) -> None:
        if not self.acquire(blocking=True):
            raise RuntimeError(INTERRUPTED)

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire(self, blocking: bool) -> bool:
        """Acquire the lock and return True. Returns False if this thread holds it already.

        Without `blocking` it also returns False if another thread holds the lock.
        """
        if not self._lock.acquire(blocking):
            return False
        if self.is_held:
            self._lock.release()
            return False
        self.is_held = True
        return True

    def release(self) -> None:
        """Release the lock."""
        self.is_held = False
        self._lock.release()

    def is_interrupted(self) -> bool:
        """Whether this runs in a signal handler that has interrupted the thread that holds it."""
        acquired = self._lock.acquire(blocking=False)
        if acquired:
            self._lock.release()
        return acquired and self.is_held
