"""Ctrl+C and SIGTERM: real signals, to processes and to this one."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import (
    PATIENCE,
    ROOT,
    Cli,
    Program,
    client,
    in_thread,
    observed,
    receive_all,
    receive_exactly,
    silent_log,
    wait_until,
)

import netkit
from netkit.core import events
from netkit.net import forks
from netkit.process.reloading import Reloads
from netkit.process.service import supervise
from netkit.process.signals import Mailbox, Request, StopSignals

LONG = 60.0  # seconds: a deadline that no test reaches, nor waits for
SHORT = 0.1  # seconds: a deadline that is to pass


def kill(signum: int) -> None:
    os.kill(os.getpid(), signum)


def new_server(handler: Any = netkit.EchoHandler, **options: Any) -> netkit.Server:
    return netkit.create_server(handler, **options).listen(0, "127.0.0.1")


@contextlib.contextmanager
def meanwhile(server: netkit.Server, action: Callable[[], object]) -> Iterator[None]:
    """`action` in another thread, once the server serves; if it fails, the server is closed."""

    def act() -> None:
        try:
            with client(server) as sock:
                sock.shutdown(socket.SHUT_WR)
                receive_all(sock)
            wait_until(lambda: not server.connections)
            action()
        except BaseException:
            server.close()
            raise

    with in_thread(act):
        yield


@contextlib.contextmanager
def handling(signum: int, handler: Any) -> Iterator[None]:
    """The program has this handler, and still has it at the end."""
    before = signal.signal(signum, handler)
    try:
        yield
        assert signal.getsignal(signum) is handler
    finally:
        signal.signal(signum, before)


@pytest.fixture
def hang_ups_are_default() -> Iterator[None]:
    """As they are not under nohup(1)."""
    with handling(signal.SIGHUP, signal.SIG_DFL):
        yield


@pytest.fixture(autouse=True)
def signals_are_put_back(no_signal_ends_the_run: None) -> Iterator[None]:
    before = [signal.getsignal(signum) for signum in StopSignals.SIGNALS]
    yield
    assert [signal.getsignal(signum) for signum in StopSignals.SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1


@pytest.fixture
def may_end_otherwise(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The hook and the handlers that `StopSignals` leaves with `afterwards` are put back."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    before = {signum: signal.getsignal(signum) for signum in StopSignals.SIGNALS}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


# The command line as a process


@contextlib.contextmanager
def busy_client(server: Cli) -> Iterator[socket.socket]:
    """A client of `echo` that has sent a part of a line."""
    with server.connect() as sock:
        sock.sendall(b"one\nhal")
        assert receive_exactly(sock, 4) == b"ONE\n"
        yield sock


@pytest.fixture
def shouting(tmp_path: Any) -> Callable[..., Cli]:
    """`netkit serve` with a handler that answers lines."""
    (tmp_path / "app.py").write_text(
        "def shout(conn):\n"
        "    for line in conn.lines():\n"
        "        conn.write(line.upper() + '\\n')\n"
    )
    return lambda *options: Cli("serve", "app:shout", *options, cwd=tmp_path)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_stops_a_server_with_many_idle_clients(signum: int) -> None:
    with Cli("echo", "--drain-timeout", "60") as server, contextlib.ExitStack() as stack:
        socks = [stack.enter_context(server.connect()) for _ in range(50)]
        socks[-1].sendall(b"x")
        assert receive_exactly(socks[-1], 1) == b"x"  # so the others have been accepted, too
        server.send_signal(signum)
        assert [receive_all(sock) for sock in socks] == [b""] * 50
        assert server.wait() == 0
        assert server.lines[1:] == [
            "stopping: 50 connected, up to 60 s to finish",
            "stopped: 50 finished, 0 cut",
        ]


@pytest.mark.usefixtures("hang_ups_are_default")
def test_a_hang_up_with_nothing_to_reload_leaves_the_server_as_it_is(
    shouting: Callable[..., Cli],
) -> None:
    with shouting() as server, busy_client(server) as sock:
        server.send_signal(signal.SIGHUP)
        server.wait_for_line("SIGHUP: there is nothing to reload")
        sock.sendall(b"f\n")
        assert receive_exactly(sock, 5) == b"HALF\n"


# Executes a program that has the terminal named first, and is alone in its session.
ON_A_TERMINAL = """
import os, sys
os.set_inheritable(os.open(sys.argv[1], os.O_RDWR), True)
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.mark.usefixtures("hang_ups_are_default")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_stops_when_its_terminal_is_closed_and_not_before(workers: int) -> None:
    ready, reloaded = ("listening on", "nothing to reload"), ("2 workers ready", "reloaded")
    ours, theirs = os.openpty()
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, theirs)
        terminal = stack.enter_context(open(ours, "rb", buffering=0))
        serve = [sys.executable, "-m", "netkit", "echo", "127.0.0.1:0", "--workers", str(workers)]
        server = stack.enter_context(
            Program(sys.executable, "-c", ON_A_TERMINAL, os.ttyname(theirs), *serve)
        )
        for line, action in zip(
            [ready, reloaded][workers - 1],
            [lambda: server.send_signal(signal.SIGHUP), terminal.close],
            strict=True,
        ):
            server.wait_for_line(line)
            action()
        assert server.wait() == 0
        assert server.lines[-1].startswith("stopped: ")


@pytest.mark.usefixtures("hang_ups_are_default")
@pytest.mark.parametrize("supervision", ["a service manager", "a control socket"])
def test_a_hang_up_never_stops_a_server_that_is_supervised(
    supervision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = os.openpty()
    options = ["127.0.0.1:0"]
    if supervision == "a service manager":
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    else:
        options += ["--control", str(tmp_path / "control")]
    serve = [sys.executable, "-m", "netkit", "echo", *options]
    command = [sys.executable, "-c", ON_A_TERMINAL, os.ttyname(theirs), *serve]
    with open(ours, "rb", buffering=0) as terminal, Program(*command) as server:
        os.close(theirs)
        terminal.close()  # which sends SIGHUP
        server.wait_for_line("SIGHUP: there is nothing to reload")
        server.send_signal(signal.SIGTERM)
        assert server.wait() == 0


@pytest.mark.usefixtures("hang_ups_are_default")
def test_a_log_file_that_was_renamed_is_opened_anew_at_a_hang_up(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with Cli("logger", "--output", str(path)) as server, server.connect() as sock:
        sock.sendall(b"one\n")
        wait_until(lambda: path.read_bytes() == b"one\n")
        path.rename(tmp_path / "old")
        server.send_signal(signal.SIGHUP)
        server.wait_for_line("the setting 'output' reloaded")
        sock.sendall(b"two\n")
        wait_until(lambda: path.read_bytes() == b"two\n")
        assert (tmp_path / "old").read_bytes() == b"one\n"
        path.unlink()
        path.mkdir()
        server.send_signal(signal.SIGHUP)
        server.wait_for_line("the setting 'output' not reloaded, the old one stays")
        server.send_signal(signal.SIGTERM)
        assert server.wait() == 0


class Reopened:
    """A setting of a handler whose `reopen` blocks until it is allowed to end."""

    def __init__(self) -> None:
        self.calls = 0
        self.may_end = threading.Event()

    def reopen(self) -> None:
        self.calls += 1
        assert self.may_end.wait(PATIENCE)


class SettingHandler(netkit.EchoHandler):
    output: Any = None


@pytest.mark.usefixtures("hang_ups_are_default")
def test_a_reload_that_blocks_keeps_no_signal_from_stopping_the_server() -> None:
    output = Reopened()
    server = new_server(SettingHandler, handler_args={"output": output})

    def act() -> None:
        for _ in range(3):  # the later ones are one reload, after the first
            kill(signal.SIGHUP)
            wait_until(lambda: output.calls == 1)
        kill(signal.SIGTERM)

    with silent_log(), meanwhile(server, act):
        assert netkit.run(server) == (0, 0, False)
    assert output.calls == 1
    output.may_end.set()
    wait_until(lambda: "netkit-reload" not in [each.name for each in threading.enumerate()])
    assert output.calls == 2


def test_a_reload_that_fails_is_logged_and_the_next_one_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Failing(netkit.Server):
        can_reload = True

        def reload(self) -> bool:
            raise SystemExit("no")

    def no_thread(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    server = Failing(None, netkit.EchoHandler)
    reloads = Reloads([server])
    with silent_log(), observed(events.HookFailed) as seen:
        reloads.ask()
        reloads.join(PATIENCE)
        monkeypatch.setattr(threading.Thread, "start", no_thread)
        wait_until(lambda: reloads.counts == {"ok": 0, "failed": 1})
        reloads.ask()  # in this thread
        reloads.join(PATIENCE)
    assert [(each.hook, str(each.error)) for each in seen] == [("reload", "no")] * 2
    assert reloads.counts == {"ok": 0, "failed": 2}


@pytest.mark.parametrize("handled", [True, False])
def test_a_hang_up_reloads_what_is_configured_though_the_program_may_handle_it_else(
    handled: bool, tmp_path: Path
) -> None:
    path = tmp_path / "deny"
    path.write_text("10.0.0.0/8\n")
    server = new_server(deny=path if handled else None)
    mine: list[int] = []

    def act() -> None:
        server.configure(deny=path)
        path.write_text("127.0.0.0/8\n")
        kill(signal.SIGHUP)
        wait_until(lambda: "127.0.0.1" in server._options.deny)
        kill(signal.SIGTERM)

    handler = (lambda signum, _: mine.append(signum)) if handled else signal.SIG_DFL
    with handling(signal.SIGHUP, handler):
        with silent_log(), meanwhile(server, act):
            assert netkit.run(server) == (0, 0, False)
        assert mine == []
        if handled:
            kill(signal.SIGHUP)
            wait_until(lambda: mine == [signal.SIGHUP])


def test_a_hang_up_that_is_ignored_stays_so() -> None:
    server = new_server()

    def act() -> None:
        kill(signal.SIGHUP)
        with client(server) as sock:
            sock.sendall(b"x")
            assert receive_exactly(sock, 1) == b"x"
        kill(signal.SIGTERM)

    with handling(signal.SIGHUP, signal.SIG_IGN):
        with meanwhile(server, act):
            assert netkit.run(server)[1:] == (0, False)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_cuts_at_once(first: int, shouting: Callable[..., Cli]) -> None:
    with shouting("--drain-timeout", "60") as server, busy_client(server) as sock:
        server.send_signal(first)
        server.wait_for_line("stopping: 1 connected")
        server.send_signal(signal.SIGINT)
        assert receive_all(sock) == b""
        assert server.wait() == 130
        assert server.lines[-1] == "stopped: 0 finished, 1 cut"


def test_a_second_sigterm_cuts_nobody(shouting: Callable[..., Cli]) -> None:
    with shouting() as server, busy_client(server) as sock:
        server.send_signal(signal.SIGTERM)
        server.wait_for_line("stopping: 1 connected")
        server.send_signal(signal.SIGTERM)
        sock.sendall(b"f\n")
        assert receive_all(sock) == b"HALF\n"
        assert server.wait() == 0
        assert server.lines[-1] == "stopped: 1 finished, 0 cut"


# At any moment


class Echo:
    """`netkit echo` as a process of which nothing is known but how it ends."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "netkit", "echo"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            # Else the hooks of a coverage run, or of an environment, are what is interrupted.
            env={**os.environ, "COVERAGE_PROCESS_START": "", "COVERAGE_PROCESS_CONFIG": ""},
        )

    def send(self, signum: int, pause: float) -> None:
        time.sleep(pause)
        if self.process.poll() is None:
            self.process.send_signal(signum)

    def check_end(self) -> int:
        """Its status, if it ended as it should."""
        try:
            _, output = self.process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.terminate()
            _, output = self.process.communicate(timeout=PATIENCE)
            if b"'import warnings' failed" not in output:
                pytest.fail(f"it hangs: {output!r}")
            return self.process.returncode  # Python's own start has swallowed the signal
        lines = output.decode().splitlines()
        status = self.process.returncode
        if any("listening" in line for line in lines):
            assert "Traceback" not in output.decode()
            assert status in (0, 130), (status, lines)
            assert "stopped: " in lines[-1], lines
        elif lines:  # Python itself was interrupted, before our `__main__` could do anything
            assert not re.search(r"netkit/(?!__init__)\w+\.py", output.decode()), lines
        else:
            assert status in (-signal.SIGINT, -signal.SIGTERM), status
        return status


@pytest.fixture(scope="module")
def time_to_listen() -> float:
    def measure() -> float:
        start = time.monotonic()
        with Cli("echo"):
            return time.monotonic() - start

    return sorted(measure() for _ in range(3))[1]


def test_a_signal_at_any_moment_of_the_start_ends_it_cleanly(time_to_listen: float) -> None:
    for step, signum in zip(range(8), itertools.cycle(StopSignals.SIGNALS)):
        echo = Echo()
        echo.send(signum, time_to_listen * step / 6)
        assert echo.check_end() != 130


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signals_until_the_very_end_do_not_change_the_status(signum: int) -> None:
    with Cli("echo") as server:
        while server.process.poll() is None:
            server.send_signal(signum)
            time.sleep(0.0002)
        assert server.wait() in ((0, 130) if signum == signal.SIGINT else (0,))
        # Nothing, if two of them came before it had begun to serve.
        assert server.lines[1:] in (["stopped: 0 finished, 0 cut"], [])


def test_a_hundred_signals_at_random_moments_end_it_cleanly(time_to_listen: float) -> None:
    rng = random.Random(1)
    for longest in (0.0, 0.001):
        echo = Echo()
        time.sleep(rng.uniform(0.5, 1.5) * time_to_listen)
        for signum in rng.choices(StopSignals.SIGNALS, k=100):
            echo.send(signum, rng.uniform(0, longest))
        echo.check_end()


STORMY = """
import logging, os, signal, sys, time
import netkit, netkit.server.drain

netkit.server.drain.Drain.grace = 0.5
logging.basicConfig(level="INFO", format="%(message)s")

def handler(conn):
    conn.peek()
    logging.info("served")
    time.sleep(60)

signal.signal(signal.SIGINT, signal.SIG_IGN)  # what comes after the end
sys.exit(netkit.serve(handler, host="127.0.0.1", drain_timeout=60).exit_status)
"""


def test_a_storm_that_fills_the_wakeup_socket_does_not_lose_the_end(tmp_path: Path) -> None:
    (tmp_path / "stormy.py").write_text(STORMY)
    with Program(sys.executable, tmp_path / "stormy.py", cwd=tmp_path) as program:
        with program.connect() as sock:
            sock.sendall(b"x")
            program.wait_for_line("served")
            program.send_signal(signal.SIGINT)
            program.wait_for_line("stopping: 1 connected")
            for _ in range(500):  # the socket holds fewer, and nobody reads while the others end
                program.send_signal(signal.SIGINT)
                time.sleep(0.0005)  # signals that are sent faster come as one
        assert program.wait() == 130
        assert program.lines[-1] == "stopped: 0 finished, 1 cut"


# In a user's own program


def test_serve_binds_runs_and_returns_the_report() -> None:
    def interrupt() -> None:
        wait_until(lambda: seen, "listening")
        host, port = seen[0].address.split(":")
        with socket.create_connection((host, int(port)), PATIENCE) as sock:
            sock.sendall(b"x")
            assert receive_exactly(sock, 1) == b"x"
            kill(signal.SIGINT)
            assert receive_all(sock) == b""

    with observed(events.Listening) as seen, in_thread(interrupt):
        report = netkit.serve(netkit.EchoHandler, host="127.0.0.1", drain_timeout=LONG)
    assert report == (1, 0, False)
    assert report.exit_status == 0
    assert str(report) == "stopped: 1 finished, 0 cut"


def test_run_cuts_at_its_own_drain_timeout() -> None:
    server = new_server(lambda conn: [*conn.lines()], drain_timeout=LONG)

    def stop_mid_line() -> None:
        with client(server) as sock:
            sock.sendall(b"hal")
            wait_until(lambda: [c.bytes_read for c in server.connections] == [3])
            kill(signal.SIGTERM)
            assert receive_all(sock) == b""

    with meanwhile(server, stop_mid_line):
        report = netkit.run(server, SHORT)
    assert report == (0, 1, False)
    assert report.exit_status == 0


def test_an_invalid_drain_timeout_is_refused_before_serving() -> None:
    with new_server() as server, pytest.raises(ValueError, match="drain_timeout must be 0 or more"):
        netkit.run(server, -1)


@pytest.mark.parametrize("how", ["stop", "close", "shutdown"])
def test_run_ends_when_another_thread_ends_the_server(how: str) -> None:
    server = new_server()
    with meanwhile(server, lambda: getattr(server, how)()):
        assert netkit.run(server) == (0, 0, False)
    assert not server.listening
    with pytest.raises(netkit.ServerStateError, match="the server is closed"):
        netkit.run(server)


def test_a_handler_may_stop_the_server_and_still_answer() -> None:
    def handler(conn: netkit.Connection) -> None:
        if conn.readline():
            conn.server.stop()
            conn.write("stopped\n")

    server = new_server(handler)

    def ask() -> None:
        with client(server) as sock:
            sock.sendall(b"stop\n")
            assert receive_all(sock) == b"stopped\n"

    with meanwhile(server, ask):
        report = netkit.run(server)
    assert (report.cut, report.interrupted) == (0, False)


def test_other_signals_are_the_programs_and_afterwards_all_and_the_wakeup_descriptor() -> None:
    server = new_server()
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    mine: list[int] = []

    def act() -> None:
        kill(signal.SIGUSR1)
        wait_until(lambda: mine == [signal.SIGUSR1])
        assert server.listening
        kill(signal.SIGTERM)

    with contextlib.ExitStack() as stack:
        for each in (reading, writing):
            stack.callback(each.close)
        for signum in (signal.SIGUSR1, signal.SIGTERM):
            stack.enter_context(handling(signum, lambda signum, _: mine.append(signum)))
        stack.enter_context(handling(signal.SIGINT, signal.default_int_handler))
        signal.set_wakeup_fd(writing.fileno())
        with meanwhile(server, act):
            assert netkit.run(server).exit_status == 0
        kill(signal.SIGTERM)
        wait_until(lambda: mine == [signal.SIGUSR1, signal.SIGTERM])
        assert reading.recv(1) == bytes([signal.SIGTERM])
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert signal.set_wakeup_fd(-1) == writing.fileno()


def test_off_the_main_thread_the_log_says_that_signals_are_not_handled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = new_server()
    reports: list[netkit.RunReport] = []
    with (
        observed(events.SignalsUnavailable) as seen,
        in_thread(lambda: reports.append(netkit.run(server))),
    ):
        with client(server) as sock:
            sock.sendall(b"x")
            assert receive_exactly(sock, 1) == b"x"
        server.stop()
    assert len(seen) == 1
    assert (reports[0].cut, reports[0].exit_status) == (0, 0)
    assert "signals are not handled here: this is not the main thread" in caplog.text


def test_stop_signals_are_for_the_main_thread_only() -> None:
    def enter() -> None:
        with pytest.raises(ValueError, match="only be handled in the main thread"), StopSignals():
            pass

    with in_thread(enter):
        pass


@pytest.mark.usefixtures("may_end_otherwise")
@pytest.mark.parametrize("afterwards", [None, signal.SIG_IGN])
def test_python_reports_all_but_a_signal_that_comes_as_its_handler_goes(
    afterwards: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_handler = signal.signal
    told: list[str] = []

    def report(text: str) -> None:
        sys.unraisablehook(SimpleNamespace(exc_value=OSError(text)))  # type: ignore[arg-type]

    def late(signum: int, handler: Any) -> Any:
        report(f"Signal {signum} ignored due to race condition")
        report("something else")
        return set_handler(signum, handler)

    def tell(unraisable: Any) -> None:
        told.append(str(unraisable.exc_value))

    monkeypatch.setattr(sys, "unraisablehook", tell)
    with monkeypatch.context() as patch, StopSignals(afterwards):
        patch.setattr(signal, "signal", late)
    assert set(told) == {"something else"}
    assert (sys.unraisablehook is tell) is (afterwards is None)
    for _ in range(1100):  # each sets the hook, but only once
        with StopSignals(afterwards):
            pass
    report("the last one")
    assert told[-1] == "the last one"


def test_signals_that_can_be_caught_in_part_only_are_put_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_handler = signal.signal

    def fail(signum: int, handler: Any) -> Any:
        if signum == signal.SIGTERM and handler != before:
            raise RuntimeError("a signal handler of the program")
        return set_handler(signum, handler)

    before, undoing = signal.getsignal(signal.SIGTERM), list(forks._undoing)
    with monkeypatch.context() as patch:
        patch.setattr(signal, "signal", fail)
        with pytest.raises(RuntimeError, match="of the program"), StopSignals():
            pass
    assert forks._undoing == undoing


def test_without_descriptors_signals_stay_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Any:
        raise OSError(errno.EMFILE, "too many open files")

    undoing = list(forks._undoing)
    monkeypatch.setattr(socket, "socketpair", fail)
    with pytest.raises(OSError, match="too many open files"), StopSignals():
        pass
    assert forks._undoing == undoing


def test_a_wake_up_descriptor_that_has_been_closed_meanwhile_is_not_put_back() -> None:
    reading, writing = socket.socketpair()
    with reading:
        writing.setblocking(False)
        signal.set_wakeup_fd(writing.fileno())
        with StopSignals():
            writing.close()
    assert signal.set_wakeup_fd(-1) == -1


def test_a_signal_that_comes_before_the_server_serves_is_not_lost() -> None:
    server = new_server()
    with client(server) as sock:
        sock.sendall(b"x")
        with StopSignals() as signals:
            kill(signal.SIGINT)
            assert supervise((server,), signals) == (1, 0, False)
        assert receive_all(sock) == b"x"


# The mailbox


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    mailbox = Mailbox()
    yield mailbox
    mailbox.close()


def test_what_is_posted_is_taken_in_order(mailbox: Mailbox) -> None:
    requests = [Request.LOOK, Request.STOP, Request.RELOAD]
    for request in requests:
        mailbox.post(request)
    assert select.select([mailbox], [], [], 0)[0] == [mailbox]
    assert mailbox.wait() == requests
    assert select.select([mailbox], [], [], 0)[0] == []
    assert mailbox.rest() == []


def test_one_that_takes_waits_for_a_request(mailbox: Mailbox) -> None:
    os.write(mailbox.wakeup_fileno(), b"\2")  # of a signal that is another process's
    assert mailbox.wait() == []
    taken: list[Request] = []
    with in_thread(lambda: taken.extend(mailbox.wait())):
        mailbox.post(Request.STOP)
    assert taken == [Request.STOP]


def test_a_full_mailbox_holds_up_nobody_and_loses_nothing(mailbox: Mailbox) -> None:
    for _ in range(10_000):
        mailbox.post(Request.LOOK)
    mailbox.post(Request.STOP)
    assert mailbox.rest() == [Request.LOOK] * 10_000 + [Request.STOP]


def test_a_request_to_a_closed_mailbox_is_lost(mailbox: Mailbox) -> None:
    mailbox.close()
    mailbox.post(Request.LOOK)


def test_a_signal_is_one_request() -> None:
    asked = {
        signal.SIGINT: Request.INTERRUPT,
        signal.SIGTERM: Request.STOP,
        signal.SIGHUP: Request.RELOAD,
        signal.SIGTTIN: Request.MORE,
        signal.SIGTTOU: Request.FEWER,
        signal.SIGUSR1: Request.REPORT,
        signal.SIGUSR2: Request.LOOK,
    }
    with StopSignals() as signals:
        assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL
        signals.catch(*asked)
        for signum, request in asked.items():
            kill(signum)
            assert signals.mailbox.wait() == [request]
        signals.disregard(signal.SIGHUP)
        signals.catch(signal.SIGHUP)
        kill(signal.SIGHUP)
        assert signals.mailbox.rest() == []
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL


@pytest.mark.usefixtures("may_end_otherwise")
def test_afterwards_the_stop_signals_and_no_others_can_be_ignored() -> None:
    usr1 = signal.getsignal(signal.SIGUSR1)
    with StopSignals(afterwards=signal.SIG_IGN) as signals:
        signals.catch(signal.SIGUSR1)
    assert signal.getsignal(signal.SIGUSR1) is usr1
    assert [signal.getsignal(each) for each in StopSignals.SIGNALS] == [signal.SIG_IGN] * 2
