"""A semaphore of worker processes: the places for connections in all of them together.

A pipe holds a byte for each free place. A worker takes a place by reading a byte, and gives it back
by writing one. The kernel gives no byte to two workers, and a wait for a place is a wait for the
pipe. Each worker has a cell in shared memory, and writes there how many places it has taken. So the
parent can give back the places of a killed worker, and never too many. A worker may be killed
between the change of the pipe and that of its cell. So the parent then counts all places, while no
other worker is between the two changes, and gives back those that are missing.

A handler may take over a worker. Whatever the worker does to the pipe and to the memory then, the
parent neither waits nor fails.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import select
import struct
import tempfile
from typing import Any

from ..core.cores import MAX_WORKERS
from ..core.errors import WorkersFailedError

MAX_PLACES = 65536  # what a pipe holds (pipe(7)), unless its user has very many of them

# How many places one worker has taken, and how often it has begun or ended a change of that number.
# So the second number is odd during a change.
_CELL = struct.Struct("@II")
_CELLS = MAX_WORKERS * 2
_MAX = 2**32 - 1
_LOOKS = 50  # how often the parent tries to count while no worker changes anything


def check_places(limit: int | None) -> None:
    """ValueError if `max_connections` is more than worker processes can share."""
    if limit is not None and limit > MAX_PLACES:
        raise ValueError(
            f"max_connections must be at most {MAX_PLACES} where workers share it, not {limit}"
        )


class SharedPlaces:
    """The places. `index` is the number of the worker that uses it. For one thread at a time.

    Holds three descriptors until `close`. Can be sent to a process that is being started.
    """

    def __init__(self, limit: int) -> None:
        """`limit`: at most `MAX_PLACES`. OSError if the system gives no pipe that holds so many."""
        self.index = 0
        self.uncertain = False
        """Whether places may be missing: see `recount`."""
        self._limit = limit
        self._reader, self._writer = os.pipe()
        self._file = shared_memory(_CELLS * _CELL.size)
        self._open()
        try:
            self._give(limit)
        except BlockingIOError:
            self.close()
            text = f"no pipe for the {limit} places (max_connections) that workers share"
            raise OSError(errno.ENOBUFS, text) from None

    def _open(self) -> None:
        for descriptor in (self._reader, self._writer):
            os.set_blocking(descriptor, False)
        self._taken = mmap.mmap(self._file, _CELLS * _CELL.size)

    def __reduce__(self) -> tuple[Any, ...]:
        from multiprocessing.reduction import DupFd  # which only a process being started needs

        descriptors = (self._reader, self._writer, self._file)
        return _rebuilt, (self.index, *map(DupFd, descriptors))

    def take(self) -> bool:
        """Take a place; False if there is none."""
        taken, changes = self._cell(self.index)
        self._note(self.index, taken, changes + 1)
        try:
            os.read(self._reader, 1)
            taken += 1
            return True
        except BlockingIOError:
            return False
        finally:
            self._note(self.index, taken, changes + 2)

    def give_back(self) -> None:
        """Give a place back."""
        taken, changes = self._cell(self.index)
        self._note(self.index, taken, changes + 1)
        try:
            self._note(self.index, taken - 1, changes + 1)
            self._give(1)
        finally:
            self._note(self.index, taken - 1, changes + 2)

    def any_free(self) -> bool:
        """Whether there is a free place."""
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        return bool(poll.poll(0))

    def fileno(self) -> int:
        """A descriptor that is readable while there is a free place."""
        return self._reader

    def reclaim(self, index: int) -> None:
        """Give back all places of a worker that has ended. For the parent."""
        taken, changes = self._cell(index)
        self._note(index, 0, changes + changes % 2)
        self._give_missing(taken)
        self.uncertain = True
        self.recount()

    def recount(self) -> None:
        """If it is `uncertain`, count all places, and give back those that are missing.

        It stays uncertain as long as other workers change it all the time. For the parent.
        """
        for _ in range(_LOOKS if self.uncertain else 0):
            before = self._taken[:]
            free = self._count_free()
            cells = list(_CELL.iter_unpack(before))
            if self._taken[:] == before and not any(changes % 2 for _, changes in cells):
                self._give_missing(self._limit - free - sum(taken for taken, _ in cells))
                self.uncertain = False
                return

    def _count_free(self) -> int:
        import fcntl  # not on Windows
        import termios

        (free,) = struct.unpack("@i", fcntl.ioctl(self._reader, termios.FIONREAD, bytes(4)))
        return int(free)

    def _give_missing(self, places: int) -> None:
        """Give `places` back, but no more than can be missing: a cell may hold any number."""
        with contextlib.suppress(BlockingIOError):
            self._give(min(places, self._limit - self._count_free()))

    def _cell(self, index: int) -> tuple[int, int]:
        taken, changes = _CELL.unpack_from(self._taken, index * _CELL.size)
        return taken, changes

    def _note(self, index: int, taken: int, changes: int) -> None:
        _CELL.pack_into(self._taken, index * _CELL.size, taken & _MAX, changes & _MAX)

    def _give(self, places: int) -> None:
        """BlockingIOError if the pipe is full, even if a worker has made the pipe blocking."""
        poll = select.poll()
        poll.register(self._writer, select.POLLOUT)
        while places > 0:
            if not poll.poll(0):
                raise BlockingIOError(errno.EAGAIN, "the pipe is full")
            places -= os.write(self._writer, bytes(min(places, select.PIPE_BUF)))

    def close(self) -> None:
        """Close the descriptors."""
        self._taken.close()
        for descriptor in (self._reader, self._writer, self._file):
            os.close(descriptor)


def shared_places(limit: int) -> SharedPlaces:
    """Return `limit` places. WorkersFailedError if the system does not have them."""
    try:
        return SharedPlaces(limit)
    except OSError as error:
        raise WorkersFailedError(error.strerror) from None


def shared_memory(size: int) -> int:
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


def _rebuilt(index: int, *descriptors: Any) -> SharedPlaces:
    places = SharedPlaces.__new__(SharedPlaces)
    places.index, places.uncertain, places._limit = index, False, MAX_PLACES
    places._reader, places._writer, places._file = (each.detach() for each in descriptors)
    places._open()
    return places
