"""A signal ends the accepting thread's wait, even if it came just before it."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator

import pytest
from support import PATIENCE, in_thread

from netkit.server.listener import Acceptor, woken_by_signals


@pytest.fixture
def acceptor() -> Iterator[Acceptor]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        acceptor = Acceptor(listener)
        yield acceptor
        acceptor.close()


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


def test_a_signal_before_the_wait_ends_it(acceptor: Acceptor, handled: list[int]) -> None:
    with woken_by_signals(acceptor):
        signal.raise_signal(signal.SIGUSR1)  # handled at once, and yet it ends the next wait
        assert acceptor.wait(PATIENCE) is False
        assert acceptor.wait(0.01) is False
    assert handled == [signal.SIGUSR1]
    assert wakeup_fd() == -1


def test_somebody_elses_wake_up_descriptor_stays(acceptor: Acceptor) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        signal.set_wakeup_fd(theirs.fileno())
        try:
            with woken_by_signals(acceptor):
                assert wakeup_fd() == theirs.fileno()
            assert wakeup_fd() == theirs.fileno()
        finally:
            signal.set_wakeup_fd(-1)


def test_off_the_main_thread_signals_are_not_our_business(acceptor: Acceptor) -> None:
    def accept() -> None:
        with woken_by_signals(acceptor):
            assert threading.current_thread() is not threading.main_thread()

    with in_thread(accept):
        pass
    assert wakeup_fd() == -1


def test_another_descriptor_that_is_set_meanwhile_stays(acceptor: Acceptor) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        with woken_by_signals(acceptor):
            signal.set_wakeup_fd(theirs.fileno())
        assert signal.set_wakeup_fd(-1) == theirs.fileno()


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # of fork, from 3.12 on
def test_a_signal_of_a_forked_child_does_not_wake_its_parent(
    acceptor: Acceptor, handled: list[int]
) -> None:
    with woken_by_signals(acceptor):
        child = os.fork()
        if child == 0:
            signal.raise_signal(signal.SIGUSR1)
            os._exit(wakeup_fd() == -1 and handled == [signal.SIGUSR1])
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
        assert wakeup_fd() == acceptor.waker_fileno()
        assert acceptor.wait(0.01) is False
        signal.raise_signal(signal.SIGUSR1)
        assert acceptor.wait(PATIENCE) is False
