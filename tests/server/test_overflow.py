"""Clients without a thread: held for a while, or turned away with a message."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator

import pytest
from support import receive_all, reset, tcp_pair, wait_until

from netkit.server import overflow
from netkit.server.overflow import Anteroom


class Clock:
    now = 50.0

    def __call__(self) -> float:
        return self.now


class Room(Anteroom):
    def __init__(self) -> None:
        self.woken = 0
        self.clock = Clock()
        super().__init__(self._wakes, self.clock)

    def _wakes(self) -> None:
        self.woken += 1


@pytest.fixture
def pair() -> Iterator[Callable[[], tuple[socket.socket, socket.socket]]]:
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(tcp_pair())


def test_held_clients_leave_in_order(
    pair: Callable[[], tuple[socket.socket, socket.socket]],
) -> None:
    room = Room()
    assert (room.next_overdue(), bool(room.held)) == (None, False)
    first, second = pair()[0], pair()[0]
    assert room.hold(first, "a", "ticket", 5)
    assert room.hold(second, "b", None, 5)
    assert room.held
    assert room.close_those_who_left() == 5
    guest = room.next_held()
    assert (guest.request, guest.client_address, guest.ticket) == (first, "a", "ticket")
    assert room.next_overdue() is None
    room.clock.now += 5
    assert room.close_those_who_left() == 0
    overdue = room.next_overdue()
    assert overdue is not None
    assert overdue.request is second
    assert room.close_those_who_left() is None


def test_a_client_held_for_a_shorter_time_leaves_before_the_others(
    pair: Callable[[], tuple[socket.socket, socket.socket]],
) -> None:
    room = Room()
    first, second = pair()[0], pair()[0]
    assert room.hold(first, "a", None, 5)
    assert room.hold(second, "b", None, 1)
    assert room.close_those_who_left() == 1
    room.clock.now += 1
    overdue = room.next_overdue()
    assert overdue is not None
    assert overdue.request is second
    assert room.next_overdue() is None
    assert room.close_those_who_left() == 4


def test_only_so_many_are_held(
    pair: Callable[[], tuple[socket.socket, socket.socket]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overflow, "MAX_HELD", 1)
    room = Room()
    assert room.hold(pair()[0], "a", None, 5)
    assert not room.hold(pair()[0], "b", None, 5)
    assert len(room.close()) == 1


def test_one_that_is_turned_away_reads_why_even_if_it_has_sent_much(
    pair: Callable[[], tuple[socket.socket, socket.socket]],
) -> None:
    room = Room()
    ours, peer = pair()
    peer.sendall(b"x" * 10_000)
    room.turn_away(ours, b"full\n")
    assert room.woken == 1
    assert receive_all(peer) == b"full\n"
    assert ours.fileno() >= 0
    assert room.close_those_who_left() == overflow.LEAVE_SECONDS
    room.clock.now += overflow.LEAVE_SECONDS
    assert room.close_those_who_left() is None
    assert ours.fileno() < 0


def test_one_that_is_gone_already_harms_nobody(
    pair: Callable[[], tuple[socket.socket, socket.socket]],
) -> None:
    room = Room()
    ours, peer = pair()
    reset(peer)
    wait_until(lambda: ours.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or True)
    room.turn_away(ours, b"full\n")
    room.turn_away(pair()[0], b"")
    assert room.close() == []
    assert ours.fileno() < 0


def test_only_so_many_are_about_to_be_closed(
    pair: Callable[[], tuple[socket.socket, socket.socket]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overflow, "MAX_LEAVING", 1)
    room = Room()
    first, second = pair()[0], pair()[0]
    room.turn_away(first, b"")
    room.turn_away(second, b"")
    assert (first.fileno() < 0, second.fileno() < 0) == (True, False)
    room.close()
    assert second.fileno() < 0


def test_nobody_is_kept_by_a_room_that_is_closed(
    pair: Callable[[], tuple[socket.socket, socket.socket]],
) -> None:
    """An observer may have kept the accepting thread for longer than the stop."""
    room = Room()
    room.close()
    assert not room.hold(pair()[0], "a", None, 5)
    ours, peer = pair()
    room.turn_away(ours, b"full\n")
    assert ours.fileno() < 0
    assert receive_all(peer) == b"full\n"


def test_in_a_forked_child_descriptors_are_closed_and_nobody_is_told(
    pair: Callable[[], tuple[socket.socket, socket.socket]],
) -> None:
    room = Room()
    held, leaving = pair(), pair()
    copies = [sock.dup() for sock in (held[0], leaving[0])]  # as the parent has them
    assert room.hold(held[0], "a", None, 5)
    room.turn_away(leaving[0], b"full\n")
    room.close_descriptors()
    assert (held[0].fileno(), leaving[0].fileno()) == (-1, -1)
    copies[0].sendall(b"still there")
    assert held[1].recv(20) == b"still there"
    for copy in copies:
        copy.close()
