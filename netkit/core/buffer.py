"""The buffer of received bytes, and where they come from.

Reading costs O(n) for n received bytes, in whatever pieces they arrive, because:

1. The bytes are stored once.
2. Taking bytes from the front does not move the rest: a bytearray drops its front in constant time.
3. A search looks at each byte once.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

CHUNK = 64 * 1024  # the largest number of bytes received at once, and of a chunk of iteration

# A thread that waits for input holds memory for it, and most connections wait most of the time. So
# the first wait asks for a size that Python's allocator of small objects holds: 512 bytes, less the
# 33 of a bytes object.
FIRST_CHUNK = 512 - 33
CHUNK_GROWTH = 8


class ReceiveBuffer(bytearray):
    """A queue of bytes that can be searched. Not thread-safe: only the reading thread uses it."""

    __slots__ = ("__dict__",)  # which is made for the first message that arrives in parts

    _searched = 0  # no separator starts before this index
    skipped = 0
    """The number of bytes that the reader has dropped of a line that is too long."""

    def feed(self, data: bytes) -> None:
        """Append received bytes."""
        self += data

    def peek(self, size: int) -> bytes:
        """Return the first `size` bytes, or all if there are fewer. They stay in the buffer."""
        return bytes(self[:size])

    def take(self, size: int) -> bytes:
        """Remove and return the first `size` bytes, or all if there are fewer."""
        taken = bytes(self[:size])
        del self[:size]
        if self._searched:
            self._searched = 0
        return taken

    def put_back(self, data: bytes) -> None:
        """Put `data` in front of the other bytes."""
        self[:0] = data
        self._searched = 0

    def search(self, separator: bytes, width: int = 1, phase: int = 0) -> int:
        """Return the index of the end of `separator` (an argument for `take`), or -1.

        Only an index of `phase` plus a multiple of `width` can begin a separator. So a newline in
        UTF-16 is not found across two characters. The next call with the same arguments continues
        where this one stopped. Call `restart_search` before a search for another separator.
        """
        at = self.find(separator, self._searched)
        while at >= 0 and at % width != phase:
            at = self.find(separator, at + 1)
        if at >= 0:
            self._searched = at
            return at + len(separator)
        tail = len(self) - len(separator) + 1  # the end may be the first part of a separator
        self._searched = max(self._searched, tail)
        return -1

    def skip(self, separator: bytes, width: int) -> None:
        """Drop the bytes that cannot belong to a later `separator`, and count them as skipped."""
        spare = max(0, len(self) - len(separator) + 1)
        self.skipped += len(self.take(spare - spare % width))  # code units stay whole

    def restart_search(self) -> None:
        """Begin anew: the next `search` is for another separator."""
        self._searched = 0


def next_chunk(chunk: int, size: int) -> int:
    """Return the number of bytes to ask for next, after `size` of `chunk` bytes arrived.

    Bulk data soon arrives in the largest chunks. The chunks shrink step by step, so that neither a
    small message nor the end of a large one cuts the next message into pieces.
    """
    if size == chunk:
        return min(chunk * CHUNK_GROWTH, CHUNK)
    if size < max(chunk // CHUNK_GROWTH, FIRST_CHUNK):
        return max(chunk // 2, FIRST_CHUNK)
    return chunk


class Source(Protocol):
    """Where a `Reader` gets its bytes. Reads pass on what its methods raise."""

    interruption: OSError | None
    """Unless None, the next read raises `failure` of this, even if bytes have been received."""

    def receive(self) -> bytes:
        """Wait for the next bytes, at most `CHUNK`. Each call at the end of input returns b""."""

    def failure(self, error: OSError) -> OSError:
        """Return the exception to raise for `error`."""

    def within(self, seconds: float, name: str) -> AbstractContextManager[object]:
        """Return a block in which `receive` raises TimeoutError (``name: ...``) after `seconds`."""
