"""The live connections of a server, and the wait until there are none."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from support import PATIENCE, in_thread, in_threads, observed, tcp_pair, wait_until

from netkit.core import events
from netkit.core.deadline import Deadline
from netkit.net import connection
from netkit.net.connection import Connection
from netkit.net.states import InputState
from netkit.server.registry import Registry

NOBODY = -1  # no thread has this identifier


@contextlib.contextmanager
def connections(count: int, **settings: Any) -> Iterator[list[Connection]]:
    """Connections that no thread serves, destroyed in the end."""
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(count):
            ours, peer = stack.enter_context(tcp_pair())
            made.append(Connection(ours, peer.getsockname(), **settings))
            stack.callback(made[-1].destroy)
        yield made


def serve(registry: Registry, conn: Connection) -> None:
    """Read to the end, as a handler does."""
    assert registry.claim(conn)
    try:
        with contextlib.suppress(ConnectionError):
            conn.read()
    finally:
        conn.destroy()
        registry.remove(conn)


def added(registry: Registry, made: list[Connection]) -> None:
    for conn in made:
        registry.add(conn)


def test_a_connection_is_live_from_add_to_remove() -> None:
    registry = Registry()
    with connections(2) as (one, two):
        assert registry.live() == ()
        added(registry, [one, two])
        assert registry.live() == (one, two)
        registry.remove(one)
        assert registry.live() == (two,)


def test_each_connection_has_one_event_at_its_begin_and_one_with_the_counts_at_its_end() -> None:
    registry = Registry()
    with connections(1) as (conn,), observed() as seen:
        added(registry, [conn])
        conn.write("hello")
        registry.remove(conn)
        registry.remove(conn)
    opened, closed = seen
    assert opened == events.ConnectionOpened(conn.id, conn.peer, conn.local)
    assert isinstance(closed, events.ConnectionClosed)
    assert list(closed.as_dict().values())[:4] == [conn.id, conn.peer, 0, 5]
    assert 0 <= closed.seconds < 60


def test_a_snapshot_has_each_connection_either_among_the_open_ones_or_in_the_sums() -> None:
    registry = Registry()
    with connections(2) as (one, two):
        added(registry, [one, two])
        one.write("hello")
        assert registry.snapshot() == ((2, 0, 0, 0), (one, two))
        registry.remove(one)
        registry.remove(one)
        tally, live = registry.snapshot()
        assert (tally.opened, tally.closed, tally.received, tally.sent) == (2, 1, 0, 5)
        assert live == (two,)


def test_one_thread_alone_can_claim_a_connection_and_only_while_it_is_live() -> None:
    registry = Registry()
    with connections(2) as (one, two):
        added(registry, [one, two])
        assert registry.claim(one)
        assert registry.claim(one)
        assert one.thread == threading.get_ident()
        assert registry.waits_for(threading.get_ident())
        assert not registry.waits_for(NOBODY)
        claimed: list[bool] = []
        with in_thread(lambda: claimed.append(registry.claim(one))):
            pass
        assert claimed == [False]
        registry.remove(two)
        assert not registry.claim(two)
        assert two.thread is None


def test_of_many_threads_that_claim_a_connection_one_gets_it() -> None:
    registry = Registry()
    claimed: list[bool] = []
    together = threading.Barrier(8)

    def claim(conn: Connection) -> None:
        together.wait(PATIENCE)
        claimed.append(registry.claim(conn))
        together.wait(PATIENCE)  # identifiers are used again once a thread has ended

    with connections(1) as (conn,):
        registry.add(conn)
        in_threads(claim, [(conn,)] * 8)
    assert sorted(claimed) == [False] * 7 + [True]


def test_many_threads_may_come_and_go_at_once() -> None:
    registry = Registry()

    def come_and_go() -> None:
        with connections(5) as made:
            for conn in made:
                registry.add(conn)
                assert conn in registry.live()
                registry.remove(conn)

    in_threads(come_and_go, [()] * 6)
    assert registry.live() == ()
    assert registry.wait_until(registry.all_left(NOBODY), 0)


def test_draining_ends_the_idle_and_says_how_many_there_were() -> None:
    registry = Registry()
    with connections(3) as made, observed(events.Stopping) as seen:
        added(registry, made)
        with contextlib.ExitStack() as stack:
            for conn in made:
                stack.enter_context(in_thread(serve, registry, conn))
            wait_until(lambda: all(conn._link.waiting for conn in made))
            registry.limit(Deadline(PATIENCE))
            registry.begin_draining()
            registry.wait_while_draining(registry.all_left(NOBODY))
        assert registry.live() == ()
    assert registry.drained() == (3, 0)
    assert seen[0].connections == 3
    assert 0 < seen[0].timeout <= PATIENCE


def test_without_connections_draining_has_no_event() -> None:
    registry = Registry()
    with observed(events.Stopping) as seen:
        registry.begin_draining()
        registry.wait_while_draining(registry.all_left(NOBODY))
    assert seen == []
    assert registry.drained() == (0, 0)


def test_a_connection_that_comes_while_draining_is_asked_to_finish_and_counted() -> None:
    registry = Registry()
    registry.begin_draining()
    with connections(1) as (conn,):
        added(registry, [conn])
        assert registry.claim(conn)
        assert conn.read() == b""
        registry.remove(conn)
    assert registry.drained() == (1, 0)


def test_the_wait_ends_at_the_limit_and_the_rest_is_cut() -> None:
    registry = Registry()
    with connections(2) as made:
        added(registry, made)
        registry.limit(Deadline(0.05))
        registry.begin_draining()
        begun = time.monotonic()
        registry.wait_while_draining(registry.all_left(NOBODY))
        assert 0.04 <= time.monotonic() - begun < 5
        assert registry.time_left() == 0
        registry.cut(NOBODY)
        assert registry.drained() == (0, 2)
        assert all(conn.was_cut for conn in made)


def test_a_limit_that_comes_during_the_wait_shortens_it() -> None:
    registry = Registry()
    with connections(1) as made:
        added(registry, made)
        registry.limit(Deadline(1000))
        registry.begin_draining()
        with in_thread(registry.wait_while_draining, registry.all_left(NOBODY)):
            registry.limit(Deadline(0))


def test_the_earliest_limit_counts() -> None:
    registry = Registry()
    assert not registry.limited
    assert registry.time_left() != 0
    registry.limit(Deadline(0))
    registry.limit(Deadline(1000))
    assert registry.limited
    assert registry.time_left() == 0


def test_without_a_limit_the_wait_ends_when_all_have_finished() -> None:
    registry = Registry()
    with connections(1) as (conn,):
        registry.add(conn)
        registry.begin_draining()
        with in_thread(registry.wait_while_draining, registry.all_left(NOBODY)):
            registry.remove(conn)
    assert registry.drained() == (1, 0)


def test_busy_readers_of_bare_sockets_are_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing happens that would end the wait, so it must end by itself to ask."""
    monkeypatch.setattr(connection.Connection, "quiet_seconds", 0.05)
    registry = Registry()
    with tcp_pair() as (ours, peer):
        conn = Connection(ours, opaque=True)
        registry.add(conn)
        peer.sendall(b"request")

        def serve_bare() -> None:
            registry.claim(conn)
            received = 0
            while chunk := ours.recv(100):
                received += len(chunk)
            assert received == 7
            conn.destroy()
            registry.remove(conn)

        with in_thread(serve_bare):
            wait_until(lambda: conn.thread is not None)
            registry.limit(Deadline(PATIENCE))
            registry.begin_draining()
            registry.wait_while_draining(registry.all_left(NOBODY))
        assert registry.time_left() != 0


def test_a_thread_does_not_wait_for_its_own_connection_nor_cut_it() -> None:
    registry = Registry()
    me = threading.get_ident()
    with connections(2) as (mine, other):
        added(registry, [mine, other])
        registry.claim(mine)
        registry.begin_draining()
        assert registry.wait_until(registry.all_left(me), 0.01) is False
        registry.cut(me)
        assert (mine.was_cut, other.was_cut) == (False, True)
        registry.remove(other)
        registry.wait_while_draining(registry.all_left(me))
        assert registry.wait_until(registry.all_left(me), PATIENCE) is True
        assert registry.drained() == (1, 1)


def test_a_connection_that_is_cut_twice_is_counted_once() -> None:
    registry = Registry()
    with connections(1) as made:
        added(registry, made)
        registry.begin_draining()
        registry.cut(NOBODY)
        registry.cut(NOBODY)
        assert registry.drained() == (0, 1)


def test_a_connection_that_is_over_is_not_cut() -> None:
    registry = Registry()
    with connections(1) as (conn,):
        registry.add(conn)
        registry.begin_draining()
        conn.destroy()
        registry.cut(NOBODY)
        assert registry.drained() == (1, 0)


def test_a_spared_connection_gets_some_time_and_is_then_cut() -> None:
    registry = Registry()
    with connections(2) as (spared, cut):
        added(registry, [spared, cut])
        registry.claim(spared)
        registry.begin_draining()
        registry.cut(threading.get_ident())
        registry.wait_and_cut(0.02, NOBODY)
        assert spared.was_cut
        registry.wait_and_cut(1000, NOBODY)  # all have been cut
        assert registry.drained() == (0, 2)


def test_waiting_for_one_ends_when_one_is_over_or_the_time_is() -> None:
    registry = Registry()
    with connections(1) as (conn,):
        registry.add(conn)
        registry.wait_for_one(0.01)
        with in_thread(registry.wait_for_one, 1000):
            wait_until(lambda: registry._changed._waiters)
            registry.remove(conn)


def test_after_reopening_no_connection_is_asked_to_finish() -> None:
    registry = Registry()
    registry.limit(Deadline(0))
    registry.begin_draining()
    registry.reopen()
    assert not registry.limited
    assert registry.time_left() != 0
    with connections(1) as (conn,):
        registry.add(conn)
        assert conn._link.input is not InputState.DRAINING


def test_a_signal_handler_may_cut_all_connections_in_the_thread_that_holds_the_lock() -> None:
    registry = Registry()
    with connections(1) as (conn,):
        registry.add(conn)
        with registry._changed:
            registry.begin_draining()
            registry.cut(NOBODY)
        assert conn.was_cut


def test_many_threads_that_remove_a_connection_cause_one_event() -> None:
    registry = Registry()
    with connections(1) as (conn,), observed(events.ConnectionClosed) as seen:
        added(registry, [conn])
        in_threads(registry.remove, [(conn,)] * 4)
    assert len(seen) == 1


def test_during_the_patience_no_connection_is_asked_to_finish_and_those_that_end_are_counted() -> (
    None
):
    registry = Registry()
    with connections(2) as (one, two):
        added(registry, [one, two])
        assert not registry.patient
        registry.limit(Deadline(PATIENCE), Deadline(PATIENCE))
        assert registry.patient
        with in_thread(registry.wait_while_draining, registry.all_left(NOBODY)):
            wait_until(lambda: registry._changed._waiters)
            registry.remove(one)
            assert two._link.input is InputState.OPEN
            registry.limit(Deadline(PATIENCE))  # a stop without patience
        assert not registry.patient
        registry.begin_draining()
        assert two._link.input is InputState.DRAINING
        registry.remove(two)
        registry.wait_while_draining(registry.all_left(NOBODY))
    assert registry.drained() == (2, 0)


def test_a_wait_for_the_end_of_all_is_over_after_the_observers() -> None:
    registry = Registry()
    order: list[str] = []

    def observe(event: object) -> None:
        if isinstance(event, events.ConnectionClosed):
            wait_until(lambda: registry._changed._waiters)
            assert registry.live() == ()
            order.append("observed")

    def wait() -> None:
        assert registry.wait_until(registry.all_left(NOBODY), PATIENCE)
        order.append("went on")

    unsubscribe = events.subscribe(observe)
    try:
        with connections(1) as (conn,):
            registry.add(conn)
            with in_thread(registry.remove, conn):
                wait_until(lambda: registry.live() == ())
                with in_thread(wait):
                    pass
    finally:
        unsubscribe()
    assert order == ["observed", "went on"]


def test_an_observer_of_the_end_does_not_wait_for_itself() -> None:
    registry = Registry()
    waited: list[bool] = []

    def observe(event: object) -> None:
        if isinstance(event, events.ConnectionClosed):
            me = threading.get_ident()
            assert registry.waits_for(me)
            waited.append(registry.wait_for(0, PATIENCE))
            waited.append(registry.wait_until(registry.all_left(me), PATIENCE))
            waited.append(registry.wait_until(registry.all_left(NOBODY), 0))

    unsubscribe = events.subscribe(observe)
    try:
        with connections(1) as (conn,):
            registry.add(conn)
            registry.remove(conn)
    finally:
        unsubscribe()
    assert waited == [True, True, False]
    assert not registry.waits_for(threading.get_ident())


def test_no_connection_is_cut_under_the_lock() -> None:
    """Its socket may be an object of the program's."""
    registry = Registry()
    with connections(1) as (conn,):
        registry.add(conn)

        def cut() -> bool:
            with in_thread(registry.live):
                pass
            return True

        conn.cut = cut  # type: ignore[method-assign]
        registry.cut(NOBODY)
    assert registry.drained() == (0, 1)
