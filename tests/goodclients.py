"""Clients that behave. All that they send must come back intact and in order, whatever happens.

They talk to a server that sends everything back. Each sends numbered blocks, a few of which are on
their way at once, and compares each byte that returns.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

PATIENCE = 30.0  # seconds after which a client that is not served fails the test
PAUSE = 0.001  # seconds between the turns of a client, so that others get the processor
VISIT = 5  # turns of each connection of a client that connects again and again

_NOISE = random.Random(5).randbytes(10_000).hex().encode()


def block(client: int, number: int) -> bytes:
    """A line of 20 bytes to 20 KB, different for each client and number."""
    size = number * 37 % 400 if number % 20 else 19_000
    return b"client %d block %d %s\n" % (client, number, _NOISE[:size])


def leave(sock: Any) -> None:
    """End our side. The server must send nothing more but its end."""
    sock.shutdown(socket.SHUT_WR)
    rest = sock.recv(1000)
    assert rest == b"", f"after its end: {rest!r}"


class GoodClients:
    """Clients that stay connected, and clients that connect again and again, by `good_clients`."""

    def __init__(self, connect: Callable[[], Any], leave: Callable[[Any], None]) -> None:
        self._connect = connect
        self._leave = leave
        self._done = threading.Event()
        self._blocks: list[int] = []
        self._stay: list[int] = []
        self.errors: list[BaseException] = []
        """The exceptions in the threads of the clients. There should be none."""

    def start(self, staying: int, returning: int) -> list[threading.Thread]:
        """Start and return a thread for each client. They run until `leave`."""
        self._blocks = [0] * (staying + returning)
        self._stay = list(range(staying))
        threads = []
        for client in range(staying + returning):
            talk = self._stays if client < staying else self._comes_and_goes
            threads.append(threading.Thread(target=self._watch, args=(talk, client)))
            threads[-1].start()
        return threads

    @property
    def blocks(self) -> int:
        """How many turns have come back so far."""
        return sum(self._blocks)

    @property
    def count(self) -> int:
        """How many clients there are, all of which may be connected at once."""
        return len(self._blocks)

    def go_on(self, times: int = 3, only_staying: bool = False) -> None:
        """Wait until each client has had `times` more turns. Fails after `PATIENCE`."""
        clients = self._stay if only_staying else range(self.count)
        wanted = {client: self._blocks[client] + times for client in clients}
        deadline = time.monotonic() + PATIENCE
        while any(self._blocks[client] < blocks for client, blocks in wanted.items()):
            self.check()
            assert time.monotonic() < deadline, "the good clients are not served"
            time.sleep(0.002)

    def leave(self) -> None:
        """Tell all clients to end after their turn."""
        self._done.set()

    def check(self) -> None:
        """Raise the first exception of a client, if there is one."""
        if self.errors:
            raise self.errors[0]

    def _watch(self, talk: Callable[[int], None], client: int) -> None:
        try:
            talk(client)
        except BaseException as error:
            self.errors.append(error)

    def _stays(self, client: int) -> None:
        self._visit(client, itertools.count())

    def _comes_and_goes(self, client: int) -> None:
        for first in itertools.count(0, VISIT):
            self._visit(client, range(first, first + VISIT))
            if self._done.is_set():
                return

    def _visit(self, client: int, numbers: Any) -> None:
        with contextlib.closing(self._connect()) as sock:
            for number in numbers:
                self._turn(sock, client, number)
                if self._done.wait(PAUSE):
                    break
            self._leave(sock)

    def _turn(self, sock: Any, client: int, number: int) -> None:
        """Send some blocks at once, so that they reach the server together and in pieces."""
        sent = b"".join(block(client, 10 * number + each) for each in range(1 + number % 4))
        sock.sendall(sent)
        received = bytearray()
        while len(received) < len(sent):
            part = sock.recv(len(sent) - len(received))
            assert part, f"client {client}: the end after {len(received)} of {len(sent)} bytes"
            received += part
        assert received == sent, f"client {client} got other bytes than it had sent"
        self._blocks[client] += 1


@contextlib.contextmanager
def good_clients(
    connect: Callable[[], Any],
    staying: int = 2,
    returning: int = 1,
    leave: Callable[[Any], None] = leave,
) -> Iterator[GoodClients]:
    """Good clients, which must be served before, during and after the block.

    `connect` returns a connected socket with a time limit, `leave` ends a conversation. An
    exception of a client is raised after the block.
    """
    good = GoodClients(connect, leave)
    threads = good.start(staying, returning)
    try:
        good.go_on()
        yield good
        good.go_on()
    finally:
        good.leave()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a good client is still being served"
    good.check()
