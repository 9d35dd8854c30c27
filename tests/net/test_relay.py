"""Two connections joined, and a connection into a file: every byte, every end, every failure."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from support import (
    fill,
    in_thread,
    receive_all,
    receive_exactly,
    reset,
    send_and_end,
    tcp_pair,
    wait_until,
)

import netkit
from netkit.net.relay import copy

BINARY = random.Random(7).randbytes(3_000_000)


@contextlib.contextmanager
def pair() -> Iterator[tuple[netkit.Connection, socket.socket]]:
    with tcp_pair() as (ours, peer), netkit.Connection(ours) as conn:
        yield conn, peer
        conn.destroy()  # nobody is to be waited for


@contextlib.contextmanager
def relaying() -> Iterator[tuple[socket.socket, socket.socket, list[object]]]:
    """The far ends of two connections that are relayed, and what came of it."""
    outcome: list[object] = []

    def run(first: netkit.Connection, second: netkit.Connection) -> None:
        try:
            outcome.append(netkit.relay(first, second))
        except OSError as error:
            outcome.append(error)

    with pair() as (first, left), pair() as (second, right):
        first.set_timeout(0.2)
        with in_thread(run, first, second):
            yield left, right, outcome
            wait_until(lambda: outcome, "the end of the relay")


# pipe_to


def test_what_comes_is_piped_into_a_file_which_stays_open() -> None:
    file = io.BytesIO()
    with pair() as (conn, peer), in_thread(send_and_end, peer, BINARY):
        assert conn.pipe_to(file) == len(BINARY)
    assert file.getvalue() == BINARY


@pytest.mark.parametrize("end", [True, False])
def test_a_connection_that_is_piped_into_is_ended_if_that_is_wanted(end: bool) -> None:
    with pair() as (source, left), pair() as (destination, right):
        left.sendall(b"first, ")
        assert source.readexactly(2) == b"fi"
        source.set_encoding("utf-8")
        send_and_end(left, "grüße".encode())
        assert source.pipe_to(destination, end=end) == 12
        if not end:
            destination.end(b"!")
        assert receive_all(right) == "rst, grüße".encode() + b"!" * (not end)


def test_an_error_tells_which_connection_is_to_blame() -> None:
    with pair() as (source, left), pair() as (destination, right):
        reset(left)
        with pytest.raises(ConnectionResetError) as caught:
            source.pipe_to(destination)
        assert source.is_to_blame(caught.value)
        assert not destination.is_to_blame(caught.value)
        right.close()


# relay


def test_both_directions_arrive_byte_for_byte_and_are_counted() -> None:
    got: list[bytes] = []
    with relaying() as (left, right, outcome):
        with in_thread(send_and_end, left, BINARY), in_thread(send_and_end, right, BINARY[:-1]):
            with in_thread(lambda: got.append(receive_all(left))):
                assert receive_all(right) == BINARY
        assert got == [BINARY[:-1]]
    assert outcome == [(len(BINARY), len(BINARY) - 1)]
    assert outcome == [netkit.Relayed(forth=len(BINARY), back=len(BINARY) - 1)]


def test_the_end_of_one_side_is_carried_across_and_the_other_direction_goes_on() -> None:
    with relaying() as (left, right, outcome):
        left.shutdown(socket.SHUT_WR)
        assert receive_all(right) == b""
        right.sendall(b"still here")
        assert receive_exactly(left, 10) == b"still here"
        right.shutdown(socket.SHUT_WR)
        assert receive_all(left) == b""
    assert outcome == [(0, 10)]


@pytest.mark.parametrize("which", [0, 1])
def test_a_reset_of_one_ends_both(which: int) -> None:
    with relaying() as (*ends, outcome):
        first, other = ends[which], ends[1 - which]
        other.sendall(b"x")
        assert receive_exactly(first, 1) == b"x"
        reset(first)
        assert receive_all(other) == b""
    (error,) = outcome
    assert isinstance(error, ConnectionResetError)
    assert str(error).startswith("[Errno 104] connection reset by 127.0.0.1:")


def test_a_peer_that_takes_no_more_may_still_have_something_to_say() -> None:
    ours, left = socket.socketpair()
    ours2, right = socket.socketpair()
    outcome: list[object] = []

    def run() -> None:
        with pytest.raises(BrokenPipeError) as caught:
            netkit.relay(first, second)
        outcome.append(caught.value)

    with left, right, netkit.Connection(ours) as first, netkit.Connection(ours2) as second:
        right.shutdown(socket.SHUT_RD)
        with in_thread(run):
            left.sendall(b"an upload")
            wait_until(lambda: second.error, "the refusal")
            send_and_end(right, b"too large")
            assert receive_all(left) == b"too large"
        first.destroy()
        second.destroy()
    assert outcome == [second.error]


def test_a_peer_that_waits_to_send_its_replies_does_not_keep_the_relay_waiting() -> None:
    """The first peer sends without reading, and leaves; the other one sends everything back."""

    def echo() -> None:
        with contextlib.suppress(ConnectionError):
            while data := right.recv(65536):
                right.sendall(data)

    def run() -> None:
        with pytest.raises(ConnectionError) as caught:
            netkit.relay(first, second)
        assert first.is_to_blame(caught.value)
        second.close()

    def is_stuck() -> bool:
        before = first.bytes_written, second.bytes_written
        fill(left)
        time.sleep(0.1)
        return before == (first.bytes_written, second.bytes_written)

    with pair() as (first, left), pair() as (second, right):
        with in_thread(echo), in_thread(run):
            wait_until(is_stuck)
            reset(left)


def test_replies_are_not_read_once_there_is_nothing_more_to_pass_on() -> None:
    ours, left = socket.socketpair()
    with netkit.Connection(ours) as first, pair() as (second, right):

        def run() -> None:
            with pytest.raises(BrokenPipeError):
                netkit.relay(first, second)

        with in_thread(run):
            left.shutdown(socket.SHUT_WR)
            assert receive_all(right) == b""
            left.close()
            right.sendall(b"too late")


def test_silence_both_ways_is_a_timeout_and_silence_one_way_is_none() -> None:
    with relaying() as (left, right, outcome):
        for _ in range(4):  # more than the time limit in all, and less of it each
            assert not outcome
            right.sendall(b"x")
            assert receive_exactly(left, 1) == b"x"
            with contextlib.suppress(TimeoutError):
                left.settimeout(0.09)
                left.recv(1)
        left.settimeout(5)
        assert receive_all(left) == b""
    (error,) = outcome
    assert isinstance(error, TimeoutError)


def test_a_deadline_of_the_first_connection_ends_a_relay_that_is_busy() -> None:
    over = threading.Event()

    def chatter(sock: socket.socket) -> None:
        with contextlib.suppress(ConnectionError):
            while not over.wait(0.01):
                sock.sendall(b"x")

    with pair() as (first, _), pair() as (second, right), in_thread(chatter, right):
        try:
            with pytest.raises(TimeoutError, match="deadline"), first.deadline(0.2):
                netkit.relay(first, second)
        finally:
            over.set()


def test_a_timeout_of_what_is_written_to_is_its_own() -> None:
    class Stuck:
        def write(self, data: bytes) -> int:
            raise TimeoutError("the file server does not answer")

    with pair() as (conn, peer):
        peer.sendall(b"x")
        with pytest.raises(TimeoutError, match="^the file server does not answer$"):
            copy(conn, Stuck())


def test_an_interruption_of_the_program_ends_both_directions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    with pair() as (first, _), pair() as (second, _right):
        monkeypatch.setattr(first, "pipe_to", interrupted, raising=False)
        with pytest.raises(KeyboardInterrupt):
            netkit.relay(first, second)


def test_an_interruption_while_the_other_direction_goes_on_ends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, interrupted = threading.Thread.join, []

    def join(thread: threading.Thread, timeout: float | None = None) -> None:
        if thread.name == "netkit-relay" and not interrupted:
            interrupted.append(thread)
            raise KeyboardInterrupt
        real(thread, timeout)

    monkeypatch.setattr(threading.Thread, "join", join)
    with pair() as (first, left), pair() as (second, _right):
        left.shutdown(socket.SHUT_WR)
        with pytest.raises(KeyboardInterrupt):
            netkit.relay(first, second)
        assert not interrupted[0].is_alive()


# --- Files that take less than they are given ---

MUCH = os.urandom(1_000_000)


@pytest.mark.parametrize("buffering", [0, 4096], ids=["raw", "buffered"])
def test_a_pipe_that_does_not_block_gets_everything(buffering: int) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    got: list[bytes] = []

    def read() -> None:
        with open(reading, "rb") as pipe:
            got.append(pipe.read())

    with pair() as (conn, peer), in_thread(read), in_thread(send_and_end, peer, MUCH):
        os.set_blocking(writing, False)
        with open(writing, "wb", buffering=buffering) as sink:
            assert conn.pipe_to(sink) == len(MUCH)
            os.set_blocking(writing, True)  # for what a buffer still holds
    assert got == [MUCH]


class Sink:
    """Takes all data that is written to it, and returns the given numbers."""

    def __init__(self, *says: int | None) -> None:
        self.says = list(says)
        self.taken = b""

    def write(self, data: bytes) -> int | None:
        said = self.says.pop(0)
        self.taken += data if said is None else data[:said]
        return said


class RawSink(Sink, io.RawIOBase):  # type: ignore[misc] # it takes bytes
    """One of which None means that it would block."""


def test_what_a_file_takes_in_part_is_written_to_its_end() -> None:
    with pair() as (conn, peer):
        send_and_end(peer, b"abcdef")
        sink = Sink(1, 2, None)
        assert conn.pipe_to(sink) == 6
        assert sink.taken == b"abcdef"


def test_a_file_that_would_block_and_has_no_descriptor_is_an_error() -> None:
    with pair() as (conn, peer):
        send_and_end(peer, b"abcdef")
        with pytest.raises(BlockingIOError, match="would block, and has no descriptor") as caught:
            conn.pipe_to(RawSink(1, None))
        assert not conn.is_to_blame(caught.value)


@pytest.mark.parametrize("said", [0, -1, 7])
def test_a_file_that_says_what_cannot_be_is_an_error(said: int) -> None:
    with pair() as (conn, peer):
        send_and_end(peer, b"abcdef")
        with pytest.raises(OSError, match=f"says that it has written {said} of 6 bytes"):
            conn.pipe_to(Sink(said))


def test_a_buffer_that_has_taken_a_part_gets_the_rest_once_it_may() -> None:
    class Buffer(io.BytesIO):
        """As ``io.BufferedWriter``, whose file would block once."""

        blocked = False

        def write(self, data: Any) -> int:
            if self.blocked:
                return super().write(data)
            self.blocked = True
            taken = super().write(data[:2])
            raise BlockingIOError(errno.EAGAIN, "would block", taken)

        def fileno(self) -> int:
            return writing

    reading, writing = os.pipe()
    with pair() as (conn, peer):
        send_and_end(peer, b"abcdef")
        buffer = Buffer()
        assert conn.pipe_to(buffer) == 6
        assert buffer.getvalue() == b"abcdef"
    os.close(reading)
    os.close(writing)
