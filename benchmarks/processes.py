"""Processes that are started here, and are ended here whatever happens."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import IO

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal that ends the run."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class _Interrupts:
    """Signals become exceptions, but not between a start and the `with` that ends what started."""

    held = False
    pending = 0

    def handle(self, signum: int, frame: FrameType | None) -> None:
        if self.held:
            self.pending = signum
        else:
            raise Interrupted(signum)

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        self.held = True
        try:
            yield
        finally:
            self.held = False


_interrupts = _Interrupts()


def handle_signals() -> None:
    for signum in _SIGNALS:
        signal.signal(signum, _interrupts.handle)


class Process:
    """A process in a session of its own: a Ctrl+C at the terminal is for us alone.

    What it writes to standard error goes to a file, where it cannot be held up.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        piped: bool = False,
    ) -> None:
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 # closed in end()
        pipe = subprocess.PIPE if piped else subprocess.DEVNULL
        self.popen = subprocess.Popen(
            command,
            stdin=pipe,
            stdout=pipe,
            stderr=self.errors,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self.popen.pid

    def said(self) -> str:
        """What it has written to standard error."""
        size = os.fstat(self.errors.fileno()).st_size
        return os.pread(self.errors.fileno(), size, 0).decode(errors="replace").strip()

    def end(self) -> None:
        """Kill it, with all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.popen.wait()
        self.errors.close()
        for stream in (self.popen.stdin, self.popen.stdout):
            if stream:
                with contextlib.suppress(OSError):
                    stream.close()


@contextlib.contextmanager
def process(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    piped: bool = False,
) -> Iterator[Process]:
    """A process until the end of the block."""
    with contextlib.ExitStack() as stack:
        with _interrupts.hold():
            started = Process(command, environment, piped)
            stack.callback(started.end)
        if _interrupts.pending:
            raise Interrupted(_interrupts.pending)
        yield started
