"""Where ``netkit logger`` writes, and how it ends once nothing can be written any more."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

from .errors import Failure
from .handlers import LoggerHandler
from .writing import write_all


class Output:
    """The file that the logger writes to.

    `error` is the error of a write that has failed (a closed pipe, a full disk). The command fails
    with it when the server has stopped.
    """

    def __init__(self, path: str | None) -> None:
        self.error: OSError | None = None
        self._path = path
        self._name = "standard output" if path is None else path or repr(path)
        if path is None and sys.stdout is None:
            raise Failure("standard output is closed: name a file with --output")
        # A file of our own for standard output: what cannot be written is not tried again, with a
        # complaint, when Python flushes its own in the end.
        target = sys.stdout.fileno() if path is None else path
        try:
            self._file = open(target, "ab", 0, closefd=path is not None)  # noqa: SIM115 - by __exit__
        except OSError as error:
            raise self._failure(error) from None

    @property
    def reopen(self) -> Callable[[], None] | None:
        """Opens the file anew, which may have been renamed (logrotate(8)); None if it has no name.

        From any thread. A record that is being written goes to the one file or the other as a
        whole. OSError if it cannot be opened; the former file is still written to then.
        """
        return None if self._path is None else self._reopen

    def _reopen(self) -> None:
        assert self._path is not None
        with open(self._path, "ab") as file:
            os.dup2(file.fileno(), self._file.fileno(), inheritable=False)

    def write(self, data: bytes) -> int:
        """Write all of `data` at once; waits where another process has made it non-blocking."""
        write_all(self._file, data)
        return len(data)

    def flush(self) -> None:
        """Nothing is kept."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        if kind is None and self.error is not None:
            raise self._failure(self.error)

    def _failure(self, error: OSError) -> Failure:
        return Failure(f"cannot write to {self._name}: {os.strerror(error.errno or 0).lower()}")


class CommandLogger(LoggerHandler):
    """Stops the server once its output is gone: nobody would know what came."""

    output: Any

    def handle(self) -> None:
        try:
            super().handle()
        except OSError as error:
            if self.conn.is_to_blame(error):
                raise
            self.output.error = error
            self.server.request_stop()
