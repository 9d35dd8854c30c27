"""What a server does with a client when something on its way is refused or missing."""

from __future__ import annotations

import contextvars
import errno
import socket
import socketserver
import threading
from typing import Any

import pytest
from support import (
    PATIENCE,
    client,
    exchange,
    exchange_and_fail,
    observed,
    receive_all,
    serving,
    serving_forever,
    silent_log,
    tcp_pair,
    until_reset,
    wait_until,
)

import netkit
from netkit.core import events
from netkit.net import bind
from netkit.server.accept_loop import AcceptLoop


def test_a_client_that_is_not_verified_is_not_scheduled() -> None:
    class Scheduling(netkit.Server):
        scheduled = 0

        def verify_request(self, request: Any, client_address: Any) -> bool:
            return False

        def process_request(self, request: Any, client_address: Any) -> None:
            self.scheduled += 1

    server = Scheduling(("127.0.0.1", 0), netkit.EchoHandler)
    with serving_forever(server):
        assert exchange(server, b"") == b""
        assert server.scheduled == 0


class Bare(socketserver.BaseRequestHandler):
    """Reads the bare socket."""


@pytest.mark.parametrize("handler", [netkit.EchoHandler, Bare])
def test_a_server_whose_interpreter_exits_emits_one_event_and_ends(
    monkeypatch: pytest.MonkeyPatch, handler: Any
) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    server = netkit.Server(("127.0.0.1", 0), handler)
    with silent_log(), observed(events.ListenerLost, events.HandlerFailed) as seen:
        with serving_forever(server) as thread:
            wait_until(lambda: server._accept_loop.under_way)
            monkeypatch.setattr(threading.Thread, "start", start)
            with client(server) as sock:
                assert receive_all(sock) == b""
            thread.join()
            monkeypatch.undo()
    assert [type(event) for event in seen] == [events.ListenerLost]


def test_a_server_that_cannot_start_its_thread_can_be_started_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    server = netkit.create_server(netkit.EchoHandler).listen(0, "127.0.0.1")
    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        server.start()
    monkeypatch.undo()
    with server:
        assert exchange(server, b"hello") == b"hello"


def test_handle_request_returns_after_a_client_that_has_gone_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> Any:
        raise ConnectionAbortedError

    with netkit.Server(("127.0.0.1", 0), netkit.EchoHandler) as server, client(server):
        monkeypatch.setattr(server, "get_request", fail)
        server.handle_request()
    assert server.connections == ()


@pytest.mark.parametrize("serve", ["start", "handle_request"])
def test_a_shutdown_before_the_server_ever_served_counts_once(serve: str) -> None:
    with netkit.Server(("127.0.0.1", 0), netkit.EchoHandler) as server:
        server.shutdown()
        getattr(server, serve)()  # returns at once
        with serving_forever(server):
            assert exchange(server, b"hello") == b"hello"


@pytest.mark.parametrize("serve", ["serve_forever", "handle_request", "start", "__iter__"])
def test_a_signal_handler_that_raises_as_soon_as_the_loop_has_begun_ends_the_loop(
    serve: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: netkit.Server) -> None:
        raise KeyboardInterrupt

    with netkit.Server(("127.0.0.1", 0), netkit.EchoHandler) as server:
        with monkeypatch.context() as patch:
            patch.setattr("netkit.server.serving.close_at_exit", interrupt)
            with pytest.raises(KeyboardInterrupt):
                list(getattr(server, serve)())
        assert not server._accept_loop.under_way
        server.stop()
        assert not server.listening


def test_a_hook_that_serves_again_fails_and_the_server_goes_on() -> None:
    class Again(netkit.Server):
        def service_actions(self) -> None:
            with pytest.raises(netkit.ServerStateError, match="serving already"):
                self.start()
            raised.set()

    raised = threading.Event()
    server = Again(("127.0.0.1", 0), netkit.EchoHandler)
    with serving_forever(server):
        assert exchange(server, b"hello") == b"hello"  # after each client the hook is called
        assert raised.wait(PATIENCE)
        assert exchange(server, b"hello") == b"hello"


def test_a_closed_server_is_not_bound_while_it_looks_up_its_next_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def look_up(*_: Any) -> Any:
        with pytest.raises(netkit.ServerStateError, match="not bound"):
            server.start()
        return found(*_)

    found = bind.candidates
    server = netkit.create_server(netkit.EchoHandler).listen(0, "127.0.0.1")
    server.close()
    monkeypatch.setattr(bind, "candidates", look_up)
    with server.listen(0, "127.0.0.1"):
        assert exchange(server, b"hello") == b"hello"


def test_queued_clients_are_served_though_a_stop_runs_out_of_descriptors() -> None:
    class Short(netkit.Server):
        failures = 0

        def get_request(self) -> tuple[socket.socket, Any]:
            if self.failures:
                self.failures -= 1
                raise OSError(errno.EMFILE, "Too many open files")
            return super().get_request()

    server = Short(("127.0.0.1", 0), netkit.EchoHandler)
    server._accept_loop.back_off.longest = 0.1
    with silent_log(), serving_forever(server) as thread:
        assert exchange(server, b"hello") == b"hello"
        server.shutdown()
        thread.join()
        with client(server) as queued:
            queued.sendall(b"late")
            queued.shutdown(socket.SHUT_WR)
            server.failures = 1
            with observed(events.AcceptPaused) as paused:
                server.stop()
            assert len(paused) == 1
            assert receive_all(queued) == b"late"


def test_a_closed_server_does_not_start_even_if_it_never_served() -> None:
    server = netkit.create_server(netkit.EchoHandler).listen(0, "127.0.0.1")
    server.close()
    with pytest.raises(netkit.ServerStateError, match="the server is closed"):
        server.start()


def test_listen_closes_the_socket_that_was_not_bound() -> None:
    server = netkit.Server(("127.0.0.1", 0), netkit.EchoHandler, bind_and_activate=False)
    unbound = server.socket
    with server.listen(0, "127.0.0.1"):
        assert unbound.fileno() == -1
        assert exchange(server, b"hello") == b"hello"


def test_a_stop_may_have_more_time_than_the_option_gives() -> None:
    release = threading.Event()

    def slow(conn: netkit.Connection) -> None:
        release.wait(PATIENCE)
        conn.write("done")

    with serving(slow, drain_timeout=0.01) as server, client(server) as sock:
        wait_until(lambda: server.connection_count == 1)
        threading.Timer(0.2, release.set).start()
        assert server.stop(PATIENCE).cut == 0
        assert receive_all(sock) == b"done"


def test_the_local_address_of_a_connection_is_known_for_each_listener() -> None:
    names: list[Any] = []

    def note(conn: netkit.Connection) -> None:
        names.append((conn.local_address, conn.local_port, conn.local_family))

    for host in ("127.0.0.1", "0.0.0.0"):
        with netkit.create_server(note).listen(0, host) as server:
            port = server.server_address[1]
            with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as sock:
                assert receive_all(sock) == b""
        assert names.pop() == ("127.0.0.1", port, "IPv4")


def test_a_socket_from_elsewhere_is_served_like_one_that_was_accepted() -> None:
    server = netkit.create_server(netkit.EchoHandler, max_connections=0)
    with tcp_pair() as (ours, peer):
        peer.sendall(b"x")
        peer.shutdown(socket.SHUT_WR)
        server.finish_request(ours, ours.getpeername())
        server.shutdown_request(ours)
        assert receive_all(peer) == b"x"
        assert ours.fileno() < 0
    assert not server._admission._taken


def test_a_context_variable_of_one_client_does_not_reach_the_next() -> None:
    user = contextvars.ContextVar("user", default="nobody")
    threads: list[int] = []

    def handler(conn: netkit.Connection) -> None:
        threads.append(threading.get_ident())
        conn.write(user.get())
        user.set(conn.read().decode())

    with serving(handler) as server:
        while len(threads) == len(set(threads)):  # until one thread has served two clients
            assert exchange(server, b"somebody") == b"nobody"


class Stop(BaseException):
    """Of a program's own, and no Exception."""


def test_input_in_the_text_of_an_exception_reaches_no_terminal(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def handler(conn: netkit.Connection) -> None:
        raise Stop(conn.readline().decode())

    with serving(handler) as server:
        assert exchange_and_fail(server, b"\x1b]0;title\x07\r\x1b[2K forged\n") == b""
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "\x1b" not in printed.err
    assert "Exception in thread" not in printed.err


def failing_once(hook: str, kind: type[BaseException], **attributes: Any) -> Any:
    """A server class whose `hook` raises the first time."""

    def fail(server: Any, *arguments: Any) -> Any:
        if server.failures:
            server.failures -= 1
            raise kind("on purpose")
        return getattr(netkit.Server, hook)(server, *arguments)

    attributes |= {hook: fail, "failures": 1}
    return type(netkit.Server)("Failing", (netkit.Server,), attributes)


@pytest.mark.parametrize("kind", [ValueError, Stop, SystemExit])
@pytest.mark.parametrize("hook", ["verify_request", "process_request_thread", "shutdown_request"])
def test_a_hook_that_raises_in_a_clients_thread_is_logged_and_ends_that_client_alone(
    hook: str, kind: type[BaseException]
) -> None:
    kinds = (events.HookFailed, events.HandlerFailed)
    server = failing_once(hook, kind)(("127.0.0.1", 0), netkit.EchoHandler)
    with silent_log(), observed(*kinds) as told, serving_forever(server):
        with client(server) as sock:
            sock.shutdown(socket.SHUT_WR)
            assert receive_all(sock) == b""
        assert exchange(server, b"hello") == b"hello"
        wait_until(lambda: not server.connections)
    assert [str(event.error) for event in told] == ["on purpose"]


def test_ctrl_c_in_a_client_that_the_main_thread_serves_ends_the_program() -> None:
    def interrupted(conn: netkit.Connection) -> None:
        raise KeyboardInterrupt

    class Sequential(netkit.Server):
        def process_request(self, request: Any, client_address: Any) -> None:
            self.process_request_thread(request, client_address)

    with Sequential(("127.0.0.1", 0), interrupted) as server, client(server) as sock:
        with observed(events.HandlerFailed) as told, pytest.raises(KeyboardInterrupt):
            server.handle_request()
        assert until_reset(sock) == b""
    assert told == []


def test_a_client_is_closed_though_the_report_of_its_failed_start_ends_the_program() -> None:
    class Strict(netkit.Server):
        def process_request(self, request: Any, client_address: Any) -> None:
            raise ValueError

        def handle_error(self, request: Any, client_address: Any) -> None:
            raise SystemExit

    with Strict(("127.0.0.1", 0), netkit.EchoHandler, max_connections=1) as server:
        with client(server) as sock:
            with pytest.raises(SystemExit):
                server.handle_request()
            assert receive_all(sock) == b""
        assert not server.connections
        assert not server._admission._taken


@pytest.mark.parametrize("kind", [Stop, SystemExit])
@pytest.mark.parametrize(
    "hook", ["get_request", "process_request", "service_actions", "handle_timeout"]
)
def test_a_server_in_the_background_survives_any_exception_of_a_hook(
    hook: str, kind: type[BaseException]
) -> None:
    timeout = 0.01 if hook == "handle_timeout" else None
    kinds = (events.HookFailed, events.AcceptPaused)
    server = failing_once(hook, kind, timeout=timeout)(None, netkit.EchoHandler)
    with silent_log(), observed(*kinds) as told, server.listen(0, "127.0.0.1"):
        exchange(server, b"")
        wait_until(lambda: told)
        assert exchange(server, b"hello") == b"hello"
    assert [type(event.error) for event in told] == [kind]


def test_a_hook_that_ends_the_program_ends_serve_forever_in_its_caller() -> None:
    class Ends(netkit.Server):
        def service_actions(self) -> None:
            raise SystemExit(3)

    with Ends(("127.0.0.1", 0), netkit.EchoHandler) as server, pytest.raises(SystemExit):
        server.serve_forever(0.01)


@pytest.mark.parametrize("own_scheduling", [False, True])
def test_a_client_is_not_verified_by_a_coroutine(own_scheduling: bool) -> None:
    async def verify_request(request: Any, client_address: Any) -> bool:
        return True

    class Scheduling(netkit.Server):
        def process_request(self, request: Any, client_address: Any) -> None:
            super().process_request(request, client_address)

    kind = Scheduling if own_scheduling else netkit.Server
    server = kind(("127.0.0.1", 0), netkit.EchoHandler)
    server.verify_request = verify_request  # type: ignore[assignment,method-assign]
    with silent_log(), observed(events.HandlerFailed) as failures, serving_forever(server):
        with client(server) as sock:
            assert receive_all(sock) == b""
    (failure,) = failures
    assert "verify_request has returned <coroutine object" in str(failure.error)


def test_a_server_whose_start_was_interrupted_may_be_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(thread: threading.Thread) -> None:
        threads.append(thread)
        raise KeyboardInterrupt

    start = threading.Thread.start
    threads: list[threading.Thread] = []
    with netkit.create_server(netkit.EchoHandler).listen(0, "127.0.0.1") as server:
        server.shutdown()
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", interrupted)
            with pytest.raises(KeyboardInterrupt):
                server.start()
        start(threads[0])  # which was just about to
        threads[0].join(PATIENCE)
        server.start()
        assert exchange(server, b"x") == b"x"


def test_a_server_may_be_shut_down_before_the_accepting_thread_runs_and_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    take_over = AcceptLoop.take_over

    def late(loop: AcceptLoop, selector: Any) -> bool:
        wait_until(lambda: selector.stopped)
        return take_over(loop, selector)

    with netkit.create_server(netkit.EchoHandler).listen(0, "127.0.0.1") as server:
        server.shutdown()
        with monkeypatch.context() as patch:
            patch.setattr(AcceptLoop, "take_over", late)
            server.start()
            server.shutdown()
        server.start()
        assert exchange(server, b"x") == b"x"


def test_a_stop_before_the_accepting_thread_runs_is_complete(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`start` begins the loop in its own thread, which is not the one that accepts."""
    stopped = threading.Event()
    take_over = AcceptLoop.take_over

    def late(loop: AcceptLoop, selector: Any) -> bool:
        stopped.wait(0.2)  # longer than `start` takes to return, and the stop waits for this
        return take_over(loop, selector)

    monkeypatch.setattr(AcceptLoop, "take_over", late)
    server = netkit.create_server(netkit.EchoHandler).listen(0, "127.0.0.1")
    with client(server):
        server.start()
        assert server.stop(PATIENCE) == (1, 0)
    stopped.set()
    assert not server.listening
