"""The known defects of `socketserver.ThreadingTCPServer`, by number, and that netkit has none.

L: stopping and life cycle, O: overload, R: robustness of the loop, I: input and output,
D: defaults and what can be observed.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import io
import logging
import os
import re
import signal
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import (
    PATIENCE,
    Program,
    Shout,
    client,
    exchange,
    exchange_and_fail,
    needs_ipv6,
    observed,
    receive_all,
    reset,
    serving,
    serving_forever,
    wait_until,
)

import netkit
import netkit.server.server
import netkit.server.threads
from netkit.core import events

LOCAL = ("127.0.0.1", 0)

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc or its options")


class Held(socketserver.BaseRequestHandler):
    """Says ``began``, and ``done`` once the server's `release` is set."""

    def handle(self) -> None:
        self.request.sendall(b"began\n")
        assert self.server.release.wait(PATIENCE)  # type: ignore[attr-defined]
        self.request.sendall(b"done\n")


class Holding(netkit.Server):
    """What `Held` needs."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.release = threading.Event()
        super().__init__(*arguments, **options)


def shout(conn: netkit.Connection) -> None:
    for line in conn.lines():
        conn.write(line.upper() + "\n")


def fail(*_: object) -> Any:
    raise ValueError("on purpose")


def seconds_of(function: Callable[[], object]) -> float:
    """How long a call takes, made in a thread so that one that never returns fails the test."""
    failures: list[BaseException] = []

    def call() -> None:
        try:
            function()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=call, daemon=True)
    begin = time.monotonic()
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive(), f"{function} does not return"
    if failures:
        raise failures[0]
    return time.monotonic() - begin


def ask(sock: socket.socket, line: bytes) -> bytes:
    """Send a line, and return the one that comes back."""
    sock.sendall(line)
    return read_line(sock)


def read_line(sock: socket.socket) -> bytes:
    received = b""
    while not received.endswith(b"\n"):
        more = sock.recv(1)
        assert more, f"the input ended after {received!r}"
        received += more
    return received


PRELUDE = """
import signal, socketserver, sys, threading, time
import netkit

class Shout(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line.upper())

class Slow(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"began\\n")
        time.sleep(0.3)
        self.wfile.write(b"done\\n")

def say_port(server):
    print(f"listening on :{server.server_address[1]}", file=sys.stderr, flush=True)
"""


class Script(Program):
    """A program on netkit in a process of its own, which calls ``say_port`` first."""

    def __init__(self, source: str) -> None:
        super().__init__(sys.executable, "-c", PRELUDE + source)

    def end(self) -> tuple[int, str, list[str]]:
        """Exit status, standard output, and the lines of standard error after the port."""
        status = self.wait()
        assert self.process.stdout
        return status, self.process.stdout.read().decode(), self.lines[1:]


# L: stopping and life cycle


def test_L1_shutdown_before_serve_forever_does_not_block_and_is_remembered() -> None:
    with netkit.Server(LOCAL, Shout) as server:
        seconds_of(server.shutdown)
        seconds_of(server.serve_forever)  # it returns at once
        with serving_forever(server):  # and only this once
            assert exchange(server, b"a\n") == b"A\n"


@pytest.mark.parametrize("method", ["shutdown", "server_close", "stop", "close"])
def test_L2_a_signal_handler_in_the_serving_thread_can_stop_the_server(method: str) -> None:
    main = threading.main_thread()
    with netkit.Server(LOCAL, Shout) as server:

        def signal_main() -> None:
            assert exchange(server, b"a\n") == b"A\n"
            wait_until(lambda: not server.connections)
            signal.pthread_kill(main.ident or 0, signal.SIGUSR1)

        previous = signal.signal(signal.SIGUSR1, lambda *_: getattr(server, method)())
        thread = threading.Thread(target=signal_main)
        thread.start()
        try:
            server.serve_forever()
        finally:
            thread.join()
            signal.signal(signal.SIGUSR1, previous)


def test_L2_a_hook_in_the_serving_thread_can_shut_the_server_down() -> None:
    class Server(netkit.Server):
        def service_actions(self) -> None:
            self.shutdown()

    with Server(LOCAL, Shout) as server:
        seconds_of(lambda: server.serve_forever(0.01))


def test_L2_a_handler_can_shut_the_server_down() -> None:
    class Quit(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.server.shutdown()
            self.request.sendall(b"shut down\n")

    with netkit.Server(LOCAL, Quit) as server, serving_forever(server) as thread:
        with client(server) as sock:
            assert read_line(sock) == b"shut down\n"
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_L3_a_second_shutdown_does_not_poison_the_next_serve_forever() -> None:
    with netkit.Server(LOCAL, Shout) as server:
        for _ in range(2):
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            assert exchange(server, b"a\n") == b"A\n"
            server.shutdown()
            server.shutdown()
            thread.join(PATIENCE)
            assert not thread.is_alive()


def test_L4_one_shutdown_ends_a_serve_forever_that_was_entered_twice() -> None:
    with netkit.Server(LOCAL, Shout) as server:
        threads = [threading.Thread(target=server.serve_forever) for _ in range(2)]
        for thread in threads:
            thread.start()
        assert exchange(server, b"a\n") == b"A\n"
        server.shutdown()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()


def test_L5_shutdown_does_not_wait_for_the_poll_interval() -> None:
    with netkit.Server(LOCAL, Shout) as server:
        for _ in range(5):
            thread = threading.Thread(target=server.serve_forever, args=(60.0,))
            thread.start()
            assert exchange(server, b"a\n") == b"A\n"
            assert seconds_of(server.shutdown) < 2
            thread.join()


@linux
def test_L5_an_idle_server_never_wakes_up() -> None:
    def times_waited() -> int:
        status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
        match = re.search(r"^voluntary_ctxt_switches:\s+(\d+)", status, re.MULTILINE)
        assert match
        return int(match[1])

    with netkit.Server(LOCAL, Shout) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            assert exchange(server, b"a\n") == b"A\n"
            wait_until(lambda: not server.connections)
            before = times_waited()
            time.sleep(0.5)  # 50 poll intervals
            assert times_waited() - before < 10
        finally:
            server.shutdown()
            thread.join()


def test_L6_server_close_does_not_wait_for_an_idle_client() -> None:
    with netkit.Server(LOCAL, Shout) as server, serving_forever(server), client(server) as sock:
        assert ask(sock, b"a\n") == b"A\n"
        assert seconds_of(server.server_close) < 5  # drain_timeout is 10
        assert sock.recv(1) == b""


def test_L6_server_close_ends_even_if_a_handler_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netkit.server.drain.Drain, "grace", 0.05)
    server = Holding(LOCAL, Held, drain_timeout=0.05)
    with server, serving_forever(server), client(server) as sock:
        assert read_line(sock) == b"began\n"
        assert seconds_of(server.server_close) < 5
        assert server.connection_count == 1  # the client that was left behind
        server.release.set()
        wait_until(lambda: not server.connections)


def test_L7_one_ctrl_c_ends_a_with_block_that_has_an_idle_client() -> None:
    source = """
with netkit.Server(("127.0.0.1", 0), Shout) as server:
    say_port(server)
    server.serve_forever()
"""
    with Script(source) as script, script.connect() as sock:
        assert ask(sock, b"a\n") == b"A\n"
        script.send_signal()
        assert sock.recv(1) == b""
        status, _, stderr = script.end()
        assert status == -signal.SIGINT  # as of any program that does not catch it
        assert sum(line.startswith("Traceback") for line in stderr) == 1
        assert stderr[-1] == "KeyboardInterrupt"


def test_L7_ctrl_c_ends_run_without_a_traceback() -> None:
    source = """
server = netkit.Server(("127.0.0.1", 0), Shout)
say_port(server)
print(netkit.run(server))
"""
    with Script(source) as script, script.connect() as sock:
        assert ask(sock, b"a\n") == b"A\n"
        script.send_signal()
        assert sock.recv(1) == b""
        status, printed, logged = script.end()
        assert (status, printed) == (0, "stopped: 1 finished, 0 cut\n")
        assert not any(line.startswith(("warning", "error", "Traceback")) for line in logged)


@pytest.mark.parametrize("started", [True, False])
def test_L7_ctrl_c_while_a_clients_thread_starts_leaves_no_client_half_served(
    started: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(thread: threading.Thread) -> None:
        threads.append(thread)
        if started:
            start(thread)
            wait_until(lambda: server.connections[0].thread)
        raise KeyboardInterrupt

    start = threading.Thread.start
    threads: list[threading.Thread] = []
    with netkit.Server(LOCAL, Shout) as server, client(server) as sock:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", interrupted)
            with pytest.raises(KeyboardInterrupt):
                server.serve_forever()
        if started:
            assert ask(sock, b"a\n") == b"A\n"
            return
        assert sock.recv(1) == b""
        assert not server.connections
        with observed(events.HandlerFailed) as failures:
            start(threads[0])  # which was just about to
            wait_until(lambda: threads[0].name == "netkit-parked")
        assert not failures


def test_L8_sigterm_lets_the_client_under_way_finish() -> None:
    source = """
server = netkit.Server(("127.0.0.1", 0), Slow)
say_port(server)
try:
    print(netkit.run(server))
finally:
    print("cleaned up")
"""
    with Script(source) as script, script.connect() as sock:
        assert read_line(sock) == b"began\n"
        script.send_signal(signal.SIGTERM)
        assert receive_all(sock) == b"done\n"
        status, printed, logged = script.end()
        assert (status, printed) == (0, "stopped: 1 finished, 0 cut\ncleaned up\n")
        assert not any(line.startswith(("warning", "error", "Traceback")) for line in logged)


@pytest.mark.parametrize("daemon_threads", [True, False])
def test_L9_server_close_waits_for_the_reply_under_way(daemon_threads: bool) -> None:
    server = Holding(LOCAL, Held, bind_and_activate=False)
    server.daemon_threads = daemon_threads
    server.server_bind()
    server.server_activate()
    with server, serving_forever(server), client(server) as sock:
        assert read_line(sock) == b"began\n"
        assert [thread.daemon for thread in server._threads] == [daemon_threads]
        closing = threading.Thread(target=server.server_close)
        closing.start()
        wait_until(lambda: not server.listening)
        server.release.set()
        closing.join(PATIENCE)
        assert not closing.is_alive()
        assert receive_all(sock) == b"done\n"
        assert server._threads == []


@pytest.mark.parametrize("daemon_threads", [True, False])
def test_L9_a_client_gets_its_whole_reply_although_the_program_ends(daemon_threads: bool) -> None:
    source = f"""
netkit.Server.daemon_threads = {daemon_threads}
server = netkit.Server(("127.0.0.1", 0), Slow)
threading.Thread(target=server.serve_forever, daemon=True).start()
say_port(server)
while not server.connections:
    time.sleep(0.01)
"""
    with Script(source) as script:
        with script.connect() as sock:
            assert receive_all(sock) == b"began\ndone\n"
        begin = time.monotonic()
        assert script.end() == (0, "", [])
        assert time.monotonic() - begin < 5  # no thread that waits for more clients is waited for


def test_L10_stop_waits_a_given_time_and_then_cuts_the_rest() -> None:
    def handler(conn: netkit.Connection) -> None:
        conn.write(conn.readline())

    with serving(handler) as server, client(server) as quick, client(server) as slow:
        for sock in (quick, slow):
            sock.sendall(b"half")
        wait_until(lambda: [c.bytes_read for c in server.connections] == [4, 4])
        reports: list[netkit.StopReport] = []
        thread = threading.Thread(target=lambda: reports.append(server.stop(0.5)))
        thread.start()
        wait_until(lambda: not server.listening)
        quick.sendall(b" a line\n")
        assert receive_all(quick) == b"half a line\n"
        thread.join()
        assert reports == [netkit.StopReport(finished=1, cut=1)]


@pytest.mark.parametrize("method", ["server_close", "stop", "close"])
def test_L11_a_handler_can_close_the_server_and_still_reply(method: str) -> None:
    class Close(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            getattr(self.server, method)()
            self.request.sendall(b"closed\n")

    with netkit.Server(LOCAL, Close) as server, serving_forever(server) as thread:
        with observed(events.HandlerFailed) as failures, client(server) as sock:
            assert receive_all(sock) == b"closed\n"
            thread.join(PATIENCE)
        assert not failures
        assert not server.listening


def test_L12_server_close_without_shutdown_ends_the_loop() -> None:
    with netkit.Server(LOCAL, Shout) as server, serving_forever(server) as thread:
        assert exchange(server, b"a\n") == b"A\n"
        server.server_close()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_L12_the_loss_of_the_listener_ends_the_loop_and_is_logged_once() -> None:
    class Server(netkit.Server):
        attempts = 0

        def get_request(self) -> Any:
            self.attempts += 1
            return super().get_request()

        def service_actions(self) -> None:
            self.socket.close()

    with Server(LOCAL, Shout) as server, observed(events.ListenerLost) as lost:
        seconds_of(lambda: server.serve_forever(0.01))
        assert server.attempts == 1
        assert [event.error.errno for event in lost] == [errno.EBADF]


def test_L13_clients_in_the_kernels_queue_are_served_by_server_close() -> None:
    with netkit.Server(LOCAL, Shout) as server, contextlib.ExitStack() as clients:
        with serving_forever(server) as thread:
            assert exchange(server, b"a\n") == b"A\n"
            server.shutdown()
            thread.join()
            queued = [clients.enter_context(client(server)) for _ in range(3)]
            for sock in queued:
                sock.sendall(b"queued\n")
                sock.shutdown(socket.SHUT_WR)
            server.server_close()
        for sock in queued:
            assert receive_all(sock) == b"QUEUED\n"


def test_L13_clients_that_come_after_shutdown_are_served_when_it_serves_again() -> None:
    with netkit.Server(LOCAL, Shout) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        assert exchange(server, b"a\n") == b"A\n"
        server.shutdown()
        thread.join()
        with client(server) as sock, serving_forever(server):
            assert ask(sock, b"later\n") == b"LATER\n"


def test_L14_a_server_in_a_thread_outlives_the_main_thread() -> None:
    source = """
class ShoutAndQuit(Shout):
    def handle(self):
        super().handle()
        server.request_stop()

server = netkit.Server(("127.0.0.1", 0), ShoutAndQuit)
threading.Thread(target=server.serve_forever).start()
say_port(server)
"""
    broken = (3, 12, 0) <= sys.version_info[:3] < (3, 12, 3)  # cannot start a thread from now on
    reply = b""
    with Script(source) as script:
        time.sleep(0.3)  # nothing tells that another process has left its main module
        with contextlib.suppress(OSError), script.connect() as sock:
            sock.sendall(b"a\n")
            sock.shutdown(socket.SHUT_WR)
            reply = receive_all(sock)
        status, _, stderr = script.end()
        assert status == 0
        if reply or not broken:  # or on a slow machine, which has not come to its end yet
            assert (reply, stderr) == (b"A\n", [])
        else:
            (line,) = stderr
            assert line.startswith("no new clients any more: RuntimeError: can't create new thread")


def test_L15_handlers_that_fail_while_the_program_ends_are_reported_whole() -> None:
    source = """
class Fail(socketserver.StreamRequestHandler):
    def handle(self):
        self.rfile.read()
        raise ValueError("at the end")

server = netkit.Server(("127.0.0.1", 0), Fail)
say_port(server)
threading.Thread(target=server.serve_forever, daemon=True).start()
while server.connection_count < 20:
    time.sleep(0.01)
"""
    with Script(source) as script, contextlib.ExitStack() as clients:
        for _ in range(20):
            clients.enter_context(script.connect())
        status, _, stderr = script.end()
        assert status == 0
        assert "Fatal" not in "".join(stderr)
        assert sum(line.endswith("ValueError: at the end") for line in stderr) == 40


def test_L16_run_works_off_the_main_thread_and_logs_that_signals_do_not() -> None:
    server = netkit.Server(LOCAL, Shout)
    reports: list[netkit.RunReport] = []
    thread = threading.Thread(target=lambda: reports.append(netkit.run(server)))
    with observed(events.SignalsUnavailable) as told:
        thread.start()
        assert exchange(server, b"a\n") == b"A\n"
        wait_until(lambda: not server.connections)
        server.stop()
        thread.join(PATIENCE)
    assert len(told) == 1
    assert reports == [netkit.RunReport(finished=0, cut=0, interrupted=False)]


def test_L17_losing_a_client_to_another_acceptor_does_not_block_the_loop() -> None:
    class Loser(netkit.Server):
        def get_request(self) -> Any:
            if not stolen:
                stolen.append(self.socket.accept()[0])
            return super().get_request()

    stolen: list[socket.socket] = []
    with Loser(LOCAL, Shout) as server, serving_forever(server):
        with observed(events.AcceptPaused, events.AcceptFailed) as told, client(server):
            wait_until(lambda: stolen)
            assert exchange(server, b"a\n") == b"A\n"
            assert seconds_of(server.shutdown) < 2
        assert not told
        stolen[0].close()


def test_L17_two_servers_share_a_listener_and_both_stop() -> None:
    with netkit.Server(LOCAL, Shout) as one:
        two = netkit.Server(LOCAL, Shout, bind_and_activate=False)
        two.socket.close()
        two.socket = one.socket.dup()
        with two, serving_forever(one), serving_forever(two):
            for _ in range(20):
                assert exchange(one, b"a\n") == b"A\n"
            assert seconds_of(one.shutdown) < 2
            assert seconds_of(two.shutdown) < 2


# O: overload


@contextlib.contextmanager
def no_descriptors_left() -> Iterator[None]:
    """No new descriptor can be had in this process; those that there are go on working."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(2)  # the kernel gives the lowest number that is free
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class CountsAttempts(netkit.Server):
    attempts = 0

    def get_request(self) -> Any:
        self.attempts += 1
        return super().get_request()


def test_O1_running_out_of_descriptors_costs_nothing_and_harms_nobody_connected() -> None:
    pytest.importorskip("resource")
    with CountsAttempts(LOCAL, Shout) as server, serving_forever(server), client(server) as sock:
        with observed(events.AcceptPaused, events.AcceptResumed) as told:
            assert ask(sock, b"a\n") == b"A\n"
            for episode in (1, 2):
                with socket.socket() as late:
                    late.settimeout(PATIENCE)
                    gc.collect()  # so that nothing gives a descriptor back meanwhile
                    wait_until(lambda: server.connection_count == 1)
                    with no_descriptors_left():
                        server.attempts = 0
                        late.connect(server.server_address)
                        late.sendall(b"late\n")
                        wait_until(lambda: server.attempts >= 5)
                        time.sleep(0.3)  # in which a busy loop makes tens of thousands
                        assert server.attempts < 30
                        assert ask(sock, b"meanwhile\n") == b"MEANWHILE\n"
                    assert read_line(late) == b"LATE\n"
                    wait_until(lambda n=episode: len(told) == 2 * n)
        assert [type(event) for event in told] == 2 * [events.AcceptPaused, events.AcceptResumed]
        assert told[0].error.errno == errno.EMFILE


def test_O1_a_paused_acceptor_stops_at_once() -> None:
    pytest.importorskip("resource")
    with netkit.Server(LOCAL, Shout, drain_timeout=1) as server, serving_forever(server):
        assert exchange(server, b"a\n") == b"A\n"
        with observed(events.AcceptPaused) as paused, socket.socket() as late:
            gc.collect()
            wait_until(lambda: not server.connections)
            with no_descriptors_left():
                late.connect(server.server_address)
                wait_until(lambda: paused)
                assert seconds_of(server.shutdown) < 0.9  # the longest pause is a second


def test_O1_an_episode_ends_in_programs_that_schedule_clients_themselves() -> None:
    class Server(netkit.Server):
        def process_request(self, request: Any, client_address: Any) -> None:
            threading.Thread(
                target=self.process_request_thread, args=(request, client_address)
            ).start()

        def get_request(self) -> Any:
            if self.failures:
                self.failures -= 1
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return super().get_request()

        failures = 0

    with Server(LOCAL, Shout) as server, serving_forever(server):
        with observed(events.AcceptPaused, events.AcceptResumed) as told:
            for episode in (1, 2):
                server.failures = 3
                assert exchange(server, b"a\n") == b"A\n"
                wait_until(lambda n=episode: len(told) == 2 * n)
        assert [type(event) for event in told] == 2 * [events.AcceptPaused, events.AcceptResumed]


@contextlib.contextmanager
def no_thread_starts(
    monkeypatch: pytest.MonkeyPatch, but_in: threading.Thread | None = None
) -> Iterator[list[threading.Thread]]:
    """No thread can be started, but by the thread `but_in`. Those that could not."""
    start = threading.Thread.start
    refused: list[threading.Thread] = []

    def refuse(thread: threading.Thread) -> None:
        if threading.current_thread() is but_in:
            return start(thread)
        refused.append(thread)
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        yield refused


def test_O2_a_client_whose_thread_cannot_start_waits_until_one_can(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    main = threading.main_thread()
    with netkit.Server(LOCAL, Shout) as server, serving_forever(server), client(server) as sock:
        assert ask(sock, b"a\n") == b"A\n"
        with observed(events.AcceptPaused, events.AcceptResumed) as told:
            with contextlib.ExitStack() as clients:
                with no_thread_starts(monkeypatch, but_in=main) as refused:
                    late = [clients.enter_context(client(server)) for _ in range(2)]
                    wait_until(lambda: len(refused) >= 4)
                    assert ask(sock, b"meanwhile\n") == b"MEANWHILE\n"
                    assert [type(event) for event in told] == [events.AcceptPaused]
                for other in late:
                    assert ask(other, b"late\n") == b"LATE\n"
            wait_until(lambda: len(told) == 2)
        assert [type(event) for event in told] == [events.AcceptPaused, events.AcceptResumed]
        assert len(refused) < 30
        assert "Traceback" not in caplog.text
    assert server._threads == []  # joined, with nothing that never started among them


def test_O2_a_server_that_cannot_start_threads_still_stops_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(netkit.server.threads, "PARK_SECONDS", 0.01)
    with netkit.Server(LOCAL, Shout, drain_timeout=0.2) as server:
        with serving_forever(server) as thread:
            assert exchange(server, b"a\n") == b"A\n"
            server.shutdown()
            thread.join()
            wait_until(lambda: not server._threads)  # there is none to be used again
            with client(server) as one, client(server) as two:
                with no_thread_starts(monkeypatch, but_in=threading.main_thread()):
                    assert seconds_of(server.server_close) < 5
                for sock in (one, two):
                    with contextlib.suppress(ConnectionResetError):
                        assert sock.recv(1) == b""


@linux
def test_O2_a_process_without_memory_for_threads_goes_on_and_recovers() -> None:
    source = """
import pathlib, resource, socket
from netkit import events
told = []
events.subscribe(lambda event: told.append(type(event).__name__))
server = netkit.Server(("127.0.0.1", 0), Shout)
threading.Thread(target=server.serve_forever, daemon=True).start()
one = socket.create_connection(server.server_address)
one.sendall(b"one\\n")
one.recv(10)
say_port(server)

pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
limits = resource.getrlimit(resource.RLIMIT_AS)
threading.stack_size(1 << 30)
resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + (256 << 20), limits[1]))
two = socket.create_connection(server.server_address)
two.sendall(b"two\\n")
while "AcceptPaused" not in told:
    time.sleep(0.01)
one.sendall(b"meanwhile\\n")
print(one.recv(20))
resource.setrlimit(resource.RLIMIT_AS, limits)
threading.stack_size(0)
print(two.recv(10))
while "AcceptResumed" not in told:
    time.sleep(0.01)
one.close()
two.close()
server.server_close()
print([name for name in told if "Accept" in name])
"""
    with Script(source) as script:
        status, stdout, stderr = script.end()
        assert (status, stdout.splitlines()) == (
            0,
            ["b'MEANWHILE\\n'", "b'TWO\\n'", "['AcceptPaused', 'AcceptResumed']"],
        )
        assert len(stderr) == 2


def test_O4_a_burst_of_clients_fits_in_the_queue() -> None:
    with netkit.Server(LOCAL, Shout) as server, contextlib.ExitStack() as clients:
        assert server.request_queue_size == 511
        for _ in range(64):  # a full queue has a client wait for a second, and then another
            sock = socket.create_connection(server.server_address, timeout=0.9)
            clients.enter_context(sock)


def test_O5_a_slow_verify_request_holds_up_nobody_else() -> None:
    class Server(netkit.Server):
        def verify_request(self, request: Any, client_address: Any) -> bool:
            if not waiting.is_set():
                waiting.set()
                assert release.wait(PATIENCE)
            return True

    waiting, release = threading.Event(), threading.Event()
    with Server(LOCAL, Shout) as server, serving_forever(server), client(server) as slow:
        assert waiting.wait(PATIENCE)
        assert exchange(server, b"a\n") == b"A\n"
        release.set()
        assert ask(slow, b"b\n") == b"B\n"


def test_O5_a_slow_handle_error_holds_up_nobody_else() -> None:
    class Server(netkit.Server):
        def finish_request(self, request: Any, client_address: Any) -> None:
            if not waiting.is_set():
                raise ValueError("on purpose")
            super().finish_request(request, client_address)

        def handle_error(self, request: Any, client_address: Any) -> None:
            waiting.set()
            assert release.wait(PATIENCE)

    waiting, release = threading.Event(), threading.Event()
    with Server(LOCAL, Shout) as server, serving_forever(server), client(server):
        assert waiting.wait(PATIENCE)
        assert exchange(server, b"a\n") == b"A\n"
        release.set()


def test_O6_threads_are_used_again_instead_of_started_for_each_client() -> None:
    class Note(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            served_by.append(threading.current_thread())

    served_by: list[threading.Thread] = []
    with netkit.Server(LOCAL, Note) as server, serving_forever(server):
        for _ in range(40):
            assert exchange(server, b"") == b""
        assert len(served_by) == 40
        assert len(set(served_by)) <= 10  # one, but for a few that came before it was free again


def test_O7_accepting_a_client_costs_the_same_however_many_there_are() -> None:
    class Counting(netkit.Server):
        calls = 0

        def get_request(self) -> Any:
            got = super().get_request()
            self.calls = 0
            sys.setprofile(self.count)
            return got

        def count(self, *_: object) -> None:
            self.calls += 1

        def service_actions(self) -> None:
            sys.setprofile(None)
            if self.calls:
                per_accept.append(self.calls)
                self.calls = 0

    per_accept: list[int] = []
    with Counting(LOCAL, Shout) as server, contextlib.ExitStack() as clients:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            for count in range(1, 201):
                clients.enter_context(client(server))
                wait_until(lambda n=count: len(per_accept) == n)
        finally:
            clients.close()
            server.server_close()
            thread.join()
    # The least of ten: starting a thread takes a few calls more or less. Looking at each thread
    # that there is would take 190 more.
    assert min(per_accept[-10:]) < min(per_accept[:10]) + 50


def test_O8_idle_servers_keep_no_dead_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netkit.server.threads, "PARK_SECONDS", 0.05)
    with netkit.Server(LOCAL, Shout) as server, serving_forever(server):
        with contextlib.ExitStack() as clients:
            socks = [clients.enter_context(client(server)) for _ in range(30)]
            for sock in socks:
                assert ask(sock, b"a\n") == b"A\n"
            assert len(server._threads) == 30
        wait_until(lambda: server._threads == [])  # and nobody has connected since


# R: robustness of the loop


@contextlib.contextmanager
def still_serving(cls: type[netkit.Server], handler: Any = Shout) -> Iterator[netkit.Server]:
    """A server of that class, which at the end must be accepting and serving."""
    with cls(LOCAL, handler) as server, serving_forever(server) as thread:
        yield server
        assert exchange(server, b"still\n") == b"STILL\n"
        assert thread.is_alive()


class FailsOnce(netkit.Server):
    """Whose `hook` raises `failure` the first time."""

    hook = ""
    failure: Exception = ValueError("on purpose")

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        original = getattr(self, self.hook)

        def once(*given: Any) -> Any:
            setattr(self, self.hook, original)
            raise self.failure

        setattr(self, self.hook, once)


@pytest.mark.parametrize("own_scheduling", [False, True])
def test_R1_an_exception_in_verify_request_ends_that_client_only(own_scheduling: bool) -> None:
    class Server(FailsOnce):
        hook = "verify_request"

    class SchedulingServer(Server):
        def process_request(self, request: Any, client_address: Any) -> None:
            super().process_request(request, client_address)

    with observed(events.HandlerFailed) as failures:
        with still_serving(SchedulingServer if own_scheduling else Server) as server:
            with client(server) as sock:
                assert receive_all(sock) == b""
    assert [str(event.error) for event in failures] == ["on purpose"]


def test_R1_an_exception_in_process_request_ends_that_client_only() -> None:
    class Server(FailsOnce):
        hook = "process_request"

    with observed(events.HandlerFailed) as failures, still_serving(Server) as server:
        with client(server) as sock:
            assert receive_all(sock) == b""
    assert [str(event.error) for event in failures] == ["on purpose"]


def test_R1_an_unforeseen_exception_in_get_request_is_logged_and_survived() -> None:
    class Server(FailsOnce):
        hook = "get_request"

    with observed(events.AcceptPaused) as paused, still_serving(Server) as server:
        assert exchange(server, b"a\n") == b"A\n"
    assert [str(event.error) for event in paused] == ["on purpose"]


def test_R2_an_exception_in_service_actions_is_logged_and_survived() -> None:
    class Server(FailsOnce):
        hook = "service_actions"

    with observed(events.HookFailed) as failures, still_serving(Server) as server:
        assert exchange(server, b"a\n") == b"A\n"
        wait_until(lambda: failures)
    assert [(event.hook, str(event.error)) for event in failures] == [
        ("service_actions", "on purpose")
    ]


@pytest.mark.parametrize("hook", ["verify_request", "process_request", "finish_request"])
def test_R3_a_handle_error_that_raises_is_logged_and_survived(hook: str) -> None:
    class Server(FailsOnce):
        def handle_error(self, request: Any, client_address: Any) -> None:
            raise ValueError("I/O operation on closed file")

    Server.hook = hook
    with observed(events.HookFailed) as failures, still_serving(Server) as server:
        with client(server) as sock:
            assert receive_all(sock) == b""
    assert [event.hook for event in failures] == ["handle_error"]


def test_R4_an_error_of_accepting_a_client_is_logged() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    class ShakesHands(netkit.Server):
        def get_request(self) -> Any:
            request, client_address = super().get_request()
            return context.wrap_socket(request, server_side=True), client_address

    with ShakesHands(LOCAL, Shout) as server:
        with observed(events.AcceptFailed) as failures, serving_forever(server):
            for _ in range(2):  # plain text at a TLS port
                with client(server) as sock, contextlib.suppress(ConnectionError):
                    sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
                    receive_all(sock)
            wait_until(lambda: len(failures) == 2)
    assert all(isinstance(event.error, ssl.SSLError) for event in failures)


def test_R5_the_socket_of_a_failed_setup_is_closed() -> None:
    class HalfSetUp(socketserver.StreamRequestHandler):
        def setup(self) -> None:
            super().setup()
            kept.append(self)
            raise ValueError("half set up")

    kept: list[Any] = []
    with netkit.Server(LOCAL, HalfSetUp) as server, serving_forever(server):
        with observed(events.HandlerFailed) as failures, client(server) as sock:
            assert receive_all(sock) == b""
        wait_until(lambda: not server.connections)
        assert kept[0].request.fileno() == -1
        assert len(failures) == 1
        kept[0].rfile.close()


def test_R5_closed_is_called_even_if_connected_has_failed() -> None:
    class HalfConnected(netkit.Handler):
        def connected(self) -> None:
            calls.append("connected")
            raise ValueError("half connected")

        def closed(self) -> None:
            calls.append("closed")

    calls: list[str] = []
    with serving(HalfConnected) as server:
        assert exchange_and_fail(server, b"") == b""
        wait_until(lambda: not server.connections)
        assert calls == ["connected", "closed"]


def test_R6_an_error_of_finish_does_not_hide_that_of_handle(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class TwoErrors(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            raise ValueError("of handle")

        def finish(self) -> None:
            raise ValueError("of finish")

    with netkit.Server(LOCAL, TwoErrors) as server, serving_forever(server):
        assert exchange(server, b"") == b""
    (text,) = [record.exc_text for record in caplog.records if record.exc_info]
    assert "ValueError: of handle" in (text or "")
    assert "ValueError: of finish" in (text or "")


def test_R6_a_client_that_has_hung_up_does_not_hide_the_error_of_handle(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Fails(socketserver.StreamRequestHandler):
        wbufsize = -1  # so that finish has something to send

        def handle(self) -> None:
            self.wfile.write(b"never sent")
            assert gone.wait(PATIENCE)
            with contextlib.suppress(ConnectionError):
                self.rfile.read()
            raise ValueError("of handle")

    gone = threading.Event()
    with netkit.Server(LOCAL, Fails) as server, serving_forever(server):
        with observed(events.HandlerFailed) as failures:
            with client(server) as sock:
                wait_until(lambda: server.connections)
                reset(sock)
            gone.set()
            wait_until(lambda: not server.connections)
            assert len(failures) == 1
    assert "ValueError: of handle" in caplog.text


def test_R7_a_last_flush_that_fails_is_the_clients_fault_and_leaves_nothing_open(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Buffers(socketserver.StreamRequestHandler):
        wbufsize = -1

        def handle(self) -> None:
            handlers.append(self)
            self.wfile.write(b"never sent")
            assert gone.wait(PATIENCE)
            with contextlib.suppress(ConnectionError):
                self.rfile.read()

    handlers: list[Any] = []
    gone = threading.Event()
    with netkit.Server(LOCAL, Buffers) as server, serving_forever(server):
        with observed(events.ClientFailed, events.HandlerFailed) as told:
            with client(server) as sock:
                wait_until(lambda: handlers)
                reset(sock)
            gone.set()
            wait_until(lambda: not server.connections)
        assert [type(event) for event in told] == [events.ClientFailed]
        assert handlers[0].request.fileno() == -1
        handlers[0].rfile.close()
    assert "Traceback" not in caplog.text


def test_R8_a_file_that_a_handler_keeps_does_not_keep_the_descriptor() -> None:
    class Keeps(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            files.append(self.request.makefile("rb"))
            requests.append(self.request)

    files: list[Any] = []
    requests: list[socket.socket] = []
    with netkit.Server(LOCAL, Keeps) as server, serving_forever(server):
        for _ in range(5):
            assert exchange(server, b"") == b""
        wait_until(lambda: not server.connections)
        assert [request.fileno() for request in requests] == [-1] * 5
        for file in files:
            file.close()


def test_R10_a_handler_runs_a_program_without_a_warning_and_without_giving_it_the_sockets() -> None:
    class Runs(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            numbers = [self.request.fileno(), self.server.fileno()]
            source = f"import os; [os.close(n) for n in {numbers}]"
            with warnings.catch_warnings(record=True) as caught:
                command = [sys.executable, "-I", "-S", "-c", source]
                done = subprocess.run(command, stderr=subprocess.PIPE, close_fds=False)
            self.wfile.write(f"{len(caught)} {b'Errno 9' in done.stderr}\n".encode())

    with netkit.Server(LOCAL, Runs) as server, serving_forever(server):
        assert exchange(server, b"") == b"0 True\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_R10_a_handler_may_fork_and_its_child_end_without_harm() -> None:
    class Forks(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # Python's own, from 3.12 on
                child = os.fork()
            if child == 0:
                os._exit(7)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            self.wfile.write(f"{status}\n".encode())
            self.wfile.write(self.rfile.readline().upper())

    with still_serving(netkit.Server, Forks) as server:
        assert exchange(server, b"a\n") == b"7\nA\n"
        server.RequestHandlerClass = Shout


# I: input and output


def test_I1_dead_peers_are_found_by_probes() -> None:
    class Options(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            found.append(self.request.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
            if hasattr(socket, "TCP_KEEPIDLE"):
                idle = self.request.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
                assert idle <= 120

    found: list[int] = []
    with netkit.Server(LOCAL, Options) as server, serving_forever(server):
        assert exchange(server, b"") == b""
        assert found[0] != 0


def test_I7_small_replies_are_sent_at_once() -> None:
    class Options(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            found.append(self.request.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    found: list[int] = []
    with netkit.Server(LOCAL, Options) as server, serving_forever(server):
        assert exchange(server, b"") == b""
        assert found[0] != 0


# D: defaults and what can be observed


def test_D1_a_server_restarts_while_its_old_connections_linger() -> None:
    class HangsUp(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            pass  # this side ends first, and so has the TIME_WAIT

    with netkit.Server(LOCAL, HangsUp) as server, serving_forever(server):
        address = server.server_address
        assert exchange(server, b"") == b""
    with netkit.Server(address, Shout) as server, serving_forever(server):
        assert exchange(server, b"a\n") == b"A\n"


def test_D2_a_port_is_not_shared_unless_asked_for() -> None:
    class Sharing(netkit.Server):
        allow_reuse_port = True

    with netkit.Server(LOCAL, Shout) as server:
        with pytest.raises(OSError, match="address already in use") as caught:
            netkit.Server(server.server_address, Shout)
        assert caught.value.errno == errno.EADDRINUSE
        assert (caught.value.address, caught.value.port) == server.server_address  # type: ignore[attr-defined]
        with pytest.raises(OSError, match="EADDRINUSE"):
            Sharing(server.server_address, Shout)
    with Sharing(LOCAL, Shout) as one, Sharing(one.server_address, Shout) as two:
        assert one.server_address == two.server_address


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs Unix sockets")
def test_D2_reuse_of_a_port_means_nothing_to_a_unix_socket(tmp_path: Path) -> None:
    class UnixServer(netkit.Server):
        address_family = socket.AF_UNIX
        allow_reuse_port = True

    with UnixServer(str(tmp_path / "socket"), Shout) as server:
        assert server.listening


@needs_ipv6
def test_D3_an_ipv6_address_is_bound_without_a_subclass() -> None:
    with netkit.Server(("::1", 0), Shout) as server, serving_forever(server):
        assert server.address_family == socket.AF_INET6
        assert exchange(server, b"a\n") == b"A\n"


@needs_ipv6
@pytest.mark.parametrize("by", ["constructor", "listen"])
def test_D3_a_server_on_every_address_serves_both_families(by: str) -> None:
    if by == "listen":
        server = netkit.create_server(Shout).listen()
    else:
        server = netkit.Server(("::", 0), Shout)
    with contextlib.ExitStack() as stack:
        stack.enter_context(server)
        if by == "constructor":
            stack.enter_context(serving_forever(server))
        for host in ("127.0.0.1", "::1"):
            address = (host, server.server_address[1])
            with socket.create_connection(address, timeout=PATIENCE) as sock:
                assert ask(sock, b"a\n") == b"A\n"


def test_D4_serve_forever_calls_handle_timeout_when_nobody_comes() -> None:
    class Server(netkit.Server):
        timeout = 0.02

        def handle_timeout(self) -> None:
            timeouts.append(time.monotonic())
            if len(timeouts) == 2:
                raise ValueError("on purpose")

    timeouts: list[float] = []
    with observed(events.HookFailed) as failures, Server(LOCAL, Shout) as server:
        with serving_forever(server):
            wait_until(lambda: len(timeouts) >= 3)
            assert exchange(server, b"a\n") == b"A\n"
    assert [event.hook for event in failures] == ["handle_timeout"]


def test_D5_each_client_that_hangs_up_is_one_line_of_the_log_without_a_traceback(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO, "netkit")
    with netkit.Server(LOCAL, Shout) as server, serving_forever(server):
        for _ in range(5):
            with client(server) as sock:
                assert ask(sock, b"a\n") == b"A\n"
                reset(sock)
        wait_until(lambda: not server.connections)
    lines = [record for record in caplog.records if "ConnectionResetError" in record.message]
    assert len(lines) == 5
    assert {record.levelname for record in lines} == {"INFO"}
    assert "Traceback" not in caplog.text
    assert capfd.readouterr().err == ""


def test_D5_an_error_of_a_handler_is_one_record_with_its_traceback(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    class Fails(socketserver.BaseRequestHandler):
        handle = fail

    with netkit.Server(LOCAL, Fails) as server, serving_forever(server):
        assert exchange(server, b"") == b""
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert re.fullmatch(
        r"\[\d+\] 127\.0\.0\.1:\d+: the handler failed: ValueError: on purpose", record.message
    )
    assert record.exc_info
    assert capfd.readouterr().err == ""


def test_D5_a_time_limit_of_another_service_reaches_handle_error() -> None:
    class TimesOut(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            raise TimeoutError("the database")

    with netkit.Server(LOCAL, TimesOut) as server, serving_forever(server):
        with observed(events.HandlerFailed) as failures:
            assert exchange(server, b"") == b""
            assert [str(event.error) for event in failures] == ["the database"]


def test_D6_reports_of_concurrent_failures_do_not_mix() -> None:
    class Fails(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            together.wait(PATIENCE)
            raise ValueError(f"of {self.client_address[1]}")

    together = threading.Barrier(20)
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    logger = logging.getLogger("netkit")
    logger.addHandler(handler)
    try:
        with netkit.Server(LOCAL, Fails) as server, serving_forever(server):
            with contextlib.ExitStack() as clients:
                for _ in range(20):
                    clients.enter_context(client(server))
                wait_until(lambda: log.getvalue().count("\nValueError") == 20)
    finally:
        logger.removeHandler(handler)
    report = r"\[\d+\] 127\.0\.0\.1:(\d+): .*\nTraceback.*\n(?:  .*\n)+ValueError: of (\d+)\n"
    assert all(by == of for by, of in re.findall(report, log.getvalue()))
    assert re.sub(report, "whole ", log.getvalue()) == "whole " * 20


def test_D7_the_server_lists_its_connections_and_emits_events_for_each() -> None:
    with netkit.Server(LOCAL, Shout) as server, serving_forever(server):
        with observed(events.ConnectionOpened, events.ConnectionClosed) as told:
            with client(server) as sock:
                assert ask(sock, b"a\n") == b"A\n"
                (connection,) = server.connections
                assert server.connection_count == 1
                assert connection.remote_port == sock.getsockname()[1]
            wait_until(lambda: server.connection_count == 0)
    assert [type(event) for event in told] == [events.ConnectionOpened, events.ConnectionClosed]
    assert {(event.id, event.peer) for event in told} == {(connection.id, connection.peer)}


def test_D8_a_thread_is_named_after_its_connection_and_client() -> None:
    class Name(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(threading.current_thread().name.encode())
            ids.extend(connection.id for connection in self.server.connections)  # type: ignore[attr-defined]

    ids: list[int] = []
    with netkit.Server(LOCAL, Name) as server, serving_forever(server), client(server) as sock:
        name = receive_all(sock).decode()
        assert name == f"netkit-{ids[0]} 127.0.0.1:{sock.getsockname()[1]}"


def test_D9_a_server_takes_over_a_socket_that_is_bound_already() -> None:
    with socket.socket() as bound:
        bound.bind(LOCAL)
        descriptor = bound.detach()  # as a supervisor hands it on
    sock = socket.socket(fileno=descriptor)
    with netkit.create_server(Shout).listen(sock=sock) as server:
        assert server.server_address == sock.getsockname()
        assert exchange(server, b"a\n") == b"A\n"
    assert sock.fileno() == -1


def test_D10_a_handler_can_be_tried_without_a_server() -> None:
    class Upper(netkit.Handler):
        suffix = b""

        def received(self, data: bytes) -> None:
            self.conn.write(data.upper() + self.suffix)

    class FakeConnection:
        def __init__(self) -> None:
            self.written: list[bytes] = []

        def write(self, data: bytes) -> None:
            self.written.append(data)

    conn = FakeConnection()
    handler = Upper(conn, suffix=b"!")  # type: ignore[arg-type]
    handler.received(b"hello")
    assert conn.written == [b"HELLO!"]
