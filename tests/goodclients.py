"""Clients that behave, and that no fault may harm: what they exchange comes back intact, in order.

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

PATIENCE = 15.0  # seconds without service after which a client counts as harmed
PAUSE = 0.001  # seconds between a client's turns, so that many of them leave others the processor
VISIT = 5  # turns after which one that comes and goes is done

_NOISE = random.Random(5).randbytes(10_000).hex().encode()


def block(client: int, number: int) -> bytes:
    """One line, which no other client sends, and this one only once: from 20 bytes to 20 KB."""
    size = number * 37 % 400 if number % 20 else 19_000
    return b"client %d block %d %s\n" % (client, number, _NOISE[:size])


def leave(sock: Any) -> None:
    """End our side; the server's end must be all that still comes."""
    sock.shutdown(socket.SHUT_WR)
    rest = sock.recv(1000)
    assert rest == b"", f"after its end: {rest!r}"


class GoodClients:
    """Some that stay, and some that come and go. Made by `good_clients`."""

    def __init__(self, connect: Callable[[], Any], leave: Callable[[Any], None]) -> None:
        self._connect = connect
        self._leave = leave
        self._done = threading.Event()
        self._blocks: list[int] = []
        self._stay: list[int] = []
        self.errors: list[BaseException] = []
        """What went wrong, which is to be nothing."""

    def start(self, staying: int, returning: int) -> list[threading.Thread]:
        """A thread for each; they run until `leave`."""
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
        """How many came back so far."""
        return sum(self._blocks)

    @property
    def count(self) -> int:
        """How many of them can be connected at once."""
        return len(self._blocks)

    def go_on(self, times: int = 3, only_staying: bool = False) -> None:
        """Return once each has had so many more blocks back; fail if that takes too long."""
        clients = self._stay if only_staying else range(self.count)
        wanted = {client: self._blocks[client] + times for client in clients}
        deadline = time.monotonic() + PATIENCE
        while any(self._blocks[client] < blocks for client, blocks in wanted.items()):
            self.check()
            assert time.monotonic() < deadline, "the good clients are not served"
            time.sleep(0.002)

    def leave(self) -> None:
        """Have all finish what they are at, and go."""
        self._done.set()

    def check(self) -> None:
        """Raise what one of them met."""
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
        """Some blocks at once: so that they meet in the server, and in pieces."""
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
    """Good clients, who are served before, during and after the block; in the end they leave.

    `connect` gives a connected socket with a time limit, `leave` ends a conversation. An error of
    any of them is raised.
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
