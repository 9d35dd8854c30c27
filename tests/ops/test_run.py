"""`run` and `serve`: their arguments, their worker processes, and all ways in which they end."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import PATIENCE, Program, in_thread, observed, receive_all, wait_until

import netkit
from netkit.core import cores, events
from netkit.net import forks
from netkit.process import signals, supervisor
from netkit.server import log_config


class Recorder:
    """In the place of `Workers`."""

    calls: list[Any] = []  # noqa: RUF012 - emptied by the fixture

    def __init__(self, server: netkit.Server, count: int | str, attachment: Any) -> None:
        self.calls.append((server, count))

    def run(self, drain_timeout: float | None) -> netkit.RunReport:
        self.calls.append(drain_timeout)
        return netkit.RunReport(1, 2, False)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    monkeypatch.setattr(Recorder, "calls", [])
    monkeypatch.setattr(supervisor, "Workers", Recorder)
    return Recorder


def test_several_workers_serve_if_they_are_asked_for(recorder: type[Recorder]) -> None:
    with netkit.create_server(netkit.EchoHandler).listen(0, "127.0.0.1") as server:
        assert netkit.run(server, 5, workers=3) == (1, 2, False)
    assert recorder.calls == [(server, 3), 5]
    netkit.serve(netkit.EchoHandler, 0, "127.0.0.1", workers=2, drain_timeout=7)
    (server, count), drain_timeout = recorder.calls[2:]
    assert (count, drain_timeout) == (2, None)
    assert server._options.drain_timeout == 7
    server.close()


def test_one_worker_is_this_process(
    recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores.sys, "_is_gil_enabled", lambda: False, raising=False)
    before = signal.getsignal(signal.SIGINT)

    def interrupt() -> None:
        wait_until(lambda: seen and signal.getsignal(signal.SIGINT) is not before)
        signal.raise_signal(signal.SIGINT)

    with observed(events.Listening) as seen, in_thread(interrupt):
        report = netkit.serve(netkit.EchoHandler, host="127.0.0.1", workers="auto")
    assert report == (0, 0, False)
    assert recorder.calls == []


def test_a_port_is_not_bound_for_a_number_of_workers_that_cannot_be() -> None:
    with observed(events.Listening) as seen, pytest.raises(ValueError, match="workers must be"):
        netkit.serve(netkit.EchoHandler, workers=0)
    assert seen == []


# All ends


class Boom(Exception):
    """What a signal handler of the program raises."""


def state() -> list[Any]:
    """What netkit changes in a process while it serves."""
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    handlers = [signal.getsignal(signum) for signum in sorted(signal.valid_signals())]
    masks = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    return [wakeup, handlers, masks, len(forks._undoing), sys.unraisablehook, threading.enumerate()]


def interrupted_at(moment: int, run: Callable[[], object]) -> bool:
    """Call `run` and have an exception come before that line of netkit's in the main thread.

    Whether there was such a line.
    """
    left, begun = moment, False  # once it has looked at its arguments

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal left, begun
        begun = begun or frame.f_code.co_name == "_run"
        name = Path(frame.f_code.co_filename).name
        if not begun or name not in ("signals.py", "service.py", "run.py", "forks.py"):
            return None
        if event == "line":
            left -= 1
            if left < 0:
                raise Boom
        return trace

    def call() -> Iterator[object]:
        yield run()

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        # CPython may go on handling an exception where a trace function has raised another one, and
        # all later tracebacks would show it. A generator has an exception context of its own.
        next(call())
    except Boom:
        return True
    finally:
        sys.settrace(previous)
    return left < 0


@contextlib.contextmanager
def stopped_soon(server: netkit.Server) -> Iterator[None]:
    """A SIGTERM comes once it serves."""
    ended = threading.Event()

    def stop() -> None:
        while not (server._accept_loop.under_way or ended.is_set()):
            time.sleep(0.0005)
        if not ended.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    with in_thread(stop):
        try:
            yield
        finally:
            ended.set()


@pytest.mark.filterwarnings("ignore:.*socket:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # of a mailbox being made
def test_an_exception_at_any_moment_ends_run_and_leaves_nothing_behind() -> None:
    ignored = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        before = state()
        server = netkit.create_server(netkit.EchoHandler, drain_timeout=60)
        for moment in itertools.count():
            server.listen(0, "127.0.0.1")
            address = server.server_address
            with stopped_soon(server):
                found = interrupted_at(moment, lambda: netkit.run(server))
            wait_until(lambda: state() == before, f"the end of all after line {moment}, {state()},")
            assert not server.listening
            assert refused(address)
            if not found:
                break
        assert moment > 100
    finally:
        signal.signal(signal.SIGTERM, ignored)


def refused(address: Any) -> bool:
    try:
        socket.create_connection(address).close()
    except ConnectionRefusedError:
        return True
    return False


@contextlib.contextmanager
def alarms_raise() -> Iterator[None]:
    """A signal handler of the program raises `Boom`."""

    def boom(signum: int, frame: object) -> None:
        raise Boom

    before = signal.signal(signal.SIGALRM, boom)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("then", [0.0, 0.01])
def test_serve_ends_by_an_exception_of_a_signal_handler_with_a_client(then: float) -> None:
    """Also if the exceptions come again and again."""
    before = state()
    socks: list[socket.socket] = []

    def come() -> None:
        wait_until(lambda: seen, "listening")
        host, port = seen[0].address.split(":")
        socks.append(socket.create_connection((host, int(port)), PATIENCE))
        socks[0].sendall(b"x")
        assert socks[0].recv(1) == b"x"
        signal.setitimer(signal.ITIMER_REAL, 0.01, then)

    with observed(events.Listening) as seen, in_thread(come):
        with pytest.raises(Boom), alarms_raise():
            netkit.serve(netkit.EchoHandler, host="127.0.0.1", drain_timeout=60)
    with socks[0] as sock:
        assert sock.recv(1) == b""
    host, port = seen[0].address.split(":")
    assert refused((host, int(port)))
    wait_until(lambda: state() == before)


def test_serve_closes_what_it_has_bound_if_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise Boom

    monkeypatch.setattr("netkit.ops.run.run", fail)
    with observed(events.Listening) as seen, pytest.raises(Boom):
        netkit.serve(netkit.EchoHandler, host="127.0.0.1")
    host, port = seen[0].address.split(":")
    assert refused((host, int(port)))


def test_run_without_a_thread_to_serve_in_closes_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = threading.Thread.start

    def fail(thread: threading.Thread) -> None:
        if thread.name == "netkit-serve":
            raise RuntimeError("can't start new thread")
        start(thread)

    before = state()
    monkeypatch.setattr(threading.Thread, "start", fail)
    server = netkit.create_server(netkit.EchoHandler).listen(0, "127.0.0.1")
    address = server.server_address
    with pytest.raises(RuntimeError, match="can't start new thread"):
        netkit.run(server)
    assert refused(address)
    assert server.stop() == (0, 0)
    assert state() == before


def test_run_refuses_a_handler_and_names_the_function_that_takes_one() -> None:
    with pytest.raises(
        TypeError, match=r"run\(\) needs a server, not .*; serve\(\) takes a handler"
    ):
        netkit.run(netkit.EchoHandler)  # type: ignore[arg-type]


@pytest.mark.parametrize("in_main_thread", [True, False])
def test_a_server_that_fails_is_closed(in_main_thread: bool) -> None:
    class Failing(netkit.Server):
        def serve_forever(self, poll_interval: float = 0.5) -> None:
            raise Boom

    server = Failing(("127.0.0.1", 0), netkit.EchoHandler)

    def run() -> None:
        with pytest.raises(Boom):
            netkit.run(server)

    if in_main_thread:
        run()
    else:
        with in_thread(run):
            pass
    assert refused(server.server_address)


def test_an_action_that_must_end_is_repeated_but_not_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []

    def action() -> None:
        calls.append(1)
        if len(calls) < 3:
            raise Boom(len(calls))

    with pytest.raises(Boom, match="2"):
        signals.despite_signals(action)
    assert len(calls) == 3
    signals.despite_signals(action)
    monkeypatch.setattr(signals, "_TRIES", 2)
    with pytest.raises(ZeroDivisionError):
        signals.despite_signals(lambda: 1 / 0)


# A stop before it serves


class Late(netkit.Server):
    """One whose thread takes a while: until a stop has been requested."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.requested = threading.Event()

    def request_stop(self, timeout: float | None = None, patience: float = 0.0) -> None:
        super().request_stop(timeout, patience)
        self.requested.set()

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        assert self.requested.wait(PATIENCE)
        super().serve_forever(poll_interval)


def test_a_server_that_serves_already_expects_no_other_turn() -> None:
    with netkit.create_server(netkit.EchoHandler).listen(0, "127.0.0.1") as server:
        server._accept_loop.expect()
        assert server._accept_loop.has_begun


def serve_for_a_while(server: netkit.Server) -> None:
    with in_thread(netkit.Server.serve_forever, server):
        wait_until(lambda: server._accept_loop.under_way)
        server.shutdown()


@pytest.mark.parametrize("served", [False, True])
def test_a_signal_before_the_server_serves_again_stops_it(served: bool) -> None:
    server = Late(None, netkit.EchoHandler).listen(0, "127.0.0.1")
    if served:
        serve_for_a_while(server)
    last_resort = threading.Timer(PATIENCE, server.close)
    last_resort.start()
    assert netkit.run(server) == (0, 0, False)
    assert last_resort.is_alive()
    last_resort.cancel()
    last_resort.join()


@pytest.mark.parametrize("served", [False, True])
def test_a_signal_handler_may_stop_the_server_before_its_thread_is_started(
    served: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def stop_first(thread: threading.Thread) -> None:
        if thread.name == "netkit-serve":
            server.stop()
        start(thread)

    server = netkit.create_server(netkit.EchoHandler).listen(0, "127.0.0.1")
    if served:
        serve_for_a_while(server)
    monkeypatch.setattr(threading.Thread, "start", stop_first)
    assert netkit.run(server) == (0, 0, False)


# What is written where no logging is configured

PROGRAM = """
import logging
import netkit

def fail(conn):
    raise ValueError("of the handler")

if __name__ == "__main__":
    {before}
    {serve}
    assert not logging.getLogger("netkit").level
"""


def lines_of(serve: str, before: str = "pass") -> list[str]:
    """What a program writes to standard error that serves a client, and is stopped by SIGTERM."""
    program = PROGRAM.format(serve=serve, before=before)
    with Program(sys.executable, "-c", program, listening=False) as running:
        if before == "pass":
            running.wait_for_line("listening on ")
            port = re.search(r":(\d+)", running.lines[0])
            assert port
            with (
                contextlib.suppress(ConnectionResetError),  # the handler has failed
                socket.create_connection(("127.0.0.1", int(port[1])), PATIENCE) as sock,
            ):
                sock.shutdown(socket.SHUT_WR)
                receive_all(sock)  # now it handles signals
        else:  # nothing tells when it serves
            wait_until(lambda: catches_signals(running.process.pid))
        running.send_signal(signal.SIGTERM)
        assert running.wait() == 0, running.lines
        return [re.sub(r":\d{4,5}$", ":PORT", line) for line in running.lines]


def catches_signals(pid: int) -> bool:
    found = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    assert found
    return bool(int(found[1], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize(
    ("serve", "where"),
    [
        ("netkit.serve(netkit.EchoHandler, host='127.0.0.1')", "127.0.0.1:PORT"),
        ("server = netkit.create_server(netkit.EchoHandler).listen(); netkit.run(server)", None),
    ],
)
def test_where_it_listens_and_that_it_stops_is_written_to_standard_error(
    serve: str, where: str | None
) -> None:
    first, *rest, last = lines_of(serve)
    if where is None:
        assert re.fullmatch(r"listening on .*:\d+ \(every address\)", first)
        assert "profile='public'" in rest[0]
    else:
        assert first == f"listening on {where}"
    assert re.fullmatch("stopped: [01] finished, 0 cut", last)  # its client may be closing yet


def test_a_server_that_does_not_listen_is_an_error_and_is_not_announced() -> None:
    program = "import netkit; netkit.run(netkit.create_server(netkit.EchoHandler))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.startswith("Traceback")
    assert "ServerStateError: the server is" in run.stderr


def test_a_handler_that_fails_is_written_to_standard_error() -> None:
    lines = lines_of("netkit.serve(fail, host='127.0.0.1')")
    assert "the handler failed: ValueError: of the handler" in lines[1]
    assert "ValueError: of the handler" in lines[2:]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_write_their_lines_too(method: str, tmp_path: Path) -> None:
    path = tmp_path / "app.py"
    start = f"import multiprocessing; multiprocessing.set_start_method({method!r}); "
    serve = "netkit.serve(fail, host='127.0.0.1', workers=2)"
    path.write_text(PROGRAM.format(serve=start + serve, before="pass"))
    with Program(sys.executable, str(path)) as running:
        running.wait_for_line("2 workers ready")
        with contextlib.suppress(ConnectionResetError), running.connect() as sock:
            receive_all(sock)
        running.wait_for_line(r"pid \d+: \[\d+\] .*: the handler failed: ValueError")
        running.send_signal(signal.SIGTERM)
        assert running.wait() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "before",
    [
        "logging.basicConfig(level='ERROR')",
        "logging.getLogger('netkit').addHandler(logging.NullHandler())",
    ],
    ids=["basicConfig", "NullHandler"],
)
def test_a_program_that_has_configured_logging_gets_no_further_lines(before: str) -> None:
    assert lines_of("netkit.serve(fail, host='127.0.0.1')", before=before) == []


def test_what_the_program_chooses_for_logging_holds(capsys: pytest.CaptureFixture[str]) -> None:
    """Also what it chooses later."""
    logger, root = logging.getLogger("netkit"), logging.getLogger()
    added = root.handlers[:]  # pytest's own
    root.handlers[:] = []
    try:
        logger.setLevel(logging.WARNING)
        with log_config.status_lines() as shown:
            assert shown
            logger.info("below the level")
            logger.warning("shown")
            root.addHandler(logging.NullHandler())
            logger.warning("of the other handler")
        assert logger.level == logging.WARNING
        assert not logger.handlers
    finally:
        root.handlers[:] = added
        logger.setLevel(logging.NOTSET)
    (line,) = capsys.readouterr().err.splitlines()
    assert "shown" in line
