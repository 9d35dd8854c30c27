"""A program for a network namespace of its own, in which the network of a connection goes dead.

Prints what the server, or the client, notices. test_faults.py runs it and checks the output.
"""

from __future__ import annotations

import socket
import socketserver
import subprocess
import sys
import threading
from typing import Any

import netkit
from netkit.core import events

LIMIT = 1.0
PATIENCE = 30.0


def writes(conn: netkit.Connection) -> None:
    conn.write("hello")
    dead.wait()
    while True:
        conn.write(b"x" * 100)
        threading.Event().wait(0.05)


def reads(conn: netkit.Connection) -> None:
    conn.write("hello")
    dead.wait()
    conn.write(b"x" * 100)
    conn.read()


class Request(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.sendall(b"hello")
        dead.wait()
        self.request.sendall(b"x" * 100)
        self.request.settimeout(None)  # no read ends by itself
        self.request.recv(1)


def seen(handler: Any) -> str:
    """The failures that are logged of a client of this handler."""
    told: list[Any] = []
    over = threading.Event()

    def note(event: object) -> None:
        if isinstance(event, (events.ClientFailed, events.HandlerFailed)):
            told.append(event)
            over.set()

    unsubscribe = events.subscribe(note)
    options = {"write_timeout": LIMIT, "drain_timeout": 0}
    with netkit.create_server(handler, **options).listen(0, "127.0.0.1") as server:
        with socket.create_connection(server.server_address) as client:
            client.recv(5)
            drop(client)
            dead.set()
            over.wait(PATIENCE)
            dead.clear()
    unsubscribe()
    return "; ".join(f"{type(event).__name__} {event.error}" for event in told)


def of_a_client() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        conn = netkit.connect(port, "127.0.0.1", write_timeout=LIMIT)
        drop(conn.socket)
        try:
            conn.write("x")
            conn.read()
        except OSError as error:
            return str(error)
        finally:
            conn.destroy()
    return "nothing"


def drop(sock: socket.socket) -> None:
    """Drop all packets from and to this socket from now on."""
    for side in ("--sport", "--dport"):
        port = str(sock.getsockname()[1])
        subprocess.run(
            ["iptables", "-A", "INPUT", "-p", "tcp", side, port, "-j", "DROP"], check=True
        )


if __name__ == "__main__":
    dead = threading.Event()
    kind = sys.argv[1]
    handlers = {"writes": writes, "reads": reads, "request": Request}
    print(of_a_client() if kind == "client" else seen(handlers[kind]))
