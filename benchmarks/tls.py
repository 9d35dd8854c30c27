"""What TLS costs in netkit, beside a threaded loop over Python's ``ssl.SSLSocket``.

    python -m benchmarks.tls [--rounds 7]

Two servers, each in a process of its own, and the same client for both (an ``SSLSocket``), over the
loopback. The rounds of the two alternate, so that what else the machine does befalls both; the
ratio is the median of the rounds' ratios, and more than 1 means that netkit is faster. Needs the
package ``cryptography``.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import ssl
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import netkit
from netkit.certificates import client_context, context_from_pem, self_signed

PIECE = 1024 * 1024
BULK = 200  # pieces
EXCHANGES = 5000
HANDSHAKES = 300
VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)

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


def serve_netkit(listener: socket.socket, context: ssl.SSLContext) -> None:
    def handler(conn: netkit.Connection) -> None:
        work(conn, conn.read, conn.write)

    server = netkit.create_server(handler, tls=context).listen(sock=listener)
    server.serve_forever()


def serve_bare(listener: socket.socket, context: ssl.SSLContext) -> None:
    def serve(sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # netkit has it, too
        with context.wrap_socket(sock, server_side=True) as tls:
            work(tls, tls.recv, tls.sendall)

    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()


def receive(end: Any, size: int) -> None:
    while size:
        data = end.recv(min(size, 65536))
        assert data
        size -= len(data)


def upload(connect: Callable[[], Any]) -> float:
    end = connect()
    end.sendall(SINK)
    piece = os.urandom(PIECE)
    began = time.perf_counter()
    for _ in range(BULK):
        end.sendall(piece)
    receive(end, 1)
    return PIECE * BULK / 1e6 / (time.perf_counter() - began)


def download(connect: Callable[[], Any]) -> float:
    end = connect()
    began = time.perf_counter()
    end.sendall(SOURCE)
    receive(end, PIECE * BULK)
    return PIECE * BULK / 1e6 / (time.perf_counter() - began)


def exchanges(connect: Callable[[], Any]) -> float:
    end = connect()
    end.sendall(ECHO)
    message = bytes(64)
    began = time.perf_counter()
    for _ in range(EXCHANGES):
        end.sendall(message)
        receive(end, 64)
    return EXCHANGES / (time.perf_counter() - began)


def handshakes(connect: Callable[[], Any], count: int = HANDSHAKES) -> float:
    began = time.perf_counter()
    for _ in range(count):
        with connect() as end:
            end.sendall(ECHO + b"!")
            receive(end, 1)
    return count / (time.perf_counter() - began)


def measure(serve: Any, job: Any, contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> float:
    with socket.create_server(("127.0.0.1", 0), backlog=200) as listener:
        address = listener.getsockname()
        pid = os.fork()
        if not pid:
            try:
                serve(listener, contexts[0])
            finally:
                os._exit(0)

    def connect() -> ssl.SSLSocket:
        sock = socket.create_connection(address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return contexts[1].wrap_socket(sock)

    try:
        handshakes(connect, 3)  # the start of a server is not what is measured
        result: float = job(connect)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    server = context_from_pem(*self_signed(["localhost"]))
    print(f"{'':24}{'SSLSocket':>12}{'netkit':>12}{'ratio':>8}")
    jobs = {
        "MB/s to the server": upload,
        "MB/s from the server": download,
        "exchanges/s, 64 bytes": exchanges,
        "handshakes/s": handshakes,
    }
    for version in VERSIONS:
        client = client_context(verify=False)
        client.maximum_version = version
        print(version.name)
        for name, job in jobs.items():
            pairs = [
                [measure(kind, job, (server, client)) for kind in (serve_bare, serve_netkit)]
                for _ in range(rounds)
            ]
            bare, netkit = (statistics.median(column) for column in zip(*pairs, strict=True))
            ratio = statistics.median(ours / theirs for theirs, ours in pairs)
            print(f"  {name:22}{bare:12.0f}{netkit:12.0f}{ratio:8.2f}", flush=True)


if __name__ == "__main__":
    main()
