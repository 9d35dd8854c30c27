"""A connection over real sockets: writing, ending, closing, being stopped, and what peers see."""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from secure import contexts
from support import (
    MUCH,
    PATIENCE,
    connected,
    exchange,
    fill,
    in_thread,
    in_threads,
    needs_ipv6,
    once,
    receive_all,
    receive_exactly,
    reset,
    serving,
    silent_log,
    tcp_pair,
    until_reset,
    wait_until,
)

import netkit
from netkit import Connection
from netkit.core.buffer import CHUNK, FIRST_CHUNK
from netkit.core.errors import (
    ConnectionClosedError,
    IncompleteReadError,
    LineTooLongError,
    UnknownEncodingError,
    WriteAfterEndError,
)
from netkit.net import connection, link, sockopts
from netkit.net.states import InputState

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux's kernel")


def reading(conn: Connection) -> bool:
    """Whether its thread waits in a read."""
    return conn._link.waiting


def stuck(conn: Connection) -> bool:
    """Whether a write has to wait for the peer."""
    return not select.select([], [conn], [], 0)[1]


def says(error: BaseException, number: int, text: str) -> bool:
    return isinstance(error, OSError) and (error.errno, error.strerror) == (number, text)


# --- The ends ---


@pytest.mark.parametrize(
    ("host", "family", "shown"),
    [
        ("127.0.0.1", "IPv4", "127.0.0.1"),
        pytest.param("::1", "IPv6", "[::1]", marks=needs_ipv6),
    ],
)
def test_both_ends_are_known_and_stay_known_after_close(host: str, family: str, shown: str) -> None:
    with connected(host) as (conn, peer):
        names = peer.getsockname()[:2], peer.getpeername()[:2]
        for _ in range(2):
            assert (conn.remote_address, conn.remote_port) == names[0]
            assert (conn.local_address, conn.local_port) == names[1]
            assert conn.remote_family == conn.local_family == family
            assert conn.peer == f"{shown}:{conn.remote_port}"
            conn.close()


def test_a_unix_socket_has_no_addresses_and_works() -> None:
    ours, peer = socket.socketpair()
    with peer, Connection(ours) as conn:
        ends = ("address", "port", "family")
        assert [getattr(conn, f"remote_{end}") for end in ends] == [None] * 3
        assert [getattr(conn, f"local_{end}") for end in ends] == [None] * 3
        assert conn.peer == "unix"
        conn.set_no_delay()
        conn.set_keep_alive()
        peer.sendall(b"hello\n")
        assert conn.readline() == b"hello\n"
        conn.end("bye")
        assert receive_all(peer) == b"bye"


def test_a_client_that_has_reset_already_is_still_known_by_its_address() -> None:
    with tcp_pair() as (ours, peer):
        address = peer.getsockname()
        reset(peer)
        wait_until(lambda: sockopts.hung_up(ours))
        with Connection(ours, address) as conn:
            assert (conn.remote_address, conn.remote_port) == address
            with pytest.raises(ConnectionResetError):
                conn.read()


def test_a_local_address_that_the_system_does_not_know_is_none() -> None:
    class Forgetful(socket.socket):
        def getsockname(self) -> Any:
            raise OSError(errno.EINVAL, "Invalid argument")

    with tcp_pair() as (ours, peer):
        sock = Forgetful(fileno=ours.detach())
        with Connection(sock, peer.getsockname()) as conn:
            assert (conn.local_address, conn.local_port, conn.local_family) == (None, None, None)
            conn.destroy()


def test_connections_of_many_threads_have_different_ids() -> None:
    ids: list[int] = []

    def make() -> None:
        for _ in range(20):
            ours, peer = socket.socketpair()
            with ours, peer:
                ids.append(Connection(ours).id)

    in_threads(make, [()] * 8)
    assert len(set(ids)) == 160


def test_a_connection_shows_its_peer_and_whether_it_is_open() -> None:
    with connected() as (conn, _):
        assert repr(conn) == f"<Connection {conn.id} {conn.peer} open>"
        assert conn.fileno() == conn.socket.fileno() >= 0
        assert not conn.closed
        conn.destroy()
        assert repr(conn) == f"<Connection {conn.id} {conn.peer} closed>"
        assert conn.fileno() == -1
        assert conn.closed


def test_a_new_connection_has_these_settings() -> None:
    with connected() as (conn, _):
        assert (conn.encoding, conn.max_line, conn.opaque) == ("utf-8", 65536, False)
        assert (conn.server, conn.thread, conn.error) == (None, None, None)
        assert (conn.bytes_read, conn.bytes_written) == (0, 0)
        assert 0 <= time.monotonic() - conn.opened_at < 60


# --- Writing ---


def strided() -> memoryview:
    return memoryview(b"a-b-c-")[::2]


@pytest.mark.parametrize(
    ("data", "sent"),
    [
        ("prêt", "prêt".encode()),
        (b"\0\xff", b"\0\xff"),
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"abc"), b"abc"),
        (memoryview(b"abcdef").cast("B", (2, 3)), b"abcdef"),
        (memoryview(array.array("I", [1, 2])), struct.pack("@II", 1, 2)),
        (memoryview((ctypes.c_uint16 * 2)(1, 2)), struct.pack("@HH", 1, 2)),
        (strided(), b"abc"),
        (memoryview(b"abc")[::-1], b"cba"),
        (array.array("d", [1.5]), struct.pack("@d", 1.5)),
        ((ctypes.c_char * 3)(*b"xyz"), b"xyz"),
    ],
)
def test_text_and_whatever_holds_bytes_can_be_written(data: Any, sent: bytes) -> None:
    with connected() as (conn, peer):
        assert conn.write(data) == len(sent)
        assert conn.bytes_written == len(sent)
        assert receive_exactly(peer, len(sent)) == sent


@pytest.mark.parametrize("data", ["", b"", bytearray(), memoryview(b""), array.array("I")])
def test_writing_nothing_sends_nothing(data: Any) -> None:
    with connected() as (conn, peer):
        assert conn.write(data) == 0
        conn.set_timeout(PATIENCE)
        assert conn.write(data) == 0
        conn.end(data)
        assert receive_all(peer) == b""


@pytest.mark.parametrize("data", [None, 5, 1.5, ["a"], object(), Ellipsis])
def test_writing_what_is_neither_text_nor_bytes_is_a_type_error_and_sends_nothing(
    data: Any,
) -> None:
    with connected() as (conn, peer):
        with pytest.raises(TypeError, match="^expected str or a bytes-like object, not "):
            conn.write(data)
        conn.end("fine")
        assert receive_all(peer) == b"fine"


def test_text_is_written_in_the_connections_encoding_or_in_one_given() -> None:
    with connected(encoding="latin1") as (conn, peer):
        conn.write("é")
        conn.write("é", "utf16le")
        assert conn.set_encoding("utf-8") is conn
        conn.write("é")
        assert conn.set_encoding(None) is conn
        conn.write("é")
        conn.end("6869", encoding="hex")
        assert receive_all(peer) == b"\xe9\xe9\0\xc3\xa9\xc3\xa9hi"


def test_an_unknown_encoding_is_an_error_and_sends_nothing() -> None:
    with connected() as (conn, peer):
        with pytest.raises(UnknownEncodingError):
            conn.write("x", "utf-9")
        with pytest.raises(UnicodeEncodeError):
            conn.write("日", "koi8_r")
        conn.end()
        assert receive_all(peer) == b""


@pytest.mark.parametrize("make", [bytes, bytearray, lambda size: memoryview(bytes(size))])
def test_a_big_write_returns_once_the_kernel_has_all_of_it(make: Callable[[int], Any]) -> None:
    size = 10_000_000
    with connected() as (conn, peer):
        sizes: list[int] = []
        with in_thread(lambda: sizes.append(len(receive_all(peer)))):
            assert conn.write(make(size)) == size
            conn.end()
        assert sizes == [size]
        assert conn.bytes_written == size


def test_writes_of_many_threads_do_not_mix() -> None:
    """Each writer's text is larger than the buffers, so that every write is sent in parts."""
    size, letters = 300_000, b"abcdef"
    with connected(receive_buffer=16_384) as (conn, peer):
        conn.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
        received: list[bytes] = []

        def write_all() -> None:
            in_threads(conn.write, [(bytes([letter]) * size,) for letter in letters])
            conn.end()

        with in_thread(write_all):
            received.append(receive_all(peer))
        (data,) = received
        blocks = [data[at : at + size] for at in range(0, len(data), size)]
        assert sorted(blocks) == [bytes([letter]) * size for letter in letters]
        assert conn.bytes_written == len(data)


def test_writing_after_the_end_is_an_error_of_the_program() -> None:
    with connected() as (conn, peer):
        conn.end("last")
        for late in (
            lambda: conn.write("x"),
            lambda: conn.write(""),
            lambda: conn.end("x"),
        ):
            with pytest.raises(WriteAfterEndError, match="^write after end: "):
                late()
        conn.end()
        assert receive_all(peer) == b"last"
        assert conn.error is None


@pytest.mark.parametrize("close", [Connection.close, Connection.destroy, Connection.reset])
def test_reading_and_writing_after_close_are_errors_of_the_program(
    close: Callable[[Connection], None],
) -> None:
    with connected() as (conn, peer):
        peer.sendall(b"one\ntwo\nthree\n")
        assert conn.peek(14) == b"one\ntwo\nthree\n"
        lines = conn.lines()
        assert next(lines) == "one"
        close(conn)
        for late in (
            # Only a close drops what was received and not read.
            *((lambda: next(lines), conn.readline) if close is Connection.close else ()),
            lambda: conn.write("x"),
            lambda: conn.end("x"),
            lambda: conn.readexactly(11),
            lambda: conn.read(),
        ):
            with pytest.raises(ConnectionClosedError, match="^the connection is closed$"):
                late()
        conn.end()


def test_a_peer_that_has_closed_is_a_broken_pipe() -> None:
    with connected() as (conn, peer):
        peer.close()
        conn.write("x")  # which the peer's kernel answers with a reset
        wait_until(lambda: sockopts.hung_up(conn.socket))
        with pytest.raises(BrokenPipeError) as caught:
            conn.write("y")
        text = f"This socket has been ended by the other party ({conn.peer})"
        assert says(caught.value, errno.EPIPE, text)
        assert conn.error is caught.value
        assert conn.is_to_blame(caught.value)
        assert conn.bytes_written == 1


def test_a_write_after_a_reset_of_the_peer_raises_another_error_than_after_its_end() -> None:
    with connected() as (conn, peer):
        reset(peer)
        wait_until(lambda: sockopts.hung_up(conn.socket))
        with pytest.raises(ConnectionResetError) as caught:
            conn.write("x")
        assert says(caught.value, errno.ECONNRESET, f"connection reset by {conn.peer}")
        assert conn.bytes_written == 0


def test_a_reset_is_an_error_for_a_reader_and_not_an_end() -> None:
    with connected() as (conn, peer):
        peer.sendall(b"half a li")
        assert conn.peek() == b"half a li"
        reset(peer)
        with pytest.raises(ConnectionResetError) as caught:
            conn.readline()
        assert says(caught.value, errno.ECONNRESET, f"connection reset by {conn.peer}")
        assert conn.is_to_blame(caught.value)
        assert conn.peek() == b"half a li"


def test_the_buffer_of_a_write_that_failed_may_be_resized() -> None:
    with connected() as (conn, peer):
        data = bytearray(MUCH)
        with once(lambda: stuck(conn), reset, peer):
            with pytest.raises(ConnectionResetError):
                conn.write(data)
        assert 0 < conn.bytes_written < MUCH
        data.clear()  # a BufferError if somebody still looked at it


@linux_only
def test_other_errors_of_the_socket_are_raised_unchanged() -> None:
    class Unreachable(socket.socket):
        def recv(self, *_: Any) -> bytes:
            raise OSError(errno.EHOSTUNREACH, "No route to host")

    with tcp_pair() as (ours, _):
        with Connection(Unreachable(fileno=ours.detach())) as conn:
            with pytest.raises(OSError, match="No route to host") as caught:
                conn.read()
            assert conn.error is caught.value


# --- Reading ---


def test_the_end_of_input_is_empty_however_often_it_is_read() -> None:
    with connected() as (conn, peer):
        peer.sendall("aé".encode())
        peer.shutdown(socket.SHUT_WR)
        conn.set_encoding()
        assert conn.read() == "aé"
        conn.set_encoding(None)
        assert conn.read() == conn.read(5) == conn.readline() == conn.peek() == b""
        assert list(conn) == list(conn.lines()) == []
        assert conn.bytes_read == 3
        with pytest.raises(IncompleteReadError):
            conn.readexactly(1)


def test_each_side_may_end_first_and_the_other_goes_on() -> None:
    with connected() as (conn, peer):
        conn.end("we are done\n")
        assert receive_all(peer) == b"we are done\n"
        peer.sendall(b"we are not\n")
        assert conn.readline() == b"we are not\n"
    with connected() as (conn, peer):
        peer.sendall(b"we are done\n")
        peer.shutdown(socket.SHUT_WR)
        assert conn.read() == b"we are done\n"
        conn.write("we are not\n")
        conn.end("now we are\n")
        assert receive_all(peer) == b"we are not\nnow we are\n"


def test_a_line_that_is_too_long_leaves_the_connection_usable() -> None:
    with connected(max_line=10) as (conn, peer):
        peer.sendall(b"x" * 100_000 + b"\nok\n")
        with pytest.raises(LineTooLongError):
            conn.readline()
        assert conn.readline() == b"ok\n"
        conn.write("still here")
        assert receive_exactly(peer, 10) == b"still here"


# --- Time limits ---


def test_a_read_that_waits_too_long_is_a_timeout_and_nothing_is_lost() -> None:
    with connected() as (conn, peer):
        conn.set_timeout(0.05)
        peer.sendall(b"half ")
        begun = time.monotonic()
        with pytest.raises(TimeoutError) as caught:
            conn.readline()
        assert 0.05 <= time.monotonic() - begun < 5
        text = f"idle_timeout: nothing received from {conn.peer} for 0.05 seconds"
        assert says(caught.value, errno.ETIMEDOUT, text)
        assert conn.is_to_blame(caught.value)
        peer.sendall(b"a line\n")
        assert conn.readline() == b"half a line\n"


def test_a_write_that_waits_too_long_is_a_timeout() -> None:
    with connected() as (conn, _):
        conn.set_timeout(0.1)
        with pytest.raises(TimeoutError) as caught:
            conn.write(bytes(MUCH))
        assert says(
            caught.value,
            errno.ETIMEDOUT,
            f"write_timeout: nothing could be sent to {conn.peer} for 0.1 seconds",
        )
        assert 0 < conn.bytes_written < MUCH
        assert conn.is_to_blame(caught.value)


def test_a_slow_peer_that_makes_progress_is_not_timed_out() -> None:
    size = 400_000
    with connected(receive_buffer=4096) as (conn, peer):
        conn.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        conn.set_timeout(1.0)

        def read_slowly() -> None:
            received = 0
            while received < size:
                received += len(receive_exactly(peer, min(40_000, size - received)))
                time.sleep(0.15)  # ten times, which is longer than the limit

        begun = time.monotonic()
        with in_thread(read_slowly):
            conn.write(bytes(size))
        assert time.monotonic() - begun > 1.0


def test_a_time_limit_can_be_taken_away_even_while_it_counts() -> None:
    with connected() as (conn, peer):

        def take_away() -> None:
            conn.set_timeout(None)
            time.sleep(0.3)  # longer than the limit was
            peer.sendall(b"x")

        conn.set_timeout(0.2)
        with once(lambda: reading(conn), take_away):
            assert conn.read(1) == b"x"


@pytest.mark.parametrize(
    ("seconds", "kind", "text"),
    [
        (0, ValueError, "timeout must be more than 0 seconds, not 0"),
        (-1, ValueError, "timeout must be more than 0 seconds, not -1"),
        (float("inf"), ValueError, "timeout must be at most .* seconds, not inf"),
        (1e20, ValueError, "timeout must be at most"),
        ("1", TypeError, "timeout must be a number of seconds, not '1'"),
    ],
)
def test_an_invalid_time_limit_is_refused(seconds: Any, kind: type[Exception], text: str) -> None:
    with connected() as (conn, _):
        with pytest.raises(kind, match=f"^{text}"):
            conn.set_timeout(seconds)
        conn.set_timeout(threading.TIMEOUT_MAX)


def test_the_first_limit_counts_even_if_it_is_set_during_a_read() -> None:
    """As by a signal handler: the wait that Python starts anew has the timeout of the kernel."""

    class Waiting(socket.socket):
        def recv(self, *arguments: int) -> bytes:
            if not any(conn._link.wire.limits):
                conn.set_timeout(0.01)
            return super().recv(*arguments)

    with tcp_pair() as (ours, _), Connection(Waiting(fileno=ours.detach())) as conn:
        with pytest.raises(TimeoutError, match="idle_timeout"):
            conn.read()


# --- Settings of the socket ---


def test_the_options_of_the_socket_can_be_set_and_unset() -> None:
    with connected() as (conn, _):
        for option, setter in (
            ((socket.IPPROTO_TCP, socket.TCP_NODELAY), conn.set_no_delay),
            ((socket.SOL_SOCKET, socket.SO_KEEPALIVE), conn.set_keep_alive),
        ):
            for on in (True, False):
                setter(on)
                assert bool(conn.socket.getsockopt(*option)) is on
            setter()
            assert conn.socket.getsockopt(*option)
        with pytest.raises(TypeError, match="^idle must be a number, not '5'$"):
            conn.set_keep_alive(idle="5")  # type: ignore[arg-type]


# --- Closing ---

WAYS = [Connection.close, Connection.destroy, Connection.reset]


def test_nothing_is_left_to_be_set_on_a_closed_connection() -> None:
    with connected() as (conn, _):
        conn.destroy()
        conn.set_no_delay(False)
        conn.set_keep_alive(True, idle=5)
        conn.set_timeout(1)
        conn.tos = 0x10
        with pytest.raises(ConnectionClosedError):
            _ = conn.tos
        with pytest.raises(ValueError, match="tos must be"):
            conn.tos = 256


@pytest.mark.parametrize("first", WAYS)
@pytest.mark.parametrize("second", [*WAYS, Connection.end])
def test_closing_twice_is_closing_once(
    first: Callable[[Connection], None], second: Callable[[Connection], None]
) -> None:
    with connected() as (conn, _):
        first(conn)
        second(conn)
        assert conn.closed
        assert conn.fileno() == -1
        assert not conn.finish()
        assert conn.end_input() is None
        assert conn.cut() is False


def test_a_with_block_closes_the_connection() -> None:
    with connected(server=object()) as (conn, peer):
        peer.sendall(b"unread")
        peer.shutdown(socket.SHUT_WR)
        with conn as same:
            assert same is conn
            conn.write("bye")
        assert conn.closed
        assert receive_all(peer) == b"bye"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_with_block_that_raises_resets_the_connection_at_once(
    error: type[BaseException], long_linger: None
) -> None:
    with connected(server=object()) as (conn, peer):  # a peer that a polite close would wait for
        with pytest.raises(error):
            with conn:
                conn.write("half of a message")
                raise error
        assert conn.fileno() == -1
        with pytest.raises(ConnectionResetError):
            receive_all(peer)


def test_a_with_block_that_raises_after_the_end_has_sent_a_whole_message() -> None:
    with connected() as (conn, peer):
        with pytest.raises(ValueError, match="later"):
            with conn:
                conn.end("whole")
                raise ValueError("later")
        assert receive_all(peer) == b"whole"


def test_close_succeeds_whatever_the_peer_did() -> None:
    with connected() as (conn, peer):
        reset(peer)
        wait_until(lambda: sockopts.hung_up(conn.socket))
        conn.close()
    with connected() as (conn, _):
        conn.socket.close()  # a handler's doing
        conn.close()
        assert conn.closed


def test_close_ends_a_read_in_another_thread() -> None:
    """Also one that holds what it has received: the read is its own."""
    with connected() as (conn, peer):
        peer.sendall(b"half a li")
        with once(lambda: reading(conn) and conn.bytes_read == 9, conn.close):
            assert conn.readline() == b"half a li"
        assert conn.fileno() == -1
        with pytest.raises(ConnectionClosedError):
            conn.readline()
        assert receive_all(peer) == b""


@pytest.mark.parametrize("close", [Connection.close, Connection.destroy, Connection.reset])
@pytest.mark.parametrize("read", [Connection.read, Connection.readline, Connection.peek, list])
def test_closing_from_another_thread_ends_a_read(
    close: Callable[[Connection], None], read: Callable[[Connection], Any]
) -> None:
    with connected() as (conn, peer):
        with once(lambda: reading(conn), close, conn):
            assert not read(conn)
        wait_until(lambda: conn.fileno() == -1)
        if close is Connection.reset:
            with pytest.raises(ConnectionResetError):
                peer.recv(1)
        else:
            assert peer.recv(1) == b""


@pytest.mark.parametrize("close", [Connection.destroy, Connection.reset])
def test_closing_from_another_thread_ends_a_write(close: Callable[[Connection], None]) -> None:
    with connected() as (conn, peer):
        with once(lambda: stuck(conn), close, conn):
            with pytest.raises(ConnectionClosedError, match="^the connection is closed$"):
                conn.write(bytes(MUCH))
        assert conn.fileno() == -1
        if close is Connection.reset:
            with pytest.raises(ConnectionResetError):
                receive_all(peer)


def test_close_waits_for_a_write_in_another_thread() -> None:
    with connected() as (conn, peer):
        sizes: list[int] = []
        with in_thread(lambda: sizes.append(conn.write(bytes(MUCH)))):
            wait_until(lambda: stuck(conn))
            with in_thread(conn.close):
                assert len(receive_all(peer)) == MUCH
        assert sizes == [MUCH]
        assert conn.fileno() == -1


def test_close_waits_for_a_write_for_a_limited_time() -> None:
    with connected() as (conn, _):
        conn.linger_seconds = 0.05
        with once(lambda: stuck(conn), conn.close):
            with pytest.raises(ConnectionClosedError):
                conn.write(bytes(MUCH))
        assert conn.fileno() == -1


def test_a_close_without_time_does_not_wait_for_room_to_send() -> None:
    with connected() as (conn, peer):
        fill(conn.socket)
        conn.linger_seconds = 0

        def write_and_close() -> None:
            with conn.corked():
                conn.write("more")
                conn.close()

        with in_thread(write_and_close):  # the main thread would look before it sends
            pass
        assert conn.fileno() == -1
        until_reset(peer)


def test_the_descriptor_outlives_a_write_that_is_under_way() -> None:
    """Else its number could belong to another client while the write still uses it."""
    open_at_the_end: list[bool] = []

    class Slow(socket.socket):
        def send(self, data: Any, *_: Any) -> int:
            try:
                return super().send(data)
            except OSError:
                time.sleep(0.1)  # all the others would be done by then
                open_at_the_end.append(self.fileno() >= 0)
                raise

    def write(conn: Connection) -> None:
        with pytest.raises(ConnectionClosedError):
            conn.write(bytes(MUCH))

    with tcp_pair() as (ours, _):
        conn = Connection(Slow(fileno=ours.detach()))
        with in_thread(write, conn), in_thread(conn.read):
            wait_until(lambda: stuck(conn) and reading(conn))
            conn.destroy()
        assert conn.fileno() == -1
        assert open_at_the_end == [True]


def test_many_threads_may_close_at_once_in_different_ways() -> None:
    for _ in range(20):
        with connected() as (conn, _):
            with in_thread(conn.read):
                wait_until(lambda: reading(conn))
                in_threads(lambda close: close(conn), [(way,) for way in WAYS * 2])
            assert conn.fileno() == -1


# --- Closing never truncates ---


@pytest.mark.parametrize("server", [None, object()])
def test_closing_with_unread_input_does_not_truncate_the_reply(server: Any) -> None:
    size = 400_000
    with connected(receive_buffer=8192, server=server) as (conn, peer):
        peer.sendall(b"unread 10.")

        def reply() -> None:
            conn.write(bytes(size))
            conn.close()

        with in_thread(reply):
            assert len(receive_all(peer)) == size
            peer.close()
        assert conn.fileno() == -1


def test_an_early_reply_reaches_a_client_that_reads_only_after_its_upload() -> None:
    reply = b"no, thanks\n" * 20

    def refuse(conn: Connection) -> None:
        conn.readexactly(10)
        conn.write(reply)

    with serving(refuse) as server:
        for _ in range(3):
            with socket.create_connection(server.server_address, timeout=PATIENCE) as peer:
                peer.sendall(bytes(8_000_000))
                peer.shutdown(socket.SHUT_WR)
                assert receive_all(peer) == reply


def test_a_close_waits_for_the_peers_end_for_a_limited_time() -> None:
    with connected(server=object()) as (conn, peer):
        conn.linger_seconds = 0.05
        peer.sendall(b"unread")
        conn.write("a reply that a reset could destroy")
        begun = time.monotonic()
        conn.close()
        assert 0.05 <= time.monotonic() - begun < 5
        assert conn.fileno() == -1


def test_a_close_drops_a_limited_amount_of_input() -> None:
    with connected(server=object()) as (conn, peer):
        conn.linger_seconds = 1000.0
        conn.linger_bytes = 1_000_000

        def flood() -> None:
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                while True:
                    peer.sendall(bytes(100_000))

        with in_thread(flood):
            conn.close()
        assert conn.fileno() == -1


def test_a_close_waits_for_nothing_once_the_peer_has_ended(long_linger: None) -> None:
    with connected(server=object()) as (conn, peer):
        peer.shutdown(socket.SHUT_WR)
        assert conn.read() == b""
        conn.close()
        assert conn.fileno() == -1
    with connected(server=object()) as (conn, peer):
        peer.sendall(b"unread")
        peer.shutdown(socket.SHUT_WR)
        conn.close()


@linux_only
def test_a_client_waits_only_until_the_server_has_what_it_sent(long_linger: None) -> None:
    with connected() as (conn, peer):
        conn.write("request")
        conn.close()
        assert receive_all(peer) == b"request"


@pytest.mark.parametrize("stop", [Connection.destroy, Connection.reset, Connection.cut])
def test_a_close_that_lingers_can_be_ended(
    stop: Callable[[Connection], Any], long_linger: None
) -> None:
    with connected(server=object()) as (conn, _):
        conn.write("a reply that a reset could destroy")
        with in_thread(conn.close):
            wait_until(lambda: reading(conn))
            stop(conn)
        assert conn.fileno() == -1


def test_a_close_that_a_signal_handler_interrupts_closes_at_once(long_linger: None) -> None:
    class Interrupted(socket.socket):
        def recv(self, *_: Any) -> bytes:
            raise KeyboardInterrupt

    with tcp_pair() as (ours, peer):
        conn = Connection(Interrupted(fileno=ours.detach()), server=object())
        conn.write("whole")
        with pytest.raises(KeyboardInterrupt):
            conn.close()
        assert conn.closed
        assert conn.fileno() == -1
        assert receive_all(peer) == b"whole"


def test_a_read_that_comes_while_another_thread_closes_is_an_error() -> None:
    with connected(server=object()) as (conn, peer):
        conn.linger_seconds = 0.3
        conn.write("a reply that a reset could destroy")
        with in_thread(conn.close):
            wait_until(lambda: reading(conn))
            with pytest.raises(ConnectionClosedError):
                conn.read()
            with pytest.raises(ConnectionClosedError):
                conn.write("x")
            assert conn.finish() is False
            peer.close()


# --- Being stopped ---


def ends_input_when(conn: Connection, condition: Callable[[], bool]) -> Any:
    return once(condition, conn.end_input)


def test_an_idle_connection_sees_the_end_of_input_at_once_and_may_answer() -> None:
    with connected() as (conn, peer):
        with ends_input_when(conn, lambda: reading(conn)):
            assert conn.readline() == b""
        assert conn.read() == b""
        conn.end("goodbye")
        assert receive_all(peer) == b"goodbye"


def test_a_busy_connection_reads_no_new_message() -> None:
    with connected() as (conn, _):
        conn.end_input()
        assert conn.readline() == b""
        assert conn.read() == b""


def test_input_that_has_arrived_is_read_before_a_drain_ends_it() -> None:
    with connected() as (conn, peer):
        peer.sendall(b"one\ntwo\n")
        wait_until(lambda: sockopts.readable(conn.socket))
        conn.end_input()
        assert list(conn.lines()) == ["one", "two"]


def test_a_message_under_way_is_read_to_its_end() -> None:
    with connected() as (conn, peer):
        peer.sendall(b"half ")
        with ends_input_when(conn, lambda: reading(conn) and conn.bytes_read == 5):
            lines = conn.lines()
            with once(lambda: conn._link.input is InputState.DRAINING, peer.sendall, b"a line\n"):
                assert next(lines) == "half a line"
        assert list(lines) == []


def test_half_a_message_that_was_received_before_the_stop_is_waited_for() -> None:
    with connected() as (conn, peer):
        peer.sendall(b"half ")
        assert conn.peek() == b"half "
        conn.end_input()
        with once(lambda: reading(conn), lambda: peer.sendall(b"a line\n")):
            assert conn.readline() == b"half a line\n"
        assert conn.readline() == b""


def test_a_message_that_is_cut_is_not_taken_for_a_whole_one() -> None:
    with connected() as (conn, peer):
        peer.sendall(b"half a li")
        with once(lambda: reading(conn) and conn.bytes_read == 9, conn.cut):
            with pytest.raises(ConnectionAbortedError) as caught:
                conn.readline()
        text = f"the connection to {conn.peer} was cut, since the server stops"
        assert says(caught.value, errno.ECONNABORTED, text)
        assert conn.is_to_blame(caught.value)
        assert peer.recv(1) == b""


def test_an_idle_connection_that_is_cut_sees_the_end_of_input() -> None:
    with connected() as (conn, _):
        with once(lambda: reading(conn), conn.cut):
            assert conn.readline() == b""
        assert conn.was_cut
        assert not conn.closed
        with pytest.raises(ConnectionAbortedError):
            conn.write("x")


def test_a_write_that_is_cut_is_an_error_that_says_why() -> None:
    with connected() as (conn, _):
        with once(lambda: stuck(conn), conn.cut):
            with pytest.raises(ConnectionAbortedError, match="was cut, since the server stops"):
                conn.write(bytes(MUCH))


@linux_only
@pytest.mark.parametrize("how", ["cut", "interrupt"])
def test_a_peer_that_has_filled_the_window_notices_at_once_that_it_is_cut(how: str) -> None:
    with connected() as (conn, peer):
        fill(peer)
        conn.cut() if how == "cut" else conn.interrupt(TimeoutError(), hard=True)
        conn.close()
        peer.settimeout(10)
        with pytest.raises(ConnectionError):
            while True:
                peer.send(bytes(100_000))


@linux_only
def test_a_peer_whose_request_is_unread_sees_no_reset_when_it_is_cut() -> None:
    with connected() as (conn, peer):
        peer.sendall(bytes(10_000))
        conn.cut()
        conn.close()
        assert peer.recv(1) == b""
        assert not sockopts.hung_up(peer)


@linux_only
def test_a_thread_that_waits_in_a_close_is_asked_again_until_the_peer_has_all(
    long_linger: None,
) -> None:
    with connected(server=object()) as (conn, peer):
        fill(conn.socket)
        with in_thread(conn.close):
            wait_until(lambda: reading(conn))
            assert conn.end_input() == link.UNSENT_SECONDS
            receive_all(peer)
            wait_until(lambda: conn.end_input() is None)
        assert conn.fileno() == -1


@linux_only
def test_the_last_reply_to_an_idle_client_that_goes_on_sending_is_not_truncated() -> None:
    size = 400_000
    with connected(receive_buffer=8192, server=object()) as (conn, peer):

        def serve() -> None:
            assert conn.readline() == b""
            conn.write(bytes(size))
            conn.close()

        with in_thread(serve):
            wait_until(lambda: reading(conn))
            conn.end_input()
            receive_exactly(peer, 1)
            peer.sendall(b"more\n")
            received = 1
            while received < size:
                received += len(receive_exactly(peer, min(100_000, size - received)))
                with contextlib.suppress(BrokenPipeError):
                    peer.sendall(b"more\n")


def test_a_connection_between_two_sockets_is_asked_again_to_finish() -> None:
    with connected(opaque=True) as (conn, peer):
        with socket.socket(fileno=conn.socket.detach()) as taken_over:  # as TLS does it
            assert conn.end_input()
            conn.socket = taken_over
            wait_until(lambda: conn.end_input() is None)
            assert taken_over.recv(1) == b""
            peer.close()
            conn.destroy()


@linux_only
def test_the_reader_of_a_bare_socket_is_idle_after_a_reply_or_a_silence() -> None:
    with connected(opaque=True) as (conn, peer):
        peer.sendall(b"request")
        assert conn.socket.recv(7) == b"request"
        wait = conn.end_input()
        assert wait is not None
        assert 0 < wait <= connection.Connection.quiet_seconds
        time.sleep(0.02)  # ticks of the kernel's clock
        conn.socket.sendall(b"reply")
        assert conn.end_input() is None
        assert conn.socket.recv(1) == b""
        assert (conn.bytes_read, conn.bytes_written) == (0, 0)


def test_the_peer_of_a_bare_socket_is_to_blame_only_if_it_has_hung_up() -> None:
    with connected(opaque=True) as (conn, peer):
        error = ConnectionResetError()
        assert not conn.is_to_blame(error)  # it is another connection's
        reset(peer)
        wait_until(lambda: sockopts.hung_up(conn.socket))
        assert conn.is_to_blame(error)
        assert not conn.is_to_blame(ValueError())


def test_an_error_of_another_connection_is_not_this_peers_fault() -> None:
    with connected() as (conn, _):
        assert not conn.is_to_blame(ConnectionResetError())
        assert not conn.is_to_blame(ValueError())


def test_a_signal_handler_may_stop_a_connection_in_the_midst_of_anything() -> None:
    """It runs in the main thread, between any two instructions of what it interrupts."""
    with connected() as (conn, _):

        class Interrupted(socket.socket):
            def shutdown(self, how: int) -> None:
                if not conn.was_cut:
                    conn.end_input()
                    conn.cut()
                super().shutdown(how)

        conn.socket = Interrupted(fileno=conn.socket.detach())
        conn.destroy()
        assert conn.closed
        assert conn.fileno() == -1


def test_a_read_asks_for_more_once_its_chunks_are_full_and_for_less_when_little_comes() -> None:
    with connected() as (conn, peer):
        sizes: list[int] = []
        with in_thread(peer.sendall, bytes(400_000)):
            while sum(sizes) < 400_000:
                sizes.append(len(conn.read(CHUNK)))
        assert sizes[0] == FIRST_CHUNK
        assert max(sizes) > 8 * FIRST_CHUNK
        for _ in range(8):
            peer.sendall(b"x" * 300)
            assert len(conn.read(CHUNK)) == 300
        peer.sendall(bytes(400_000))
        assert len(conn.read(CHUNK)) == FIRST_CHUNK


def test_finishing_twice_and_destroying_twice_is_fine() -> None:
    with connected() as (conn, peer):
        peer.close()
        assert conn.read() == b""
        assert conn.finish()
        assert not conn.finish()
        conn.destroy()
        assert conn.fileno() == -1
        conn.destroy()


# --- A close waits only where something could be lost ---


@pytest.mark.parametrize("talk", [False, True], ids=["silent", "answered"])
def test_a_close_does_not_wait_for_a_peer_that_has_every_reply(
    talk: bool, long_linger: None
) -> None:
    with connected(server=object()) as (conn, peer):
        if talk:
            conn.write("reply")
            assert receive_exactly(peer, 5) == b"reply"
            peer.sendall(b"more")
            assert conn.readexactly(4) == b"more"
        conn.close()
        assert conn.fileno() == -1
        assert receive_all(peer) == b""


@linux_only
@pytest.mark.parametrize("handler_fails", [False, True])
def test_a_close_after_a_failed_handshake_waits_only_until_the_peer_has_the_alert(
    handler_fails: bool, long_linger: None
) -> None:
    with connected(server=object()) as (conn, peer):
        conn.write("go on\n")
        peer.sendall(b"no TLS at all\n")
        with pytest.raises(netkit.core.errors.HandshakeError):
            conn.start_tls(contexts()[0], timeout=PATIENCE)
        with pytest.raises(netkit.core.errors.HandshakeError):
            conn.write("in clear text")
        if handler_fails:
            conn.fail(ValueError("of another cause"))
        conn.close()
        assert receive_exactly(peer, 6) == b"go on\n"
        receive_all(peer)


# --- A handler that fails ---


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("kind", ["function", "class"])
@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
def test_half_a_reply_of_a_handler_that_fails_is_followed_by_a_reset(
    kind: str, tls: bool, error: type[BaseException], long_linger: None
) -> None:
    size = 400_000

    def handler(conn: Connection) -> None:
        conn.write(bytes(size))
        raise error("on purpose")

    class Failing(netkit.Handler):
        def handle(self) -> None:
            handler(self.conn)

    options = {"tls": contexts()[0]} if tls else {}
    with silent_log(), serving(handler if kind == "function" else Failing, **options) as server:
        with netkit.connect(server.address.port, "127.0.0.1", receive_buffer=8192) as conn:
            if tls:
                conn.start_tls(contexts()[1], server_hostname="localhost")
            assert len(conn.readexactly(size)) == size
            with pytest.raises(ConnectionResetError):
                conn.read()
            conn.destroy()


def test_a_handler_that_fails_after_the_end_of_its_reply_has_sent_a_whole_one() -> None:
    def handler(conn: Connection) -> None:
        conn.end("whole")
        raise RuntimeError("on purpose")

    with silent_log(), serving(handler) as server:
        assert exchange(server, b"") == b"whole"


def test_after_an_error_of_the_client_it_sees_the_end_and_no_reset() -> None:
    def handler(conn: Connection) -> None:
        conn.write("hello")
        conn.readexactly(10)

    with silent_log(), serving(handler) as server:
        assert exchange(server, b"short") == b"hello"
    with silent_log(), serving(handler, idle_timeout=0.05) as server:
        with socket.create_connection(server.server_address, timeout=PATIENCE) as sock:
            assert receive_all(sock) == b"hello"


def test_a_read_in_another_thread_ends_with_a_reset_where_a_handler_has_failed() -> None:
    with connected() as (conn, peer):
        conn.fail(ValueError())
        with in_thread(conn.read):
            wait_until(lambda: reading(conn))
            conn.close()
        with pytest.raises(ConnectionResetError):
            peer.recv(1)


# --- What has been received and not been read ---


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_what_has_been_received_and_not_been_read_is_pending(tls: bool) -> None:
    options = {"tls": contexts()[0]} if tls else {}
    seen: list[Any] = []

    def handler(conn: Connection) -> None:
        assert conn.peek(1) == b"o"
        while conn.pending or select.select([conn], [], [], PATIENCE)[0]:
            seen.append((conn.readline(), conn.pending))
            if not seen[-1][0]:
                break

    with serving(handler, **options) as server:
        with netkit.connect(server.address.port, "127.0.0.1") as conn:
            if tls:
                conn.start_tls(contexts()[1], server_hostname="localhost")
            conn.end("one\ntwo\nthree\n")
            conn.read()
    assert [line for line, _ in seen] == [b"one\n", b"two\n", b"three\n", b""]
    assert [count for _, count in seen][:2] == [10, 6]


def test_lines_that_have_been_split_ahead_of_time_are_pending() -> None:
    with connected() as (conn, peer):
        peer.sendall(b"one\r\ntwo\n\nthr")
        lines = conn.lines()
        assert next(lines) == "one"
        assert conn.pending == len(b"two\n\nthr")
        assert next(lines) == "two"
        assert conn.pending == len(b"\nthr")
        assert conn.peek() == b"\nthr"


def test_observers_of_the_end_of_a_connection_may_have_other_threads_use_it() -> None:
    def use(event: Any) -> None:
        if isinstance(event, netkit.events.ConnectionClosed):
            with in_thread(conn.cut):  # which needs the lock of the connection
                pass
            ended.append(conn)

    ended: list[Connection] = []
    with netkit.create_server().listen(0, "127.0.0.1") as server:
        with netkit.connect(server.address.port, "127.0.0.1"):
            conn = next(iter(server))
            unsubscribe = netkit.events.subscribe(use)
            try:
                conn.destroy()
            finally:
                unsubscribe()
    assert ended == [conn]


def test_a_program_may_end_its_side_after_its_handler_has_failed() -> None:
    with connected() as (conn, peer):
        conn.write("all")
        conn.fail(ValueError())
        conn.end()
        conn.end()
        with pytest.raises(netkit.WriteAfterEndError):
            conn.write("more")
        conn.close()
        assert receive_all(peer) == b"all"


def test_a_step_of_a_connection_that_another_thread_has_closed_is_not_begun() -> None:
    with connected() as (conn, _):
        conn.close()
        with pytest.raises(netkit.ConnectionClosedError):
            conn._link.limit_step(1, "handshake_timeout")
