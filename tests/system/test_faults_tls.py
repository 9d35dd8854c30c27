"""Faults of docs/faults.md that concern TLS, while good clients exchange bytes over TLS."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import socketserver
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from faults import (
    Process,
    connecting,
    descriptors_left,
    echo,
    fault,
    the_connection,
    unharmed,
)
from goodclients import GoodClients
from secure import contexts, files
from support import (
    PATIENCE,
    observed,
    receive_exactly,
    reset,
    serving,
    silent_log,
    wait_until,
)

import netkit
from netkit.core import events


class EchoRequest(socketserver.StreamRequestHandler):
    """Sends each line back."""

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line)


each_kind = pytest.mark.parametrize("handler", [echo, EchoRequest])


def secured(sock: socket.socket) -> ssl.SSLSocket:
    """The socket of a client that trusts the server, after the handshake."""
    return contexts()[1].wrap_socket(sock, server_hostname="localhost")


def leave(sock: ssl.SSLSocket) -> None:
    """End our side by TLS's close_notify, and wait for the server's."""
    sock.unwrap()


@contextlib.contextmanager
def unharmed_over_tls(
    handler: Any = echo, **options: Any
) -> Iterator[tuple[netkit.Server, GoodClients]]:
    """As `unharmed`, over TLS. No handler must fail."""
    with observed(events.HandlerFailed) as failed:
        with unharmed(
            handler, over=secured, leave=leave, tls_cert=files().server, **options
        ) as both:
            yield both
    assert failed == []


@contextlib.contextmanager
def bad_client(server: netkit.Server, request: bytes) -> Iterator[ssl.SSLSocket]:
    """A client that has finished its handshake, and whose request the server has read."""
    with secured(connecting(server)()) as sock:
        conn = the_connection(server, sock)
        sock.sendall(request)
        wait_until(lambda: conn.bytes_read >= len(request), "the request")
        yield sock


def client_hello() -> bytes:
    """What a client sends first."""
    outgoing = ssl.MemoryBIO()
    client = contexts()[1].wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


@fault("tls-descriptors")
@each_kind
def test_a_handshake_needs_no_descriptor(handler: Any) -> None:
    pytest.importorskip("resource")
    with unharmed_over_tls(handler, returning=0) as (server, good):
        late = [connecting_later() for _ in range(2)]
        gc.collect()  # so that nothing gives a descriptor back meanwhile
        server._accept_loop.quiet = 0.0
        with observed(events.AcceptPaused, events.AcceptResumed) as emitted:
            with descriptors_left(1):  # which the first of the two takes
                for each in late:
                    each.connect(server.server_address)
                wait_until(lambda: emitted, "the pause")
                first = secured(late[0])
                first.sendall(b"late\n")
                assert receive_exactly(first, 5) == b"late\n"
                good.go_on()
            second = secured(late[1])
            second.sendall(b"late\n")
            assert receive_exactly(second, 5) == b"late\n"
            wait_until(lambda: len(emitted) == 2, "the end of the pause")
            for each in (first, second):
                leave(each)
                each.close()


def connecting_later() -> socket.socket:
    """A socket that is not connected yet, with a time limit."""
    sock = socket.socket()
    sock.settimeout(PATIENCE)
    return sock


@fault("tls-handshake")
@pytest.mark.parametrize(("handler", "end"), [(echo, reset), (EchoRequest, socket.socket.close)])
def test_a_handshake_that_breaks_off_at_any_byte_ends_that_client_alone(
    handler: Any, end: Callable[[socket.socket], None]
) -> None:
    hello = client_hello()
    with unharmed_over_tls(handler, handshake_timeout=60) as (server, good):
        for sent in (0, 1, 5, 6, len(hello) // 2, len(hello) - 1, len(hello)):
            sock = connecting(server)()
            sock.sendall(hello[:sent])
            if sent == len(hello):
                assert sock.recv(1)  # the server's answer, unread but for this
            end(sock)
        end(secured(connecting(server)()))  # just after the handshake
        good.go_on()


@fault("tls-silent")
@each_kind
def test_a_client_without_a_handshake_is_disconnected_after_the_timeout(handler: Any) -> None:
    with unharmed_over_tls(handler, handshake_timeout=2.0) as (server, good):
        silent = [connecting(server)() for _ in range(3)]
        for sock, sent in zip(silent, (0, 5, 100), strict=True):
            sock.sendall(client_hello()[:sent])
        good.go_on()
        for sock in silent:
            with sock, contextlib.suppress(ConnectionError):
                while sock.recv(1000):
                    pass


@fault("tls-stop")
@each_kind
def test_a_stop_does_not_wait_for_clients_that_have_not_begun_a_handshake(handler: Any) -> None:
    options = {"tls_cert": files().server, "handshake_timeout": 60, "drain_timeout": 60}
    with observed(events.Stopped) as stopped, silent_log(), serving(handler, **options) as server:
        silent = [connecting(server)() for _ in range(3)]
        server.wait_for_connections(3)
        wait_until(lambda: all(each.thread for each in server.connections))
        assert server.stop() == (3, 0)
        for sock in silent:
            with sock:
                assert sock.recv(1) in (b"", b"\x15")  # the end, or an alert before it
    assert stopped == [events.Stopped(3, 0)]


@fault("tls-reset")
@pytest.mark.parametrize("said", [b"!line\nhalf a li", b"!flood\n"])
def test_a_reset_of_a_tls_connection_ends_that_client_alone(said: bytes) -> None:
    with observed(events.ClientFailed) as failed, unharmed_over_tls() as (server, good):
        with bad_client(server, said) as sock:
            if said == b"!flood\n":
                assert sock.recv(5) == b"flood"
            good.go_on()
            reset(sock)
    if said != b"!flood\n":  # which lets it pass
        assert len(failed) == 1


@fault("tls-killed")
def test_half_a_message_of_a_killed_client_is_not_taken_for_a_whole_one() -> None:
    seen: list[BaseException] = []
    lines: list[str] = []

    def handler(conn: netkit.Connection) -> None:
        if conn.peek(1) != b"!":
            return echo(conn)
        conn.write("go")
        try:
            lines.extend(conn.lines())
        except ConnectionError as error:
            seen.append(error)
        return None

    source = f"""
import ssl
context = ssl.create_default_context(cafile={files().ca!r})
clients = [context.wrap_socket(connect(), server_hostname="localhost") for _ in range(3)]
for s, said in zip(clients, (b"!half a li", b"!a line\\n!half", b"!flood\\n")):
    s.sendall(said)
    assert s.recv(2) == b"go"  # and so nothing is left unread, for which its kernel would reset
shaking = connect()
shaking.send(b"\\x16\\x03\\x01")
print("ready", flush=True)
sys.stdin.read(1)
os._exit(1)
"""
    with unharmed_over_tls(handler) as (server, good), Process(server, source) as process:
        assert process.line() == b"ready\n"
        good.go_on()
        assert process.process.stdin
        process.process.stdin.close()
        assert process.process.wait(PATIENCE) == 1
        wait_until(lambda: len(seen) == 3, "the ends")
    assert sorted(lines) == ["!a line", "!flood"]
    assert {type(error) for error in seen} == {netkit.TruncatedError}


@fault("tls-garbage")
def test_an_invalid_record_ends_that_client_alone() -> None:
    with observed(events.ClientFailed) as failed, unharmed_over_tls() as (server, good):
        for garbage in (b"\x17\x03\x03\x00\x20" + os.urandom(32), b"GET / HTTP/1.0\r\n\r\n"):
            with bad_client(server, b"!line\n") as sock:
                with socket.socket(fileno=os.dup(sock.fileno())) as bare:
                    bare.sendall(garbage)
                good.go_on()
                with contextlib.suppress(OSError):
                    sock.recv(1)
        wait_until(lambda: len(failed) == 2, "the reports")
    assert all(isinstance(event.error, netkit.TlsError) for event in failed)
