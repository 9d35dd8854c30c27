"""Pauses between attempts that fail, each twice as long as the one before."""

from __future__ import annotations


class BackOff:
    """The pause after each failure in a row: `first` seconds, then twice the last, up to `longest`.

    It does not wait itself. Not thread-safe.
    """

    def __init__(self, first: float, longest: float) -> None:
        self.first = first
        self.longest = longest
        self.pause = 0.0
        """Seconds to wait before the next attempt; 0.0 unless the last attempt has failed."""

    def failed(self) -> float:
        """Note a failure. Return the seconds to wait before the next attempt."""
        self.pause = min(max(self.first, self.pause * 2), self.longest)
        return self.pause

    def succeeded(self) -> None:
        """Note a success: the pause after the next failure is `first` again."""
        self.pause = 0.0
