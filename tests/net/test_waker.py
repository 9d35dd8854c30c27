"""A wait for descriptors that another thread, or a signal, ends."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
from collections.abc import Iterator

import pytest
from support import PATIENCE, in_thread

from netkit.net.waker import Waker, woken_by_signals

forking = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # from 3.12 on


@pytest.fixture
def waker() -> Iterator[Waker]:
    waker = Waker()
    yield waker
    waker.close()


def is_woken(waker: Waker) -> bool:
    return bool(select.select([waker], [], [], 0)[0])


def test_it_is_readable_after_a_wake_until_it_is_cleared(waker: Waker) -> None:
    assert not is_woken(waker)
    for _ in range(300):
        waker.wake()
    assert is_woken(waker)
    waker.clear()
    assert not is_woken(waker)


def test_any_number_of_wakes_does_not_block(waker: Waker) -> None:
    for _ in range(10_000):
        waker.wake()
    assert is_woken(waker)


def test_a_wake_after_the_close_does_nothing(waker: Waker) -> None:
    waker.close()
    waker.wake()
    waker.close()
    assert (waker.fileno(), waker.input_fileno()) == (-1, -1)


@contextlib.contextmanager
def wake_under_way(waker: Waker, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Another thread is about to write to the descriptor, and notes afterwards if it was open."""
    sending, go_on = threading.Event(), threading.Event()
    was_open: list[bool] = []

    def send(sock: socket.socket, _: bytes) -> None:
        sending.set()
        assert go_on.wait(PATIENCE)
        was_open.append(sock.fileno() >= 0)

    monkeypatch.setattr(socket.socket, "send", send)
    with in_thread(waker.wake):
        assert sending.wait(PATIENCE)
        yield was_open
        go_on.set()


def test_its_descriptor_is_not_closed_while_another_thread_writes_to_it(
    waker: Waker, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = waker.input_fileno()
    with wake_under_way(waker, monkeypatch) as was_open:
        waker.close()
    assert was_open == [True]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


@forking
def test_a_child_that_is_forked_while_another_thread_writes_can_use_it(
    waker: Waker, monkeypatch: pytest.MonkeyPatch
) -> None:
    with wake_under_way(waker, monkeypatch):
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(int(PATIENCE))
            waker.close()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# Woken by signals


@pytest.fixture
def handled() -> Iterator[list[int]]:
    seen: list[int] = []
    previous = signal.signal(signal.SIGUSR1, lambda signum, _: seen.append(signum))
    yield seen
    signal.signal(signal.SIGUSR1, previous)


def wakeup_fd() -> int:
    current = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(current)
    return current


def test_a_signal_that_comes_before_the_wait_ends_it(waker: Waker, handled: list[int]) -> None:
    with woken_by_signals(waker):
        signal.raise_signal(signal.SIGUSR1)
        assert handled == [signal.SIGUSR1]
        assert is_woken(waker)
    assert wakeup_fd() == -1


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_wake_up_descriptor_that_the_program_has_set_stays(when: str, waker: Waker) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        if when == "before":
            signal.set_wakeup_fd(theirs.fileno())
        with woken_by_signals(waker):
            assert wakeup_fd() == (theirs.fileno() if when == "before" else waker.input_fileno())
            signal.set_wakeup_fd(theirs.fileno())
        assert signal.set_wakeup_fd(-1) == theirs.fileno()


def test_off_the_main_thread_signals_do_not_wake_it(waker: Waker) -> None:
    entered: list[bool] = []

    def enter() -> None:
        with woken_by_signals(waker):
            entered.append(True)

    with in_thread(enter):
        pass
    assert entered
    assert wakeup_fd() == -1


@forking
def test_a_signal_of_a_forked_child_does_not_wake_its_parent(
    waker: Waker, handled: list[int]
) -> None:
    with woken_by_signals(waker):
        child = os.fork()
        if child == 0:
            signal.raise_signal(signal.SIGUSR1)
            os._exit(wakeup_fd() == -1 and handled == [signal.SIGUSR1])
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
        assert wakeup_fd() == waker.input_fileno()
        assert not is_woken(waker)
        signal.raise_signal(signal.SIGUSR1)
        assert is_woken(waker)
