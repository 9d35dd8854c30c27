"""What a service manager hears of whole programs: notifications in order, and the watchdog."""

from __future__ import annotations

import itertools
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from managers import Manager
from support import Program, receive_exactly

from netkit.core.cores import has_gil

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="systemd is for Linux")

NETKIT = (sys.executable, "-m", "netkit")
# Handlers that hang in several ways, and a server that one may suspend.
APP = """
import ctypes, os, netkit

def app(conn):
    for line in conn.lines():
        if line == "hold the GIL":
            ctypes.PyDLL(None).sleep(3)
        elif line == "suspend":
            conn.server.suspend()
        elif line == "stop":
            os.kill(os.getpid(), 19)
        conn.write(f"{os.getpid()}\\n")
"""

READY = "READY=1\nSTATUS=0 connected"

Start = Callable[..., Program]


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    """A manager that the programs of the test notify."""
    made = Manager(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", made.address)
    yield made
    made.close()


@pytest.fixture
def start(manager: Manager, tmp_path: Path) -> Iterator[Start]:
    """Starts ``netkit serve app:app 0 ARGUMENTS``, and kills it in the end."""
    programs: list[Program] = []
    (tmp_path / "app.py").write_text(APP)

    def call(*arguments: Any, command: tuple[Any, ...] = ("serve", "app:app")) -> Program:
        programs.append(Program(*NETKIT, *command, 0, *arguments, cwd=tmp_path))
        return programs[-1]

    yield call
    for program in programs:
        program.__exit__()


def ask(program: Program, line: str) -> int:
    """The process that answers."""
    with program.connect() as sock:
        sock.sendall(line.encode() + b"\n")
        return int(sock.makefile().readline())


def watch(manager: Manager, seconds: float, *expected: str) -> list[float]:
    """The times between the notifications of the watchdog. Others must be those `expected`.

    It takes `seconds`, and longer if an expected one has not come by then.
    """
    end, times, others = time.monotonic() + seconds, [time.monotonic()], []
    while time.monotonic() < end or len(others) < len(expected):
        text = manager.receive()
        if text == "WATCHDOG=1":
            times.append(time.monotonic())
        else:
            others.append(text)
    assert [re.sub(r"\d+ connected", "N connected", text) for text in others] == [*expected]
    return [b - a for a, b in itertools.pairwise(times)]


def stopping(seconds: float, status: str) -> str:
    return f"STOPPING=1\nEXTEND_TIMEOUT_USEC={seconds * 1e6:.0f}\nSTATUS=stopping: {status}"


def test_a_start_a_reload_of_nothing_and_a_stop(manager: Manager, start: Start) -> None:
    program = start("--drain-timeout", "100", "--stop-delay", "0.1", command=("echo",))
    assert manager.receive() == READY
    with program.connect() as sock:
        sock.sendall(b"x")
        receive_exactly(sock, 1)
        program.send_signal(signal.SIGHUP)
        assert re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=\d+", manager.receive())
        assert manager.receive() == "READY=1\nSTATUS=reloaded"
        program.send_signal(signal.SIGTERM)
        assert manager.receive() == stopping(103.1, "1 connected")
        assert sock.recv(1) == b""
    assert manager.receive() == "STATUS=stopped: 1 finished, 0 cut"
    assert program.wait() == 0
    assert manager.received() == []


def test_a_reload_that_fails_is_told_with_its_reason(
    manager: Manager, start: Start, tmp_path: Path
) -> None:
    deny = tmp_path / "deny"
    deny.write_text("10.0.0.0/8\n")
    program = start("--deny", f"@{deny}", command=("echo",))
    assert manager.receive() == READY
    for text, outcome in (
        ("nonsense\n", "the list 'deny' not reloaded, the old one stays: .*nonsense.*"),
        ("10.0.0.0/8\n", "reloaded"),
    ):
        deny.write_text(text)
        program.send_signal(signal.SIGHUP)
        assert manager.receive().startswith("RELOADING=1\n")
        assert re.fullmatch(f"READY=1\nSTATUS={outcome}", manager.receive())


def test_hooks_of_a_program_have_the_time_that_netkit_allows(
    manager: Manager, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import netkit\n"
        "netkit.serve(netkit.EchoHandler, host='127.0.0.1', on_start=lambda server: None)\n"
    )
    with Program(sys.executable, script) as program:
        assert manager.receive() == "EXTEND_TIMEOUT_USEC=243000000\nSTATUS=starting"
        assert manager.receive() == READY
        program.send_signal(signal.SIGTERM)
        assert manager.receive() == stopping(15, "0 connected")
        assert manager.receive() == "STATUS=stopped: 0 finished, 0 cut"
        assert program.wait() == 0


@pytest.mark.parametrize("returns", [True, False])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_stop_during_on_start_is_told_at_once(
    manager: Manager, tmp_path: Path, workers: int, returns: bool
) -> None:
    script, go_on = tmp_path / "script.py", tmp_path / "go-on"
    drain_timeout = 100 if returns else 0.5
    script.write_text(
        "import netkit, pathlib, sys, time\n"
        "def on_start(server):\n"
        "    print('begun', file=sys.stderr, flush=True)\n"
        f"    while not pathlib.Path({str(go_on)!r}).exists():\n"
        "        time.sleep(0.01)\n"
        "if __name__ == '__main__':\n"
        "    netkit.serve(netkit.EchoHandler, host='127.0.0.1', on_start=on_start,\n"
        f"        stop_delay=0.1, drain_timeout={drain_timeout}, workers={workers})\n"
    )
    with Program(sys.executable, script) as program:
        assert manager.receive().endswith("STATUS=starting")
        program.wait_for_line("begun")
        program.send_signal(signal.SIGTERM)
        # A process without workers first waits for `on_start`, as long as for its clients.
        seconds = 0.1 + drain_timeout + 3 + 5 + (drain_timeout if workers == 1 else 0)
        status = "0 connected" + (", 0 workers" if workers == 2 else "")
        assert manager.receive() == stopping(seconds, status)
        if returns:
            go_on.touch()
        assert manager.receive() == "STATUS=stopped: 0 finished, 0 cut"
        assert program.wait() == 0
    assert manager.received() == []


def test_workers_that_come_die_and_are_reloaded(manager: Manager, start: Start) -> None:
    program = start("--workers", "2", "--stop-delay", "0.1")
    assert manager.receive() == "EXTEND_TIMEOUT_USEC=303000000\nSTATUS=starting"
    assert manager.receive() == f"{READY}, 2 workers"
    os.kill(ask(program, "who"), signal.SIGKILL)
    assert manager.receive() == "STATUS=0 connected, 1 worker"
    assert manager.receive() == "STATUS=0 connected, 2 workers"
    program.send_signal(signal.SIGHUP)
    assert manager.receive().startswith("RELOADING=1\n")
    assert manager.receive() == "READY=1\nSTATUS=reloaded"
    program.send_signal(signal.SIGTERM)
    assert manager.receive() == stopping(10.1, "0 connected, 2 workers")
    for status in iter(manager.receive, "STATUS=stopped: 0 finished, 0 cut"):
        assert re.fullmatch(r"STATUS=stopping: 0 connected, [01] workers?", status)
    assert program.wait() == 0


# The watchdog


@pytest.fixture
def watchdog(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the time of the watchdog in seconds, for the programs of the test."""
    return lambda seconds: monkeypatch.setenv("WATCHDOG_USEC", str(int(seconds * 1e6)))


def test_a_handler_that_holds_the_gil_is_noticed_and_a_full_or_suspended_server_is_well(
    manager: Manager, start: Start, watchdog: Callable[[float], None]
) -> None:
    """Without the GIL, such a handler keeps no other thread waiting, and the server is well."""
    watchdog(2)
    program = start("--max-connections", "1")
    assert manager.receive() == READY
    assert max(watch(manager, 1)) < 2.5
    with program.connect() as sock, program.connect():  # the second one waits
        sock.sendall(b"hold the GIL\n")
        assert (max(watch(manager, 3.5)) > 2.5) == has_gil()
        assert max(watch(manager, 1)) < 2.5  # though it is full
        sock.sendall(b"suspend\n")
        assert max(watch(manager, 1, "STATUS=suspended: N connected")) < 2.5


def test_a_worker_that_hangs_is_replaced_and_the_parent_is_well(
    manager: Manager, start: Start, watchdog: Callable[[float], None]
) -> None:
    watchdog(4)
    program = start("--workers", "2")
    manager.receive()
    assert manager.receive() == f"{READY}, 2 workers"
    with program.connect() as sock:
        sock.sendall(b"who\n")
        pid = int(sock.makefile().readline())
        sock.sendall(b"stop\n")
        changes = "STATUS=N connected, 1 worker", "STATUS=N connected, 2 workers"
        assert max(watch(manager, 5, *changes)) < 4
    program.wait_for_line(f"error: a worker failed: worker {pid} has hung for 4 s; starting")
    assert ask(program, "who") != pid
