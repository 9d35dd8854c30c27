"""The PROXY headers that clients send."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from secure import files
from support import PATIENCE, needs_ipv6, receive_all

import netkit
from netkit import ProxyHeader, SocketAddress
from netkit.client.introduction import Pretended, header_of

CLIENT, SERVER = SocketAddress("192.0.2.7", 50312), SocketAddress("198.51.100.1", 443)
HEADER = ProxyHeader(CLIENT, SERVER, authority="example.org")


def sent(proxy: Any, **options: Any) -> tuple[bytes, netkit.Connection]:
    """What a server receives from a client that sends nothing else, and the closed client."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        conn = netkit.connect(listener.getsockname()[1], "127.0.0.1", proxy=proxy, **options)
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(PATIENCE)
            conn.close()
            return receive_all(accepted), conn


@pytest.mark.parametrize(("word", "version"), [("v1", 1), ("v2", 2)])
def test_a_client_may_introduce_itself(word: str, version: int) -> None:
    data, conn = sent(word)
    header = ProxyHeader.parse(data)
    assert header.version == version
    assert header.source == (conn.local_address, conn.local_port, "IPv4")
    assert header.destination == (conn.remote_address, conn.remote_port, "IPv4")


def test_a_check_has_no_client() -> None:
    assert sent("local")[0] == ProxyHeader(command="LOCAL").encode()


def test_a_header_is_sent_as_it_is() -> None:
    assert sent(HEADER)[0] == HEADER.encode()
    assert sent(HEADER._replace(version=1))[0] == HEADER.encode(1)


@pytest.mark.parametrize(
    ("proxy", "error", "message"),
    [
        ("v3", ValueError, "proxy must be 'v1', 'v2' or 'local', not 'v3'"),
        (2, TypeError, "proxy must be text, a ProxyHeader or a Connection, not 2"),
    ],
)
def test_another_value_is_an_error_before_the_first_attempt(
    proxy: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        netkit.connect(1, proxy=proxy)
    assert str(caught.value) == message


def test_a_header_that_is_too_long_closes_the_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ValueError, match="where 16384 are allowed"):
            netkit.connect(port, "127.0.0.1", proxy=ProxyHeader(tlvs={0xE0: bytes(17000)}))
        accepted, _ = listener.accept()
        with accepted:
            assert receive_all(accepted) == b""


def test_a_header_that_cannot_be_sent_in_time_is_a_connect_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def write(conn: netkit.Connection, data: bytes) -> int:
        raise TimeoutError

    monkeypatch.setattr(netkit.Connection, "write", write)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(netkit.ConnectError, match="PROXY header could not be sent") as caught:
            netkit.connect(port, "127.0.0.1", proxy="v2")
    assert isinstance(caught.value, TimeoutError)


def passed_on(given: bytes, **options: Any) -> ProxyHeader:
    """The header that a server in between sends on, for a client that begins with `given`."""
    found: list[bytes] = []

    def relay(conn: netkit.Connection) -> None:
        found.append(sent(conn, connect_timeout=None)[0])

    server = netkit.create_server(relay, **options)
    with server.listen(0, "127.0.0.1", proxy=bool(given)):
        with socket.create_connection(server.address[:2], PATIENCE) as sock:
            sock.sendall(given)
            assert receive_all(sock) == b""
            if not given:
                assert ProxyHeader.parse(found[0]).source == (*sock.getsockname(), "IPv4")
    return ProxyHeader.parse(found[0])


def test_the_client_of_a_connection_is_passed_on() -> None:
    assert passed_on(b"").version == 2
    header = passed_on(HEADER.encode(crc=True))
    assert header == HEADER
    header = passed_on(HEADER.encode(1))
    assert (header.source, header.destination, header.version) == (CLIENT, SERVER, 2)


def test_what_has_no_client_has_none_when_it_is_passed_on() -> None:
    assert passed_on(ProxyHeader(command="LOCAL").encode()).command == "LOCAL"
    assert passed_on(b"PROXY UNKNOWN\r\n") == ProxyHeader()


def test_tls_that_has_ended_here_is_reported() -> None:
    found: list[ProxyHeader] = []

    def relay(conn: netkit.Connection) -> None:
        found.append(ProxyHeader.parse(sent(conn)[0]))

    options = {"tls_cert": files().cert, "tls_key": files().key, "tls_client_ca": files().ca}
    server = netkit.create_server(relay, tls_alpn=["echo"], **options)
    with server.listen(0, "127.0.0.1", proxy=True):
        with netkit.connect(
            server.address.port,
            "localhost",
            family=4,
            proxy=HEADER,
            tls=True,
            tls_ca=files().ca,
            tls_cert=files().client,
            tls_alpn=["echo"],
        ) as conn:
            assert conn.read() == b""
            version = conn.tls and conn.tls.version
    (header,) = found
    assert (header.source, header.authority, header.alpn) == (CLIENT, "localhost", "echo")
    assert header.tls is not None
    assert (header.tls.version, header.tls.verified) == (version, True)


def test_the_ends_of_a_unix_socket_are_paths(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        with netkit.connect(path=path, proxy="v2") as conn:
            accepted, _ = listener.accept()
            with accepted:
                header = ProxyHeader.parse(accepted.recv(1000))
            assert (header.source, header.destination) == ("", path)
            pretended = ProxyHeader.parse(header_of(Pretended(1, CLIENT), conn))
            assert (pretended.source, pretended.destination) == (CLIENT, ("0.0.0.0", 0, "IPv4"))
            other = SocketAddress("2001:db8::7", 1)
            assert ProxyHeader.parse(header_of(Pretended(2, other), conn)).source == other


@needs_ipv6
def test_the_families_of_a_pretended_client_and_a_server_may_differ() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        with netkit.connect(listener.getsockname()[1], "::1") as conn:
            header = ProxyHeader.parse(header_of(Pretended(1, CLIENT), conn))
            assert header.source == CLIENT
            assert header.destination == ("::1", conn.remote_port, "IPv6")
