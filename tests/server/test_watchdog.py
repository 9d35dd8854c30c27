"""Connections that have lasted too long."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
import time
from typing import Any

import pytest
from support import PATIENCE, client, exchange, observed, receive_all, serving, wait_until

import netkit
from netkit.core import events
from netkit.server import watchdog


def test_a_connection_ends_when_its_time_is_over_and_the_log_says_why() -> None:
    with observed(events.ClientFailed) as failed:
        with serving(netkit.EchoHandler, lifetime=0.1) as server, client(server) as sock:
            sock.sendall(b"x")
            assert receive_all(sock) == b"x"
    assert [str(event.error).split("] ")[1] for event in failed] == [
        f"lifetime: the connection to {failed[0].peer} has lasted 0.1 seconds"
    ]


def test_a_server_that_listens_again_still_ends_connections_that_last_too_long() -> None:
    server = netkit.create_server(netkit.EchoHandler, lifetime=0.05)
    for _ in range(2):
        with server.listen(0, "127.0.0.1"), client(server) as sock:
            assert receive_all(sock) == b""
        assert not server._watchdog._thread


def test_a_handler_may_still_write_after_its_time_is_over_and_its_input_has_ended() -> None:
    def handler(conn: netkit.Connection) -> None:
        with pytest.raises(TimeoutError, match="lifetime"):
            conn.readline()
        assert conn.readline() == b""
        conn.write("bye\n")

    with observed(events.HandlerFailed) as failed:
        with serving(handler, lifetime=0.05) as server, client(server) as sock:
            assert receive_all(sock) == b"bye\n"
    assert failed == []


def test_a_handler_that_goes_on_is_cut_off() -> None:
    errors: list[OSError] = []

    def handler(conn: netkit.Connection) -> None:
        while True:
            try:
                conn.write(b"x" * 100)
                time.sleep(0.002)
            except OSError as error:
                errors.append(error)
                if len(errors) == 2:
                    raise

    with serving(handler, lifetime=0.05) as server:
        server._watchdog.last_word = 0.05
        with client(server) as sock:
            assert set(receive_all(sock)) == set(b"x")
    assert [str(error).split("lifetime")[-1][:1] for error in errors] == [":", ":"]


def test_a_write_that_the_client_does_not_read_ends_as_well() -> None:
    ended = threading.Event()

    def handler(conn: netkit.Connection) -> None:
        try:
            conn.write(bytes(50_000_000))
        except TimeoutError:
            ended.set()
            raise

    with serving(handler, lifetime=0.1) as server, client(server):
        assert ended.wait(PATIENCE)


def test_a_handler_that_reads_the_socket_itself_sees_the_end() -> None:
    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            assert self.rfile.read() == b""

    with observed(events.ClientFailed, events.HandlerFailed) as seen:
        with serving(Handler, lifetime=0.05) as server, client(server) as sock:
            assert receive_all(sock) == b""
    assert [type(event) for event in seen] == [events.ClientFailed]
    assert "lifetime" in str(seen[0].error)


def test_each_connection_ends_when_its_own_time_is_over() -> None:
    with serving(netkit.EchoHandler, lifetime=0.1) as server:
        for _ in range(3):
            with client(server) as sock:
                assert receive_all(sock) == b""
        assert exchange(server, b"x") == b"x"
        with client(server) as first:
            time.sleep(0.03)  # so that the second one is younger
            with client(server) as second:
                assert receive_all(first) == receive_all(second) == b""


def test_a_changed_lifetime_holds_for_new_connections() -> None:
    with serving(netkit.EchoHandler, lifetime=3600) as server, client(server) as first:
        server.wait_for_connections(1)
        server.configure(lifetime=0.05)
        with client(server) as second:
            assert receive_all(second) == b""
        server.configure(lifetime=None)
        with client(server) as third:
            third.sendall(b"x")
            assert third.recv(1) == b"x"
            server.configure(lifetime=0.1)
            with client(server) as fourth:
                assert receive_all(fourth) == b""
            for sock in (first, third):  # connected clients keep their lifetime
                sock.sendall(b"x")
                assert sock.recv(1) == b"x"


def test_connections_with_less_time_end_first_though_older_ones_stay() -> None:
    def handler(conn: netkit.Connection) -> None:
        for _ in range(2):
            with contextlib.suppress(TimeoutError):
                while True:
                    time.sleep(0.001)
                    conn.write(b"x" * 100)

    with serving(handler, lifetime=3600) as server, client(server) as first:
        server._watchdog.last_word = 0.05
        server.wait_for_connections(1)
        server.configure(lifetime=0.05)
        with client(server) as second, client(server) as third:
            for sock in (second, third):
                assert set(receive_all(sock)) == set(b"x")
        server.configure(lifetime=1800)
        with client(server) as fourth:
            assert fourth.recv(1) == first.recv(1) == b"x"
            server.wait_for_connections(2)


def test_after_the_end_no_connection_is_watched() -> None:
    watched = watchdog.Watchdog(list)
    watched.close()
    watched.watch(time.monotonic(), 5)
    assert watched._thread is None
    watched.close()


class Silent(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.recv(1)


def test_an_observer_of_the_end_of_one_may_stop_the_server_while_another_one_comes() -> None:
    """The client is accepted by the thread that the stop waits for, and is to be watched, too."""
    go_on = threading.Event()

    class Busy(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1)
            assert go_on.wait(PATIENCE)  # so that its thread does not accept the next client

    reports: list[netkit.StopReport] = []
    opened: list[object] = []
    server = netkit.create_server(Busy, lifetime=0.1).listen(0, "127.0.0.1")
    clients = contextlib.ExitStack()

    def stop(event: object) -> None:
        if isinstance(event, events.ConnectionOpened):
            opened.append(event)
        if isinstance(event, events.ClientFailed) and not reports:
            clients.enter_context(client(server))
            wait_until(lambda: len(opened) == 2)
            go_on.set()
            reports.append(server.stop(PATIENCE))

    unsubscribe = events.subscribe(stop)
    try:
        with server, clients:
            clients.enter_context(client(server))
            wait_until(lambda: reports)
    finally:
        unsubscribe()
    assert [report.cut for report in reports] == [0]


def test_a_connection_that_comes_while_others_are_ended_is_watched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timed_out = watchdog.timed_out
    server = netkit.create_server(netkit.EchoHandler, lifetime=0.05).listen(0, "127.0.0.1")

    def timed_out_while_another_comes(*arguments: Any) -> Any:
        if len(socks) == 1:
            socks.append(clients.enter_context(client(server)))
            wait_until(lambda: server._watchdog._look_again)
        return timed_out(*arguments)

    monkeypatch.setattr(watchdog, "timed_out", timed_out_while_another_comes)
    with server, contextlib.ExitStack() as clients:
        socks: list[socket.socket] = []
        socks.append(clients.enter_context(client(server)))
        assert receive_all(socks[0]) == b""
        wait_until(lambda: len(socks) == 2)
        assert receive_all(socks[1]) == b""


def test_after_a_thread_could_not_be_started_the_next_client_has_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = threading.Thread.start
    failed: list[str] = []

    def fail_once(thread: threading.Thread) -> None:
        if thread.name == "netkit-watchdog" and not failed:
            failed.append(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fail_once)
    with serving(netkit.EchoHandler, lifetime=0.1) as server:
        with client(server) as first:
            first.sendall(b"x")
            assert first.recv(1) == b"x"
            assert failed
            with client(server) as second:
                assert receive_all(second) == b""
            assert receive_all(first) == b""
        assert server.wait_for_connections(0, PATIENCE)
        assert server.stop() == (0, 0)


def test_a_client_whose_start_is_interrupted_with_that_of_the_thread_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(opened_at: float, lifetime: float) -> None:
        raise KeyboardInterrupt

    with netkit.create_server(netkit.EchoHandler, lifetime=5, max_connections=1) as server:
        server.listen(0, "127.0.0.1")
        monkeypatch.setattr(server._watchdog, "watch", interrupt)
        with client(server) as sock:
            with pytest.raises(KeyboardInterrupt):
                server.handle_request()
            assert receive_all(sock) == b""
        assert not server.connections
        assert not server._admission._taken


def test_a_start_that_is_interrupted_raises_and_the_thread_that_runs_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        raise KeyboardInterrupt

    watched = watchdog.Watchdog(list)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            watched.watch(time.monotonic(), 5)
    thread = watched._thread
    watched.close(PATIENCE)
    assert thread is not None
    assert not thread.is_alive()
