"""Programs that iterate over a server: ``for connection in server``."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import (
    PATIENCE,
    in_thread,
    observed,
    receive_all,
    receive_exactly,
    send_and_end,
    serving_forever,
    silent_log,
    wait_until,
)

import netkit
from netkit.core import events
from netkit.server.acceptor import Answer


def connected(where: Any) -> socket.socket:
    return socket.create_connection(where[:2], PATIENCE)


def ask(where: Any, data: bytes = b"hello") -> bytes:
    with connected(where) as sock:
        send_and_end(sock, data)
        return receive_all(sock)


def test_a_loop_takes_clients_one_by_one() -> None:
    server = netkit.create_server().listen(0, "127.0.0.1")
    answers: list[bytes] = []

    def talk() -> None:
        answers.extend(ask(server.server_address, data) for data in (b"one", b"two", b"stop"))

    with server, in_thread(talk):
        for conn in server:
            with conn:
                assert server.connections == (conn,)
                assert conn.server is server
                word = conn.read()
                conn.end(word)
            assert server.connection_count == 0
            if word == b"stop":
                server.stop()
    assert answers == [b"one", b"two", b"stop"]
    assert not server.listening


@contextlib.contextmanager
def taking(
    body: Callable[[netkit.Connection], object], server: netkit.Server
) -> Iterator[netkit.Server]:
    """A loop in a thread, until the end of the block at the latest."""

    def loop() -> None:
        for conn in server:
            body(conn)

    with in_thread(loop):
        try:
            yield server
        finally:
            server.stop(0)


def test_a_stop_from_another_thread_ends_the_loop_and_gives_its_client_time() -> None:
    server = netkit.create_server().listen(0, "127.0.0.1")

    def body(conn: netkit.Connection) -> None:
        with conn:
            conn.end(b"".join(conn))

    with taking(body, server), connected(server.server_address) as sock:
        sock.sendall(b"hello")
        wait_until(lambda: server.connections and server.connections[0].bytes_read == 5)
        with connected(server.server_address) as queued:
            assert server.stop() == (1, 0)
            assert receive_all(sock) == b"hello"
            with contextlib.suppress(ConnectionResetError):
                assert queued.recv(1) == b""  # nobody is there to serve it


def test_a_stop_does_not_wait_for_ever_for_the_body_of_a_loop() -> None:
    server = netkit.create_server().listen(0, "127.0.0.1")
    server._drain.grace = 0.02
    done = threading.Event()
    with taking(lambda _: done.wait(PATIENCE), server):
        with connected(server.server_address):
            wait_until(lambda: server.connections)
            (conn,) = server.connections
            try:
                assert server.stop(0) == (0, 1)
            finally:
                done.set()
                conn.destroy()
    assert server.connection_count == 0


def test_a_stop_after_a_loop_was_left_cuts_the_connection_of_its_last_round() -> None:
    server = netkit.create_server().listen(0, "127.0.0.1")
    with connected(server.server_address) as client:
        for conn in server:
            assert not conn.closed
            break
        assert server.stop(0) == (0, 1)
        assert client.recv(1) == b""
        conn.close()


def test_a_stop_while_the_loop_waits_ends_it() -> None:
    server = netkit.create_server().listen(0, "127.0.0.1")
    with taking(lambda conn: conn.close(), server):
        wait_until(lambda: server._accept_loop.under_way)


def test_connections_may_be_closed_in_other_threads_and_a_stop_waits_for_them() -> None:
    server = netkit.create_server().listen(0, "127.0.0.1")
    go_on = threading.Event()
    threads: list[threading.Thread] = []

    def reply(conn: netkit.Connection) -> None:
        go_on.wait(PATIENCE)
        conn.end("late")
        conn.close()

    with connected(server.server_address) as sock:
        for conn in server:
            threads.append(threading.Thread(target=reply, args=(conn,)))
            threads[0].start()
            break
        with observed(events.Stopping, events.Stopped) as seen:
            with in_thread(server.stop):
                wait_until(lambda: seen)
                go_on.set()
                assert receive_all(sock) == b"late"
                sock.close()
        threads[0].join()
        assert seen[-1] == events.Stopped(1, 0)
    assert server.connection_count == 0


def test_the_limits_hold_for_a_loop() -> None:
    options = {"max_connections": 1, "when_full": "refuse", "refusal": "full"}
    server = netkit.create_server(**options).listen(0, "127.0.0.1")

    def body(conn: netkit.Connection) -> None:
        threading.Thread(target=lambda: (conn.read(), conn.close())).start()

    with silent_log(), taking(body, server):
        for _ in range(2):
            with connected(server.server_address) as first:
                wait_until(lambda: server.connection_count == 1)
                with connected(server.server_address) as second:
                    assert receive_all(second) == b"full"
                first.shutdown(socket.SHUT_WR)
                assert receive_all(first) == b""
            wait_until(lambda: server.connection_count == 0)
    assert server.refused_count == 2


def test_a_client_that_is_not_verified_is_not_yielded() -> None:
    class Choosy(netkit.Server):
        def verify_request(self, request: Any, client_address: Any) -> bool:
            return bool(client_address[1] != refused)

    refused = 0
    server = Choosy(None, netkit.EchoHandler).listen(0, "127.0.0.1")
    with taking(lambda conn: conn.end("in"), server):
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            refused = sock.getsockname()[1]
            sock.settimeout(PATIENCE)
            sock.connect(server.server_address)
            assert receive_all(sock) == b""
        with connected(server.server_address) as sock:
            assert receive_exactly(sock, 2) == b"in"
            (conn,) = server.connections
            conn.destroy()


def test_a_connection_that_was_not_yielded_is_closed_when_the_loop_ends() -> None:
    server = netkit.create_server().listen(0, "127.0.0.1")
    with connected(server.server_address) as first, connected(server.server_address) as second:
        for conn in server:
            assert server._acceptor.accept() is Answer.NEXT  # a second client in one step
            conn.destroy()
            break
        assert (receive_all(first), receive_all(second)) == (b"", b"")
    assert server.connection_count == 0
    server.close()


def test_a_loop_may_begin_again() -> None:
    server = netkit.create_server().listen(0, "127.0.0.1")
    for _ in range(2):
        with connected(server.server_address) as sock:
            for conn in server:
                conn.end("in")
                conn.destroy()
                break
            assert receive_all(sock) == b"in"
    server.close()


def test_the_loss_of_the_listener_ends_the_loop() -> None:
    server = netkit.create_server().listen(0, "127.0.0.1")
    server.socket.shutdown(socket.SHUT_RDWR)
    with silent_log(), observed(events.ListenerLost) as lost:
        assert list(server) == []
    assert len(lost) == 1
    server.close()


def test_a_shutdown_that_came_before_ends_the_first_loop_at_once() -> None:
    server = netkit.create_server().listen(0, "127.0.0.1")
    server.shutdown()
    assert list(server) == []
    server.close()


def test_a_loop_needs_a_server_that_listens_and_does_not_serve() -> None:
    with pytest.raises(netkit.ServerStateError, match="the server is not bound"):
        next(iter(netkit.create_server()))
    with netkit.create_server(netkit.EchoHandler).listen(0, "127.0.0.1") as server:
        with pytest.raises(netkit.ServerStateError, match="the server is serving already, on "):
            next(iter(server))
    with pytest.raises(netkit.ServerStateError, match="the server is closed"):
        next(iter(server))


def test_a_server_without_a_handler_cannot_serve_without_a_loop() -> None:
    text = "^the server has no handler; take its clients by 'for connection in server'$"
    with netkit.create_server().listen(0, "127.0.0.1") as server:
        for serve in (server.serve_forever, server.start, server.handle_request):
            with pytest.raises(netkit.ServerStateError, match=text):
                serve()
    with pytest.raises(netkit.ServerStateError, match=text):
        netkit.server.serving.no_handler(None)  # type: ignore[attr-defined]


def test_a_server_with_any_handler_may_be_looped_over_and_then_serve() -> None:
    class Upper(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(self.rfile.read().upper())

    server = netkit.Server(("127.0.0.1", 0), Upper)
    with connected(server.server_address) as sock:
        sock.shutdown(socket.SHUT_WR)
        for conn in server:
            assert not conn.opaque
            assert conn.read() == b""
            with conn:
                conn.write("taken")
            break
        assert receive_all(sock) == b"taken"
    with serving_forever(server):
        assert ask(server.server_address) == b"HELLO"


def _detach(conn: netkit.Connection) -> None:
    conn.detach()[0].close()


def _write_until_destroyed(conn: netkit.Connection) -> None:
    def destroy() -> None:
        wait_until(lambda: conn.bytes_written)
        conn.destroy()

    with in_thread(destroy), pytest.raises(netkit.ConnectionClosedError):
        while True:
            conn.write(bytes(1 << 20))


@pytest.mark.parametrize("end", [_detach, _write_until_destroyed])
def test_no_lock_of_the_connection_is_held_while_observers_of_its_end_are_called(end: Any) -> None:
    outcomes: list[str] = []
    taken: list[netkit.Connection] = []

    def write() -> None:
        try:
            taken[0].write(b"x")
        except netkit.ConnectionClosedError as error:
            outcomes.append(type(error).__name__)

    def write_elsewhere(event: netkit.Event) -> None:
        if isinstance(event, netkit.ConnectionClosed):
            thread = threading.Thread(target=write, daemon=True)
            thread.start()
            thread.join(PATIENCE)
            outcomes.append("done" if not thread.is_alive() else "the writer waits for a lock")

    server = netkit.create_server().listen(0, "127.0.0.1")
    with server, connected(server.server_address), contextlib.ExitStack() as stack:
        stack.callback(events.subscribe(write_elsewhere))
        for conn in server:
            taken.append(conn)
            end(conn)
            break
    assert outcomes == ["ConnectionClosedError", "done"]
