"""Waiting for clients: the wake-up, the four answers to a failed accept, the back-off."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from support import in_thread, wait_until

from netkit.server import listener as listening
from netkit.server.listener import Acceptor, Verdict, is_lost_race, judge

SELECTORS = [listening._PlainSelector]
if hasattr(select, "EPOLLEXCLUSIVE"):
    SELECTORS.append(listening.ExclusiveSelector)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.fixture(params=SELECTORS)
def acceptor(
    listener: socket.socket, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Acceptor]:
    monkeypatch.setattr(listening, "_Selector", request.param)
    acceptor = Acceptor(listener)
    yield acceptor
    acceptor.close()


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        *(
            (OSError(getattr(errno, name), ""), Verdict.SKIP)
            for name in ("EINTR", "ECONNABORTED", "ECONNRESET", "EPROTO", "EPERM")
        ),
        *(
            (OSError(getattr(errno, name), ""), Verdict.BACK_OFF)
            for name in ("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "EOPNOTSUPP")
        ),
        *(
            (OSError(getattr(errno, name), ""), Verdict.STOP)
            for name in ("EBADF", "EINVAL", "ENOTSOCK")
        ),
        (OSError(errno.EAGAIN, ""), Verdict.NOBODY),
        (TimeoutError(), Verdict.NOBODY),
        (ssl.SSLError(1, "bad handshake"), Verdict.SKIP),
        (OSError("without a number"), Verdict.BACK_OFF),
        (RuntimeError("can't start new thread"), Verdict.BACK_OFF),
        (ValueError(), Verdict.BACK_OFF),
    ],
)
def test_a_failed_accept_has_one_of_four_answers(error: Exception, verdict: Verdict) -> None:
    assert judge(error) is verdict


def test_ssl_is_not_imported_to_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ssl")
    assert judge(OSError(errno.EMFILE, "")) is Verdict.BACK_OFF
    assert "ssl" not in sys.modules


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (BlockingIOError(), True),
        (ConnectionAbortedError(), True),
        (InterruptedError(), True),
        (OSError(errno.EPROTO, ""), False),
        (TimeoutError(), False),
    ],
)
def test_clients_that_went_away_are_not_worth_telling(error: Exception, expected: bool) -> None:
    assert is_lost_race(error) is expected


def test_a_wait_ends_when_a_client_is_there(listener: socket.socket, acceptor: Acceptor) -> None:
    with socket.create_connection(listener.getsockname()):
        assert acceptor.wait(10) is True
        listener.accept()[0].close()
        assert acceptor.wait(0) is False


def test_a_wait_without_a_limit_ends_when_a_client_is_there(
    listener: socket.socket, acceptor: Acceptor
) -> None:
    clients = []
    with in_thread(lambda: clients.append(socket.create_connection(listener.getsockname()))):
        assert acceptor.wait(None) is True
    clients[0].close()


@pytest.mark.parametrize("method", ["wait", "pause"])
def test_a_wait_and_a_pause_end_after_their_time(acceptor: Acceptor, method: str) -> None:
    begun = time.monotonic()
    assert not getattr(acceptor, method)(0.02)
    assert 0.015 <= time.monotonic() - begun < 5


@pytest.mark.parametrize("calls", [1, 500])
def test_waking_ends_the_next_wait_however_often_it_was_called(
    acceptor: Acceptor, calls: int
) -> None:
    for _ in range(calls):
        acceptor.wake()
    assert acceptor.wait(10) is False


def test_waking_ends_a_wait_in_another_thread(acceptor: Acceptor) -> None:
    results = []
    with in_thread(lambda: results.append(acceptor.wait(None))):
        acceptor.wake()
    assert results == [False]


def test_waking_ends_a_pause(acceptor: Acceptor) -> None:
    with in_thread(acceptor.pause, 1000):
        acceptor.wake()


def test_a_wake_up_comes_before_a_client(listener: socket.socket, acceptor: Acceptor) -> None:
    with socket.create_connection(listener.getsockname()):
        assert acceptor.wait(10) is True
        acceptor.wake()
        assert acceptor.wait(10) is False
        listener.accept()[0].close()


def test_of_two_acceptors_that_see_one_client_one_does_not_block(
    listener: socket.socket, acceptor: Acceptor
) -> None:
    other = Acceptor(listener)
    with socket.create_connection(listener.getsockname()):
        assert acceptor.wait(10)
        assert other.wait(10)
        listener.accept()[0].close()
        with pytest.raises(BlockingIOError):
            listener.accept()
    other.close()


def test_the_listeners_own_timeout_is_left_to_the_user(listener: socket.socket) -> None:
    listener.settimeout(5)
    acceptor = Acceptor(listener)
    assert listener.gettimeout() == 5
    acceptor.close()


@pytest.mark.parametrize("kind", SELECTORS)
def test_closing_gives_the_descriptors_back_and_waking_does_nothing_then(
    listener: socket.socket, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"))

    monkeypatch.setattr(listening, "_Selector", kind)
    before = descriptors()
    acceptor = Acceptor(listener)
    assert before < descriptors() <= before + 3
    acceptor.close()
    assert descriptors() == before
    acceptor.wake()


@pytest.mark.skipif(not hasattr(select, "EPOLLEXCLUSIVE"), reason="Linux has it")
def test_acceptors_that_share_a_listener_are_woken_in_turn(listener: socket.socket) -> None:
    acceptors = [Acceptor(listener) for _ in range(3)]
    woken: list[int] = []

    def accept(number: int) -> None:
        while acceptors[number].wait(None):
            with contextlib.suppress(BlockingIOError):  # one that was just going to wait took it
                listener.accept()[0].close()
                woken.append(number)

    threads = [threading.Thread(target=accept, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)  # all of them wait, which nothing tells
    for count in range(1, 61):
        socket.create_connection(listener.getsockname()).close()
        wait_until(lambda count=count: len(woken) == count)
    for acceptor in acceptors:
        acceptor.wake()
    for thread, acceptor in zip(threads, acceptors, strict=True):
        thread.join()
        acceptor.close()
    assert min(map(woken.count, range(3))) >= 5  # in line, the first one would have nearly all


def test_what_an_acceptor_has_taken_is_given_back_when_it_cannot_be_made(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: int) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(listening, "_Selector", fail)
    with pytest.raises(OSError, match="too many"):
        Acceptor(listener)


def test_a_listener_closed_before_a_wait_ends_it(
    listener: socket.socket, acceptor: Acceptor
) -> None:
    listener.close()
    assert acceptor.wait(None) is True
