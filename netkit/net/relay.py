"""Two connections joined: what comes from one goes to the other, in both directions at once.

Rules:

1. One thread for each direction: the caller's, and one more. Each reads one connection and writes
   to the other, so that a slow reader slows the sender behind it, and nothing is kept in between.
2. The end of input is carried across as a half-close; the other direction goes on.
3. A peer that takes nothing may still have something to say: then the other direction goes on to
   its end. Any other failure ends both, since one of the two connections is of no use any more.
"""

from __future__ import annotations

import errno
import threading
from typing import NamedTuple

from .connection import Connection
from .sockopts import is_hang_up
from .writing import Sink


class Relayed(NamedTuple):
    """How many bytes went from the first connection to the second, and how many came back."""

    forth: int
    back: int


def relay(first: Connection, second: Connection) -> Relayed:
    """Copy both ways until both inputs have ended; neither connection is closed.

    A time limit (`Connection.set_timeout`) passes only if its connection was silent both ways. What
    went wrong first is raised, once both directions are over; close both then. Bytes that were
    received and not read yet are copied, too. Nobody else may read the two meanwhile.
    """
    forth, back = _Direction(first, second), _Direction(second, first)
    # Daemon: a program that leaves by an exception in this thread is not to wait for the peers.
    thread = threading.Thread(target=back.run, name="netkit-relay", daemon=True)
    thread.start()
    try:
        forth.run()
    finally:
        thread.join()
    error = _first_cause(forth.error, back.error)
    if error is not None:
        raise error
    return Relayed(forth.copied, back.copied)


def copy(source: Connection, sink: Sink) -> None:
    """As ``source.pipe_to(sink)``, but its idle time is up only if nothing was written to it.

    Noticed after one to two times `idle_timeout`.
    """
    while True:
        written = source.bytes_written
        try:
            source.pipe_to(sink)
        except TimeoutError as error:
            if error is not source.error or source.bytes_written == written:
                raise
        else:
            return


class _Interrupted(ConnectionAbortedError):
    """The other direction has failed: it has the error that tells more."""


class _Direction:
    """From one connection to the other; `copied` and `error` are good once `run` has returned."""

    def __init__(self, source: Connection, destination: Connection) -> None:
        self._source = source
        self._destination = destination
        self.copied = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        """Copy to the end. Never raises, but for what the program is sent (Ctrl+C)."""
        try:
            copy(self._source, self)
            self._destination.end()
        except Exception as error:
            self.error = error
            if not (self._destination.is_to_blame(error) and is_hang_up(error)):
                self._interrupt()
        except BaseException:
            self._interrupt()
            raise

    def write(self, data: bytes) -> int:
        """For `pipe_to`: counts what has arrived."""
        self.copied += self._destination.write(data)
        return len(data)

    def _interrupt(self) -> None:
        for conn in (self._source, self._destination):
            text = "the other direction of the relay has failed"
            conn.interrupt(_Interrupted(errno.ECONNABORTED, text), hard=True)


def _first_cause(*errors: BaseException | None) -> BaseException | None:
    found = [error for error in errors if error is not None]
    return min(found, key=lambda error: isinstance(error, _Interrupted), default=None)
