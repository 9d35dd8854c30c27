"""Code of the program's that netkit calls: observers, hooks and handlers that do as they please.

They stop the server, connect to it, block, and raise; nobody else waits for them longer than a
stop's deadline.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import fault
from secure import contexts, files
from support import (
    EVENT_KINDS,
    PATIENCE,
    client,
    exchange,
    in_thread,
    in_threads,
    observed,
    receive_all,
    silent_log,
    wait_until,
)

import netkit
from netkit.core import events
from netkit.ops.stuck import StuckWatch
from netkit.server import exiting

SHORT = 0.1  # seconds: a deadline that is to pass
LONG = 60.0  # seconds: one that no test reaches


@pytest.fixture(autouse=True)
def little_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that a stop waits for in vain are left behind soon."""
    monkeypatch.setattr("netkit.server.drain.Drain.grace", SHORT)


# An observer of each event, which stops the server


def echo_server(**options: Any) -> netkit.Server:
    return netkit.create_server(netkit.EchoHandler, **options).listen(0, "127.0.0.1")


def come_and_go(server: netkit.Server) -> None:
    """As a client that does not mind what it meets."""
    with contextlib.suppress(OSError), client(server) as sock:
        sock.sendall(b"hello\n")
        sock.shutdown(socket.SHUT_WR)
        receive_all(sock)


class Patient(socketserver.BaseRequestHandler):
    """Reads the socket itself, whatever happens, until it has ended."""

    def handle(self) -> None:
        while data := self.request.recv(100):
            self.request.sendall(data)


Scene = Callable[[Path], Iterator[netkit.Server]]


def scene(
    act: Callable[[netkit.Server], object] = come_and_go,
    handler: Any = netkit.EchoHandler,
    *,
    started: bool = True,
    **given: Any,
) -> Scene:
    """A server that is yielded before `act` makes the event come.

    Functions in `given` are methods of its class; the rest are its options.
    """
    methods = {name: value for name, value in given.items() if callable(value)}
    options = {name: value for name, value in given.items() if name not in methods}

    def serve(_: Path) -> Iterator[netkit.Server]:
        cls: Any = type("Server", (netkit.Server,), methods)
        server = cls(None, handler, **options)
        if started:
            server.listen(0, "127.0.0.1").start()
        yield server
        act(server)

    return serve


def fails(*_: object) -> None:
    raise ValueError("for this test")


def dawdle(conn: netkit.Connection) -> None:
    time.sleep(SHORT)


def watch_a_slow_handler(server: netkit.Server) -> None:
    watch = StuckWatch(SHORT / 4, lambda: server.connections)
    with observed(events.HandlerResumed) as seen:
        watch.start()
        come_and_go(server)
        wait_until(lambda: seen)
    watch.close()


def wait_for_the_end(server: netkit.Server) -> None:
    with client(server) as sock:
        receive_all(sock)


def accepts(*errors: int | None) -> Scene:
    """A server that meets these errors, one after the other, when it accepts."""
    left = list(errors)

    def get_request(self: netkit.Server) -> Any:
        number = left.pop(0) if left else None
        if number is not None:
            raise OSError(number, "for this test")
        return netkit.Server.get_request(self)

    return scene(get_request=get_request)


def shakes_hands_as_it_accepts(_: Path) -> Iterator[netkit.Server]:
    server_side, client_side = contexts()

    def get_request(self: netkit.Server) -> Any:
        request, address = netkit.Server.get_request(self)
        return server_side.wrap_socket(request, server_side=True), address

    def shake_hands(server: netkit.Server) -> None:
        with client(server) as sock, client_side.wrap_socket(sock, server_hostname="localhost"):
            pass

    return scene(shake_hands, Patient, get_request=get_request)(_)


class Reporting(netkit.LoggerHandler):
    """Reports the end of its client only."""

    def handle(self) -> None:
        pass


def has_an_observer_that_fails(_: Path) -> Iterator[netkit.Server]:
    server = echo_server().start()
    unsubscribe = events.subscribe(fails)
    try:
        yield server
        come_and_go(server)
    finally:
        unsubscribe()


def has_refused(_: Path) -> Iterator[netkit.Server]:
    server = echo_server(deny=["127.0.0.1"]).start()
    come_and_go(server)
    wait_until(lambda: server.refused_count == 1)
    yield server
    server.stop(SHORT)


def has_others_wait(server: netkit.Server) -> None:
    with contextlib.suppress(OSError), client(server), client(server) as second:
        receive_all(second)


def listen(server: netkit.Server) -> None:
    server.listen_on("127.0.0.1:0", "127.0.0.1:0")


def reloads(tmp_path: Path, good: bool = True) -> Iterator[netkit.Server]:
    path = tmp_path / "allowed"
    path.write_text("127.0.0.1\n")
    server = echo_server(allow=path).start()
    if not good:
        path.unlink()
    yield server
    server.reload()


def listens_with_a_list(tmp_path: Path) -> Iterator[netkit.Server]:
    (tmp_path / "allowed").write_text("127.0.0.1\n")
    return scene(listen, started=False, allow=tmp_path / "allowed")(tmp_path)


def stop_with_a_client(server: netkit.Server) -> None:
    with client(server):
        server.wait_for_connections(1)
        server.stop(SHORT)


def run_off_the_main_thread(server: netkit.Server) -> None:
    with in_thread(netkit.run, server.listen(0, "127.0.0.1"), SHORT):
        pass


def is_given_a_key_that_all_may_read(tmp_path: Path) -> Iterator[netkit.Server]:
    server = echo_server().start()
    yield server
    path = tmp_path / "key.pem"
    path.write_bytes(Path(files().server).read_bytes())
    path.chmod(0o644)
    server.configure(tls_cert=path)


def serve_on_at_the_end_of_the_program(server: netkit.Server) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "ps1", ">>> ", raising=False)
        exiting._serve_on()


def connect_to_it(server: netkit.Server) -> None:
    with contextlib.suppress(OSError):
        netkit.connect(server.server_address[1], "localhost").close()


def connect_in_vain(_: netkit.Server) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with pytest.raises(OSError, match="connect"):
            netkit.connect(nobody.getsockname()[1], "127.0.0.1")


# What makes each event come.
SCENES: list[tuple[type[Any], Scene]] = [
    (events.Listening, scene(listen, started=False)),
    (events.Unlimited, scene(lambda server: server.listen(0, "0.0.0.0"), started=False)),
    (events.ConnectionOpened, scene()),
    (events.ConnectionClosed, scene()),
    (events.ClientFailed, scene(handler=netkit.Connection.readline, max_line=1)),
    (events.ClientFailed, scene(wait_for_the_end, Patient, lifetime=0.05)),
    (events.HandlerFailed, scene(handler=fails)),
    (events.HookFailed, scene(service_actions=fails)),
    (events.ObserverFailed, has_an_observer_that_fails),
    (events.AcceptFailed, accepts(errno.EPROTO)),
    (events.AcceptPaused, accepts(errno.EMFILE)),
    (events.AcceptResumed, accepts(errno.EMFILE, None)),
    (events.ListenerLost, accepts(errno.EBADF)),
    (events.HandshakeInAccept, shakes_hands_as_it_accepts),
    (events.ClientRefused, scene(deny=["127.0.0.1"])),
    (events.Refusing, scene(deny=["127.0.0.1"])),
    (events.Refusing, scene(has_others_wait, max_connections=1, when_full="wait")),
    (events.Refused, has_refused),
    (events.ListLoaded, listens_with_a_list),
    (events.SettingsReloaded, reloads),
    (events.SettingsKept, functools.partial(reloads, good=False)),
    (events.KeyReadable, is_given_a_key_that_all_may_read),
    (events.HandlerStuck, scene(watch_a_slow_handler, handler=dawdle)),
    (events.HandlerResumed, scene(watch_a_slow_handler, handler=dawdle)),
    (events.ServingOn, scene(serve_on_at_the_end_of_the_program)),
    (events.StopDelayed, scene(lambda server: server.stop(SHORT, delay=SHORT))),
    (events.Stopping, scene(stop_with_a_client)),
    (events.Stopped, scene(stop_with_a_client)),
    (events.StopDelayed, scene(lambda server: server.stop(delay=0.01))),
    (events.Ready, scene(run_off_the_main_thread, started=False)),
    (events.SignalsUnavailable, scene(run_off_the_main_thread, started=False)),
    (events.Report, scene(handler=Reporting)),
    (events.Resolved, scene(connect_to_it)),
    (events.AttemptStarted, scene(connect_to_it)),
    (events.AttemptFailed, scene(connect_in_vain)),
]

# A thread emits them that accepts nobody, and holds no lock: one that waits for signals, reloads,
# watches handlers or answers operators.
OF_A_PARENT = {
    *(events.NothingToReload, events.ReloadBegun, events.ReloadEnded, events.FrontEnded),
    *(events.HandlerStuck, events.HandlerResumed),
    *(events.OperatorCommand, events.StatusReported),
    *(events.WorkersReady, events.WorkerEnded, events.WorkerFailed, events.WorkersStopping),
    *(events.Reloaded, events.ReloadFailed, events.ReloadBegun, events.ReloadEnded),
    *(events.Ready, events.FrontEnded),
}


# Emitted by clients, by the loading of a key, and for an observer.
WITHOUT_SERVER = {
    *(events.Resolved, events.AttemptStarted, events.AttemptFailed),
    *(events.KeyReadable, events.ObserverFailed),
}


# Emitted in a thread of an endpoint, or of the parent's own, by a command or by SIGUSR1.
OF_OPERATORS = {events.OperatorCommand, events.StatusReported}


def test_every_event_of_a_server_has_a_scene() -> None:
    assert {kind for kind, _ in SCENES} | OF_A_PARENT | OF_OPERATORS == EVENT_KINDS


@pytest.mark.parametrize(
    ("kind", "scene", "where"),
    [
        (kind, scene, where)
        for (kind, scene), where in zip(
            SCENES, itertools.cycle(["in its own thread", "in another thread"])
        )
    ],
)
def test_an_observer_may_stop_the_server_connect_to_it_and_ask_for_its_connections(
    kind: type[Any], scene: Scene, where: str, tmp_path: Path
) -> None:
    seen: list[events.Event] = []
    done: list[netkit.StopReport] = []

    def act() -> None:
        with contextlib.suppress(OSError, TypeError):  # it may have no address, or no listener
            socket.create_connection(server.server_address[:2], PATIENCE).close()
        assert len(server.connections) <= 2
        done.append(server.stop(SHORT))

    def observe(event: events.Event) -> None:
        if isinstance(event, kind) and not seen:
            seen.append(event)
            if where == "in its own thread":
                act()
            else:
                with in_thread(act):
                    pass

    steps = scene(tmp_path)
    with silent_log(), observed(events.ObserverFailed) as failed:
        server = next(steps)
        unsubscribe = events.subscribe(observe)
        try:
            assert not [*steps]
            wait_until(lambda: done, "the stop")
        finally:
            unsubscribe()
        server.stop(SHORT)
    assert not server.listening
    assert [event.server for event in seen] == [None if kind in WITHOUT_SERVER else server]
    assert not [event for event in failed if event.observer.endswith("observe")]
    wait_until(lambda: not server._accept_loop.under_way)


def test_a_hook_may_stop_the_server_before_it_listens_everywhere() -> None:
    class Server(netkit.Server):
        def server_activate(self) -> None:
            super().server_activate()
            if self.server_address[1] != port:
                self.stop(SHORT)

    server = Server(None, netkit.EchoHandler)
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    with pytest.raises(netkit.ServerStateError, match="stopped before it listened everywhere"):
        server.listen_on(f"127.0.0.1:{port}", "127.0.0.1:0", "127.0.0.1:0")
    assert not server.listening
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), PATIENCE)


# What blocks, and a stop that goes on without it


class Stuck:
    """Called, it blocks until it is let go; a second call does not."""

    def __init__(self) -> None:
        self.entered, self.let_go = threading.Event(), threading.Event()

    def __call__(self) -> None:
        if not self.entered.is_set():
            self.entered.set()
            assert self.let_go.wait(2 * PATIENCE)


def a_hook(name: str, **attributes: Any) -> Callable[[Stuck], netkit.Server]:
    """A server that blocks in this method, before it has done what it is for."""

    def make(stuck: Stuck) -> netkit.Server:
        def method(self: Any, *arguments: Any) -> Any:
            stuck()
            return getattr(netkit.Server, name)(self, *arguments)

        cls: Any = type("Server", (netkit.Server,), {name: method, **attributes})
        server = cls(None, netkit.EchoHandler).listen(0, "127.0.0.1")
        assert isinstance(server, netkit.Server)
        return server

    return make


def accepts_late(**options: Any) -> Callable[[Stuck], netkit.Server]:
    """A server that blocks when it has accepted a client."""

    def make(stuck: Stuck) -> netkit.Server:
        class Server(netkit.Server):
            def get_request(self) -> Any:
                accepted = super().get_request()
                stuck()
                return accepted

        return Server(None, netkit.EchoHandler, **options).listen(0, "127.0.0.1")

    return make


def process_request(self: Any, *arguments: Any) -> None:
    netkit.Server.process_request(self, *arguments)


def an_observer(kind: type[Any], **options: Any) -> Callable[[Stuck], netkit.Server]:
    """A server of which an observer of this event blocks."""

    def make(stuck: Stuck) -> netkit.Server:
        class Server(netkit.Server):
            unsubscribe = staticmethod(
                events.subscribe(lambda event: stuck() if isinstance(event, kind) else None)
            )

        return Server(None, netkit.EchoHandler, **options).listen(0, "127.0.0.1")

    return make


def an_observer_in_the_watchdog(stuck: Stuck) -> netkit.Server:
    server = an_observer(events.ClientFailed, lifetime=0.02)(stuck)
    server.RequestHandlerClass = Patient
    return server


STUCK = {
    "service_actions": a_hook("service_actions"),
    "get_request": a_hook("get_request"),
    "get_request, with a client": accepts_late(),
    "verify_request": a_hook("verify_request", process_request=process_request),
    "process_request": a_hook("process_request"),
    "handle_timeout": a_hook("handle_timeout", timeout=0.01),
    "an observer of a new client": an_observer(events.ConnectionOpened),
    "an observer of a client that left": an_observer(events.ConnectionClosed),
    "an observer of a refusal": an_observer(events.Refusing, deny=["127.0.0.1"]),
    "an observer of a refusal, and then a message": an_observer(
        events.ClientRefused, max_connections=0, when_full="refuse", refusal="full\n"
    ),
    "an observer in the watchdog": an_observer_in_the_watchdog,
    "a client that is held after the stop": accepts_late(max_connections=0, when_full=LONG),
}


@fault("blocks")
@pytest.mark.parametrize("name", STUCK)
def test_a_stop_does_not_wait_for_what_blocks_for_ever(name: str) -> None:
    stuck = Stuck()
    server = STUCK[name](stuck)
    try:
        server.start()
        with contextlib.ExitStack() as stack:
            if name != "handle_timeout":
                sock = stack.enter_context(client(server))
                if name != "an observer in the watchdog":
                    sock.shutdown(socket.SHUT_WR)
            assert stuck.entered.wait(PATIENCE)
            reports: list[netkit.StopReport] = []
            with in_thread(lambda: reports.append(server.stop(SHORT))):
                pass
            assert not stuck.let_go.is_set()
            assert len(reports) == 1
            assert not server.listening
            accepting = server._accept_loop.background
            server.configure(deny=None, max_connections=None, lifetime=None)
            server.listen(0, "127.0.0.1").start()  # another life, beside the thread that is stuck
            assert exchange(server, b"hello") == b"hello"
            stuck.let_go.set()
            wait_until(lambda: accepting is None or not accepting.is_alive())
            assert exchange(server, b"hello") == b"hello"
    finally:
        stuck.let_go.set()
        if hasattr(server, "unsubscribe"):
            server.unsubscribe()
        server.stop()


BY_A_HOOK = a_hook("service_actions")


@contextlib.contextmanager
def blocked(
    make: Callable[[Stuck], netkit.Server] = BY_A_HOOK,
) -> Iterator[tuple[Stuck, netkit.Server, socket.socket]]:
    """A server whose accepting thread blocks, with a client."""
    stuck = Stuck()
    with make(stuck) as server, client(server) as sock:
        assert stuck.entered.wait(PATIENCE)
        yield stuck, server, sock
        stuck.let_go.set()


def test_a_client_that_is_accepted_after_the_stop_is_cut() -> None:
    with blocked(accepts_late()) as (stuck, server, sock):
        assert server.stop(SHORT) == (0, 0)
        stuck.let_go.set()
        assert receive_all(sock) == b""
        wait_until(lambda: not server.connections)


def test_a_slow_accepting_thread_keeps_nobody_from_finishing() -> None:
    """The idle see the end of input while it is still waited for."""
    with blocked() as (stuck, server, sock):
        with in_thread(server.stop, LONG), client(server) as queued:
            assert receive_all(sock) == b""
            queued.sendall(b"hello")
            stuck.let_go.set()
            assert receive_all(queued) == b"hello"


def test_a_stop_does_not_wait_for_another_one_whose_observer_blocks() -> None:
    stuck = Stuck()
    server = an_observer(events.Stopping)(stuck)
    try:
        with server, client(server):
            server.wait_for_connections(1)
            with in_thread(server.stop, SHORT):
                assert stuck.entered.wait(PATIENCE)
                assert server.stop(LONG) == (1, 0)  # so far
                stuck.let_go.set()
    finally:
        server.unsubscribe()  # type: ignore[attr-defined]


def test_many_threads_may_close_a_server_that_a_hook_blocks() -> None:
    with blocked() as (_, server, _sock):
        server.configure(drain_timeout=SHORT)
        in_threads(server.server_close, [()] * 4)
        assert not server.listening


def test_a_second_stop_with_less_time_shortens_the_wait_of_a_third() -> None:
    with blocked() as (_, server, _sock):
        with in_thread(server.stop, LONG), in_thread(server.stop, LONG):
            wait_until(lambda: len(server._life.changed._waiters) == 1)  # type: ignore[attr-defined]
            server.close()


def test_the_patience_of_a_stop_ends_though_the_accepting_thread_does_not() -> None:
    with blocked() as (stuck, server, sock):
        with in_thread(server.stop, LONG, SHORT):
            wait_until(lambda: server._connections._draining)
            stuck.let_go.set()
            assert receive_all(sock) == b""


def test_a_server_that_is_full_is_stopped_in_time() -> None:
    with busy_client() as (server, sock), client(server):
        server._accept_loop.back_off.longest = LONG
        assert server.stop(SHORT) == (0, 1)
        assert receive_all(sock) == b""


@contextlib.contextmanager
def busy_client(**options: Any) -> Iterator[tuple[netkit.Server, socket.socket]]:
    """A server for one client, whose handler sees no end of input."""
    go_on = threading.Event()

    def busy(conn: netkit.Connection) -> None:
        conn.write("?")
        assert go_on.wait(PATIENCE)

    server = netkit.create_server(busy, max_connections=1, **options).listen(0, "127.0.0.1")
    with server, client(server) as sock:
        assert sock.recv(1) == b"?"
        try:
            yield server, sock
        finally:
            go_on.set()


def test_without_block_on_close_a_hook_that_blocks_is_not_waited_for() -> None:
    with blocked() as (stuck, server, sock):
        server.block_on_close = False
        server.configure(drain_timeout=SHORT)
        server.server_close()
        assert not server.listening
        stuck.let_go.set()
        sock.sendall(b"hello")
        assert sock.recv(5) == b"hello"


# Threads that cannot be started


def fails_to_start(
    monkeypatch: pytest.MonkeyPatch, name: str, times: int = 1, then: Any = None
) -> list[str]:
    """Have the start of threads of this name fail; how often is the length of what is returned."""
    start = threading.Thread.start
    failed: list[str] = []

    def fail(thread: threading.Thread) -> None:
        if thread.name.startswith(name) and len(failed) < times:
            failed.append(thread.name)
            if then is not None:
                then()
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fail)
    return failed


def relay_through(server: netkit.Server) -> None:
    ours, theirs = socket.socketpair()
    with theirs, netkit.Connection(ours) as conn:
        theirs.sendall(b"hello")
        theirs.shutdown(socket.SHUT_WR)
        with netkit.connect(server.server_address[1], "127.0.0.1") as other:
            assert netkit.relay(conn, other) == (5, 5)


def connect_by_name(server: netkit.Server) -> None:
    with netkit.connect(server.server_address[1], "localhost", family=4) as conn:
        conn.end("hello")
        assert conn.read() == b"hello"


def exchange_hello(server: netkit.Server) -> None:
    assert exchange(server, b"hello") == b"hello"


@pytest.mark.parametrize(
    ("name", "use", "raises"),
    [
        ("Thread-", exchange_hello, None),  # a client's
        ("netkit-relay", relay_through, (RuntimeError, BlockingIOError)),
        ("netkit-resolve", connect_by_name, (RuntimeError, BlockingIOError)),
    ],
)
def test_after_a_thread_could_not_be_started_everything_works_again(
    name: str, use: Any, raises: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with silent_log(), echo_server(lifetime=LONG) as server:
        failed = fails_to_start(monkeypatch, name)
        with pytest.raises(raises) if raises else contextlib.nullcontext():
            use(server)
        assert failed
        use(server)
        assert server.stop(LONG).cut == 0


@pytest.mark.parametrize("stopped", [False, True])
def test_a_server_whose_thread_cannot_be_started_may_be_stopped_or_started_again(
    stopped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a signal handler, too, that comes just before the thread is started."""
    server = echo_server()
    reports: list[netkit.StopReport] = []
    failed = fails_to_start(
        monkeypatch,
        "netkit-accept",
        then=(lambda: reports.append(server.stop(LONG))) if stopped else None,
    )
    with pytest.raises(RuntimeError, match="can't start new thread"):
        server.start()
    assert failed
    if stopped:
        assert reports == [(0, 0)]
        server.listen(0, "127.0.0.1")
    exchange_hello(server.start())
    assert server.stop(LONG).cut == 0


def test_a_signal_handler_may_stop_a_server_whose_thread_is_about_to_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = threading.Thread.start
    reports: list[netkit.StopReport] = []

    def stop_first(thread: threading.Thread) -> None:
        reports.append(server.stop(LONG))
        start(thread)

    server = echo_server()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", stop_first)
        server.start()
    assert reports == [(0, 0)]
    assert server._accept_loop.background is not None
    server._accept_loop.background.join(PATIENCE)
    exchange_hello(server.listen(0, "127.0.0.1").start())
    server.stop(LONG)


def test_a_start_that_is_interrupted_leaves_no_thread_that_serves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        raise KeyboardInterrupt

    server = echo_server()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            server.start()
    wait_until(lambda: not server._accept_loop.under_way)
    exchange_hello(server.start())
    server.stop(LONG)


def test_a_thread_that_comes_after_its_turn_has_ended_accepts_nobody() -> None:
    server = echo_server()
    selector = server._serving.begin()
    assert selector is not None
    server._accept_loop.end(selector)
    server._serving.run(selector, 0.5)
    server.close()


def test_while_no_thread_can_be_started_a_stop_returns_a_report(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with silent_log(), echo_server() as server:
        failed = fails_to_start(monkeypatch, "Thread-", times=1_000_000)
        with client(server) as sock:
            wait_until(lambda: failed)
            assert server.stop(SHORT).cut <= 1
            with contextlib.suppress(ConnectionResetError):
                assert receive_all(sock) == b""
