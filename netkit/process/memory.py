"""What the front process must not forget, though it is killed: the counters of the workers.

The memory is a file without a name that the parent makes, and that outlives each front process. It
has two places, which are written in turn. A front process may be killed amid a write, so a place
counts only if its checksum is right, and the other place has the contents from before.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import tempfile
import zlib
from typing import Any

from .channel import duplicates

_PLACE = 1 << 26  # bytes between the two places, most of which are never written
_HEADER = struct.Struct("!QII")  # the number of the write, the size and the checksum


class Memory:
    """Keeps one JSON value. For one thread at a time. Holds a descriptor until `close`.

    Can be sent to a process that is being started.
    """

    def __init__(self, file: int | None = None) -> None:
        """Make a memory, or take over the descriptor of one. OSError."""
        self._file = _nameless_file() if file is None else file
        self._count = 0  # of all writes

    def __reduce__(self) -> tuple[Any, ...]:
        return _memory, duplicates(self._file)

    def load(self) -> Any:
        """Return the value that was saved last; None if there is none."""
        found: list[tuple[int, Any]] = []
        for place in (0, _PLACE):
            header = os.pread(self._file, _HEADER.size, place)
            if len(header) == _HEADER.size:
                count, size, checksum = _HEADER.unpack(header)
                data = os.pread(self._file, size, place + _HEADER.size) if size else b""
                if data and zlib.crc32(data) == checksum:
                    found.append((count, json.loads(data)))
        if not found:
            return None
        self._count, value = max(found, key=lambda each: each[0])
        return value

    def save(self, value: Any) -> None:
        """Replace the value. The former one stays if this process is killed meanwhile.

        ValueError or OverflowError if the value is too large; OSError if there is no memory.
        """
        data = json.dumps(value).encode()
        if len(data) > _PLACE - _HEADER.size:
            raise ValueError("the counters need too much memory")
        self._count += 1
        header = _HEADER.pack(self._count, len(data), zlib.crc32(data))
        os.pwrite(self._file, header + data, self._count % 2 * _PLACE)

    def close(self) -> None:
        """Idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _memory(descriptor: Any) -> Memory:
    return Memory(descriptor.detach())


def _nameless_file() -> int:
    if hasattr(os, "memfd_create"):  # pragma: no branch - not Linux
        return os.memfd_create("netkit", os.MFD_CLOEXEC)
    with contextlib.closing(tempfile.TemporaryFile()) as file:  # pragma: no cover - not Linux
        return os.dup(file.fileno())
