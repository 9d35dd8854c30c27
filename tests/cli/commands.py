"""Runs commands in this process, and talks to their servers."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import NamedTuple

from support import PATIENCE, observed, receive_all, send_and_end, wait_until

from netkit.cli import serving
from netkit.cli.echo import Echo
from netkit.cli.greeter import Greeter
from netkit.cli.logger import Logger
from netkit.cli.serve import Serve
from netkit.core import events

COMMANDS: dict[str, serving.Command] = {
    command.name: command for command in (Echo(), Greeter(), Logger(), Serve())
}


class Result(NamedTuple):
    status: int | str | None
    out: bytes
    lines: list[str]  # of standard error


Run = Callable[..., Result]
During = Callable[[int], object]


def ask(port: int, data: bytes, host: str = "127.0.0.1") -> bytes:
    with socket.create_connection((host, port), PATIENCE) as sock:
        send_and_end(sock, data)
        return receive_all(sock)


def taken() -> contextlib.AbstractContextManager[socket.socket]:
    return socket.create_server(("127.0.0.1", 0))


def send_and_wait(*pieces: bytes) -> During:
    """Sends each piece as a client of its own, which is gone when this returns."""

    def use(port: int) -> None:
        with observed(events.ConnectionClosed) as seen:
            for piece in pieces:
                assert ask(port, piece) == b""
            wait_until(lambda: len(seen) == len(pieces), "the end of the clients")

    return use


HANDLERS = """
import socketserver
import netkit

def function(conn):
    conn.end(conn.read().upper())

class Class(netkit.Handler):
    def received(self, data):
        self.conn.write(data.upper())

class Old(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.read().upper())

class Group:
    inner = function
"""
