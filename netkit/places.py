"""The places that worker processes share: so many connections in all of them together.

A pipe holds a byte for each free place. To take one is to read a byte, to give it back is to write
it: the kernel sees to it that no two take the same, and who waits for a place waits for the pipe.
How many each worker has taken stands in memory that all of them share, so that the parent can give
back what was taken by one that was killed. Whatever the moment, that is never too many.
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

from .options import MAX_WORKERS

MAX_PLACES = 65536  # what a pipe holds (pipe(7)), unless its user has very many of them

_CELL = struct.Struct("@I")


def check_places(limit: int | None) -> None:
    """ValueError if `max_connections` is more than worker processes can share."""
    if limit is not None and limit > MAX_PLACES:
        raise ValueError(
            f"max_connections must be at most {MAX_PLACES} where workers share it, not {limit}"
        )


class SharedPlaces:
    """`index`: which worker's this is. The methods of one object are for one thread at a time.

    Holds three descriptors until `close`; can be sent to a process that is being started.
    """

    def __init__(self, limit: int) -> None:
        """`limit`: at most `MAX_PLACES`. OSError if the system gives no pipe that holds so many."""
        self.index = 0
        self._reader, self._writer = os.pipe()
        with tempfile.TemporaryFile() as file:
            os.ftruncate(file.fileno(), MAX_WORKERS * 2 * _CELL.size)
            self._file = os.dup(file.fileno())
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
        self._taken = mmap.mmap(self._file, MAX_WORKERS * 2 * _CELL.size)

    def __reduce__(self) -> tuple[Any, ...]:
        from multiprocessing.reduction import DupFd  # which only a process being started needs

        descriptors = (self._reader, self._writer, self._file)
        return _rebuilt, (self.index, *map(DupFd, descriptors))

    def take(self) -> bool:
        """Take a place; False if there is none."""
        with contextlib.suppress(BlockingIOError):
            if os.read(self._reader, 1):
                self._count(1)
                return True
        return False

    def give_back(self) -> None:
        """Give one back."""
        self._count(-1)
        self._give(1)

    def any_free(self) -> bool:
        """Whether there is one just now."""
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        return bool(poll.poll(0))

    def fileno(self) -> int:
        """What is readable while there is a place."""
        return self._reader

    def reclaim(self, index: int) -> None:
        """Give back all that a worker holds which is gone."""
        offset = index * _CELL.size
        (taken,) = _CELL.unpack_from(self._taken, offset)
        _CELL.pack_into(self._taken, offset, 0)
        self._give(taken)

    def _count(self, change: int) -> None:
        offset = self.index * _CELL.size
        (taken,) = _CELL.unpack_from(self._taken, offset)
        _CELL.pack_into(self._taken, offset, taken + change)

    def _give(self, places: int) -> None:
        while places > 0:
            places -= os.write(self._writer, bytes(places))

    def close(self) -> None:
        """Give the descriptors back."""
        self._taken.close()
        for descriptor in (self._reader, self._writer, self._file):
            os.close(descriptor)


def _rebuilt(index: int, *descriptors: Any) -> SharedPlaces:
    places = SharedPlaces.__new__(SharedPlaces)
    places.index = index
    places._reader, places._writer, places._file = (each.detach() for each in descriptors)
    places._open()
    return places
