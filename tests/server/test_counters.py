"""Counts are exact whatever the number of threads, with the GIL and without it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

import pytest
from support import (
    PATIENCE,
    client,
    in_threads,
    observed,
    receive_all,
    serving,
    silent_log,
    wait_until,
)

import netkit
import netkit.server.server
from netkit.core import events

THREADS = 32


def together(work: Callable[[int], object]) -> None:
    """Call `work` with each number below `THREADS`, in threads that begin at the same moment."""
    barrier = threading.Barrier(THREADS)

    def begin(number: int) -> None:
        barrier.wait(PATIENCE)
        work(number)

    in_threads(begin, [(number,) for number in range(THREADS)])


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


def test_a_stop_counts_each_client_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netkit.server.drain.Drain, "grace", PATIENCE)
    stack = contextlib.ExitStack()

    def handler(conn: netkit.Connection) -> None:
        if conn.read(1) == b"!":
            with contextlib.suppress(ConnectionAbortedError):
                while True:
                    conn.write(b"flood" * 10_000)
        conn.read()  # until the stop ends the input

    def connect(number: int) -> None:
        for request in (b"!", b"?"):
            stack.enter_context(client(server)).sendall(request)

    with stack, silent_log(), serving(handler) as server:
        together(connect)
        wait_until(lambda: sum(conn.bytes_read for conn in server.connections) == 2 * THREADS)
        # Long enough for the idle ones to end on a busy machine.
        assert server.stop(2.0) == (THREADS, THREADS)
