"""Threads that stand by for a client: who is woken, who relieves whom, and that nobody is lost."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import select
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from support import PATIENCE, client, exchange, in_thread, observed, serving, silent_log, wait_until

import netkit
from netkit.core import events
from netkit.server import stands
from netkit.server.stands import MOST, Stands

pytestmark = pytest.mark.skipif(
    not hasattr(select, "EPOLLEXCLUSIVE"), reason="nobody stands by without EPOLLEXCLUSIVE"
)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener


class Crew:
    """Threads that stand, and what each of them was told."""

    def __init__(self, listener: socket.socket, count: int) -> None:
        self.woken = threading.Semaphore(0)
        self.stands = Stands(self.woken.release, listener)
        self.told: list[bool] = []
        self.count = count

    def stand(self) -> None:
        self.told.append(self.stands.wait(PATIENCE))

    @contextlib.contextmanager
    def standing(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for _ in range(self.count):
                stack.enter_context(in_thread(self.stand))
            try:
                wait_until(lambda: len(self.stands) == self.count)
                yield
            finally:
                self.stands.close()


def test_one_is_woken_for_a_client_and_the_last_to_leave_has_somebody_else_look(
    listener: socket.socket,
) -> None:
    crew = Crew(listener, 3)
    with crew.standing():
        with socket.create_connection(listener.getsockname()):
            wait_until(lambda: crew.told)
            listener.accept()[0].close()
        assert crew.told == [True]
        assert len(crew.stands) == 2
        assert not crew.woken.acquire(blocking=False)
    assert crew.told == [True, False, False]
    assert crew.woken.acquire(blocking=False)


def test_as_many_as_there_are_clients_are_woken(listener: socket.socket) -> None:
    crew = Crew(listener, 3)
    with crew.standing(), contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(socket.create_connection(listener.getsockname()))
        wait_until(lambda: len(crew.told) == 3)
        assert crew.told == [True] * 3


def test_a_thread_that_comes_when_a_client_waits_returns_at_once(listener: socket.socket) -> None:
    crew = Stands(lambda: None, listener)
    with socket.create_connection(listener.getsockname()):
        assert crew.wait(PATIENCE)
        assert crew.wait(PATIENCE)
    crew.close()


def test_nobody_stands_for_longer_than_it_wants(listener: socket.socket) -> None:
    crew = Stands(lambda: None, listener)
    assert not crew.wait(0.01)
    assert len(crew) == 0
    crew.close()


def test_there_are_only_so_many_stands(listener: socket.socket) -> None:
    crew = Crew(listener, MOST)
    with crew.standing():
        assert not crew.stands.wait(PATIENCE)
        assert crew.told == []
    assert crew.told == [False] * MOST


def test_nobody_stands_once_it_is_closed(listener: socket.socket) -> None:
    crew = Stands(lambda: None, listener)
    assert not crew.wait(0.0)
    crew.close()
    with socket.create_connection(listener.getsockname()):
        assert not crew.wait(PATIENCE)
    crew.close()


@pytest.mark.parametrize("step", ["eventfd", "ExclusiveSelector"])
def test_without_a_descriptor_nobody_stands(
    listener: socket.socket, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise OSError(errno.EMFILE, "no descriptors")

    crew = Stands(lambda: None, listener)
    with monkeypatch.context() as patch:
        patch.setattr(os if step == "eventfd" else stands, step, fail)
        assert not crew.wait(PATIENCE)
    assert not crew.wait(0.0)
    with socket.create_connection(listener.getsockname()):
        assert crew.wait(PATIENCE)
    crew.close()


def test_nobody_stands_at_a_listener_that_has_been_closed(listener: socket.socket) -> None:
    crew = Stands(lambda: None, listener)
    listener.close()
    assert not crew.wait(PATIENCE)
    crew.close()


# In a server


def serve_one_after_the_other(server: netkit.Server, count: int) -> None:
    """Until a thread stands by, and the accepting thread leaves the clients to it."""
    for _ in range(count):
        assert exchange(server, b"x") == b"x"
        wait_until(lambda: server._accepting.attended)


def test_in_the_long_run_clients_are_handed_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    handed: list[Any] = []
    with serving(netkit.EchoHandler) as server:
        serve_one_after_the_other(server, 5)
        run = server._client_threads.run
        with monkeypatch.context() as patch:
            patch.setattr(server._client_threads, "run", lambda job: (handed.append(job), run(job)))
            serve_one_after_the_other(server, 20)
        assert len(handed) < 5  # the accepting thread was relieved a moment late, at most


def test_nobody_is_lost_as_those_who_stood_by_become_busy() -> None:
    """The accepting thread, which nobody has told of a client yet, takes over in time."""
    rng = random.Random(1)
    for _ in range(20):
        with serving(netkit.EchoHandler) as server, contextlib.ExitStack() as stack:
            for _ in range(rng.randrange(1, 4)):
                assert exchange(server, b"x") == b"x"
                time.sleep(rng.choice((0, 0.001)))
            for _ in range(2 * MOST):
                sock = stack.enter_context(client(server))
                sock.sendall(b"x")
                assert sock.recv(1) == b"x"


def test_no_client_is_lost_that_comes_while_the_server_is_suspended() -> None:
    """Who was woken for them, and may not accept, has the accepting thread see to them."""
    with serving(netkit.EchoHandler) as server, contextlib.ExitStack() as stack:
        for _ in range(5):
            with client(server) as first, client(server) as second:
                first.sendall(b"x")
                second.sendall(b"x")
                assert first.recv(1) + second.recv(1) == b"xx"
            wait_until(lambda: server._accepting.attended)
            server.suspend()
            late = [stack.enter_context(client(server)) for _ in range(4)]
            for sock in late:
                sock.sendall(b"x")
                sock.settimeout(0.02)
                with pytest.raises(TimeoutError):
                    sock.recv(1)
            server.resume()
            for sock in late:
                sock.settimeout(PATIENCE)
                assert sock.recv(1) == b"x"


def test_a_limit_that_is_set_while_threads_stand_by_holds() -> None:
    with serving(netkit.EchoHandler) as server:
        serve_one_after_the_other(server, 3)
        server.configure(max_connections=2)
        with client(server) as first, client(server) as second:
            wait_until(lambda: server.connection_count == 2)
            with client(server) as third:
                third.sendall(b"x")
                third.settimeout(0.05)
                with pytest.raises(TimeoutError):
                    third.recv(1)
                first.close()
                third.settimeout(PATIENCE)
                assert third.recv(1) == b"x"
            assert second.fileno() >= 0


def test_what_ails_the_machine_is_met_by_the_accepting_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who stood by, and met it first, neither spins nor leaves the client to itself."""
    callers: list[threading.Thread] = []
    with silent_log(), serving(netkit.EchoHandler) as server:
        serve_one_after_the_other(server, 3)

        def fail() -> Any:
            callers.append(threading.current_thread())
            raise OSError(errno.EMFILE, "no descriptors")

        with (
            observed(events.AcceptPaused, events.AcceptResumed) as seen,
            monkeypatch.context() as m,
        ):
            m.setattr(server, "get_request", fail)
            with client(server) as sock:
                sock.sendall(b"x")
                wait_until(lambda: seen)
                m.undo()
                assert sock.recv(1) == b"x"
            wait_until(lambda: len(seen) == 2)
        others = [thread for thread in callers if thread is not server._background]
        assert len(others) <= MOST


def test_the_end_of_an_episode_is_told_of_though_the_accepting_thread_saw_none_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with silent_log(), serving(netkit.EchoHandler) as server, observed(events.Refused) as seen:
        serve_one_after_the_other(server, 3)
        tell = server._refusals.end_episodes
        monkeypatch.setattr(server._refusals, "end_episodes", lambda quiet=0.05: tell(quiet))
        server.configure(deny=["127.0.0.1"])
        with client(server) as sock:
            assert sock.recv(1) == b""
        wait_until(lambda: seen)
        assert seen[0].clients == 1


def test_an_observer_may_stop_the_server_in_a_thread_that_stands_by() -> None:
    stopped: list[Any] = []

    def stop(event: Any) -> None:
        if isinstance(event, events.ClientRefused):
            stopped.append(server.stop(0))

    with silent_log(), serving(netkit.EchoHandler) as server:
        serve_one_after_the_other(server, 3)
        unsubscribe = events.subscribe(stop)
        try:
            server.configure(deny=["127.0.0.1"])
            with client(server) as sock:
                assert sock.recv(1) == b""
            wait_until(lambda: stopped)
        finally:
            unsubscribe()
    assert stopped == [(0, 0)]


def test_threads_that_stood_by_go_away_when_nobody_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netkit.server.threads.PARK_SECONDS", 0.05)
    with serving(netkit.EchoHandler) as server:
        for _ in range(3):
            assert exchange(server, b"x") == b"x"
            wait_until(lambda: not server._threads)
        assert not server._accepting.attended


def test_a_thread_for_which_the_exit_would_wait_does_not_stand_by() -> None:
    class Kept(netkit.Server):
        daemon_threads = False

    with Kept(None, netkit.EchoHandler).listen(0, "127.0.0.1") as server:
        assert exchange(server, b"x") == b"x"
        wait_until(lambda: not server._threads)
        assert not server._accepting.helped
