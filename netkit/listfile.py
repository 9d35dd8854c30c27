"""The file of a list, with one entry on each line, read as a whole or not at all.

Such a list decides which clients may come. A part of it would let in others, so every sign that the
file is being written is an error:

1. Size, times and identity of the file are the same before and after it was read.
2. The last line ends with a newline, since one without may have been cut off.
3. A file without entries says that it is meant: a line ``# empty``.

Nothing tells that another program has stopped at the end of a line and goes on later. So a new list
should be written to another file, which is then renamed.
"""

from __future__ import annotations

import os
import stat

TRIES = 3  # a program that writes the file at each of them goes on doing so


def read_entries(path: str) -> list[tuple[int, str]]:
    """The number and the text of each line that has an entry. ``#`` begins a comment.

    Text that is not UTF-8 has escapes in its place. OSError; ValueError, which names the file.
    """
    text = _content(path).decode("utf-8-sig", "backslashreplace")
    *lines, last = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if last:
        number = len(lines) + 1
        raise ValueError(f"{path}, line {number}: it has no newline, so the file may be cut off")
    entries = []
    meant = False
    for number, line in enumerate(lines, 1):
        entry, _, comment = line.partition("#")
        if entry.strip():
            entries.append((number, entry.strip()))
        elif comment.strip() == "empty":
            meant = True
    if not entries and not meant:
        raise ValueError(f"{path}: it has no entries; a list that is to be empty says '# empty'")
    return entries


def _content(path: str) -> bytes:
    for _ in range(TRIES):
        with open(path, "rb") as file:
            before = os.fstat(file.fileno())
            data = file.read()
            after = os.fstat(file.fileno())
        if not stat.S_ISREG(before.st_mode):  # a pipe, which has no size
            return data
        versions = {_version(status) for status in (before, after, os.stat(path))}
        if len(versions) == 1:
            return data
    raise ValueError(
        f"{path}: it changes while it is read; write the list to another file, and rename that"
    )


def _version(status: os.stat_result) -> tuple[int, ...]:
    times = (status.st_mtime_ns, status.st_ctime_ns)
    return (status.st_dev, status.st_ino, status.st_size, *times)
