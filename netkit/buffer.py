"""Received bytes that nobody has read yet.

Rules: the bytes are kept once; taking from the front does not move the rest (a bytearray drops its
front in constant time); a search never looks at a byte twice. So reading is O(n) in the bytes
received, however they were cut into pieces on the way.
"""

from __future__ import annotations


class ReceiveBuffer:
    """A queue of bytes that can be searched. Not thread-safe: it belongs to the reading thread."""

    __slots__ = ("_data", "_searched")

    def __init__(self) -> None:
        self._data = bytearray()
        self._searched = 0  # no separator starts before this index

    def __len__(self) -> int:
        return len(self._data)

    def feed(self, data: bytes) -> None:
        """Append what has been received."""
        self._data += data

    def peek(self, size: int) -> bytes:
        """The first `size` bytes, or fewer if there are fewer; they stay in the buffer."""
        return bytes(self._data[:size])

    def take(self, size: int) -> bytes:
        """Remove and return the first `size` bytes, or fewer if there are fewer."""
        taken = bytes(self._data[:size])
        del self._data[:size]
        self._searched = 0
        return taken

    def find(self, separator: bytes, width: int = 1, phase: int = 0) -> int:
        """Where `separator` ends (an index for `take`), or -1 if it has not come yet.

        `width`: the separator counts only at a multiple of it, which is how a newline is told
        from its two bytes in the midst of UTF-16; `phase`: where the first multiple is. A later
        call with the same arguments goes on where this one stopped; call `restart_search` before
        looking for another separator.
        """
        at = self._data.find(separator, self._searched)
        while at >= 0 and at % width != phase:
            at = self._data.find(separator, at + 1)
        if at >= 0:
            self._searched = at
            return at + len(separator)
        tail = len(self._data) - len(separator) + 1  # a separator may have come in half
        self._searched = max(self._searched, tail)
        return -1

    def restart_search(self) -> None:
        """Look at every byte again: the next `find` is for another separator."""
        self._searched = 0
