"""Hooks of socketserver that raise or block, and a machine that has no more threads."""

from __future__ import annotations

import contextlib
import errno
import os
import ssl
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from support import (
    PATIENCE,
    Shout,
    client,
    exchange,
    observed,
    receive_all,
    receive_exactly,
    serving_forever,
    silent_log,
    wait_until,
)

import netkit
from netkit.core import events

LOCAL = ("127.0.0.1", 0)


@contextlib.contextmanager
def still_serving(cls: type[netkit.Server]) -> Iterator[netkit.Server]:
    """A server of that class, which must still accept and serve clients at the end."""
    with silent_log(), cls(LOCAL, Shout) as server, serving_forever(server) as thread:
        yield server
        assert exchange(server, b"still\n") == b"STILL\n"
        assert thread.is_alive()


class FailsOnce(netkit.Server):
    """A server whose method `hook` raises the first time."""

    hook = ""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        original = getattr(self, self.hook)

        def once(*given: Any) -> Any:
            setattr(self, self.hook, original)
            raise ValueError("on purpose")

        setattr(self, self.hook, once)


class FailsOnceAndSchedules(FailsOnce):
    """The same, with a `process_request` of its own, before which each client is verified."""

    def process_request(self, request: Any, client_address: Any) -> None:
        super().process_request(request, client_address)


@pytest.mark.parametrize(
    ("base", "hook"),
    [
        (FailsOnce, "verify_request"),
        (FailsOnceAndSchedules, "verify_request"),
        (FailsOnce, "process_request"),
    ],
)
def test_a_hook_that_raises_ends_that_client_alone(base: type[FailsOnce], hook: str) -> None:
    with observed(events.HandlerFailed) as failures:
        with still_serving(type("Server", (base,), {"hook": hook})) as server:
            with client(server) as sock:
                assert receive_all(sock) == b""
    assert [str(event.error) for event in failures] == ["on purpose"]


@pytest.mark.parametrize("hook", ["verify_request", "process_request", "finish_request"])
def test_a_handle_error_that_raises_is_logged_and_ends_that_client_alone(hook: str) -> None:
    class Server(FailsOnce):
        def handle_error(self, request: Any, client_address: Any) -> None:
            raise ValueError("I/O operation on closed file")

    Server.hook = hook
    with observed(events.HookFailed) as failures, still_serving(Server) as server:
        with client(server) as sock:
            assert receive_all(sock) == b""
    assert [event.hook for event in failures] == ["handle_error"]


def test_an_exception_in_get_request_is_logged_and_the_server_accepts_again() -> None:
    class Server(FailsOnce):
        hook = "get_request"

    with observed(events.AcceptPaused) as paused, still_serving(Server) as server:
        assert exchange(server, b"a\n") == b"A\n"
    assert [str(event.error) for event in paused] == ["on purpose"]


def test_an_exception_in_service_actions_is_logged_and_the_server_accepts_on() -> None:
    class Server(FailsOnce):
        hook = "service_actions"

    with observed(events.HookFailed) as failures, still_serving(Server) as server:
        assert exchange(server, b"a\n") == b"A\n"
        wait_until(lambda: failures)
    assert [(event.hook, str(event.error)) for event in failures] == [
        ("service_actions", "on purpose")
    ]


def test_a_handshake_that_fails_in_get_request_is_logged() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    class ShakesHands(netkit.Server):
        def get_request(self) -> Any:
            request, client_address = super().get_request()
            return context.wrap_socket(request, server_side=True), client_address

    with ShakesHands(LOCAL, Shout) as server:
        with observed(events.AcceptFailed) as failures, serving_forever(server):
            for _ in range(2):
                with client(server) as sock, contextlib.suppress(ConnectionError):
                    sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
                    receive_all(sock)
            wait_until(lambda: len(failures) == 2)
    assert all(isinstance(event.error, ssl.SSLError) for event in failures)


def test_serve_forever_calls_handle_timeout_when_no_client_comes() -> None:
    class Server(netkit.Server):
        timeout = 0.02

        def handle_timeout(self) -> None:
            calls.append(None)
            if len(calls) == 2:
                raise ValueError("on purpose")

    calls: list[None] = []
    with observed(events.HookFailed) as failures, Server(LOCAL, Shout) as server:
        with serving_forever(server):
            wait_until(lambda: len(calls) >= 3)
            assert exchange(server, b"a\n") == b"A\n"
    assert [event.hook for event in failures] == ["handle_timeout"]


def test_a_slow_verify_request_delays_no_other_client() -> None:
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
        slow.sendall(b"b\n")
        assert receive_exactly(slow, 2) == b"B\n"


def test_a_slow_handle_error_delays_no_other_client() -> None:
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


def test_a_pause_in_accepting_ends_in_programs_that_schedule_clients_themselves() -> None:
    class Server(netkit.Server):
        failures = 0

        def process_request(self, request: Any, client_address: Any) -> None:
            threading.Thread(
                target=self.process_request_thread, args=(request, client_address)
            ).start()

        def get_request(self) -> Any:
            if self.failures:
                self.failures -= 1
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return super().get_request()

    with silent_log(), Server(LOCAL, Shout) as server, serving_forever(server):
        server._accept_loop.quiet = 0.0
        with observed(events.AcceptPaused, events.AcceptResumed) as seen:
            for episode in (1, 2):
                server.failures = 3
                assert exchange(server, b"a\n") == b"A\n"
                wait_until(lambda n=episode: len(seen) == 2 * n)
    assert [type(event) for event in seen] == 2 * [events.AcceptPaused, events.AcceptResumed]


def test_a_client_whose_thread_cannot_start_waits_until_one_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = threading.Thread.start
    refused: list[threading.Thread] = []

    def refuse(thread: threading.Thread) -> None:
        refused.append(thread)
        raise RuntimeError("can't start new thread")

    with silent_log(), netkit.Server(LOCAL, Shout) as server, serving_forever(server):
        server._accept_loop.quiet = 0.0
        with observed(events.AcceptPaused, events.AcceptResumed) as seen, client(server) as sock:
            sock.sendall(b"a\n")
            assert receive_exactly(sock, 2) == b"A\n"
            monkeypatch.setattr(threading.Thread, "start", refuse)
            with client(server) as late, client(server) as later:
                wait_until(lambda: len(refused) >= 4)
                sock.sendall(b"meanwhile\n")
                assert receive_exactly(sock, 10) == b"MEANWHILE\n"
                assert [type(event) for event in seen] == [events.AcceptPaused]
                monkeypatch.setattr(threading.Thread, "start", start)
                for each in (late, later):
                    each.sendall(b"late\n")
                    assert receive_exactly(each, 5) == b"LATE\n"
            wait_until(lambda: len(seen) == 2)
        assert [type(event) for event in seen] == [events.AcceptPaused, events.AcceptResumed]
        assert len(refused) < 30
    assert server._threads == []  # joined, with none among them that was never started
