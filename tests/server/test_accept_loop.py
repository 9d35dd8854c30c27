"""Which thread runs the accept loop, and how other threads end it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from support import PATIENCE, in_thread, observed, wait_until

from netkit.core.backoff import BackOff
from netkit.core.events import AcceptPaused, AcceptResumed
from netkit.server.accept_loop import QUIET, AcceptLoop
from netkit.server.selector import ListenerSelector


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def begin(loop: AcceptLoop, listener: socket.socket) -> ListenerSelector:
    selector = loop.begin(listener)
    assert selector is not None
    return selector


def run(loop: AcceptLoop, listener: socket.socket) -> bool:
    """Wait in the loop until a stop is requested. False if the loop did not begin."""
    selector = loop.begin(listener)
    if selector is None:
        return False
    try:
        while not selector.stopped:
            selector.wait(None)
    finally:
        loop.end(selector)
    return True


def test_the_loop_begins_and_ends(listener: socket.socket) -> None:
    loop = AcceptLoop(list, None)
    assert not loop.under_way
    assert not loop.has_begun
    selector = begin(loop, listener)
    assert loop.under_way
    assert loop.has_begun
    loop.end(selector)
    assert not loop.under_way
    assert loop.has_begun


def test_a_stop_ends_the_loop(listener: socket.socket) -> None:
    loop = AcceptLoop(list, None)
    results: list[bool] = []
    with in_thread(lambda: results.append(run(loop, listener))):
        wait_until(lambda: loop.under_way)
        loop.request_stop()
        loop.wait_for_end()
        assert not loop.under_way
    assert results == [True]
    assert not loop.stop_requested


def test_a_stop_before_the_first_loop_ends_it_before_it_begins(listener: socket.socket) -> None:
    loop = AcceptLoop(list, None)
    loop.request_stop()
    assert loop.begin(listener) is None
    selector = begin(loop, listener)
    loop.end(selector)


def test_a_stop_after_a_loop_does_not_end_the_next(listener: socket.socket) -> None:
    loop = AcceptLoop(list, None)
    selector = begin(loop, listener)
    loop.end(selector)
    loop.request_stop()
    assert not loop.stop_requested
    selector = begin(loop, listener)
    loop.end(selector)


def test_no_loop_begins_during_another_one(listener: socket.socket) -> None:
    loop = AcceptLoop(list, None)
    selector = begin(loop, listener)
    assert loop.begin(listener) is None
    loop.end(selector)


def test_a_wait_for_the_end_returns_at_once_if_no_loop_runs() -> None:
    AcceptLoop(list, None).wait_for_end()


def test_the_thread_that_runs_the_loop_does_not_wait_for_itself(listener: socket.socket) -> None:
    loop = AcceptLoop(list, None)
    selector = begin(loop, listener)
    loop.request_stop()
    loop.wait_for_end()
    assert loop.under_way
    loop.end(selector)


def test_another_thread_can_take_the_loop_over(listener: socket.socket) -> None:
    loop = AcceptLoop(list, None)
    selector = begin(loop, listener)

    def take_over() -> None:
        assert loop.take_over(selector)
        loop.wait_for_end()  # it is its own now
        loop.end(selector)

    with in_thread(take_over):
        pass
    assert not loop.under_way


def test_a_thread_that_has_handed_the_loop_over_waits_for_its_end(listener: socket.socket) -> None:
    """Also while the other thread, though it has started, has not taken the loop over."""

    def run() -> None:
        stop_requested.wait(PATIENCE)
        assert loop.runs_here()
        assert loop.take_over(selector)
        loop.end(selector)

    loop = AcceptLoop(list, None)
    selector = begin(loop, listener)
    stop_requested = threading.Event()
    thread = threading.Thread(target=run)
    thread.start()
    loop.hand_over(selector, thread)
    assert not loop.runs_here()
    has_ended = loop.has_ended()
    assert not has_ended()
    loop.request_stop()
    stop_requested.set()
    loop.wait_for_end()
    assert has_ended()
    assert not loop.under_way
    thread.join(PATIENCE)


def test_a_loop_that_has_ended_is_not_handed_over(listener: socket.socket) -> None:
    loop = AcceptLoop(list, None)
    selector = begin(loop, listener)
    loop.end(selector)
    loop.hand_over(selector, threading.current_thread())
    assert not loop.runs_here()


def test_a_wait_for_the_end_of_a_loop_does_not_last_into_the_next(
    listener: socket.socket,
) -> None:
    loop = AcceptLoop(list, None)
    selector = begin(loop, listener)
    with in_thread(loop.wait_for_end):
        wait_until(lambda: loop._changed._waiters)
        with loop._changed:  # the waiting thread sees only the next loop
            loop.end(selector)
            selector = begin(loop, listener)
    assert loop.under_way
    loop.end(selector)


def test_a_thread_that_is_left_behind_does_not_end_the_loop_of_a_server_that_listens_again(
    listener: socket.socket,
) -> None:
    loop = AcceptLoop(list, None)
    left = begin(loop, listener)
    loop.request_stop()
    loop.reopen()
    assert not loop.has_begun
    selector = begin(loop, listener)
    assert left.stopped
    assert not loop.take_over(left)
    loop.end(left)
    assert loop.under_way
    assert not selector.stopped
    loop.end(selector)


def test_no_loop_begins_with_a_closed_listener() -> None:
    loop = AcceptLoop(list, None)
    with socket.socket() as gone:
        pass
    with pytest.raises(OSError, match="Bad file descriptor"):
        loop.begin(gone)
    assert not loop.under_way


def test_a_shortage_of_many_pauses_has_one_event_and_its_end_another(
    listener: socket.socket,
) -> None:
    loop = AcceptLoop(list, None)
    loop.back_off.longest = 0.005
    selector = begin(loop, listener)
    error = OSError("no descriptors")
    with observed(AcceptPaused, AcceptResumed) as seen:
        assert loop.end_shortage() is None
        for _ in range(3):
            loop.failed(error)
            loop.failed(error)
            assert loop.end_shortage() is None
            loop.succeeded()
            loop.succeeded()
            assert 0 < (loop.end_shortage() or 0.0) <= QUIET
        assert seen == [AcceptPaused(error)]
        loop.quiet = 0.0
        assert loop.end_shortage() is None
        assert not loop.is_short
        loop.failed(error)
    loop.end(selector)
    assert [type(event) for event in seen] == [AcceptPaused, AcceptResumed, AcceptPaused]
    assert seen[1].seconds >= 0.03
    assert loop.pauses == 4


def test_a_pause_ends_when_a_stop_is_requested(listener: socket.socket) -> None:
    loop = AcceptLoop(list, None)
    loop.back_off = BackOff(1000.0, 1000.0)
    selector = begin(loop, listener)
    with observed(AcceptPaused) as seen:
        with in_thread(loop.failed, OSError("no descriptors")):
            wait_until(lambda: seen)
            loop.request_stop()
    loop.end(selector)


def test_without_a_loop_a_failure_does_not_pause() -> None:
    loop = AcceptLoop(list, None)
    loop.back_off = BackOff(1000.0, 1000.0)
    with observed(AcceptPaused) as seen:
        loop.failed(OSError("no descriptors"))
    assert len(seen) == 1


@pytest.mark.parametrize("closed", [False, True])
def test_a_stop_by_a_signal_handler_as_a_loop_begins_is_not_lost(
    listener: socket.socket, closed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = AcceptLoop(list, None)
    selector = begin(loop, listener)
    loop.end(selector)

    def interrupted(*listeners: socket.socket, contended: bool) -> ListenerSelector:
        loop.request_stop()
        loop.wait_for_end()
        if closed:
            raise OSError("the listener is closed")
        return ListenerSelector(*listeners, contended=contended)

    monkeypatch.setattr("netkit.server.accept_loop.new_selector", interrupted)
    assert run(loop, listener) is not closed
    assert not loop.under_way
    assert not loop.stop_requested


def test_a_loop_that_fails_to_begin_does_not_run(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: socket.socket, contended: bool) -> ListenerSelector:
        raise OSError("no descriptors")

    loop = AcceptLoop(list, None)
    with monkeypatch.context() as patch:
        patch.setattr("netkit.server.accept_loop.new_selector", fail)
        with pytest.raises(OSError, match="no descriptors"):
            selector = begin(loop, listener)
    loop.request_stop()
    loop.wait_for_end()
    assert not loop.under_way
    selector = begin(loop, listener)
    loop.end(selector)


def test_a_pause_in_another_thread_does_not_use_the_selector_of_the_loop(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hook may put clients off to it; its pause ends with a stop, too."""
    loop = AcceptLoop(list, None)
    loop.back_off = BackOff(1000.0, 1000.0)
    selector = begin(loop, listener)
    monkeypatch.setattr(selector, "pause", lambda *_: pytest.fail("it is the other thread's"))
    with in_thread(loop.failed, OSError("no descriptors")):
        wait_until(lambda: loop._changed._waiters)
        loop.request_stop()
    loop.end(selector)


def test_a_loop_cannot_be_taken_over_once_it_has_ended(listener: socket.socket) -> None:
    loop = AcceptLoop(list, None)
    selector = begin(loop, listener)
    loop.end(selector)
    assert not loop.take_over(selector)


def test_a_function_tells_whether_the_loop_has_ended(listener: socket.socket) -> None:
    told: list[bool] = []
    loop = AcceptLoop(lambda: told.append(loop.under_way), None)
    assert loop.has_ended()()
    selector = begin(loop, listener)
    assert loop.has_ended()()  # for its own thread
    results: list[Any] = []
    with in_thread(lambda: results.append(loop.has_ended())):
        pass
    (has_ended,) = results
    assert not has_ended()
    loop.suspend()
    assert has_ended()
    assert loop.take_over(selector)
    assert not has_ended()
    loop.end(selector)
    assert has_ended()
    assert told == [True, False]


# Calls in the accepting thread


def test_the_thread_of_the_loop_makes_a_call_of_another_thread(listener: socket.socket) -> None:
    loop = AcceptLoop(list, None)
    threads: list[int] = []

    def call() -> None:
        threads.append(threading.get_ident())

    with in_thread(run, loop, listener):
        wait_until(lambda: loop.under_way)
        loop.call_soon(call)
        wait_until(lambda: threads)
        loop.request_stop()
    assert threads[0] != threading.get_ident()
    loop.call_soon(call)  # no thread runs it any more
    assert threads[1] == threading.get_ident()


def test_a_call_is_made_also_if_the_loop_ends_or_is_suspended(listener: socket.socket) -> None:
    loop = AcceptLoop(list, None)
    calls: list[str] = []
    selector = begin(loop, listener)
    loop.call_soon(lambda: calls.append("before it is suspended"))
    assert calls == []
    loop.suspend()
    loop.call_soon(lambda: calls.append("while it is suspended"))
    loop.take_over(selector)
    loop.call_soon(lambda: calls.append("before its end"))
    loop.end(selector)
    loop.suspend()
    assert calls == ["before it is suspended", "while it is suspended", "before its end"]


def test_a_thread_that_hangs_makes_no_call(listener: socket.socket) -> None:
    loop = AcceptLoop(list, None)
    selector = begin(loop, listener)
    calls: list[int] = []
    loop.call_soon(lambda: calls.append(1))
    assert calls == []
    assert not selector.wait(None)
    assert calls == [1]
    loop.call_soon(lambda: calls.append(2))
    selector.pause(None)  # as while the server is full
    assert calls == [1, 2]
    loop.end(selector)
