"""What is counted is counted exactly, by however many threads: with the GIL and without it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

import pytest
from support import (
    PATIENCE,
    client,
    exchange,
    in_threads,
    observed,
    receive_all,
    serving,
    silent_log,
    tcp_pair,
    wait_until,
)

import netkit
import netkit.server.server
from netkit.core import events

THREADS = 32


def together(work: Callable[[int], object]) -> None:
    """Call it with 0 to 31, in as many threads, which begin at the same moment."""
    barrier = threading.Barrier(THREADS)

    def begin(number: int) -> None:
        barrier.wait(PATIENCE)
        work(number)

    in_threads(begin, [(number,) for number in range(THREADS)])


def test_the_bytes_and_the_connections_of_many_clients_add_up() -> None:
    visits = 20
    wrong: list[object] = []

    def visit(number: int) -> None:
        data = b"x" * (1 + number)
        wrong.extend(1 for _ in range(visits) if exchange(server, data) != data)

    with observed(events.ConnectionOpened, events.ConnectionClosed) as told:
        with serving(netkit.EchoHandler) as server:
            together(visit)
            wait_until(lambda: not server.connections, "the end")
    total = visits * sum(range(1, THREADS + 1))
    opened = [event for event in told if isinstance(event, events.ConnectionOpened)]
    closed = [event for event in told if isinstance(event, events.ConnectionClosed)]
    assert wrong == []
    assert sum(event.bytes_read for event in closed) == total
    assert sum(event.bytes_written for event in closed) == total
    assert len(opened) == len(closed) == visits * THREADS
    assert len({event.id for event in opened}) == len(opened)
    assert {event.id for event in opened} == {event.id for event in closed}


def test_what_many_threads_write_to_one_connection_is_counted() -> None:
    with tcp_pair() as (ours, peer), netkit.Connection(ours) as conn:
        together(lambda number: [conn.write(b"x" * (1 + number)) for _ in range(50)])
        conn.end()
        received = len(receive_all(peer))
        assert conn.bytes_written == received == 50 * sum(range(1, THREADS + 1))


def test_no_two_connections_have_one_id() -> None:
    ids: list[int] = []
    with tcp_pair() as (ours, _):
        together(lambda _: ids.extend([netkit.Connection(ours).id for _ in range(200)]))
    assert len(set(ids)) == len(ids) == 200 * THREADS


def test_each_refused_client_is_counted_once() -> None:
    visits = 20

    def visit(_: int) -> None:
        for _ in range(visits):
            with contextlib.suppress(ConnectionResetError), client(server) as sock:
                receive_all(sock)

    with silent_log(), observed(events.ClientRefused, events.Refused) as told:
        with serving(netkit.EchoHandler, max_connections=0, when_full="refuse") as server:
            together(visit)
            assert server.refused_count == visits * THREADS
    refused = [event for event in told if isinstance(event, events.ClientRefused)]
    episodes = [event.clients for event in told if isinstance(event, events.Refused)]
    assert len(refused) == sum(episodes) == visits * THREADS


def test_places_are_given_and_taken_exactly() -> None:
    at_once = [0]
    most = [0]
    lock = threading.Lock()

    def handler(conn: netkit.Connection) -> None:
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        conn.write(conn.read(1))
        with lock:
            at_once[0] -= 1

    with serving(handler, max_connections=5) as server:
        together(lambda _: [exchange(server, b"x") for _ in range(5)])
        wait_until(lambda: not server.connections, "the end")
    assert at_once == [0]
    assert most[0] <= 5


def test_a_stop_counts_each_client_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netkit.server.drain.Drain, "grace", PATIENCE)
    socks: list[socket.socket] = []

    def handler(conn: netkit.Connection) -> None:
        if conn.read(1) == b"!":
            with contextlib.suppress(ConnectionAbortedError):
                while True:
                    conn.write(b"flood" * 10_000)
        conn.read()  # whose end the stop brings

    def connect(number: int) -> None:
        for said in (b"!", b"?"):
            sock = socket.create_connection(server.server_address[:2], timeout=PATIENCE)
            socks.append(sock)
            sock.sendall(said)

    with contextlib.ExitStack() as stack, silent_log(), serving(handler) as server:
        together(connect)
        for sock in socks:
            stack.enter_context(sock)
        wait_until(lambda: sum(conn.bytes_read for conn in server.connections) == 2 * THREADS)
        assert server.stop(0.1) == (THREADS, THREADS)
