"""The source of received bytes, and the number of bytes to receive at once."""

from __future__ import annotations

from typing import Protocol

CHUNK = 64 * 1024  # the largest number of bytes received at once, and of a chunk of iteration

# A thread that waits for input holds memory for it, and most connections wait most of the time. So
# the first wait asks for a size that Python's allocator of small objects holds: 512 bytes, less the
# 33 of a bytes object.
FIRST_CHUNK = 512 - 33
CHUNK_GROWTH = 8


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
    """Where a `Reader` gets its bytes. Reads pass the exceptions of its methods on."""

    interruption: OSError | None
    """If it is set, the next read raises `failure` of it, even if bytes have been received."""

    def receive(self) -> bytes:
        """Wait for the next bytes, at most `CHUNK`. Each call at the end of input returns b""."""

    def failure(self, error: OSError) -> OSError:
        """Return the exception to raise for `error`."""
