"""TLS on some of the listeners of a server, and not on the others."""

from __future__ import annotations

import contextlib
import socket
import socketserver
from collections.abc import Iterator
from typing import Any

import pytest
from secure import contexts, files
from support import (
    PATIENCE,
    Cli,
    each_echo,
    echo,
    observed,
    receive_all,
    receive_exactly,
    send_and_end,
    silent_log,
    wait_until,
)

import netkit
from netkit.core import events
from netkit.process.work import Recipe, recipe_of

PLAIN, SECURE = "127.0.0.1:0?tls=off", "127.0.0.1:0?tls=on"


def plain(server: netkit.Server, number: int) -> socket.socket:
    """A plain socket that is connected to a listener of the server."""
    address: Any = server.addresses[number]
    return socket.create_connection((address.address, address.port), PATIENCE)


@contextlib.contextmanager
def secure(server: netkit.Server, number: int) -> Iterator[socket.socket]:
    with plain(server, number) as sock:
        with contexts()[1].wrap_socket(sock, server_hostname="localhost") as secured:
            yield secured


def say(sock: socket.socket, data: bytes = b"hello") -> bytes:
    sock.sendall(data)
    return receive_exactly(sock, len(data))


@contextlib.contextmanager
def listening(handler: Any, *addresses: str, **options: Any) -> Iterator[netkit.Server]:
    options = {"tls_cert": files().server, **options}
    with netkit.create_server(handler, **options).listen_on(*addresses) as server:
        yield server


def check(server: netkit.Server, *, is_secure: tuple[bool, ...]) -> None:
    """Check which listeners of an echo server speak TLS. Several rounds, since they take turns."""
    for _ in range(2):
        for number, tls in enumerate(is_secure):
            with secure(server, number) if tls else plain(server, number) as sock:
                assert say(sock) == b"hello"


@each_echo
def test_a_listener_may_be_without_tls(handler: Any) -> None:
    with listening(handler, "127.0.0.1:0", PLAIN, "127.0.0.1:0") as server:
        check(server, is_secure=(True, False, True))


@each_echo
def test_a_listener_may_speak_tls_at_once_where_others_wait_for_starttls(handler: Any) -> None:
    with listening(handler, "127.0.0.1:0", SECURE, starttls=True) as server:
        check(server, is_secure=(False, True))


@each_echo
def test_a_hook_changes_nothing(handler: Any) -> None:
    class Verifying(netkit.Server):
        def verify_request(self, request: Any, client_address: Any) -> bool:
            return True

    server = Verifying(None, handler, tls_cert=files().server)
    with server.listen_on(SECURE, PLAIN):
        check(server, is_secure=(True, False))


def test_a_hook_that_accepts_by_itself_accepts_from_the_first_listener() -> None:
    class Accepting(netkit.Server):
        def get_request(self) -> Any:
            return self.socket.accept()

    server = Accepting(None, echo, tls_cert=files().server)
    with server.listen_on(PLAIN, "127.0.0.1:0"), plain(server, 0) as sock:
        assert say(sock) == b"hello"


def test_a_handler_may_start_tls_on_a_plain_listener() -> None:
    def handler(conn: netkit.Connection) -> None:
        assert conn.tls is None
        assert conn.readline() == b"STARTTLS\n"
        conn.write("go on\n")
        conn.start_tls()
        echo(conn)

    with listening(handler, PLAIN) as server, plain(server, 0) as sock:
        sock.sendall(b"STARTTLS\n")
        assert receive_exactly(sock, 6) == b"go on\n"
        with contexts()[1].wrap_socket(sock, server_hostname="localhost") as secured:
            assert say(secured) == b"hello"


def test_a_unix_socket_may_be_without_tls(tmp_path: Any) -> None:
    path = str(tmp_path / "s")
    with listening(echo, "127.0.0.1:0", f"unix:{path}?tls=off") as server:
        with secure(server, 0) as secured, socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            assert say(sock) == say(secured) == b"hello"


def test_an_inherited_socket_may_speak_tls_or_not() -> None:
    with netkit.BoundSocket("127.0.0.1") as bound, socket.socket() as sock:
        server = netkit.create_server(echo, tls_cert=files().server)
        with server.listen(sock=bound, tls=False):
            check(server, is_secure=(False,))
        sock.bind(("127.0.0.1", 0))
        server = netkit.create_server(echo, tls_cert=files().server, starttls=True)
        with server.listen_on(f"fd:{sock.detach()}?tls=on"):
            check(server, is_secure=(True,))


@pytest.mark.parametrize("when_full", ["refuse", 0.01])
def test_a_refused_client_gets_the_text_unless_it_expects_tls(when_full: Any) -> None:
    options = {"max_connections": 1, "when_full": when_full, "refusal": "full\n"}
    with silent_log(), listening(echo, PLAIN, SECURE, **options) as server:
        with plain(server, 0) as first:
            assert say(first) == b"hello"
            with plain(server, 0) as sock:
                assert receive_all(sock) == b"full\n"
            with plain(server, 1) as sock:
                assert receive_all(sock) == b""


def test_a_client_that_was_held_is_served_as_its_listener_says() -> None:
    options = {"max_connections": 1, "when_full": PATIENCE}
    with listening(echo, "127.0.0.1:0", PLAIN, **options) as server:
        for number in (0, 1):
            with secure(server, 0) as first:
                assert say(first) == b"hello"
                waiting = plain(server, number)
                wait_until(lambda: server._overflow.held)
            with waiting:
                if number == 0:
                    waiting = contexts()[1].wrap_socket(waiting, server_hostname="localhost")
                assert say(waiting) == b"hello"
                send_and_end(waiting, b"")
                waiting.close()
            assert server.wait_for_connections(0, PATIENCE)


def test_a_new_certificate_is_for_the_listeners_that_speak_tls() -> None:
    with listening(echo, PLAIN, "127.0.0.1:0") as server:
        assert server.reload_tls()
        check(server, is_secure=(False, True))
        server.configure(starttls=True)
        check(server, is_secure=(False, False))


def test_where_a_server_speaks_tls_is_announced() -> None:
    with observed(events.Listening) as seen, listening(echo, PLAIN, "127.0.0.1:0"):
        assert [event.tls for event in seen] == [False, True]


NEEDS = "a listener with tls=True needs a server with tls_cert or tls"


def test_a_listener_that_speaks_tls_needs_a_certificate() -> None:
    server = netkit.create_server(echo)
    with pytest.raises(ValueError, match=NEEDS):
        server.listen(0, "127.0.0.1", tls=True)
    assert not server.listening
    with pytest.raises(TypeError, match="tls must be True, False or None, not 'on'"):
        server.listen(tls="on")  # type: ignore[arg-type]
    with server.listen(0, "127.0.0.1", tls=False):
        check(server, is_secure=(False,))


def test_the_certificate_of_a_listener_that_speaks_tls_cannot_be_removed() -> None:
    with listening(echo, PLAIN, SECURE) as server:
        with pytest.raises(ValueError, match=NEEDS):
            server.configure(tls_cert=None)
        check(server, is_secure=(False, True))
    server.configure(tls_cert=None)  # it is closed


def test_the_listeners_of_a_spawned_worker_are_those_of_its_parent() -> None:
    with listening(socketserver.BaseRequestHandler, PLAIN, SECURE) as server:
        recipe: Recipe = recipe_of(server, None, {})
        assert [each.tls for each in recipe.layers] == [False, True]


def test_workers_speak_tls_where_their_parent_says() -> None:
    addresses = ("127.0.0.1:0?tls=off", "127.0.0.1:0")
    flags = ("--tls-cert", files().server, "--workers", "2")
    with Cli("echo", *addresses, *flags) as program:
        program.wait_for_line(r"\(TLS\)")
        program.wait_for_line("ready")
        with program.connect() as sock:
            assert say(sock) == b"hello"
        line = next(line for line in program.lines if "TLS" in line)
        program.port = int(line.rpartition(":")[2].split()[0])
        with program.connect() as sock:
            with contexts()[1].wrap_socket(sock, server_hostname="localhost") as secured:
                assert say(secured) == b"hello"
        program.send_signal()
        assert program.wait() == 0
