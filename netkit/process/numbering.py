"""Numbers connections, so that each number is unique among all worker processes.

The processes share an open file, whose offset is the last number. Linux does not promise that two
calls of lseek(2) at once move the offset twice, so a thread that takes a number holds a record lock
(fcntl(2)). The kernel releases the lock of a process that is killed.
"""

from __future__ import annotations

import os
import threading
from typing import Any

from ..net.forks import free_in_children
from .semaphore import shared_memory

# A record lock excludes other processes, and this lock the other threads of this one. Re-entrant,
# since a signal handler may connect.
_lock = free_in_children(threading.RLock())


class SharedNumbers:
    """Counts 1, 2, 3, ... for any number of threads and processes together.

    Holds a descriptor until `close`. Can be sent to a process that is being started.
    """

    def __init__(self) -> None:
        """OSError if the system has no descriptor left."""
        self._file = shared_memory(0)

    def take(self) -> int:
        """The next number."""
        import fcntl  # here because Windows has none

        with _lock:
            fcntl.lockf(self._file, fcntl.LOCK_EX)
            try:
                return os.lseek(self._file, 1, os.SEEK_CUR)
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the descriptor. Idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __reduce__(self) -> tuple[Any, ...]:
        from multiprocessing.reduction import DupFd  # here because most programs have one process

        return _rebuilt, (DupFd(self._file),)


def _rebuilt(descriptor: Any) -> SharedNumbers:
    numbers = SharedNumbers.__new__(SharedNumbers)
    numbers._file = descriptor.detach()
    return numbers
