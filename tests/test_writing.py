"""Writing many small pieces as one, and files."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from secure import contexts
from support import in_thread, receive_all, receive_exactly, reset, serving, tcp_pair, wait_until

import netkit
from netkit.reading import CHUNK

CONTENT = os.urandom(700_000)


@contextlib.contextmanager
def connected() -> Iterator[tuple[netkit.Connection, socket.socket]]:
    with tcp_pair() as (ours, peer), netkit.Connection(ours) as conn:
        yield conn, peer
        peer.close()


class Counting(socket.socket):
    """Counts how often it sends."""

    sends = 0

    def send(self, *arguments: Any) -> int:
        type(self).sends += 1
        return super().send(*arguments)


# --- Corked ---


def test_small_pieces_are_sent_as_one() -> None:
    with tcp_pair() as (ours, peer), netkit.Connection(Counting(fileno=ours.detach())) as conn:
        Counting.sends = 0
        with conn.corked():
            for word in ("a", b"b", bytearray(b"c"), memoryview(b"d")):
                conn.write(word)
            assert conn.bytes_written == 0
        assert Counting.sends == 1
        assert receive_exactly(peer, 4) == b"abcd"
        conn.write("e")
        assert conn.bytes_written == 5
        peer.close()


def test_corks_may_be_nested_and_what_is_much_is_sent_at_once() -> None:
    with connected() as (conn, peer):
        with conn.corked():
            with conn.corked():
                conn.write("a")
            assert conn.bytes_written == 0
            conn.write(bytes(CHUNK))
            assert conn.bytes_written == CHUNK + 1
            conn.write("z")
        assert receive_exactly(peer, CHUNK + 2) == b"a" + bytes(CHUNK) + b"z"


@pytest.mark.parametrize("how", ["end", "close"])
def test_ending_sends_what_was_gathered(how: str) -> None:
    with connected() as (conn, peer):
        with conn.corked():
            conn.write("gathered")
            with in_thread(getattr(conn, how)):
                assert receive_all(peer) == b"gathered"
                peer.close()


def test_what_was_gathered_for_a_peer_that_is_gone_is_an_error_at_the_end() -> None:
    with connected() as (conn, peer):
        with pytest.raises(OSError, match="reset by|ended by"):
            with conn.corked():
                conn.write("in vain")
                reset(peer)
                conn.peek()


def test_what_was_gathered_before_a_destroy_is_dropped() -> None:
    with connected() as (conn, peer):
        with conn.corked():
            conn.write("in vain")
            conn.destroy()
        assert receive_all(peer) == b""


def test_a_handler_corks_what_goes_through_tls() -> None:
    def handler(conn: netkit.Connection) -> None:
        with conn.corked():
            for number in range(100):
                conn.write(f"{number}\n")

    with serving(handler, tls=contexts()[0]) as server:
        with netkit.connect(server.server_address[1], "127.0.0.1") as conn:
            conn.start_tls(contexts()[1], server_hostname="localhost")
            assert list(conn.lines()) == [str(number) for number in range(100)]


# --- Files ---


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "content"
    path.write_bytes(CONTENT)
    return path


class Unseekable(io.BytesIO):
    def seekable(self) -> bool:
        return False

    def seek(self, *_: Any) -> int:
        raise io.UnsupportedOperation


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("kernel", [False, True], ids=["pieces", "kernel"])
@pytest.mark.parametrize(
    ("offset", "count"), [(0, None), (5, None), (600_000, 200_000), (7, 9), (0, 0), (800_000, None)]
)
def test_a_file_is_sent_from_any_place(
    path: Path, tls: bool, kernel: bool, offset: int, count: int | None
) -> None:
    sent: list[int] = []

    def handler(conn: netkit.Connection) -> None:
        with open(path, "rb") if kernel else io.BytesIO(CONTENT) as file:
            conn.write("<")
            sent.append(conn.sendfile(file, offset, count))
            conn.write(">")
        sent.append(conn.bytes_written)

    options = {"tls": contexts()[0]} if tls else {"write_timeout": 10, "min_rate": 1}
    expected = CONTENT[offset:] if count is None else CONTENT[offset : offset + count]
    with serving(handler, **options) as server:
        with netkit.connect(server.server_address[1], "127.0.0.1") as conn:
            if tls:
                conn.start_tls(contexts()[1], server_hostname="localhost")
            assert conn.read() == b"<" + expected + b">"
    assert sent == [len(expected), len(expected) + 2]


def test_a_pipe_is_sent_to_its_end() -> None:
    with connected() as (conn, peer):
        assert conn.sendfile(Unseekable(b"from a pipe")) == 11
        reading, writing = os.pipe()
        os.write(writing, b"!")
        os.close(writing)
        with open(reading, "rb") as pipe:
            assert conn.sendfile(pipe, count=5) == 1
        assert receive_exactly(peer, 12) == b"from a pipe!"


def test_a_file_that_shrinks_ends_where_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrinking = tmp_path / "shrinking"
    shrinking.write_bytes(CONTENT)
    sendfile = os.sendfile

    def shrink(out: int, descriptor: int, offset: int, count: int) -> int:
        os.truncate(shrinking, 1000)
        return sendfile(out, descriptor, offset, count)

    monkeypatch.setattr("netkit.writing.os.sendfile", shrink)
    with connected() as (conn, _), open(shrinking, "rb") as file:
        assert conn.sendfile(file) == 1000


def test_what_was_gathered_goes_before_the_file(path: Path) -> None:
    with connected() as (conn, peer), open(path, "rb") as file, conn.corked():
        conn.write("head")
        conn.sendfile(file, 0, 3)
        assert receive_exactly(peer, 7) == b"head" + CONTENT[:3]


@pytest.mark.parametrize("kernel", [False, True], ids=["pieces", "kernel"])
def test_a_file_for_a_peer_that_is_gone_is_an_error(path: Path, kernel: bool) -> None:
    with connected() as (conn, peer):
        reset(peer)
        with pytest.raises(OSError, match="reset by|ended by") as caught:
            with open(path, "rb") if kernel else io.BytesIO(CONTENT) as file:
                conn.sendfile(file)
                conn.sendfile(file)
        assert conn.error is caught.value


def test_a_file_for_a_peer_that_takes_nothing_times_out(path: Path) -> None:
    with connected() as (conn, _), open(path, "rb") as file:
        conn.set_timeout(0.05)
        with pytest.raises(TimeoutError, match="write_timeout"):
            while True:
                conn.sendfile(file)
        conn.destroy()


def test_a_file_is_not_sent_after_the_end(path: Path) -> None:
    with connected() as (conn, _), open(path, "rb") as file:
        conn.end()
        with pytest.raises(netkit.WriteAfterEndError):
            conn.sendfile(file)
        for offset, count in ((-1, None), (0, -1)):
            with pytest.raises(ValueError, match="offset and count must be 0 or more"):
                conn.sendfile(file, offset, count)


def test_writes_of_others_do_not_get_into_a_file(path: Path) -> None:
    with connected() as (conn, peer), open(path, "rb") as file:
        started = threading.Event()

        def disturb() -> None:
            started.wait()
            conn.write("!")

        received: list[bytes] = []
        with in_thread(disturb), in_thread(lambda: received.append(receive_all(peer))):
            started.set()
            conn.sendfile(file)
            wait_until(lambda: conn.bytes_written == len(CONTENT) + 1)
            conn.end()
    assert received[0].strip(b"!") == CONTENT.strip(b"!")
