"""The end of a program whose server serves on."""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from support import (
    PATIENCE,
    Program,
    client,
    observed,
    receive_all,
    receive_exactly,
    silent_log,
)

import netkit
from netkit.core import events
from netkit.server import exiting

PROGRAM = """
import logging, sys, threading, time
import netkit

logging.basicConfig(level=logging.INFO)
served = threading.Event()

def handler(conn):
    served.set()
    conn.readline()
    conn.write("busy\\n")
    {work}
    conn.write("done\\n")

server = netkit.create_server(handler, drain_timeout=60).listen(0, "127.0.0.1").start()
served.wait()  # CPython 3.12 starts no thread once the main thread has ended
sys.ps1 = ">>> "  # as at Python's prompt: then a line tells when nothing is left but to wait
"""
SERVES_ON = r"the server on 127\.0\.0\.1:\d+ serves on; Ctrl\+C stops it"


@contextlib.contextmanager
def at_its_end(work: str) -> Iterator[tuple[Program, socket.socket]]:
    """A program that has nothing to do but serve, and a client whose handler is at work."""
    with Program(sys.executable, "-c", PROGRAM.format(work=work)) as program:
        assert program.process.stdin
        program.process.stdin.close()
        with program.connect() as sock:
            sock.sendall(b"\n")
            assert sock.recv(5) == b"busy\n"
            program.wait_for_line(SERVES_ON)
            yield program, sock


def has_a_traceback(program: Program) -> bool:
    return any("Traceback" in line or "Exception" in line for line in program.lines)


def test_ctrl_c_at_the_end_of_the_program_lets_clients_finish_and_shows_no_traceback() -> None:
    with at_its_end("conn.readline()") as (program, sock):
        program.send_signal()
        assert receive_all(sock) == b"done\n"
        assert program.wait() == 0
        assert not has_a_traceback(program)


def test_a_second_ctrl_c_cuts_them() -> None:
    work = "sys.stderr.write('working\\n'); time.sleep(1000)"
    with at_its_end(work) as (program, sock):
        program.wait_for_line("working")
        program.send_signal()
        program.wait_for_line("stopping: 1 connected")
        program.send_signal()
        assert receive_all(sock) == b""
        assert program.wait() == 0
        assert not has_a_traceback(program)


def test_at_pythons_prompt_a_line_says_why_the_program_stays() -> None:
    with Program(sys.executable, "-i", "-q", "-c", "import netkit", listening=False) as program:
        assert program.process.stdin
        start = "netkit.create_server(netkit.EchoHandler).listen(0, '127.0.0.1').start()\n"
        program.process.stdin.write(start.encode())
        program.process.stdin.close()
        program.wait_for_line(SERVES_ON)
        program.send_signal()
        assert program.wait() == 0
        assert not has_a_traceback(program)


def started(**options: Any) -> netkit.Server:
    return netkit.create_server(netkit.EchoHandler, **options).listen(0, "127.0.0.1").start()


def test_an_interrupt_of_the_wait_stops_the_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    server = started()
    monkeypatch.setattr(server._accept_loop, "join_background", interrupt_once())
    with client(server) as sock:
        server.wait_for_connections(1)
        exiting._serve_on()
        assert receive_all(sock) == b""
    assert not server.listening


def interrupt_once() -> Any:
    """Instead of `join_background`: a Ctrl+C, and then nothing to wait for."""
    interrupted: list[None] = []

    def join(timeout: float | None) -> None:
        if not interrupted:
            interrupted.append(None)
            raise KeyboardInterrupt

    return join


def test_a_second_interrupt_cuts_the_connected_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()

    def busy(conn: netkit.Connection) -> None:
        conn.write("?")
        assert go_on.wait(2 * PATIENCE)

    server = netkit.create_server(busy).listen(0, "127.0.0.1").start()
    server._drain.grace = 0.1
    stop = server.stop
    monkeypatch.setattr(server._accept_loop, "join_background", interrupt_once())

    def interrupted(*timeout: float) -> netkit.StopReport:
        if not timeout:
            raise KeyboardInterrupt
        return stop(*timeout)

    monkeypatch.setattr(server, "stop", interrupted)
    with client(server) as sock:
        assert sock.recv(1) == b"?"
        exiting._serve_on()
        assert receive_all(sock) == b""
        go_on.set()


def test_a_daemon_server_is_not_waited_for_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    with netkit.create_server(netkit.EchoHandler).listen(0, "127.0.0.1").start(daemon=True):
        with observed(events.ServingOn) as seen:
            exiting._serve_on()
    assert seen == []


def test_the_servers_that_stay_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    server = started()
    place = str(server.address)
    waiting = threading.Thread(target=exiting._serve_on)
    with silent_log(), observed(events.ServingOn) as seen:
        waiting.start()
        server.stop()
        waiting.join(PATIENCE)
    assert not waiting.is_alive()
    assert [event.address for event in seen] in ([place], [])


# Programs written for socketserver


SOCKETSERVER = """
import socketserver, sys, threading, time
import netkit

class Shout(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line.upper())

class Fail(socketserver.StreamRequestHandler):
    def handle(self):
        self.rfile.read()
        raise ValueError("at the end")

def say_port(server):
    print(f"listening on :{server.server_address[1]}", file=sys.stderr, flush=True)
"""


def script(source: str) -> Program:
    """A program, which calls `say_port` once its server listens."""
    return Program(sys.executable, "-c", SOCKETSERVER + source)


def test_one_ctrl_c_ends_a_with_block_that_has_an_idle_client() -> None:
    source = """
with netkit.Server(("127.0.0.1", 0), Shout) as server:
    say_port(server)
    server.serve_forever()
"""
    with script(source) as program, program.connect() as sock:
        sock.sendall(b"a\n")
        assert receive_exactly(sock, 2) == b"A\n"
        program.send_signal()
        assert sock.recv(1) == b""
        assert program.wait() == -signal.SIGINT  # as of any program that does not catch it
        assert sum(line.startswith("Traceback") for line in program.lines) == 1
        assert program.lines[-1] == "KeyboardInterrupt"


def test_a_server_in_a_thread_outlives_the_main_thread() -> None:
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
    with script(source) as program:
        time.sleep(0.3)  # nothing tells that another process has left its main module
        with contextlib.suppress(OSError), program.connect() as sock:
            sock.sendall(b"a\n")
            sock.shutdown(socket.SHUT_WR)
            reply = receive_all(sock)
        assert program.wait() == 0
        if reply or not broken:  # or on a slow machine, which has not come to its end yet
            assert (reply, program.lines[1:]) == (b"A\n", [])
        else:
            (line,) = program.lines[1:]
            assert line.startswith("no new clients any more: RuntimeError: can't create new thread")


def test_handlers_that_fail_while_the_program_ends_are_reported_whole() -> None:
    source = """
server = netkit.Server(("127.0.0.1", 0), Fail)
say_port(server)
threading.Thread(target=server.serve_forever, daemon=True).start()
while server.connection_count < 20:
    time.sleep(0.01)
"""
    with script(source) as program, contextlib.ExitStack() as clients:
        for _ in range(20):
            clients.enter_context(program.connect())
        assert program.wait() == 0
        assert "Fatal" not in "".join(program.lines)
        reports = [line for line in program.lines if line.endswith("ValueError: at the end")]
        assert len(reports) == 2 * 20  # the line of the log, and the last one of its traceback
