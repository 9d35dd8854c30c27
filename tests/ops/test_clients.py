"""Rows about clients, where a connection is in none of the usual states."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import MUCH, connected, echo, in_thread, serving, wait_until

import netkit
from netkit.ops.answers import Answers
from netkit.ops.clients import page_of_clients, page_of_stacks


@contextlib.contextmanager
def registered() -> Iterator[tuple[netkit.Server, netkit.Connection]]:
    """A server, and a connection of it that no thread of the server serves."""
    with serving(echo) as server, connected() as (conn, _):
        server._connections.add(conn)
        yield server, conn
        conn.destroy()
        server._connections.remove(conn)


def row_of(server: netkit.Server) -> dict[str, Any]:
    (row,) = page_of_clients([server])["rows"]
    return dict(row)


def test_a_connection_that_is_closed_already_is_shown_as_closing_and_is_not_killed() -> None:
    with registered() as (server, conn):
        assert row_of(server)["where"] == ""
        conn.destroy()
        row = row_of(server)
        assert (row["state"], row["where"], row["idle"]) == ("closing", "(closing)", None)
        assert Answers([server]).questions["kill"](ids=[conn.id]) == []


@pytest.mark.parametrize(
    ("call", "doing"),
    [
        (netkit.Connection.readline, "(reading)"),
        (lambda conn: conn.write(bytes(MUCH)), "(writing)"),
    ],
)
def test_without_a_stack_it_is_shown_whether_a_client_is_read_or_written(
    call: Callable[[netkit.Connection], Any], doing: str
) -> None:
    def run(conn: netkit.Connection) -> None:
        with contextlib.suppress(OSError):
            call(conn)

    with registered() as (server, conn), in_thread(run, conn):
        wait_until(lambda: row_of(server)["where"] == doing)
        (row,) = page_of_stacks([server])["rows"]
        assert (row["frames"], row["inside"], row["thread"]) == ([], doing, "")
        conn.destroy()


def test_a_held_client_whose_socket_is_closed_is_shown_without_our_end() -> None:
    with serving(echo) as server, socket.socket() as sock:
        sock.close()
        server._overflow.hold(sock, ("192.0.2.7", 5), None, 60.0)
        row = row_of(server)
        assert (row["peer"], row["local"], row["state"]) == ("192.0.2.7:5", "", "held")
        server._overflow.take_held()
