"""Numbers connections, so that each number is unique among all worker processes.

The processes share an open file, whose offset is the last number. The kernel changes the offset of
a shared file atomically (lseek(2)). So there is no lock that a killed process could leave behind.
"""

from __future__ import annotations

import os
from typing import Any

from .semaphore import shared_memory


class SharedNumbers:
    """Counts 1, 2, 3, ... for any number of threads and processes together.

    Holds a descriptor until `close`. Can be sent to a process that is being started.
    """

    def __init__(self) -> None:
        """OSError if the system has no descriptor left."""
        self._file = shared_memory(0)

    def take(self) -> int:
        """The next number."""
        return os.lseek(self._file, 1, os.SEEK_CUR)

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
