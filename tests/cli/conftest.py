"""Fixtures for the commands."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import in_thread, logging_put_back, observed, wait_until, without_time

from netkit.cli import main
from netkit.core import events
from netkit.process.signals import StopSignals

from .commands import During, Result, Run


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes]) -> Iterator[Run]:
    """Runs a command in this process. With `during`, which gets the port, and then Ctrl+C.

    The lines are as on a terminal, where they have no time.
    """
    handlers = {signum: signal.getsignal(signum) for signum in StopSignals.SIGNALS}

    def call(*argv: str, during: During | None = None, stop: bool = True) -> Result:
        def act() -> None:
            wait_until(lambda: seen, "listening")
            try:
                if during:
                    during(int(seen[0].address.rpartition(":")[2]))
            finally:
                if stop:
                    os.kill(os.getpid(), signal.SIGINT)

        status: int | str | None
        with contextlib.ExitStack() as stack:
            stack.enter_context(logging_put_back())
            seen = stack.enter_context(observed(events.Listening))
            if during:
                stack.enter_context(in_thread(act))
            try:
                status = main.main(argv)
            except SystemExit as end:
                status = end.code
        out, err = capfdbinary.readouterr()
        return Result(status, out, [without_time(line) for line in err.decode().splitlines()])

    yield call
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Writes a module into the current directory, and has it forgotten in the end."""
    names: list[str] = []
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.chdir(tmp_path)

    def write(source: str, name: str = "app") -> Path:
        path = tmp_path / f"{name}.py"
        path.write_text(source)
        names.append(name)
        return path

    yield write
    for name in names:
        sys.modules.pop(name, None)
