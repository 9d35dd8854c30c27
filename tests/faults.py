"""For the tests of faults: a server with good clients that no fault may harm, and bad clients."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import goodclients
import pytest
from goodclients import GoodClients, good_clients
from support import PATIENCE, client, silent_log, wait_until

import netkit

fault = pytest.mark.fault
"""Marks a test of a row of docs/faults.md, by the word that the row begins with."""


def echo(conn: netkit.Connection) -> None:
    """Sends everything back, unless a client asks for a function of `BAD`."""
    for chunk in conn:
        if chunk.startswith(b"!"):
            return BAD[chunk.decode().split()[0]](conn)
        conn.write(chunk)
    return None


def flood(conn: netkit.Connection) -> None:
    with contextlib.suppress(ConnectionError):
        while True:
            conn.write(b"flood" * 10_000)


BAD: dict[str, Callable[[netkit.Connection], Any]] = {
    "!flood": flood,
    "!line": netkit.Connection.readline,
    "!last": lambda conn: conn.write("last\n"),
    "!leave": lambda conn: None,
    "!much": lambda conn: conn.write(MUCH),
    "!impatient": lambda conn: (conn.set_timeout(0.05), conn.readline()),
    "!makefile": lambda conn: KEPT.extend((conn.socket, conn.socket.makefile("rwb"))),
    "!deaf": lambda conn: RELEASED.wait(PATIENCE),
}
MUCH = b"".join(b"%07d\n" % number for number in range(500_000))  # more than the kernel holds
KEPT: list[Any] = []
RELEASED = threading.Event()


def connecting(server: netkit.Server) -> Callable[[], socket.socket]:
    """A function that connects to the server; its sockets have a time limit."""
    return lambda: socket.create_connection(server.server_address[:2], timeout=PATIENCE)


@contextlib.contextmanager
def unharmed(
    handler: Any = echo,
    staying: int = 2,
    returning: int = 1,
    over: Callable[[Any], Any] = lambda sock: sock,
    leave: Callable[[Any], None] = goodclients.leave,
    cls: type[netkit.Server] = netkit.Server,
    **options: Any,
) -> Iterator[tuple[netkit.Server, GoodClients]]:
    """A server and good clients, which must notice nothing of a fault in the block.

    The other clients must be gone after the block. `over` wraps the sockets of the good clients,
    in TLS for example; `leave` is that of `good_clients`.
    """
    with silent_log(), cls(None, handler, **options).listen(0, "127.0.0.1").start() as server:
        connect = connecting(server)
        with good_clients(lambda: over(connect()), staying, returning, leave) as good:
            yield server, good
            good.go_on()
            wait_until(lambda: server.connection_count <= good.count, "the end of the fault")
        wait_until(lambda: server.connection_count == 0, "the end")
        assert server.stop().cut == 0  # clients that left in the kernel's queue have finished


@contextlib.contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """In the block, this process can open only `count` descriptors more."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = [os.dup(2) for _ in range(count + 1)]  # the kernel gives the lowest that are free
    for descriptor in free:
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[-1], hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def the_connection(server: netkit.Server, sock: Any) -> netkit.Connection:
    """The server's end of a client's connection, once there is one."""
    port = sock.getsockname()[1]
    found: list[netkit.Connection] = []

    def look() -> bool:
        found[:] = [conn for conn in server.connections if conn.remote_port == port]
        return bool(found)

    wait_until(look, "the connection")
    return found[0]


@contextlib.contextmanager
def bad_client(server: netkit.Server, request: bytes) -> Iterator[socket.socket]:
    """A client that has sent its request, which the server has read."""
    with client(server) as sock:
        sock.sendall(request)
        conn = the_connection(server, sock)
        wait_until(lambda: conn.bytes_read >= len(request), "the request")
        yield sock


class Process:
    """A client in a process of its own, which runs `source` with the port of the server."""

    def __init__(self, server: netkit.Server, source: str) -> None:
        prelude = f"port = {server.server_address[1]}\n{self.PRELUDE}"
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", prelude + source],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    PRELUDE = """
import os, socket, sys
def connect():
    return socket.create_connection(("127.0.0.1", port))
"""

    def line(self) -> bytes:
        assert self.process.stdout
        return self.process.stdout.readline()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()
