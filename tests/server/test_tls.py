"""TLS on a server: every kind of handler, limits, reloading, stopping, and other programs' TLS."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import select
import shutil
import signal
import socket
import socketserver
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from secure import VERSIONS, contexts, each_version, files, optional
from support import (
    PATIENCE,
    ROOT,
    Cli,
    EchoRequest,
    Program,
    client,
    each_echo,
    echo,
    in_thread,
    observed,
    receive_all,
    receive_exactly,
    reset,
    send_and_end,
    serving,
    silent_log,
    tcp_pair,
    tool,
    wait_until,
)

import netkit
from netkit.core import events
from netkit.core.errors import (
    ConnectionClosedError,
    HandshakeError,
    NotBegunError,
    TlsConfigError,
)
from netkit.core.text import described
from netkit.net.states import InputState
from netkit.net.tls_socket import handshake, secure, wrap
from netkit.tls.context import client_context

BLOCK = bytes(range(256)) * 4096


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with silent_log():
        yield


@contextlib.contextmanager
def secure_client(
    server: Any, context: ssl.SSLContext | None = None, hostname: str = "localhost"
) -> Iterator[ssl.SSLSocket]:
    """A client that takes an end without close_notify for an error."""
    context = context or contexts()[1]
    with client(server) as sock:
        secured = context.wrap_socket(sock, server_hostname=hostname, suppress_ragged_eofs=False)
        with secured:
            yield secured


@contextlib.contextmanager
def own_client(server: Any) -> Iterator[netkit.Connection]:
    """One that two threads may use, as Python's cannot before 3.13."""
    with netkit.connect(server.server_address[1], "127.0.0.1") as conn:
        conn.start_tls(contexts()[1], server_hostname="localhost")
        yield conn


def connection_in_handshake(server: Any) -> netkit.Connection:
    """The connection of the only client, whose thread waits for the client or is about to."""
    server.wait_for_connections(1)
    connection: netkit.Connection = server.connections[0]
    # A handshake of Python's own cannot be seen from outside.
    wait_until(lambda: connection.is_secured() or connection._link.waiting)
    return connection


def say(sock: ssl.SSLSocket, data: bytes) -> bytes:
    sock.sendall(data)
    return receive_exactly(sock, len(data))


def say_and_end(sock: ssl.SSLSocket, data: bytes) -> bytes:
    """Send `data` and a close_notify, and return the input up to that of the peer."""
    reply = say(sock, data)
    sock.unwrap()  # raises if the other end says none
    return reply


def failures(seen: list[Any]) -> list[str]:
    return [f"{type(event.error).__name__}: {event.error}" for event in seen]


# --- Serving ---


@each_echo
@each_version
def test_each_kind_of_handler_speaks_tls_and_ends_with_a_close_notify(
    handler: Any, version: ssl.TLSVersion
) -> None:
    with serving(handler, tls=contexts()[0]) as server:
        with secure_client(server, contexts(version)[1]) as sock:
            assert say_and_end(sock, b"hello") == b"hello"


def copy(conn: netkit.Connection) -> None:
    with in_thread(conn.write, BLOCK):
        assert conn.readexactly(len(BLOCK)) == BLOCK


@pytest.mark.parametrize("handler", [echo, EchoRequest, copy])
def test_much_goes_both_ways_at_once(handler: Any) -> None:
    with serving(handler, tls_cert=files().cert, tls_key=files().key) as server:
        with own_client(server) as conn, in_thread(conn.write, BLOCK):
            assert conn.readexactly(len(BLOCK)) == BLOCK


@each_version
def test_a_client_gets_a_ticket_to_come_back_with(version: ssl.TLSVersion) -> None:
    context = contexts(version)[1]
    with serving(netkit.EchoHandler, tls_cert=files().server) as server:
        session = None
        for returns in (False, True):
            with client(server) as sock:
                with context.wrap_socket(sock, False, True, True, "localhost", session) as secured:
                    assert say(secured, b"x") == b"x"
                    assert secured.session_reused is returns
                    session = secured.session
                    secured.unwrap()


def test_a_connection_shows_what_was_negotiated() -> None:
    said: list[Any] = []

    def handler(conn: netkit.Connection) -> None:
        tls = conn.tls
        assert tls
        said.extend((tls.version, tls.alpn_protocol, tls.server_name, tls.peer_certificate))
        said.append(bool(tls.cipher))
        conn.end("done")

    client_side = client_context(ca=files().ca, cert=files().client, alpn=["x", "echo"])
    options = {"tls_cert": files().server, "tls_client_ca": files().ca, "tls_alpn": ["echo"]}
    with serving(handler, **options) as server, secure_client(server, client_side) as sock:
        assert receive_all(sock) == b"done"
        assert sock.selected_alpn_protocol() == "echo"
    version, alpn, name, certificate, has_cipher = said
    assert (version, alpn, name, has_cipher) == ("TLSv1.3", "echo", "localhost", True)
    assert certificate["subjectAltName"] == (("email", "me@example.org"),)


def test_a_client_without_the_certificate_that_is_wanted_is_refused() -> None:
    options = {"tls_cert": files().server, "tls_client_ca": files().ca}
    with observed(events.ClientFailed) as seen, serving(echo, **options) as server:
        with pytest.raises(ssl.SSLError), secure_client(server) as sock:
            sock.recv(1)
        wait_until(lambda: seen)
    assert failures(seen) == ["HandshakeError: the client sent no certificate, and one is required"]


def test_the_certificate_is_the_one_for_the_name_that_the_client_asks_for() -> None:
    sni = {host: (path, None) for host, path in files().named.items()}
    with serving(echo, tls_cert=files().server, tls_sni=sni) as server:
        for host in ("example.org", "a.example.org", "localhost"):
            with secure_client(server, hostname=host) as sock:
                assert say_and_end(sock, b"?") == b"?"


def test_a_handler_answers_after_the_clients_close_notify() -> None:
    def handler(conn: netkit.Connection) -> None:
        question = conn.read()
        conn.write(question.upper())

    with serving(handler, tls=contexts()[0]) as server:
        with own_client(server) as conn:
            conn.end("question")
            assert conn.read() == b"QUESTION"


@each_echo
@pytest.mark.parametrize("method", ["process_request", "finish_request"])
def test_a_socket_from_elsewhere_is_not_served_in_clear_text(handler: Any, method: str) -> None:
    with serving(handler, tls=contexts()[0]) as server, tcp_pair() as (ours, peer):

        def finish() -> None:
            with contextlib.suppress(OSError):
                server.finish_request(ours, ours.getpeername())
            server.shutdown_request(server.connections[0].socket)

        peer.sendall(b"hello\n")
        if method == "finish_request":
            thread = in_thread(finish)
        else:
            thread = in_thread(server.process_request, ours, ours.getpeername())
        with thread:
            assert b"hello" not in receive_all(peer)
            peer.close()
        assert server.wait_for_connections(0, PATIENCE)


# --- A context that the program has made ---


def all_of(context: ssl.SSLContext) -> dict[str, Any]:
    """Every attribute of a context that can be read."""
    values = {
        name: getattr(context, name)
        for name in dir(context)
        if not callable(getattr(type(context), name, None)) and name not in ("__dict__", "__doc__")
    }
    assert {"options", "sni_callback", "verify_flags", "num_tickets", "verify_mode"} < set(values)
    ciphers = [cipher["name"] for cipher in context.get_ciphers()]
    return {**values, "ciphers": ciphers, "classes": (context.sslsocket_class,)}


def pythons_contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(files().server)
    return server, ssl.create_default_context(cafile=files().ca)


@each_echo
def test_a_context_of_the_programs_is_never_changed(handler: Any) -> None:
    server_side, client_side = pythons_contexts()
    server_side.sni_callback = lambda *_: None
    before = all_of(server_side), all_of(client_side)
    with serving(handler, tls=server_side) as server:
        for _ in range(2):
            with secure_client(server, client_side) as sock:
                assert say_and_end(sock, b"hello") == b"hello"
        port = server.server_address[1]
        with netkit.connect(port, "localhost", family=4, tls=client_side) as conn:
            conn.end("hello")
            assert conn.read() == b"hello"
    with serving(lambda conn: conn.start_tls(server_side)) as server:
        with netkit.connect(server.server_address[1], "127.0.0.1") as conn:
            conn.start_tls(client_side, server_hostname="localhost")
    assert (all_of(server_side), all_of(client_side)) == before


def test_a_socket_class_of_the_context_is_the_one_that_a_handler_gets() -> None:
    class Own(ssl.SSLSocket):
        pass

    class Telling(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(type(self.request).__name__.encode())

    context = pythons_contexts()[0]
    context.sslsocket_class = Own
    with serving(Telling, tls=context) as server, secure_client(server) as sock:
        assert receive_all(sock) == b"Own"


# --- Clients without a handshake ---


@each_echo
@pytest.mark.parametrize("leave", [socket.socket.close, reset], ids=["end", "reset"])
def test_a_client_that_says_nothing_and_leaves_is_no_failure(handler: Any, leave: Any) -> None:
    with observed(events.ClientFailed, events.HandlerFailed, events.ConnectionClosed) as seen:
        with serving(handler, tls=contexts()[0]) as server:
            with client(server) as sock:
                connection_in_handshake(server)
                leave(sock)
            wait_until(lambda: seen)
    assert [type(event) for event in seen] == [events.ConnectionClosed]


def test_a_client_that_leaves_instead_of_starting_tls_is_a_failure() -> None:
    def handler(conn: netkit.Connection) -> None:
        conn.readline()
        conn.start_tls(contexts()[0])

    with observed(events.ClientFailed) as seen, serving(handler) as server:
        with client(server) as sock:
            sock.sendall(b"STARTTLS\n")
            sock.shutdown(socket.SHUT_WR)
            receive_all(sock)
        wait_until(lambda: seen)
    assert failures(seen) == ["NotBegunError: the client disconnected before the handshake"]


@each_echo
@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "sent plain text, not TLS: 'GET / HTTP/1.1'"),
        (b"hi\n", "sent plain text, not TLS: 'hi'"),
        (b"\x16\x03\x01", "disconnected during the handshake"),
    ],
)
def test_a_client_that_does_not_speak_tls_is_logged_in_one_line_and_harms_no_other(
    handler: Any, sent: bytes, error: str
) -> None:
    with observed(events.ClientFailed) as seen, serving(handler, tls=contexts()[0]) as server:
        with client(server) as sock:
            send_and_end(sock, sent)
            assert sent not in receive_all(sock)
        wait_until(lambda: seen)
        with secure_client(server) as sock:
            assert say_and_end(sock, b"hello") == b"hello"
    assert failures(seen) == [f"HandshakeError: the client {error}"]


@each_echo
def test_a_reset_in_the_handshake_is_logged_in_one_line(handler: Any) -> None:
    with observed(events.ClientFailed) as seen, serving(handler, tls=contexts()[0]) as server:
        with client(server) as sock:
            sock.sendall(b"\x16\x03\x01\x02\x00")
            connection_in_handshake(server)
            time.sleep(0.02)
            reset(sock)
        wait_until(lambda: seen)
    (event,) = seen
    assert isinstance(event.error, (HandshakeError, ConnectionResetError))


@each_echo
def test_a_client_that_drips_does_not_defeat_the_handshake_timeout(handler: Any) -> None:
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300)
    with observed(events.ClientFailed) as seen:
        with serving(handler, tls=contexts()[0], handshake_timeout=0.2) as server:
            with client(server) as silent, client(server) as dripping:
                peers = [sock.getsockname()[1] for sock in (silent, dripping)]
                with secure_client(server) as good:
                    for byte in hello:
                        if len(seen) == 2:
                            break
                        with contextlib.suppress(OSError):
                            dripping.send(bytes([byte]))
                        assert say(good, b"on") == b"on"
                        time.sleep(0.01)
                    good.unwrap()
    assert sorted(failures(seen)) == sorted(
        "TimeoutError: [Errno 110] handshake_timeout: "
        f"no TLS handshake with 127.0.0.1:{port} within 0.2 seconds"
        for port in peers
    )


@each_echo
@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("stop", "ConnectionAbortedError: the connection to PEER was cut, since the server stops"),
        ("destroy", "ConnectionClosedError: the connection is closed"),
        ("lifetime", "TimeoutError: lifetime: the connection to PEER has lasted 0.3 seconds"),
    ],
)
@pytest.mark.parametrize("begun", [b"", b"\x16\x03\x01"])
def test_a_handshake_that_this_side_ends_is_not_the_clients_doing(
    handler: Any, how: str, text: str, begun: bytes
) -> None:
    kinds = (events.ClientFailed, events.HandlerFailed)
    options = {"lifetime": 0.3} if how == "lifetime" else {}
    with observed(*kinds) as seen, serving(handler, tls=contexts()[0], **options) as server:
        with client(server) as sock:
            sock.sendall(begun)
            connection = connection_in_handshake(server)
            if how == "stop":
                server.stop(0)
            elif how == "destroy":
                connection.destroy()
            assert server.wait_for_connections(0, PATIENCE)
            text = text.replace("PEER", connection.peer)
    if how == "stop" and not begun and not seen:
        return  # it was idle, and has seen the end of input before it was cut
    assert [described(each.error) for each in seen] == [text]
    assert type(seen[0]) is events.ClientFailed


class _Drained(socket.socket):
    """Has a stop end the input of its connection once something has been received."""

    connection: netkit.Connection

    def recv(self, *arguments: Any) -> bytes:
        data = super().recv(*arguments)
        assert self.connection.end_input() is None
        return data


@pytest.mark.parametrize("begun", [b"\x16\x03\x01", b"STARTTLS\n"])
def test_the_end_of_input_by_a_stop_amid_a_handshake_is_not_the_clients_doing(begun: bytes) -> None:
    with tcp_pair() as (ours, peer), _Drained(fileno=ours.detach()) as sock:
        sock.connection = conn = netkit.Connection(sock)
        peer.sendall(begun)
        if begun == b"STARTTLS\n":
            conn.readline()
        with pytest.raises(ConnectionAbortedError, match="was cut, since the server stops"):
            conn.start_tls(contexts()[0], server_side=True)
        assert conn.end_reason == "drained"
        conn.destroy()


@pytest.mark.parametrize(
    ("sent", "kind", "text"),
    [
        (b"\x16\x03\x01", ConnectionAbortedError, "was cut, since the server stops"),
        (b"", NotBegunError, "the client disconnected before the handshake"),
        (b"hi\n", HandshakeError, "the client sent plain text, not TLS: 'hi'"),
    ],
)
def test_the_end_of_input_by_a_stop_ends_the_handshake_of_a_bare_socket(
    sent: bytes, kind: type[Exception], text: str
) -> None:
    with tcp_pair() as (ours, peer), wrap(ours, contexts()[0]) as sock:
        conn = netkit.Connection(sock, opaque=True)
        conn.quiet_seconds = 0
        peer.sendall(sent)
        assert select.select([sock], [], [], PATIENCE if sent else 0)[0] == [sock] * bool(sent)
        assert conn.end_input() is None
        with pytest.raises(kind, match=text):
            secure(conn, sock, None, None)
        assert conn.end_reason == "drained"
        conn.destroy()


def test_a_handshake_that_the_network_ends_is_an_error_of_the_network() -> None:
    unreachable = OSError(errno.EHOSTUNREACH, "No route to host")

    def fail() -> None:
        raise unreachable

    with tcp_pair() as (ours, peer):
        peer.sendall(b"\x16")
        with wrap(ours, contexts()[0]) as sock:
            sock.do_handshake = fail  # type: ignore[method-assign, assignment]
            with pytest.raises(OSError, match="No route to host") as caught:
                handshake(sock, None, "p")
    assert caught.value is unreachable


@pytest.mark.parametrize("error", [ssl.SSLWantReadError, AttributeError, None])
def test_a_handshake_of_a_socket_that_another_thread_has_closed_names_the_close(
    error: type[Exception] | None,
) -> None:
    with tcp_pair() as (ours, peer), wrap(ours, contexts()[0]) as sock:
        peer.sendall(b"\x16")

        def close() -> None:
            sock.close()
            if error is not None:
                raise error

        if error is None:
            close()
        sock.do_handshake = close  # type: ignore[method-assign, assignment]
        with pytest.raises(ConnectionClosedError):
            handshake(sock, None, "p")


def test_a_refused_client_gets_no_clear_text() -> None:
    options = {"max_connections": 1, "when_full": "refuse", "refusal": "full"}
    with serving(echo, tls=contexts()[0], **options) as server, secure_client(server):
        with client(server) as second:
            assert receive_all(second) == b""


# --- Settings ---


def test_certificates_are_read_again_and_bad_ones_are_not_taken(tmp_path: Path) -> None:
    pem = tmp_path / "server.pem"
    shutil.copy(files().named["example.org"], pem)
    with serving(echo, tls_cert=pem) as server:
        assert server.can_reload
        with secure_client(server, hostname="example.org") as before:
            shutil.copy(files().server, pem)
            with observed(events.SettingsReloaded, events.SettingsKept) as seen:
                assert server.reload_tls()
                with secure_client(server) as sock:
                    assert say_and_end(sock, b"new") == b"new"
                pem.write_text("no certificate")
                assert not server.reload()
            with secure_client(server) as sock:
                assert say_and_end(sock, b"kept") == b"kept"
            assert say_and_end(before, b"old") == b"old"
        server.configure(tls_cert=files().named["example.net"])
        with secure_client(server, hostname="example.net") as sock:
            assert say_and_end(sock, b"new") == b"new"
        with pytest.raises(TlsConfigError):
            server.configure(tls_cert="/nonexistent")
        with secure_client(server, hostname="example.net") as sock:
            assert say_and_end(sock, b"kept") == b"kept"
        server.configure(tls_cert=None, tls=contexts()[0])
        assert not server.can_reload  # there are no files
        assert server.reload()
    assert seen[0] == events.SettingsReloaded("TLS")
    assert isinstance(seen[1].error, TlsConfigError)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tls_cert": 5}, "tls_cert must be the path of a file, or bytes, not of type int"),
        ({"tls": "x"}, "tls must be an ssl.SSLContext, not of type str"),
        ({"tls_cert": "x", "tls_sni": ["a"]}, "tls_sni must map host names to"),
        ({"tls_cert": "x", "tls_alpn": "h2"}, "tls_alpn must be a list of names, not of type str"),
        ({"tls_cert": "x", "tls_alpn": [""]}, "tls_alpn must be names of 1 to 255 ASCII"),
        ({"tls_cert": "x", "tls_sni": {"a": "x"}}, "tls_sni must map host names to"),
        ({"tls_cert": "x", "tls_sni": {"a": (None, "x")}}, "tls_sni has no certificate for one"),
        ({"tls_cert": "x", "tls_sni": {"a": ("x", 5)}}, "tls_sni must be the path of a file"),
        ({"tls_cert": "x\0"}, "the certificate file 'x\\\\x00': embedded null byte"),
        ({"tls": contexts()[1]}, "tls must be a server's context"),
        ({"tls": contexts()[0], "tls_cert": "x"}, "tls and tls_cert cannot both be given"),
        ({"tls_key": "x"}, "tls_key needs tls_cert"),
        ({"starttls": True}, "starttls needs tls_cert"),
        ({"tls_cert": "/nonexistent"}, "the certificate file '/nonexistent': No such file"),
    ],
)
def test_invalid_options_of_tls_are_an_error(options: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError, TlsConfigError), match=message):
        netkit.create_server(echo, **options)


def test_all_that_tls_takes_is_imported_before_the_first_client() -> None:
    source = """
import ssl, sys, netkit
netkit.create_server(netkit.EchoHandler, tls=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
print("netkit.tls.stream" in sys.modules, "netkit.tls.context" in sys.modules)
"""
    command = [sys.executable, "-c", source]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout == "True True\n"


@each_echo
def test_the_longest_wait_for_a_handshake_is_not_the_whole_time_for_it(
    handler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netkit.net.sockopts.LONGEST_WAIT", 0.01)
    with serving(handler, tls=contexts()[0], handshake_timeout=None) as server:
        with client(server) as sock:
            server.wait_for_connections(1)
            time.sleep(0.05)
            with contexts()[1].wrap_socket(sock, server_hostname="localhost") as secured:
                assert say_and_end(secured, b"hello") == b"hello"


# --- STARTTLS ---


def starttls(conn: netkit.Connection) -> None:
    """A protocol that begins in clear text."""
    assert conn.readline() == b"STARTTLS\n"
    conn.write("go on\n")
    conn.start_tls()
    for line in conn.lines():
        conn.write(line.upper() + "\n")


def test_a_protocol_begins_in_clear_text_and_goes_on_in_tls() -> None:
    with serving(starttls) as server:
        server.configure(tls_cert=files().server, starttls=True)
        with client(server) as sock:
            sock.sendall(b"STARTTLS\n")
            assert receive_exactly(sock, 6) == b"go on\n"
            with contexts()[1].wrap_socket(sock, server_hostname="localhost") as secured:
                secured.sendall(b"secret\n")
                assert receive_exactly(secured, 7) == b"SECRET\n"
                secured.unwrap()


def a_line(conn: netkit.Connection) -> None:
    assert conn.readline() == b"STARTTLS\n"


def half_a_character(conn: netkit.Connection) -> None:
    conn.set_encoding("utf-8")
    assert conn.read(100) == "STARTTLS\n"


def half_a_character_of_python(conn: netkit.Connection) -> None:
    conn.set_encoding("shift_jis")
    assert conn.read(100) == "STARTTLS\n"


def half_a_line(conn: netkit.Connection) -> None:
    conn.max_line = 10
    assert conn.readline() == b"STARTTLS\n"
    conn.set_timeout(0.05)
    with pytest.raises(netkit.LineTooLongError):
        conn.readline()
    with pytest.raises(TimeoutError):
        conn.readline()


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (a_line, b"DELETE everything\n"),
        (half_a_character, b"\xc3"),
        (half_a_character_of_python, b"\x82"),
        (half_a_line, b"x" * 20),
    ],
)
def test_input_that_came_before_tls_is_not_taken_for_input_through_it(
    begin: Any, more: bytes
) -> None:
    def handler(conn: netkit.Connection) -> None:
        begin(conn)
        conn.start_tls()

    with observed(events.ClientFailed) as seen:
        with serving(handler, tls_cert=files().server, starttls=True) as server:
            with client(server) as sock:
                sock.sendall(b"STARTTLS\n" + more)
                assert receive_all(sock) == b""
            wait_until(lambda: seen)
    assert failures(seen)[0].endswith(" sent more, unencrypted, before TLS began")


def test_tls_needs_a_context_and_begins_once() -> None:
    def handler(conn: netkit.Connection) -> None:
        with pytest.raises(TypeError, match=r"^start_tls\(\) needs an ssl.SSLContext$"):
            conn.start_tls()
        conn.start_tls(contexts()[0])
        with pytest.raises(ValueError, match="^this connection speaks TLS already$"):
            conn.start_tls(contexts()[0])
        conn.end("right")

    with serving(handler) as server, secure_client(server) as sock:
        assert receive_all(sock) == b"right"


def test_a_handshake_may_take_for_ever_and_precedes_our_end() -> None:
    with serving(echo, tls=contexts()[0]) as server:
        port = server.server_address[1]
        with netkit.connect(port, "127.0.0.1") as conn:
            conn.start_tls(contexts()[1], server_hostname="localhost", timeout=None)
            conn.end("hello")
            assert conn.read() == b"hello"
            assert conn.bytes_read == conn.bytes_written == 5
        with netkit.connect(port, "127.0.0.1") as conn:
            conn.end()
            with pytest.raises(netkit.WriteAfterEndError):
                conn.start_tls(contexts()[1], server_hostname="localhost")


def test_an_end_for_a_peer_that_is_gone_is_an_end_all_the_same() -> None:
    ended: list[bool] = []

    def handler(conn: netkit.Connection) -> None:
        conn.write("ready")
        with contextlib.suppress(ConnectionResetError):
            conn.read()
        conn.end()
        ended.append(True)

    with serving(handler, tls=contexts()[0]) as server:
        with secure_client(server) as sock:
            receive_exactly(sock, 5)
            reset(sock)
        wait_until(lambda: ended)


def test_a_stop_does_not_wait_for_a_message_after_a_record_without_data() -> None:
    with serving(echo, tls=contexts()[0]) as server, own_client(server) as conn:
        conn.set_timeout(PATIENCE)
        select.select([conn.socket], [], [], PATIENCE)  # until the session tickets have come
        conn.end_input()
        assert conn.read() == b""


NO_RECORD = b"\x17\x03\x03\x00\x20" + bytes(32)  # which nobody has encrypted


@each_echo
def test_a_client_that_breaks_tls_is_no_fault_of_the_handler(handler: Any) -> None:
    with observed(events.ClientFailed, events.HandlerFailed) as seen:
        with serving(handler, tls=contexts()[0]) as server, client(server) as sock:
            with contexts()[1].wrap_socket(sock, server_hostname="localhost") as secured:
                socket.socket.sendall(secured, NO_RECORD)
                wait_until(lambda: seen)
    assert [type(event) for event in seen] == [events.ClientFailed]


def test_tls_that_a_handler_has_broken_elsewhere_is_its_own_fault() -> None:
    class Client(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with tcp_pair() as (ours, other):
                other.sendall(NO_RECORD)
                contexts()[1].wrap_socket(ours, server_hostname="localhost")

    with observed(events.ClientFailed, events.HandlerFailed) as seen:
        with serving(Client, tls=contexts()[0]) as server, client(server) as sock:
            with contexts()[1].wrap_socket(sock, server_hostname="localhost"):
                wait_until(lambda: seen)
    assert [type(event) for event in seen] == [events.HandlerFailed]


# --- Time limits ---


def send_part_of_a_record(sock: ssl.SSLSocket) -> None:
    """Send a header and a few bytes of a record, which cannot be decrypted yet."""
    socket.socket.send(sock, b"\x17\x03\x03\x01\x00" + bytes(3))


def send_much(sock: ssl.SSLSocket) -> None:
    sock.settimeout(0.3)
    with contextlib.suppress(OSError):
        while True:
            sock.sendall(BLOCK)


@pytest.mark.parametrize(
    ("limits", "act"),
    [
        ({"idle_timeout": 0.1}, lambda _: None),
        ({"read_timeout": 0.1, "idle_timeout": PATIENCE}, send_part_of_a_record),
        ({"write_timeout": 0.1}, send_much),
    ],
)
def test_the_time_limits_hold_for_clients_with_tls(limits: dict[str, float], act: Any) -> None:
    with observed(events.ClientFailed) as seen, serving(echo, tls=contexts()[0], **limits) as s:
        with secure_client(s) as sock:
            act(sock)
            wait_until(lambda: seen)
    assert failures(seen)[0].startswith(f"TimeoutError: [Errno 110] {next(iter(limits))}: ")


def test_a_close_notify_that_cannot_be_sent_is_a_write_that_timed_out() -> None:
    raised: list[BaseException] = []

    def handler(conn: netkit.Connection) -> None:
        conn.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        with contextlib.suppress(TimeoutError):
            while True:
                conn.write(bytes(1_000_000))
        try:
            conn.end()
        except TimeoutError as error:
            raised.append(error)
        conn.destroy()

    with serving(handler, tls=contexts()[0], write_timeout=0.05) as server:
        with secure_client(server):
            wait_until(lambda: raised)
    assert "write_timeout" in str(raised[0])


# --- Ended by others ---


def test_a_stop_ends_idle_tls_connections_with_a_close_notify() -> None:
    with serving(echo, tls=contexts()[0]) as server, secure_client(server) as sock:
        assert say(sock, b"hello") == b"hello"
        with in_thread(server.stop):
            assert receive_all(sock) == b""


@pytest.mark.parametrize(
    ("how", "version"),
    [*zip(("recv", "recv_into", "file", "without waiting"), VERSIONS * 2, strict=True)],
)
def test_what_a_handler_of_socketserver_says_after_a_stop_is_encrypted(
    how: str, version: ssl.TLSVersion
) -> None:
    class Polite(socketserver.StreamRequestHandler):
        def read(self) -> Any:
            if how == "file":
                return self.rfile.readline()
            if how == "recv_into":
                return self.request.recv_into(bytearray(100))
            if how == "recv":
                return self.request.recv(100)
            self.request.settimeout(0)
            while True:
                try:
                    return self.request.recv(100)
                except ssl.SSLWantReadError:
                    select.select([self.request], [], [])

        def handle(self) -> None:
            assert self.read()
            self.request.sendall(b"hello")
            while self.read():
                pass
            self.request.settimeout(PATIENCE)
            self.request.sendall(b"last")

    client_side = contexts(version)[1]
    with (
        serving(Polite, tls=pythons_contexts()[0]) as server,
        secure_client(server, client_side) as sock,
    ):
        sock.sendall(b"hello\n")
        assert receive_exactly(sock, 5) == b"hello"
        with in_thread(server.stop):
            assert receive_all(sock) == b"last"


def test_what_a_handler_of_socketserver_did_not_read_destroys_no_reply() -> None:
    class Deaf(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1)
            self.request.sendall(BLOCK)

    with serving(Deaf, tls=contexts()[0]) as server, own_client(server) as conn:
        with in_thread(conn.write, bytes(500_000)):
            assert conn.read() == BLOCK
        conn.end()


def test_a_stop_waits_for_a_handshake_and_for_a_record_under_way() -> None:
    with serving(echo, tls=contexts()[0]) as server:
        with secure_client(server) as sock, client(server) as slow:
            slow.sendall(b"\x16")
            server.wait_for_connections(2)
            shaking = [each for each in server.connections if each.tls is None]
            wait_until(lambda: shaking[0]._link.transport.has_begun())
            say(sock, b"hello")
            send_part_of_a_record(sock)
            connections = server.connections
            wait_until(lambda: all(each._link.has_begun() for each in connections))
            with in_thread(server.stop, PATIENCE):
                wait_until(
                    lambda: {each._link.input for each in connections} == {InputState.DRAINING}
                )
                time.sleep(0.05)  # that nothing happens cannot be waited for
                assert server.connection_count == 2
                sock.close()
                slow.close()
        assert server.connection_count == 0


def test_a_stop_just_before_a_handshake_is_not_overlooked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start_tls = netkit.Connection.start_tls

    def late(conn: netkit.Connection, *arguments: Any, **named: Any) -> None:
        wait_until(lambda: conn._link.input is InputState.DRAINING)
        start_tls(conn, *arguments, **named)

    monkeypatch.setattr(netkit.Connection, "start_tls", late)
    options = {"handshake_timeout": 60, "drain_timeout": 60}
    with serving(echo, tls=contexts()[0], **options) as server, client(server) as sock:
        server.wait_for_connections(1)
        assert server.stop() == (1, 0)
        assert sock.recv(1) in (b"", b"\x15")


@pytest.mark.parametrize("how", ["close", "destroy", "reset", "cut"])
@pytest.mark.parametrize("shaken", [True, False], ids=["reading", "handshaking"])
def test_another_thread_ends_a_read_or_a_handshake(how: str, shaken: bool) -> None:
    ended: list[Any] = []

    def handler(conn: netkit.Connection) -> None:
        try:
            conn.start_tls(contexts()[0], timeout=PATIENCE)
            ended.append(conn.read())
        except OSError as error:
            ended.append(type(error).__name__)

    with serving(handler) as server, contextlib.ExitStack() as stack:
        if shaken:
            stack.enter_context(secure_client(server))
        else:
            stack.enter_context(client(server))
        connection = connection_in_handshake(server)
        wait_until(lambda: connection.tls or not shaken)
        time.sleep(0.02)  # that it is in its recv by now cannot be seen
        getattr(connection, how)()
        wait_until(lambda: ended)
    handshaking = {"cut": "ConnectionAbortedError"}.get(how, "ConnectionClosedError")
    assert ended == [b"" if shaken else handshaking]


def test_a_reason_is_raised_in_a_read_through_tls_and_the_client_gets_the_last_bytes() -> None:
    raised: list[BaseException] = []

    def handler(conn: netkit.Connection) -> None:
        try:
            conn.read()
        except OSError as error:
            raised.append(error)
            conn.write("last word")

    reason = OSError("time to go")
    with serving(handler, tls=contexts()[0]) as server, secure_client(server) as sock:
        connection = connection_in_handshake(server)
        wait_until(lambda: connection.tls and connection._link.waiting)
        assert connection.interrupt(reason)
        assert receive_all(sock) == b"last word"
    assert raised == [reason]


# --- The command line, and other programs ---


def test_the_command_line_makes_a_certificate_for_trying_it_out() -> None:
    optional("cryptography")
    with Cli("echo", "--tls-self-signed", "--tls-alpn", "a,b") as server:
        reply = talk_with_openssl(server.port, "-alpn", "b", "-tls1_2")
        assert b"ALPN protocol: b" in reply
        assert re.search(rb'CN ?= ?"?netkit, self-signed', reply)
        server.send_signal()
        assert server.wait() == 0


def talk_with_openssl(port: int, *arguments: str) -> bytes:
    command = [tool("openssl"), "s_client", "-connect", f"127.0.0.1:{port}", *arguments]
    done = subprocess.run(
        command, input=b"Q\n", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE
    )
    return done.stdout


def test_openssl_trusts_the_certificate_and_gets_its_echo() -> None:
    with serving(echo, tls_cert=files().server) as server:
        command = [tool("openssl"), "s_client", "-quiet", "-verify_return_error"]
        command += ["-CAfile", files().ca, "-connect", f"127.0.0.1:{server.server_address[1]}"]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        with process:
            assert process.stdin and process.stdout
            process.stdin.write(b"hello\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"hello\n"
            process.kill()


NODE = """
const socket = require('tls').connect({
  port: +process.argv[2], host: '127.0.0.1', servername: 'localhost',
  ca: require('fs').readFileSync(process.argv[3]), allowHalfOpen: true,
}, () => socket.end('from node'))
let text = ''
socket.on('data', data => text += data)
socket.on('end', () => console.log(text, 'end'))
socket.on('close', failed => console.log('close', failed))
"""


def test_node_half_closes_and_gets_the_reply_and_the_end(tmp_path: Path) -> None:
    script = tmp_path / "client.js"
    script.write_text(NODE)

    def handler(conn: netkit.Connection) -> None:
        conn.end(conn.read() + b" and back")

    with serving(handler, tls_cert=files().server) as server:
        port = str(server.server_address[1])
        output = subprocess.run(
            [tool("node"), script, port, files().ca], stdout=subprocess.PIPE, timeout=PATIENCE
        ).stdout
    assert output == b"from node and back end\nclose false\n"


def test_sighup_reads_certificates_again_in_workers_too(tmp_path: Path) -> None:
    pem = tmp_path / "server.pem"
    shutil.copy(files().named["example.org"], pem)
    with Cli("echo", "--tls-cert", str(pem), "--workers", "2") as server:
        server.wait_for_line("2 workers")
        shutil.copy(files().server, pem)
        server.send_signal(signal.SIGHUP)
        server.wait_for_line("TLS reloaded")
        server.wait_for_line("reloaded: ")
        reply = talk_with_openssl(server.port, "-CAfile", files().ca)
        assert b"Verify return code: 0 (ok)" in reply
        server.send_signal()
        assert server.wait() == 0


def write_half_a_certificate(path: Path) -> None:
    path.write_text("half a certificate")


@pytest.mark.parametrize(
    ("start_method", "change"), [("fork", Path.unlink), ("spawn", write_half_a_certificate)]
)
def test_a_file_gone_bad_does_no_harm_to_workers_that_are_replaced(
    start_method: str, change: Callable[[Path], object], tmp_path: Path
) -> None:
    (pem, named), ca = (tmp_path / "server.pem", tmp_path / "named.pem"), files().ca
    shutil.copy(files().server, pem)
    shutil.copy(files().named["example.org"], named)
    (tmp_path / "script.py").write_text(f"""
import logging, multiprocessing, os, netkit
def handler(conn):
    conn.write(f"{{os.getpid()}}\\n")
    conn.read()
if __name__ == "__main__":
    logging.basicConfig(level="INFO", format="%(message)s")
    multiprocessing.set_start_method("{start_method}")
    tls = dict(tls_cert="server.pem", tls_client_ca={ca!r}, tls_sni={{"a": ("named.pem", None)}})
    netkit.run(netkit.create_server(handler, **tls).listen(0, "127.0.0.1"), workers=2)
""")
    context = client_context(ca=ca, cert=files().client)

    def pid() -> int:
        with context.wrap_socket(program.connect(), server_hostname="localhost") as sock:
            return int(sock.recv(100))

    def replaced() -> int:
        return sum(" ended by " in line for line in program.lines)

    with Program(sys.executable, "script.py", cwd=tmp_path) as program:
        program.wait_for_line("2 workers ready")
        change(pem)
        change(named)
        program.send_signal(signal.SIGHUP)  # which finds them, and keeps what it has
        program.wait_for_line("TLS not reloaded")
        program.wait_for_line("reloaded: 2")
        while replaced() < 2:
            with contextlib.suppress(ProcessLookupError):  # of an old worker, which has just ended
                os.kill(pid(), signal.SIGKILL)
            time.sleep(0.1)
        assert pid()
        program.send_signal()
        assert program.wait() == 0


def test_an_error_of_the_command_line_is_one_line() -> None:
    named, server = files().named, files().server
    sni = f"example.org={named['example.org']},example.net={named['example.net']}:{files().key}"
    for arguments, status, text in [
        (["--tls-cert", "/nonexistent"], 1, "the certificate file '/nonexistent': No such file"),
        (["--tls-cert", server, "--tls-sni", sni], 1, "does not match the certificate file"),
        (["--tls-key", "x"], 2, "echo: error: --tls-key needs --tls-cert (see netkit echo --help)"),
        (["--tls-sni", "x"], 2, "it must be NAME=CERTIFICATE:KEY,..."),
        (
            ["--tls-self-signed", "--tls-cert", server],
            2,
            "--tls-cert: not allowed with argument --tls-self-signed",
        ),
    ]:
        command = [sys.executable, "-m", "netkit", "echo", *arguments]
        done = subprocess.run(command, stderr=subprocess.PIPE, timeout=PATIENCE, text=True)
        assert (done.returncode, done.stderr.count("\n")) == (status, 1)
        assert text in done.stderr


# --- Under attack ---


def hello_for(name: bytes) -> bytes:
    """A ClientHello that asks for this name, of any bytes."""
    sent = ssl.MemoryBIO()
    usual = ("x" * 50 + ".") * 5
    usual = usual[: len(name) - 1] + "x"
    session = contexts()[1].wrap_bio(ssl.MemoryBIO(), sent, server_hostname=usual)
    with pytest.raises(ssl.SSLWantReadError):
        session.do_handshake()
    hello = sent.read()
    assert hello.count(usual.encode()) == 1
    return hello.replace(usual.encode(), name)


HOSTILE_NAMES = [b"\xff\x1b[31m\r\n{}", b"\x1b]0;pwned\x07\n", b"\xc3\xa4.example.org", b"a" * 255]
ODD_CLIENTS = [
    *(hello_for(name) for name in HOSTILE_NAMES),
    b"GET /\x1b[31m HTTP/1.1\r\n{}\r\n\r\n",
    b"\x16\x03\x01\x40\x00" + bytes(0x4000),
    b"\x15\x03\x01\x00\x02\x02\x28",
    b"\x80\x2e\x01\x00\x02",
    b"",
]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_whatever_clients_begin_with_all_of_standard_error_is_json(workers: str) -> None:
    sni = f"example.org={files().named['example.org']}"
    options = ("--tls-cert", files().server, "--tls-sni", sni, "--log-format", "json")
    with Cli("echo", *options, "--log-level", "debug", "--workers", workers) as server:
        for hello in ODD_CLIENTS * 5:
            with server.connect() as sock:
                send_and_end(sock, hello)
                with contextlib.suppress(ConnectionResetError):
                    receive_all(sock)
        wait_until(lambda: sum("ConnectionClosed" in line for line in server.lines) == 45)
        server.send_signal(signal.SIGTERM)
        assert server.wait() == 0
    records = [json.loads(line) for line in server.lines]
    ignored = [record for record in records if record["message"].startswith("ignored in")]
    assert 1 <= len(ignored) <= 2 * int(workers)  # of 10; the others are counted
    assert all(record["error_type"] == "UnicodeDecodeError" for record in ignored)
    assert all(line.isascii() and line.isprintable() for line in server.lines)


@each_echo
def test_the_name_in_sni_raises_nothing_where_no_certificate_depends_on_it(
    handler: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    with serving(handler, tls=contexts()[0]) as server:
        with client(server) as sock:
            send_and_end(sock, hello_for(b"\xff\x1b[31m"))
            receive_all(sock)
    assert capfd.readouterr().err == ""


# --- One time limit for every handshake of a server ---


@pytest.mark.parametrize(("own", "limit"), [({}, 0.1), ({"timeout": 0.05}, PATIENCE * 10)])
def test_a_handshake_that_a_handler_begins_has_the_time_limit_of_its_server(
    own: dict[str, float], limit: float
) -> None:
    options = {"tls": contexts()[0], "starttls": True, "handshake_timeout": limit}
    with observed(events.ClientFailed) as told:
        with serving(lambda conn: conn.start_tls(**own), **options) as server, client(server):
            wait_until(lambda: told)
    assert f"within {own.get('timeout', limit):g} seconds" in str(told[0].error)


def test_a_handshake_of_a_connection_that_a_program_takes_has_the_limit_of_its_server() -> None:
    options = {"tls": contexts()[0], "handshake_timeout": 0.05}
    with netkit.create_server(**options).listen(0, "127.0.0.1") as server, client(server):
        with next(iter(server)) as conn, pytest.raises(TimeoutError, match="handshake_timeout"):
            conn.start_tls()
