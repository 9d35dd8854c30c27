"""Waiting for clients at listeners, and what ends the wait."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from support import in_thread, wait_until

from netkit.server import selector as selecting
from netkit.server.selector import ListenerSelector

SELECTORS = list(dict.fromkeys([selecting.ListenerSelector, selecting.new_selector]))


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.fixture(params=SELECTORS)
def selector(listener: socket.socket, request: pytest.FixtureRequest) -> Iterator[ListenerSelector]:
    selector = request.param(listener)
    yield selector
    selector.close()


def test_a_wait_ends_when_a_client_is_there(
    listener: socket.socket, selector: ListenerSelector
) -> None:
    with socket.create_connection(listener.getsockname()):
        assert selector.wait(10) is True
        listener.accept()[0].close()
        assert selector.wait(0) is False


def test_a_wait_without_a_limit_ends_when_a_client_is_there(
    listener: socket.socket, selector: ListenerSelector
) -> None:
    clients = []
    with in_thread(lambda: clients.append(socket.create_connection(listener.getsockname()))):
        assert selector.wait(None) is True
    clients[0].close()


@pytest.mark.parametrize("method", ["wait", "pause"])
def test_a_wait_and_a_pause_end_after_their_time(selector: ListenerSelector, method: str) -> None:
    begun = time.monotonic()
    assert not getattr(selector, method)(0.02)
    assert 0.015 <= time.monotonic() - begun < 5


@pytest.mark.parametrize("calls", [1, 500])
def test_waking_ends_the_next_wait_however_often_it_was_called(
    selector: ListenerSelector, calls: int
) -> None:
    for _ in range(calls):
        selector.wake()
    assert selector.wait(10) is False


def test_waking_ends_a_wait_in_another_thread(selector: ListenerSelector) -> None:
    results = []
    with in_thread(lambda: results.append(selector.wait(None))):
        selector.wake()
    assert results == [False]


def test_waking_ends_a_pause(selector: ListenerSelector) -> None:
    with in_thread(selector.pause, 1000):
        selector.wake()


def test_a_wake_up_comes_before_a_client(
    listener: socket.socket, selector: ListenerSelector
) -> None:
    with socket.create_connection(listener.getsockname()):
        assert selector.wait(10) is True
        selector.wake()
        assert selector.wait(10) is False
        listener.accept()[0].close()


def test_of_two_selectors_that_see_one_client_one_does_not_block(
    listener: socket.socket, selector: ListenerSelector
) -> None:
    other = ListenerSelector(listener)
    with socket.create_connection(listener.getsockname()):
        assert selector.wait(10)
        assert other.wait(10)
        listener.accept()[0].close()
        with pytest.raises(BlockingIOError):
            listener.accept()
    other.close()


def test_the_timeout_of_a_listener_is_kept(listener: socket.socket) -> None:
    listener.settimeout(5)
    selector = ListenerSelector(listener)
    assert listener.gettimeout() == 5
    selector.close()


@pytest.mark.parametrize("kind", SELECTORS)
def test_closing_gives_the_descriptors_back_and_waking_does_nothing_then(
    listener: socket.socket, kind: type[ListenerSelector]
) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"))

    before = descriptors()
    selector = kind(listener)
    assert before < descriptors() <= before + 3
    selector.close()
    assert descriptors() == before
    selector.wake()


@pytest.mark.skipif(not hasattr(select, "EPOLLEXCLUSIVE"), reason="Linux has it")
def test_selectors_that_share_a_listener_are_woken_in_turn(listener: socket.socket) -> None:
    selectors = [selecting.new_selector(listener) for _ in range(3)]
    woken: list[int] = []

    def accept(number: int) -> None:
        while selectors[number].wait(None):
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
    for selector in selectors:
        selector.wake()
    for thread, selector in zip(threads, selectors, strict=True):
        thread.join()
        selector.close()
    assert min(map(woken.count, range(3))) >= 5  # in line, the first one would have nearly all


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="Linux has it")
def test_a_selector_that_cannot_be_made_leaves_no_descriptor_open(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(select, "epoll", fail)
    with pytest.raises(OSError, match="too many"):
        selecting.new_selector(listener)


def test_a_listener_closed_before_a_wait_ends_it(
    listener: socket.socket, selector: ListenerSelector
) -> None:
    listener.close()
    assert selector.wait(None) is True
