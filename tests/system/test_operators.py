"""Programs with workers as operators see them, while processes are killed, stopped and replaced."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ops.programs import Operator
from pages import page_of, samples_of
from support import Program, receive_all, receive_exactly, wait_until

from netkit.core.cores import has_gil

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

APP = """
import multiprocessing, sys, netkit

def shout(conn):
    for line in conn.lines():
        conn.write(line.upper() + "\\n")

if __name__ == "__main__":
    method, workers, status, control, delay = sys.argv[1:]
    multiprocessing.set_start_method(method)
    server = netkit.create_server(shout, stop_delay=float(delay)).listen(0, "127.0.0.1")
    endpoints = {"status": status, "control": control} if status else {}
    netkit.run(server, drain_timeout=5, workers=int(workers), **endpoints)
"""
ACCEPTED = "netkit_connections_accepted_total"


class Served(Program):
    """A program with workers, which has a status endpoint and a control socket."""

    def __init__(
        self,
        folder: Path,
        workers: int = 2,
        method: str = "fork",
        endpoints: bool = True,
        **more: Any,
    ) -> None:
        (folder / "app.py").write_text(APP)
        self.status, self.operator = str(folder / "status"), Operator(folder / "control")
        places = (f"unix:{self.status}", self.operator.path) if endpoints else ("", "")
        delay = more.get("delay", 0)
        super().__init__(sys.executable, "app.py", method, workers, *places, delay, cwd=folder)
        self.wait_for_line(f"{workers} workers ready")
        if endpoints:  # the front process learns of each worker a moment later
            wait_until(lambda: len(self.workers()) == workers)

    def counter(self, name: str) -> float:
        return samples_of(page_of(self.status))[name]

    def workers(self) -> list[int]:
        return [row["pid"] for row in self.operator.rows("status")[0]["processes"]]

    def front(self) -> int:
        """The process that answers: it is no worker, and has more threads than a tracker."""
        with self.operator.connect() as sock:
            credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        assert credentials  # those of the parent, which has bound it
        others = {*self.workers(), self.process.pid}
        return max(set(self.children()) - others, key=_threads)

    def use(self, lines: int = 1) -> None:
        """A client that comes, is answered, and goes."""
        with self.connect() as sock:
            sock.sendall(b"a\n" * lines)
            assert receive_exactly(sock, 2 * lines) == b"A\n" * lines
            sock.shutdown(socket.SHUT_WR)
            assert receive_all(sock) == b""


def _threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


Start = Callable[..., Served]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a `Served`, and stops it in the end."""
    with contextlib.ExitStack() as stack:
        made: list[Served] = []

        def call(**given: Any) -> Served:
            made.append(stack.enter_context(Served(tmp_path, **given)))
            return made[-1]

        yield call
        for program in made:
            if program.process.poll() is None:
                program.send_signal(signal.SIGINT)
                assert program.wait() == 0


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def stop(pid: int) -> None:
    """Send SIGSTOP, and wait until no thread of the process runs."""
    os.kill(pid, signal.SIGSTOP)
    tasks = Path(f"/proc/{pid}/task")
    wait_until(lambda: {_state_in(task / "stat") for task in tasks.iterdir()} == {"T"})


def _state_in(stat: Path) -> str:
    return stat.read_text().rpartition(")")[2].split()[0]


def has_ended(pid: int) -> bool:
    try:
        return _state_in(Path(f"/proc/{pid}/stat")) == "Z"
    except OSError:
        return True


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_a_worker_that_does_not_answer_is_named_and_the_others_answer(start: Start) -> None:
    program = start()
    program.send_signal(signal.SIGUSR1)
    program.wait_for_line("report: worker ")
    stopped, other = program.workers()
    stop(stopped)
    began = time.monotonic()
    rows = program.operator.rows("status")[0]["processes"]
    assert time.monotonic() - began < 10
    errors = {row["pid"]: row["error"] for row in rows}
    assert errors == {stopped: "no answer within 1 s", other: ""}
    assert program.operator.ask("conns").splitlines()[-1].startswith("error: ")
    os.kill(stopped, signal.SIGCONT)
    wait_until(
        lambda: not any(it["error"] for it in program.operator.rows("status")[0]["processes"])
    )


def test_a_question_that_was_not_answered_in_time_is_not_carried_out_later(start: Start) -> None:
    program = start()
    with program.connect() as sock:
        sock.sendall(b"a\n")
        assert receive_exactly(sock, 2) == b"A\n"
        (row,) = program.operator.rows("conns")
        worker = row["worker"]
        stop(worker)
        assert "no answer within" in program.operator.ask(f"kill {row['id']}")
        os.kill(worker, signal.SIGCONT)
        wait_until(lambda: "error" not in program.operator.ask("conns"))
        sock.sendall(b"b\n")
        assert receive_exactly(sock, 2) == b"B\n"


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_counters_do_not_fall_though_workers_and_the_front_process_are_killed(
    start: Start, method: str
) -> None:
    program = start(method=method)
    front, seen, used = program.front(), 0.0, 0
    for victim in ("worker", "front", "both"):
        for _ in range(4):
            program.use()
            used += 1
        wait_until(lambda: program.counter(ACCEPTED) == used)  # noqa: B023
        before = program.workers()
        if victim != "front":
            kill(before[0])
        if victim != "worker":
            kill(front)
            wait_until(lambda: has_ended(front))  # noqa: B023
        seen = program.counter(ACCEPTED)
        assert seen == used, victim
        wait_until(lambda: len(set(program.workers()) - {before[0]}) == 2 or victim == "front")  # noqa: B023
        front = program.front()
        assert program.counter(ACCEPTED) == used, victim
    restarts = program.operator.rows("status")[0]["restarts"]
    assert restarts == 2
    assert sum("which answers operators, ended by SIGKILL" in it for it in program.lines) == 2
    program.send_signal(signal.SIGTERM)
    assert program.wait() == 0


def test_operators_change_the_workers_and_stop_the_program(start: Start) -> None:
    program = start()
    program.operator.rows("workers 3")
    program.wait_for_line("3 workers ready")
    program.operator.rows("reload")
    program.wait_for_line("reloaded: 3 workers")
    program.operator.rows("stop 5")
    assert program.wait() == 0


def test_workers_that_a_reload_replaces_tell_their_last_figures(start: Start) -> None:
    program = start()
    before = program.workers()
    with program.connect() as sock:
        sock.sendall(b"a\n")
        assert receive_exactly(sock, 2) == b"A\n"
        program.send_signal(signal.SIGHUP)
        program.wait_for_line("reloaded: 2 workers")
        wait_until(lambda: len(program.workers()) >= 3)  # the old one serves its client
        sock.sendall(b"b\n" * 1000)
        assert receive_exactly(sock, 2000) == b"B\n" * 1000
    wait_until(lambda: not set(before) & set(program.workers()))
    status = samples_of(page_of(program.status))
    assert status["netkit_received_bytes_total"] == 2002
    assert status[ACCEPTED] == 1
    assert status['netkit_reloads_total{result="ok"}'] == 1


def test_no_process_holds_more_and_more_descriptors(start: Start) -> None:
    program = start()
    program.use()
    program.counter(ACCEPTED)

    def held() -> list[int]:
        return [descriptors(program.process.pid), descriptors(program.front())]

    def settled() -> bool:
        return len(program.workers()) == 2 and program.counter(ACCEPTED) >= 1

    def reload(number: int) -> None:
        program.send_signal(signal.SIGHUP)
        wait_until(lambda: sum("reloaded" in line for line in program.lines) == number)
        wait_until(settled)

    def replace_front() -> None:
        front = program.front()
        kill(front)
        wait_until(lambda: has_ended(front) and settled() and program.front() != front)

    reload(1)  # which starts what `multiprocessing` needs for processes that are spawned
    replace_front()
    before = held()
    for _ in range(3):
        victim = program.workers()[0]
        kill(victim)
        wait_until(lambda: victim not in program.workers() and settled())  # noqa: B023
    reload(2)
    wait_until(lambda: held() == before)
    replace_front()
    wait_until(lambda: held() == before)


def test_only_the_parent_and_the_front_process_have_the_listeners_of_the_endpoints(
    start: Start,
) -> None:
    program = start()
    front = program.front()
    inode = _inode_of(program.status)
    holders = {pid for pid in (program.process.pid, *program.children()) if inode in _sockets(pid)}
    assert holders == {program.process.pid, front}
    listener = _listener_at(program.port)
    assert listener not in _sockets(front)


def _inode_of(path: str) -> str:
    for line in Path("/proc/net/unix").read_text().splitlines():
        if line.endswith(path) and line.split()[3] == "00010000":  # it listens
            return line.split()[6]
    raise AssertionError(path)


def _listener_at(port: int) -> str:
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(f":{port:04X}") and fields[3] == "0A":
            return fields[9]
    raise AssertionError(port)


def _sockets(pid: int) -> set[str]:
    found = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found.update(re.findall(r"socket:\[(\d+)\]", os.readlink(f"/proc/{pid}/fd/{name}")))
    return found


def test_workers_that_start_later_are_suspended_too(start: Start) -> None:
    program = start()
    assert program.operator.rows("suspend")[-1]["result"]
    victim = program.workers()[0]
    kill(victim)
    wait_until(lambda: victim not in program.workers() and len(program.workers()) == 2)
    rows = program.operator.rows("status")[0]
    assert [row["suspended"] for row in rows["processes"]] == [True, True]
    assert rows["phase"] == "suspended"
    front = program.front()
    kill(front)
    wait_until(lambda: has_ended(front))
    assert program.operator.rows("status")[0]["phase"] == "suspended"
    with program.connect() as sock:
        sock.sendall(b"a\n")
        assert program.operator.rows("resume")[-1]["result"]
        assert receive_exactly(sock, 2) == b"A\n"
    assert program.operator.rows("status")[0]["phase"] == "ready"


def test_all_processes_end_with_a_parent_that_is_killed(start: Start) -> None:
    program = start()
    processes = [*program.workers(), program.front()]
    kill(program.process.pid)
    assert program.wait() == -signal.SIGKILL
    for pid in processes:
        wait_until(lambda: has_ended(pid))  # noqa: B023


def test_a_report_is_written_by_a_process_of_its_own_if_there_are_no_endpoints(
    start: Start,
) -> None:
    program = start(endpoints=False)
    children = set(program.children())
    with program.connect() as sock:
        sock.sendall(b"a\n")
        assert receive_exactly(sock, 2) == b"A\n"
        program.send_signal(signal.SIGUSR1)
        where = r".* app.py:\d+ shout" if has_gil() else ""  # no stacks of other threads without it
        program.wait_for_line(rf"report: .* 127\.0\.0\.1:\d+ {where}")
    wait_until(lambda: set(program.children()) == children)
    program.send_signal(signal.SIGTERM)
    assert program.wait() == 0
    assert not [line for line in program.lines if "answers operators" in line]


@pytest.mark.parametrize("to_all", [False, True])
def test_workers_serve_on_in_the_delay_of_a_stop(start: Start, to_all: bool) -> None:
    program = start(delay=2)
    pids = [program.process.pid, *program.workers()] if to_all else [program.process.pid]
    began = time.monotonic()
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    program.wait_for_line("not ready: accepting for another 2 s before the stop")
    wait_until(lambda: program.operator.rows("status")[0]["phase"] == "stopping")
    program.use()
    if not to_all:
        kill(program.workers()[0])
        program.wait_for_line("ended by SIGKILL; starting another")
        wait_until(lambda: len(program.workers()) == 2)
        program.use()
    assert program.wait() == 0
    assert time.monotonic() - began >= 2
    assert sum("not ready" in line for line in program.lines) == 1
    assert program.lines[-1] == "stopped: 0 finished, 0 cut"


def test_ctrl_c_ends_the_delay_of_a_stop_and_cuts_nobody(start: Start) -> None:
    program = start(delay=60)
    with program.connect() as sock:
        sock.sendall(b"a\n")
        assert receive_exactly(sock, 2) == b"A\n"
        for _ in range(2):  # the second one changes nothing
            program.send_signal(signal.SIGTERM)
        program.wait_for_line("not ready")
        program.send_signal(signal.SIGINT)
        assert receive_all(sock) == b""
    assert program.wait() == 0
    assert program.lines[-1] == "stopped: 1 finished, 0 cut"
