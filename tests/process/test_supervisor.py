"""Worker processes behind one port, from outside: how they serve, are replaced, reload and end."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import (
    Cli,
    Program,
    client,
    in_thread,
    receive_all,
    send_and_end,
    wait_until,
)

import netkit
from netkit.core.cores import has_gil, usable_cores

linux = pytest.mark.skipif(sys.platform != "linux", reason="forks and /proc as Linux has them")

# A handler that answers with its process and the version of its code, and obeys orders.
APP = """
import contextlib, os, signal, socket, threading, time, warnings
import netkit

VERSION = "one"

def who(conn):
    for line in conn.lines():
        word = line.strip()
        if word == "stop":
            conn.server.stop()
        elif word == "freeze":
            conn.write("frozen\\n")
            os.kill(os.getpid(), signal.SIGSTOP)
        elif word == "fork":
            warnings.simplefilter("ignore")  # that there are threads
            child = os.fork()
            if child == 0:
                time.sleep(20)
                os._exit(0)
            conn.write(f"{child} {VERSION}\\n")
            continue
        elif word == "crash":
            os._exit(3)
        elif word == "listening":
            conn.write(f"{conn.server.listening}\\n")
            continue
        conn.write(f"{os.getpid()} {VERSION}\\n")
"""


class Client:
    """A client of `who`."""

    def __init__(self, program: Program) -> None:
        self.sock = program.connect()
        self.pid = 0
        self.version = ""

    def ask(self, order: str = "who") -> None:
        """Ask for process and version, which must be those of the answers before."""
        self.say(order)
        self.hear()

    def begin(self) -> None:
        """Send half an order, and return once its worker has received that."""
        self.sock.sendall(b"who\nwh")  # in one segment
        self.hear()

    def finish(self) -> None:
        """Send the rest of what `begin` has begun, and hear the answer."""
        self.say("o")
        self.hear()

    def say(self, order: str) -> None:
        self.sock.sendall(order.encode() + b"\n")

    def hear(self) -> None:
        pid, version = self.line().split()
        assert (self.pid, self.version) in ((0, ""), (int(pid), version.decode()))
        self.pid, self.version = int(pid), version.decode()

    def others_may_come(self) -> bool:
        """Whether its worker accepts clients."""
        self.say("listening")
        return self.line() == b"True\n"

    def line(self) -> bytes:
        answer = b""
        while not answer.endswith(b"\n"):
            chunk = self.sock.recv(100)
            assert chunk, answer
            answer += chunk
        return answer

    def is_let_go(self) -> bool:
        """Wait for the server to end the connection. Whether it ends without a reset."""
        try:
            return receive_all(self.sock) == b""
        except ConnectionError:
            return False

    def __enter__(self) -> Client:
        self.ask()
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


@contextlib.contextmanager
def clients_of_all(program: Program, workers: int) -> Iterator[list[Client]]:
    """A client of each worker, and perhaps more of some."""
    with contextlib.ExitStack() as stack:
        clients: list[Client] = []

        def come() -> bool:
            clients.append(stack.enter_context(Client(program)))
            return len({client.pid for client in clients}) >= workers

        wait_until(come, f"a client of each of {workers} workers")
        yield clients


def pids_of(program: Program, workers: int) -> set[int]:
    with clients_of_all(program, workers) as clients:
        return {client.pid for client in clients}


SERVE = """
import logging, sys
logging.basicConfig(level="INFO", format="%(message)s")
report = netkit.serve(who, host="127.0.0.1", workers=2, drain_timeout=60)
sys.exit(report.exit_status)
"""

App = Callable[..., Cli]
Script = Callable[..., Program]


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    """`netkit serve` with `who`, in a folder with its module, once its workers are ready.

    In the end it stops, unless the test has stopped it.
    """
    (tmp_path / "app.py").write_text(APP)
    with contextlib.ExitStack() as stack:

        def run(workers: int = 2, *options: str) -> Cli:
            command = ("serve", "app:who", "--workers", str(workers), *options)
            program = stack.enter_context(Cli(*command, cwd=tmp_path))
            program.wait_for_line(f"{workers} workers ready")
            programs.append(program)
            return program

        programs: list[Cli] = []
        yield run
        for program in programs:
            if program.process.poll() is None:
                stop(program)


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """A program with `who` in it, and with what it does."""

    def run(does: str = SERVE, start_method: str = "", guard: bool = True, **more: Any) -> Program:
        if start_method:
            chosen = f"multiprocessing.set_start_method({start_method!r}, True)"
            does = f"import multiprocessing\n{chosen}\n{does}"
        if guard:
            does = 'if __name__ == "__main__":\n' + textwrap.indent(does, "    ")
        path = tmp_path / "script.py"
        path.write_text(APP + does)
        return Program(sys.executable, path, cwd=tmp_path, **more)

    return run


def ends(program: Program, status: int = 0) -> list[str]:
    """Its last lines, once it has ended with this status and left nothing behind."""
    assert program.wait() == status, program.lines
    wait_until(lambda: not program.left_behind(), "the end of all its processes")
    assert [line for line in program.lines if "netkit/" in line or "Warning" in line] == []
    return program.lines


def stop(program: Program, signum: int = signal.SIGTERM) -> list[str]:
    program.send_signal(signum)
    return ends(program)


def refuses(program: Program) -> bool:
    try:
        program.connect().close()
    except ConnectionError:
        return True
    return False


def exchange(program: Program, data: bytes = b"hello") -> bytes:
    with program.connect() as sock:
        send_and_end(sock, data)
        return receive_all(sock)


# Serving


@linux
@pytest.mark.skipif(not has_gil(), reason="they need not stay anywhere")
def test_each_stays_on_one_core_if_no_core_is_without(app: App) -> None:
    cores = usable_cores()
    program = app(2 * len(cores))
    where = Counter(tuple(os.sched_getaffinity(pid)) for pid in program.children())
    assert where == {(core,): 2 for core in cores}
    killed = program.children()[0]
    core = os.sched_getaffinity(killed)
    others = set(program.children()) - {killed}
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: len(set(program.children()) - others - {killed}) == 1, "another one")
    (successor,) = set(program.children()) - others - {killed}
    wait_until(lambda: os.sched_getaffinity(successor) == core, "the same core")
    assert os.sched_getaffinity(program.process.pid) == set(cores)


@linux
def test_without_a_core_of_its_own_each_runs_on_any_core(script: Script) -> None:
    few = "import sys\nsys._is_gil_enabled = lambda: False  # then no worker has a core\n"
    with script(few + SERVE) as program:
        pids_of(program, 2)
        cores = set(usable_cores())
        assert [os.sched_getaffinity(pid) for pid in program.children()] == [cores, cores]
        stop(program)


def test_one_line_says_that_all_are_ready_and_two_how_it_ends(app: App) -> None:
    program = app()
    with clients_of_all(program, 2) as clients:
        lines = stop(program)
        assert all(client.is_let_go() for client in clients)
    assert lines[1:] == [
        "2 workers ready",
        "stopping: 2 workers, up to 7 s to finish",
        f"stopped: {len(clients)} finished, 0 cut",
    ]


OWN_SOCKETS = """
class Own(socket.socket):
    pass
socket.socket = Own  # as a library does that has all sockets go through a proxy
"""


@pytest.mark.parametrize("start_method", ["fork", "spawn", "forkserver"])
def test_a_script_may_choose_how_its_workers_are_started(start_method: str, script: Script) -> None:
    with script(OWN_SOCKETS + SERVE, start_method=start_method) as program:
        program.wait_for_line("2 workers ready")
        with clients_of_all(program, 2) as clients:
            for each in clients:
                for signum in (signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU):
                    os.kill(each.pid, signum)  # which are for their parent
                each.ask()
            program.send_signal(signal.SIGINT)
            assert all(each.is_let_go() for each in clients)
        assert ends(program)[-1] == f"stopped: {len(clients)} finished, 0 cut"
        assert len(program.lines) == 4


@linux
@pytest.mark.parametrize(
    "served",
    [
        "netkit.serve(who, {port}, '127.0.0.1', workers=2)",
        "netkit.run(netkit.Server(('127.0.0.1', {port}), who), workers=2)",
    ],
)
def test_a_script_without_a_main_guard_gets_an_error_that_names_the_guard(
    served: str, script: Script
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        does = served.format(port=listener.getsockname()[1])
    with script(does, "spawn", guard=False, listening=False) as program:
        assert program.wait() == 1
        wait_until(lambda: not program.left_behind())
    told = [line for line in program.lines if "start the server under if __name__" in line]
    assert len(told) == 1
    assert not [line for line in program.lines if "already in use" in line and line not in told]
    assert re.search(r"WorkersFailedError: worker \d+ ended with status 1$", program.lines[-1])


@linux
def test_a_script_that_is_forked_needs_no_main_guard_but_for_a_reload(script: Script) -> None:
    with script(guard=False) as program:
        pids = pids_of(program, 2)
        program.send_signal(signal.SIGHUP)
        program.wait_for_line("start the server under if __name__")
        program.wait_for_line("ended with status 1")
        assert pids_of(program, 2) == pids
        program.send_signal(signal.SIGTERM)
        assert program.wait() == 0


HANDLERS = """
import socketserver
import netkit

def function(conn):
    conn.end(conn.read().upper())

class Class(netkit.Handler):
    suffix = ""

    def received(self, data):
        self.conn.write(data.upper() + self.suffix.encode())

class Old(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.read().upper())

class Group:
    inner = function

class Greeting(netkit.Server):
    address_seen = None

    def server_bind(self):
        super().server_bind()
        self.address_seen = self.server_address

    def finish_request(self, request, client_address):
        request.sendall(b"hi ")
        super().finish_request(request, client_address)

if __name__ == "__main__":
    import logging, multiprocessing, sys
    logging.basicConfig(level="INFO", format="%(message)s")
    multiprocessing.set_start_method(sys.argv[1])
    netkit.run(eval(sys.argv[2]).listen(0, "127.0.0.1"), workers=2)
"""


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ("serve app:Group.inner", b"HELLO"),
        ("serve app:Old", b"HELLO"),
        ("echo", b"hello"),
        ("greeter --greeting hi", b"hi\n"),
    ],
)
def test_the_commands_serve_with_any_handler_in_their_workers(
    arguments: str, answer: bytes, tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text(HANDLERS)
    with Cli(*arguments.split(), "--workers", "2", cwd=tmp_path) as program:
        assert [exchange(program) for _ in range(4)] == [answer] * 4
        stop(program)


@pytest.mark.parametrize(
    ("start_method", "server", "answer"),
    [
        ("spawn", "netkit.create_server(Class, handler_args={'suffix': '!'})", b"HELLO!"),
        ("fork", "Greeting(None, Class, handler_args={'suffix': '!'})", b"hi HELLO!"),
        ("spawn", "Greeting(None, function)", b"hi HELLO"),
    ],
)
def test_a_program_serves_with_any_handler_and_server(
    start_method: str, server: str, answer: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "script.py"
    path.write_text(HANDLERS)
    with Program(sys.executable, path, start_method, server) as program:
        assert [exchange(program) for _ in range(3)] == [answer] * 3
        stop(program)


def test_the_parent_itself_never_imports_the_handler(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP + "print('imported by', os.getpid(), flush=True)")
    with Cli("serve", "app:who", "--workers", "2", cwd=tmp_path) as program:
        pids = pids_of(program, 2)
        stop(program)
        assert program.process.stdout
        lines = program.process.stdout.read().decode().splitlines()
    assert {int(line.split()[-1]) for line in lines} == pids


# Workers that cannot serve


@pytest.mark.parametrize(
    ("name", "source", "error"),
    [
        ("nosuch:x", "", r"no module named 'nosuch', neither here \(.*\) nor installed"),
        ("app:x", "1 / 0", "app could not be imported, see above"),
        ("app:x", "raise SystemExit('not today')", r"worker \d+ ended with status 1"),
        ("app:x", "import os; os._exit(3)", r"worker \d+ ended with status 3"),
    ],
)
def test_a_handler_that_does_not_load_is_one_error_and_the_end(
    name: str, source: str, error: str, tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text(source)
    with Cli("serve", name, "--workers", "3", cwd=tmp_path, listening=False) as program:
        assert program.wait() == 1
        assert re.fullmatch(f"netkit: error: {error}", program.lines[-1]), program.lines
        assert sum("rror:" in line for line in program.lines) == (3 if "above" in error else 1)
        assert not any("netkit/" in line for line in program.lines)
        assert not program.left_behind()


def test_a_program_with_threads_and_a_handler_that_cannot_be_pickled_gets_an_error(
    script: Script,
) -> None:
    local = (
        "import logging, threading\n"
        'logging.basicConfig(level="INFO", format="%(message)s")\n'
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        'netkit.serve(lambda conn: None, host="127.0.0.1", workers=2)\n'
    )
    with script(local) as program:
        assert program.wait() == 1
    assert re.search(r"WorkersFailedError: .*(pickle|lambda)", program.lines[-1])
    assert not any("starting another" in line for line in program.lines)


PREPARING = """
class Preparing(netkit.Server):
    def serve_forever(self, poll_interval=0.5):
        if os.path.exists("bad"):
            time.sleep(0.1)
            raise RuntimeError("no database")
        super().serve_forever(poll_interval)

if __name__ == "__main__":
    import logging
    logging.basicConfig(level="INFO", format="%(message)s")
    netkit.run(Preparing(("127.0.0.1", 0), who, drain_timeout=60), workers=2)
"""


@linux
def test_one_that_cannot_serve_is_never_ready(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(APP + PREPARING)
    with Program(sys.executable, path, cwd=tmp_path) as program:
        program.wait_for_line("2 workers ready")
        old = pids_of(program, 2)
        (tmp_path / "bad").touch()
        program.send_signal(signal.SIGHUP)
        program.wait_for_line("RuntimeError: no database")
        assert pids_of(program, 2) == old
        stop(program)


# Workers that end


def test_a_killed_worker_is_replaced_and_only_its_clients_notice(app: App) -> None:
    program = app(3)
    with clients_of_all(program, 3) as clients:
        victim = clients[0].pid
        others = [client for client in clients if client.pid != victim]
        os.kill(victim, signal.SIGKILL)
        clients[0].is_let_go()
        program.wait_for_line(f"error: worker {victim} ended by SIGKILL; starting another")
        pids = pids_of(program, 3)
        assert victim not in pids
        assert {client.pid for client in others} < pids
        for each in others:
            each.ask()


OBSERVE = """
netkit.events.subscribe(
    lambda event: isinstance(event, netkit.events.WorkerEnded)
    and print(event.pid, event.status, flush=True)
)
"""


def test_clients_that_crash_workers_do_not_end_the_server_and_observers_see_each_crash(
    script: Script,
) -> None:
    with script(OBSERVE + SERVE) as program:
        program.wait_for_line("2 workers ready")
        victims = []
        for _ in range(4):
            with Client(program) as victim:
                victims.append(victim.pid)
                victim.say("crash")
                victim.is_let_go()
        assert len(pids_of(program, 2) - set(victims)) == 2
        stop(program)
        assert program.process.stdout
        seen = program.process.stdout.read().decode().split()
    ended = list(zip(seen[::2], seen[1::2], strict=True))
    # Two that end at once may be seen in either order.
    assert sorted(ended) == sorted((str(pid), "3") for pid in victims)


def test_a_worker_that_is_told_to_end_finishes_with_its_clients_and_is_replaced(app: App) -> None:
    program = app()
    with clients_of_all(program, 2) as clients:
        victim, other = clients[0], clients[-1]
        victim.begin()
        os.kill(victim.pid, signal.SIGTERM)
        assert all(each.is_let_go() for each in clients[1:-1] if each.pid == victim.pid)
        victim.finish()
        assert victim.is_let_go()
        program.wait_for_line(f"worker {victim.pid} ended with status 0; starting another")
        other.ask("stop")  # its handler stops the server, and still answers
        assert other.is_let_go()
        program.wait_for_line(f"worker {other.pid} ended with status 0; starting another")
        assert not {victim.pid, other.pid} & pids_of(program, 2)


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_workers_whose_parent_is_killed_finish_with_their_clients_and_end(
    start_method: str, script: Script
) -> None:
    with script(start_method=start_method) as program, clients_of_all(program, 2) as clients:
        busy = clients[0]
        busy.begin()
        program.process.kill()
        assert all(client.is_let_go() for client in clients[1:])
        wait_until(lambda: refuses(program))
        assert busy.pid in program.left_behind()
        busy.finish()
        assert busy.is_let_go()
        wait_until(lambda: not program.left_behind(), "the end of the workers")


REAPING = """
def reap(*_):
    with contextlib.suppress(ChildProcessError):
        while pid := os.waitpid(-1, os.WNOHANG)[0]:
            os.write(2, f"{pid} reaped\\n".encode())
signal.signal(signal.SIGCHLD, reap)
"""


@linux
def test_a_worker_is_missed_though_a_child_of_its_own_lives_on(script: Script) -> None:
    with script() as program:
        with Client(program) as one:
            one.say("fork")
            child = int(one.line().split()[0])
            try:
                os.kill(one.pid, signal.SIGKILL)
                program.wait_for_line(f"worker {one.pid} ended by SIGKILL")
                assert one.pid not in pids_of(program, 2)
            finally:
                os.kill(child, signal.SIGKILL)
        stop(program)


@linux
def test_a_worker_is_missed_though_the_program_gets_its_status(script: Script) -> None:
    with script(REAPING + SERVE) as program:
        program.wait_for_line("2 workers ready")
        with Client(program) as one:
            os.kill(one.pid, signal.SIGKILL)
        program.wait_for_line(f"worker {one.pid} ended with an unknown status")
        assert f"{one.pid} reaped" in program.lines
        assert one.pid not in pids_of(program, 2)
        stop(program)


# More and fewer


def test_signals_make_workers_more_and_fewer_but_at_least_one(app: App) -> None:
    program = app()
    for signum, count in [(signal.SIGTTIN, 3), (signal.SIGTTOU, 2), (signal.SIGTTOU, 1)]:
        program.wait_for_line("workers? ready")
        program.lines.clear()
        program.send_signal(signum)
        program.wait_for_line(f"{count} workers? ready")
        wait_until(lambda count=count: len(program.children()) == count)  # type: ignore[misc]
    program.send_signal(signal.SIGTTOU)
    assert exchange(program, b"who\n")
    assert len(program.children()) == 1


def test_a_worker_too_many_serves_its_clients_until_they_leave(app: App) -> None:
    program = app()
    with clients_of_all(program, 2) as clients:
        program.send_signal(signal.SIGTTOU)
        program.wait_for_line("1 worker ready")

        def leaving_ones() -> set[int]:
            return {client.pid for client in clients if not client.others_may_come()}

        wait_until(leaving_ones, "the end of listening in one of them")
        (leaving,) = leaving_ones()
        (staying,) = {client.pid for client in clients} - {leaving}
        assert pids_of(program, 1) == {staying}
        assert leaving in program.children()
        for each in clients:
            if each.pid == leaving:
                each.sock.close()
        wait_until(lambda: program.children() == [staying])
        next(client for client in clients if client.pid == staying).ask()
        stop(program)


def test_a_worker_too_many_ends_even_if_its_clients_stay(app: App) -> None:
    program = app(2, "--drain-timeout", "0.5")
    with clients_of_all(program, 2) as clients:
        clients[0].begin()
        program.send_signal(signal.SIGTTOU)
        wait_until(lambda: len(program.children()) == 1)
        (staying,) = program.children()
        for each in clients:
            if each.pid != staying:
                assert each.is_let_go()
            elif each is clients[0]:
                each.finish()
            else:
                each.ask()


# Other code


def change(tmp_path: Path, version: str, name: str = "app.py") -> None:
    path = tmp_path / name
    path.write_text(re.sub("VERSION = .*", f"VERSION = {version}", path.read_text()))


def versions_of(program: Program, count: int = 8) -> set[str]:
    """What code new clients meet."""
    with contextlib.ExitStack() as stack:
        return {stack.enter_context(Client(program)).version for _ in range(count)}


def only_serves(program: Program, version: str) -> None:
    """Once the old workers have heard that they are to leave, that is."""
    wait_until(lambda: versions_of(program) == {version})


def test_a_reload_serves_the_code_that_there_is_now(app: App, tmp_path: Path) -> None:
    program = app()
    with contextlib.ExitStack() as stack:
        old = stack.enter_context(clients_of_all(program, 2))
        old = [*old, *(stack.enter_context(Client(program)) for _ in range(20))]
        change(tmp_path, "'two'")
        assert versions_of(program) == {"one"}
        program.send_signal(signal.SIGHUP)
        program.wait_for_line("reloaded: 2 workers")
        only_serves(program, "two")
        for each in old:
            each.ask()  # by the same process as before
    wait_until(lambda: len(program.children()) == 2)
    assert not {client.pid for client in old} & set(program.children())
    with clients_of_all(program, 2) as clients:
        program.send_signal(signal.SIGTERM)
        assert all(client.is_let_go() for client in clients)
    finished = re.fullmatch(r"stopped: (\d+) finished, 0 cut", ends(program)[-1])
    # Without the clients of the old workers. Those of `only_serves` may be closing yet.
    assert finished and len(clients) <= int(finished[1]) < len(clients) + len(old)


@pytest.mark.parametrize("start_method", ["", "forkserver"])
def test_a_script_is_reloaded_too_unless_its_code_is_broken(
    start_method: str, script: Script, tmp_path: Path
) -> None:
    with script(start_method=start_method) as program:
        program.wait_for_line("2 workers ready")
        pids = pids_of(program, 2)
        change(tmp_path, "'two'", "script.py")
        program.send_signal(signal.SIGHUP)
        program.wait_for_line("reloaded: 2 workers")
        only_serves(program, "two")
        change(tmp_path, "1 / 0", "script.py")
        program.send_signal(signal.SIGHUP)
        program.wait_for_line("not reloaded, the old workers continue: .* ended with status 1")
        only_serves(program, "two")
        wait_until(lambda: not pids & pids_of(program, 2))
        program.send_signal(signal.SIGTERM)
        assert program.wait() == 0
        wait_until(lambda: not program.left_behind())


def test_workers_that_hang_as_they_load_end_with_their_parent(app: App, tmp_path: Path) -> None:
    program = app()
    change(tmp_path, "os.mkdir(f'loading{os.getpid()}') or time.sleep(60)")
    program.send_signal(signal.SIGHUP)
    wait_until(lambda: len([*tmp_path.glob("loading*")]) == 2)
    program.process.kill()
    wait_until(lambda: not program.left_behind(), "the end of all its processes")


@linux
def test_a_list_that_cannot_be_read_now_holds_up_a_reload_and_nothing_else(
    app: App, tmp_path: Path
) -> None:
    deny = tmp_path / "deny"
    deny.write_text("10.0.0.0/8\n")
    program = app(2, "--deny", f"@{deny}")
    pids = pids_of(program, 2)
    deny.unlink()
    os.mkfifo(deny)  # an open waits for a writer
    program.send_signal(signal.SIGHUP)
    program.send_signal(signal.SIGTTIN)
    program.wait_for_line("3 workers ready")
    assert pids < pids_of(program, 3)
    deny.write_text("10.0.0.0/8\n")
    program.wait_for_line("reloaded: 3 workers")
    wait_until(lambda: not pids & pids_of(program, 3))
    program.send_signal(signal.SIGHUP)
    assert program.process.poll() is None


# Under load


class Load:
    """Clients without end, each of which must get its whole reply."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.over = threading.Event()

    def short(self) -> None:
        while not self.over.is_set():
            answer = exchange(self.program, b"who\nwho\n")
            assert re.fullmatch(rb"(\d+ \w+\n)\1", answer), answer

    def long(self) -> None:
        while not self.over.is_set():
            with Client(self.program) as client:
                until = time.monotonic() + 1.5
                while time.monotonic() < until and not self.over.is_set():
                    client.ask()
                    time.sleep(0.001)

    @contextlib.contextmanager
    def going_on(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for what in [self.short] * 3 + [self.long] * 3:
                stack.enter_context(in_thread(what))
            stack.callback(self.over.set)
            yield


def reload_under_load(program: Program, tmp_path: Path, name: str, times: int) -> None:
    """Reload again and again, with a worker more or less; in the end there are 2 of them."""
    program.wait_for_line("2 workers ready")
    with Load(program).going_on():
        for number in range(1, times + 1):
            change(tmp_path, f"'v{number}'", name)
            program.send_signal(signal.SIGHUP)
            program.send_signal(signal.SIGTTIN if number % 2 else signal.SIGTTOU)
            wait_until(
                lambda number=number: (  # type: ignore[misc]
                    sum("reloaded" in line for line in program.lines) == number
                )
            )
    only_serves(program, f"v{times}")
    stop(program)
    assert not any("rror" in line for line in program.lines), program.lines


def test_no_client_notices_that_workers_come_and_go(app: App, tmp_path: Path) -> None:
    program = app(2, "--drain-timeout", "20")
    reload_under_load(program, tmp_path, "app.py", 4)


def test_no_client_notices_a_reload_by_spawning(script: Script, tmp_path: Path) -> None:
    with script() as program:
        reload_under_load(program, tmp_path, "script.py", 1)


def test_a_stop_under_load_cuts_no_reply_short(app: App) -> None:
    program = app(3)
    done: list[bytes] = []

    def come() -> None:
        """Until the stop: the last client is refused, reset or ended, but has no half reply."""
        while True:
            answer = b""
            try:
                with program.connect() as sock:
                    send_and_end(sock, b"who\nwho\n")
                    while chunk := sock.recv(100):
                        answer += chunk
            except OSError:  # a reset may also be reported as ENOTCONN
                assert not answer
                return
            if not answer:  # the stop has ended its input before it sent anything
                return
            assert re.fullmatch(rb"(\d+ \w+\n)\1", answer), answer
            done.append(answer)

    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(in_thread(come))
        wait_until(lambda: len(done) > 50)
        program.send_signal(signal.SIGTERM)
        assert program.wait() == 0
    assert re.fullmatch(r"stopped: \d+ finished, 0 cut", program.lines[-1])
    assert not program.left_behind()


# How they end


def send_to_all(program: Program, signum: int) -> None:
    """As a terminal does, or a supervisor."""
    os.killpg(program.process.pid, signum)


@pytest.mark.parametrize(
    ("send", "signum"), [(Program.send_signal, signal.SIGTERM), (send_to_all, signal.SIGINT)]
)
def test_busy_clients_of_all_workers_get_their_answers(
    send: Callable[[Program, int], None], signum: int, script: Script
) -> None:
    """In the time that `run` was given, by one signal, to the parent or to all."""
    made = 'netkit.create_server(who, drain_timeout=0).listen(0, "127.0.0.1")'
    serve = re.sub(r"netkit\.serve\(.*", f"netkit.run({made}, 60, workers=2)", SERVE)
    with script(serve) as program, clients_of_all(program, 2) as clients:
        for each in clients:
            each.begin()
        send(program, signum)
        program.wait_for_line("stopping: 2 workers, up to 60 s to finish")
        for other in (signal.SIGTERM, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU):
            program.send_signal(other)  # none of which matters any more
        wait_until(lambda: refuses(program))
        for each in clients:
            each.finish()
            assert each.is_let_go()
        assert re.fullmatch(r"stopped: \d+ finished, 0 cut", ends(program)[-1])


def test_the_deadline_cuts_in_all_workers_and_the_status_is_still_0(app: App) -> None:
    program = app(2, "--drain-timeout", "0.2")
    with clients_of_all(program, 2) as clients:
        for each in clients:
            each.begin()
        send_to_all(program, signal.SIGTERM)
        assert ends(program)[-1] == f"stopped: 0 finished, {len(clients)} cut"


@pytest.mark.parametrize(
    ("send", "first"), [(Program.send_signal, signal.SIGTERM), (send_to_all, signal.SIGINT)]
)
def test_a_second_ctrl_c_cuts_in_all_workers(
    send: Callable[[Program, int], None], first: int, app: App
) -> None:
    program = app(2, "--drain-timeout", "60")
    with clients_of_all(program, 2) as clients:
        for each in clients:
            each.begin()
        send(program, first)
        program.wait_for_line("stopping: 2 workers")
        wait_until(lambda: refuses(program))
        send(program, signal.SIGINT)
        found = re.fullmatch(r"stopped: \d+ finished, (\d+) cut", ends(program, 130)[-1])
        # The last connections of `refuses` that came through may be cut, too.
        assert found and int(found[1]) >= len(clients)


LITTLE_GRACE = """
import netkit.process.worker
netkit.process.worker.KILL_GRACE = 0.2
"""
DEAF_TO_MORE = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what it finds again when it has served
"""
LITTLE_TIME = SERVE.replace("drain_timeout=60", "drain_timeout=0.1")


def freeze(each: Client) -> None:
    each.say("freeze")
    assert each.line().startswith(b"frozen\n")  # an answer may be as fast as the signal


def test_a_worker_that_hangs_is_killed_in_the_end(script: Script) -> None:
    with script(LITTLE_GRACE + DEAF_TO_MORE + LITTLE_TIME) as program:
        with clients_of_all(program, 2) as clients:
            freeze(clients[0])
            for _ in range(3):
                program.send_signal(signal.SIGTERM)
            ends(program)


@linux
def test_signals_find_no_worker_without_its_handlers(script: Script) -> None:
    """From a terminal, they come to all at once, whatever these are doing."""
    with script(start_method="spawn") as program:
        wait_until(program.children)
        send_to_all(program, signal.SIGINT)
        ends(program)


# In a program of one's own

WORKERS = """
import logging, sys, threading
logging.basicConfig(level="INFO", format="%(message)s")
server = netkit.create_server(who).listen(0, "127.0.0.1")
workers = netkit.Workers(server, 2)
def obey():
    while order := os.read(0, 1000):
        print(eval(order), flush=True)
"""


def tell(program: Program, expression: str) -> str:
    """What it is worth in the program."""
    assert program.process.stdin and program.process.stdout
    program.process.stdin.write(expression.encode())
    program.process.stdin.flush()
    return program.process.stdout.readline().decode().rstrip("\n")


OTHER_THREAD = (
    "thread = threading.Thread(target=lambda: print(workers.run()))\n"
    "thread.start()\nobey()\nthread.join()\n"
)


def test_a_program_may_change_and_stop_them_from_any_thread(script: Script, tmp_path: Path) -> None:
    with script(WORKERS + OTHER_THREAD) as program:
        program.wait_for_line("2 workers ready")
        program.wait_for_line("signals are not handled here: this is not the main thread")
        assert set(eval(tell(program, "workers.pids"))) == pids_of(program, 2)
        tell(program, "workers.resize(3)")
        program.wait_for_line("3 workers ready")
        change(tmp_path, "'two'", "script.py")
        tell(program, "workers.reload()")
        program.wait_for_line("reloaded: 3 workers")
        only_serves(program, "two")
        wait_until(lambda: len(eval(tell(program, "workers.pids"))) == 3)
        with Client(program) as one:
            one.begin()
            for seconds in (60, 70, 50):  # the shortest time counts
                tell(program, f"workers.stop({seconds})")
            wait_until(lambda: refuses(program))
            one.finish()
            tell(program, "workers.stop(0)")
            assert one.is_let_go()
        assert program.process.stdin and program.process.stdout
        expression = b"__import__('multiprocessing').get_start_method(True)"
        program.process.stdin.write(expression)
        program.process.stdin.close()
        report, method = sorted(program.process.stdout.read().splitlines(), reverse=True)
        assert method == b"None"  # printed by another thread than the report
        # Not only `one` may be cut, but also the last connections of `refuses` that came through.
        assert re.fullmatch(rb"stopped: \d+ finished, \d+ cut", report)
        assert sum("stopping" in line for line in ends(program)) == 1


def test_orders_may_come_before_they_run_and_they_run_once_for_each_listen(script: Script) -> None:
    before = "workers.resize(3)\nassert workers.pids == ()\n"
    with script(WORKERS + before + "workers.run()") as program:
        pids_of(program, 3)
        stop(program)
    with script(WORKERS + "workers.stop()\nprint(*workers.run())\nworkers.run()") as program:
        assert program.wait() == 1
        assert program.lines[1] == "stopped: 0 finished, 0 cut"
        assert program.lines[-1].endswith("the server is closed; call listen() first")
        assert program.process.stdout
        assert program.process.stdout.read() == b"0 0 False\n"


@pytest.mark.parametrize("how", ["request_stop", "shutdown"])
def test_a_stop_of_the_server_that_comes_before_they_run_is_not_lost(how: str) -> None:
    server = netkit.create_server(netkit.EchoHandler).listen(0, "127.0.0.1")
    getattr(server, how)()
    assert netkit.run(server, workers=2) == (0, 0, False)
    assert not server.listening


def test_an_option_that_is_changed_while_they_run_stays_changed() -> None:
    class Changed(netkit.Server):
        def server_close(self) -> None:
            super().configure(max_line=5)
            super().server_close()

        def configure(self) -> None:  # type: ignore[override] # a name of its own
            raise AssertionError

    server = Changed(("127.0.0.1", 0), netkit.EchoHandler, drain_timeout=60)
    server.request_stop()
    netkit.Workers(server, 2).run(drain_timeout=1)
    assert (server._options.drain_timeout, server._options.max_line) == (60, 5)


STOPPED_IN_PARENT = """
import logging, signal, threading
from netkit import events

logging.basicConfig(level="INFO", format="%(message)s")
server = netkit.create_server(who, drain_timeout=60).listen(0, "127.0.0.1")

def stop():
    while not os.path.exists("stop"):
        time.sleep(0.01)
    logging.info("told %s", server.HOW())

def tell(event):
    if isinstance(event, (events.WorkersReady, events.WorkersStopping)):
        logging.info("blocked %s", signal.pthread_sigmask(signal.SIG_BLOCK, []))

events.subscribe(tell)
signal.signal(signal.SIGUSR1, lambda *_: server.stop())
server.stop_by_signal = lambda: os.kill(os.getpid(), signal.SIGUSR1)
thread = threading.Thread(target=stop)
thread.start()
report = netkit.run(server, workers=2)
logging.info("blocked %s", signal.pthread_sigmask(signal.SIG_BLOCK, []))
thread.join()
logging.info("then %s, %s", server.stop(), server.listening)
"""


@linux
@pytest.mark.parametrize("how", ["stop", "close", "server_close", "request_stop", "stop_by_signal"])
def test_the_methods_of_the_server_stop_its_workers(
    how: str, script: Script, tmp_path: Path
) -> None:
    with script(STOPPED_IN_PARENT.replace("HOW", how)) as program:
        program.wait_for_line("2 workers ready")
        with clients_of_all(program, 2) as clients:
            (tmp_path / "stop").touch()
            for each in clients:
                each.is_let_go()
        lines = ends(program)
    (report,) = (line for line in lines if line.startswith("stopped: "))
    finished, cut = map(int, re.findall(r"\d+", report))
    assert finished + cut == len(clients)
    assert cut == 0 or how == "close"
    assert f"then {report}, False" in lines
    assert f"told {report if how in ('stop', 'close') else None}" in lines
    assert [line for line in lines if line.startswith("blocked")] == ["blocked set()"] * 3


RAISING = """
def enough(*_):
    raise RuntimeError("enough")
signal.signal(signal.SIGUSR1, enough)
"""


@linux
def test_an_exception_of_a_signal_handler_in_the_parent_ends_all_workers(script: Script) -> None:
    with script(RAISING + SERVE, start_method="fork") as program:
        program.wait_for_line("2 workers ready")
        with clients_of_all(program, 2) as clients:
            program.send_signal(signal.SIGUSR1)
            for each in clients:
                each.is_let_go()
        assert program.wait() == 1
        assert program.lines[-1] == "RuntimeError: enough"
        wait_until(lambda: not program.left_behind())
        assert refuses(program)


# What is refused


@pytest.mark.parametrize(
    ("count", "error"), [(0, ValueError), (5000, ValueError), ("2", TypeError), (True, TypeError)]
)
def test_an_invalid_count_is_refused_everywhere(count: Any, error: type) -> None:
    with netkit.create_server(netkit.EchoHandler).listen(0, "127.0.0.1") as server:
        for call in (
            lambda: netkit.run(server, workers=count),
            lambda: netkit.serve(netkit.EchoHandler, workers=count),
            lambda: netkit.Workers(server, count),
            lambda: netkit.Workers(server, 2).resize(count),
        ):
            with pytest.raises(error, match=re.escape(f"{count!r}") + "$"):
                call()


def test_an_invalid_time_is_refused() -> None:
    with netkit.create_server(netkit.EchoHandler).listen(0, "127.0.0.1") as server:
        with pytest.raises(ValueError, match="timeout must be 0 or more seconds, not -1"):
            netkit.Workers(server, 2).stop(-1)
        with pytest.raises(ValueError, match="drain_timeout must be 0 or more seconds, not -1"):
            netkit.run(server, -1, workers=2)


def test_a_server_that_cannot_be_shared_gets_no_workers() -> None:
    def is_refused(problem: str) -> None:
        with pytest.raises(netkit.ServerStateError, match=f"the server {problem}"):
            netkit.run(server, workers=2)

    server = netkit.create_server()
    is_refused("is not bound; call listen")
    server.listen(0, "127.0.0.1")
    is_refused("has no handler")
    server.RequestHandlerClass = netkit.EchoHandler
    with server.start():
        is_refused("is serving already")
        with client(server) as sock:
            send_and_end(sock, b"x")
            assert receive_all(sock) == b"x"
    is_refused("is closed; call listen")


# Idle


def wakeups(pid: int) -> int:
    """How often its threads have waited."""
    return sum(
        int(re.findall(r"voluntary_ctxt_switches:\s+(\d+)", status.read_text())[0])
        for status in Path(f"/proc/{pid}/task").glob("*/status")
    )


@linux
def test_no_process_wakes_up_while_nothing_happens(app: App) -> None:
    program = app()
    pids = [program.process.pid, *program.children()]
    assert len(pids) == 3

    def rest() -> bool:
        before = [wakeups(pid) for pid in pids]
        time.sleep(0.7)
        return [wakeups(pid) for pid in pids] == before

    with clients_of_all(program, 2) as clients:
        wait_until(rest, "some time without a wake-up")
        assert len(os.listdir(f"/proc/{pids[0]}/task")) == 1
        for each in clients:
            each.ask()
