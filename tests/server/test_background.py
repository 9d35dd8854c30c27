"""A server in the background of a terminal that stops processes which write (``stty tostop``)."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import socket
import sys
import termios
import threading
from pathlib import Path
from typing import Any

import pytest
from support import PATIENCE, ROOT, wait_until

from netkit.process import signals

SCRIPT = """
import logging, os, sys
import netkit

def handler(conn):
    for line in conn.lines():
        if line == "read":
            try:
                os.read(0, 1)
            except OSError as error:
                print("cannot read:", error, file=sys.stderr, flush=True)
        print("from a handler", file=sys.stderr, flush=True)
        conn.write(f"{os.getpid()}\\n")

if __name__ == "__main__":
    logging.basicConfig(level="INFO", format="%(message)s")
    sys.exit(netkit.serve(handler, host="127.0.0.1", workers=2).exit_status)
"""


class Shell:
    """A session with a terminal, and a program in its background."""

    def __init__(self, *command: str) -> None:
        self.output = ""
        pid, self.terminal = pty.fork()
        if pid == 0:
            os.execv(sys.executable, [sys.executable, "-c", SHELL, *command])
        self.pid = pid
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # all who had the terminal have ended
            while chunk := os.read(self.terminal, 4096):
                self.output += chunk.decode()

    def search(self, pattern: str) -> Any:
        wait_until(lambda: re.search(pattern, self.output), f"{pattern!r} in {self.output!r}")
        return re.search(pattern, self.output)

    def __enter__(self) -> Shell:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(self.search(r"pid (\d+)")[1]), signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self._reader.join()
        os.close(self.terminal)


SHELL = """
import os, subprocess, sys
child = subprocess.Popen(sys.argv[1:], preexec_fn=os.setpgrp)
print("pid", child.pid, flush=True)
print("status", child.wait(), flush=True)
"""


def stop_writers(terminal: int, stop: bool) -> None:
    """As ``stty tostop``."""
    settings = termios.tcgetattr(terminal)
    settings[3] = settings[3] | termios.TOSTOP if stop else settings[3] & ~termios.TOSTOP
    termios.tcsetattr(terminal, termios.TCSANOW, settings)


@pytest.mark.skipif(sys.platform != "linux", reason="a terminal as on Linux")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # of fork, from 3.12 on
def test_workers_in_the_background_write_to_their_terminal_and_do_not_become_fewer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "script.py").write_text(SCRIPT)
    with Shell(sys.executable, str(tmp_path / "script.py")) as shell:
        shell.search("2 workers ready")
        pid = int(shell.search(r"pid (\d+)")[1])
        workers = set()

        def ask(word: str) -> None:
            with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
                sock.sendall(word.encode() + b"\n")
                workers.add(sock.makefile().readline())

        port = int(shell.search(r"listening on 127.0.0.1:(\d+)")[1])

        def both() -> bool:
            ask("write")
            return len(workers) == 2

        stop_writers(shell.terminal, True)
        wait_until(both)
        shell.search("from a handler")
        ask("read")
        shell.search("cannot read: .Errno 5")
        assert len(workers) == 2
        os.kill(pid, signal.SIGTERM)
        shell.search("status 0")
        assert "stopping: 2 workers" in shell.output


@pytest.mark.parametrize("path", ["/nowhere/tty", os.devnull])
def test_nothing_stops_writers_where_there_is_no_terminal(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "ctermid", lambda: path)
    assert not signals.stops_writers()


@pytest.mark.parametrize(("path", "ignored"), [("/nowhere/tty", False), (os.devnull, True)])
def test_sigttin_is_ignored_only_if_there_is_a_terminal_to_send_it(
    path: str, ignored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "ctermid", lambda: path)
    before = signal.getsignal(signal.SIGTTIN)
    with signals.StopSignals() as caught:
        caught.disregard(signal.SIGHUP, signal.SIGTTIN)
        assert (signal.getsignal(signal.SIGTTIN) == signal.SIG_IGN) is ignored
        assert signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
    assert signal.getsignal(signal.SIGTTIN) == before


def test_sigttou_is_ignored_once_a_terminal_has_sent_it(monkeypatch: pytest.MonkeyPatch) -> None:
    controller, terminal = pty.openpty()
    name = os.ttyname(terminal)
    monkeypatch.setattr(os, "ctermid", lambda: name)
    monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp() + 1)
    before = signal.getsignal(signal.SIGTTOU)
    try:
        for stop in (False, True):
            stop_writers(terminal, stop)
            assert signals.stops_writers() is stop
            with signals.StopSignals() as caught:
                caught.catch(signal.SIGTTOU)
                signal.raise_signal(signal.SIGTTOU)
                assert (signal.getsignal(signal.SIGTTOU) == signal.SIG_IGN) is stop
            assert signal.getsignal(signal.SIGTTOU) == before
        monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp())
        assert not signals.stops_writers()
    finally:
        os.close(terminal)
        os.close(controller)
