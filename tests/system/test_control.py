"""The control socket of real programs, of one process and of several."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ops.programs import Operator
from support import Cli, receive_exactly, wait_until

from netkit.core.cores import has_gil

APP = """
import time

def app(conn):
    for line in conn.lines():
        if line == "sleep":
            time.sleep(60)
        conn.write(line.upper() + "\\n")
"""


@contextlib.contextmanager
def operated(folder: Path, *options: str) -> Iterator[tuple[Cli, Operator]]:
    """A program that serves `APP`, and an operator of it."""
    (folder / "app.py").write_text(APP)
    path = folder / "app.ctl"
    with Cli("serve", "app:app", "0", "--control", str(path), *options, cwd=folder) as program:
        operator = Operator(path)
        if "--workers" in options:
            program.wait_for_line("workers ready")
            count = int(options[options.index("--workers") + 1])
            wait_until(lambda: len(operator.rows("status")[0]["processes"]) == count)
        yield program, operator


def exchange(sock: socket.socket, line: bytes) -> bytes:
    sock.sendall(line + b"\n")
    return receive_exactly(sock, len(line) + 1)


def agent_line(path: Path) -> bytes:
    """What the status endpoint at `path` tells the agent check of a balancer."""
    with socket.socket(socket.AF_UNIX) as sock, sock.makefile("rb") as answer:
        sock.settimeout(10)
        sock.connect(str(path))
        sock.sendall(b"agent\n")
        return answer.read()


@pytest.mark.parametrize("workers", [(), ("--workers", "2")])
def test_a_path_that_cannot_be_had_is_one_line_and_exit_status_1(
    tmp_path: Path, workers: tuple[str, ...]
) -> None:
    path = str(tmp_path / "missing" / "app.ctl")
    with Cli("echo", "0", "--control", path, *workers, listening=False) as program:
        assert program.wait() == 1
        (line,) = [each for each in program.lines if "listening" not in each]
        assert path in line


def test_an_invalid_path_is_an_error_that_names_its_source(tmp_path: Path) -> None:
    with Cli("echo", "0", "--control", "8080", listening=False) as program:
        assert program.wait() == 2
        assert "--control: control must be the path of a Unix socket" in program.lines[-1]
    path = str(tmp_path / "s")
    with Cli("echo", f"unix:{path}", "--control", path, listening=False) as program:
        assert program.wait() == 1
        assert path in program.lines[-1]


@pytest.mark.skipif(not has_gil(), reason="no stacks of other threads without the GIL")
def test_a_program_of_one_process_shows_where_a_client_stands_and_stops(tmp_path: Path) -> None:
    with operated(tmp_path, "--stuck", "0.1") as (program, operator), program.connect() as sock:
        sock.sendall(b"sleep\n")
        program.wait_for_line("the handler is stuck, for")
        program.wait_for_line(r"time\.sleep\(60\)")
        (row,) = operator.rows("conns")
        assert row["where"] == "app.py:7 app"
        program.send_signal(signal.SIGUSR1)
        program.wait_for_line("report: connected  1, 0 held")
        program.wait_for_line("report: .* app.py:7 app")
        assert operator.ask("stop 0") == "stopping\n"
        assert program.wait() == 0
    assert not operator.path.exists()


def test_all_workers_answer_and_one_that_cannot_is_named(tmp_path: Path) -> None:
    with (
        operated(tmp_path, "--workers", "2") as (program, operator),
        contextlib.ExitStack() as stack,
    ):
        socks = [stack.enter_context(program.connect()) for _ in range(8)]
        for sock in socks:
            assert exchange(sock, b"hello") == b"HELLO\n"
        rows = operator.rows("conns")
        assert sorted(row["peer"] for row in rows) == sorted(
            "{}:{}".format(*sock.getsockname()) for sock in socks
        )
        wait_until(lambda: len(operator.rows("status")[0]["processes"]) == 2)
        pids = [each["pid"] for each in operator.rows("status")[0]["processes"]]
        assert {row["id"].partition(".")[0] for row in rows} <= set(map(str, pids))
        stopped, other = pids
        os.kill(stopped, signal.SIGSTOP)
        try:
            # It may still answer for a moment.
            wait_until(lambda: any("error" in row for row in operator.rows("conns")))
            began = time.monotonic()
            answers = operator.rows("conns")
            assert time.monotonic() - began < 10
        finally:
            os.kill(stopped, signal.SIGCONT)
        failed = [row for row in answers if "error" in row]
        text = f"worker {stopped}: no answer within 1 s"
        assert failed == [{"error": text, "worker": stopped}]
        assert {row["worker"] for row in answers if "id" in row} <= {other}
        victim = rows[0]
        assert operator.rows(f"kill {victim['id']}")[0]["result"] == "killed"
        (sock,) = [it for it in socks if victim["peer"].endswith(f":{it.getsockname()[1]}")]
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""
        wait_until(lambda: operator.rows("status")[0]["connected"] == 7)
        program.send_signal(signal.SIGUSR1)
        program.wait_for_line("report: connected  7, 0 held")


def test_what_an_operator_changes_holds_for_workers_to_come_and_no_sum_falls(
    tmp_path: Path,
) -> None:
    status_path = tmp_path / "status"
    options = ("--workers", "2", "--status", f"unix:{status_path}")
    with operated(tmp_path, *options) as (program, operator):
        with program.connect() as sock:
            exchange(sock, b"hello")
        assert agent_line(status_path) == b"ready up\n"
        assert operator.ask("set idle_timeout 77") == "idle_timeout is 77, for new clients\n"
        assert operator.ask("suspend").startswith("suspended")
        assert agent_line(status_path) == b"drain\n"
        (status,) = operator.rows("status")
        assert (status["phase"], status["accepted"], status["received"]) == ("suspended", 1, 6)
        for each in status["processes"]:
            os.kill(each["pid"], signal.SIGKILL)
        wait_until(lambda: operator.rows("status")[0]["restarts"] == 2)
        wait_until(lambda: len(operator.rows("status")[0]["processes"]) == 2)
        wait_until(lambda: operator.ask("get idle_timeout") == "idle_timeout 77\n")
        (status,) = operator.rows("status")
        assert all(each["suspended"] for each in status["processes"])
        assert agent_line(status_path) == b"drain\n"
        assert (status["accepted"], status["received"]) == (1, 6)
        assert operator.ask("resume") == "resumed\n"
        assert agent_line(status_path) == b"ready up\n"
        assert operator.ask("workers 3") == "workers: 3\n"
        wait_until(lambda: len(operator.rows("status")[0]["processes"]) == 3)
        assert operator.ask("reload") == "reloading\n"
        wait_until(lambda: operator.rows("status")[0]["reloads"]["ok"] == 1)
        wait_until(lambda: operator.ask("get idle_timeout") == "idle_timeout 77\n")
        with program.connect() as sock:
            assert exchange(sock, b"again") == b"AGAIN\n"
        operator.ask("stop")
        assert program.wait() == 0
    assert not operator.path.exists()


def test_live_events_of_all_workers_are_shown_until_the_operator_goes(tmp_path: Path) -> None:
    with operated(tmp_path, "--workers", "2") as (program, operator):
        with operator.connect() as watcher, watcher.makefile("rb") as lines:
            watcher.sendall(b"events ConnectionClosed\n")
            seen: list[bytes] = []
            reader = threading.Thread(target=lambda: seen.append(lines.readline()))
            reader.start()

            def come_and_go() -> list[bytes]:
                with program.connect() as sock:
                    exchange(sock, b"x")
                return seen

            wait_until(come_and_go)
            reader.join()
            assert b'"event": "ConnectionClosed"' in seen[0]
        operator.ask("stop")
        assert program.wait() == 0
