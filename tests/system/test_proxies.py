"""Proxies of other projects in front of netkit, and behind it: HAProxy, nginx, curl."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from secure import files
from support import (
    PATIENCE,
    ROOT,
    observed,
    receive_all,
    send_and_end,
    silent_log,
    tool,
    wait_until,
)

import netkit
from netkit import ProxyHeader, SocketAddress, events

HAPROXY = """
global
    log stdout format raw local0 emerg
defaults
    mode tcp
    timeout connect 10s
    timeout client 30s
    timeout server 30s
    unique-id-format id-%[src_port]
"""
SSL_OPTIONS = "proxy-v2-options ssl,cert-cn,ssl-cipher,authority,crc32c,unique-id"

NGINX = """
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off;
pid {folder}/pid;
error_log {folder}/log;
events {{ }}
stream {{
    proxy_protocol on;
    proxy_half_close on;
    server {{ listen {plain}; proxy_pass {server}; }}
    server {{
        listen {introduced} proxy_protocol;
        set_real_ip_from 127.0.0.1;
        proxy_pass {server};
    }}
}}
"""


class Seen:
    """What a server knows of its clients, in the order of their connections."""

    def __init__(self) -> None:
        self.found: queue.Queue[tuple[ProxyHeader | None, SocketAddress]] = queue.Queue()

    def __call__(self, conn: netkit.Connection) -> None:
        """Handle a client: send everything back in capitals."""
        client = SocketAddress(conn.remote_address, conn.remote_port or 0)
        self.found.put((conn.proxy, client))
        for data in conn:
            conn.write(data.upper())

    def next(self) -> tuple[ProxyHeader, SocketAddress]:
        header, client = self.found.get(timeout=PATIENCE)
        assert header is not None
        assert header.via == ("127.0.0.1", header.via.port, "IPv4")  # type: ignore[union-attr]
        return header, client


@contextlib.contextmanager
def behind(seen: Any, **options: Any) -> Iterator[netkit.Server]:
    with (
        silent_log(),
        netkit.create_server(seen, **options).listen(0, "127.0.0.1", proxy=True) as server,
    ):
        yield server


@contextlib.contextmanager
def listener() -> Iterator[socket.socket]:
    """A listener that a proxy inherits, so that its port is free for sure."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.set_inheritable(True)
        yield sock


@contextlib.contextmanager
def haproxy(
    folder: Path, *sections: str, listeners: tuple[socket.socket, ...] = ()
) -> Iterator[None]:
    (folder / "haproxy.cfg").write_text(HAPROXY + "\n".join(sections) + "\n")
    command = [tool("haproxy"), "-db", "-f", str(folder / "haproxy.cfg")]
    with running(command, listeners):
        yield


@contextlib.contextmanager
def running(
    command: list[str], listeners: tuple[socket.socket, ...], **environment: str
) -> Iterator[None]:
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=[sock.fileno() for sock in listeners],
        env={**os.environ, **environment},
    )
    try:
        yield
        assert process.poll() is None, process.stdout and process.stdout.read()
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE)


def connected(sock: socket.socket) -> socket.socket:
    return socket.create_connection(sock.getsockname(), PATIENCE)


def front(sock: socket.socket, server: netkit.Server, bind: str = "", to: str = "") -> str:
    """The section of a proxy that listens on `sock`, for `server`."""
    port = sock.getsockname()[1]
    return (
        f"listen front{port}\n    bind fd@{sock.fileno()} {bind}\n"
        f"    server app 127.0.0.1:{server.address.port} {to}\n"
    )


@pytest.mark.parametrize(("setting", "version"), [("send-proxy", 1), ("send-proxy-v2", 2)])
def test_haproxy_introduces_its_clients(tmp_path: Path, setting: str, version: int) -> None:
    seen = Seen()
    with behind(seen) as server, listener() as sock:
        with haproxy(tmp_path, front(sock, server, to=setting), listeners=(sock,)):
            with connected(sock) as client:
                send_and_end(client, b"hello")
                assert receive_all(client) == b"HELLO"
                header, peer = seen.next()
                assert peer == (*client.getsockname(), "IPv4") == header.source
                assert header.destination == (*sock.getsockname(), "IPv4")
                assert (header.version, header.command) == (version, "PROXY")


def test_haproxy_tells_what_it_knows_of_the_tls_that_it_has_ended(tmp_path: Path) -> None:
    seen, certificates = Seen(), files()
    bind = f"ssl crt {certificates.server} ca-file {certificates.ca} verify optional alpn echo"
    context = ssl.create_default_context(cafile=certificates.ca)
    context.set_alpn_protocols(["echo"])
    with behind(seen) as server, listener() as sock:
        section = front(sock, server, bind, f"send-proxy-v2 {SSL_OPTIONS}")
        with haproxy(tmp_path, section, listeners=(sock,)):
            for certificate in (None, certificates.client):
                if certificate:
                    context.load_cert_chain(certificate)
                with context.wrap_socket(connected(sock), server_hostname="localhost") as client:
                    client.sendall(b"hello")
                    assert client.recv(100) == b"HELLO"
                    header, peer = seen.next()
                    assert peer == (*client.getsockname(), "IPv4")
                    assert header.authority == "localhost"
                    assert header.unique_id == b"id-%d" % client.getsockname()[1]
                    assert header.tls is not None
                    assert header.tls.version == client.version()
                    assert header.tls.cipher == client.cipher()[0]  # type: ignore[index]
                    assert header.tls.verified == (certificate is not None)
                    assert 3 in header.tlvs  # the checksum, which was right


def test_haproxy_passes_tls_through(tmp_path: Path) -> None:
    seen, certificates = Seen(), files()
    options = {"tls_cert": certificates.cert, "tls_key": certificates.key}
    context = ssl.create_default_context(cafile=certificates.ca)
    with behind(seen, **options) as server, listener() as sock:
        with haproxy(tmp_path, front(sock, server, to="send-proxy-v2"), listeners=(sock,)):
            with context.wrap_socket(connected(sock), server_hostname="localhost") as client:
                client.sendall(b"hello")
                assert client.recv(100) == b"HELLO"
                header, peer = seen.next()
                assert peer == (*client.getsockname(), "IPv4")
                assert header.tls is None


@pytest.mark.parametrize("setting", ["send-proxy-v2", "send-proxy"])
def test_the_checks_of_haproxy_are_quiet(tmp_path: Path, setting: str) -> None:
    loud = events.ClientFailed, events.HandlerFailed, events.Refusing
    with observed(*loud) as failed, observed(events.ConnectionClosed) as closed:
        with behind(Seen(), deny="192.0.2.0/24") as server, listener() as sock:
            section = front(sock, server, to=f"check inter 20ms {setting}")
            with haproxy(tmp_path, section, listeners=(sock,)):
                wait_until(lambda: len(closed) >= 10)
                with connected(sock) as client:  # the server is up
                    send_and_end(client, b"hello")
                    assert receive_all(client) == b"HELLO"
    assert failed == []
    checks = [event for event in closed if event.bytes_read == 0]
    assert {event.end for event in checks} <= {"done", "probe", "reset"}
    if setting == "send-proxy-v2":
        assert "LOCAL" in {event.proxy for event in checks}


def test_haproxy_accepts_the_headers_of_netkit_connect(tmp_path: Path) -> None:
    seen = Seen()
    with behind(seen) as server, listener() as sock:
        section = front(sock, server, "accept-proxy", "send-proxy-v2")
        with haproxy(tmp_path, section, listeners=(sock,)):
            port = sock.getsockname()[1]
            for arguments, client in [
                (["--proxy", "v1", "--proxy-client", "192.0.2.7:4000"], ("192.0.2.7", 4000)),
                (["--proxy-client", "2001:db8::7"], ("2001:db8::7", 0)),
            ]:
                command = [sys.executable, "-m", "netkit", "connect", *arguments, str(port)]
                done = subprocess.run(
                    command, input=b"hello", stdout=subprocess.PIPE, timeout=PATIENCE, cwd=ROOT
                )
                assert done.stdout == b"HELLO"
                assert seen.next()[1][:2] == client
            with netkit.connect(port, "127.0.0.1", proxy=ProxyHeader(command="LOCAL")) as conn:
                conn.end("hello")
                assert conn.read() == b"HELLO"
                assert seen.next()[1][:2] == (conn.local_address, conn.local_port)


def test_nginx_introduces_its_clients(tmp_path: Path) -> None:
    """Also those whose addresses are of another family than its own."""
    seen = Seen()
    with behind(seen) as server, listener() as plain, listener() as introduced:
        address = {
            name: "{}:{}".format(*sock.getsockname())
            for name, sock in (
                ("plain", plain),
                ("introduced", introduced),
                ("server", server.socket),
            )
        }
        (tmp_path / "nginx.conf").write_text(NGINX.format(folder=tmp_path, **address))
        command = [tool("nginx"), "-c", str(tmp_path / "nginx.conf"), "-e", str(tmp_path / "log")]
        inherited = f"{plain.fileno()};{introduced.fileno()};"
        with running(command, (plain, introduced), NGINX=inherited):
            with connected(plain) as client:
                send_and_end(client, b"hello")
                assert receive_all(client) == b"HELLO"
                header, peer = seen.next()
                assert peer == (*client.getsockname(), "IPv4")
                assert header.version == 1
            given = ProxyHeader(("2001:db8::7", 1), ("2001:db8::1", 2))
            port = introduced.getsockname()[1]
            with netkit.connect(port, "127.0.0.1", proxy=given._replace(version=1)) as conn:
                conn.end("hello")
                assert conn.read() == b"HELLO"
            header, peer = seen.next()
            assert peer == ("2001:db8::7", 1, "IPv6")
            assert header.destination == (*introduced.getsockname(), "IPv4")


def test_curl_introduces_itself() -> None:
    def answer(conn: netkit.Connection) -> None:
        assert conn.proxy is not None
        assert conn.readline().startswith(b"GET / HTTP/")
        body = f"{conn.proxy.version} {conn.remote_address}"
        conn.write(f"HTTP/1.0 200 OK\r\n\r\n{body}")

    with behind(answer) as server:
        url = f"http://127.0.0.1:{server.address.port}/"
        command = [tool("curl"), "-s", "--haproxy-protocol", url]
        assert subprocess.check_output(command, timeout=PATIENCE) == b"1 127.0.0.1"
