"""Deadlines of blocks and of single reads: what they bound, and what holds after them."""

from __future__ import annotations

import contextlib
import io
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from secure import contexts
from support import (
    client,
    connected,
    fill,
    in_thread,
    observed,
    once,
    receive_all,
    receive_exactly,
    serving,
    tcp_pair,
    wait_until,
)

import netkit
from netkit.core import events
from netkit.net.sockopts import readable

MUCH = bytes(50_000_000)
SOON = 0.05  # a deadline that passes
LATER = 0.5  # one that may be met or pass
NUMBERS = netkit.FixedSize(4)

Call = Callable[[netkit.Connection], Any]


PEER = r"127\.0\.0\.1:\d+"
DEADLINE = rf"\] deadline: the exchange with {PEER} was not over within {SOON} seconds$"
TIMEOUT = rf"\] timeout: the read from {PEER} was not done within {SOON} seconds$"


def send_file(conn: netkit.Connection) -> int:
    with tempfile.TemporaryFile() as file:
        file.write(MUCH)
        file.flush()
        return conn.sendfile(file)


@contextlib.contextmanager
def secured() -> Iterator[tuple[netkit.Connection, netkit.Connection]]:
    """Both ends of a connection with TLS."""
    with tcp_pair() as (ours, theirs):
        conn, peer = netkit.Connection(ours), netkit.Connection(theirs)
        try:
            with in_thread(lambda: conn.start_tls(contexts()[0], server_side=True)):
                peer.start_tls(contexts()[1], server_hostname="localhost")
            yield conn, peer
        finally:
            conn.destroy()
            peer.destroy()


@pytest.mark.parametrize(
    "call",
    [
        netkit.Connection.readline,
        lambda conn: next(iter(conn)),
        lambda conn: conn.write(MUCH),
        lambda conn: conn.pipe_to(io.BytesIO()),
        send_file,
        lambda conn: conn.start_tls(contexts()[0], server_side=True),
    ],
    ids=["readline", "iteration", "write", "pipe_to", "sendfile", "start_tls"],
)
def test_a_call_that_is_not_done_at_the_deadline_says_so(call: Call) -> None:
    with connected() as (conn, _):
        with pytest.raises(TimeoutError, match=DEADLINE) as caught:
            with conn.deadline(SOON):
                call(conn)
        assert conn.is_to_blame(caught.value)


@pytest.mark.parametrize(
    "call",
    [
        lambda conn: conn.read(timeout=SOON),
        lambda conn: conn.read(9, timeout=SOON),
        lambda conn: conn.readline(timeout=SOON),
        lambda conn: conn.readexactly(9, timeout=SOON),
        lambda conn: conn.readuntil("x", timeout=SOON),
        lambda conn: conn.read_message(NUMBERS, timeout=SOON),
        lambda conn: conn.peek(timeout=SOON),
        lambda conn: conn.read_into(bytearray(9), timeout=SOON),
        lambda conn: next(conn.lines(timeout=SOON)),
        lambda conn: next(conn.lines(encoding=None, timeout=SOON)),
        lambda conn: next(conn.messages(NUMBERS, timeout=SOON)),
    ],
)
def test_each_read_has_a_timeout_of_its_own(call: Call) -> None:
    with connected() as (conn, peer):
        for _ in range(2):
            with pytest.raises(TimeoutError, match=TIMEOUT):
                call(conn)
        peer.sendall(b"four")
        assert conn.readexactly(4) == b"four"


def test_the_timeout_of_a_loop_is_for_each_line_or_message() -> None:
    with connected() as (conn, peer):
        lines = conn.lines(timeout=LATER)
        peer.sendall(b"one\ntwo\nth")
        assert [next(lines), next(lines)] == ["one", "two"]
        with pytest.raises(TimeoutError):
            next(lines)
        peer.sendall(b"ree\n1234")
        assert next(lines) == "three"
        messages = conn.messages(NUMBERS, timeout=LATER)
        assert next(messages) == b"1234"
        with pytest.raises(TimeoutError):
            next(messages)
        peer.shutdown(socket.SHUT_WR)
        assert list(lines) == list(messages) == []


def test_a_trickle_does_not_postpone_a_deadline() -> None:
    with connected() as (conn, peer):
        over = threading.Event()

        def trickle() -> None:
            while not over.wait(0.01):
                peer.sendall(b"x")

        with in_thread(trickle):
            try:
                with pytest.raises(TimeoutError, match="deadline"), conn.deadline(0.2):
                    conn.readline()
                with pytest.raises(TimeoutError, match="timeout"):
                    conn.readline(timeout=0.1)
            finally:
                over.set()


def test_a_reader_that_trickles_does_not_postpone_the_deadline_of_a_file() -> None:
    with connected(receive_buffer=4096) as (conn, peer):
        conn.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        over = threading.Event()

        def trickle() -> None:
            while not over.wait(0.01):
                peer.recv(1000)

        with in_thread(trickle):
            try:
                with pytest.raises(TimeoutError, match="deadline"), conn.deadline(0.2):
                    send_file(conn)
            finally:
                over.set()
                conn.destroy()
        assert conn.bytes_written < 1_000_000


def test_after_a_read_at_its_deadline_nothing_is_lost_and_the_connection_is_good() -> None:
    with connected() as (conn, peer):
        peer.sendall(b"half a ")
        with pytest.raises(TimeoutError), conn.deadline(SOON):
            conn.readline()
        peer.sendall(b"line\n")
        assert conn.readline() == b"half a line\n"
        conn.write("ok")
        assert receive_exactly(peer, 2) == b"ok"


def test_a_write_that_has_sent_a_part_by_the_deadline_is_broken() -> None:
    with connected() as (conn, _):
        for _ in range(2):
            with pytest.raises(TimeoutError, match=DEADLINE):
                with conn.deadline(SOON):
                    conn.write(MUCH)
        with pytest.raises(TimeoutError, match="deadline"):
            conn.write("x")


@pytest.mark.parametrize("open_pair", [connected, secured], ids=["plain", "tls"])
def test_after_the_deadline_a_call_neither_waits_nor_sends(open_pair: Any) -> None:
    with open_pair() as (conn, peer):
        (getattr(peer, "write", None) or peer.sendall)(b"1\n2\n")
        assert conn.readline() == b"1\n"
        with conn.deadline(1e-9) as deadline:
            assert deadline.expired()
            assert deadline.remaining() == 0
            assert conn.readline() == b"2\n"  # which has been received
            for call in (lambda: conn.write("lost"), conn.readline):
                with pytest.raises(TimeoutError, match="deadline") as caught:
                    call()
                assert caught.value is conn.error
            with pytest.raises(TimeoutError, match="deadline"):
                conn.sendfile(io.BytesIO(b"lost"))
        conn.write("sorry")
        conn.end()
        assert (receive_all(peer) if open_pair is connected else peer.read()) == b"sorry"


@pytest.mark.parametrize(("outer", "inner"), [(SOON, 60), (60, SOON)])
def test_the_earliest_of_nested_deadlines_counts(outer: float, inner: float) -> None:
    with connected() as (conn, peer), conn.deadline(outer) as deadline:
        with pytest.raises(TimeoutError, match=DEADLINE), conn.deadline(inner):
            conn.readline()
        with pytest.raises(TimeoutError, match=TIMEOUT if inner == SOON else DEADLINE):
            conn.readline(timeout=inner)
        peer.sendall(b"x\n")
        if not deadline.expired():
            assert conn.readline() == b"x\n"


def test_other_limits_apply_within_a_deadline_and_may_be_changed() -> None:
    with connected() as (conn, _), conn.deadline(LATER):
        conn.set_timeout(SOON)
        with pytest.raises(TimeoutError, match="idle_timeout"):
            conn.readline()
        conn.set_timeout(None)
        with pytest.raises(TimeoutError, match="deadline"):
            conn.readline()


def test_a_write_timeout_is_not_shortened_by_a_deadline_that_is_over() -> None:
    with connected() as (conn, peer):
        conn.set_timeout(60)
        fill(conn.socket)
        with pytest.raises(TimeoutError, match="deadline"), conn.deadline(SOON):
            conn.write("x")

        def read_late() -> None:
            wait_until(lambda: conn._link.writing)
            time.sleep(4 * SOON)
            receive_all(peer)

        with in_thread(read_late):
            conn.write("y")
            conn.end()


def test_a_deadline_ends_with_its_block_even_if_that_raises() -> None:
    with connected() as (conn, peer):
        with pytest.raises(KeyError), conn.deadline(SOON):
            with pytest.raises(TimeoutError):
                conn.readline()
            raise KeyError

        def send_late() -> None:
            wait_until(lambda: conn._link.waiting)
            time.sleep(4 * SOON)
            peer.sendall(b"late\n")

        with in_thread(send_late):
            assert conn.readline() == b"late\n"


def test_the_deadline_of_one_thread_does_not_bound_another() -> None:
    with connected() as (conn, peer):
        written: list[int] = []
        with in_thread(lambda: written.append(conn.write(MUCH))):
            wait_until(lambda: conn._link.writing)
            for _ in range(2):
                with pytest.raises(TimeoutError, match="deadline"), conn.deadline(SOON):
                    conn.readline()
            peer.sendall(b"x\n")
            assert conn.readline() == b"x\n"
            assert not written
            assert receive_exactly(peer, len(MUCH)) == MUCH
        assert written == [len(MUCH)]
        with once(lambda: conn._link.waiting, peer.sendall, b"y\n"), conn.deadline(60):
            with in_thread(conn.write, "from another thread"):
                assert conn.readline() == b"y\n"


@pytest.mark.parametrize("call", [lambda conn: conn.write("x"), lambda conn: conn.end("x")])
def test_a_write_of_another_thread_is_not_waited_for_after_the_deadline(call: Call) -> None:
    with connected() as (conn, peer):
        with in_thread(conn.write, MUCH):
            wait_until(lambda: conn._link.writing)
            with pytest.raises(TimeoutError, match=DEADLINE) as caught, conn.deadline(SOON):
                call(conn)
            assert caught.value is conn.error
            with conn.deadline(60), in_thread(receive_exactly, peer, len(MUCH)):
                call(conn)
        assert receive_exactly(peer, 1) == b"x"


def test_a_deadline_that_has_passed_leaves_what_is_posted_in_the_queue() -> None:
    with connected() as (conn, peer):
        with conn._output.held():  # the thread of the outbox waits
            conn.post("posted")
            with pytest.raises(TimeoutError, match="deadline"), conn.deadline(1e-9):
                conn._output.send_gathered()
            assert conn.outbox.queued
        conn.end()
        assert receive_all(peer) == b"posted"


def test_a_block_may_be_entered_again_and_begins_anew() -> None:
    with connected() as (conn, peer):
        block = conn.deadline(LATER)
        for _ in range(2):
            with pytest.raises(TimeoutError), block, block:
                conn.readline()
        peer.sendall(b"x\n")
        with block:
            assert conn.readline() == b"x\n"


@pytest.mark.parametrize(
    ("seconds", "kind", "text"),
    [
        (-1, ValueError, "must be 0 or more seconds, not -1"),
        (float("nan"), ValueError, "must be 0 or more seconds, not nan"),
        (float("inf"), ValueError, "must be at most"),
        (True, TypeError, "must be a number of seconds, not True"),
        ("5", TypeError, "must be a number of seconds, not '5'"),
    ],
)
def test_an_invalid_time_is_refused_in_one_line(
    seconds: Any, kind: type[Exception], text: str
) -> None:
    with connected() as (conn, _):
        with pytest.raises(kind, match=f"^deadline {text}.*$"):
            conn.deadline(seconds)
        with pytest.raises(kind, match=f"^timeout {text}.*$"):
            conn.readline(timeout=seconds)


def test_with_zero_seconds_calls_do_not_wait() -> None:
    with connected() as (conn, peer):
        with pytest.raises(TimeoutError, match="timeout: .* within 0 seconds"):
            conn.readline(timeout=0)
        for data, line in ((b"here\nha", b"here\n"), (b"lf\n", b"half\n")):
            peer.sendall(data)
            wait_until(lambda: readable(conn.socket))
            assert conn.readline(timeout=0) == line
            with pytest.raises(TimeoutError):
                conn.readline(timeout=0)
        with conn.deadline(0):
            conn.write("fits")
        fill(conn.socket)
        with pytest.raises(TimeoutError, match="deadline"), conn.deadline(0):
            conn.write("full")
        with in_thread(receive_all, peer):
            conn.end("not broken")


def test_no_deadline_is_none() -> None:
    with connected() as (conn, peer), conn.deadline(None) as deadline:
        assert deadline.remaining() is None
        peer.sendall(b"x\n")
        assert conn.readline(timeout=None) == b"x\n"
        assert conn._link.wire.timer is None


def test_a_closed_connection_has_no_deadline() -> None:
    for closed_before in (True, False):
        with connected() as (conn, _):
            if closed_before:
                conn.destroy()
            with conn.deadline(60):
                conn.destroy()
                with pytest.raises(netkit.ConnectionClosedError):
                    conn.readline(timeout=60)
                with pytest.raises(netkit.ConnectionClosedError):
                    conn.write("x")


def test_a_handler_that_reads_the_socket_itself_has_no_deadline() -> None:
    with connected(opaque=True) as (conn, _):
        for call in (lambda: conn.deadline(1), lambda: conn.read(timeout=1)):
            with pytest.raises(ValueError, match="socket that its handler reads itself"):
                call()


def test_a_socket_that_is_given_up_has_no_time_limit() -> None:
    with connected() as (conn, peer):
        peer.sendall(b"x")
        with conn.deadline(60):
            assert conn.read(1) == b"x"
            sock, _ = conn.detach()
        with sock:
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16) == bytes(16)


def test_a_close_within_the_block_takes_no_notice_of_the_deadline() -> None:
    with secured() as (conn, peer):
        with in_thread(lambda: (peer.read(), peer.close())), conn.deadline(1e-9):
            conn.close()
        assert peer.error is None  # no TruncatedError: the end was announced


class Counting(socket.socket):
    """Counts the calls of setsockopt."""

    calls = 0

    def setsockopt(self, *arguments: Any) -> None:
        self.calls += 1
        super().setsockopt(*arguments)


def test_a_deadline_that_was_met_before_costs_no_system_call() -> None:
    with tcp_pair() as (ours, peer):
        sock = Counting(fileno=ours.detach())
        conn = netkit.Connection(sock)
        for count in range(100):
            peer.sendall(b"x\n")
            with conn.deadline(30):
                conn.write(conn.readline())
            assert sock.calls == 2, count  # one for reads, one for writes
        conn.destroy()


def test_a_server_blames_the_client_that_misses_a_deadline() -> None:
    def authenticate(conn: netkit.Connection) -> None:
        conn.write("name?\n")
        with conn.deadline(SOON):
            conn.readline()

    with observed(events.ClientFailed) as failed:
        with serving(authenticate) as server, client(server) as sock:
            assert receive_all(sock) == b"name?\n"
    (event,) = failed
    assert "] deadline: " in str(event.error)
