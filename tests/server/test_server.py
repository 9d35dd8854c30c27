"""The server as Node's users know it: listening, serving in the background, stopping."""

from __future__ import annotations

import contextlib
import errno
import inspect
import logging
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import (
    PATIENCE,
    client,
    exchange,
    exchange_and_fail,
    in_thread,
    in_threads,
    needs_ipv6,
    observed,
    receive_all,
    receive_exactly,
    reset,
    serving,
    serving_forever,
    silent_log,
    wait_until,
)

import netkit
from netkit.core import events

Handler = Callable[[netkit.Connection], Any]


@pytest.fixture
def port_in_use() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock.getsockname()[1]


class Blocked:
    """A handler that writes at its beginning and its end, and ends when it is released."""

    def __init__(self) -> None:
        self.released = threading.Event()

    def __call__(self, conn: netkit.Connection) -> None:
        conn.write("?")
        assert self.released.wait(PATIENCE)
        conn.write("!")


# Listening


def test_listen_returns_the_server_which_is_bound_then() -> None:
    server = netkit.create_server(netkit.EchoHandler)
    assert (server.listening, server.address) == (False, None)
    assert (server.connections, server.connection_count) == ((), 0)
    assert server.listen(0, "127.0.0.1") is server
    with server:
        assert server.listening
        assert isinstance(server.address, netkit.SocketAddress)
        assert server.address == netkit.SocketAddress("127.0.0.1", server.address.port, "IPv4")
        assert server.address.port > 0
        assert server.server_address == ("127.0.0.1", server.address.port)
        assert str(server.address) == f"127.0.0.1:{server.address.port}"


def test_a_listening_server_has_clients_wait_until_it_serves() -> None:
    server = netkit.create_server(netkit.EchoHandler).listen(0, "127.0.0.1")
    with client(server) as sock:
        sock.sendall(b"early")
        with server:
            assert receive_exactly(sock, 5) == b"early"


@pytest.mark.parametrize("serves", [True, False])
def test_a_stopped_server_has_no_address_and_refuses_clients(serves: bool) -> None:
    server = netkit.create_server(netkit.EchoHandler).listen(0, "127.0.0.1")
    if serves:
        server.start()
    port = server.server_address[1]
    assert server.stop() == (0, 0)
    assert (server.listening, server.address) == (False, None)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_listening_twice_is_an_error_that_says_where_it_listens() -> None:
    with serving(netkit.EchoHandler) as server:
        text = f"^the server is listening on {server.address}$"
        with pytest.raises(netkit.ServerStateError, match=text):
            server.listen(0, "127.0.0.1")
        assert exchange(server, b"still there") == b"still there"


def test_listening_while_the_server_stops_is_an_error() -> None:
    def handler(conn: netkit.Connection) -> None:
        conn.write("?")
        conn.read()
        with pytest.raises(netkit.ServerStateError, match=f"^the server is stopping on {where}$"):
            conn.server.listen(0, "127.0.0.1")
        ended.set()

    ended = threading.Event()
    with serving(handler) as server, client(server) as sock:
        where = server.address
        assert sock.recv(1) == b"?"
        server.stop()
    assert ended.is_set()


def test_a_closed_server_can_listen_and_serve_again_and_again() -> None:
    server = netkit.create_server(netkit.EchoHandler)
    for _ in range(3):
        with server.listen(0, "127.0.0.1"), client(server) as sock:
            for data in (b"a", b"b"):  # the stop of the life before does not end its input
                sock.sendall(data)
                assert sock.recv(1) == data
            assert server.connection_count == 1
            assert server.stop() == (1, 0)
            assert sock.recv(1) == b""
        assert not server.listening


def test_a_server_that_was_closed_before_it_ever_listened_still_can() -> None:
    handler = Blocked()
    server = netkit.create_server(handler)
    server.stop(0)
    with server.listen(0, "127.0.0.1"), client(server) as sock:
        assert sock.recv(1) == b"?"
        with in_thread(server.stop):  # with time again: its handler is not cut
            wait_until(lambda: not server.listening, "stopping")
            handler.released.set()
        assert receive_all(sock) == b"!"


def test_the_error_for_a_port_in_use_names_it_and_the_server_may_listen_elsewhere(
    port_in_use: int,
) -> None:
    text = f"cannot listen on 127.0.0.1:{port_in_use}: address already in use (EADDRINUSE)"
    server = netkit.create_server(netkit.EchoHandler)
    for bind in (
        lambda: server.listen(port_in_use, "127.0.0.1"),
        lambda: netkit.Server(("127.0.0.1", port_in_use), netkit.EchoHandler),
    ):
        with observed() as seen, pytest.raises(OSError, match="EADDRINUSE") as caught:
            bind()
        error: Any = caught.value
        assert (error.errno, error.strerror) == (errno.EADDRINUSE, text)
        assert (error.address, error.port, error.syscall) == ("127.0.0.1", port_in_use, "listen")
        assert seen == []
    assert (server.listening, server.address) == (False, None)
    with server.listen(0, "127.0.0.1"):
        assert exchange(server, b"hello") == b"hello"


@pytest.mark.parametrize("port", ["0", "00", 0])
def test_port_0_in_any_spelling_is_a_free_one(port: int | str) -> None:
    with netkit.create_server(netkit.EchoHandler).listen(port, "127.0.0.1") as server:
        assert isinstance(server.address, netkit.SocketAddress)
        assert server.address.port > 0


@pytest.mark.parametrize(
    ("port", "kind"), [(65536, ValueError), ("abc", ValueError), (True, TypeError)]
)
def test_an_invalid_port_is_refused(port: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="port must be a number from 0 to 65535, not "):
        netkit.create_server(netkit.EchoHandler).listen(port, "127.0.0.1")
    with pytest.raises(kind, match="port must be a number from 0 to 65535, not "):
        netkit.Server(("127.0.0.1", port), netkit.EchoHandler)


def test_the_error_for_a_host_that_does_not_resolve_names_it() -> None:
    server = netkit.create_server(netkit.EchoHandler)
    with pytest.raises(socket.gaierror, match="listen on no such host:8080: ") as caught:
        server.listen(8080, "no such host")
    error: Any = caught.value
    assert (error.address, error.port, error.syscall) == ("no such host", 8080, "listen")
    assert not server.listening


def test_a_name_is_resolved() -> None:
    with netkit.create_server(netkit.EchoHandler).listen(0, "localhost") as server:
        assert server.server_address[0] in ("127.0.0.1", "::1")
        assert exchange(server, b"x") == b"x"


@needs_ipv6
@pytest.mark.parametrize("host", [None, "", "*"])
def test_without_a_host_ipv4_and_ipv6_clients_are_served_by_one_listener(host: str | None) -> None:
    server = netkit.create_server(lambda conn: conn.end(f"{conn.peer} {conn.remote_family}"))
    with server.listen(0, host):
        port = server.server_address[1]
        assert server.address == netkit.SocketAddress("::", port, "IPv6")
        for address, shown in ("127.0.0.1", "127.0.0.1:{} IPv4"), ("::1", "[::1]:{} IPv6"):
            with socket.create_connection((address, port), PATIENCE) as sock:
                mine = sock.getsockname()[1]
                assert receive_all(sock) == shown.format(mine).encode()


@needs_ipv6
def test_an_ipv6_address_is_bound_as_it_is() -> None:
    with netkit.create_server(netkit.EchoHandler).listen(0, "::1") as server:
        port = server.server_address[1]
        assert str(server.address) == f"[::1]:{port}"
        assert exchange(server, b"x") == b"x"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


class NoIPv6(socket.socket):
    """As on a machine whose kernel has no IPv6."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        if arguments[:1] == (socket.AF_INET6,):
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        super().__init__(*arguments, **named)


class DisabledIPv6(socket.socket):
    """As on a machine where IPv6 is switched off."""

    def bind(self, address: Any) -> None:
        if self.family == socket.AF_INET6:
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        super().bind(address)


@pytest.mark.parametrize("without_ipv6", [NoIPv6, DisabledIPv6])
def test_without_ipv6_every_ipv4_address_is_served(
    monkeypatch: pytest.MonkeyPatch, without_ipv6: type[socket.socket]
) -> None:
    monkeypatch.setattr(socket, "socket", without_ipv6)
    with observed(events.Listening) as seen:
        with netkit.create_server(netkit.EchoHandler).listen() as server:
            port = server.server_address[1]
            assert server.address == netkit.SocketAddress("0.0.0.0", port, "IPv4")
            assert exchange(server, b"hello") == b"hello"
            assert server.stop().cut == 0
    assert seen == [events.Listening(f"0.0.0.0:{port}")]


@needs_ipv6
def test_a_port_in_use_is_not_tried_on_ipv4_alone() -> None:
    with netkit.create_server(netkit.EchoHandler).listen() as server:
        port = server.server_address[1]
        text = rf"cannot listen on \[::\]:{port}: .* \(EADDRINUSE\)"
        with pytest.raises(OSError, match=text):
            netkit.create_server(netkit.EchoHandler).listen(port)


@pytest.mark.parametrize(("given", "expected"), [(None, 511), (7, 7)])
def test_the_kernel_gets_the_backlog(
    monkeypatch: pytest.MonkeyPatch, given: int | None, expected: int
) -> None:
    told: list[int] = []
    listen = socket.socket.listen
    listener = type("Listener", (socket.socket,), {})
    listener.listen = lambda self, backlog: (told.append(backlog), listen(self, backlog))  # type: ignore[attr-defined]
    monkeypatch.setattr(socket, "socket", listener)
    netkit.create_server(netkit.EchoHandler).listen(0, "127.0.0.1", backlog=given).close()
    assert told == [expected]


# Serving


def test_start_returns_the_server_which_serves_in_a_thread_named_after_its_address() -> None:
    server = netkit.create_server(netkit.EchoHandler).listen(0, "127.0.0.1")
    try:
        assert server.start() is server
        names = [thread.name for thread in threading.enumerate()]
        assert f"netkit-accept {server.address}" in names
        assert exchange(server, b"x") == b"x"
    finally:
        server.stop()


def test_of_two_starts_the_second_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(netkit.EchoHandler) as server:
        with pytest.raises(netkit.ServerStateError, match=r"serving already, on 127.0.0.1:"):
            server.start()
        assert exchange(server, b"x") == b"x"
    server.listen(0, "127.0.0.1")
    call_before_the_next_turn(server.start, monkeypatch)
    with pytest.raises(netkit.ServerStateError, match=r"serving already, on 127.0.0.1:"):
        server.start()
    assert exchange(server, b"x") == b"x"
    server.stop()


def call_before_the_next_turn(call: Callable[[], object], patch: pytest.MonkeyPatch) -> None:
    """Another thread calls `call`, once, just before a server begins to accept."""

    def check_threads() -> None:
        patch.undo()
        with in_thread(call):
            pass

    patch.setattr("netkit.server.serving.check_threads", check_threads)


def test_a_server_that_is_stopped_as_it_begins_to_serve_does_not_serve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = netkit.create_server(netkit.EchoHandler).listen(0, "127.0.0.1").start()
    server.shutdown()  # so that no stop is remembered for the first turn
    call_before_the_next_turn(server.stop, monkeypatch)
    with pytest.raises(netkit.ServerStateError, match=r"closed; call listen\(\)"):
        server.serve_forever()


@pytest.mark.parametrize("is_started", [False, True])
def test_a_with_block_serves_what_listen_has_bound_and_closes_it(is_started: bool) -> None:
    server = netkit.create_server(netkit.EchoHandler).listen(0, "127.0.0.1")
    with server.start() if is_started else server:
        assert exchange(server, b"x") == b"x"
    assert not server.listening
    assert server.fileno() == -1


def test_a_with_block_leaves_serving_to_the_program_as_in_socketserver() -> None:
    with netkit.Server(("127.0.0.1", 0), netkit.EchoHandler) as server:
        assert not any(thread.name.startswith("netkit-accept") for thread in threading.enumerate())
        with serving_forever(server):
            assert exchange(server, b"x") == b"x"


def waits(thread: threading.Thread) -> bool:
    """Whether the thread is in `Condition.wait`."""
    frame = sys._current_frames().get(thread.ident or 0)
    return frame is not None and frame.f_code is threading.Condition.wait.__code__


def test_a_second_serve_forever_waits_until_the_first_has_ended() -> None:
    with netkit.Server(("127.0.0.1", 0), netkit.EchoHandler) as server:
        with serving_forever(server) as first:
            assert exchange(server, b"x") == b"x"
            with serving_forever(server) as second:
                wait_until(lambda: waits(second), "waiting")
                assert exchange(server, b"y") == b"y"
                server.shutdown()
                for thread in (first, second):
                    thread.join(PATIENCE)
                    assert not thread.is_alive()


def test_connections_are_those_that_are_open_now() -> None:
    with serving(netkit.EchoHandler) as server:
        with client(server) as one, client(server) as other:
            wait_until(lambda: server.connection_count == 2, "both")
            ports = {sock.getsockname()[1] for sock in (one, other)}
            assert {conn.remote_port for conn in server.connections} == ports
            assert all(conn.server is server for conn in server.connections)
            other.close()
            wait_until(lambda: server.connection_count == 1, "one")
            (left,) = server.connections
            assert left.remote_port == one.getsockname()[1]
        wait_until(lambda: server.connection_count == 0, "none")


def test_each_of_two_hundred_clients_gets_its_own_bytes() -> None:
    at_once = threading.Barrier(201)

    def handler(conn: netkit.Connection) -> None:
        at_once.wait(PATIENCE)
        for chunk in conn:
            conn.write(chunk)

    def talk(number: int) -> None:
        with client(server) as sock:
            for turn in range(5):
                message = b"%d.%d " % (number, turn) * number
                sock.sendall(message)
                assert receive_exactly(sock, len(message)) == message

    with observed(events.ConnectionClosed) as closed, serving(handler) as server:
        with in_thread(at_once.wait, PATIENCE):
            in_threads(talk, [(number,) for number in range(200)])
    assert len({event.id for event in closed}) == len(closed) == 200
    sizes = sorted(5 * number * len(f"{number}.0 ") for number in range(200))
    assert sorted(event.bytes_read for event in closed) == sizes
    assert sorted(event.bytes_written for event in closed) == sizes


def test_a_client_thread_is_named_after_its_connection_and_then_parked() -> None:
    handler = Blocked()
    with serving(handler) as server, client(server) as sock:
        assert sock.recv(1) == b"?"
        (conn,) = server.connections
        (thread,) = server._threads
        assert thread.name == f"netkit-{conn.id} {conn.peer}"
        assert thread.daemon
        handler.released.set()
        assert receive_all(sock) == b"!"
        sock.close()
        wait_until(lambda: thread.name == "netkit-parked", "parking")


def test_threads_are_used_again() -> None:
    threads: list[threading.Thread] = []

    def handler(conn: netkit.Connection) -> None:
        threads.append(threading.current_thread())

    with serving(handler) as server:
        for _ in range(30):
            exchange(server, b"")
            wait_until(lambda: all(t.name == "netkit-parked" for t in server._threads), "parking")
        assert len(threads) == 30
        assert len(set(threads)) < 10


@pytest.mark.parametrize("serve", ["serve_forever", "start", "handle_request"])
def test_a_server_that_has_a_socket_without_an_address_is_not_bound(serve: str) -> None:
    with netkit.Server(("127.0.0.1", 0), netkit.EchoHandler, bind_and_activate=False) as server:
        with pytest.raises(netkit.ServerStateError, match="the server is not bound"):
            getattr(server, serve)()


def test_a_stop_ends_though_the_program_has_closed_the_listener() -> None:
    with silent_log(), serving(netkit.EchoHandler) as server:
        assert exchange(server, b"x") == b"x"
        assert server.wait_for_connections(0, PATIENCE)
        with in_thread(os.close, server.socket.fileno()):
            pass
        assert server.stop(1) == (0, 0)
        assert server.stop(1) == (0, 0)
        assert not server.listening


# Handlers and options


def test_an_invalid_option_is_refused_and_named() -> None:
    with pytest.raises(ValueError, match="drain_timeout must be 0 or more seconds, not -1"):
        netkit.create_server(netkit.EchoHandler, drain_timeout=-1)
    with pytest.raises(TypeError, match="unknown option 'poll'; the options are profile, "):
        netkit.Server(("127.0.0.1", 0), netkit.EchoHandler, poll=1)


def test_a_wrong_handler_is_refused_before_anything_is_bound(port_in_use: int) -> None:
    with pytest.raises(TypeError, match="a handler must be a class or a function, not 'echo'"):
        netkit.Server(("127.0.0.1", port_in_use), "echo")


@pytest.mark.parametrize("value", [True, False, None])
def test_the_socket_options_reach_each_client(value: bool | None) -> None:
    def handler(conn: netkit.Connection) -> None:
        for level, name in (
            (socket.IPPROTO_TCP, socket.TCP_NODELAY),
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        ):
            conn.write(f"{bool(conn.socket.getsockopt(level, name))} ")

    options = {} if value is None else {"no_delay": value, "keep_alive": value}
    with serving(handler, **options) as server:
        assert exchange(server, b"").split() == [str(value is not False).encode()] * 2


def test_the_encoding_and_the_longest_line_are_those_of_the_options() -> None:
    def handler(conn: netkit.Connection) -> None:
        lines = conn.lines()
        with contextlib.suppress(netkit.LineTooLongError):
            next(lines)
        conn.write(next(lines))

    with serving(handler, encoding="latin1", max_line=3) as server:
        assert exchange(server, b"long\n\xe4\xf6\n") == b"\xe4\xf6"


# Stopping


def test_stop_is_idempotent_and_repeats_its_report() -> None:
    with serving(netkit.EchoHandler) as server, client(server) as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
        first = server.stop()
        assert first == (1, 0)
        assert server.stop() == first
        assert server.close() == first
        server.server_close()
        server.shutdown()


def test_many_threads_may_stop_at_once_and_all_get_the_same_report() -> None:
    handler = Blocked()
    reports: list[netkit.StopReport] = []
    with observed(events.Stopping, events.Stopped) as seen, serving(handler) as server:
        with client(server) as sock:
            assert sock.recv(1) == b"?"
            with contextlib.ExitStack() as stack:
                for _ in range(20):
                    stack.enter_context(in_thread(lambda: reports.append(server.stop())))
                wait_until(lambda: not server.listening, "stopping")
                assert reports == []
                handler.released.set()
            assert receive_all(sock) == b"!"
    assert reports == [(1, 0)] * 20
    assert [type(event) for event in seen] == [events.Stopping, events.Stopped]


def test_two_handlers_may_stop_their_server_at_the_same_time() -> None:
    both = threading.Barrier(2)

    def handler(conn: netkit.Connection) -> None:
        both.wait(PATIENCE)
        conn.server.stop()
        conn.write("done")

    with serving(handler) as server, client(server) as one, client(server) as other:
        assert receive_all(one) == b"done"
        assert receive_all(other) == b"done"


# Events and failures


def test_the_events_of_a_life_come_in_order_and_with_exact_counts() -> None:
    with observed() as seen, serving(lambda conn: conn.write(conn.readline() * 3)) as server:
        where = str(server.address)
        with client(server) as sock:
            peer = f"127.0.0.1:{sock.getsockname()[1]}"
            sock.sendall(b"hello\n")
            assert receive_all(sock) == b"hello\n" * 3
        wait_until(lambda: len(seen) == 3, "the report")
    listening, opened, closed, stopped = seen
    assert listening == events.Listening(where)
    assert opened == events.ConnectionOpened(opened.id, peer, where)
    assert isinstance(closed, events.ConnectionClosed)
    assert list(closed.as_dict().values())[:4] == [opened.id, peer, 6, 18]
    assert 0 <= closed.seconds < PATIENCE
    assert stopped == events.Stopped(0, 0)


def test_a_failing_handler_is_logged_once_with_id_and_peer_and_harms_no_other_client(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def handler(conn: netkit.Connection) -> None:
        raise ValueError(conn.readline().decode())

    with observed(events.HandlerFailed) as failures, serving(handler) as server:
        in_threads(lambda n: exchange_and_fail(server, b"%d\x1b\n" % n), [(n,) for n in range(50)])
    assert len({failure.id for failure in failures}) == 50
    assert {str(failure.error) for failure in failures} == {f"{n}\x1b\n" for n in range(50)}
    records = {record.getMessage(): record for record in caplog.records if record.exc_info}
    for failure in failures:
        text = str(failure.error).replace("\x1b\n", r"\x1b\n")
        record = records.pop(
            f"[{failure.id}] {failure.peer}: the handler failed: ValueError: {text}"
        )
        assert record.exc_info
        assert (record.levelno, record.exc_info[1]) == (logging.ERROR, failure.error)
    assert records == {}


def hang_up_while_reading(conn: netkit.Connection) -> None:
    conn.read(1)
    conn.write("?")
    conn.read()


def hang_up_while_writing(conn: netkit.Connection) -> None:
    conn.read(1)
    conn.write("?")
    while True:
        conn.write(b"x" * 65536)


@pytest.mark.parametrize("handler", [hang_up_while_reading, hang_up_while_writing])
def test_a_client_that_resets_is_no_failure_of_the_handler(
    handler: Handler, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "netkit")
    with observed(events.HandlerFailed, events.ClientFailed) as seen, serving(handler) as server:
        with client(server) as sock:
            sock.sendall(b"!")  # else it is a health check
            assert sock.recv(1) == b"?"
            peer = f"127.0.0.1:{sock.getsockname()[1]}"
            reset(sock)
        wait_until(lambda: seen, "the report")
    (failure,) = seen
    assert (type(failure), failure.peer) == (events.ClientFailed, peer)
    assert isinstance(failure.error, (ConnectionResetError, BrokenPipeError))
    (record,) = [record for record in caplog.records if peer in record.getMessage()]
    assert (record.levelno, record.exc_info) == (logging.INFO, None)
    assert re.match(rf"\[{failure.id}\] .*\w+Error: ", record.getMessage())


@pytest.mark.parametrize(
    "error", [ConnectionResetError(errno.ECONNRESET, "the database is gone"), TimeoutError("slow")]
)
def test_an_error_of_another_connection_is_a_failure_of_the_handler(error: Exception) -> None:
    def handler(conn: netkit.Connection) -> None:
        raise error

    def reads_the_socket(*_: Any) -> None:
        raise error

    for kind in (handler, reads_the_socket):
        with silent_log(), observed(events.HandlerFailed, events.ClientFailed) as seen:
            with serving(kind) as server, contextlib.suppress(ConnectionResetError):
                exchange(server, b"")
        assert [type(event) for event in seen] == [events.HandlerFailed]


def test_a_line_that_is_too_long_is_the_clients_fault() -> None:
    with observed(events.HandlerFailed, events.ClientFailed) as seen:
        with serving(lambda conn: conn.readline(), max_line=10) as server:
            assert exchange(server, b"x" * 100 + b"\n") == b""
    assert [type(event) for event in seen] == [events.ClientFailed]
    assert isinstance(seen[0].error, netkit.LineTooLongError)


ARGUMENTS: dict[str, tuple[Any, ...]] = {"wait_for_connections": (0,), "verify_request": (0, 0)}
NEED_A_LISTENER = ("serve_forever", "start", "handle_request", "__iter__")
NEED_A_SOCKET = ("fileno", "get_request", "server_bind", "server_activate")
PUBLIC_CALLS = [
    *(*NEED_A_LISTENER, *NEED_A_SOCKET, *ARGUMENTS),
    *("shutdown", "stop", "close", "server_close", "request_stop", "suspend", "resume"),
    *("configure", "reload", "reload_tls", "tls_context", "service_actions", "handle_timeout"),
]
# They are given a socket, or sockets: of another process, or of a client.
NOT_CALLED = {
    *("listen", "listen_on", "take_over", "share_places", "handle_error", "finish_request"),
    *("process_request", "process_request_thread", "shutdown_request", "close_request"),
}


def test_every_public_method_is_called_in_the_next_test() -> None:
    public = {name for name in dir(netkit.Server) if not name.startswith("_")}
    methods = {name for name in public if inspect.isfunction(getattr(netkit.Server, name))}
    assert methods == {*PUBLIC_CALLS, *NOT_CALLED} - {"__iter__"}


def call(server: netkit.Server, name: str) -> Any:
    if name == "__iter__":
        return list(server)
    return getattr(server, name)(*ARGUMENTS.get(name, ()))


@pytest.mark.parametrize("name", PUBLIC_CALLS)
def test_a_server_that_is_not_bound_says_so_or_does_what_it_can(name: str) -> None:
    server = netkit.create_server(netkit.EchoHandler)
    with observed() as seen:
        if name in NEED_A_LISTENER + NEED_A_SOCKET:
            with pytest.raises(netkit.ServerStateError, match="^the server is not bound; call lis"):
                call(server, name)
        else:
            call(server, name)
    assert seen == []
    assert not hasattr(server, "socket")
    assert not server.listening
    with server.listen(0, "127.0.0.1"):
        pass


@pytest.mark.parametrize("name", PUBLIC_CALLS)
def test_a_server_that_is_closed_says_so_or_does_what_it_can(name: str) -> None:
    with serving(netkit.EchoHandler) as server:
        pass
    if name in NEED_A_LISTENER:
        with pytest.raises(netkit.ServerStateError, match="^the server is closed; call listen"):
            call(server, name)
    elif name == "fileno":
        assert call(server, name) == -1
    elif name in NEED_A_SOCKET:
        with pytest.raises(OSError, match="descriptor") as caught:
            call(server, name)
        assert caught.value.errno == errno.EBADF
    else:
        call(server, name)


def test_a_server_that_is_stopping_accepts_no_client() -> None:
    stopping, go_on = threading.Event(), threading.Event()

    def handler(conn: netkit.Connection) -> None:
        stopping.set()
        assert go_on.wait(PATIENCE)

    with serving(handler) as server, client(server):
        assert stopping.wait(PATIENCE)
        with in_thread(server.stop, PATIENCE):
            wait_until(lambda: "stopping" in repr(server))
            wait_until(lambda: not server._accept_loop.under_way)
            for serve in (server.serve_forever, server.handle_request, lambda: list(server)):
                serve()
            go_on.set()


def test_an_error_as_the_accept_loop_begins_ends_it() -> None:
    def fail() -> None:
        raise ValueError("not ready")

    server = netkit.create_server(netkit.EchoHandler).listen(0, "127.0.0.1")
    server._serving.when_accepting = fail
    with pytest.raises(ValueError, match="not ready"):
        server.start()
    with server:
        assert exchange(server, b"x") == b"x"


def test_a_server_shows_where_it_is_in_its_life() -> None:
    class Mine(netkit.Server):
        pass

    server = Mine(None, netkit.EchoHandler)
    assert repr(server) == "<Mine not bound>"
    with server.listen(0, "127.0.0.1"):
        place = f"127.0.0.1:{server.server_address[1]}"
        assert repr(server) == f"<Mine listening on {place}, 0 connected>"
        with client(server):
            server.wait_for_connections(1)
            assert repr(server) == f"<Mine listening on {place}, 1 connected>"
            with in_thread(server.stop):
                wait_until(lambda: "stopping" in repr(server) or "closed" in repr(server))
    assert repr(server) == "<Mine closed>"
    with server.listen_on("127.0.0.1:0", "127.0.0.1:0"):
        assert re.fullmatch(
            r"<Mine listening on 127.0.0.1:\d+ and 1 more, 0 connected>", repr(server)
        )
