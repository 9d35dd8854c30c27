"""The PROXY header of one connection: what is read, and what is left in the kernel's queue."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest
from support import connected, in_thread, once

import netkit
from netkit import ProxyHeader, SocketAddress
from netkit.net.proxied import introduce, via_of

HEADER = ProxyHeader(("192.0.2.7", 50312), ("2001:db8::1", 443))


@pytest.mark.parametrize("data", [HEADER.encode(), HEADER.encode(1), HEADER.encode(crc=True)])
def test_exactly_the_header_is_read(data: bytes) -> None:
    with connected() as (conn, peer):
        via = SocketAddress(*peer.getsockname())
        peer.sendall(data + b"rest")
        assert introduce(conn, 5, False)
        assert conn.socket.recv(100) == b"rest"
        assert conn.socket.gettimeout() is None
        assert conn.proxy == ProxyHeader.parse(data)._replace(via=via)
        assert (conn.peer, conn.local) == ("192.0.2.7:50312", "[2001:db8::1]:443")
        assert conn.bytes_read == 0


def test_a_header_of_the_longest_size_is_read() -> None:
    long = HEADER._replace(tlvs={0xE0: bytes(16_000)})
    data = long.encode()
    with connected() as (conn, peer), in_thread(peer.sendall, data + b"rest"):
        assert introduce(conn, 5, False)
        assert conn.read(4) == b"rest"
        assert conn.proxy is not None
        assert conn.proxy.tlvs == long.tlvs


def test_a_wait_for_the_rest_of_a_header_uses_no_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has been looked at is taken off, so that the next look waits for more."""
    looks = []
    monkeypatch.setattr(
        "netkit.net.proxied._receive",
        lambda sock, size, deadline, flags=0: (
            looks.append(flags) or socket.socket.recv(sock, size, flags)
        ),
    )
    data = HEADER.encode()
    with connected() as (conn, peer):
        peer.sendall(data[:20])
        with once(lambda: len(looks) >= 3, lambda: (time.sleep(0.05), peer.sendall(data[20:]))):
            assert introduce(conn, 5, False)
    assert len(looks) == 4


def test_the_time_is_over_before_anything_is_read() -> None:
    with connected() as (conn, peer):
        peer.sendall(HEADER.encode())
        with pytest.raises(TimeoutError, match="handshake_timeout: no PROXY header from"):
            introduce(conn, 1e-9, False)
        assert conn.end_reason == "handshake_timeout"


@pytest.mark.parametrize("data", [b"", HEADER.encode()])
def test_a_connection_that_is_asked_to_finish_still_takes_a_header_that_is_there(
    data: bytes,
) -> None:
    with connected() as (conn, peer):
        peer.sendall(data)
        conn.end_input()
        assert introduce(conn, 5, False) == bool(data)
        assert conn.end_reason == ("" if data else "drained")


def test_an_error_that_another_thread_has_set_is_raised() -> None:
    with connected() as (conn, _):
        conn.interrupt(netkit.KilledError(conn.peer))
        with pytest.raises(netkit.KilledError):
            introduce(conn, 5, False)
    with connected() as (conn, _):
        conn.destroy()
        with pytest.raises(netkit.ConnectionClosedError):
            introduce(conn, 5, False)


@pytest.mark.parametrize(("is_tls", "left"), [(True, True), (False, False)])
def test_the_rest_of_the_time_is_for_a_handshake_just_behind_the_header(
    is_tls: bool, left: bool
) -> None:
    with connected() as (conn, peer):
        peer.sendall(HEADER.encode())
        assert introduce(conn, 5, is_tls)
        assert ("handshake_until" in vars(conn)) == left


def test_time_limits_that_were_set_before_name_the_client() -> None:
    with connected() as (conn, peer):
        conn.set_timeout(0.01)
        peer.sendall(HEADER.encode())
        assert introduce(conn, 5, False)
        with pytest.raises(TimeoutError, match="nothing received from 192.0.2.7:50312 for 0.01"):
            conn.read()


@pytest.mark.parametrize(
    ("via", "shown"),
    [
        (None, ""),
        ("", "unix"),
        ("/run/proxy", "unix:/run/proxy"),
        (SocketAddress("::1", 5), "::1"),
    ],
)
def test_a_proxy_is_shown_by_its_address_without_the_port(via: Any, shown: str) -> None:
    assert via_of(HEADER._replace(via=via)) == shown
    assert via_of(None) == ""
