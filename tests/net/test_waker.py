"""A wait for descriptors that another thread ends."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
from collections.abc import Iterator

import pytest
from support import PATIENCE, in_thread, wait_until

from netkit.net.waker import Waker


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


def test_waking_without_end_does_not_block(waker: Waker) -> None:
    for _ in range(100_000):
        waker.wake()
    assert is_woken(waker)


def test_nothing_happens_after_it_is_closed(waker: Waker) -> None:
    waker.close()
    waker.wake()
    waker.close()


def test_its_descriptor_is_not_closed_while_another_thread_writes_to_it(
    waker: Waker, monkeypatch: pytest.MonkeyPatch
) -> None:
    with waking_in_another_thread(waker, monkeypatch) as (open_meanwhile, go_on):
        with in_thread(waker.close):
            wait_until(lambda: waker.fileno() == -1)
            go_on.set()
    assert open_meanwhile == [True]
    assert waker.input_fileno() == -1


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # of fork, from 3.12 on
def test_a_child_that_is_forked_while_another_thread_writes_can_use_it(
    waker: Waker, monkeypatch: pytest.MonkeyPatch
) -> None:
    with waking_in_another_thread(waker, monkeypatch) as (_, go_on):
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(int(PATIENCE))
            waker.close()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        go_on.set()


@contextlib.contextmanager
def waking_in_another_thread(
    waker: Waker, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[list[bool], threading.Event]]:
    """Another thread writes until the event is set, and notes whether the descriptor is open."""
    sending, go_on = threading.Event(), threading.Event()
    is_open: list[bool] = []

    def send(sock: socket.socket, _: bytes) -> None:
        sending.set()
        go_on.wait(PATIENCE)
        is_open.append(sock.fileno() >= 0)

    monkeypatch.setattr(socket.socket, "send", send)
    with in_thread(waker.wake):
        sending.wait(PATIENCE)
        yield is_open, go_on
