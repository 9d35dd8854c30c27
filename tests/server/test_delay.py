"""The delay of a stop: the server is not ready, and serves on."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from support import client, echo, exchange, in_thread, observed, serving, wait_until

import netkit
from netkit.core import events

LONG = 60.0  # seconds: a delay that no test waits for
SHORT = 0.3


def test_a_stop_with_a_delay_serves_new_clients_until_the_delay_has_passed() -> None:
    with serving(echo) as server, observed(events.StopDelayed) as seen:
        began = time.monotonic()
        reports: list[Any] = []
        with in_thread(lambda: reports.append(server.stop(5, 0, SHORT))):
            wait_until(lambda: seen)
            assert server._drain.is_announced()
            assert exchange(server, b"x") == b"x"
            assert reports == []
        assert time.monotonic() - began >= SHORT
        assert seen == [events.StopDelayed(SHORT)]
        assert reports == [(0, 0)]
        assert not server.listening


@pytest.mark.parametrize(
    "stop",
    [
        lambda server: server.stop(),
        lambda server: server.close(),
        lambda server: server.server_close(),
        lambda server: server.request_stop(),
        lambda server: server.stop(delay=0.01),
    ],
    ids=["stop", "close", "server_close", "request_stop", "a shorter delay"],
)
def test_another_stop_ends_the_delay(stop: Callable[[netkit.Server], object]) -> None:
    with serving(echo) as server, observed(events.StopDelayed) as seen:
        with in_thread(server.stop, 5, 0, LONG):
            wait_until(lambda: seen)
            stop(server)
        assert not server.listening
        assert len(seen) == 1


def test_the_serving_thread_only_requests_it() -> None:
    reports: list[Any] = []

    class Hooked(netkit.Server):
        def service_actions(self) -> None:
            if not reports:
                reports.append(self.stop(5, 0, SHORT))

    server = Hooked(("127.0.0.1", 0), echo)
    with observed(events.StopDelayed) as seen, in_thread(server.serve_forever, 0.01):
        wait_until(lambda: seen)
        assert exchange(server, b"x") == b"x"
    assert reports == [(0, 0)]
    assert not server.listening


def test_a_server_that_does_not_serve_waits_as_well_and_one_that_is_closed_does_not() -> None:
    server = netkit.create_server(echo).listen(0, "127.0.0.1")
    began = time.monotonic()
    assert server.stop(delay=SHORT) == (0, 0)
    assert time.monotonic() - began >= SHORT
    assert server.stop(delay=LONG) == (0, 0)
    with server.listen(0, "127.0.0.1"):  # nothing of the former stop is left
        assert not server._drain.is_announced()


def test_a_delay_that_has_passed_does_not_stop_a_server_that_listens_again() -> None:
    server = netkit.create_server(echo).listen(0, "127.0.0.1")
    delay = server._drain._delay  # another thread stops the server before that of the delay
    server.stop()
    with server.listen(0, "127.0.0.1"):
        server._drain._end_delay(delay)
        assert not server._drain.is_announced()


@pytest.mark.parametrize("wrong", [{"delay": -1}, {"patience": -1}, {"delay": 1e20}])
def test_an_invalid_time_is_an_error_and_nothing_is_stopped(wrong: dict[str, float]) -> None:
    with serving(echo) as server:
        with pytest.raises(ValueError, match="must be"):
            server.stop(**wrong)
        assert exchange(server, b"x") == b"x"


def test_without_a_thread_the_stop_is_not_delayed(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with serving(echo) as server:
        monkeypatch.setattr(threading.Thread, "start", no_thread)
        server.request_stop(delay=LONG)
        wait_until(lambda: not server._accept_loop.under_way)


def run_and(act: Callable[[netkit.Server], object], **options: Any) -> netkit.RunReport:
    server = netkit.create_server(echo, **options).listen(0, "127.0.0.1")

    def begin() -> None:
        wait_until(lambda: server._accept_loop.under_way)
        act(server)

    with in_thread(begin):
        return netkit.run(server)


def test_sigterm_waits_for_the_delay_of_the_options_and_a_second_one_changes_nothing() -> None:
    with observed(events.StopDelayed) as seen:

        def act(server: netkit.Server) -> None:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
            wait_until(lambda: seen)
            assert exchange(server, b"x") == b"x"

        began = time.monotonic()
        assert run_and(act, stop_delay=SHORT) == (0, 0, False)
    assert time.monotonic() - began >= SHORT
    assert seen == [events.StopDelayed(SHORT)]


def test_sigint_ends_the_delay_and_a_second_one_cuts() -> None:
    with observed(events.StopDelayed, events.Stopping) as seen:

        def act(server: netkit.Server) -> None:
            with client(server) as sock:
                sock.sendall(b"x")
                assert sock.recv(1) == b"x"
                os.kill(os.getpid(), signal.SIGTERM)
                wait_until(lambda: seen)
                os.kill(os.getpid(), signal.SIGINT)
                assert sock.recv(1) == b""

        assert run_and(act, stop_delay=LONG) == (1, 0, False)
    assert [type(event).__name__ for event in seen] == ["StopDelayed", "Stopping"]


def test_several_servers_wait_for_the_longest_delay_and_log_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "netkit")
    servers = [
        netkit.create_server(echo, stop_delay=seconds).listen(0, "127.0.0.1")
        for seconds in (0, SHORT)
    ]

    def act() -> None:
        wait_until(lambda: all(server._accept_loop.under_way for server in servers))
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda: "not ready" in caplog.text)
        assert [exchange(server, b"x") for server in servers] == [b"x", b"x"]

    with in_thread(act):
        assert netkit.run(*servers) == (0, 0, False)
    assert caplog.text.count("not ready") == 1
