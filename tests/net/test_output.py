"""Writing many small pieces as one, and files."""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import os
import signal
import socket
import ssl
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from secure import contexts
from support import (
    MUCH,
    PATIENCE,
    connected,
    fill,
    in_thread,
    receive_all,
    receive_exactly,
    reset,
    serving,
    tcp_pair,
    wait_until,
)

import netkit
from netkit.core.buffer import CHUNK
from netkit.core.errors import ConnectionClosedError
from netkit.net import sockopts
from netkit.net.link import IN_FILE

Patch = pytest.MonkeyPatch

CONTENT = os.urandom(700_000)


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


def test_corks_may_be_nested_and_much_is_sent_at_once() -> None:
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
def test_the_end_sends_gathered_pieces(how: str) -> None:
    with connected() as (conn, peer):
        with conn.corked():
            conn.write("gathered")
            with in_thread(getattr(conn, how)):
                assert receive_all(peer) == b"gathered"
                peer.close()


def test_an_exception_of_a_corked_block_prevails_over_an_error_of_sending() -> None:
    with connected() as (conn, peer):
        reset(peer)
        wait_until(lambda: sockopts.hung_up(conn.socket))
        with pytest.raises(ValueError, match="of the handler"), conn.corked():
            conn.write("never sent")
            raise ValueError("of the handler")
        with pytest.raises(ConnectionError):
            conn.write("never sent")


def test_gathered_pieces_for_a_peer_that_is_gone_raise_an_error_at_the_end_of_the_block() -> None:
    with connected() as (conn, peer):
        with pytest.raises(OSError, match="reset by|ended by"):
            with conn.corked():
                conn.write("in vain")
                reset(peer)
                conn.peek()


def test_a_destroy_drops_gathered_pieces() -> None:
    with connected() as (conn, peer):
        with conn.corked():
            conn.write("in vain")
            conn.destroy()
        assert receive_all(peer) == b""


def test_gathered_pieces_are_one_tls_record() -> None:
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


def test_a_file_that_becomes_shorter_is_sent_up_to_its_new_end(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    shrinking = tmp_path / "shrinking"
    shrinking.write_bytes(CONTENT)
    sendfile = os.sendfile

    def shrink(out: int, descriptor: int, offset: int, count: int) -> int:
        os.truncate(shrinking, 1000)
        return sendfile(out, descriptor, offset, count)

    monkeypatch.setattr("netkit.net.transport.os.sendfile", shrink)
    with connected() as (conn, _), open(shrinking, "rb") as file:
        assert conn.sendfile(file) == 1000


def test_gathered_pieces_are_sent_before_the_file(path: Path) -> None:
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


def test_writes_of_other_threads_wait_until_a_file_is_sent(path: Path) -> None:
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


# --- A write that fails with a part of it sent ---


@contextlib.contextmanager
def both(tls: bool) -> Iterator[tuple[netkit.Connection, Any]]:
    """A client's connection and its peer, a plain socket or an ``ssl.SSLSocket``."""
    with tcp_pair() as (ours, peer):
        conn = netkit.Connection(ours)
        try:
            if tls:
                server = contexts()[0].wrap_socket
                wrapped: list[ssl.SSLSocket] = []
                with in_thread(
                    lambda: wrapped.append(server(peer, True, suppress_ragged_eofs=False))
                ):
                    conn.start_tls(contexts()[1], server_hostname="localhost")
                with wrapped[0] as secured:
                    yield conn, secured
            else:
                yield conn, peer
        finally:
            conn.destroy()


def write(conn: netkit.Connection) -> None:
    conn.write("more")


def write_corked(conn: netkit.Connection) -> None:
    with conn.corked():
        conn.write("more")


def write_file(conn: netkit.Connection) -> None:
    conn.sendfile(io.BytesIO(b"more"))


def write_last(conn: netkit.Connection) -> None:
    conn.end("more")


def pipe(conn: netkit.Connection) -> None:
    with tcp_pair() as (ours, peer), netkit.Connection(ours) as source:
        peer.sendall(b"more")
        peer.shutdown(socket.SHUT_WR)
        source.pipe_to(conn)


WRITES = [write, write_corked, write_file, write_last, netkit.Connection.end, pipe]


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("file", [False, True], ids=["write", "file"])
def test_after_half_a_write_every_further_one_raises_the_same_error(tls: bool, file: bool) -> None:
    with both(tls) as (conn, _):
        conn.set_timeout(0.05)
        with pytest.raises(TimeoutError) as caught:
            conn.sendfile(io.BytesIO(bytes(MUCH))) if file else conn.write(bytes(MUCH))
        conn.set_timeout(None)
        for again in (*WRITES, netkit.Connection.detach):
            with pytest.raises(TimeoutError) as same:
                again(conn)
            assert same.value is caught.value
            assert conn.is_to_blame(same.value)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize(
    "leave",
    [
        netkit.Connection.close,
        netkit.Connection.destroy,
        lambda conn: conn.__exit__(OSError, None, None),
    ],
    ids=["close", "destroy", "with"],
)
def test_half_a_message_is_followed_by_a_reset_and_never_by_an_end(
    tls: bool, leave: Callable[[netkit.Connection], None]
) -> None:
    with both(tls) as (conn, peer):
        conn.set_timeout(0.05)
        with pytest.raises(TimeoutError):
            conn.write(bytes(MUCH))
        with pytest.raises(TimeoutError):
            conn.end()
        leave(conn)
        # Some versions of ssl take a reset for an end, and say that it came too early.
        with pytest.raises((ConnectionResetError, ssl.SSLEOFError)):
            receive_all(peer)
        assert conn.fileno() == -1


def test_a_time_limit_that_passes_before_anything_is_sent_breaks_nothing() -> None:
    with connected() as (conn, peer):
        sent = fill(conn.socket)
        conn.set_timeout(0.05)
        sockopts.set_acknowledgement_timeout(conn.socket, None)  # else the kernel may end it
        with pytest.raises(TimeoutError, match="write_timeout"):
            conn.write("whole")
        conn.set_timeout(PATIENCE)
        with in_thread(receive_exactly, peer, sent):
            conn.write("again")
        conn.end()
        assert receive_all(peer) == b"again"


class Alarm(Exception):
    """Raised by a signal handler."""


class Sending(socket.socket):
    """Sends a part only, and calls `meanwhile`, once: as a signal handler would be called."""

    meanwhile: Callable[[], object] | None = None

    def send(self, data: Any, *_: Any) -> int:
        if self.meanwhile is None:
            return super().send(data)
        meanwhile, self.meanwhile = self.meanwhile, None
        sent = super().send(bytes(data)[:3])
        meanwhile()
        return sent


@contextlib.contextmanager
def sending(
    meanwhile: Callable[[netkit.Connection], object],
) -> Iterator[tuple[netkit.Connection, socket.socket]]:
    with tcp_pair() as (ours, peer):
        sock = Sending(fileno=ours.detach())
        conn = netkit.Connection(sock)
        sock.meanwhile = lambda: meanwhile(conn)
        try:
            yield conn, peer
        finally:
            conn.destroy()


@pytest.mark.parametrize("kind", [Alarm, KeyboardInterrupt, TimeoutError])
def test_an_exception_of_a_signal_handler_amid_a_write_breaks_the_output(
    kind: type[BaseException],
) -> None:
    def interrupt(_: netkit.Connection) -> None:
        raise kind

    with sending(interrupt) as (conn, peer):
        with pytest.raises(kind):
            conn.write("a message")
        with pytest.raises(OSError) as caught:  # noqa: PT011 - which one depends
            conn.write("another one")
        if kind is not TimeoutError:
            text = f"a write to {conn.peer} was broken off: {kind.__name__}"
            assert isinstance(caught.value, ConnectionAbortedError)
            assert (caught.value.errno, caught.value.strerror) == (errno.ECONNABORTED, text)
            assert not conn.is_to_blame(caught.value)
        conn.close()
        assert receive_exactly(peer, 3) == b"a m"
        with pytest.raises(ConnectionResetError):
            peer.recv(1)


def test_a_time_limit_that_is_set_amid_a_write_knows_that_a_part_was_sent() -> None:
    def limit(conn: netkit.Connection) -> None:
        fill(conn.socket)
        conn.set_timeout(0.05)

    with sending(limit) as (conn, _):
        with pytest.raises(TimeoutError, match="write_timeout") as first:
            conn.write("a message")
        with pytest.raises(TimeoutError) as second:
            conn.write("another one")
        assert second.value is first.value


def test_a_close_that_is_interrupted_by_a_destroy_waits_for_nothing(long_linger: None) -> None:
    with sending(netkit.Connection.destroy) as (conn, _), conn.corked():
        conn.write("gathered")
        conn.close()
        assert conn.fileno() == -1


def test_bytes_written_before_a_write_was_broken_off_arrive(long_linger: None) -> None:

    def interrupt(_: netkit.Connection) -> None:
        raise Alarm

    with sending(interrupt) as (conn, peer):
        with pytest.raises(Alarm):
            conn.write("a message")
        sent = 3 + fill(conn.socket)
        with in_thread(conn.close):
            assert len(receive_exactly(peer, sent)) == sent
        with pytest.raises(ConnectionResetError):
            peer.recv(1)


def test_after_a_file_that_cannot_be_read_to_its_end_the_peer_sees_a_reset() -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(5) or self.fail()

        def fail(self) -> bytes:
            raise OSError(errno.EIO, "the disk is broken")

    with connected() as (conn, peer):
        with pytest.raises(OSError, match="the disk is broken"):
            conn.sendfile(Failing())
        conn.write("whole")  # nothing had been sent
        with pytest.raises(OSError, match="the disk is broken") as caught:
            conn.sendfile(Failing(b"a part"))
        assert not conn.is_to_blame(caught.value)
        with pytest.raises(ConnectionAbortedError, match="was broken off: OSError"):
            conn.write("more")
        conn.close()
        assert receive_exactly(peer, 11) == b"wholea part"
        with pytest.raises(ConnectionResetError):
            peer.recv(1)


def test_a_unix_socket_which_cannot_be_reset_ends() -> None:
    ours, peer = socket.socketpair()
    with peer:
        peer.settimeout(PATIENCE)
        conn = netkit.Connection(ours)
        conn.set_timeout(0.05)
        with pytest.raises(TimeoutError):
            conn.write(bytes(MUCH))
        conn.linger_seconds = 0.05
        conn.close()
        assert 0 < len(receive_all(peer)) < MUCH


# --- Closed while something is under way ---


class Blocked:
    """A file whose reading lasts until `go_on` is set."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def seekable(self) -> bool:
        return False

    def read(self, _size: int) -> bytes:
        if self.begun.is_set():
            return b""
        self.begun.set()
        assert self.go_on.wait(PATIENCE)
        return b"too late"


STOPS: list[Callable[[netkit.Connection], Any]] = [
    netkit.Connection.destroy,
    netkit.Connection.reset,
    netkit.Connection.cut,
    lambda conn: conn.interrupt(TimeoutError("enough")),
    netkit.Connection.end_input,
]


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("stop", STOPS, ids=["destroy", "reset", "cut", "interrupt", "end_input"])
def test_no_way_to_stop_a_connection_waits_for_a_file(
    stop: Callable[[netkit.Connection], Any], tls: bool
) -> None:
    """Another thread sends a file that gives nothing, such as a pipe."""
    with both(tls) as (conn, _):
        file = Blocked()
        errors: list[BaseException] = []

        def send() -> None:
            try:
                conn.sendfile(file)  # type: ignore[arg-type]
            except OSError as error:
                errors.append(error)

        with in_thread(send):
            assert file.begun.wait(PATIENCE)
            stop(conn)  # this thread is not the one that lets the file go on otherwise
            if conn.closed:
                assert conn.fileno() == -1  # nobody is in the socket
            file.go_on.set()
        kinds = [type(error) for error in errors]
        if stop is netkit.Connection.end_input:
            assert kinds == []
        elif conn.closed:
            assert kinds == [ConnectionClosedError]
        else:
            assert kinds in ([ConnectionAbortedError], [TimeoutError])


def test_a_close_waits_for_a_file_for_a_limited_time() -> None:
    with connected() as (conn, peer):
        conn.linger_seconds = 0.05
        file = Blocked()

        def send() -> None:
            with pytest.raises(ConnectionClosedError):
                conn.sendfile(file)  # type: ignore[arg-type]

        with in_thread(send):
            assert file.begun.wait(PATIENCE)
            conn.close()
            assert conn.fileno() == -1
            file.go_on.set()
        with pytest.raises(ConnectionResetError):
            peer.recv(1)


def test_observers_of_a_close_during_sendfile_are_called_without_the_lock_of_the_output() -> None:
    class Closed(socket.socket):
        """Another thread closes the connection between two pieces of the file."""

        def send(self, data: Any, *_: Any) -> int:
            sent = super().send(data)
            with in_thread(conn.destroy):
                return sent

    def note() -> None:
        with in_thread(lambda: is_free.append(conn._output.lock.acquire(blocking=False))):
            pass

    is_free: list[bool] = []
    with tcp_pair() as (ours, _), netkit.Connection(Closed(fileno=ours.detach())) as conn:
        conn._link.released = note
        with pytest.raises(ConnectionClosedError):
            conn.sendfile(Unseekable(bytes(CHUNK + 1)))
        assert conn.fileno() == -1
    assert is_free == [True]


@pytest.mark.parametrize("stop", STOPS[:4], ids=["destroy", "reset", "cut", "interrupt"])
def test_no_way_to_stop_a_connection_waits_for_its_close(
    stop: Callable[[netkit.Connection], Any], long_linger: None
) -> None:
    with both(True) as (conn, _):
        fill(conn.socket)
        with in_thread(conn.close):  # it cannot send its close_notify, or waits for the peer's end
            wait_until(lambda: conn._link.writing or conn._link.waiting)
            stop(conn)
        assert conn.fileno() == -1


def test_a_close_ends_a_handshake_of_another_thread() -> None:
    with connected() as (conn, peer):

        def shake_hands() -> None:
            with pytest.raises(ConnectionError):
                conn.start_tls(contexts()[1], server_hostname="localhost")

        with in_thread(shake_hands):
            receive_exactly(peer, 1)
            conn.close()
        assert conn.fileno() == -1


# --- Signal handlers ---

IN_A_HANDLER: dict[str, Callable[[netkit.Connection], Any]] = {
    "close": netkit.Connection.close,
    "destroy": netkit.Connection.destroy,
    "reset": netkit.Connection.reset,
    "interrupt": lambda conn: conn.interrupt(TimeoutError("enough")),
    "cut": netkit.Connection.cut,
    "end_input": netkit.Connection.end_input,
    "write": lambda conn: conn.write("amid"),
    "end": netkit.Connection.end,
    "detach": netkit.Connection.detach,
    "corked": lambda conn: conn.corked().__enter__(),
    "sendfile": lambda conn: conn.sendfile(io.BytesIO(b"amid")),
}
REFUSED = ("write", "end", "detach", "corked", "sendfile")


@pytest.mark.parametrize("method", IN_A_HANDLER)
def test_a_signal_handler_that_interrupts_a_write_waits_for_nothing(method: str) -> None:
    outcome: list[str] = []

    def handle(conn: netkit.Connection) -> None:
        try:
            IN_A_HANDLER[method](conn)
            outcome.append("done")
        except RuntimeError as error:
            outcome.append(str(error))

    with sending(handle) as (conn, peer):
        if method in REFUSED:
            assert conn.write("a message") == 9
            assert outcome == [f"a signal handler cannot write amid a write to {conn.peer}"]
            conn.end()
            assert receive_all(peer) == b"a message"
        elif method == "end_input":
            conn.write("a message")
            assert conn.read() == b""
        else:
            with pytest.raises(OSError, match="closed|enough|was cut"):
                conn.write("a message")
            assert outcome == ["done"]
            conn.close()
            assert conn.fileno() == -1


@pytest.mark.parametrize("method", IN_A_HANDLER)
def test_a_signal_handler_that_interrupts_what_a_read_sends_waits_for_nothing(method: str) -> None:
    """A server of TLS sends its tickets when it reads."""
    outcome: list[Any] = []

    def handle(conn: netkit.Connection) -> None:
        try:
            outcome.append(IN_A_HANDLER[method](conn))
        except (RuntimeError, ValueError) as error:  # ValueError: TLS is not detached
            outcome.append(str(error))

    def talk() -> None:
        with contextlib.suppress(OSError):
            with contexts()[1].wrap_socket(peer, server_hostname="localhost") as secured:
                assert is_agreed.wait(PATIENCE)  # a read that need not wait sends nothing
                secured.sendall(b"a line\n")
                secured.recv(10)

    is_agreed = threading.Event()
    with tcp_pair() as (ours, peer), in_thread(talk):
        conn = netkit.Connection(sock := Sending(fileno=ours.detach()))
        try:
            conn.start_tls(contexts()[0], server_side=True, timeout=PATIENCE)
            sock.meanwhile = lambda: handle(conn)
            is_agreed.set()
            with contextlib.suppress(OSError):
                assert conn.readline() in (b"a line\n", b"")
            if method in ("write", "end", "sendfile"):
                assert outcome[0].startswith("a signal handler cannot use TLS while")
                conn.write("whole")  # nothing of what was refused has been sent
            assert len(outcome) == 1
        finally:
            conn.destroy()
        assert conn.fileno() == -1


@pytest.mark.parametrize("method", ["close", "destroy", "reset", "write", "end", "detach"])
def test_a_file_that_uses_the_connection_which_sends_it_waits_for_nothing(method: str) -> None:
    class Meddling(Unseekable):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell():
                IN_A_HANDLER[method](conn)
            return super().read(4)

    with connected() as (conn, peer):
        with pytest.raises((RuntimeError, ConnectionClosedError)):
            conn.sendfile(Meddling(b"contents"))
        conn.destroy()
        assert conn.fileno() == -1
        with contextlib.suppress(ConnectionResetError):
            assert receive_all(peer) == b"cont"


def on_alarm(function: Callable[[], object]) -> Any:
    """Have a signal handler call `function`, in the main thread, in a moment."""
    signal.signal(signal.SIGALRM, lambda *_: function())
    signal.setitimer(signal.ITIMER_REAL, 0.05)


@pytest.fixture
def alarm() -> Iterator[Callable[[Callable[[], object]], None]]:
    before = signal.getsignal(signal.SIGALRM)
    yield on_alarm
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("method", ["close", "destroy", "reset", "interrupt", "cut"])
def test_a_signal_ends_a_write_that_waits(method: str, alarm: Any) -> None:
    with connected() as (conn, peer):
        alarm(lambda: IN_A_HANDLER[method](conn))
        with pytest.raises(OSError, match="closed|enough|was cut"):
            conn.write(bytes(MUCH))
        conn.close()
        with pytest.raises(ConnectionResetError):
            receive_all(peer)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("method", ["close", "destroy", "reset", "interrupt", "cut", "end"])
def test_a_signal_handler_may_stop_a_read_that_waits(method: str, tls: bool, alarm: Any) -> None:
    with both(tls) as (conn, peer):

        def handle() -> None:
            try:
                IN_A_HANDLER[method](conn)
            except RuntimeError:  # the read does not wait yet, it decrypts
                alarm(handle)
                return
            if method == "end":
                peer.close()

        alarm(handle)
        with contextlib.suppress(OSError):
            assert conn.read() == b""
        conn.destroy()
        assert conn.fileno() == -1


# --- Files that take or give less than was asked for ---


def test_sendfile_waits_for_a_non_blocking_pipe() -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with connected() as (conn, peer), open(reading, "rb", buffering=0) as pipe:

        def feed() -> None:
            for _ in range(3):
                wait_until(lambda: conn._link.writing == IN_FILE)
                os.write(writing, b"piece")
                wait_until(lambda: conn.bytes_written % 5 == 0)
            os.close(writing)

        with in_thread(feed):
            assert conn.sendfile(pipe) == 15
        assert receive_exactly(peer, 15) == b"piece" * 3


class Hesitant(Unseekable):
    """Would block, and has no descriptor."""

    def read(self, _size: int | None = -1, /) -> Any:
        return None


def test_a_non_blocking_file_without_a_descriptor_is_an_error() -> None:
    with connected() as (conn, _), pytest.raises(BlockingIOError, match="would block, and has no"):
        conn.sendfile(Hesitant())


def test_a_file_must_return_bytes_and_no_more_than_was_asked_for() -> None:
    class Generous(Unseekable):
        def read(self, _size: int | None = -1, /) -> bytes:
            return bytes(10)

    with connected() as (conn, peer):
        with pytest.raises(TypeError, match="a file to be sent must be a binary one"):
            conn.sendfile(io.StringIO("text"))  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="a file to be sent must be a binary one, not 'name'"):
            conn.sendfile("name")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="has read 10 bytes, where 4 were asked for"):
            conn.sendfile(Generous(), 0, 4)
        conn.write("whole")
        assert receive_exactly(peer, 5) == b"whole"


def test_the_bytes_that_a_file_object_reads_are_sent(tmp_path: Path) -> None:
    """And not what its descriptor has."""
    packed = tmp_path / "packed.gz"
    packed.write_bytes(gzip.compress(CONTENT))
    with connected() as (conn, peer), in_thread(receive_exactly, peer, len(CONTENT) + 6):
        with gzip.open(packed) as file:
            assert conn.sendfile(file) == len(CONTENT)  # type: ignore[arg-type]
        with tempfile.TemporaryFile() as file:
            file.write(b"buffer")
            assert conn.sendfile(file) == 6


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_file_of_proc_which_has_no_size_is_sent() -> None:
    with connected() as (conn, peer), open("/proc/version", "rb") as file:
        assert conn.sendfile(file) == len(expected := Path("/proc/version").read_bytes())
        assert receive_exactly(peer, len(expected)) == expected


@pytest.mark.parametrize("error", [OSError(errno.EINVAL, "Invalid argument"), None])
def test_a_file_that_the_kernel_does_not_send_is_read(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError | None
) -> None:
    """The kernel cannot send it, or it has just become shorter, which is no stall."""

    def cannot(*_: Any) -> int:
        if error is not None:
            raise error
        return 0

    monkeypatch.setattr("netkit.net.transport.os.sendfile", cannot)
    with connected() as (conn, peer), open(path, "rb") as file:
        conn.set_timeout(PATIENCE)
        assert conn.sendfile(file, 0, 5) == 5
        assert receive_exactly(peer, 5) == CONTENT[:5]


def test_a_file_that_the_kernel_cannot_read_is_not_the_peers_fault(
    path: Path, monkeypatch: Patch
) -> None:
    def broken(*_: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("netkit.net.transport.os.sendfile", broken)
    with connected() as (conn, _), open(path, "rb") as file:
        with pytest.raises(OSError, match="Input/output error") as caught:
            conn.sendfile(file)
        assert not conn.is_to_blame(caught.value)


# --- Ends that cannot be sent ---


@pytest.mark.parametrize("finish", [netkit.Connection.end, netkit.Connection.close])
def test_an_end_of_tls_that_cannot_be_sent_takes_a_limited_time(
    finish: Callable[[netkit.Connection], None],
) -> None:
    with both(True) as (conn, _):
        conn.linger_seconds = 0.05
        fill(conn.socket)
        conn.set_timeout(0.05)
        if finish is netkit.Connection.end:
            with pytest.raises(TimeoutError, match="write_timeout"):
                conn.end()
        else:
            conn.close()
            assert conn.fileno() == -1


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux's kernel")
def test_a_peer_that_has_ended_its_side_gets_the_rest_before_the_reset(long_linger: None) -> None:
    with connected() as (conn, peer):
        peer.shutdown(socket.SHUT_WR)
        sent = fill(conn.socket)
        conn.fail(ValueError())
        with in_thread(conn.close):
            wait_until(lambda: conn._link.waiting)
            assert len(receive_exactly(peer, sent)) == sent
        with pytest.raises(ConnectionResetError):
            peer.recv(1)


def test_gathered_pieces_are_not_sent_in_clear_text_after_a_failed_handshake() -> None:
    with connected() as (conn, peer):
        with pytest.raises(netkit.core.errors.HandshakeError), conn.corked():
            conn.write("a secret")
            peer.sendall(b"no TLS at all\n")
            conn.start_tls(contexts()[1], server_hostname="localhost")
        conn.destroy()
        assert b"a secret" not in receive_all(peer)


def test_a_file_whose_second_piece_is_broken_off_breaks_the_output_once() -> None:
    class Twice(socket.socket):
        sends = 0

        def send(self, data: Any, *_: Any) -> int:
            self.sends += 1
            if self.sends == 2:
                raise Alarm
            return super().send(data)

    with tcp_pair() as (ours, peer), netkit.Connection(Twice(fileno=ours.detach())) as conn:
        with pytest.raises(Alarm):
            conn.sendfile(Unseekable(bytes(CHUNK + 1)))
        with pytest.raises(ConnectionAbortedError, match="was broken off: Alarm") as caught:
            conn.write("more")
        assert isinstance(caught.value.__cause__, Alarm)
        receive_exactly(peer, CHUNK)
