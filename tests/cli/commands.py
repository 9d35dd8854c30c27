"""Runs commands in this process, and talks to their servers."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from support import PATIENCE, ROOT, observed, receive_all, send_and_end, wait_until

from netkit.cli import serving
from netkit.cli.echo import Echo
from netkit.cli.greeter import Greeter
from netkit.cli.logger import Logger
from netkit.cli.serve import Serve
from netkit.core import events

COMMANDS: dict[str, serving.Command] = {
    command.name: command for command in (Echo(), Greeter(), Logger(), Serve())
}


def understood(command: serving.Command, *argv: str) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The arguments, and the options of the server."""
    arguments, words = command.parser().read(argv)
    return arguments, command.understand(arguments, words)


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


@contextlib.contextmanager
def started(*argv: object, **options: Any) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Runs a server as a process of Python, whose standard error is a pipe; and gives its port."""
    command = [sys.executable, *map(str, argv)]
    options["env"] = {**options.get("env", os.environ), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options) as process:
        try:
            assert process.stderr
            line = process.stderr.readline()
            if "gate" in line:  # the first line at the level "debug"
                line = process.stderr.readline()
            listening = re.search(r"listening on \S+:(\d+)", line)
            assert listening
            yield process, int(listening[1])
        finally:
            process.kill()


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
