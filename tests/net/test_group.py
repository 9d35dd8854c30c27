"""Groups: the same message for many connections."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest
from secure import contexts
from support import (
    connected,
    fill,
    in_thread,
    in_threads,
    receive_all,
    receive_exactly,
    reset,
    serving,
    wait_until,
)

import netkit
from netkit.net import group as groups

Pair = tuple[netkit.Connection, socket.socket]


@contextlib.contextmanager
def members(count: int) -> Iterator[tuple[netkit.Group, list[Pair]]]:
    """A group of so many connections, and each of them with its peer."""
    with contextlib.ExitStack() as stack:
        pairs = [stack.enter_context(connected()) for _ in range(count)]
        yield netkit.Group(conn for conn, _ in pairs), pairs


def test_all_members_but_one_get_a_message() -> None:
    with members(3) as (group, pairs):
        assert group.post("all ") == 3
        assert group.post(bytearray(b"some"), but=pairs[1][0]) == 2
        assert group.post("\u00e9", encoding="latin-1") == 3
        assert [receive_exactly(peer, 5) for _, peer in pairs] == [
            b"all s",
            b"all \xe9",
            b"all s",
        ]


def test_members_come_and_go_in_order() -> None:
    with members(3) as (group, pairs):
        first, second, third = (conn for conn, _ in pairs)
        assert list(group) == [first, second, third]
        group.discard(second)
        group.discard(second)
        group.add(second)
        group.add(first)
        assert list(group) == [first, third, second]
        assert second in group
        assert "second" not in group
        group.discard(second)
        with group.member(second) as conn:
            assert conn is second
            assert len(group) == 3
        with pytest.raises(RuntimeError), group.member(second):
            raise RuntimeError
        assert second not in group
        assert repr(group) == "<Group of 2>"


def test_what_is_no_connection_or_no_data_is_an_error() -> None:
    group = netkit.Group()
    assert group.post("to nobody") == len(group) == 0
    with members(1) as (group, _):
        with pytest.raises(TypeError, match="a member of a group is a Connection, not 'name'"):
            group.add("name")  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            group.post(42)  # type: ignore[arg-type]
        assert len(group) == 1


@pytest.mark.parametrize("how", ["close", "destroy"])
def test_a_closed_connection_is_no_member(how: str) -> None:
    with members(2) as (group, [(conn, peer), (other, _)]):
        peer.close()
        getattr(conn, how)()
        assert conn not in group
        group.add(conn)
        assert len(group) == 1
        assert list(group) == [other]


def test_closed_members_are_forgotten_though_nobody_posts() -> None:
    with members(1) as (group, _):
        for _ in range(100):
            with connected() as (conn, _):
                group.add(conn)
        assert len(group._members) < 40


def test_a_member_that_fails_leaves_and_the_others_get_the_message() -> None:
    with members(4) as (group, pairs):
        (ended, _), (_, gone_peer), (full, _), (good, good_peer) = pairs
        ended.end()
        reset(gone_peer)
        fill(full.socket)
        full.outbox.max_bytes = 64
        sent = 0
        while len(group) > 1:
            group.post("x")
            sent += 1
        assert list(group) == [good]
        receive_exactly(good_peer, sent)


def test_a_member_whose_outbox_refuses_a_message_stays() -> None:
    with members(2) as (group, [(slow, slow_peer), (_, peer)]):
        filled = fill(slow.socket)
        slow.outbox.max_bytes, slow.outbox.when_full = 64, "refuse"
        assert [group.post(text) for text in "abc"] == [2, 1, 1]
        assert receive_exactly(peer, 3) == b"abc"
        receive_exactly(slow_peer, filled + 1)
        wait_until(lambda: not slow.outbox.queued)
        assert group.post("d") == 2


def test_the_members_share_one_object_of_bytes() -> None:
    with members(2) as (group, pairs):
        for conn, _ in pairs:
            fill(conn.socket)
            conn.post("first")
        group.post(bytearray(b"shared"))
        (one, other) = (conn.outbox.messages[-1] for conn, _ in pairs)
        assert one is other


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_the_handlers_of_a_server_and_a_thread_outside_post_to_all(tls: bool) -> None:
    group = netkit.Group()
    count = 8

    def serve(conn: netkit.Connection) -> None:
        with group.member(conn):
            for line in conn.lines():
                group.post(line + "\n", but=conn)

    def talk(conn: netkit.Connection, number: int) -> None:
        for turn in range(50):
            conn.write(f"{number} {turn}\n")

    options = {"tls": contexts()[0]} if tls else {}
    with serving(serve, **options) as server, contextlib.ExitStack() as stack:
        clients = []
        for number in range(count):
            conn = netkit.connect(server.server_address[1], "127.0.0.1")
            clients.append(stack.enter_context(conn))
            if tls:
                conn.start_tls(contexts()[1], server_hostname="localhost")
            wait_until(lambda: len(group) > number)  # noqa: B023
        with in_thread(in_threads, talk, [(conn, n) for n, conn in enumerate(clients)]):
            for turn in range(50):
                assert group.post(f"outside {turn}\n") == count
            for number, conn in enumerate(clients):
                lines = [conn.readline().decode().split() for _ in range(50 * count)]
                for name in (*map(str, range(count)), "outside"):
                    got = [int(turn) for who, turn in lines if who == name]
                    assert got == (list(range(50)) if name != str(number) else [])


def test_members_come_and_go_while_others_post() -> None:
    done = threading.Event()

    def post_on(group: netkit.Group) -> None:
        while not done.is_set():
            group.post("x")

    with members(1) as (group, [(_, steady_peer)]), in_thread(post_on, group):
        with in_thread(receive_all, steady_peer):
            for _ in range(100):
                with connected() as (conn, peer), group.member(conn):
                    assert peer.recv(1) == b"x"
            assert len(group) == 1
            done.set()
            for conn in group:
                conn.end()


def test_a_thread_posts_though_another_one_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "LONGEST_TURN", 0.01)
    with members(1) as (group, [(_, peer)]), groups._turn:
        with in_thread(group.post, "posted"):
            assert receive_exactly(peer, 6) == b"posted"
