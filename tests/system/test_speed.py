"""Guards against a slowdown by a multiple. `benchmarks/` measures, and these tests only compare.

The two that are compared run in this process, in turns. The fastest trial of each counts, since
other programs on the machine can only add time. The limits are several times the usual ratio: a
busy machine does not exceed them, but a poll for each call, a copy for each line or a pause for
each client does.
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from support import receive_exactly, serving_forever, tcp_pair

import netkit
from netkit.net.connection import Connection

# The other environments run these tests.
pytestmark = pytest.mark.skipif(
    sys.gettrace() is not None, reason="coverage slows code in Python down, and not code in C"
)

LIMIT = 5.0
TRIALS = 5
MESSAGE = b"m" * 64


def ratio(ours: Callable[[], None], theirs: Callable[[], None]) -> float:
    """How many times longer `ours` takes."""
    fastest = [float("inf")] * 2
    for _ in range(TRIALS):
        for which, function in enumerate((ours, theirs)):
            start = time.perf_counter()
            function()
            fastest[which] = min(fastest[which], time.perf_counter() - start)
    return fastest[0] / fastest[1]


def test_an_exchange_through_a_connection_costs_little_more_than_on_the_bare_socket():
    def exchange(
        peer: socket.socket, read: Callable[[int], bytes], write: Callable[[bytes], object]
    ) -> None:
        for _ in range(500):
            peer.sendall(MESSAGE)
            write(read(65536))
            assert peer.recv(65536) == MESSAGE

    with tcp_pair() as (sock, peer), tcp_pair() as (bare, bare_peer):
        with Connection(sock) as conn:
            assert (
                ratio(
                    lambda: exchange(peer, conn.read, conn.write),
                    lambda: exchange(bare_peer, bare.recv, bare.sendall),
                )
                < LIMIT
            )
            peer.close()  # or closing waits for its end


def test_a_line_of_a_connection_costs_a_small_multiple_of_one_of_a_file():
    count = 1000
    lines = b"a line of some length\n" * count

    with tcp_pair() as (sock, peer), tcp_pair() as (bare, bare_peer):
        with Connection(sock) as conn, bare.makefile("rb") as file:

            def ours() -> None:
                peer.sendall(lines)
                for _ in range(count):
                    conn.readline()

            def theirs() -> None:
                bare_peer.sendall(lines)
                for _ in range(count):
                    file.readline()

            # A file finds its lines in C: 15 times is usual.
            assert ratio(ours, theirs) < 15 * LIMIT
            peer.close()


class Reply(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(65536):
            self.request.sendall(data)


class Threading(socketserver.ThreadingTCPServer):
    request_queue_size = 100


@contextlib.contextmanager
def clients_of(kind: type[socketserver.TCPServer]) -> Iterator[Callable[[], None]]:
    """A function that connects 60 clients one after the other to a server of this class."""

    def visit() -> None:
        for _ in range(60):
            with socket.create_connection(server.server_address[:2], timeout=10) as client:
                client.sendall(MESSAGE)
                assert receive_exactly(client, len(MESSAGE)) == MESSAGE

    server = kind(("127.0.0.1", 0), Reply)
    with serving_forever(server):
        yield visit
        if isinstance(server, Threading):
            server.shutdown()


def test_clients_come_and_go_about_as_fast_as_with_socketserver():
    with clients_of(netkit.Server) as ours, clients_of(Threading) as theirs:
        assert ratio(ours, theirs) < LIMIT
