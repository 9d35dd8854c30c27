"""Handlers that neither read nor write: when they are logged, and when they are not."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import (
    MUCH,
    PATIENCE,
    EchoRequest,
    client,
    echo,
    in_thread,
    observed,
    receive_exactly,
    serving,
    wait_until,
)

import netkit
from netkit.core import events
from netkit.core.cores import has_gil
from netkit.ops.stuck import StuckWatch, progress_of

LONG = 1000.0  # seconds that count as stuck: more than any test takes


class Gate:
    """Keeps handlers from going on until it is opened."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.passed = threading.Semaphore(0)

    def wait(self) -> None:
        self.passed.release()
        self.event.wait(PATIENCE)


@contextlib.contextmanager
def stuck_in(
    serve: Callable[[netkit.Connection, Gate], Any],
) -> Iterator[tuple[netkit.Server, StuckWatch, socket.socket, Gate]]:
    """A server, a watch of it that looks when it is told to, and a client in its handler."""
    gate = Gate()
    with serving(lambda conn: serve(conn, gate)) as server, client(server) as sock:
        watch = StuckWatch(LONG, lambda: server.connections)
        try:
            yield server, watch, sock, gate
        finally:
            gate.event.set()


def kinds(found: list[tuple[events.Event, Any]]) -> list[str]:
    return [type(event).__name__ for event, _ in found]


def test_a_handler_is_reported_once_when_it_is_stuck_and_once_when_it_goes_on() -> None:
    def serve(conn: netkit.Connection, gate: Gate) -> None:
        conn.readline()
        gate.wait()
        conn.write("done\n")
        conn.readline()

    with stuck_in(serve) as (server, watch, sock, gate):
        (connection,) = wait_for_client(server)
        now = time.monotonic() // 1  # so that sums and differences are exact
        sock.sendall(b"go\n")
        assert gate.passed.acquire(timeout=PATIENCE)
        assert watch.look(now) == []
        assert watch.look(now + LONG - 1) == []
        ((event, of),) = watch.look(now + LONG)
        assert (event.id, event.peer, event.seconds) == (connection.id, connection.peer, LONG)
        assert of is server
        if has_gil():
            assert any("gate.wait()" in line for line in event.stack)
        assert watch.look(now + 2 * LONG) == []
        gate.event.set()
        receive_exactly(sock, 5)
        wait_until(lambda: progress_of(connection) is None)
        ((event, of),) = watch.look(now + 3 * LONG)
        assert event == events.HandlerResumed(
            connection.id, connection.peer, 3 * LONG, connection.local
        )
        assert of is server


def wait_for_client(server: netkit.Server) -> tuple[netkit.Connection, ...]:
    wait_until(lambda: [each for each in server.connections if each.began_at is not None])
    return server.connections


def test_a_handler_that_has_done_nothing_is_stuck_since_the_connection_was_opened() -> None:
    with stuck_in(lambda conn, gate: gate.wait()) as (server, watch, _, gate):
        (connection,) = wait_for_client(server)
        assert gate.passed.acquire(timeout=PATIENCE)
        ((event, _),) = watch.look(connection.opened_at + LONG + 1)
        assert event.seconds == pytest.approx(LONG + 1)
        gate.event.set()
        wait_until(lambda: not server.connections)
        assert kinds(watch.look(connection.opened_at + 2 * LONG)) == ["HandlerResumed"]
        assert watch.look(connection.opened_at + 3 * LONG) == []


def test_a_handler_that_has_written_since_the_last_look_is_not_stuck() -> None:
    again = threading.Event()

    def serve(conn: netkit.Connection, gate: Gate) -> None:
        gate.passed.release()
        again.wait(PATIENCE)
        conn.write("x")
        gate.wait()

    with stuck_in(serve) as (server, watch, sock, gate):
        wait_for_client(server)
        assert gate.passed.acquire(timeout=PATIENCE)
        now = time.monotonic() // 1  # so that sums are exact
        watch.look(now)
        again.set()
        receive_exactly(sock, 1)
        assert gate.passed.acquire(timeout=PATIENCE)
        assert watch.look(now + LONG - 1) == []
        assert watch.look(now + 2 * LONG - 2) == []
        assert kinds(watch.look(now + 2 * LONG - 1)) == ["HandlerStuck"]


@pytest.mark.parametrize("name", ["read", "write", "close"])
def test_a_handler_in_a_read_or_a_write_is_not_stuck(name: str) -> None:
    def serve(conn: netkit.Connection, _: Gate) -> None:
        conn.linger_seconds = PATIENCE
        if name == "read":
            conn.readline()
        elif name == "write":
            conn.write(bytes(MUCH))
        else:
            conn.write(bytes(100_000))

    with stuck_in(serve) as (server, watch, sock, _):
        (connection,) = wait_for_client(server)
        wait_until(lambda: progress_of(connection) is None)
        for at in range(3):
            assert watch.look(time.monotonic() + at * LONG) == []
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes.fromhex("0100000000000000"))


def test_a_handler_of_the_bare_socket_is_stuck_if_received_bytes_wait_for_it() -> None:
    gate = Gate()

    class Request(EchoRequest):
        def handle(self) -> None:
            self.request.recv(1)
            gate.wait()

    with serving(Request) as server, client(server) as sock:
        try:
            (connection,) = wait_for_client(server)
            assert progress_of(connection) is None  # it reads
            sock.sendall(b"x")
            assert gate.passed.acquire(timeout=PATIENCE)
            assert progress_of(connection) is None  # as far as the kernel knows
            sock.sendall(b"yz")
            wait_until(lambda: progress_of(connection) == (1, 0))
        finally:
            gate.event.set()
        sock.close()
        wait_until(lambda: not server.connections)
        assert progress_of(connection) is None


def test_the_watch_looks_by_itself_and_the_stack_is_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gate = Gate()
    with serving(lambda conn: gate.wait()) as server, client(server):
        watch = StuckWatch(0.1, lambda: server.connections)
        with observed(events.HandlerStuck, events.HandlerResumed) as seen:
            watch.start()
            wait_until(lambda: seen)
            gate.event.set()
            wait_until(lambda: len(seen) == 2)
            watch.close()
            watch.close()
    assert [type(each) for each in seen] == [events.HandlerStuck, events.HandlerResumed]
    record = next(each for each in caplog.records if each.levelno == logging.WARNING)
    if has_gil():
        assert "gate.wait()" in str(record.stack_info)


def test_run_takes_a_time(tmp_path: Any) -> None:
    with netkit.create_server(echo).listen(0, "127.0.0.1") as server:
        with pytest.raises(ValueError, match="stuck must be more than 0 seconds"):
            netkit.run(server, stuck=0)
    gate = Gate()
    with observed(events.HandlerStuck) as seen:
        server = netkit.create_server(lambda conn: gate.wait()).listen(0, "127.0.0.1")
        with in_thread(lambda: netkit.run(server, stuck=0.05)):
            with client(server):
                wait_until(lambda: seen)
                gate.event.set()
            server.stop()
