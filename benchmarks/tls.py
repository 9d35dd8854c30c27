"""What TLS costs in netkit, beside a threaded loop over Python's ``ssl.SSLSocket``.

    python -m benchmarks.tls [--rounds 7] [--clients 1 4]

The servers are a threaded loop, netkit in one process, and netkit with worker processes; the
clients are the same for all of them (an ``SSLSocket`` in a process of its own), over the loopback.
The servers take turns, so that what else the machine does befalls them all; a ratio is the median
of those of the rounds, and more than 1 means that netkit is faster. Needs the package
``cryptography``.
"""

from __future__ import annotations

import argparse
import contextlib
import operator
import os
import signal
import socket
import ssl
import statistics
import struct
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import netkit
from netkit.tls.context import TlsFiles, client_context, server_context
from netkit.tls.self_signed import self_signed

PIECE = 1024 * 1024
UPLOADED = os.urandom(PIECE)
BULK = 100  # pieces, for each client
EXCHANGES = 3000
HANDSHAKES = 150
WORKERS = 4
VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)

Connect = Callable[[], ssl.SSLSocket]
Serve = Callable[[socket.socket, ssl.SSLContext], None]


class Contexts(NamedTuple):
    """Of both ends."""

    server: ssl.SSLContext
    client: ssl.SSLContext


# What a client begins with: what it wants of the server.
ECHO, SINK, SOURCE = b"e", b"k", b"s"


def work(end: Any, receive: Callable[[int], bytes], send: Callable[[bytes], object]) -> None:
    """One client, through the methods of either server's connection."""
    what = receive(1)
    if what == ECHO:
        while data := receive(65536):
            send(data)
    elif what == SINK:
        left = PIECE * BULK
        while left:
            left -= len(receive(65536))
        send(b"!")
    elif what == SOURCE:
        piece = bytes(PIECE)
        for _ in range(BULK):
            send(piece)


def serve_netkit(listener: socket.socket, context: ssl.SSLContext, workers: int = 1) -> None:
    def handler(conn: netkit.Connection) -> None:
        work(conn, conn.read, conn.write)

    netkit.run(netkit.create_server(handler, tls=context).listen(sock=listener), 0, workers)


def serve_by_workers(listener: socket.socket, context: ssl.SSLContext) -> None:
    serve_netkit(listener, context, workers=WORKERS)


def serve_bare(listener: socket.socket, context: ssl.SSLContext) -> None:
    context.num_tickets = 2  # as Python has it, if nobody says otherwise

    def serve(sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # netkit has it, too
        with context.wrap_socket(sock, server_side=True) as tls:
            work(tls, tls.recv, tls.sendall)

    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()


SERVERS: dict[str, Serve] = {"netkit": serve_netkit, f"{WORKERS} workers": serve_by_workers}


def receive(end: Any, size: int) -> None:
    while size:
        data = end.recv(min(size, 65536))
        assert data
        size -= len(data)


# What each client does, and how much that is


def upload(connect: Connect) -> float:
    with connect() as end:
        end.sendall(SINK)
        for _ in range(BULK):
            end.sendall(UPLOADED)
        receive(end, 1)
    return BULK * PIECE / 1e6


def download(connect: Connect) -> float:
    with connect() as end:
        end.sendall(SOURCE)
        receive(end, PIECE * BULK)
    return BULK * PIECE / 1e6


def exchanges(connect: Connect) -> float:
    message = bytes(64)
    with connect() as end:
        end.sendall(ECHO)
        for _ in range(EXCHANGES):
            end.sendall(message)
            receive(end, 64)
    return EXCHANGES


def handshakes(connect: Connect, count: int = HANDSHAKES) -> float:
    for _ in range(count):
        with connect() as end:
            end.sendall(ECHO + b"!")
            receive(end, 1)
            end.setblocking(False)
            with contextlib.suppress(OSError):  # it does not wait for an answer
                end.unwrap()  # as clients do: without it, netkit takes the input for cut off
    return count


JOBS: dict[str, Callable[[Connect], float]] = {
    "MB/s to the server": upload,
    "MB/s from the server": download,
    "exchanges/s, 64 bytes": exchanges,
    "handshakes/s": handshakes,
}


def fork(work: Callable[[], object]) -> int:
    pid = os.fork()
    if not pid:
        try:
            work()
        finally:
            os._exit(0)
    return pid


def measure(serve: Serve, job: Callable[[Connect], float], clients: int, tls: Contexts) -> float:
    """What all clients together get done in a second."""
    with socket.create_server(("127.0.0.1", 0), backlog=200) as listener:
        address = listener.getsockname()
        server = fork(lambda: serve(listener, tls.server))

    def connect() -> ssl.SSLSocket:
        sock = socket.create_connection(address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return tls.client.wrap_socket(sock)

    ready, go = os.pipe(), os.pipe()

    def client() -> None:
        handshakes(connect, 3)  # the start of a server is not what is measured
        os.write(ready[1], b"!")
        os.read(go[0], 1)
        os.write(ready[1], struct.pack("d", job(connect)))

    try:
        pids = [fork(client) for _ in range(clients)]
        for _ in pids:
            os.read(ready[0], 1)
        began = time.perf_counter()
        os.write(go[1], bytes(clients))
        done = sum(struct.unpack("d", os.read(ready[0], 8))[0] for _ in pids)
        seconds = time.perf_counter() - began
        for pid in pids:
            os.waitpid(pid, 0)
    finally:
        os.kill(server, signal.SIGTERM)
        os.waitpid(server, 0)
        for descriptor in (*ready, *go):
            os.close(descriptor)
    return float(done / seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4])
    arguments = parser.parse_args()
    server = server_context(TlsFiles(b"".join(self_signed(["localhost"]))))
    print(f"{'':36}{'SSLSocket':>12}" + "".join(f"{name:>24}" for name in SERVERS))
    for version in VERSIONS:
        client = client_context(verify=False)
        client.maximum_version = version
        for clients in arguments.clients:
            print(f"{version.name}, clients: {clients}")
            for name, job in JOBS.items():
                kinds = [serve_bare, *SERVERS.values()]
                rounds = [
                    [measure(kind, job, clients, Contexts(server, client)) for kind in kinds]
                    for _ in range(arguments.rounds)
                ]
                bare, *ours = zip(*rounds, strict=True)
                cells = [f"{statistics.median(bare):12.0f}"]
                for column in ours:
                    ratio = statistics.median(map(operator.truediv, column, bare))
                    cells.append(f"{statistics.median(column):17.0f}{ratio:7.2f}")
                print(f"  {name:34}{''.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
