"""Sockets that are bound before a server listens on them."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
from support import PATIENCE, needs_ipv6, receive_all, send_and_end

import netkit

needs_unix = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # the path of a socket may have 107 bytes only
    return tmp_path


def echo() -> netkit.Server:
    return netkit.create_server(netkit.EchoHandler)


def ask(where: Any, data: bytes = b"hello") -> bytes:
    family = socket.AF_UNIX if isinstance(where, str) else socket.AF_INET
    with socket.socket(family) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(where if isinstance(where, str) else where[:2])
        send_and_end(sock, data)
        return receive_all(sock)


def test_a_bound_socket_is_taken_over_by_a_server() -> None:
    with netkit.BoundSocket("127.0.0.1") as bound:
        address = bound.address
        assert os.fstat(bound.fileno())
        with echo().listen(sock=bound) as server:
            assert server.address == address
            assert ask(address) == b"hello"
            for use in (lambda: bound.address, bound.fileno, bound.adopt):
                with pytest.raises(netkit.ServerStateError, match="a server has taken over this"):
                    use()
            bound.close()
            assert ask(address) == b"hello"


def test_a_bound_socket_that_no_server_takes_over_is_closed_with_its_block() -> None:
    with netkit.BoundSocket() as bound:
        assert isinstance(bound.address, netkit.SocketAddress)
        assert bound.address.address == "0.0.0.0"
    bound.close()
    with pytest.raises(netkit.ServerStateError, match="^the socket is closed$"):
        bound.fileno()


@needs_unix
def test_a_bound_unix_socket_has_its_file_until_it_is_closed_or_its_server_is() -> None:
    with netkit.BoundSocket(path="x.sock", mode=0o600) as bound:
        assert bound.address == "x.sock"
        assert stat.S_IMODE(os.stat("x.sock").st_mode) == 0o600
    assert not os.path.exists("x.sock")
    bound = netkit.BoundSocket(path="x.sock")
    with echo().listen(sock=bound):
        bound.close()
        assert ask("x.sock") == b"hello"
    assert not os.path.exists("x.sock")


@needs_unix
def test_an_error_says_why_a_socket_cannot_be_bound() -> None:
    Path("file").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for given, text in (
            (
                {"host": "127.0.0.1", "port": port},
                f"cannot bind to 127.0.0.1:{port}: address already in use (EADDRINUSE)",
            ),
            (
                {"host": "192.0.2.1"},
                "cannot bind to 192.0.2.1:0: this machine does not have this address "
                "(EADDRNOTAVAIL)",
            ),
            ({"path": "file"}, "cannot bind to file: the file there is not a socket (EADDRINUSE)"),
        ):
            with pytest.raises(OSError, match="^") as caught:
                netkit.BoundSocket(**given)  # type: ignore[arg-type]
            error: Any = caught.value
            assert (error.strerror, error.syscall) == (text, "bind")


@pytest.mark.parametrize(
    ("host", "hint"), [("localhost", ""), (7, "; the host comes first, and then the port")]
)
def test_a_bound_sockets_host_is_numeric(host: Any, hint: str) -> None:
    with pytest.raises(ValueError, match="^host must be an IPv4 or IPv6 address, not ") as caught:
        netkit.BoundSocket(host)
    assert str(caught.value).endswith(f"{host!r}{hint}")


@needs_ipv6
def test_a_bound_socket_may_be_for_ipv6_only() -> None:
    with netkit.BoundSocket(ipv6_only=True) as bound:
        assert isinstance(bound.address, netkit.SocketAddress)
        assert bound.address.address == "::"
        sock, _ = bound.adopt()
        with sock:
            assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


def test_a_bound_socket_that_cannot_be_prepared_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(netkit.net.bind, "prepare", prepare)  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        netkit.BoundSocket()


def test_the_port_of_a_bound_socket_is_checked() -> None:
    with pytest.raises(ValueError, match="^port must be a number from 0 to 65535, not 'x'$"):
        netkit.BoundSocket("127.0.0.1", "x")
