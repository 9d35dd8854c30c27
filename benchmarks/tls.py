"""What TLS costs in netkit, beside a bare loop over Python's ``ssl.SSLSocket``.

    python -m benchmarks.tls [--rounds 7]

Both ends are of the same kind, each in a process of its own, over the loopback. The rounds of the
two kinds alternate, so that what else the machine does befalls both; the ratio is the median of the
rounds' ratios, and more than 1 means that netkit is faster. Needs the package ``cryptography``.
"""

from __future__ import annotations

import argparse
import os
import socket
import ssl
import statistics
import time
from collections.abc import Callable
from typing import Any

from netkit.certificates import client_context, context_from_pem, self_signed
from netkit.tls import TlsStream

PIECE = 1024 * 1024
BULK = 200  # pieces
EXCHANGES = 5000
HANDSHAKES = 150
VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)


class Netkit:
    def __init__(self, sock: socket.socket, context: ssl.SSLContext, server_side: bool) -> None:
        stream = TlsStream(sock.recv, sock.send, context, server_side=server_side)
        stream.handshake()
        self.recv, self.send, self.close = stream.recv, stream.send, sock.close


class Bare:
    def __init__(self, sock: socket.socket, context: ssl.SSLContext, server_side: bool) -> None:
        tls = context.wrap_socket(sock, server_side=server_side)
        self.recv, self.send, self.close = tls.recv, tls.sendall, tls.close


def receive(end: Any, size: int) -> None:
    while size:
        data = end.recv(min(size, 65536))
        assert data
        size -= len(data)


def bulk(end: Any, server_side: bool) -> float:
    """One way; MB/s."""
    if server_side:
        receive(end, PIECE * BULK)
        end.send(b"!")
        return 0.0
    piece = os.urandom(PIECE)
    began = time.perf_counter()
    for _ in range(BULK):
        end.send(piece)
    receive(end, 1)
    return PIECE * BULK / 1e6 / (time.perf_counter() - began)


def exchanges(end: Any, server_side: bool) -> float:
    """64 bytes there and back; exchanges per second."""
    message = bytes(64)
    began = time.perf_counter()
    for _ in range(EXCHANGES):
        if not server_side:
            end.send(message)
        receive(end, 64)
        if server_side:
            end.send(message)
    return EXCHANGES / (time.perf_counter() - began)


def in_child(serve: Callable[[], None]) -> int:
    pid = os.fork()
    if not pid:
        try:
            serve()
        finally:
            os._exit(0)
    return pid


def measure(kind: Any, job: Any, contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> float:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> Any:
            return kind(listener.accept()[0], contexts[0], True)

        def connect() -> Any:
            return kind(socket.create_connection(listener.getsockname()), contexts[1], False)

        if job is not None:
            pid = in_child(lambda: job(accept(), True) and None)
            end = connect()
            result: float = job(end, False)
            end.close()
        else:  # handshakes per second, each with a byte from the server, so that it is done
            pid = in_child(lambda: [accept().send(b"!") for _ in range(HANDSHAKES)] and None)
            began = time.perf_counter()
            for _ in range(HANDSHAKES):
                end = connect()
                receive(end, 1)
                end.close()
            result = HANDSHAKES / (time.perf_counter() - began)
    os.waitpid(pid, 0)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    server = context_from_pem(*self_signed(["localhost"]))
    print(f"{'':24}{'SSLSocket':>12}{'netkit':>12}{'ratio':>8}")
    jobs = {"MB/s, 1 MiB writes": bulk, "exchanges/s, 64 bytes": exchanges, "handshakes/s": None}
    for version in VERSIONS:
        client = client_context(verify=False)
        client.maximum_version = version
        print(version.name)
        for name, job in jobs.items():
            pairs = [
                [measure(kind, job, (server, client)) for kind in (Bare, Netkit)]
                for _ in range(rounds)
            ]
            bare, netkit = (statistics.median(column) for column in zip(*pairs, strict=True))
            ratio = statistics.median(ours / theirs for theirs, ours in pairs)
            print(f"  {name:22}{bare:12.0f}{netkit:12.0f}{ratio:8.2f}", flush=True)


if __name__ == "__main__":
    main()
