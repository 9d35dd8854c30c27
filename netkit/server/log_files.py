"""Files of lines that several processes write: those of ``netkit logger``, and the access log.

Rules:

1. A line is one write(2) to a file that was opened with O_APPEND. So lines of several processes do
   not mix in a file.
2. A file that has been renamed or removed is opened again before the next write, or, with an
   interval, before the first write after it.
3. Data that a file does not take (a full disk) is lost, and the clients stay connected. The log has
   one record when that begins, and one with the number of lost bytes when all files take data
   again. A pipe without a reader is an error, since it never takes data again.
4. A pipe without a reader is waited for when it is opened, unless there is a patience. A full one
   is waited for, or, with a patience, has failed once nobody reads it for so long.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import stat
import sys
import threading
import time
import zlib
from io import FileIO
from typing import Any

from ..core.errors import Failure
from ..core.text import in_bytes, said
from ..net.connection import Connection
from ..net.files import OutputError, failure, open_at_once, write_all
from ..net.sockopts import wait_until_ready
from . import log
from .rotation import Rotation

PEER = "{peer}"  # in the name of a file, it stands for the client
_LONGEST_NAME = 150  # characters, so that the name of a rotated file has at most 255 bytes


class _File(FileIO):
    """A file without a buffer that counts the bytes written."""

    written = 0

    @functools.cached_property
    def identity(self) -> os.stat_result:
        """The file itself, which may have another path by now."""
        return os.fstat(self.fileno())

    def write(self, data: Any, /) -> int:
        size = super().write(data)  # None if it would block
        self.written += size or 0
        return size


class LogFile:
    """One file to which whole lines are appended, or standard output. Thread-safe.

    Its methods raise OSError, which names the file.
    """

    def __init__(
        self,
        path: str | None,
        rotation: Rotation,
        has_lines: bool = True,
        patience: float | None = None,
        interval: float = 0.0,
    ) -> None:
        """`path` is None for standard output. The file is opened when it is first used.

        If it `has_lines`, a line that follows a part of one begins on a line of its own. A pipe
        that stays full for `patience` seconds has failed; while it does, no line waits for it.
        Whether the file was renamed is looked for once in `interval` seconds.
        """
        self.users = 0
        """How many clients use the file. For `LogFiles`."""
        self.rotation_error: OSError | None = None
        """Why the last rotation has failed: the files are appended to nevertheless."""
        self._path = path
        self._name = "standard output" if path is None else path or repr(path)
        self._has_lines, self._patience, self._interval = has_lines, patience, interval
        self._limit = rotation.size
        self._rotation = rotation.of(path) if path else None
        self._lock = threading.Lock()  # guards the attributes that follow
        self._file: _File | None = None
        self._torn = False  # the file ends with a part of a line
        self._is_full = False  # the last line was lost, since nobody reads the pipe
        self._look_at = 0.0  # when to look whether it was renamed, on the monotonic clock

    def open(self) -> None:
        """Open the file unless it is open."""
        with self._lock:
            self._open_locked()

    def append(self, data: bytes) -> None:
        """Write all of `data`, which is whole lines or raw bytes."""
        with self._lock:
            if self._is_moved_locked():
                self._close_locked()
            self._rotate_locked(len(data))
            file = self._open_locked()
            before = file.written
            try:
                self._wait_locked(file)
                write_all(file, b"\n" + data if self._torn else data)
            except OSError as error:
                self._torn = self._has_lines and (self._torn or file.written > before)
                raise OutputError(error.errno, failure("write to", self._name, error)) from None
            self._torn = False

    def _wait_locked(self, file: Any) -> None:
        """Wait while a pipe is full, for the patience. BlockingIOError."""
        if self._patience is not None and not stat.S_ISREG(file.identity.st_mode):
            seconds = 0.0 if self._is_full else self._patience
            self._is_full = not wait_until_ready(file, True, seconds)
            if self._is_full:
                raise BlockingIOError(errno.EAGAIN, "nobody reads it")

    def reopen(self) -> None:
        """Open the file anew if it is open. If that fails, the former one stays in use."""
        with self._lock:
            if self._file is not None and self._path is not None:
                file = self._new_file()
                self._close_locked()
                self._file = file

    def close(self) -> None:
        """Close the file, but not standard output. Idempotent."""
        with self._lock:
            self._close_locked()
            if self._rotation is not None:
                self._rotation.close()

    def _open_locked(self) -> _File:
        if self._file is None:
            self._file = self._new_file()
        return self._file

    def _new_file(self) -> _File:
        # Standard output is opened once more, without a buffer: Python flushes its own at the exit,
        # and would report there once more that the output has failed.
        file = sys.stdout.fileno() if self._path is None else self._path
        opener = None if self._patience is None else open_at_once
        try:
            return _File(file, "ab", closefd=self._path is not None, opener=opener)
        except OSError as error:
            raise OSError(error.errno, failure("open", self._name, error)) from None

    def _close_locked(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):  # of a disk of another machine, say
                file.close()

    def _is_moved_locked(self) -> bool:
        if self._file is None or self._path is None:
            return False
        if self._interval:
            now = time.monotonic()
            if now < self._look_at:
                return False
            self._look_at = now + self._interval
        try:
            return not os.path.samestat(os.stat(self._path), self._file.identity)
        except OSError:  # it has been removed
            return True

    def _rotate_locked(self, size: int) -> None:
        """Begin a new file if it is time, or if `size` more bytes would be too many."""
        handler: Any = self._rotation
        if handler is None:
            return
        if self._limit is None:
            is_due = handler.shouldRollover(None)  # it needs no record
        else:
            present = os.fstat(self._open_locked().fileno()).st_size
            is_due = present > 0 and present + size > self._limit
        if is_due:
            self._close_locked()
            try:
                handler.doRollover()
                self.rotation_error = None
            except OSError as error:
                self.rotation_error = error


class LogFiles:
    """The files of one logger, in a ``with`` block, which opens and closes them. Thread-safe.

    The block raises Failure if the output cannot be opened, or does not take data at the end.
    """

    def __init__(
        self,
        path: str | None,
        rotation: Rotation | None = None,
        has_lines: bool = True,
        patience: float | None = None,
        interval: float = 0.0,
    ) -> None:
        """`path` is None for standard output. With `PEER` in it, each client has a file.

        The others as for `LogFile`.
        """
        self._made_of = path, rotation or Rotation(), has_lines, patience, interval
        self._path, self.owner = path, ""  # `owner` is how a record about lost data begins
        self._lock = threading.Lock()  # guards the attributes that follow
        self._files: dict[str | None, LogFile] = {}  # by the path
        self._failing: dict[LogFile, OSError] = {}  # the files that have not taken the last data
        self._lost = 0  # bytes, since the first of these files has failed
        self._ended: OSError | None = None  # nobody reads the pipe any more
        self._growing: set[LogFile] = set()  # the files that could not be rotated
        self.reopen = None if path is None else self._reopen
        """Opens the files again, as `LogFile.reopen`. None for standard output."""

    def __reduce__(self) -> tuple[Any, ...]:  # for spawned workers
        return LogFiles, self._made_of

    def file_of(self, conn: Connection) -> LogFile:
        """Return the file of a client, which calls `release` at its end."""
        path = self._path and self._path.replace(PEER, name_of(conn))
        with self._lock:
            file = self._file_locked(path)
            file.users += 1
            return file

    def file_of_all(self) -> LogFile:
        """Return the one file of all clients."""
        with self._lock:
            return self._file_locked(self._path)

    def _file_locked(self, path: str | None) -> LogFile:
        if path not in self._files:
            self._files[path] = LogFile(path, *self._made_of[1:])
        return self._files[path]

    def release(self, file: LogFile) -> None:
        """Note that a client does not use `file` any more."""
        is_of_client = PEER in (self._path or "")
        with self._lock:
            file.users -= 1
            if file.users or not is_of_client:
                return
            self._files = {path: it for path, it in self._files.items() if it is not file}
            lost = self._take_locked(file)
            self._growing.discard(file)
        file.close()
        self._report_end(lost)

    def append(self, file: LogFile, data: bytes) -> None:
        """Append `data` to a file; data that it does not take is lost, which is logged.

        OutputError if nobody reads the pipe any more.
        """
        try:
            file.append(data)
        except OSError as error:
            with self._lock:
                is_first = not self._failing
                self._failing[file] = error
                self._lost += len(data)
                if error.errno == errno.EPIPE:
                    self._ended = error
            if error.errno == errno.EPIPE:
                raise
            if is_first:
                log.logger.error("%s%s; data is lost until that succeeds", self.owner, said(error))
            return
        if self._failing:  # else nothing has been lost
            with self._lock:
                lost = self._take_locked(file)
            self._report_end(lost)
        if file.rotation_error is not None or self._growing:
            self._note_rotation(file, file.rotation_error)

    def _take_locked(self, file: LogFile) -> int:
        """Note that `file` has not failed. Return the lost bytes if it was the last to fail."""
        if self._failing.pop(file, None) is None or self._failing:
            return 0
        lost, self._lost = self._lost, 0
        return lost

    def _report_end(self, lost: int) -> None:
        if lost:
            log.logger.warning("the output takes data again; %s were lost", in_bytes(lost))

    def _note_rotation(self, file: LogFile, error: OSError | None) -> None:
        """Log the `error` of a rotation, if all other files could be rotated so far."""
        with self._lock:
            is_first = not self._growing
            self._growing.discard(file)
            if error is None:
                return
            self._growing.add(file)
        if is_first:
            log.logger.error("the output cannot be rotated, and grows: %s", said(error))

    def _reopen(self) -> None:
        with self._lock:
            files, failing = list(self._files.values()), list(self._failing)
        for file in failing:
            file.open()  # this may be what has failed
        for file in files:
            file.reopen()

    def __enter__(self) -> LogFiles:
        if self._path is None and sys.stdout is None:
            raise Failure("standard output is closed: name a file with --output")
        if self._path is None or PEER not in self._path:
            with self._lock:
                file = self._file_locked(self._path)
            try:
                file.open()
            except OSError as error:
                raise Failure(said(error)) from None
        elif not os.path.isdir(os.path.dirname(self._path) or "."):
            raise Failure(f"cannot open {self._path}: no such directory")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._lock:
            files, lost = list(self._files.values()), self._lost
            errors = [*filter(None, [self._ended]), *self._failing.values()]
        for file in files:
            file.close()
        if kind is None and errors:
            more = "" if errors[0] is self._ended else f"; {in_bytes(lost)} were lost"
            raise Failure(said(errors[0]) + more)


def name_of(conn: Connection) -> str:
    """Return a name for the file of a client: ``127.0.0.1_50312``, ``2001_db8__1_50312``, ``unix``.

    It has only letters, digits and ``._%-`` of ASCII, no ``/``, and does not begin with a dot.
    """
    peer = conn.peer
    if conn.remote_address is not None:
        peer = f"{conn.remote_address}:{conn.remote_port}"
    quoted = re.sub(r"[^A-Za-z0-9.:-]", _quoted, peer).replace(":", "_")
    if len(quoted) > _LONGEST_NAME:
        quoted = f"{quoted[:_LONGEST_NAME]}-{zlib.crc32(quoted.encode()):08x}"
    return re.sub(r"^\.", "%2E", quoted)


def _quoted(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogateescape"))
