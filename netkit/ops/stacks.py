"""The stacks of other threads: the lines of Python that they run at this moment.

The frames of another thread may only be read while that thread cannot run, which the GIL ensures.
Without the GIL nothing is read: it could crash the process (the Python documentation says so of
`sys._current_frames`).
"""

from __future__ import annotations

import linecache
import os
import queue
import socket
import socketserver
import sys
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any

from ..core.cores import has_gil
from ..core.record import NamedTuple
from ..core.text import cut

_NETKIT = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_MOST_FRAMES = 100  # of a thread; a deep recursion has thousands
_MOST_CODE = 200  # characters of a line

# A line of one of these modules says less than the line of the program that has called it.
_PLUMBING = {socket.__file__, socketserver.__file__, threading.__file__, queue.__file__}


class Line(NamedTuple):
    """One line that a thread runs, or from which it has called the function of the next one."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        """The line without the folder that most files have in common: ``app.py:12 shout``."""
        if self.file.startswith(_NETKIT):
            name = "netkit/" + self.file[len(_NETKIT) :].replace(os.sep, "/")
        else:
            name = os.path.basename(self.file)
        return f"{name}:{self.line} {self.function}"

    def text(self) -> str:
        """Return the place and the text of the line: ``/srv/app.py:12 shout: conn.write(line)``."""
        code = self.code()
        return f"{self.file}:{self.line} {self.function}{code and ': ' + code}"

    def code(self) -> str:
        """Return the text of the line; empty if its file cannot be read."""
        return cut(linecache.getline(self.file, self.line).strip(), _MOST_CODE)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields and the `code`."""
        return {**self._asdict(), "code": self.code()}


class Stack(NamedTuple):
    """The lines of Python that a thread runs.

    `lines` are those outside netkit, the innermost first; without the lines of netkit that have
    started the thread. `inside` is the innermost line of netkit if the thread runs code of netkit.
    """

    lines: tuple[Line, ...] = ()
    inside: Line | None = None

    def where(self) -> str:
        """Return the most telling line as text; empty if nothing is known."""
        telling = (line for line in self.lines if line.file not in _PLUMBING)
        found = next(telling, self.lines[0] if self.lines else self.inside)
        return "" if found is None else str(found)


NOWHERE = Stack()


def stacks_of(threads: Iterable[int | None]) -> dict[int | None, Stack]:
    """Return the stack of each of these threads by its identifier, `NOWHERE` if it is not known.

    Empty without the GIL.
    """
    if not has_gil():  # pragma: no cover - free-threaded builds only
        return {}
    frames = sys._current_frames()
    try:
        return {each: _stack(frames[each]) for each in threads if each in frames}
    finally:
        frames.clear()  # they keep the variables of all threads alive


def _stack(frame: FrameType) -> Stack:
    lines = list(_lines(frame))
    innermost = lines[0]
    while lines and (lines[-1].file == threading.__file__ or _is_ours(lines[-1])):
        lines.pop()  # what has started the thread
    outside = tuple(line for line in lines if not _is_ours(line))
    return Stack(outside, innermost if _is_ours(innermost) else None)


def _lines(frame: FrameType | None) -> Iterator[Line]:
    count = 0
    while frame is not None and count < _MOST_FRAMES:
        code = frame.f_code
        yield Line(code.co_filename, frame.f_lineno or code.co_firstlineno, code.co_name)
        frame = frame.f_back
        count += 1


def _is_ours(line: Line) -> bool:
    return line.file.startswith(_NETKIT)
