"""Copies in both directions at once: between two connections, or a connection and something else.

Rules:

1. One thread for each direction: the caller's, and one more. A direction writes what it has read
   before it reads again, so a slow reader slows its sender, and nothing is buffered in between.
2. `relay` passes on the end of input as a half-close, and the other direction goes on.
3. A peer that takes no more data may still send some, so the other direction goes on to its end.
   Until then `relay` drops what it cannot pass on: otherwise a peer that waits to send its replies
   would read no more. Any other failure ends both directions.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable
from typing import Any

from ..core.record import NamedTuple
from .connection import Connection
from .explain import is_hang_up, is_silence
from .files import Sink


class Relayed(NamedTuple):
    """The number of bytes copied from the first connection to the second, and back."""

    forth: int
    back: int


class Direction(NamedTuple):
    """One direction of `copy_both_ways`."""

    copy: Callable[[], object]
    """Copies to the end of its input, and returns."""
    fail: Callable[[BaseException], bool]
    """Called with the error of `copy`, in the same thread. Never waits. Returns whether it has made
    the other direction end."""


def relay(first: Connection[Any], second: Connection[Any]) -> Relayed:
    """Copy both ways until both inputs have ended.

    Closes neither connection. Bytes that a connection has received already are copied, too. No
    other thread may read the two meanwhile. A time limit of a connection (`Connection.set_timeout`)
    passes only if the connection was silent in both directions. A deadline of `first`, but not one
    of `second`, bounds the whole relay.

    Once both directions have ended, it raises the error that came first, if any. Both connections
    are to be closed then.
    """
    forth, back = _Pipe(first, second), _Pipe(second, first)
    forth.other, back.other = back, forth
    here, there = Direction(forth.copy, forth.fail), Direction(back.copy, back.fail)
    errors = copy_both_ways(here, there, "netkit-relay")
    del forth.other, back.other  # a cycle would keep both connections until the next collection
    failed = [each for each in zip((forth, back), errors, strict=True) if each[1] is not None]
    if failed:
        pipe, error = min(failed, key=lambda each: isinstance(each[1], _Interrupted))
        assert error is not None
        pipe.blame(error)
        raise error
    return Relayed(forth.copied, back.copied)


def copy_both_ways(
    here: Direction, there: Direction, thread_name: str, patience: float | None = None
) -> tuple[BaseException | None, BaseException | None]:
    """Run `here` in this thread and `there` in a new one, and return the error of each, or None.

    Once `here` has failed and has made the other direction end, that is waited for, but at most for
    `patience` seconds if it is not None. Then its thread, a daemon, is left behind. The same holds
    if this thread is interrupted; KeyboardInterrupt is raised then. RuntimeError if no thread can
    be started.
    """
    errors: dict[str, BaseException] = {}

    def run(name: str, direction: Direction) -> bool:
        """Copy to the end. Returns whether it has failed and ended the other direction."""
        try:
            direction.copy()
        except BaseException as error:
            errors[name] = error
            return direction.fail(error)
        return False

    thread = threading.Thread(target=run, args=("there", there), name=thread_name, daemon=True)
    thread.start()
    has_ended_other = run("here", here)
    try:
        thread.join(patience if has_ended_other else None)
    except BaseException as error:
        here.fail(error)
        thread.join(patience)
        raise
    for failure in tuple(errors.values()):
        if not isinstance(failure, Exception):
            raise failure
    return errors.get("here"), errors.get("there")


def copy(source: Connection[Any], sink: Sink) -> None:
    """As ``source.pipe_to(sink)``, but writing to `source` counts against its silence, too.

    Silence is noticed after one to two times `idle_timeout`.
    """
    while True:
        written = source.bytes_written
        try:
            source.pipe_to(sink)
            return
        except TimeoutError as error:
            passed = error is source.error and is_silence(error) and source.bytes_written > written
            if not passed:
                raise


class _Interrupted(ConnectionAbortedError):
    """The other direction has failed, and has the error that tells more."""

    is_reason = False  # why the connection ends, for `netkit.net.endings`

    def __init__(self) -> None:
        super().__init__(errno.ECONNABORTED, "the other direction of the relay has failed")


class _Pipe:
    """Copies `copied` bytes. `copy` and `fail` are the functions of a `Direction`."""

    other: _Pipe  # the opposite direction

    def __init__(self, source: Connection, destination: Connection) -> None:
        self._source = source
        self._destination = destination
        self.copied = 0
        self._culprits: list[Connection] = []  # whose peer has made this direction fail
        self._is_done = threading.Event()  # it passes on nothing more
        self._is_dropping = threading.Event()  # the destination takes nothing more

    def write(self, data: bytes) -> int:
        """Write to the destination, and count: this is the sink of `pipe_to`."""
        if not self._is_dropping.is_set():
            self.copied += self._destination.write(data)
        return len(data)

    def copy(self) -> None:
        try:
            copy(self._source, self)
            self._note_done()
            self._destination.end()
        except OSError as error:
            both = (self._source, self._destination)
            self._culprits = [conn for conn in both if conn.is_to_blame(error)]
            if self._has_hung_up(error):
                self._is_dropping.set()
                self._note_done()
                if not self.other._is_done.is_set():  # its end ends a wait for input
                    with contextlib.suppress(OSError):
                        copy(self._source, self)
            raise

    def _note_done(self) -> None:
        self._is_done.set()
        if self.other._is_dropping.is_set():  # it may wait for input
            self._destination.interrupt(_Interrupted())

    def _has_hung_up(self, error: BaseException) -> bool:
        return self._destination in self._culprits and is_hang_up(error)

    def blame(self, error: BaseException) -> None:
        """Have `is_to_blame` know `error` again, even after later errors of the connection."""
        for conn in self._culprits:
            conn._link.error = error

    def fail(self, error: BaseException) -> bool:
        if self._has_hung_up(error):
            return False
        for conn in (self._source, self._destination):
            conn.interrupt(_Interrupted(), hard=True)
        return True
