"""Writes that do not wait: the outbox of a connection."""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from secure import contexts
from support import (
    PATIENCE,
    connected,
    fill,
    in_thread,
    in_threads,
    receive_all,
    receive_exactly,
    reset,
    serving,
    tcp_pair,
    until_reset,
    wait_until,
)

import netkit
from netkit.core import events
from netkit.net import outbox as outboxes

Patch = pytest.MonkeyPatch
Pair = tuple[netkit.Connection, socket.socket]


@contextlib.contextmanager
def full(**settings: Any) -> Iterator[tuple[netkit.Connection, Callable[[int], bytes]]]:
    """A connection whose peer has read nothing, and a function that reads so many further bytes."""
    with connected(**settings) as (conn, peer):
        filled = fill(conn.socket)
        yield conn, lambda size: receive_exactly(peer, filled + size)[filled:]


@contextlib.contextmanager
def secured() -> Iterator[tuple[netkit.Connection, netkit.Connection]]:
    """Two ends of a TLS connection."""
    with tcp_pair() as (ours, theirs):
        conn, peer = netkit.Connection(ours), netkit.Connection(theirs)
        with in_thread(lambda: conn.start_tls(contexts()[0], server_side=True)):
            peer.start_tls(contexts()[1], server_hostname="localhost")
        try:
            yield conn, peer
        finally:
            conn.destroy()
            peer.destroy()


def is_idle(conn: netkit.Connection) -> bool:
    """Whether no thread sends for the outbox."""
    return not conn.outbox.queued and not conn.outbox._attended


# --- Sending ---


def test_a_message_that_the_kernel_takes_is_sent_by_the_thread_that_posts_it(
    monkeypatch: Patch,
) -> None:
    monkeypatch.setattr(outboxes, "_start", None)
    with connected() as (conn, peer):
        assert conn.post("a\u00e9") == 3
        assert conn.post(bytearray(b"b")) == 1
        assert conn.post("\u00e9", "latin-1") == 1
        assert receive_exactly(peer, 5) == b"a\xc3\xa9b\xe9"
        assert (conn.outbox.queued, conn.bytes_written) == (0, 5)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_posts_and_writes_leave_in_the_order_of_their_calls(tls: bool) -> None:
    received = bytearray()

    def serve(conn: netkit.Connection) -> None:
        conn.outbox.max_bytes = 50_000_000
        number = 0
        for size in (10, 100_000, 1, 5_000_000, 70_000, 10):
            for send in (conn.post, conn.write, conn.post, conn.post):
                send(bytes([number]) * size)
                number += 1

    options = {"tls": contexts()[0]} if tls else {}
    with serving(serve, **options) as server:
        with netkit.connect(server.server_address[1], "127.0.0.1") as conn:
            if tls:
                conn.start_tls(contexts()[1], server_hostname="localhost")
            for chunk in conn:
                received += chunk
    sizes = (10, 100_000, 1, 5_000_000, 70_000, 10)
    assert received == b"".join(bytes([n]) * sizes[n // 4] for n in range(24))


def test_a_thread_sends_the_rest_once_the_peer_reads_and_then_ends() -> None:
    with full() as (conn, receive):
        for number in range(10):
            conn.post(f"{number}")
        assert conn.outbox.queued == 640  # a message counts as 64 bytes at least
        assert receive(10) == b"0123456789"
        wait_until(lambda: is_idle(conn))
        conn.post("again")


def test_a_post_does_not_wait_for_a_write_of_another_thread() -> None:
    with full() as (conn, receive), in_thread(conn.write, b"w" * 1_000_000):
        wait_until(lambda: conn._link.writing)
        conn.post("posted")
        assert receive(1_000_006) == b"w" * 1_000_000 + b"posted"


class Interrupted(socket.socket):
    """Calls a function before it sends ``b"first"``. Without waiting, it takes `room` bytes."""

    before: Callable[[], object]
    room = 100

    def send(self, data: Any, *flags: int) -> int:
        if data == b"first" and (taken := self.before()):
            return int(str(taken))
        if flags and len(data) > self.room:
            data = data[: self.room]
            if not data:
                raise BlockingIOError
        if flags:
            self.room -= len(data)
        return super().send(data, *flags)


@contextlib.contextmanager
def interrupted(before: Callable[[netkit.Connection], object], room: int) -> Iterator[Pair]:
    """A connection with such a socket, and its peer."""
    with tcp_pair() as (ours, peer):
        sock = Interrupted(fileno=ours.detach())
        conn = netkit.Connection(sock)
        sock.before, sock.room = lambda: before(conn), room
        yield conn, peer
        conn.destroy()


@pytest.mark.parametrize("room", [100, 11, 7, 0])
def test_messages_that_came_during_a_post_are_sent_by_its_thread(
    room: int, monkeypatch: Patch
) -> None:
    """If the kernel takes them. Else there is a thread for them."""

    def post(conn: netkit.Connection) -> None:
        if conn.outbox.queued == 0:
            in_threads(conn.post, [("second",)])
            in_threads(conn.post, [("third",)])

    if room == 100:
        monkeypatch.setattr(outboxes, "_start", None)
    with interrupted(post, room) as (conn, peer):
        conn.post("first")
        received = receive_exactly(peer, 16)
        assert received == b"firstsecondthird" if room else b"secondthirdfirst"
        wait_until(lambda: is_idle(conn))


def test_a_message_may_be_sent_after_its_client_was_disconnected() -> None:
    def overflow(conn: netkit.Connection) -> int:
        if not conn.outbox.queued:
            return 0
        with pytest.raises(netkit.OutboxFullError):
            conn.post("more")
        return len("first")

    with interrupted(overflow, 0) as (conn, _):
        conn.outbox.max_bytes = 64
        conn.post("first")
        wait_until(lambda: is_idle(conn))
        assert conn.bytes_written == 5


def test_an_error_of_the_program_amid_a_post_breaks_the_output() -> None:
    def fail(conn: netkit.Connection) -> None:
        raise MemoryError

    with interrupted(fail, 100) as (conn, _):
        with pytest.raises(MemoryError):
            conn.post("first")
        for use in (lambda: conn.post("second"), conn.read):
            with pytest.raises(ConnectionAbortedError, match="was broken off: MemoryError"):
                use()


def test_a_post_that_is_interrupted_before_it_sends_breaks_the_output(monkeypatch: Patch) -> None:
    """Otherwise later messages would wait for a thread that does not exist."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with connected() as (conn, _), monkeypatch.context() as patch:
        patch.setattr(outboxes.Outbox, "_attend", interrupt)
        with pytest.raises(KeyboardInterrupt):
            conn.post("a")
        patch.undo()
        with pytest.raises(ConnectionAbortedError, match="broken off: KeyboardInterrupt"):
            conn.post("b")
        assert is_idle(conn)


def test_a_post_that_is_interrupted_while_a_thread_sends_loses_only_its_message(
    monkeypatch: Patch,
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with connected() as (conn, peer), monkeypatch.context() as patch:
        with conn._output.held():  # the thread of the outbox waits
            conn.post("a")
            patch.setattr(outboxes.Outbox, "_queue_locked", interrupt)
            with pytest.raises(KeyboardInterrupt):
                conn.post("b")
            patch.undo()
            conn.post("c")
        assert receive_exactly(peer, 2) == b"ac"


def test_a_connection_that_ends_amid_a_post_drops_the_message() -> None:
    with connected() as (conn, peer):
        box = conn.outbox
        conn.end()
        box._attend(b"late")
        wait_until(lambda: is_idle(conn))
        assert receive_all(peer) == b""


def test_the_rest_of_a_tls_record_is_sent_by_a_thread() -> None:
    with secured() as (conn, peer):
        posted = 0
        while not conn.outbox.queued:
            posted += conn.post(bytes(50_000))
        assert len(peer.readexactly(posted)) == posted
        wait_until(lambda: is_idle(conn))


def test_messages_of_many_threads_are_whole_and_in_the_order_of_each_thread() -> None:
    """A few of them write."""
    count = 400

    def work(conn: netkit.Connection, name: str) -> None:
        for number in range(count):
            (conn.write if name == "w" or number % 7 == 0 else conn.post)(f"{name} {number}\n")

    names = ["a", "b", "c", "w"]
    with connected() as (conn, peer):
        with in_thread(in_threads, work, [(conn, name) for name in names]):
            with peer.makefile("rb") as file:
                lines = [file.readline().split() for _ in range(count * len(names))]
    for name in names:
        numbers = [int(number) for who, number in lines if who.decode() == name]
        assert numbers == list(range(count))


def test_a_write_gets_its_turn_while_other_threads_post_all_the_time() -> None:
    done = threading.Event()

    def post_on(conn: netkit.Connection) -> None:
        while not done.is_set():
            conn.post(bytes(100_000))

    def read_on(peer: socket.socket) -> None:
        with contextlib.suppress(ConnectionResetError):  # of the end
            while peer.recv(50_000):
                time.sleep(0.0005)

    with connected() as (conn, peer), in_thread(read_on, peer):
        conn.outbox.when_full = "drop"
        with in_thread(post_on, conn):
            wait_until(lambda: conn.outbox.dropped)
            for _ in range(3):
                conn.write("a turn")
            done.set()
        conn.destroy()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_connection_with_time_limits_posts(tls: bool) -> None:
    with secured() if tls else connected() as (conn, peer):
        conn.set_timeout(PATIENCE)
        conn.post("a")
        conn.post(bytes(6_000_000))
        size = 6_000_001
        if isinstance(peer, netkit.Connection):
            assert len(peer.readexactly(size)) == size
        else:
            receive_exactly(peer, size)


def test_the_socket_that_a_handler_reads_itself_can_be_posted_to() -> None:
    with tcp_pair() as (ours, peer):
        ours.settimeout(PATIENCE)
        conn = netkit.Connection(ours, opaque=True)
        conn.post("by a thread")
        assert receive_exactly(peer, 11) == b"by a thread"
        conn.destroy()


def test_a_block_of_corked_keeps_the_order_of_writes_and_posts() -> None:
    with connected() as (conn, peer):
        with conn.corked():
            conn.write("a")
            conn.post("b")
            conn.write("c")
            conn.post("d")
        assert receive_exactly(peer, 4) == b"abcd"


def test_a_file_and_tls_come_after_what_was_posted(tmp_path: Any) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"file")
    with full() as (conn, receive):
        conn.post("posted ")
        with open(path, "rb") as file, in_thread(conn.sendfile, file):
            assert receive(11) == b"posted file"


def test_what_was_posted_before_tls_is_sent_in_clear_text() -> None:
    with tcp_pair() as (ours, theirs):
        conn, peer = netkit.Connection(ours), netkit.Connection(theirs)
        filled = fill(ours)
        conn.post("220 go on\n")
        with in_thread(lambda: conn.start_tls(contexts()[0], server_side=True)):
            peer.readexactly(filled)
            assert peer.readline() == b"220 go on\n"
            peer.start_tls(contexts()[1], server_hostname="localhost")
        conn.post("encrypted")
        assert peer.readexactly(9) == b"encrypted"
        peer.destroy()
        conn.destroy()


# --- The end ---


@pytest.mark.parametrize("how", ["end", "flush", "close", "write"])
def test_what_was_posted_is_sent_before(how: str) -> None:
    with connected() as (conn, peer):
        filled = fill(conn.socket)
        for number in range(10):
            conn.post(f"{number}")
        arguments = ["!"] if how in ("end", "write") else []
        with in_thread(getattr(conn, how), *arguments):
            data = receive_exactly(peer, filled + 10 + len(arguments))
            assert data[filled:] == b"0123456789!"[: 10 + len(arguments)]
            peer.close()


def test_a_connection_is_given_up_after_what_was_posted() -> None:
    with full() as (conn, receive):
        conn.post("posted")
        with in_thread(receive, 6):
            conn.detach()[0].close()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_close_gives_up_a_peer_that_reads_nothing(tls: bool) -> None:
    """The peer sees a reset, since it has not got everything."""
    with secured() if tls else connected() as (conn, peer):
        conn.linger_seconds = 0.2
        conn.post(bytes(20_000_000))
        conn.close()
        assert conn.closed
        wait_until(lambda: conn.fileno() < 0)
        with pytest.raises(ConnectionResetError):
            while peer.recv(100_000) if isinstance(peer, socket.socket) else peer.read(100_000):
                pass


def test_a_destroy_drops_what_was_posted() -> None:
    with full() as (conn, _):
        conn.post("in vain")
        conn.destroy()
        wait_until(lambda: is_idle(conn))
        wait_until(lambda: conn.fileno() < 0)


@pytest.mark.parametrize("drain_timeout", [PATIENCE, 0.1])
def test_a_server_that_stops_has_what_was_posted_sent_until_its_deadline(
    drain_timeout: float,
) -> None:
    posted = threading.Event()

    def serve(conn: netkit.Connection) -> None:
        conn.linger_seconds = PATIENCE
        conn.post(bytes(20_000_000) + b"!")
        posted.set()
        conn.read()

    server = netkit.create_server(serve, drain_timeout=drain_timeout).listen(0, "127.0.0.1")
    with server, socket.create_connection(server.server_address[:2], PATIENCE) as peer:
        assert posted.wait(PATIENCE)
        if drain_timeout == PATIENCE:
            with in_thread(server.stop):
                assert len(receive_all(peer)) == 20_000_001
            assert server.stop().cut == 0
        else:
            assert server.stop().cut == 1
            assert len(until_reset(peer)) < 20_000_001


# --- A full outbox ---


def queue(conn: netkit.Connection, *messages: str) -> None:
    """Post the first message so that it is on its way, and then the others."""
    first, *others = messages
    conn.post(first)
    wait_until(lambda: conn.outbox._begun and conn._link.writing)
    for message in others:
        conn.post(message)


def test_a_full_outbox_drops_the_oldest_messages_that_are_not_on_their_way() -> None:
    with full() as (conn, receive):
        conn.outbox.max_bytes, conn.outbox.when_full = 3 * 64, "drop"
        queue(conn, "0", "1", "2", "3", "4")
        assert (conn.outbox.dropped, conn.outbox.queued) == (2, 3 * 64)
        conn.post(b"x" * 128)
        assert (conn.outbox.dropped, conn.outbox.queued) == (4, 3 * 64)
        conn.post(b"y" * 129)  # dropped itself, as the oldest one that is left
        assert (conn.outbox.dropped, conn.outbox.queued) == (6, 64)
        conn.post("5")
        assert receive(2) == b"05"


def test_a_full_outbox_refuses_a_message() -> None:
    with full() as (conn, receive):
        conn.outbox.max_bytes, conn.outbox.when_full = 2 * 64, "refuse"
        queue(conn, "0", "1")
        with pytest.raises(netkit.OutboxFullError) as caught:
            conn.post("2")
        text = f"the outbox of the connection to {conn.peer} is full"
        assert str(caught.value) == f"{text}: 128 bytes of at most 128 (max_bytes) are queued"
        assert (caught.value.peer, caught.value.queued, caught.value.max_bytes) == (
            conn.peer,
            128,
            128,
        )
        assert receive(2) == b"01"
        wait_until(lambda: is_idle(conn))
        conn.post("2")


def test_a_full_outbox_disconnects_its_client_by_default() -> None:
    """Its handler gets the error, the log has it as the client's, and nothing stays queued."""
    served: list[netkit.Connection] = []
    raised: list[BaseException] = []

    def serve(conn: netkit.Connection) -> None:
        served.append(conn)
        try:
            conn.read()
        except OSError as error:
            raised.append(error)
            raise

    seen: list[Any] = []
    unsubscribe = events.subscribe(seen.append)
    with serving(serve) as server:
        with socket.create_connection(server.server_address[:2], PATIENCE) as peer:
            wait_until(lambda: served)
            (conn,) = served
            conn.outbox.max_bytes = 1000
            with pytest.raises(netkit.OutboxFullError) as caught:
                while True:
                    conn.post(bytes(100_000))
            assert conn.outbox.queued == 0
            with pytest.raises(OSError):  # noqa: PT011 - closed, or the same error
                conn.post("more")
            wait_until(lambda: conn.fileno() < 0)
            until_reset(peer)
    unsubscribe()
    assert raised == [caught.value]
    assert [e.error for e in seen if isinstance(e, netkit.ClientFailed)] == raised
    assert not [e for e in seen if isinstance(e, netkit.HandlerFailed)]


@pytest.mark.parametrize("when_full", ["refuse", "drop", "disconnect"])
def test_a_message_longer_than_the_limit_is_queued_if_it_is_the_only_one(when_full: str) -> None:
    with full() as (conn, receive):
        conn.outbox.max_bytes, conn.outbox.when_full = 1, when_full
        conn.post("longer than a byte")
        assert receive(18) == b"longer than a byte"


def test_the_settings_of_an_outbox_are_checked() -> None:
    with connected() as (conn, _):
        box = conn.outbox
        assert conn.outbox is box
        assert (box.max_bytes, box.when_full, box.dropped) == (1024 * 1024, "disconnect", 0)
        with pytest.raises(ValueError, match="max_bytes must be at least 1 byte, not 0"):
            box.max_bytes = 0
        with pytest.raises(TypeError, match="max_bytes must be a number of bytes, not '1'"):
            box.max_bytes = "1"
        with pytest.raises(ValueError, match="when_full must be .*, not 'wait'"):
            box.when_full = "wait"


# --- Errors ---


def test_what_cannot_be_posted_is_an_error() -> None:
    with connected() as (conn, peer):
        with pytest.raises(TypeError):
            conn.post(42)  # type: ignore[arg-type]
        with pytest.raises(LookupError):
            conn.post("a", "klingon")
        conn.post("")
        data = bytearray(b"abc")
        conn.post(data)
        data[:] = b"xyz"
        assert receive_exactly(peer, 3) == b"abc"
        conn.end()
        with pytest.raises(netkit.WriteAfterEndError):
            conn.post("")
        conn.close()
        with pytest.raises(netkit.ConnectionClosedError):
            conn.post("a")


def test_a_post_to_a_peer_that_is_gone_raises_what_a_write_raises() -> None:
    with connected() as (conn, peer):
        reset(peer)
        with pytest.raises(ConnectionError) as caught:
            while True:
                conn.post("in vain")
        assert conn.error is caught.value
        with pytest.raises(type(caught.value)):
            conn.write("in vain")


def test_a_peer_that_leaves_while_messages_are_queued_breaks_the_output() -> None:
    with connected() as (conn, peer):
        fill(conn.socket)
        conn.post("in vain")
        reset(peer)
        wait_until(lambda: is_idle(conn))
        with pytest.raises(ConnectionError):
            conn.post("in vain")
        with pytest.raises(ConnectionError):
            conn.end()


def test_a_time_limit_for_what_is_queued_ends_the_read_of_the_connection() -> None:
    with connected() as (conn, _):
        fill(conn.socket)
        conn._link.set_limits(conn._link.wire.limits._replace(write_timeout=0.05))
        conn.post("in vain")
        with pytest.raises(TimeoutError, match="write_timeout") as caught:
            conn.read()
        assert conn.is_to_blame(caught.value)
        # The kernel may have been the first to end the connection (TCP_USER_TIMEOUT).
        with pytest.raises((TimeoutError, BrokenPipeError)):
            conn.post("in vain")


def test_a_write_that_cannot_send_what_is_queued_raises_the_error() -> None:
    with connected() as (conn, peer):
        with conn._output.held():  # the thread of the outbox waits
            conn.post("in vain")
            reset(peer)
            with pytest.raises(ConnectionError):
                while True:
                    conn._output.send(b"x")
            conn._output.link.broken = None
            conn._output.link.output = type(conn._output.link.output).OPEN
            with pytest.raises(ConnectionError):
                conn._output.send_gathered()
        wait_until(lambda: is_idle(conn))


def test_without_a_thread_for_the_rest_the_connection_ends(monkeypatch: Patch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    with connected() as (conn, _):
        fill(conn.socket)
        monkeypatch.setattr(_thread, "start_new_thread", fail)
        with pytest.raises(OSError, match="no thread can be started .*: can't start new thread"):
            conn.post("in vain")
        with pytest.raises(OSError, match="no thread can be started"):
            conn.read()
        assert is_idle(conn)


# --- Signals and forks ---


def test_a_signal_handler_may_post_amid_a_write_of_the_same_thread() -> None:
    with full() as (conn, receive):
        previous = signal.signal(signal.SIGUSR1, lambda *_: conn.post("posted"))
        try:
            main = threading.get_ident()

            def interrupt() -> None:
                wait_until(lambda: conn._link.writing)
                signal.pthread_kill(main, signal.SIGUSR1)
                wait_until(lambda: conn.outbox.queued)
                assert receive(1_000_006)[-6:] == b"posted"

            with in_thread(interrupt):
                conn.write(b"w" * 1_000_000)
        finally:
            signal.signal(signal.SIGUSR1, previous)


def test_a_signal_handler_may_post_amid_a_post_of_the_same_thread() -> None:
    with connected() as (conn, peer):
        with conn.outbox._lock:  # as the interrupted post holds it
            conn.post("by the handler")
            with pytest.raises(RuntimeError, match="cannot write amid a post"):
                conn.outbox._is_attended()
        assert receive_exactly(peer, 14) == b"by the handler"
        with conn.outbox._lock:
            conn.post("in vain")
            conn.end()
        wait_until(lambda: is_idle(conn))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_child_sends_nothing_of_what_its_parent_has_queued() -> None:
    with full() as (conn, receive), connected() as (other, other_peer):
        conn.post("of the parent ")
        other.post("a")
        wait_until(lambda: conn._link.writing)
        child = os.fork()
        if not child:
            status = 1
            try:
                if not conn.outbox.queued:
                    conn.post("of the child")
                    conn.flush()
                    other.post("b")
                    status = 0
            finally:
                os._exit(status)
        assert sorted([receive(26)[:0], receive_exactly(other_peer, 2)]) == [b"", b"ab"]
        assert os.waitpid(child, 0)[1] == 0
