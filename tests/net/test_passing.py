"""A connection goes on in another process, or with another library."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from secure import contexts
from support import (
    client,
    in_thread,
    in_threads,
    receive_all,
    receive_exactly,
    send_and_end,
    serving,
    tcp_pair,
)

import netkit
from netkit.net import passing, sockopts

Patch = pytest.MonkeyPatch

linux = pytest.mark.skipif(sys.platform != "linux", reason="another kernel counts otherwise")


Channel = tuple[socket.socket, socket.socket]


@pytest.fixture
def channel() -> Iterator[Channel]:
    here, there = socket.socketpair()
    with here, there:
        yield here, there


def test_another_process_reads_the_unread_bytes_and_goes_on(channel: Channel) -> None:
    here, there = channel

    def handler(conn: netkit.Connection) -> None:
        assert next(conn.lines()) == "first"
        netkit.send_connection(here, conn)

    with serving(handler, read_timeout=5) as server:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python's own, from 3.12 on
            pid = os.fork()
        if not pid:
            try:
                received = netkit.receive_connection(there)
                assert received
                for line in received.lines():
                    received.write(line.upper() + "\n")
                received.close()
            finally:
                os._exit(0)
        with client(server) as sock:
            sock.sendall(b"first\nsecond\nthi")
            assert receive_exactly(sock, 7) == b"SECOND\n"
            send_and_end(sock, b"rd\n")
            assert receive_all(sock) == b"THIRD\n"
        assert os.waitpid(pid, 0)[1] == 0
        server.wait_for_connections(0)
    here.close()
    assert netkit.receive_connection(there) is None


def test_many_unread_bytes_are_passed_too(channel: Channel) -> None:
    here, there = channel
    with tcp_pair() as (ours, peer):
        conn = netkit.Connection(ours)
        conn.unread(bytes(500_000))
        received: list[Any] = []
        with in_thread(lambda: received.append(netkit.receive_connection(there, max_line=7))):
            netkit.send_connection(here, conn)
        with received[0] as moved:
            assert moved.max_line == 7
            assert moved.readexactly(500_000) == bytes(500_000)
            peer.close()
            assert moved.read() == b""


@contextlib.contextmanager
def holding(unread: bytes = b"") -> Iterator[tuple[netkit.Connection, socket.socket]]:
    """A connection with these unread bytes, and its peer."""
    ours, peer = socket.socketpair()
    with peer:
        conn = netkit.Connection(ours)
        conn.unread(unread)
        yield conn, peer


def moved(here: socket.socket, there: socket.socket, unread: bytes = b"") -> netkit.Connection:
    """Send a connection through the channel; its peer sends a byte and leaves."""
    with holding(unread) as (conn, peer):
        netkit.send_connection(here, conn)
        received = netkit.receive_connection(there)
        assert received
        peer.sendall(b"!")
    return received


def works(here: socket.socket, there: socket.socket) -> bool:
    with moved(here, there) as first, moved(here, there, b"hello") as second:
        return (first.read(), second.read()) == (b"!", b"hello!")


def test_any_number_of_threads_send_and_receive_through_one_channel(channel: Channel) -> None:
    here, there = channel
    here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # as small as there is
    senders, rounds, size = 8, 20, 50_000
    got: list[bytes] = []

    def send(number: int) -> None:
        for each in range(rounds):
            with holding(b"%d %d " % (number, each) + b"%d" % number * size) as (conn, peer):
                netkit.send_connection(here, conn)
                peer.sendall(b" end")

    def receive() -> None:
        while conn := netkit.receive_connection(there):
            with conn:
                got.append(conn.read())

    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(in_thread(receive))
        try:
            in_threads(send, [(number,) for number in range(senders)])
        finally:
            here.close()
    assert sorted(got) == sorted(
        b"%d %d " % (number, each) + b"%d" % number * size + b" end"
        for number in range(senders)
        for each in range(rounds)
    )


@contextlib.contextmanager
def no_descriptor_left(but: int = 0) -> Iterator[None]:
    """This process may open no further descriptor, or so many."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack:
        lowest = os.open(os.devnull, os.O_RDONLY)  # below it, all are taken
        os.close(lowest)
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + but, limits[1]))
        yield


@linux
@pytest.mark.parametrize("left", [0, 1])
def test_a_receiver_without_descriptors_raises_and_receives_the_next_connection(
    channel: Channel, left: int
) -> None:
    here, there = channel
    with holding(b"unread") as (conn, peer):
        netkit.send_connection(here, conn)
        with no_descriptor_left(but=left), pytest.raises(OSError, match="no descriptor") as caught:
            netkit.receive_connection(there)
        assert caught.value.errno == errno.EMFILE
        assert peer.recv(1) == b""
    assert works(here, there)


@contextlib.contextmanager
def descriptors() -> Iterator[dict[str, int]]:
    """A connection, and what a descriptor may be instead."""
    with contextlib.ExitStack() as stack:
        ours, _ = stack.enter_context(tcp_pair())
        read, write = os.pipe()
        stack.callback(os.close, read)
        stack.callback(os.close, write)
        huge = stack.enter_context(tempfile.TemporaryFile())
        huge.truncate(2**40)
        datagrams = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        yield {
            "connection": ours.fileno(),
            "file": stack.enter_context(tempfile.TemporaryFile()).fileno(),
            "huge file": huge.fileno(),
            "pipe": read,
            "listener": stack.enter_context(socket.create_server(("127.0.0.1", 0))).fileno(),
            "datagrams": datagrams.fileno(),
        }


@pytest.mark.parametrize(
    ("kinds", "number", "why"),
    [
        ([], errno.EPROTO, "a byte without a descriptor came"),
        (["file"], errno.EPROTO, "its descriptor is no socket"),
        (["datagrams"], errno.EPROTO, "its socket is no stream"),
        (["listener"], errno.ENOTCONN, "not connected"),
        (["connection"] * 3, errno.EPROTO, "3 descriptors came"),
        (["connection"] * 200, errno.EPROTO, "descriptors came"),
        (["connection", "pipe"], errno.EPROTO, "its unread bytes are in no regular file"),
        (["connection", "huge file"], errno.EPROTO, "it has more than 33554432 unread bytes"),
    ],
)
def test_a_message_that_is_no_connection_is_refused_and_the_next_one_is_received(
    channel: Channel, kinds: list[str], number: int, why: str
) -> None:
    here, there = channel
    with descriptors() as found:
        send(here, b"\0", [found[kind] for kind in kinds])
    with pytest.raises(OSError, match=f"{why}$") as caught:
        netkit.receive_connection(there)
    assert caught.value.errno == number
    assert (number == errno.EPROTO) == ("the message is no connection" in str(caught.value))
    assert works(here, there)


def send(channel: socket.socket, data: bytes, descriptors: list[int]) -> None:
    if descriptors:
        socket.send_fds(channel, [data], descriptors)
    else:
        channel.sendall(data)


def test_the_unread_bytes_that_are_sent_are_bounded(channel: Channel, monkeypatch: Patch) -> None:
    here, there = channel
    monkeypatch.setattr(passing, "MAX_UNREAD", 9)
    with holding(b"0123456789") as (conn, peer):
        with pytest.raises(netkit.MessageTooLongError) as caught:
            netkit.send_connection(here, conn)
        assert (caught.value.limit, caught.value.size) == (9, 10)
        assert peer.recv(1) == b""
    assert works(here, there)


def test_a_sender_waits_while_too_many_descriptors_are_on_their_way(
    channel: Channel, monkeypatch: Patch
) -> None:
    here, there = channel
    send_fds, tries = socket.send_fds, []

    def full(*arguments: Any) -> int:
        tries.append(arguments)
        if len(tries) < 3:
            raise OSError(errno.ETOOMANYREFS, "Too many references: cannot splice")
        return send_fds(*arguments)

    monkeypatch.setattr(passing.socket, "send_fds", full)
    assert works(here, there)
    assert len(tries) == 4  # two of them failed
    tries.clear()
    here.settimeout(0)
    with holding() as (conn, _), pytest.raises(OSError, match="Too many references"):
        netkit.send_connection(here, conn)
    assert len(tries) == 1


def test_unread_bytes_that_are_cut_off_while_they_are_read_are_an_error(
    channel: Channel, monkeypatch: Patch
) -> None:
    here, there = channel
    pread = os.pread
    monkeypatch.setattr(passing.os, "pread", lambda fd, size, at: b"" if at else pread(fd, 2, at))
    with holding(b"unread") as (conn, _):
        netkit.send_connection(here, conn)
        with pytest.raises(OSError, match="its unread bytes have been cut off"):
            netkit.receive_connection(there)


@pytest.mark.parametrize(
    ("family", "kind"),
    [(socket.AF_INET, socket.SOCK_STREAM), (socket.AF_UNIX, socket.SOCK_DGRAM)],
)
def test_a_channel_of_another_kind_is_refused_before_anything_is_lost(
    family: int, kind: int
) -> None:
    with socket.socket(family, kind) as channel, tcp_pair() as (mine, peer):
        conn = netkit.Connection(mine)
        with pytest.raises(ValueError, match="^the channel must be a Unix stream socket$"):
            netkit.send_connection(channel, conn)
        with pytest.raises(ValueError, match="^the channel must be a Unix stream socket$"):
            netkit.receive_connection(channel)
        conn.write("still here")
        assert receive_exactly(peer, 10) == b"still here"


@pytest.mark.parametrize("close_at_once", [True, False])
def test_no_descriptor_that_is_received_goes_to_programs_that_are_started(
    channel: Channel, monkeypatch: Patch, close_at_once: bool
) -> None:
    here, there = channel
    if not close_at_once:
        monkeypatch.delattr(passing.socket, "MSG_CMSG_CLOEXEC", raising=False)
    with moved(here, there, b"hello") as conn:
        assert not os.get_inheritable(conn.fileno())


def test_a_system_without_files_in_memory_takes_a_temporary_one(
    channel: Channel, monkeypatch: Patch
) -> None:
    monkeypatch.delattr(passing.os, "memfd_create", raising=False)
    assert works(*channel)


def test_a_connection_that_did_not_block_blocks_once_it_is_received(channel: Channel) -> None:
    here, there = channel
    ours, peer = socket.socketpair()
    with ours, peer:
        ours.setblocking(False)
        sockopts.limit_wait(ours, socket.SO_RCVTIMEO, 0.001)
        socket.send_fds(here, [b"\0"], [ours.fileno()])
        received = netkit.receive_connection(there)
        assert received
        with received:
            assert received.socket.getblocking()
            assert os.get_blocking(received.fileno())
            timeout = received.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16)
            assert not any(timeout)


def test_credentials_beside_the_descriptor_do_no_harm(channel: Channel) -> None:
    here, there = channel
    if not hasattr(socket, "SO_PASSCRED"):
        pytest.skip("credentials are sent in another way here")
    there.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    assert works(here, there)


KINDS = ["connection", "file", "listener", "pipe", "datagrams"]
messages = st.tuples(st.integers(1, 3), st.lists(st.sampled_from(KINDS), max_size=70))


@pytest.mark.fuzz
@given(st.lists(messages, max_size=4))
def test_any_message_is_a_connection_or_an_error_and_nothing_stays_open(
    sent: list[tuple[int, list[str]]],
) -> None:
    here, there = socket.socketpair()
    with here, there, descriptors() as found:
        before = os.listdir("/dev/fd")
        for size, kinds in sent:
            send(here, bytes(size), [found[kind] for kind in kinds])
        for size, kinds in sent:
            for position in range(size):
                good = not position and kinds in (["connection"], ["connection", "file"])
                with contextlib.nullcontext() if good else pytest.raises(OSError, match=" "):
                    conn = netkit.receive_connection(there)
                    assert conn
                    conn.destroy()
        assert works(here, there)
        assert os.listdir("/dev/fd") == before


def test_a_detached_socket_is_as_good_as_new() -> None:
    with tcp_pair() as (ours, peer):
        conn = netkit.Connection(ours)
        conn.set_timeout(1)
        peer.sendall(b"a line\nmore\neven more")
        assert next(conn.lines()) == "a line"
        with conn.corked():
            conn.write("gathered")
            sock, unread = conn.detach()
        with sock:
            if sys.platform == "linux":
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0
            assert unread == b"more\neven more"
            assert receive_exactly(peer, 8) == b"gathered"
            assert (conn.closed, sock.getblocking()) == (True, True)
            conn.close()
            peer.sendall(b"!")
            assert sock.recv(1) == b"!"
        with pytest.raises(netkit.ConnectionClosedError):
            conn.detach()


def test_a_connection_with_a_reader_or_tls_is_not_detached() -> None:
    raised: list[str] = []

    def handler(conn: netkit.Connection) -> None:
        try:
            conn.detach()
        except ValueError as error:
            raised.append(str(error))

    with serving(handler, tls=contexts()[0]) as server:
        with netkit.connect(server.server_address[1], "127.0.0.1") as conn:
            conn.start_tls(contexts()[1], server_hostname="localhost")
            assert conn.read() == b""
    assert raised == ["only a connection without TLS that nobody reads is detached"]


def test_a_detached_connection_no_longer_belongs_to_its_server() -> None:
    server = netkit.create_server().listen(0, "127.0.0.1")
    with client(server) as sock:
        for conn in server:
            detached, _ = conn.detach()
            break
        assert server.connection_count == 0
        server.close()
        with detached:
            detached.sendall(b"still here")
        assert receive_all(sock) == b"still here"
