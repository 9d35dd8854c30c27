"""A lock that a signal handler does not wait for."""

from __future__ import annotations

import threading

INTERRUPTED = "a signal handler cannot use TLS while the thread that it has interrupted does"


class Exclusive:
    """A lock for ``with``. RuntimeError in a signal handler that has interrupted its holder.

    So the lock is re-entrant, and `is_held` shows that a thread holds it.
    """

    __slots__ = ("_acquire", "_release", "_text", "is_held")

    def __init__(self, text: str = INTERRUPTED) -> None:
        """`text` is that of the RuntimeError."""
        self._text = text
        lock = threading.RLock()
        self._acquire, self._release = lock.acquire, lock.release
        self.is_held = False

    def __enter__(self) -> None:  # without a call of `acquire`: this runs for each read and write
        self._acquire()
        if self.is_held:
            self._release()
            raise RuntimeError(self._text)
        self.is_held = True

    def __exit__(self, _kind: object, _error: object, _traceback: object) -> None:
        self.is_held = False
        self._release()

    def acquire(self, blocking: bool) -> bool:
        """Acquire the lock and return True. Returns False if this thread holds it already.

        Without `blocking` it also returns False if another thread holds the lock.
        """
        if not self._acquire(blocking):
            return False
        if self.is_held:
            self._release()
            return False
        self.is_held = True
        return True

    def release(self) -> None:
        self.is_held = False
        self._release()

    def is_interrupted(self) -> bool:
        """Whether this runs in a signal handler that has interrupted the thread that holds it."""
        acquired = self._acquire(blocking=False)
        if acquired:
            self._release()
        return acquired and self.is_held
