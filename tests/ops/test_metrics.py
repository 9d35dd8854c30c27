"""What is counted in one process, and that nothing is counted twice or lost."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pages import check_by_promtool, samples_of
from secure import files
from support import (
    PATIENCE,
    ROOT,
    EchoRequest,
    client,
    each_echo,
    echo,
    exchange,
    exchange_and_fail,
    in_thread,
    in_threads,
    input_of_client,
    observed,
    receive_exactly,
    serving,
    wait_until,
)

import netkit
from netkit.core import events
from netkit.core.ends import ENDS
from netkit.ops import figures
from netkit.ops.exposition import Samples, sample
from netkit.ops.internal import InternalServer
from netkit.ops.metrics import REASONS, Metrics, of_process

ACCEPTED = "netkit_connections_accepted_total"
RECEIVED, SENT = "netkit_received_bytes_total", "netkit_sent_bytes_total"


@contextmanager
def counting(*servers: Any) -> Iterator[Metrics]:
    metrics = Metrics(servers)
    try:
        yield metrics
    finally:
        metrics.close()


def counters(metrics: Metrics) -> Samples:
    return metrics.answer()["counters"]


def traffic(metrics: Metrics) -> tuple[float, float, float]:
    """The connections, the bytes received and the bytes sent."""
    found = counters(metrics)
    return found[ACCEPTED], found[RECEIVED], found[SENT]


def gauges(metrics: Metrics) -> Samples:
    return metrics.answer()["gauges"]


def ended(end: str) -> str:
    return sample("netkit_connections_closed_total", end=end)


def refused(reason: str) -> str:
    return sample("netkit_connections_refused_total", reason=reason)


def of_state(metrics: Metrics) -> dict[str, float]:
    """The numbers of connections by their state, without the zeros."""
    found = gauges(metrics)
    states = ("proxy", "handshake", "serving", "closing", "held")
    numbers = {state: found[sample("netkit_connections", state=state)] for state in states}
    return {state: number for state, number in numbers.items() if number}


@each_echo
def test_the_bytes_of_open_connections_are_counted_and_after_the_end_they_are_the_same(
    handler: Any,
) -> None:
    with serving(handler) as server, counting(server) as metrics:
        with client(server) as sock:
            sock.sendall(b"hello")
            receive_exactly(sock, 5)
            wait_until(lambda: traffic(metrics) == (1, 5, 5))  # a write is counted as it returns
            assert of_state(metrics) == {"serving": 1}
            assert sum(counters(metrics)[ended(end)] for end in ENDS) == 0
        wait_until(lambda: counters(metrics)[ended("done")] == 1)
        assert traffic(metrics) == (1, 5, 5)
        assert of_state(metrics) == {}


def test_a_scrape_while_a_connection_is_being_removed_counts_its_bytes_once() -> None:
    """An observer is called once the connection is no longer open, and not reported yet."""
    found: list[Samples] = []
    with serving(echo) as server, counting(server) as metrics:
        unsubscribe = netkit.subscribe(
            lambda event: (
                found.append(counters(metrics))
                if isinstance(event, events.ConnectionClosed)
                else None
            )
        )
        exchange(server, b"hello")
        wait_until(lambda: found)
        unsubscribe()
    assert (found[0][ACCEPTED], found[0][RECEIVED], found[0][SENT]) == (1, 5, 5)


def test_scrapes_under_load_never_see_a_counter_fall_nor_a_byte_too_many() -> None:
    clients, size = 150, 100
    connected = threading.Semaphore(0)
    over = threading.Event()

    def scrape() -> None:
        before = counters(metrics)
        while not over.is_set():
            found = counters(metrics)
            assert [name for name in before if found[name] < before[name]] == []
            assert found[RECEIVED] <= found[ACCEPTED] * size
            assert found[SENT] <= found[RECEIVED]
            before = found

    def connect(handler_number: int) -> None:
        for _ in range(clients):
            exchange(servers[handler_number], bytes(size))
            connected.release()

    with serving(echo) as one, serving(EchoRequest) as other, counting(one, other) as metrics:
        servers = [one, other]
        with in_thread(scrape), in_thread(scrape):
            in_threads(connect, [(0,), (1,), (0,)])
            over.set()
        wait_until(lambda: counters(metrics)[ended("done")] == 3 * clients)
        total = 3 * clients * size
        assert traffic(metrics) == (3 * clients, total, total)
        assert counters(metrics)["netkit_connection_duration_seconds_count"] == 3 * clients


def test_a_counter_does_not_fall_if_a_thread_has_sent_after_the_sum_was_made() -> None:
    with serving(echo) as server, counting(server) as metrics:
        with client(server) as sock:
            sock.sendall(b"hello")
            receive_exactly(sock, 5)
            wait_until(lambda: traffic(metrics) == (1, 5, 5))
            (conn,) = server.connections
            conn._link.bytes_written = 9
            assert counters(metrics)[SENT] == 9
            conn._link.bytes_written = 5
        wait_until(lambda: not server.connections)
        assert counters(metrics)[SENT] == 9


def test_each_connection_counts_by_what_ended_it_and_each_refused_client_by_the_option() -> None:
    def handler(conn: netkit.Connection) -> None:
        conn.write("hello")
        if conn.read(100) == b"fail":
            raise LookupError

    with serving(handler, max_connections=1, when_full="refuse") as server:
        with counting(server) as metrics:
            exchange(server, b"well")
            wait_until(lambda: not server.connections)
            exchange_and_fail(server, b"fail")
            wait_until(lambda: not server.connections)
            with client(server) as sock:
                receive_exactly(sock, 5)
                assert input_of_client(server) == b""
            wait_until(lambda: counters(metrics)[ended("done")] == 2)
            found = counters(metrics)
            assert gauges(metrics)["netkit_connections_limit"] == 1
    assert found[ended("handler")] == 1
    assert found["netkit_handler_failures_total"] == 1
    assert found[refused("max_connections")] == 1
    assert {name for name in found if "reason=" in name} == set(map(refused, REASONS))
    assert {name for name in found if "end=" in name} == set(map(ended, ENDS))


def test_the_labels_stay_a_closed_set_whatever_an_event_says() -> None:
    with serving(echo) as server, counting(server) as metrics:
        for reason in ("deny", "nonsense", "more"):
            events.emit(events.ClientRefused("192.0.2.1:5", reason, None, None), server)
        for end in ("cut", "nonsense"):
            closed = events.ConnectionClosed(1, "192.0.2.1:5", 0, 0, 700.0, end=end, waited=0.05)
            events.emit(closed, server)
        found = counters(metrics)
    assert found[refused("deny")] == 1
    assert found[refused("other")] == 2
    assert (found[ended("cut")], found[ended("other")]) == (1, 1)
    buckets = {
        name.partition('le="')[2].partition('"')[0]: value
        for name, value in found.items()
        if name.startswith("netkit_connection_duration_seconds_bucket")
    }
    assert [limit for limit, value in buckets.items() if value == 2] == ["3600", "86400", "+Inf"]
    assert found['netkit_connection_wait_seconds_bucket{le="0.01"}'] == 0
    assert found['netkit_connection_wait_seconds_bucket{le="0.1"}'] == 2
    assert not [name for name in found if "192.0.2.1" in name]


def test_only_the_servers_of_the_program_are_counted() -> None:
    mine, other = serving(echo), serving(echo)
    with mine as server, other as stranger, counting(server) as metrics:
        internal = InternalServer(None, echo).listen(0, "127.0.0.1").start(daemon=True)
        for each in (server, stranger, internal):
            exchange(each, b"hello")
        events.emit(events.HandlerFailed(1, "x", LookupError()))  # of no server
        internal.stop()
        wait_until(lambda: counters(metrics)[ended("done")] == 1)
        found = counters(metrics)
    assert (found[ACCEPTED], found[RECEIVED], found["netkit_handler_failures_total"]) == (1, 5, 0)


def test_a_pause_of_accepting_is_counted_and_shown_while_it_lasts() -> None:
    with serving(echo) as server, counting(server) as metrics:
        assert gauges(metrics)["netkit_accept_paused"] == 0
        loop = server._accept_loop
        loop.failed(OSError("no descriptor"))
        assert gauges(metrics)["netkit_accept_paused"] == 1
        assert counters(metrics)["netkit_accept_pauses_total"] == 1
        loop.succeeded()
        assert gauges(metrics)["netkit_accept_paused"] == 0
        loop.failed(OSError("no descriptor"))  # in the same shortage
        assert counters(metrics)["netkit_accept_pauses_total"] == 2


def test_handshakes_and_clients_that_are_held_have_states_of_their_own() -> None:
    with serving(echo, tls_cert=files().server, max_connections=1, when_full=PATIENCE) as server:
        with counting(server) as metrics, client(server), client(server):
            wait_until(lambda: of_state(metrics) == {"handshake": 1, "held": 1})


def test_the_end_of_each_certificate_in_use_is_shown_by_its_name() -> None:
    sni = {"A.example": (files().cert, files().key)}
    with serving(echo, tls_cert=files().server, tls_sni=sni) as server, counting(server) as metrics:
        found = {name: end for name, end in gauges(metrics).items() if "certificate" in name}
        context: Any = server.tls_context()
    family = "netkit_tls_certificate_expiry_seconds"
    named = {sample(family, name="a.example"), sample(family, name="*")}
    assert found == dict.fromkeys(named, context.expiry)


def test_the_process_is_measured_as_far_as_the_platform_can(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    counted, found = figures.figures_of_process()
    assert 0 < counted["process_cpu_seconds_total"] < sum(os.times()[:2]) + PATIENCE
    assert found["netkit_threads"] == threading.active_count()
    with socket.socket():
        more = figures.figures_of_process()[1]
    assert more["process_open_fds"] == found["process_open_fds"] + 1 < found["process_max_fds"]
    if sys.platform == "linux":
        assert 1e6 < found["process_resident_memory_bytes"] < 1e10
    monkeypatch.setattr(figures, "STATM", str(tmp_path / "missing"))
    assert "process_resident_memory_bytes" not in figures.figures_of_process()[1]


def test_without_a_free_descriptor_all_are_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> list[str]:
        raise OSError(24, "too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", fail)
        found = figures.figures_of_process()[1]
    assert found["process_open_fds"] == found["process_max_fds"]


def test_the_text_of_a_process_is_valid_and_leaves_the_process_to_other_libraries() -> None:
    with serving(echo) as server:
        metrics = of_process([server])
        exchange(server, b"hello")
        wait_until(lambda: counters(metrics)[ended("done")] == 1)
        page = netkit.metrics_text()
        metrics.close()
        metrics.close()
    check_by_promtool(page)
    found = samples_of(page)
    assert found[RECEIVED] == 5
    assert f'version="{netkit.__version__}"' in page
    assert not [name for name in found if name.startswith("process_")]


def test_without_run_the_text_is_about_all_servers_that_accept_clients() -> None:
    """In a process of its own, which has no other servers."""
    program = """
import netkit
from netkit.ops.internal import InternalServer

def exchange(server):
    with netkit.connect(server.address.port) as conn:
        conn.write("hello")
        conn.readexactly(5)
    server.wait_for_connections(0)

def value(name):
    lines = map(str.split, netkit.metrics_text().splitlines())
    return [value for key, value, *_ in lines if key == name]

assert value("netkit_received_bytes_total") == ["0"]
servers = [netkit.create_server(netkit.EchoHandler) for _ in range(2)]
servers.append(InternalServer(None, netkit.EchoHandler))
for server in servers:
    server.listen(0, "127.0.0.1").start(daemon=True)
    exchange(server)
assert value("netkit_received_bytes_total") == ["10"]
assert value('netkit_connections_closed_total{end="done"}') == ["2"]
servers.pop(0).close()
del server
assert value("netkit_received_bytes_total") == ["10"]
for server in servers:
    server.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_forked_child_counts_nothing_and_waits_for_no_lock_of_its_parent() -> None:
    program = """
import os, threading
import netkit
from netkit.ops import metrics

server = netkit.create_server(netkit.EchoHandler).listen(0, "127.0.0.1").start(daemon=True)
counting = metrics.of_process([server])
metrics.metrics_text()
held = threading.Event()
def hold():
    with counting._lock:
        held.set()
        threading.Event().wait()
threading.Thread(target=hold, daemon=True).start()
held.wait()
child = os.fork()
if not child:
    netkit.events.emit(netkit.HandlerFailed(1, "x", OSError()), server)
    counting.answer()
    assert counting._failures == 0
    assert metrics._current is None
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, "[1] x: the handler failed: OSError\nOSError\n")


def test_metrics_see_only_what_happens_until_they_are_closed() -> None:
    with serving(echo) as server:
        with counting(server) as metrics:
            pass
        with observed(events.ConnectionClosed) as seen:
            exchange(server, b"hello")
            wait_until(lambda: seen)
        assert counters(metrics)[ended("done")] == 0


def test_an_exchange_on_an_open_connection_costs_no_call_more() -> None:
    def calls_of_an_exchange() -> list[str]:
        seen: list[str] = []

        def handler(conn: netkit.Connection) -> None:
            conn.read(1)
            sys.setprofile(lambda frame, kind, _: seen.append(f"{kind} {frame.f_code.co_name}"))
            try:
                conn.read(1)
                conn.write(b"x")
            finally:
                sys.setprofile(None)

        with serving(handler) as server:
            with contextlib.ExitStack() as stack:
                if is_on:
                    stack.enter_context(counting(server))
                exchange(server, b"ab")
        return seen

    is_on = False
    without = calls_of_an_exchange()
    is_on = True
    assert calls_of_an_exchange() == without != []
