"""Clients that come through a proxy, which introduces them by PROXY headers."""

from __future__ import annotations

import contextlib
import gc
import logging
import socket
import socketserver
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import descriptors_left
from secure import files
from support import (
    PATIENCE,
    client,
    in_thread,
    needs_ipv6,
    observed,
    receive_all,
    receive_exactly,
    reset,
    send_and_end,
    silent_log,
    wait_until,
)

import netkit
from netkit import ProxyHeader, events

CLIENT, SERVER = ("192.0.2.7", 50312), ("198.51.100.1", 443)
V1 = ProxyHeader(CLIENT, SERVER).encode(1)
V2 = ProxyHeader(CLIENT, SERVER, unique_id=b"17-4", authority="example.org").encode(crc=True)
LOCAL = ProxyHeader(command="LOCAL").encode()


@contextlib.contextmanager
def proxied(handler: Any, *, tls: bool | None = None, **options: Any) -> Iterator[netkit.Server]:
    server = netkit.create_server(handler, **options)
    with server.listen(0, "127.0.0.1", proxy=True, tls=tls):
        yield server


def exchange(server: netkit.Server, data: bytes) -> bytes:
    """What comes back before the end, or before a reset."""
    received = bytearray()
    with contextlib.suppress(ConnectionError), client(server) as sock:
        send_and_end(sock, data)
        while chunk := sock.recv(65536):
            received += chunk
    return bytes(received)


def names(conn: netkit.Connection) -> None:
    """Write what a handler sees of its client, and then the input."""
    ends = conn.remote_address, conn.remote_port, conn.remote_family, conn.local_address
    thread = threading.current_thread().name.partition(" ")[2]
    conn.write(f"{ends} {conn.local} {conn.peer} {thread}|")
    conn.pipe_to(conn)


class Names(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.sendall(f"{self.client_address}|".encode())
        while data := self.request.recv(1000):
            self.request.sendall(data)


@pytest.mark.parametrize("header", [V1, V2])
def test_a_handler_sees_the_client_and_not_the_proxy(header: bytes) -> None:
    with proxied(names) as server:
        shown = exchange(server, header + b"hello").decode()
    peer = "192.0.2.7:50312"
    ends = ("192.0.2.7", 50312, "IPv4", "198.51.100.1")
    assert shown == f"{ends} 198.51.100.1:443 {peer} {peer}|hello"


def test_the_header_is_an_attribute_of_the_connection() -> None:
    seen = []
    with proxied(lambda conn: seen.append((conn.proxy, conn.expects_proxy))) as server:
        with client(server) as sock:
            sock.sendall(V2)
            assert receive_all(sock) == b""
            proxy = netkit.SocketAddress(*sock.getsockname())
    ((header, expects),) = seen
    assert header.source == netkit.SocketAddress(*CLIENT)
    assert header.destination == netkit.SocketAddress(*SERVER)
    assert (header.version, header.command, header.via) == (2, "PROXY", proxy)
    assert (header.unique_id, header.authority) == (b"17-4", "example.org")
    assert not expects


@pytest.mark.parametrize("data", [LOCAL, b"PROXY UNKNOWN ffff\r\n"])
def test_a_connection_without_a_client_has_the_addresses_of_its_socket(data: bytes) -> None:
    seen = []
    with proxied(lambda conn: seen.append((conn.peer, conn.local, conn.proxy))) as server:
        with client(server) as sock:
            sock.sendall(data)
            assert receive_all(sock) == b""
            ours = "{}:{}".format(*sock.getsockname())
    ((peer, local, header),) = seen
    assert (peer, local) == (ours, str(server.addresses or f"127.0.0.1:{server.server_address[1]}"))
    assert header.source is None


V6 = ProxyHeader(("2001:db8::7", 1), ("2001:db8::1", 2)).encode()
UNIX = ProxyHeader("/run/client", "/run/server").encode()


@pytest.mark.parametrize(
    ("header", "address"),
    [
        (V1, ("192.0.2.7", 50312)),
        (V6, ("2001:db8::7", 1, 0, 0)),
        (UNIX, "/run/client"),
    ],
)
def test_a_request_handler_has_the_address_as_a_socket_gives_it(
    header: bytes, address: Any
) -> None:
    with proxied(Names) as server:
        assert exchange(server, header + b"hello") == f"{address}|hello".encode()


def test_a_header_may_arrive_in_any_pieces() -> None:
    with proxied(Names) as server, client(server) as sock:
        for at in range(len(V2)):
            sock.sendall(V2[at : at + 1])
            time.sleep(0.0005)
        sock.sendall(b"hello")
        sock.shutdown(socket.SHUT_WR)
        assert receive_all(sock) == f"{CLIENT}|hello".encode()


def secured(sock: socket.socket) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=files().ca)
    return context.wrap_socket(sock, server_hostname="localhost")


@pytest.mark.parametrize("handler", [names, Names])
def test_tls_begins_behind_the_header(handler: Any) -> None:
    certificate = {"tls_cert": files().cert, "tls_key": files().key}
    with proxied(handler, **certificate) as server, client(server) as sock:
        sock.sendall(V2)
        with secured(sock) as tls:
            tls.sendall(b"hello")
            assert b"192.0.2.7" in receive_exactly(tls, 20)


class Wrapping(netkit.Server):
    """A server whose program wraps the sockets of its clients itself."""

    def get_request(self) -> tuple[Any, Any]:
        request, address = super().get_request()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files().cert, files().key)
        wrap = context.wrap_socket
        return wrap(request, server_side=True, do_handshake_on_connect=False), address


@pytest.mark.parametrize("handler", [names, Names])
def test_the_header_comes_before_the_handshake_of_a_socket_that_the_program_has_wrapped(
    handler: Any,
) -> None:
    with Wrapping(None, handler).listen(0, "127.0.0.1", proxy=True) as server:
        with client(server) as sock:
            sock.sendall(V2)
            with secured(sock) as tls:
                tls.sendall(b"hello")
                assert b"192.0.2.7" in receive_exactly(tls, 20)


def test_starttls_comes_later_and_has_its_own_time() -> None:
    def handler(conn: netkit.Connection) -> None:
        assert conn.readline() == b"STARTTLS\n"
        assert "handshake_until" not in vars(conn)
        conn.write("go\n")
        conn.start_tls()
        names(conn)

    options = {"tls_cert": files().cert, "tls_key": files().key, "starttls": True}
    with proxied(handler, **options) as server, client(server) as sock:
        sock.sendall(V1 + b"STARTTLS\n")
        assert receive_exactly(sock, 3) == b"go\n"
        with secured(sock) as tls:
            assert b"192.0.2.7" in receive_exactly(tls, 20)


def test_an_iteration_yields_clients_whose_headers_have_been_read() -> None:
    server = netkit.create_server().listen(0, "127.0.0.1", proxy=True)

    def serve() -> None:
        for conn in server:
            with conn:
                names(conn)

    with server, in_thread(serve):
        try:
            with client(server):  # sends nothing, and keeps nobody waiting
                assert exchange(server, V2 + b"hello").endswith(b"|hello")
        finally:
            server.close()


def test_a_client_that_is_introduced_after_an_iteration_is_not_left_open() -> None:
    server = netkit.create_server().listen(0, "127.0.0.1", proxy=True)
    with server, client(server) as late:
        clients = iter(server)
        with client(server) as sock:
            sock.sendall(V2)
            next(clients).close()
        clients.close()  # type: ignore[attr-defined] # it is a generator
        late.sendall(V2)
        assert receive_all(late) == b""
        assert server.wait_for_connections(0, PATIENCE)


class Hooked(netkit.Server):
    """A server that overrides hooks, which note the address that they are given."""

    seen: list[Any]

    def verify_request(self, request: Any, client_address: Any) -> bool:
        self.seen.append(("verify", client_address))
        return True

    def finish_request(self, request: Any, client_address: Any) -> None:
        self.seen.append(("finish", client_address))
        super().finish_request(request, client_address)


class Scheduling(Hooked):
    def process_request(self, request: Any, client_address: Any) -> None:
        self.seen.append(("process", client_address))
        super().process_request(request, client_address)


@pytest.mark.parametrize("kind", [Hooked, Scheduling])
@pytest.mark.parametrize("handler", [names, Names])
def test_overridden_hooks_are_given_the_address_of_the_client(kind: Any, handler: Any) -> None:
    server = kind(None, handler)
    server.seen = []
    with server.listen(0, "127.0.0.1", proxy=True):
        assert exchange(server, V2 + b"hello").endswith(b"|hello")
    hooks = ["verify", "process", "finish"] if kind is Scheduling else ["verify", "finish"]
    assert server.seen == [(hook, CLIENT) for hook in hooks]


class Refusing(Hooked):
    def verify_request(self, request: Any, client_address: Any) -> bool:
        return False


class Failing(Hooked):
    def process_request(self, request: Any, client_address: Any) -> None:
        raise ValueError("no")


@pytest.mark.parametrize("kind", [Refusing, Failing])
def test_a_hook_may_refuse_a_client_or_fail(kind: Any) -> None:
    with observed(events.HandlerFailed) as failed:
        with kind(None, names).listen(0, "127.0.0.1", proxy=True) as server:
            assert exchange(server, V2 + b"hello") == b""
            assert server.wait_for_connections(0, PATIENCE)
    assert [event.peer for event in failed] == ["192.0.2.7:50312"] * (kind is Failing)


# What is no header


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"GET / HTTP/1.1\r\n", "sent no PROXY header: 'GET / HTTP/1.1'"),
        (b"\x1b[2J", r"sent no PROXY header: '\x1b[2J'"),
        (b"PROXY TCP4 1.2.3.4", "sent an incomplete PROXY header, of 18 bytes"),
        (V2[:-1] + b"!", "sent an invalid PROXY header: its checksum is wrong"),
    ],
)
@pytest.mark.parametrize("handler", [names, Names])
def test_what_is_no_header_ends_the_connection_and_is_logged_in_one_line(
    handler: Any, data: bytes, message: str
) -> None:
    wanted = events.ConnectionOpened, events.ClientFailed, events.ConnectionClosed
    with observed(*wanted) as seen, proxied(handler) as server:
        assert exchange(server, data) == b""
        assert server.wait_for_connections(0, PATIENCE)
    opened, failed, closed = seen
    assert isinstance(failed.error, netkit.ProxyHeaderError)
    assert str(failed.error) == f"the proxy 127.0.0.1 {message}"
    assert failed.message().isprintable()
    assert (opened.via, closed.via, closed.end) == ("", "", "proxy_header")
    assert opened.peer == failed.peer == closed.peer


@pytest.mark.parametrize("data", [b"", LOCAL])
def test_the_checks_of_a_proxy_are_quiet(data: bytes) -> None:
    def leave(server: netkit.Server) -> None:
        with client(server) as sock:
            sock.sendall(data)

    loud = observed(events.ClientFailed, events.HandlerFailed, events.Refusing)
    with loud as seen, observed(events.ConnectionClosed) as closed:
        limits = {"max_connection_rate": 1, "max_connections_per_ip": 1, "deny": "127.0.0.1"}
        with proxied(names, **limits) as server:
            for _ in range(20):
                leave(server)
            wait_until(lambda: len(closed) == 20)
    assert seen == []
    assert {event.end for event in closed} <= {"probe", "reset", "done"}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts the bytes")
@pytest.mark.parametrize("handler", [names, Names])
def test_the_bytes_of_a_header_are_not_those_of_the_client(handler: Any) -> None:
    with observed(events.ConnectionClosed) as closed, proxied(handler) as server:
        assert exchange(server, V2 + b"hello").endswith(b"|hello")
        assert server.wait_for_connections(0, PATIENCE)
    assert [event.bytes_read for event in closed] == [5]


def test_a_reset_amid_a_header_is_no_probe() -> None:
    with observed(events.ConnectionClosed) as closed, proxied(names) as server:
        with client(server) as sock:
            sock.sendall(V2[:20])
            wait_until(lambda: server.connections and server.connections[0]._link.waiting)
            reset(sock)
        assert server.wait_for_connections(0, PATIENCE)
    assert [event.end for event in closed] == ["proxy_header"]


@pytest.mark.parametrize("handler", [names, Names])
def test_a_trickle_does_not_put_off_the_handshake_timeout(handler: Any) -> None:
    with observed(events.ClientFailed) as failed, observed(events.ConnectionClosed) as closed:
        with proxied(handler, handshake_timeout=0.3) as server, client(server) as sock:
            began = time.monotonic()
            with contextlib.suppress(ConnectionError):
                for at in range(len(V2)):
                    sock.sendall(V2[at : at + 1])
                    time.sleep(0.05)
            assert time.monotonic() - began < PATIENCE / 2
            assert server.wait_for_connections(0, PATIENCE)
    (event,) = failed
    assert "handshake_timeout: no PROXY header from 127.0.0.1:" in str(event.error)
    assert str(event.error).endswith(" within 0.3 seconds")
    assert [event.end for event in closed] == ["handshake_timeout"]


@pytest.mark.parametrize("handler", [names, Names])
def test_header_and_handshake_have_one_time_limit(handler: Any) -> None:
    options = {"tls_cert": files().cert, "tls_key": files().key, "handshake_timeout": 2}
    with observed(events.ConnectionClosed) as closed, proxied(handler, **options) as server:
        with client(server) as sock:
            began = time.monotonic()
            time.sleep(1.5)
            sock.sendall(V2)
            assert receive_all(sock) in (b"", b"\x15\x03\x01\x00\x02\x02\x0a")
            assert time.monotonic() - began < 3.4  # and not 1.5 seconds and 2 more
        assert server.wait_for_connections(0, PATIENCE)
    assert [event.end for event in closed] == ["handshake_timeout"]


def test_without_a_handshake_timeout_a_header_may_take_any_time() -> None:
    with proxied(names, handshake_timeout=None) as server, client(server) as sock:
        sock.sendall(V1[:-1])
        wait_until(lambda: server.connections and server.connections[0]._link.waiting)
        send_and_end(sock, V1[-1:] + b"hello")
        assert receive_all(sock).endswith(b"|hello")


def test_without_descriptors_headers_are_read_and_new_clients_wait() -> None:
    pytest.importorskip("resource")
    with silent_log(), proxied(names) as server, client(server) as early, socket.socket() as late:
        awaited(server)
        late.settimeout(PATIENCE)
        gc.collect()  # so that no descriptor is closed in the block
        with observed(events.AcceptPaused) as paused, descriptors_left(0):
            late.connect(server.server_address)
            send_and_end(late, V2 + b"late")
            wait_until(lambda: paused)
            send_and_end(early, V2 + b"early")
            assert receive_all(early).endswith(b"|early")
        assert receive_all(late).endswith(b"|late")


# Stopping, while a header is awaited


def awaited(server: netkit.Server) -> netkit.Connection:
    wait_until(lambda: server.connections and server.connections[0]._link.waiting)
    (conn,) = server.connections
    assert conn.expects_proxy
    return conn


@pytest.mark.parametrize("sent", [b"", V2[:20]])
def test_a_stop_does_not_wait_for_a_header(sent: bytes) -> None:
    with observed(events.ClientFailed) as failed, observed(events.ConnectionClosed) as closed:
        with proxied(names) as server, client(server) as sock:
            sock.sendall(sent)
            awaited(server)
            began = time.monotonic()
            server.stop(PATIENCE)
            assert time.monotonic() - began < PATIENCE / 2
            assert failed == []
    assert [event.end for event in closed] == ["drained"]


def test_a_client_that_was_queued_with_its_header_is_served_by_a_stop() -> None:
    server = netkit.create_server(names).listen(0, "127.0.0.1", proxy=True)
    with client(server) as sock:
        sock.sendall(V2 + b"hello")
        server.suspend()
        server.start()
        server.resume()
        report = server.stop()
        assert receive_all(sock).endswith(b"|hello")
    assert report.cut == 0


@pytest.mark.parametrize("hard", [True, False])
def test_a_connection_may_be_interrupted_or_closed_before_its_header(hard: bool) -> None:
    with observed(events.ConnectionClosed) as closed, proxied(names) as server:
        with client(server) as sock:
            conn = awaited(server)
            if hard:
                conn.interrupt(netkit.KilledError(conn.peer), hard=True)
            else:
                conn.destroy()
            assert receive_all(sock) == b""
            assert server.wait_for_connections(0, PATIENCE)
    assert [event.end for event in closed] == ["killed" if hard else "refused"]


def test_a_client_for_which_no_thread_starts_is_closed() -> None:
    with proxied(names) as server:
        server._client_threads.run = lambda *_: False  # type: ignore[method-assign]
        assert exchange(server, V2) == b""
        assert server.wait_for_connections(0, PATIENCE)


# Who may introduce clients, and which clients


def test_a_stranger_is_refused_before_anything_is_read() -> None:
    with observed(events.ClientRefused, events.Refusing, events.ConnectionOpened) as seen:
        with proxied(names, proxy_from=["10.0.0.0/8"], refusal="full\n") as server:
            with client(server) as sock:
                assert receive_all_or_reset(sock) == b""
            assert exchange(server, V2 + b"hello") == b""
            wait_until(lambda: server.refused_count == 2)
    refused = [event for event in seen if isinstance(event, events.ClientRefused)]
    assert [event.reason for event in refused] == ["proxy_from"] * 2
    assert [type(event) for event in seen].count(events.Refusing) == 1
    assert len(seen) == 3


def receive_all_or_reset(sock: socket.socket) -> bytes:
    try:
        return receive_all(sock)
    except ConnectionResetError:
        return b""


@needs_ipv6
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_by_default_the_proxies_of_this_machine_are_trusted(host: str) -> None:
    """Also where an IPv4 address appears in its IPv6 form."""
    server = netkit.create_server(names).listen(0, proxy=True)
    with server, socket.create_connection((host, server.address.port), PATIENCE) as sock:
        send_and_end(sock, V2 + b"hello")
        assert receive_all(sock).endswith(b"|hello")


@needs_ipv6
def test_a_network_of_ipv4_matches_a_proxy_on_a_listener_of_ipv6() -> None:
    server = netkit.create_server(names, proxy_from="127.0.0.0/8").listen(0, "::", proxy=True)
    with server:
        with socket.create_connection(("127.0.0.1", server.address.port), PATIENCE) as sock:
            send_and_end(sock, V2 + b"hello")
            assert receive_all(sock).endswith(b"|hello")
        with socket.create_connection(("::1", server.address.port), PATIENCE) as sock:
            assert receive_all_or_reset(sock) == b""


def test_everybody_who_may_open_a_unix_socket_may_introduce_clients(tmp_path: Path) -> None:
    path = tmp_path / "s"
    server = netkit.create_server(names, proxy_from="10.0.0.0/8")
    with server.listen(path=path, proxy=True), socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(str(path))
        send_and_end(sock, V2 + b"hello")
        assert receive_all(sock).startswith(b"('192.0.2.7', 50312, 'IPv4', '198.51.100.1')")
    with server.listen(path=path, proxy=True), socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(str(path))
        with observed(events.ClientFailed, events.ConnectionOpened) as seen:
            sock.sendall(b"GET /")
            assert receive_all_or_reset(sock) == b""
    assert str(seen[1].error) == "the proxy unix sent no PROXY header: 'GET /'"


@pytest.mark.parametrize(
    ("limit", "reason", "message"),
    [
        ({"deny": "192.0.2.0/24"}, "deny", b""),
        ({"allow": "203.0.113.0/24"}, "allow", b""),
        ({"max_connections_per_ip": 0}, "max_connections_per_ip", b"full\n"),
        ({"max_connection_rate": 1e-9}, "max_connection_rate", b"full\n"),
    ],
)
@pytest.mark.parametrize("handler", [names, Names])
def test_the_limits_judge_the_client_and_not_the_proxy(
    handler: Any, limit: dict[str, Any], reason: str, message: bytes
) -> None:
    kinds = events.ConnectionOpened, events.ClientRefused, events.ConnectionClosed
    with proxied(handler, **limit, refusal="full\n") as server:
        if reason == "max_connection_rate":
            exchange(server, V2)
            assert server.wait_for_connections(0, PATIENCE)
        with observed(*kinds) as seen:
            assert exchange(server, V2 + b"hello") == message
            assert server.wait_for_connections(0, PATIENCE)
    opened, refused, closed = seen
    assert (refused.peer, refused.reason, refused.id) == ("192.0.2.7:50312", reason, opened.id)
    assert (opened.via, closed.via) == ("127.0.0.1", "127.0.0.1")
    assert closed.end == "refused"
    assert server.refused_count == 1


def test_a_client_that_expects_tls_is_sent_no_refusal_in_clear_text() -> None:
    options = {"tls_cert": files().cert, "tls_key": files().key, "refusal": "full\n"}
    with proxied(names, max_connections_per_ip=0, **options) as server:
        assert exchange(server, V2) == b""


def test_each_client_has_its_share_and_gives_it_back() -> None:
    other = ProxyHeader(("192.0.2.8", 1), SERVER).encode()
    with proxied(names, max_connections_per_ip=1, max_connections=10) as server:
        for _ in range(3):
            with client(server) as first:
                first.sendall(V2)
                receive_exactly(first, 10)
                assert exchange(server, V2 + b"hello") == b""
                assert exchange(server, other + b"hello").endswith(b"hello")
            assert server.wait_for_connections(0, PATIENCE)
        assert exchange(server, V2 + b"hello").endswith(b"hello")


def test_a_client_that_is_held_sends_its_header_when_it_has_a_place() -> None:
    with proxied(names, max_connections=1, when_full=PATIENCE) as server:
        with client(server) as first:
            first.sendall(V2)
            receive_exactly(first, 10)
            with client(server) as second:
                send_and_end(second, V2 + b"hello")
                first.shutdown(socket.SHUT_WR)
                assert receive_all(second).endswith(b"|hello")


def test_the_share_of_a_client_that_another_thread_closes_is_given_back() -> None:
    with proxied(names, max_connections_per_ip=1) as server:
        admission = server._admission
        judge = admission.judge

        def closing(client_address: Any) -> Any:
            (conn,) = server.connections
            admission.over(conn)
            return judge(client_address)

        admission.judge = closing  # type: ignore[method-assign]
        exchange(server, V2 + b"hello")
        admission.judge = judge  # type: ignore[method-assign]
        assert server.wait_for_connections(0, PATIENCE)
        assert exchange(server, V2 + b"hello").endswith(b"hello")


# Options and listeners


def test_trusted_proxies_need_a_listener_for_them() -> None:
    server = netkit.create_server(names, proxy_from="10.0.0.0/8")
    with pytest.raises(ValueError, match="proxy_from needs a listener with proxy=True"):
        server.listen(0, "127.0.0.1")
    with pytest.raises(ValueError, match="proxy_from needs"):
        netkit.Server(("127.0.0.1", 0), Names, proxy_from="10.0.0.0/8")
    with netkit.create_server(names).listen(0, "127.0.0.1") as plain:
        with pytest.raises(ValueError, match="proxy_from needs"):
            plain.configure(proxy_from="10.0.0.0/8")
    with pytest.raises(TypeError, match="proxy must be True or False, not 1"):
        server.listen(0, "127.0.0.1", proxy=1)  # type: ignore[arg-type]


def test_a_plain_listener_beside_one_for_proxies_reads_no_header() -> None:
    server = netkit.create_server(names, proxy_from="127.0.0.1", allow="127.0.0.1")
    server.listen_on("127.0.0.1:0?proxy=on", "127.0.0.1:0")
    with observed(events.Listening), server:
        _, plain = server.addresses
        with socket.create_connection(plain[:2], PATIENCE) as sock:
            send_and_end(sock, b"hello")
            assert receive_all(sock).startswith(b"('127.0.0.1', ")
        assert exchange(server, V2 + b"hello") == b""  # which `allow` refuses


def test_the_list_of_proxies_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "proxies"
    path.write_text("# empty\n")  # which trusts nobody
    with proxied(names, proxy_from=f"@{path}") as server:
        assert exchange(server, V2 + b"hello") == b""
        path.write_text("127.0.0.1\n")
        assert server.can_reload
        assert server.reload()
        assert exchange(server, V2 + b"hello").endswith(b"|hello")


def test_the_time_limits_of_a_handler_name_the_client() -> None:
    with observed(events.ClientFailed) as failed:
        with proxied(lambda conn: conn.read(), idle_timeout=0.05) as server:
            with client(server) as sock:
                sock.sendall(V2)
                assert receive_all_or_reset(sock) == b""
    assert "nothing received from 192.0.2.7:50312" in failed[0].message()


def test_1000_checks_leave_an_empty_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "netkit")
    with observed(events.ConnectionClosed) as closed:
        with proxied(lambda conn: conn.read()) as server:
            caplog.clear()
            for _ in range(1000):
                with client(server) as sock:
                    sock.sendall(LOCAL)
            wait_until(lambda: len(closed) == 1000)
            assert caplog.records == []
