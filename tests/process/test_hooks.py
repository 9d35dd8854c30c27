"""`on_start` and `on_stop`: when and where they are called, and what they may do wrong."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import PATIENCE, client, in_thread, observed, receive_all, send_and_end, wait_until

import netkit
from netkit.core import events
from netkit.core.errors import Failure
from netkit.process.hooks import Hooks, Lifespan
from netkit.process.signals import Mailbox, Request

SOON = 0.05  # seconds until a hook of these tests is late


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    with contextlib.closing(Mailbox()) as mailbox:
        yield mailbox


@pytest.fixture
def server() -> Iterator[netkit.Server]:
    options: Any = {"drain_timeout": SOON}
    with netkit.create_server(netkit.EchoHandler, **options) as server:
        yield server


@pytest.fixture
def blocked() -> Iterator[Callable[[Any], None]]:
    """A hook that returns at the end of the test, or once its `release` is called."""
    release = threading.Event()

    def hook(server: Any) -> None:
        release.wait(PATIENCE)

    hook.release = release.set  # type: ignore[attr-defined]
    yield hook
    release.set()


def lifespan(server: Any, mailbox: Mailbox, *hooks: Any, **limits: Any) -> Lifespan:
    return Lifespan(Hooks(*hooks, **limits), [server], mailbox)


# The calls


def test_hooks_get_the_server_and_share_a_thread_which_is_not_the_main_one(
    server: netkit.Server, mailbox: Mailbox
) -> None:
    calls: list[Any] = []

    def note(name: str) -> Callable[[Any], None]:
        return lambda *servers: calls.append((name, servers, threading.current_thread()))

    span = lifespan(server, mailbox, note("start"), note("stop"))
    assert span.start()
    assert [name for name, *_ in calls] == ["start"]
    span.stop()
    span.stop()
    assert [call[:2] for call in calls] == [("start", (server,)), ("stop", (server,))]
    assert len({thread for *_, thread in calls}) == 1
    assert calls[0][2] is not threading.main_thread()


def test_a_context_manager_that_on_start_returns_is_exited_after_on_stop(
    server: netkit.Server, mailbox: Mailbox
) -> None:
    steps: list[str] = []

    @contextlib.contextmanager
    def database(server: Any) -> Iterator[None]:
        steps.append("open")
        yield
        steps.append("close")

    span = lifespan(server, mailbox, database, lambda server: steps.append("flush"))
    assert span.start()
    assert steps == ["open"]
    span.stop()
    assert steps == ["open", "flush", "close"]


def test_a_server_that_on_start_returns_is_not_started(
    server: netkit.Server, mailbox: Mailbox
) -> None:
    server.listen(0, "127.0.0.1")
    span = lifespan(server, mailbox, lambda server: server)
    assert span.start()
    assert not server._accept_loop.under_way
    span.stop()


def test_there_may_be_only_one_hook_or_none(server: netkit.Server, mailbox: Mailbox) -> None:
    stopped: list[Any] = []
    span = lifespan(server, mailbox, None, stopped.append)
    assert span.start()
    span.stop()
    assert stopped == [server]
    assert not Hooks()
    assert Hooks(print)
    assert Hooks(dict)  # which has no signature that could be checked
    assert pickle.loads(pickle.dumps(Hooks(print))).on_start is print


async def coroutine(server: Any) -> None:
    pass


def generator(server: Any) -> Iterator[None]:
    yield


@pytest.mark.parametrize(
    ("hook", "error"),
    [
        (3, "on_stop must be a function that takes the server, not 3"),
        (lambda: None, r"on_stop is called as on_stop\(server\): too many positional arguments"),
        (coroutine, "on_stop must be a plain function: it is a coroutine function"),
        (generator, "on_stop must be a plain function: it is a generator function, which does not"),
    ],
)
def test_a_hook_that_cannot_be_called_is_refused(hook: Any, error: str) -> None:
    with pytest.raises(TypeError, match=error):
        netkit.serve(netkit.EchoHandler, on_stop=hook)
    server = netkit.create_server(netkit.EchoHandler)
    with pytest.raises(TypeError, match=error):
        netkit.run(server, on_stop=hook)
    with pytest.raises(TypeError, match=error):
        netkit.Workers(server, 2, on_stop=hook)


# Hooks that fail


def fail(server: Any) -> None:
    raise ValueError("no database")


def test_what_on_start_raises_is_raised_and_on_stop_is_not_called(
    server: netkit.Server, mailbox: Mailbox
) -> None:
    stopped: list[Any] = []
    span = lifespan(server, mailbox, fail, stopped.append)
    with observed(events.HookFailed) as seen, pytest.raises(ValueError, match="no database"):
        span.start()
    span.stop()
    assert (stopped, seen) == ([], [])


def test_a_process_of_netkits_own_logs_what_on_start_raises_and_fails_in_one_line(
    server: netkit.Server, mailbox: Mailbox
) -> None:
    span = Lifespan(Hooks(fail).reporting(), [server], mailbox)
    with observed(events.HookFailed) as seen:
        with pytest.raises(Failure, match="^on_start failed: ValueError: no database$"):
            span.start()
    assert [(event.hook, str(event.error), event.server) for event in seen] == [
        ("on_start", "no database", server)
    ]
    made = Hooks(lambda server: exit_with(3)).reporting()
    with pytest.raises(SystemExit):
        Lifespan(made, [server], mailbox).start()


def exit_with(status: int) -> None:
    raise SystemExit(status)


def test_a_coroutine_that_a_hook_returns_is_an_error(
    server: netkit.Server, mailbox: Mailbox
) -> None:
    with pytest.raises(TypeError, match="on_start has returned <coroutine"):
        lifespan(server, mailbox, lambda server: coroutine(server)).start()


def test_what_on_stop_raises_is_an_event(server: netkit.Server, mailbox: Mailbox) -> None:
    span = lifespan(server, mailbox, None, fail)
    with observed(events.HookFailed) as seen:
        assert span.start()
        span.stop()
    assert [(event.hook, str(event.error)) for event in seen] == [("on_stop", "no database")]


# Hooks that hang


@pytest.mark.parametrize("reporting", [False, True])
def test_on_start_has_a_time_limit(
    reporting: bool, server: netkit.Server, mailbox: Mailbox, blocked: Any
) -> None:
    stopped = threading.Event()
    hooks = Hooks(blocked, lambda server: stopped.set(), start_seconds=SOON)
    span = Lifespan(hooks.reporting() if reporting else hooks, [server], mailbox)
    error: Any = Failure if reporting else TimeoutError
    with pytest.raises(error, match="on_start has not returned after 0.05 seconds"):
        span.start()
    span.stop()
    assert not stopped.is_set()
    blocked.release()
    assert stopped.wait(PATIENCE)  # what on_start has opened is closed


def test_a_stop_waits_for_on_start_for_the_drain_timeout(
    server: netkit.Server, mailbox: Mailbox, blocked: Any
) -> None:
    mailbox.post(Request.STOP)
    mailbox.post(Request.STOP)  # some supervisors send it twice
    span = lifespan(server, mailbox, blocked)
    with observed(events.HookFailed) as seen:
        assert not span.start()
    assert [(event.hook, str(event.error)) for event in seen] == [
        ("on_start", "on_start has not returned before the stop")
    ]
    assert not span.interrupted
    span.stop()


def test_a_second_ctrl_c_ends_the_wait_for_on_start(
    server: netkit.Server, mailbox: Mailbox, blocked: Any
) -> None:
    server.configure(drain_timeout=PATIENCE)
    mailbox.post(Request.INTERRUPT)
    mailbox.post(Request.INTERRUPT)
    span = lifespan(server, mailbox, blocked)
    assert not span.start()
    assert span.interrupted
    span.stop()


def test_requests_that_come_during_on_start_are_obeyed_afterwards(
    server: netkit.Server, mailbox: Mailbox
) -> None:
    server.configure(drain_timeout=PATIENCE)
    mailbox.post(Request.RELOAD)
    mailbox.post(Request.STOP)
    span = lifespan(server, mailbox, lambda server: None)
    assert span.start()
    assert [each for each in mailbox.rest() if each is not Request.LOOK] == [
        Request.RELOAD,
        Request.STOP,
    ]
    span.stop()


def test_on_stop_has_a_time_limit(server: netkit.Server, mailbox: Mailbox, blocked: Any) -> None:
    span = lifespan(server, mailbox, None, blocked, stop_seconds=SOON)
    assert span.start()
    with observed(events.HookFailed) as seen:
        span.stop()
    assert [str(event.error) for event in seen] == ["on_stop has not returned after 0.05 seconds"]


def test_a_ctrl_c_ends_the_wait_for_on_stop(
    server: netkit.Server, mailbox: Mailbox, blocked: Any
) -> None:
    span = lifespan(server, mailbox, None, blocked, stop_seconds=PATIENCE)
    assert span.start()
    mailbox.post(Request.INTERRUPT)
    span.stop()
    assert span.interrupted


# Programs


class Notes:
    """Hooks that note the state of the server, and its database."""

    def __init__(self) -> None:
        self.steps: list[Any] = []

    def start(self, *servers: Any) -> None:
        self.steps.append(("start", [server.listening for server in servers]))

    def stop(self, *servers: Any) -> None:
        self.steps.append(("stop", [server.listening for server in servers]))


def stop_when_served(server: netkit.Server) -> None:
    """A client comes and goes; then SIGTERM."""
    wait_until(lambda: server._accept_loop.under_way)
    with client(server) as sock:
        send_and_end(sock, b"hello")
        assert receive_all(sock) == b"hello"
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("several", [False, True])
def test_run_serves_between_its_hooks(several: bool) -> None:
    servers = [netkit.create_server(netkit.EchoHandler) for _ in range(1 + several)]
    for server in servers:
        server.listen(0, "127.0.0.1")
    notes = Notes()
    with in_thread(lambda: stop_when_served(servers[-1])):
        report = netkit.run(*servers, on_start=notes.start, on_stop=notes.stop)
    assert not report.interrupted
    count = len(servers)
    assert notes.steps == [("start", [True] * count), ("stop", [False] * count)]


def test_run_off_the_main_thread_calls_the_hooks_too() -> None:
    server = netkit.create_server(netkit.EchoHandler).listen(0, "127.0.0.1")
    notes = Notes()
    reports: list[netkit.RunReport] = []

    def run() -> None:
        reports.append(netkit.run(server, on_start=notes.start, on_stop=notes.stop))

    with in_thread(run):
        wait_until(lambda: server._accept_loop.under_way)
        server.stop()
    assert reports == [(0, 0, False)]
    assert [name for name, _ in notes.steps] == ["start", "stop"]


def test_a_server_that_is_stopped_during_on_start_does_not_serve() -> None:
    server = netkit.create_server(netkit.EchoHandler).listen(0, "127.0.0.1")
    stopped: list[Any] = []
    report = netkit.run(server, on_start=lambda server: server.close(), on_stop=stopped.append)
    assert (report, stopped) == ((0, 0, False), [server])


def test_serve_closes_the_server_if_on_start_raises() -> None:
    with observed(events.Listening) as seen, pytest.raises(ValueError, match="no database"):
        netkit.serve(netkit.EchoHandler, 0, "127.0.0.1", on_start=fail)
    assert not seen[0].server.listening
