"""Clients without a thread: held for a while, or refused with a message."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import receive_all, reset, tcp_pair, wait_until

from netkit.core.endpoint import DIRECT
from netkit.server.overflow import CLOSE_SECONDS, Overflow

Pair = Callable[[], tuple[socket.socket, socket.socket]]


class Counted(Overflow):
    """Has a clock that stands still."""

    def __init__(self, **limits: int) -> None:
        self.now = 50.0
        super().__init__(lambda: self.now, **limits)


@pytest.fixture
def pair() -> Iterator[Pair]:
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(tcp_pair())


def overdue(overflow: Overflow) -> Any:
    held = overflow.take_overdue()
    return held and held.request


def test_held_clients_are_taken_in_order_until_their_time_is_over(pair: Pair) -> None:
    overflow = Counted()
    assert (overflow.take_overdue(), overflow.take_held()) == (None, None)
    first, second = pair()[0], pair()[0]
    assert overflow.hold(first, "a", "ticket", 5)
    assert overflow.hold(second, "b", None, 5)
    assert overflow.close_refused() == 5
    held = overflow.take_held()
    assert held == (first, "a", "ticket", 55.0, DIRECT, 50.0)
    assert overdue(overflow) is None
    overflow.now += 5
    assert overflow.close_refused() == 0
    assert overdue(overflow) is second
    assert overflow.close_refused() is None


def test_a_client_held_for_a_shorter_time_is_overdue_first(pair: Pair) -> None:
    overflow = Counted()
    first, second = pair()[0], pair()[0]
    assert overflow.hold(first, "a", None, 5)
    assert overflow.hold(second, "b", None, 1)
    assert overflow.close_refused() == 1
    overflow.now += 1
    assert overdue(overflow) is second
    assert overdue(overflow) is None
    assert overflow.close_refused() == 4


def test_a_limited_number_of_clients_is_held(pair: Pair) -> None:
    overflow = Counted(max_held=1)
    assert overflow.hold(pair()[0], "a", None, 5)
    assert not overflow.hold(pair()[0], "b", None, 5)
    assert len(overflow.close()) == 1


def test_a_refused_client_reads_the_message_even_if_it_has_sent_much(pair: Pair) -> None:
    overflow = Counted()
    ours, peer = pair()
    peer.sendall(b"x" * 10_000)
    overflow.refuse(ours, b"full\n")
    assert receive_all(peer) == b"full\n"
    assert ours.fileno() >= 0
    assert overflow.close_refused() == CLOSE_SECONDS
    overflow.now += CLOSE_SECONDS
    assert overflow.close_refused() is None
    assert ours.fileno() < 0


def test_a_client_that_has_reset_its_connection_can_be_refused(pair: Pair) -> None:
    overflow = Counted()
    ours, peer = pair()
    reset(peer)
    wait_until(lambda: ours.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or True)
    overflow.refuse(ours, b"full\n")
    overflow.refuse(pair()[0], b"")
    assert overflow.close() == []
    assert ours.fileno() < 0


def test_a_limited_number_of_refused_clients_has_time_to_read(pair: Pair) -> None:
    overflow = Counted(max_refused=1)
    first, second = pair()[0], pair()[0]
    overflow.refuse(first, b"")
    overflow.refuse(second, b"")
    assert (first.fileno() < 0, second.fileno() < 0) == (True, False)
    overflow.close()
    assert second.fileno() < 0


def test_after_close_no_client_is_held_and_a_refused_one_is_closed_at_once(pair: Pair) -> None:
    """An observer may have kept the accepting thread for longer than the stop."""
    overflow = Counted()
    overflow.close()
    assert not overflow.hold(pair()[0], "a", None, 5)
    ours, peer = pair()
    overflow.refuse(ours, b"full\n")
    assert ours.fileno() < 0
    assert receive_all(peer) == b"full\n"


def test_in_a_forked_child_descriptors_are_closed_and_nothing_is_sent(pair: Pair) -> None:
    overflow = Counted()
    held, refused = pair(), pair()
    copies = [sock.dup() for sock in (held[0], refused[0])]  # as the parent has them
    assert overflow.hold(held[0], "a", None, 5)
    overflow.refuse(refused[0], b"full\n")
    overflow.end_in_child()
    assert (held[0].fileno(), refused[0].fileno()) == (-1, -1)
    copies[0].sendall(b"still there")
    assert held[1].recv(20) == b"still there"
    for copy in copies:
        copy.close()
