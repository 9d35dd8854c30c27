"""The progress of a transfer, shown in one row of a terminal that is redrawn."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import TextIO

from ..core.text import in_bytes, printable

REDRAW = 0.1  # seconds between two drawings: more often would not be seen

_BAR = 20  # characters
_UNITS = ("KiB", "MiB", "GiB", "TiB")


class Progress:
    """The row of one transfer. `size` is the number of its bytes, None if it is unknown."""

    def __init__(
        self,
        stream: TextIO,
        name: str,
        size: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._name = printable(name)
        self._size = size
        self._clock = clock
        self._began = self._drawn = clock()
        self._done = 0

    def add(self, count: int) -> None:
        """Count more bytes."""
        self._done += count
        now = self._clock()
        if now - self._drawn >= REDRAW:
            self._drawn = now
            self._draw(now)

    def finish(self) -> None:
        """Draw it for the last time."""
        self._draw(self._clock())
        self._stream.write("\n")
        self._stream.flush()

    def _draw(self, now: float) -> None:
        text = row(self._name, self._done, self._size, now - self._began)
        self._stream.write(f"\r{text[: shutil.get_terminal_size().columns - 1]}\x1b[K")
        self._stream.flush()


def row(name: str, done: int, size: int | None, seconds: float) -> str:
    """The row: the name, the finished share if `size` is known, the bytes, and the rate."""
    text = f"{name}  {amount(done)}"
    if size:
        share = min(done / size, 1.0)
        bar = ("#" * int(share * _BAR)).ljust(_BAR, ".")
        text = f"{name}  {share:4.0%} [{bar}]  {amount(done)} of {amount(size)}"
    return f"{text}  {amount(done / max(seconds, 0.001))}/s"


def amount(count: float) -> str:
    """Format a number of bytes: ``17 bytes``, ``1.5 MiB``."""
    if count < 1024:
        return in_bytes(round(count))
    power = 0
    while count >= 1024 and power < len(_UNITS):
        count /= 1024
        power += 1
    return f"{count:.1f} {_UNITS[power - 1]}"
