"""Handlers of `socketserver` that put another socket in the place of theirs."""

from __future__ import annotations

import os
import socket
import socketserver
import ssl
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from secure import contexts
from support import PATIENCE, client, in_thread, receive_all, serving, tcp_pair, wait_until

import netkit
from netkit.net.bare import OUT_OF_SIGHT_SECONDS, Bare

LONG = 60.0  # seconds: a deadline that no test reaches
SHORT = 0.1  # seconds: one that is to pass

SERVER_SIDE, CLIENT_SIDE = contexts()  # once, since two threads would make two authorities


class Wrapping(socketserver.StreamRequestHandler):
    """Speaks TLS from the start, as the usual recipe has it."""

    def setup(self) -> None:
        self.request = SERVER_SIDE.wrap_socket(self.request, server_side=True)
        super().setup()

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line.upper())

    def finish(self) -> None:
        super().finish()
        self.request.close()


class StartingTls(socketserver.BaseRequestHandler):
    """Speaks TLS after it was asked to."""

    def handle(self) -> None:
        assert self.request.recv(100) == b"STARTTLS\n"
        self.request.sendall(b"go on\n")
        with SERVER_SIDE.wrap_socket(self.request, server_side=True) as secured:
            while data := secured.recv(100):
                secured.sendall(data.upper())


def start_tls(sock: socket.socket, handler: type) -> ssl.SSLSocket:
    if handler is StartingTls:
        sock.sendall(b"STARTTLS\n")
        assert sock.recv(100) == b"go on\n"
    return CLIENT_SIDE.wrap_socket(sock, server_hostname="localhost", suppress_ragged_eofs=True)


def has_ended(secured: ssl.SSLSocket) -> bool:
    """Whether no more comes: OpenSSL sends an alert for an end of input without close_notify."""
    try:
        return secured.recv(1) == b""
    except ssl.SSLError as error:
        return error.reason == "TLSV1_ALERT_DECODE_ERROR"


@pytest.mark.parametrize("handler", [Wrapping, StartingTls])
def test_a_stop_reaches_the_client_of_a_handler_that_has_wrapped_its_socket(handler: Any) -> None:
    with serving(handler) as server, client(server) as sock, start_tls(sock, handler) as secured:
        secured.sendall(b"hello\n")
        assert secured.recv(6) == b"HELLO\n"
        assert server.stop(LONG) == (1, 0)
        assert has_ended(secured)


def test_a_client_of_a_unix_socket_is_reached_among_others_that_have_the_same_name(
    tmp_path: Path,
) -> None:
    path = str(tmp_path / "s")
    with netkit.create_server(Wrapping).listen(path=path) as server:
        with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as two:
            for sock in (one, two):
                sock.settimeout(PATIENCE)
                sock.connect(path)
            with start_tls(one, Wrapping) as first, start_tls(two, Wrapping) as second:
                for secured in (first, second):
                    secured.sendall(b"hello\n")
                    assert secured.recv(6) == b"HELLO\n"
                connections = server.connections
                assert connections[1].interrupt(OSError("this one"))
                # OpenSSL would send an alert, which a Unix socket that is closed does not take. Its
                # error would stay in the queue of this thread, and `first` would raise it, too.
                assert socket.socket.recv(second, 1) == b""
                first.sendall(b"hello\n")
                assert first.recv(6) == b"HELLO\n"
                assert server.stop(LONG).cut == 0


def test_a_bare_connection_that_does_not_end_is_cut_at_the_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("netkit.server.drain.Drain.grace", SHORT)
    go_on = threading.Event()

    class Deaf(Wrapping):
        def handle(self) -> None:
            self.wfile.write(b"?")
            assert go_on.wait(2 * PATIENCE)

    with serving(Deaf) as server, client(server) as sock, start_tls(sock, Deaf) as secured:
        assert secured.recv(1) == b"?"
        assert server.stop(SHORT) == (0, 1)
        assert has_ended(secured)
        go_on.set()
        wait_until(lambda: not server.connections)


def test_the_end_of_its_lifetime_ends_a_bare_connection() -> None:
    with serving(Wrapping, lifetime=0.2) as server, client(server) as sock:
        with start_tls(sock, Wrapping) as secured:
            assert has_ended(secured)


def test_a_copy_is_made_only_of_the_socket_that_it_was() -> None:
    with tcp_pair() as (ours, _), tcp_pair() as (other, _):
        bare = Bare(ours, ours.getpeername(), ours.getsockname())
        with bare.reached() as sock:
            assert sock is ours
        taken = socket.socket(fileno=ours.detach())
        with bare.reached() as sock:
            assert sock.fileno() not in (-1, taken.fileno())
            assert sock.getpeername() == taken.getpeername()
        number = taken.fileno()
        os.dup2(other.fileno(), number)  # it is another connection's by now
        assert bare.copy() is None
        with bare.reached() as sock:
            assert sock is ours
        os.dup2(sys.stderr.fileno() if sys.stderr.isatty() else 2, number)  # no socket
        assert bare.copy() is None
        with socket.socket() as unconnected:
            os.dup2(unconnected.fileno(), number)
        assert bare.copy() is None
        taken.close()
        assert bare.copy() is None


def test_a_bare_socket_that_the_program_has_closed_is_asked_again_a_little_later() -> None:
    with tcp_pair() as (ours, _):
        conn = netkit.Connection(ours, opaque=True)
        ours.close()
        assert conn.end_input() == OUT_OF_SIGHT_SECONDS
        conn.destroy()


def test_a_stop_does_not_hang_while_the_program_has_closed_a_bare_socket() -> None:
    closed, go_on = threading.Event(), threading.Event()

    class Closing(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.close()
            closed.set()
            assert go_on.wait(PATIENCE)

    with serving(Closing) as server, client(server) as sock:
        assert closed.wait(PATIENCE)
        assert receive_all(sock) == b""
        with in_thread(server.stop, LONG):
            go_on.set()
