"""A connection where a program expects a socket, or a file."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from support import exchange_and_fail, receive_exactly, serving, tcp_pair

import netkit
from netkit import Connection
from netkit.net.socket_names import OTHER_NAMES


@pytest.fixture
def ends() -> Iterator[tuple[Connection, socket.socket]]:
    with tcp_pair() as (ours, peer), Connection(ours) as conn:
        yield conn, peer
        peer.close()


Ends = tuple[Connection, socket.socket]


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("send", "use write"),
        ("sendall", "use write"),
        ("recv", "use read"),
        ("settimeout", "use set_timeout"),
        ("makefile", "use read, readline, lines and write, which it has itself"),
        ("shutdown", "use end"),
    ],
)
def test_the_name_of_a_socket_method_raises_an_error_that_names_the_method_of_netkit(
    ends: Ends, name: str, ours: str
) -> None:
    with pytest.raises(AttributeError) as raised:
        getattr(ends[0], name)
    assert str(raised.value) == f"'Connection' object has no attribute '{name}': {ours}"
    assert raised.value.name == name


def test_each_method_that_such_an_error_names_exists(ends: Ends) -> None:
    for name, ours in OTHER_NAMES.items():
        assert not hasattr(ends[0], name)
        assert hasattr(ends[0], ours.split(",")[0].split()[0].split(".")[0])


def test_any_other_name_is_an_attribute_error_as_ever(ends: Ends) -> None:
    conn, _ = ends
    with pytest.raises(AttributeError, match="^'Connection' object has no attribute 'nothing'$"):
        conn.nothing  # noqa: B018
    conn.mine = 1  # type: ignore[attr-defined]
    assert getattr(conn, "mine") == 1  # noqa: B009


def test_print_may_flush_a_connection(ends: Ends) -> None:
    conn, peer = ends
    print("hello", file=conn, flush=True)
    assert receive_exactly(peer, 6) == b"hello\n"


def test_flush_sends_the_writes_that_corked_has_gathered(ends: Ends) -> None:
    conn, peer = ends
    with conn.corked():
        conn.write("one")
        conn.flush()
        assert receive_exactly(peer, 3) == b"one"
        conn.write("two")
    assert receive_exactly(peer, 3) == b"two"


@pytest.mark.parametrize("size", ["3", None, 3.0])
@pytest.mark.parametrize("method", ["read", "readexactly", "peek"])
def test_a_size_that_is_no_number_is_named(ends: Ends, method: str, size: Any) -> None:
    conn, peer = ends
    peer.sendall(b"hello")
    with pytest.raises(TypeError, match=f"^size must be a number of bytes, not {size!r}$"):
        getattr(conn, method)(size)
    assert conn.read(5) == b"hello"


def test_an_upstream_that_is_down_is_one_line_of_the_log_for_each_client(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]

    def forward(conn: Connection) -> None:
        with netkit.connect(port, "127.0.0.1") as upstream:
            netkit.relay(conn, upstream)

    with serving(forward) as server:
        assert exchange_and_fail(server, b"") == b""
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert f"connect to 127.0.0.1:{port} failed: connection refused" in record.getMessage()
    assert record.exc_info is None
