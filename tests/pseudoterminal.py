"""A command on a terminal of the test, whose screen can be read."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import PATIENCE, ROOT

pyte = pytest.importorskip("pyte")

# The job control of a shell: run a command in the foreground; when it is stopped, print "stopped",
# wait for a line, and continue it in the foreground.
SHELL = """
import fcntl, os, signal, subprocess, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
signal.signal(signal.SIGINT, lambda *_: None)
mine = termios.tcgetattr(0)
def foreground(group):
    os.tcsetpgrp(0, group)
def begin():
    os.setpgid(0, 0)
    foreground(os.getpgrp())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
job = subprocess.Popen(sys.argv[1:], preexec_fn=begin)
while True:
    _, status = os.waitpid(job.pid, os.WUNTRACED)
    foreground(os.getpgrp())
    if not os.WIFSTOPPED(status):
        break
    theirs = termios.tcgetattr(0)
    termios.tcsetattr(0, termios.TCSANOW, mine)
    print("stopped", flush=True)
    sys.stdin.readline()
    termios.tcsetattr(0, termios.TCSANOW, theirs)
    foreground(job.pid)
    os.killpg(job.pid, signal.SIGCONT)
os._exit(os.waitstatus_to_exitcode(status) % 256)
"""

CONNECT = """
import sys
from netkit.cli.main import main
sys.exit(main(["connect", *sys.argv[1:]]))
"""
# The same where the packages of the extra `cli` are not installed.
WITHOUT_EXTRA = f"""
import sys
sys.modules.update(prompt_toolkit=None, rich=None)
{CONNECT}
"""


class Session:
    """A program, most often `netkit connect`, on a terminal."""

    def __init__(self, *arguments: object, program: str = CONNECT, **environment: str) -> None:
        self.screen = pyte.Screen(80, 24)
        self._stream = pyte.ByteStream(self.screen)
        self.written = b""
        """All that was written to the terminal."""
        self.terminal, theirs = pty.openpty()
        self.resize(80, 24)
        environment = {"TERM": "xterm", "PYTHONUTF8": "1", "PYTHONFAULTHANDLER": "1", **environment}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SHELL, sys.executable, "-c", program, *map(str, arguments)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            start_new_session=True,
        )
        os.close(theirs)

    def resize(self, columns: int, lines: int) -> None:
        self.screen.resize(lines, columns)
        size = struct.pack("HHHH", lines, columns, 0, 0)
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, size)

    @property
    def rows(self) -> list[str]:
        """The rows of the screen that are not empty."""
        return [row.rstrip() for row in self.screen.display if row.strip()]

    @property
    def typed_row(self) -> str:
        """The row that has the cursor."""
        return str(self.screen.display[self.screen.cursor.y]).rstrip()

    def type(self, text: str | bytes) -> None:
        os.write(self.terminal, text if isinstance(text, bytes) else text.encode())

    def until(self, condition: Callable[[], Any]) -> None:
        """Read what is written to the terminal until the condition holds."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, self.rows
            if select.select([self.terminal], [], [], 0.02)[0]:
                assert self._read(), self.rows

    def until_rows(self, *expected: str) -> None:
        """Until the last rows are these."""
        self.until(lambda: self.rows[-len(expected) :] == list(expected))

    def has(self, flag: int) -> bool:
        """Whether a local flag of the terminal (termios(3)) is set: ECHO, ICANON, ISIG."""
        return bool(termios.tcgetattr(self.terminal)[3] & flag)

    def until_prompt(self) -> None:
        """Until a prompt is shown, which takes Ctrl+C as a key."""
        self.until(lambda: not self.has(termios.ISIG))

    @property
    def is_restored(self) -> bool:
        """Whether the terminal edits lines itself, as it does for a shell."""
        return all(map(self.has, (termios.ECHO, termios.ICANON, termios.ISIG)))

    def signal(self, signum: int) -> None:
        """Send a signal to the command."""
        group = os.tcgetpgrp(self.terminal)
        assert group, "the command has ended"
        os.killpg(group, signum)

    def wait(self) -> int:
        """Return the exit status of the command, once all that it wrote is on the screen."""
        deadline = time.monotonic() + PATIENCE
        while self._read():
            if time.monotonic() > deadline:
                self.signal(signal.SIGABRT)  # which shows what it does, by faulthandler
                deadline += PATIENCE
        assert b"Fatal Python error" not in self.written, self.written.decode()
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        group = os.tcgetpgrp(self.terminal)  # 0 before it has begun, and after it has ended
        if group:
            os.killpg(group, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        os.close(self.terminal)

    def _read(self) -> bytes:
        assert select.select([self.terminal], [], [], PATIENCE)[0], self.rows
        try:
            data = os.read(self.terminal, 65536)
        except OSError:  # EIO: no process has it open any more
            return b""
        self.written += data
        self._stream.feed(data)
        return data


@contextlib.contextmanager
def session(*arguments: object, program: str = CONNECT, **environment: str) -> Iterator[Session]:
    running = Session(*arguments, program=program, **environment)
    try:
        yield running
    finally:
        running.close()
