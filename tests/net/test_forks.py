"""Processes that handlers start: their signals, locks and listeners are their own."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from secure import contexts
from support import MUCH, PATIENCE, ROOT, Program, in_thread, receive_all, wait_until

import netkit
import netkit.__main__
from netkit.core import events
from netkit.net import forks
from netkit.process.signals import StopSignals
from netkit.server import handlers

linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc as Linux has it")
forking = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # from 3.12 on

STATE = """
import os, signal, sys

# Besides those that nobody can handle, those that `faulthandler` handles if it is enabled.
NAMES = "SIGKILL SIGSTOP SIGSEGV SIGFPE SIGABRT SIGBUS SIGILL".split()
OTHERS = [getattr(signal, name) for name in NAMES]

def state():
    wakeup = signal.set_wakeup_fd(-1)
    blocked = sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, [])))
    handlers = [
        str(getattr(signal.getsignal(signum), "__name__", signal.getsignal(signum)))
        for signum in map(int, sorted(signal.valid_signals()))
        if signum < 32 and signum not in OTHERS
    ]
    return f"{wakeup} {blocked} {handlers}"

def masks():
    "Of the signals that have names: two more are the C library's own."
    lines = [line for line in open("/proc/self/status") if line.startswith(("SigB", "SigI"))]
    return str([int(line.split()[1], 16) & 0x7FFFFFFF for line in lines])
"""

APP = (
    STATE
    + """
import contextlib, multiprocessing, subprocess, threading, time, warnings
from concurrent.futures import ProcessPoolExecutor
import netkit

warnings.simplefilter("ignore")  # that there are threads

def tell(out, function):
    os.write(out, globals()[function]().encode())
    os._exit(0)

def say(connection, function):
    connection.send(globals()[function]())
    connection.close()

def sleep():
    time.sleep(60)

def terminated(how):
    "The status of a child that gets a signal to end as soon as it exists."
    if how == "os.fork":
        child = os.fork()
        if child == 0:
            sleep()
        os.kill(child, signal.SIGTERM)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if how == "subprocess":
        with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as child:
            child.terminate()
        return child.returncode
    child = multiprocessing.get_context(how).Process(target=sleep)
    child.start()
    child.terminate()
    child.join()
    return child.exitcode

def asked(how, function):
    "What a child says."
    if how == "subprocess":
        code = "import sys; from script import *; sys.stdout.write(globals()[sys.argv[1]]())"
        return subprocess.check_output([sys.executable, "-c", code, function], text=True)
    if how == "os.fork":
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            tell(writer, function)
        os.close(writer)
        os.waitpid(child, 0)
        with open(reader) as file:
            return file.read()
    context = multiprocessing.get_context(how)
    ours, theirs = context.Pipe()
    child = context.Process(target=say, args=(theirs, function))
    child.start()
    answer = ours.recv()
    child.join()
    return answer

def descriptors():
    "Those that an executed program gets, and the one that it lists them with."
    code = "import os; print(len(os.listdir('/dev/fd')))"
    return subprocess.check_output(
        [sys.executable, "-c", code], close_fds=False, stdin=0, stderr=2, text=True
    ).strip()

def mad(hex):
    "Write to all sockets that are not a client's: the parent's channel is among them."
    import socket
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(name))) as sock:
            if sock.family == socket.AF_UNIX:
                sock.send(bytes.fromhex(hex))
    time.sleep(60)

def execute():
    "Have another program in the place of this process."
    os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(60)"])

def pooled(how):
    if how == "pool":
        with multiprocessing.Pool(2) as pool:
            return pool.map(abs, [-7, -8])
    with ProcessPoolExecutor(2) as pool:
        return list(pool.map(abs, [-7, -8]))

def handler(conn):
    for line in conn.lines():
        word, *arguments = line.split()
        if word == "children":
            child = multiprocessing.get_context("fork").Process(target=sleep)
            child.start()
            answer = pooled("pool")
        else:
            answer = globals()[word](*arguments)
        conn.write(f"{answer}\\n")

if __name__ == "__main__":
    import logging
    logging.basicConfig(level="INFO", format="%(message)s")
    WORKERS, METHOD = int(sys.argv[1]), sys.argv[2]
    if METHOD != "none":
        multiprocessing.set_start_method(METHOD)
    options = {"drain_timeout": 60, "max_connections": 50}
    report = netkit.serve(handler, host="127.0.0.1", workers=WORKERS, **options)
    sys.exit(report.exit_status)
"""
)

KINDS = [("1", "none"), ("2", "fork"), ("2", "spawn"), ("2", "forkserver")]
HOWS = ["os.fork", "subprocess", "fork", "spawn", "forkserver"]


@pytest.fixture(params=KINDS, ids=" ".join)
def program(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Program]:
    """A server with `handler`, with one process or with workers of each start method."""
    (tmp_path / "script.py").write_text(APP)
    with Program(sys.executable, tmp_path / "script.py", *request.param, cwd=tmp_path) as program:
        yield program


class Asking:
    """A client of `handler`."""

    def __init__(self, program: Program) -> None:
        self.sock = program.connect()
        self.sock.settimeout(4 * PATIENCE)  # spawned processes take their time
        self.file = self.sock.makefile("rw")

    def ask(self, *words: str) -> str:
        self.file.write(" ".join(words) + "\n")
        self.file.flush()
        return self.file.readline().rstrip("\n")

    def __enter__(self) -> Asking:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.sock.close()


def plain(code: str) -> str:
    """What a Python program prints that has nothing to do with netkit."""
    command = [sys.executable, "-c", f"{STATE}\nprint({code})"]
    return subprocess.check_output(command, text=True, start_new_session=True).rstrip("\n")


def test_a_child_that_is_told_to_end_ends_and_its_server_serves_on(program: Program) -> None:
    with Asking(program) as client:
        assert [client.ask("terminated", how) for how in HOWS] == ["-15"] * len(HOWS)
    with Asking(program) as client:
        assert client.ask("pooled", "pool") == "[7, 8]"
        assert client.ask("pooled", "executor") == "[7, 8]"
    program.send_signal(signal.SIGTERM)
    assert program.wait() == 0, program.lines
    assert has_reported(program)


def has_reported(program: Program) -> bool:
    return program.lines[-1].startswith("stopped: ")


def test_a_child_has_the_signal_handlers_of_any_python_program(program: Program) -> None:
    with Asking(program) as client:
        expected = plain("state()")
        for how in ("os.fork", "fork", "spawn", "forkserver"):
            assert client.ask("asked", how, "state") == expected, how


@linux
def test_a_program_that_is_executed_ignores_and_blocks_no_signal_more(program: Program) -> None:
    with Asking(program) as client:
        assert client.ask("asked", "subprocess", "masks") == plain("masks()")


def test_one_ctrl_c_for_the_whole_group_lets_clients_finish(program: Program) -> None:
    with Asking(program) as client:
        client.file.write("children\npooled exec")
        client.file.flush()
        assert client.file.readline() == "[7, 8]\n"
        os.killpg(program.process.pid, signal.SIGINT)
        program.wait_for_line("stopping: ")
        assert client.ask("utor") == "[7, 8]", program.lines
        assert client.file.readline() == ""
    assert program.wait() == 0, program.lines
    # It need not be the last line: the signal ends the child of the handler, too, which says so.
    assert any(re.fullmatch(r"stopped: \d+ finished, 0 cut", line) for line in program.lines)
    wait_until(lambda: not program.left_behind(), "the end of all its processes")


@linux
def test_a_program_that_is_executed_gets_no_descriptor_but_the_standard_ones(
    program: Program,
) -> None:
    """Before a reload, and after it, which spawns the workers of a script."""
    expected = plain("len(os.listdir('/dev/fd'))")
    with Asking(program) as client:
        assert client.ask("descriptors") == expected
    if len(program.children()) > 1:
        program.send_signal(signal.SIGHUP)
        program.wait_for_line("reloaded: 2 workers")
        with Asking(program) as client:
            assert client.ask("descriptors") == expected
    program.send_signal(signal.SIGTERM)
    assert program.wait() == 0


@linux
@pytest.mark.parametrize(
    ("program", "garbage"),
    [
        (("2", "fork"), "ffffffff"),
        (("2", "spawn"), "00000004deadbeef"),
        (("2", "forkserver"), "00" * 4000),
    ],
    ids=["fork", "spawn", "forkserver"],
    indirect=["program"],
)
def test_a_worker_that_sends_garbage_is_killed_and_replaced(program: Program, garbage: str) -> None:
    program.wait_for_line("2 workers ready")
    with Asking(program) as client:
        assert client.ask("mad", garbage) == ""
        program.wait_for_line("a worker failed: worker .* has sent an invalid message")
    program.wait_for_line("a worker failed: ")
    with Asking(program) as client:
        assert client.ask("pooled", "executor") == "[7, 8]"
    program.send_signal(signal.SIGTERM)
    assert program.wait() == 0


@linux
@pytest.mark.parametrize("program", [("2", "spawn")], ids=" ".join, indirect=True)
def test_a_worker_that_has_become_another_program_is_killed_and_replaced(program: Program) -> None:
    program.wait_for_line("2 workers ready")
    with Asking(program) as client:
        assert client.ask("execute") == ""
    program.wait_for_line("worker .* ended by SIGKILL")
    wait_until(lambda: len(program.children()) >= 2)
    program.send_signal(signal.SIGTERM)
    assert program.wait() == 0


AT_THE_END = """
import os, signal
from netkit.process.signals import StopSignals

def handlers_in_a_child():
    child = os.fork()
    if not child:
        print(signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), flush=True)
        os._exit(0)
    os.waitpid(child, 0)

signal.signal(signal.SIGINT, signal.default_int_handler)
for _ in range(2):
    with StopSignals(afterwards=signal.SIG_IGN):
        pass
assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
handlers_in_a_child()
signal.signal(signal.SIGTERM, mine := lambda *_: None)
handlers_in_a_child()
"""


@forking
def test_a_child_of_a_program_that_ignores_signals_before_it_exits_obeys_them() -> None:
    """A pool forks processes at any time, and ends them by SIGTERM at the program's exit."""
    command = [sys.executable, "-c", AT_THE_END]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.stderr == ""
    first, second = done.stdout.splitlines()
    assert re.fullmatch(r"(Handlers.SIG_DFL|0) <.*default_int_handler.*", first)
    assert re.fullmatch(r"<function <lambda> .* <.*default_int_handler.*", second)


COMMAND_LINE = """
import multiprocessing, os, signal
pool = multiprocessing.Pool(1)

def handler(conn):
    answer = pool.apply(signal.getsignal, [signal.SIGINT])
    conn.write(f"{conn.readline()} {answer}\\n")  # with the first line came half the next one
    conn.end(conn.readline())
"""


@linux
@pytest.mark.filterwarnings("default")
def test_the_command_line_stops_by_one_ctrl_c_though_its_module_has_a_pool(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(COMMAND_LINE)
    command = (sys.executable, "-m", "netkit", "serve", "app:handler")
    with Program(*command, cwd=tmp_path) as program, program.connect() as sock:
        file = sock.makefile("rw")
        file.write("hello\nrep")
        file.flush()
        assert "default_int_handler" in file.readline()
        os.killpg(program.process.pid, signal.SIGINT)
        program.wait_for_line("stopping: ")
        file.write("ly\n")
        file.flush()
        assert file.readline() == "reply\n"
        file.close()
        assert program.wait() == 0, program.lines
        wait_until(lambda: not program.left_behind(), "the end of all its processes")


# In this process


def status_of_child(function: Callable[[], Any]) -> int:
    """What `function` returns in a forked process, as its exit status; 99 if it fails, or hangs."""
    child = os.fork()
    if child == 0:
        status = 99
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(int(PATIENCE))
            status = int(function())
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@forking
def test_a_forked_child_finds_no_lock_of_the_package_held() -> None:
    def use() -> bool:
        events.subscribe(lambda _: None)()
        logger.received(b"written")
        return True

    logger = netkit.LoggerHandler(None, output=io.BytesIO())  # type: ignore[arg-type]
    lock = handlers._writing.setdefault(id(logger.output), threading.Lock())
    with lock:
        assert status_of_child(use) == 1


@forking
def test_a_forked_child_finds_no_lock_of_its_connection_held_by_another_thread() -> None:
    statuses: list[int] = []

    def handler(conn: netkit.Connection) -> None:
        assert conn.tls is not None
        with in_thread(write, conn):
            wait_until(lambda: not select.select([], [conn], [], 0)[1])
            statuses.append(status_of_child(lambda: conn.write(b"") or conn.tls.send(b"")))
            conn.destroy()

    def write(conn: netkit.Connection) -> None:
        with pytest.raises(netkit.ConnectionClosedError):
            conn.write(bytes(MUCH))

    with netkit.create_server(handler, tls=contexts()[0]).listen(0, "127.0.0.1") as server:
        with netkit.connect(server.address.port, "127.0.0.1") as conn:
            conn.start_tls(contexts()[1], server_hostname="localhost")
            wait_until(lambda: statuses)
            conn.destroy()
    assert statuses == [0]


@forking
def test_a_signal_that_comes_during_a_fork_reaches_the_child_with_its_own_handler() -> None:
    def look() -> bool:
        return (
            signal.getsignal(signal.SIGTERM) == before and signal.SIGTERM not in signal.sigpending()
        )

    before = signal.getsignal(signal.SIGTERM)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with StopSignals():
        assert status_of_child(look) == 1
        assert signal.getsignal(signal.SIGTERM) != before
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == blocked


def test_a_signal_of_a_child_that_is_forked_without_hooks_is_not_the_servers() -> None:
    """As of one that is to execute a program: it has the handlers of the C library until then."""
    with StopSignals() as signals:
        child = ctypes.PyDLL(None).fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        os.waitpid(child, 0)
        assert select.select([signals.mailbox], [], [], 0)[0]
        assert signals.mailbox.rest() == []


@forking
def test_no_signal_arrives_from_before_a_fork_until_all_is_undone() -> None:
    def look() -> bool:
        signal.signal(signal.SIGUSR1, lambda *_: seen.append(len(renewed)))
        signal.raise_signal(signal.SIGUSR1)
        return not seen

    seen: list[int] = []
    renewed: list[bool] = []
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    forks.undo_in_children(look)
    forks.call_in_children(renew := lambda: renewed.append(not seen))
    try:
        assert status_of_child(lambda: (seen, renewed) == ([1], [True])) == 1
        assert (seen, renewed) == ([], [])
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
    finally:
        forks.do_not_undo(look)
        forks._renewing.remove(renew)
    assert look not in forks._undoing


@forking
@pytest.mark.parametrize(
    ("signum", "error", "status"),
    [
        (signal.SIGINT, KeyboardInterrupt(), -signal.SIGINT),
        (signal.SIGTERM, SystemExit(), 0),
        (signal.SIGTERM, SystemExit(3), 3),
        (signal.SIGTERM, SystemExit("stopped"), 1),
    ],
    ids=repr,
)
def test_a_signal_that_ends_programs_ends_a_child_that_gets_it_during_the_fork(
    signum: signal.Signals, error: BaseException, status: int
) -> None:
    """Python would ignore it, and the child would sleep on while its parent waits for it."""

    def interrupt() -> None:
        signal.signal(signum, stop)
        signal.raise_signal(signum)

    def stop(*_: object) -> None:
        raise error

    forks.undo_in_children(interrupt)
    try:
        assert status_of_child(lambda: 98) == status
    finally:
        forks.do_not_undo(interrupt)


def test_a_child_that_is_interrupted_during_the_fork_ends_by_sigint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same in this process, since a process that a signal ends reports no coverage."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    ends: list[int] = []
    monkeypatch.setattr(forks, "_undoing", [])
    monkeypatch.setattr(forks, "_renewing", [])
    monkeypatch.setattr(forks, "_let_signals_in", interrupt)
    monkeypatch.setattr(signal, "signal", lambda *change: changes.append(change))
    monkeypatch.setattr(signal, "raise_signal", ends.append)
    changes: list[Any] = []
    forks._begin_child()
    assert changes == [(signal.SIGINT, signal.SIG_DFL)]
    assert ends == [signal.SIGINT]


@forking
def test_a_server_is_closed_in_a_forked_child_and_only_there() -> None:
    statuses = []

    def handler(conn: netkit.Connection) -> None:
        server = conn.server
        statuses.append(
            status_of_child(
                lambda: (
                    server.socket.fileno() == -1
                    and not server.listening
                    and server.connections == (conn,)
                    and server.stop() == (0, 0)
                    and conn.write("child\n") == 6
                )
            )
        )
        conn.end("parent\n")

    with netkit.create_server(handler).listen(0, "127.0.0.1") as server:
        for _ in range(2):
            with netkit.connect(server.address.port, "127.0.0.1") as conn:
                assert conn.read() == b"child\nparent\n"
    assert statuses == [1, 1]


@forking
def test_a_server_that_listens_again_in_a_forked_child_keeps_its_limits() -> None:
    statuses = []

    def serves_twice(server: netkit.Server) -> bool:
        with server.listen(0, "127.0.0.1"):
            for _ in range(2):
                wait_until(lambda: answer_of(server) == b"grandchild")
        return True

    def answer_of(server: netkit.Server) -> bytes:
        with contextlib.suppress(OSError):  # the one before may be about to end
            with netkit.connect(server.server_address[1], "127.0.0.1") as conn:
                return conn.read()
        return b""

    def handler(conn: netkit.Connection) -> None:
        if os.getpid() != parent:
            conn.end("grandchild")
        else:
            statuses.append(status_of_child(lambda: serves_twice(conn.server)))

    parent = os.getpid()
    options = {"max_connections": 1, "when_full": "refuse"}
    with netkit.create_server(handler, **options).listen(0, "127.0.0.1") as server:
        with netkit.connect(server.server_address[1], "127.0.0.1") as conn:
            assert conn.read() == b""
    assert statuses == [1]


@forking
def test_a_server_that_does_not_accept_is_the_childs_too() -> None:
    """It may accept there, as in worker processes."""
    with netkit.create_server(netkit.EchoHandler).listen(0, "127.0.0.1") as server:
        server.shutdown()
        assert status_of_child(lambda: server.listening and server.socket.fileno() >= 0) == 1


def test_a_server_in_a_script_that_a_spawned_process_imports_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forks.check_main()
    script = ModuleType("__mp_main__")
    monkeypatch.setitem(sys.modules, "__mp_main__", script)
    with pytest.raises(netkit.ServerStateError, match="start the server under if __name__ =="):
        forks.check_main()
    monkeypatch.setitem(sys.modules, "__main__", script)
    forks.check_main()
    monkeypatch.setitem(sys.modules, "__mp_main__", ModuleType("__main__"))  # of a debugger
    forks.check_main()


@forking
@pytest.mark.parametrize("before", [signal.default_int_handler, signal.SIG_IGN])
def test_the_command_line_leaves_children_what_ctrl_c_does_in_python(
    before: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def main() -> int:
        expected = signal.SIG_DFL if before is signal.default_int_handler else before
        assert signal.getsignal(signal.SIGINT) == expected
        return status_of_child(lambda: signal.getsignal(signal.SIGINT) == before)

    monkeypatch.setattr("netkit.cli.main.main", main)
    handler = signal.signal(signal.SIGINT, before)
    try:
        assert netkit.__main__.run() == 1
    finally:
        signal.signal(signal.SIGINT, handler)
        forks.do_not_undo(netkit.__main__._restore_interrupts)


@forking
def test_a_child_that_leaves_its_handler_ends_and_serves_nobody_else(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(LEAVING)
    with Program(sys.executable, tmp_path / "script.py", cwd=tmp_path) as program:
        pids = set()
        for _ in range(20):
            with program.connect() as sock:
                pids.add(receive_all(sock))
        wait_until(lambda: not program.children(), "the end of the children")
        assert pids == {b"%d\n" % program.process.pid}
        program.send_signal(signal.SIGTERM)
        assert program.wait() == 0


LEAVING = """
import logging, os, sys, time, warnings
import netkit

warnings.simplefilter("ignore")
logging.basicConfig(level="INFO", format="%(message)s")

def handler(conn):
    conn.write(f"{os.getpid()}\\n")
    if os.fork() == 0:
        sys.stderr = open(os.devnull, "w")
    else:
        os.wait()

sys.exit(netkit.serve(handler, host="127.0.0.1").exit_status)
"""
