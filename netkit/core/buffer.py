"""Received bytes that nobody has read yet.

Rules: the bytes are kept once; taking from the front does not move the rest (a bytearray drops its
front in constant time); a search never looks at a byte twice. So reading is O(n) in the bytes
received, however they were cut into pieces on the way.
"""

from __future__ import annotations


class ReceiveBuffer(bytearray):
    """A queue of bytes that can be searched. Not thread-safe: it belongs to the reading thread."""

    __slots__ = ("_searched", "skipped")

    def __init__(self) -> None:
        super().__init__()
        self._searched = 0  # no separator starts before this index
        self.skipped = 0
        """The bytes of the present line that the reader has dropped, since it is too long."""

    def feed(self, data: bytes) -> None:
        """Append what has been received."""
        self += data

    def peek(self, size: int) -> bytes:
        """The first `size` bytes, or fewer if there are fewer; they stay in the buffer."""
        return bytes(self[:size])

    def take(self, size: int) -> bytes:
        """Remove and return the first `size` bytes, or fewer if there are fewer."""
        taken = bytes(self[:size])
        del self[:size]
        self._searched = 0
        return taken

    def put_back(self, data: bytes) -> None:
        """Put `data`, which has been taken, in front of what is left."""
        self[:0] = data
        self._searched = 0

    def search(self, separator: bytes, width: int = 1, phase: int = 0) -> int:
        """Where `separator` ends (an index for `take`), or -1 if it has not come yet.

        `width`: the separator counts only at a multiple of it, which is how a newline is told
        from its two bytes in the midst of UTF-16; `phase`: where the first multiple is. A later
        call with the same arguments goes on where this one stopped; call `restart_search` before
        looking for another separator.
        """
        at = self.find(separator, self._searched)
        while at >= 0 and at % width != phase:
            at = self.find(separator, at + 1)
        if at >= 0:
            self._searched = at
            return at + len(separator)
        tail = len(self) - len(separator) + 1  # a separator may have come in half
        self._searched = max(self._searched, tail)
        return -1

    def restart_search(self) -> None:
        """Look at every byte again: the next `search` is for another separator."""
        self._searched = 0
