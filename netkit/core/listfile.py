"""Reads the file of a list, with one entry on each line, as a whole or not at all.

Such a list decides which clients may connect, and a part of it could let in others. So every sign
that another program is writing the file is an error:

1. Size, times and identity of the file must be the same before and after it was read.
2. The last line must end with a newline, since a line without one may be cut off.
3. A file without entries must have a line ``# empty``.

A program that pauses at the end of a line leaves no sign, so it should write another file, and
rename that.
"""

from __future__ import annotations

import os
import stat

MOST = 64 * 1024 * 1024  # bytes: some three million entries
TRIES = 3  # if the file changes each time, it is likely to go on changing


def read_entries(path: str) -> list[tuple[int, str]]:
    """Return the number and the text of each line with an entry. ``#`` begins a comment.

    Bytes that are not UTF-8 become escapes. OSError; ValueError, which names the file.
    """
    text = _content(path).decode("utf-8-sig", "backslashreplace")
    *lines, last = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if last:
        number = len(lines) + 1
        raise ValueError(f"{path}, line {number}: it has no newline, so the file may be cut off")
    entries = []
    may_be_empty = False
    for number, line in enumerate(lines, 1):
        entry, _, comment = line.partition("#")
        if entry.strip():
            entries.append((number, entry.strip()))
        may_be_empty |= comment.strip() == "empty"
    if not entries and not may_be_empty:
        raise ValueError(f"{path}: it has no entries; an empty list must have a line '# empty'")
    return entries


def _content(path: str) -> bytes:
    for _ in range(TRIES):
        with open(path, "rb") as file:
            before = os.fstat(file.fileno())
            regular = stat.S_ISREG(before.st_mode)  # else a pipe, which has no size
            data = file.read(min(before.st_size, MOST) + 1 if regular else MOST + 1)
            after = os.fstat(file.fileno())
        if len(data) > MOST:
            raise ValueError(f"{path}: it has more than {MOST} bytes, so it is no list")
        if not regular:
            return data
        if _version(before) == _version(after) == _version(os.stat(path)):
            return data
    raise ValueError(
        f"{path}: it changes while it is read; write the list to another file, and rename that"
    )


def _version(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
