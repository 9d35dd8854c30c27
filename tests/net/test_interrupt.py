"""Connections that another thread interrupts, as the watchdog does."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest
from support import in_thread, receive_all, tcp_pair, wait_until

import netkit

Call = Callable[[netkit.Connection], Any]

# A call that waits, and whether it does so.
WAITS: dict[str, tuple[Call, Call]] = {
    "read": (netkit.Connection.readline, lambda conn: conn._link.waiting),
    "write": (lambda conn: conn.write(bytes(50_000_000)), lambda conn: conn._link.writing),
}


@pytest.mark.parametrize("name", WAITS)
def test_a_call_that_waits_raises_the_reason_at_once(name: str) -> None:
    call, is_waiting = WAITS[name]
    reason = TimeoutError("enough")
    errors: list[OSError] = []
    with tcp_pair() as (ours, _):
        conn = netkit.Connection(ours)

        def wait() -> None:
            try:
                call(conn)
            except OSError as error:
                errors.append(error)

        with in_thread(wait):
            wait_until(lambda: is_waiting(conn))
            assert conn.interrupt(reason)
        assert errors == [reason]
        conn.destroy()


def test_after_an_interrupted_read_the_input_is_over_and_a_last_word_is_sent() -> None:
    with tcp_pair() as (ours, peer):
        conn = netkit.Connection(ours)
        reason = TimeoutError("enough")
        with pytest.raises(TypeError, match="reason must be an OSError, not 'enough'"):
            conn.interrupt("enough")  # type: ignore[arg-type]
        assert conn.interrupt(reason)
        with pytest.raises(TimeoutError) as caught:
            conn.readline()
        assert caught.value is conn.error is reason
        assert conn.is_to_blame(reason)
        conn.end("sorry")
        assert conn.read() == b""
        assert receive_all(peer) == b"sorry"
        conn.close()
        assert not conn.interrupt(reason)


def test_the_next_read_or_write_raises_the_reason_where_nobody_waits() -> None:
    with tcp_pair() as (ours, peer):
        conn = netkit.Connection(ours)
        reason = TimeoutError("enough")
        conn.interrupt(reason)
        with pytest.raises(TimeoutError, match="enough"):
            conn.write("x")
        conn.write("x")
        conn.interrupt(reason)
        with pytest.raises(TimeoutError, match="enough"):
            conn.read()
        conn.close()
        assert receive_all(peer) == b"x"


def test_a_hard_interrupt_is_the_reason_of_all_that_fails_after_it() -> None:
    with tcp_pair() as (ours, _), netkit.Connection(ours) as conn:
        reason = TimeoutError("enough")
        conn.interrupt(TimeoutError("soon"))
        conn.interrupt(reason, hard=True)
        for call in (conn.read, lambda: conn.write("x"), lambda: conn.write("x"), conn.read):
            with pytest.raises(TimeoutError) as caught:
                call()
            assert caught.value is reason


READS: list[Callable[[netkit.Connection], Any]] = [
    netkit.Connection.readline,
    lambda conn: conn.read(1),
    lambda conn: conn.peek(),
    lambda conn: conn.readexactly(1),
    lambda conn: next(iter(conn)),
    lambda conn: conn.read_message(netkit.FixedSize(1)),
]


@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
def test_an_interrupt_is_not_put_off_by_what_has_been_received_already(hard: bool) -> None:
    for read in (None, *READS):
        with tcp_pair() as (ours, peer), netkit.Connection(ours) as conn:
            peer.sendall(b"one\ntwo\nthree\n")
            lines = conn.lines()
            assert next(lines) == "one"
            again = read or (lambda _, lines=lines: next(lines))
            assert conn.interrupt(TimeoutError("enough"), hard)
            with pytest.raises(TimeoutError, match="enough"):
                again(conn)
            if not hard:  # a handler that catches it may have the rest
                assert again(conn)
                conn.read()
                assert conn.read() == b""
            else:
                with pytest.raises(TimeoutError, match="enough"):
                    again(conn)


def test_an_interrupt_between_two_chunks_is_raised_by_the_next() -> None:
    with tcp_pair() as (ours, _), netkit.Connection(ours) as conn:
        assert conn.interrupt(TimeoutError("enough"))
        with pytest.raises(TimeoutError, match="enough"):
            next(iter(conn))
        assert list(conn) == []


def test_the_limits_of_a_connection_may_be_replaced() -> None:
    with tcp_pair() as (ours, peer):
        conn = netkit.Connection(ours)
        conn.set_timeout(0.05)
        with pytest.raises(TimeoutError, match="idle_timeout"):
            conn.readline()
        conn.set_timeout(None)
        peer.sendall(b"line\n")
        assert conn.readline() == b"line\n"
        conn.socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            conn.write(bytes(50_000_000))
        conn.set_timeout(None)
        conn.destroy()


def test_a_socket_that_takes_over_the_descriptor_keeps_the_limits() -> None:
    with tcp_pair() as (ours, _), netkit.Connection(ours) as conn:
        conn.set_timeout(60)
        conn.socket = socket.socket(fileno=ours.detach())
        conn.set_timeout(0.05)
        with pytest.raises(TimeoutError, match="idle_timeout"):
            conn.read()
