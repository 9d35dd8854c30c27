"""What worker processes share: the places for connections, and the numbers of connections.

**Places.** A pipe holds a byte for each free place. A worker takes a place by reading a byte, and
gives it back by writing one. The kernel gives no byte to two workers, and a wait for a place is a
wait for the pipe. Each worker has a cell in shared memory, and writes there how many places it has
taken, so that the parent can give back the places of a killed worker. A worker may be killed
between the change of the pipe and that of its cell. So the parent counts all places while no worker
is between the two changes, and gives back those that are missing. A handler may take over a worker.
Whatever the worker does to the pipe and to the memory then, the parent neither waits nor fails.

**Numbers.** An open file has the last number as its offset. Linux does not promise that two calls
of lseek(2) at once move the offset twice, so a thread that takes a number holds a record lock
(fcntl(2)). The kernel releases the lock of a process that is killed.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import select
import struct
import sys
import tempfile
import threading
import time
from typing import Any

from ..core.cores import MAX_WORKERS
from ..net.forks import renew_in_children
from .channel import duplicates

MAX_PLACES = 65536  # what a pipe holds (pipe(7)), unless its user has very many of them

# A cell is two numbers of 8 bytes: how many places the worker has taken, and how often it has begun
# or ended a change of that number. So the second number is odd during a change. After the cells, of
# which there are two for each worker because of reloads, comes the number of all places, plus 1.
_LIMIT = MAX_WORKERS * 2 * 2
_MEMORY = (_LIMIT + 1) * 8
# How often the parent tries to count the places while no worker changes them, and how long it waits
# in between (seconds).
_TRIES, _PAUSE = 50, 0.001

# A record lock excludes other processes, and this lock the other threads of this one. Re-entrant,
# since a signal handler may connect.
_lock = threading.RLock()
renew_in_children(sys.modules[__name__], "_lock")


def check_places(limit: int | None) -> None:
    """ValueError if `max_connections` is more than worker processes can share."""
    if limit is not None and limit > MAX_PLACES:
        raise ValueError(
            f"max_connections must be at most {MAX_PLACES} where workers share it, not {limit}"
        )


class SharedPlaces:
    """The places for connections of all workers together. For one thread at a time.

    `index` is the number of the worker that uses the object. Holds three descriptors until `close`.
    Can be sent to a process that is being started.
    """

    index = 0

    def __init__(self, limit: int | None) -> None:
        """Make `limit` places, as by `open`, unless it is None."""
        self._hold(*os.pipe(), _shared_memory(_MEMORY))
        if limit is not None:
            try:
                self.open(limit)
            except OSError:
                self.close()
                raise

    def open(self, limit: int) -> None:
        """Make `limit` places, unless any process has made places already.

        OSError if no pipe can hold so many.
        """
        import fcntl  # here because Windows has none

        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            if not self._cells[_LIMIT]:
                self._give(limit)
                self._cells[_LIMIT] = limit + 1
        except BlockingIOError:
            text = f"no pipe for the {limit} places (max_connections) that workers share"
            raise OSError(errno.ENOBUFS, text) from None
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)

    def _limit(self) -> int:
        return int(self._cells[_LIMIT]) - 1

    def _hold(self, reader: int, writer: int, file: int) -> None:
        self._reader, self._writer, self._file = reader, writer, file
        for descriptor in (reader, writer):
            os.set_blocking(descriptor, False)
        self._cells = memoryview(mmap.mmap(file, _MEMORY)).cast("Q")

    def __reduce__(self) -> tuple[Any, ...]:
        return _places, (self.index, *duplicates(self._reader, self._writer, self._file))

    def take(self) -> bool:
        """Take a place. Return False if no place is free."""
        cells, cell = self._cells, 2 * self.index
        cells[cell + 1] += 1
        try:
            os.read(self._reader, 1)
            cells[cell] += 1
            return True
        except BlockingIOError:
            return False
        finally:
            cells[cell + 1] += 1

    def give_back(self) -> None:
        cells, cell = self._cells, 2 * self.index
        cells[cell + 1] += 1
        try:
            cells[cell] -= 1
            self._give(1)
        finally:
            cells[cell + 1] += 1

    def any_free(self) -> bool:
        return _is_ready(self._reader, select.POLLIN)

    def fileno(self) -> int:
        """A descriptor that is readable while there is a free place."""
        return self._reader

    def reclaim(self, index: int) -> None:
        """Give back all places of a worker that has ended. For the parent.

        Waits for at most 50 milliseconds, if other workers change the places all the time.
        """
        taken = self._cells[2 * index]
        self._cells[2 * index] = self._cells[2 * index + 1] = 0
        for _ in range(_TRIES):
            missing = self._missing()
            if missing is not None:
                break
            time.sleep(_PAUSE)
        else:
            missing = min(taken, self._limit() - self._count_free())
        with contextlib.suppress(BlockingIOError):  # a worker has filled the pipe
            self._give(missing)

    def _missing(self) -> int | None:
        """Count the places that are lost. None if a worker has changed the places meanwhile."""
        before = self._cells[:_LIMIT].tolist()
        free = self._count_free()
        if self._cells[:_LIMIT].tolist() != before or any(changes % 2 for changes in before[1::2]):
            return None
        return self._limit() - free - sum(before[::2])

    def _count_free(self) -> int:
        import fcntl  # here because Windows has none
        import termios

        (free,) = struct.unpack("@i", fcntl.ioctl(self._reader, termios.FIONREAD, bytes(4)))
        return int(free)

    def _give(self, places: int) -> None:
        """BlockingIOError if the pipe is full, even if a worker has made the pipe blocking."""
        while places > 0:
            if not _is_ready(self._writer, select.POLLOUT):
                raise BlockingIOError(errno.EAGAIN, "the pipe is full")
            places -= os.write(self._writer, bytes(min(places, select.PIPE_BUF)))

    def close(self) -> None:
        self._cells.release()
        for descriptor in (self._reader, self._writer, self._file):
            os.close(descriptor)


class SharedNumbers:
    """Counts 1, 2, 3, ... for any number of threads and processes together.

    Holds a descriptor until `close`, which is idempotent. Can be sent to a process that is being
    started.
    """

    def __init__(self) -> None:
        """OSError if the system has no descriptor left."""
        self._file = _shared_memory(0)

    def __reduce__(self) -> tuple[Any, ...]:
        return _numbers, duplicates(self._file)

    def take(self) -> int:
        import fcntl  # here because Windows has none

        with _lock:
            fcntl.lockf(self._file, fcntl.LOCK_EX)
            try:
                return os.lseek(self._file, 1, os.SEEK_CUR)
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _is_ready(descriptor: int, event: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, event)
    return bool(poll.poll(0))


def _places(index: int, *descriptors: Any) -> SharedPlaces:
    places = SharedPlaces.__new__(SharedPlaces)
    places.index = index
    places._hold(*(each.detach() for each in descriptors))
    return places


def _numbers(descriptor: Any) -> SharedNumbers:
    numbers = SharedNumbers.__new__(SharedNumbers)
    numbers._file = descriptor.detach()
    return numbers


def _shared_memory(size: int) -> int:
    """Return a descriptor of shared memory, which holds zeros. No process can change its size."""
    if hasattr(os, "memfd_create"):  # pragma: no branch - not Linux
        import fcntl

        file = os.memfd_create("netkit", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(file, size)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        return file
    with tempfile.TemporaryFile() as temporary:  # pragma: no cover - not Linux
        os.ftruncate(temporary.fileno(), size)
        return os.dup(temporary.fileno())
