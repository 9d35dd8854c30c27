"""Whose turn it is to accept, and how the others end it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from support import in_thread, observed, wait_until

from netkit.core.backoff import BackOff
from netkit.core.events import AcceptPaused, AcceptResumed
from netkit.server.accepting import Accepting
from netkit.server.listener import Acceptor


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def turn(accepting: Accepting, listener: socket.socket) -> bool:
    """Accept nobody until told to stop. Whether there was a turn."""
    acceptor = accepting.begin(listener)
    if acceptor is None:
        return False
    try:
        while not accepting.stop_requested:
            acceptor.wait(None)
    finally:
        accepting.end()
    return True


def test_a_turn_begins_and_ends(listener: socket.socket) -> None:
    accepting = Accepting()
    assert not accepting.under_way
    assert not accepting.has_begun
    assert accepting.begin(listener) is not None
    assert accepting.under_way
    assert accepting.has_begun
    accepting.end()
    assert not accepting.under_way
    assert accepting.has_begun


def test_a_stop_ends_the_turn_under_way(listener: socket.socket) -> None:
    accepting = Accepting()
    results: list[bool] = []
    with in_thread(lambda: results.append(turn(accepting, listener))):
        wait_until(lambda: accepting.under_way)
        accepting.request_stop()
        accepting.wait_for_end()
        assert not accepting.under_way
    assert results == [True]
    assert not accepting.stop_requested


def test_a_stop_before_the_first_turn_ends_it_before_it_begins(listener: socket.socket) -> None:
    accepting = Accepting()
    accepting.request_stop()
    assert accepting.begin(listener) is None
    assert accepting.begin(listener) is not None
    accepting.end()


def test_a_stop_after_a_turn_does_not_end_the_next(listener: socket.socket) -> None:
    accepting = Accepting()
    accepting.begin(listener)
    accepting.end()
    accepting.request_stop()
    assert not accepting.stop_requested
    assert accepting.begin(listener) is not None
    accepting.end()


def test_no_turn_begins_during_another_one(listener: socket.socket) -> None:
    accepting = Accepting()
    assert accepting.begin(listener) is not None
    assert accepting.begin(listener) is None
    accepting.end()


def test_waiting_for_the_end_does_not_wait_where_there_is_no_turn() -> None:
    Accepting().wait_for_end()


def test_the_thread_whose_turn_it_is_does_not_wait_for_itself(listener: socket.socket) -> None:
    accepting = Accepting()
    accepting.begin(listener)
    accepting.request_stop()
    accepting.wait_for_end()
    assert accepting.under_way
    accepting.end()


def test_a_turn_can_be_handed_to_another_thread(listener: socket.socket) -> None:
    accepting = Accepting()
    acceptor = accepting.begin(listener)
    assert acceptor is not None

    def take_over() -> None:
        assert accepting.take_over(acceptor)
        accepting.wait_for_end()  # it is its own now
        accepting.end()

    with in_thread(take_over):
        pass
    assert not accepting.under_way


def test_a_wait_for_the_end_of_a_turn_does_not_go_on_in_the_next(
    listener: socket.socket,
) -> None:
    accepting = Accepting()
    accepting.begin(listener)
    with in_thread(accepting.wait_for_end):
        wait_until(lambda: accepting._changed._waiters)
        with accepting._changed:  # who waits sees only what is there after the next turn began
            accepting.end()
            accepting.begin(listener)
    assert accepting.under_way
    accepting.end()


def test_ending_what_never_began_does_no_harm(listener: socket.socket) -> None:
    accepting = Accepting()
    accepting.end()
    assert accepting.begin(listener) is not None
    accepting.end()


def test_a_listener_that_is_gone_begins_no_turn() -> None:
    accepting = Accepting()
    with socket.socket() as gone:
        pass
    with pytest.raises(OSError, match="Bad file descriptor"):
        accepting.begin(gone)
    assert not accepting.under_way


def test_an_episode_of_failures_has_one_event_and_its_end_another(
    listener: socket.socket,
) -> None:
    accepting = Accepting()
    accepting.back_off.longest = 0.005
    accepting.begin(listener)
    with observed(AcceptPaused, AcceptResumed) as seen:
        error = OSError("no descriptors")
        for _ in range(3):
            accepting.failed(error)
        accepting.succeeded()
        accepting.succeeded()
        accepting.failed(error)
    accepting.end()
    assert [type(event) for event in seen] == [AcceptPaused, AcceptResumed, AcceptPaused]
    assert seen[0].error is error
    assert seen[1].seconds >= 0.015


def test_a_pause_ends_when_a_stop_is_requested(listener: socket.socket) -> None:
    accepting = Accepting()
    accepting.back_off = BackOff(1000.0, 1000.0)
    accepting.begin(listener)
    with observed(AcceptPaused) as seen:
        with in_thread(accepting.failed, OSError("no descriptors")):
            wait_until(lambda: seen)
            accepting.request_stop()
    accepting.end()


def test_without_a_turn_a_failure_does_not_pause() -> None:
    accepting = Accepting()
    accepting.back_off = BackOff(1000.0, 1000.0)
    with observed(AcceptPaused) as seen:
        accepting.failed(OSError("no descriptors"))
    assert len(seen) == 1


@pytest.mark.parametrize("closed", [False, True])
def test_a_stop_by_a_signal_handler_as_a_turn_begins_is_not_lost(
    listener: socket.socket, closed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    accepting = Accepting()
    accepting.begin(listener)
    accepting.end()

    def interrupted(*listeners: socket.socket, contended: bool) -> Acceptor:
        accepting.request_stop()
        accepting.wait_for_end()
        if closed:
            raise OSError("the listener is closed")
        return Acceptor(*listeners, contended=contended)

    monkeypatch.setattr("netkit.server.accepting.Acceptor", interrupted)
    assert turn(accepting, listener) is not closed
    assert not accepting.under_way
    assert not accepting.stop_requested


def test_a_turn_that_cannot_begin_is_none(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: socket.socket, contended: bool) -> Acceptor:
        raise OSError("no descriptors")

    accepting = Accepting()
    with monkeypatch.context() as patch:
        patch.setattr("netkit.server.accepting.Acceptor", fail)
        with pytest.raises(OSError, match="no descriptors"):
            accepting.begin(listener)
    accepting.request_stop()
    accepting.wait_for_end()
    assert not accepting.under_way
    accepting.begin(listener)
    accepting.end()


def test_a_thread_that_accepts_nobody_leaves_the_listeners_to_the_one_that_does(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hook may put clients off to it; its pause ends with a stop, too."""
    accepting = Accepting()
    accepting.back_off = BackOff(1000.0, 1000.0)
    acceptor = accepting.begin(listener)
    assert acceptor is not None
    monkeypatch.setattr(acceptor, "pause", lambda *_: pytest.fail("it is the other thread's"))
    with in_thread(accepting.failed, OSError("no descriptors")):
        wait_until(lambda: accepting._changed._waiters)
        accepting.request_stop()
    accepting.end()


def test_a_turn_cannot_be_taken_over_once_it_has_ended(listener: socket.socket) -> None:
    accepting = Accepting()
    acceptor = accepting.begin(listener)
    assert acceptor is not None
    accepting.end()
    assert not accepting.take_over(acceptor)


def test_the_end_of_a_turn_can_be_looked_for(listener: socket.socket) -> None:
    told: list[bool] = []
    accepting = Accepting(lambda: told.append(accepting.under_way))
    assert accepting.has_ended()()
    accepting.begin(listener)
    assert accepting.has_ended()()  # for its own thread
    results: list[Any] = []
    with in_thread(lambda: results.append(accepting.has_ended())):
        pass
    (has_ended,) = results
    assert not has_ended()
    with accepting.resting():
        assert has_ended()
    assert not has_ended()
    accepting.end()
    assert has_ended()
    assert told == [True, False]
