"""`run` with several servers: one stop, one report, one reload, and all ends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from support import (
    PATIENCE,
    Program,
    client,
    in_thread,
    observed,
    once,
    receive_all,
    silent_log,
    wait_until,
)

import netkit
from netkit.core import events


@contextlib.contextmanager
def bound(*kinds: type[netkit.Server], **options: Any) -> Iterator[list[netkit.Server]]:
    """Servers that are bound, two by default, and are closed after the block."""
    servers = [
        kind(None, netkit.EchoHandler, **options).listen(0, "127.0.0.1")
        for kind in kinds or (netkit.Server, netkit.Server)
    ]
    try:
        yield servers
    finally:
        for server in servers:
            server.close()


def serve_all(servers: list[netkit.Server]) -> bool:
    return all(server._accept_loop.under_way for server in servers)


def test_a_signal_stops_all_and_the_report_is_the_sum_of_theirs() -> None:
    with bound() as servers, client(servers[0]) as one, client(servers[1]) as two:

        def use() -> None:
            for sock in (one, two):
                sock.sendall(b"x")
                assert sock.recv(1) == b"x"
            os.kill(os.getpid(), signal.SIGTERM)
            assert receive_all(one) == receive_all(two) == b""

        with in_thread(use), observed(events.Stopped) as seen:
            assert netkit.run(*servers) == (2, 0, False)
    assert [event.server for event in seen] in (servers, servers[::-1])  # an observer sees each


PROGRAM = """
import netkit

def handler(conn):
    first = conn.read(1)
    conn.write(first)
    if first == b"w":  # a client that is busy until it is cut, since it does not read
        conn.write(bytes(50_000_000))
    for _ in conn:
        pass

a, b = (netkit.create_server(handler, drain_timeout=n) for n in (40, 30))
report = netkit.run(a.listen(0, "127.0.0.1"), b.listen(0, "127.0.0.1"))
raise SystemExit(report.exit_status)
"""


@pytest.mark.parametrize(
    ("first", "status", "report"),
    [(b"x", 0, "stopped: 2 finished, 0 cut"), (b"w", 130, "stopped: 0 finished, 2 cut")],
)
def test_the_log_has_one_stop_and_one_report(first: bytes, status: int, report: str) -> None:
    """A second Ctrl+C cuts the clients of all servers."""
    with Program(sys.executable, "-c", PROGRAM) as program, contextlib.ExitStack() as stack:
        program.wait_for_line(f"listening on .*:(?!{program.port})")
        ports = [int(line.rpartition(":")[2]) for line in program.lines]
        socks = [socket.create_connection(("127.0.0.1", port), PATIENCE) for port in ports]
        for sock in map(stack.enter_context, socks):
            sock.sendall(first)
            assert sock.recv(1) == first
            sock.sendall(b"y")
        program.send_signal()
        program.wait_for_line("stopping")
        if status:
            program.send_signal()
        assert program.wait() == status
        stop = [line for line in program.lines if line.startswith("stop")]
        assert stop == ["stopping: 2 connected, up to 40 s to finish", report]


def test_a_signal_shortens_a_stop_that_the_program_has_begun() -> None:
    begun = threading.Event()

    def handler(conn: netkit.Connection) -> None:
        conn.readexactly(1)
        begun.set()
        conn.readexactly(2)  # of which the client sends one

    server = netkit.create_server(handler, drain_timeout=0.05).listen(0, "127.0.0.1")

    def use() -> None:
        with client(server) as sock:
            sock.sendall(b"12")
            assert begun.wait(PATIENCE)
            with in_thread(server.stop, 4 * PATIENCE):
                wait_until(lambda: not server._accept_loop.under_way)
                os.kill(os.getpid(), signal.SIGTERM)

    with silent_log(), in_thread(use):
        assert netkit.run(server) == (0, 1, False)


def test_without_a_thread_for_one_server_all_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    start, left = threading.Thread.start, [0, 1]

    def fail(thread: threading.Thread) -> None:
        if thread.name == "netkit-serve" and not left.pop():
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fail)
    with bound() as servers:
        with pytest.raises(RuntimeError, match="can't start new thread"):
            netkit.run(*servers)
        assert not any(server.listening for server in servers)


def test_the_stop_of_one_stops_the_others() -> None:
    with bound() as servers, once(lambda: serve_all(servers), servers[1].stop):
        assert netkit.run(*servers) == (0, 0, False)
        assert not any(server.listening for server in servers)


def test_a_listener_that_is_lost_stops_the_others_and_its_error_is_raised() -> None:
    with bound() as servers, client(servers[0]) as sock, silent_log():
        lost = servers[1]
        where = f"127.0.0.1:{lost.server_address[1]}"

        def lose() -> None:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
            wait_until(lambda: serve_all(servers))
            lost.socket.shutdown(socket.SHUT_RDWR)
            assert receive_all(sock) == b""  # its client was not cut

        with in_thread(lose), observed(events.Stopped) as seen:
            message = rf"cannot accept clients on {where}: invalid argument \(EINVAL\)"
            with pytest.raises(OSError, match=message):
                netkit.run(*servers)
        assert {event.server: event.cut for event in seen} == dict.fromkeys(servers, 0)


class Failing(netkit.Server):
    def serve_forever(self, poll_interval: float = 0.5) -> None:
        raise ZeroDivisionError


@pytest.mark.parametrize("kinds", [(netkit.Server, Failing), (Failing, netkit.Server)])
def test_a_server_that_fails_closes_the_others(kinds: Any) -> None:
    with bound(*kinds) as servers:
        with pytest.raises(ZeroDivisionError):
            netkit.run(*servers)
        assert not any(server.listening for server in servers)


def test_a_server_that_cannot_serve_leaves_the_others_as_they_are() -> None:
    with bound() as servers:
        unbound = netkit.create_server(netkit.EchoHandler)
        with pytest.raises(netkit.ServerStateError, match="not bound; call listen"):
            netkit.run(*servers, unbound)
        with netkit.create_server().listen(0, "127.0.0.1") as other:
            with pytest.raises(netkit.ServerStateError, match="the server has no handler"):
                netkit.run(*servers, other)
        servers[1].start()
        with pytest.raises(netkit.ServerStateError, match="the server is serving already, on 127"):
            netkit.run(*servers)
        assert all(server.listening for server in servers)


def test_arguments_that_are_no_servers_are_named() -> None:
    with bound() as (a, b):
        given: list[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
            ((a, netkit.EchoHandler), {}, TypeError, r"run\(\) needs a server, not <class"),
            ((a, 1, b), {}, TypeError, "workers must be"),
            ((a, b, 1, 1, 1), {}, TypeError, r"run\(\) needs a server, not 1;"),
            ((a, b, a), {}, ValueError, "the same server twice"),
            ((a, b), {"workers": 2}, ValueError, "several servers run in one process: workers"),
            ((a, b), {"drain_timeout": -1}, ValueError, "drain_timeout must be"),
        ]
        for arguments, named, error, message in given:
            with pytest.raises(error, match=message):
                netkit.run(*arguments, **named)
        assert a.listening
        assert b.listening


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP here")
def test_sighup_reloads_each_server_that_can_reload() -> None:
    class Setting:
        count = 0

        def reopen(self) -> None:
            self.count += 1

    class Configurable(netkit.Handler):
        setting: Any = None

    files = [Setting(), Setting()]
    servers = [netkit.create_server(Configurable, handler_args={"setting": file}) for file in files]
    servers.append(netkit.create_server(netkit.EchoHandler))

    def reload() -> None:
        wait_until(lambda: serve_all(servers))
        os.kill(os.getpid(), signal.SIGHUP)
        wait_until(lambda: all(file.count for file in files))
        servers[2].stop()

    with observed(events.NothingToReload) as seen, in_thread(reload):
        netkit.run(*(server.listen(0, "127.0.0.1") for server in servers))
    assert [file.count for file in files] == [1, 1]
    assert not seen


def test_several_servers_run_in_another_thread_until_one_is_stopped() -> None:
    with bound() as servers, observed(events.SignalsUnavailable) as seen, silent_log():
        with in_thread(netkit.run, *servers):
            wait_until(lambda: serve_all(servers))
            servers[0].stop()
        assert len(seen) == 1
        assert not any(server.listening for server in servers)
