"""TLS as a stream: any pieces, several threads, half-close, truncation, and other programs' TLS."""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import random
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from secure import (
    VERSIONS,
    Joined,
    Starved,
    contexts,
    each_version,
    everything,
    files,
    over_tcp,
    received,
)
from support import PATIENCE, examples, in_thread, in_threads, reset, tcp_pair, tool, wait_until

from netkit.core.errors import (
    ConnectionClosedError,
    TlsError,
    TruncatedError,
    WriteAfterEndError,
)
from netkit.tls import stream as tls_stream
from netkit.tls.context import TlsFiles, client_context, server_context
from netkit.tls.engine import RECEIVED
from netkit.tls.stream import TlsStream

RANDOM = random.Random(7)
MUCH = RANDOM.randbytes(11_000_000)
TRUNCATED = "the peer ended the connection without TLS's close_notify: the data may be incomplete"


# --- Bytes in, bytes out ---


@each_version
def test_both_ends_write_much_and_read_it_at_the_same_time(version: ssl.TLSVersion) -> None:
    def write(stream: TlsStream) -> None:
        assert stream.send(MUCH) == len(MUCH)
        stream.end()

    results: dict[TlsStream, bytes] = {}

    def read(stream: TlsStream) -> None:
        results[stream] = everything(stream)

    with over_tcp(version) as (server, client, _, _):
        assert server.version == version.name.replace("_", ".")
        with in_thread(write, server), in_thread(write, client), in_thread(read, server):
            read(client)
    assert results[server] == MUCH
    assert results[client] == MUCH


def test_what_one_call_sends_stays_together() -> None:
    pieces = [bytes([number]) * 300_000 for number in range(6)]
    with over_tcp() as (server, client, _, _):
        with in_thread(in_threads, client.send, [(piece,) for piece in pieces]):
            data = b"".join(iter_exactly(server, 6 * 300_000))
    assert sorted(data[at : at + 300_000] for at in range(0, len(data), 300_000)) == pieces


def iter_exactly(stream: TlsStream, size: int) -> Iterator[bytes]:
    while size:
        data = stream.recv(min(size, 65536))
        assert data
        size -= len(data)
        yield data


@pytest.mark.parametrize(
    "data",
    [b"bytes", bytearray(b"bytearray"), memoryview(b"view"), memoryview(b"12345678").cast("I")],
)
def test_any_bytes_can_be_sent(data: Any) -> None:
    joined = Joined()
    assert joined.client.send(data) == len(bytes(data))
    assert received(joined.server) == bytes(data)
    before = joined.up.sent
    assert joined.client.send(b"") == 0
    assert joined.up.sent == before


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_large_write_is_sent_in_pieces_and_arrives_whole(kind: Any) -> None:
    joined = Joined()
    data = MUCH[: 2 * tls_stream.PIECE + 5]
    calls: list[int] = []
    send = joined.client._send
    joined.client._send = lambda data: (calls.append(len(data)), send(data))[1]  # type: ignore
    assert joined.client.send(kind(data)) == len(data)
    assert len(calls) == 3
    assert max(calls) < tls_stream.PIECE * 1.02
    assert received(joined.server) == data


def test_data_can_be_sent_as_far_as_there_is_room_and_the_rest_is_owed() -> None:
    joined = Joined()
    client, send = joined.client, joined.client._send
    assert client.send_now(b"whole", send) == 5
    assert not client.owes()
    taken: list[int] = []

    def send_some(data: bytes) -> int:
        taken.append(send(data[:10]) if len(taken) < 2 else 0)
        return taken[-1]

    data = MUCH[: tls_stream.PIECE + 5]
    assert client.send_now(data, send_some) == tls_stream.PIECE
    assert taken == [10, 10, 0]
    assert client.owes()
    assert client.send_now(b"too early", send) == 0
    assert client.send(b"") == 0
    assert not client.owes()
    client.send(data[tls_stream.PIECE :])
    assert received(joined.server) == b"whole" + data


def test_nothing_is_sent_without_waiting_while_another_thread_sends_or_after_the_end() -> None:
    joined = Joined()
    with joined.client._sending:
        assert joined.client.send_now(b"now", joined.client._send) == 0
    joined.client.end()
    assert joined.client.send_now(b"late", joined.client._send) == 0
    assert received(joined.server) == b""


def test_an_error_of_sending_without_waiting_leaves_what_was_not_sent() -> None:
    joined = Joined()

    def fail(data: bytes) -> int:
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        joined.client.send_now(b"kept", fail)
    joined.client.send(b"")
    assert received(joined.server) == b"kept"


def test_a_stream_whose_connection_was_closed_raises_an_error() -> None:
    joined = Joined()
    joined.server.release()
    with pytest.raises(ConnectionClosedError):
        joined.server.send(b"late")
    with pytest.raises(ConnectionClosedError):
        joined.server.recv(1)


def test_a_read_takes_no_more_than_it_is_asked_for() -> None:
    joined = Joined()
    joined.client.send(b"abcdef")
    joined.client.send(b"ghi")
    assert [joined.server.recv(4) for _ in range(3)] == [b"abcd", b"efgh", b"i"]
    with pytest.raises(ValueError, match=r"^size must be at least 1 byte, not 0$"):
        joined.server.recv(0)


def test_one_read_takes_many_records() -> None:
    joined = Joined()
    for _ in range(100):
        joined.client.send(b"0123456789")
    joined.server._engine.chunk = 65536
    assert joined.server.recv(65536) == b"0123456789" * 100


def test_a_read_receives_more_at_once_when_more_arrives() -> None:
    joined = Joined()
    asked: list[int] = []
    receive = joined.server._receive
    joined.server._receive = lambda size: (asked.append(size), receive(size))[1]  # type: ignore
    joined.client.send(MUCH[:1_000_000])
    received(joined.server)
    assert asked[0] < 512
    assert max(asked) == RECEIVED
    asked.clear()
    for _ in range(20):
        joined.client.send(b"little")
        received(joined.server)
    assert asked[-1] < 512


@pytest.mark.fuzz
@examples(60)
@given(
    version=st.sampled_from(VERSIONS),
    writes=st.lists(st.binary(max_size=40_000), max_size=5),
    cuts=st.lists(st.integers(1, 20_000), min_size=1, max_size=20),
    sizes=st.lists(st.integers(1, 70_000), min_size=1, max_size=5),
)
@example(VERSIONS[0], [b"hello"], [1], [9])
@example(VERSIONS[1], [b"hello"], [1], [9])
def test_any_pieces_make_a_handshake_and_give_the_same_plaintext(
    version: ssl.TLSVersion, writes: list[bytes], cuts: list[int], sizes: list[int]
) -> None:
    joined = Joined(version, shake=False)
    pieces, reads = itertools.cycle(cuts), itertools.cycle(sizes)
    for stream, pipe in ((joined.server, joined.up), (joined.client, joined.down)):
        stream._receive = lambda size, pipe=pipe: pipe.receive(min(size, next(pieces)))
    joined.shake_hands()
    for data in writes:
        joined.client.send(data)
    joined.client.end()
    assert b"".join(iter(lambda: joined.server.recv(next(reads)), b"")) == b"".join(writes)


# --- What the network raises ---


@each_version
def test_a_failed_receive_passes_through_and_the_next_one_goes_on(version: ssl.TLSVersion) -> None:
    joined = Joined(version, shake=False)
    turns = 0

    def receive(size: int) -> bytes:
        nonlocal turns
        turns += 1
        if turns % 2:
            raise TimeoutError("not yet")
        return joined.up.receive(min(size, 50))

    joined.server._receive = receive
    for _ in range(200):
        for stream in (joined.client, joined.server):
            with contextlib.suppress(Starved, TimeoutError):
                stream.handshake()
    assert joined.server.version
    joined.client.send(b"x" * 1000)
    data = b""
    while len(data) < 1000:
        with contextlib.suppress(TimeoutError):
            data += joined.server.recv(10_000)
    assert data == b"x" * 1000
    with pytest.raises(TimeoutError, match=r"^not yet$"):
        while True:
            joined.server.recv(1)


@each_version
def test_what_a_failed_send_did_not_take_is_sent_first_by_the_next(version: ssl.TLSVersion) -> None:
    joined = Joined(version, shake=False)
    turns = 0

    def send(data: bytes) -> int:
        nonlocal turns
        turns += 1
        if turns % 3 == 0:
            raise TimeoutError("the peer takes nothing")
        joined.up.send(data[:333])
        return min(333, len(data))

    joined.client._send = send
    for _ in range(30):
        for stream in (joined.client, joined.server):
            with contextlib.suppress(Starved, TimeoutError):
                stream.handshake()
    turns = 0
    with pytest.raises(TimeoutError, match="takes nothing"):
        joined.client.send(b"a" * 1000)
    while True:
        try:
            joined.client.end()
        except TimeoutError:
            continue
        break
    assert everything(joined.server) == b"a" * 1000


def test_a_reset_is_a_reset() -> None:
    with over_tcp() as (server, _, _, peer):
        reset(peer)
        with pytest.raises(ConnectionResetError):
            server.recv(1)


# --- The end ---


@each_version
def test_after_an_end_of_either_side_the_other_one_goes_on(version: ssl.TLSVersion) -> None:
    joined = Joined(version)
    joined.client.send(b"before, ")
    joined.server.send(b"asked")
    joined.client.end()
    assert everything(joined.server) == b"before, "
    joined.server.send(b" late")
    joined.server.end()
    assert everything(joined.client) == b"asked late"


@each_version
def test_unread_input_from_before_our_end_is_not_lost(version: ssl.TLSVersion) -> None:
    joined = Joined(version)
    joined.client.send(b"one ")
    assert joined.server.recv(1) == b"o"
    joined.client.send(b"two ")
    joined.client.send(b"three")
    assert joined.server.pending()
    joined.server._engine.incoming.write(joined.up.receive(10_000))
    joined.server._engine.needs_input = False
    joined.server.end()
    joined.client.send(b" four")
    joined.client.end()
    assert everything(joined.server) == b"ne two three four"
    assert everything(joined.client) == b""


@each_version
@pytest.mark.parametrize("cut", [1, 5, 20])
def test_our_end_may_come_amid_a_record_of_the_peer(version: ssl.TLSVersion, cut: int) -> None:
    joined = Joined(version)
    joined.client.send(b"hello")
    rest = bytes(joined.up.data[cut:])
    del joined.up.data[cut:]
    assert received(joined.server) == b""
    joined.server.end()
    joined.up.send(rest)
    joined.client.end()
    assert everything(joined.server) == b"hello"
    assert everything(joined.client) == b""


def test_the_end_is_sent_once() -> None:
    joined = Joined()
    joined.client.end()
    sent = joined.up.sent
    joined.client.end()
    assert joined.up.sent == sent
    with pytest.raises(WriteAfterEndError):
        joined.client.send(b"more")
    assert joined.up.sent == sent
    assert [joined.server.recv(10) for _ in range(2)] == [b"", b""]


def test_an_end_that_the_network_refuses_is_an_error_and_can_be_repeated() -> None:
    joined = Joined()
    send = joined.client._send

    def refuse(_: bytes) -> None:
        raise BrokenPipeError

    joined.client._send = refuse
    with pytest.raises(BrokenPipeError):
        joined.client.end()
    joined.client._send = send
    joined.client.end()
    assert everything(joined.server) == b""


# --- Errors of other connections of the thread ---


class Leaking(ssl.SSLObject):
    """As if the queue of OpenSSL had the error of another connection: a lack of input raises it."""

    has_leaked = False

    def read(self, *arguments: Any) -> Any:
        try:
            return super().read(*arguments)
        except ssl.SSLWantReadError:
            if not self.has_leaked:
                raise
            Leaking.has_leaked = False
            raise BrokenPipeError(errno.EPIPE, "Broken pipe") from None


def receive_in_parts(joined: Joined, whole: list[bytes]) -> None:
    """The server receives `whole` and half a record, which is neither an end nor an error."""
    for piece in whole:
        joined.client.send(piece)
    before = len(joined.up.data)
    joined.client.send(b"parts")
    rest = bytes(joined.up.data[before + 9 :])
    del joined.up.data[before + 9 :]
    assert received(joined.server) == b"".join(whole)
    joined.up.send(rest)
    assert received(joined.server) == b"parts"


@pytest.mark.parametrize("whole", [[], [b"one"], [b"one", b"two"]], ids=len)
def test_a_read_that_raises_the_error_of_another_connection_is_repeated(
    monkeypatch: pytest.MonkeyPatch, whole: list[bytes]
) -> None:
    server, client = contexts()
    server.sslobject_class = Leaking
    joined = Joined(server, client)
    monkeypatch.setattr(Leaking, "has_leaked", True)
    receive_in_parts(joined, whole)
    assert not Leaking.has_leaked


@pytest.mark.parametrize("whole", [[], [b"one"], [b"one", b"two"]], ids=len)
def test_a_connection_of_the_program_that_fails_in_the_same_thread_does_no_harm(
    whole: list[bytes],
) -> None:
    joined = Joined()
    server, client = contexts()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with in_thread(lambda: server.wrap_socket(theirs, server_side=True).close()):
            failing = client.wrap_socket(ours, server_hostname="localhost")
        with failing, pytest.raises((BrokenPipeError, ssl.SSLEOFError)):
            failing.sendall(b"too late")
        receive_in_parts(joined, whole)


@each_version
def test_the_end_is_still_sent_to_a_peer_that_left_without_one(version: ssl.TLSVersion) -> None:
    joined = Joined(version)
    joined.up.ended = True
    with pytest.raises(TruncatedError):
        joined.server.recv(1)
    joined.server.end()
    assert everything(joined.client) == b""


@each_version
def test_a_truncation_is_detected_wherever_it_is(version: ssl.TLSVersion) -> None:
    size, cut = 1, 0
    while cut < size:
        joined = Joined(version)
        joined.up.sent = b""
        ends = []
        for data in (b"a", b"bcd"):
            joined.client.send(data)
            ends.append(len(joined.up.sent))
        joined.client.end()
        size = len(joined.up.sent)
        del joined.up.data[cut:]
        joined.up.ended = True
        whole = b"abcd"[: (cut >= ends[0]) + 3 * (cut >= ends[1])]
        assert b"".join(joined.server.recv(1) for _ in whole) == whole
        for _ in range(2):
            with pytest.raises(TruncatedError) as error:
                joined.server.recv(100)
            assert str(error.value) == TRUNCATED
            assert isinstance(error.value, (EOFError, ConnectionError))
        cut += 1


@each_version
def test_a_damaged_record_is_an_error_for_both_ends(version: ssl.TLSVersion) -> None:
    for position in range(5, 29, 3):
        joined = Joined(version)
        joined.client.send(b"whole")
        at = len(joined.up.data)
        joined.client.send(b"damaged")
        joined.up.data[at + position] ^= 1
        assert received_until_error(joined.server) == (
            b"whole",
            "the client sent a damaged or forged record",
        )
        with pytest.raises(TlsError):  # again
            joined.server.recv(1)
        with pytest.raises(TlsError):
            joined.server.send(b"x")
        joined.server.end()
        with pytest.raises(TlsError) as error:
            joined.client.recv(1)
        assert str(error.value) == "the server sent an alert: bad record mac"


def received_until_error(stream: TlsStream) -> tuple[bytes, str]:
    data = b""
    try:
        while part := stream.recv(100):
            data += part
    except TlsError as error:
        return data, str(error)
    return data, ""


@each_version
def test_a_damaged_record_that_waits_to_be_read_leaves_nothing_to_end(
    version: ssl.TLSVersion,
) -> None:
    joined = Joined(version)
    joined.client.send(b"whole")
    at = len(joined.up.data)
    joined.client.send(b"damaged")
    joined.up.data[at + 20] ^= 1
    assert joined.server.recv(1) == b"w"
    joined.server.end()
    with pytest.raises(TlsError, match="bad record mac"):
        joined.client.recv(1)
    assert received_until_error(joined.server)[0] == b"hole"


@each_version
def test_garbage_between_records_is_an_error_and_no_hang(version: ssl.TLSVersion) -> None:
    joined = Joined(version)
    joined.client.send(b"whole")
    joined.up.send(b"GET / HTTP/1.1\r\n\r\n" + bytes(70_000))
    data, text = received_until_error(joined.server)
    assert data == b"whole"
    assert text.startswith(
        ("the client violated TLS: ", "the client sent a damaged or forged record")
    )
    assert "_ssl.c" not in text


# --- Asked from outside ---


def test_pending_says_whether_a_read_would_return_at_once() -> None:
    joined = Joined()
    assert not joined.server.pending()
    joined.client.send(b"abc")
    assert not joined.server.pending()  # it is in the network
    joined.server.recv(1)
    assert joined.server.pending()
    joined.server.recv(2)
    assert not joined.server.pending()
    assert not joined.server.has_begun()
    joined.client.end()
    joined.server.recv(1)
    assert joined.server.pending()


@pytest.mark.parametrize("cut", [1, 4, 5, 6, 20])
def test_a_part_of_a_record_is_not_pending_but_known(cut: int) -> None:
    joined = Joined()
    joined.client.send(b"abc")
    rest = bytes(joined.up.data[cut:])
    del joined.up.data[cut:]
    assert received(joined.server) == b""
    assert joined.server.has_begun()
    assert not joined.server.pending()
    joined.up.send(rest[:1])
    assert received(joined.server) == b""
    assert joined.server.has_begun()
    joined.up.send(rest[1:])
    joined.client.send(b"d")
    assert joined.server.recv(1) == b"a"
    assert joined.server.pending()
    assert not joined.server.has_begun()
    assert received(joined.server) == b"bcd"
    assert not joined.server.has_begun()


def test_an_end_and_an_error_are_pending() -> None:
    joined = Joined()
    joined.up.ended = True
    with pytest.raises(TruncatedError):
        joined.server.recv(1)
    assert joined.server.pending()
    joined = Joined()
    joined.client.send(b"abc")
    joined.up.data[10] ^= 1
    with pytest.raises(TlsError):
        joined.server.recv(1)
    assert joined.server.pending()
    assert not joined.server.has_begun()


def test_nothing_is_pending_before_the_handshake_is_over() -> None:
    joined = Joined(shake=False)
    with pytest.raises(Starved):
        joined.client.handshake()
    del joined.up.data[20:]
    with pytest.raises(Starved):
        joined.server.handshake()
    assert not joined.server.pending()
    assert joined.server.has_begun()
    assert joined.server.version is None
    assert joined.server.cipher is None
    assert joined.server.peer_certificate is None
    assert joined.server.peer_certificate_der is None
    assert joined.server.alpn_protocol is None


@each_version
def test_what_was_agreed_on_is_known(version: ssl.TLSVersion) -> None:
    server = server_context(TlsFiles(files().server, client_ca=files().ca, alpn=("b", "a")))
    client = client_context(files().ca, cert=files().client, alpn=("a", "b"))
    client.maximum_version = version
    joined = Joined(server, client)
    for stream in (joined.server, joined.client):
        assert stream.version == version.name.replace("_", ".")
        assert stream.cipher
        assert "AES" in stream.cipher or "CHACHA" in stream.cipher
        assert stream.alpn_protocol == "b"  # the server's choice
        assert stream.peer_certificate_der
        assert stream.peer_certificate
    assert joined.server.server_name == "localhost"
    assert joined.client.server_name is None
    assert joined.server.peer_certificate["subjectAltName"] == (("email", "me@example.org"),)


def test_a_name_that_is_to_be_checked_must_be_given() -> None:
    with pytest.raises(ValueError, match="^a context with check_hostname needs a server_hostname$"):
        Joined(hostname=None)
    with pytest.raises(ValueError, match="idna"):
        Joined(hostname=".example.org")


def test_nothing_is_read_or_written_before_the_handshake() -> None:
    joined = Joined(shake=False)
    with pytest.raises(ValueError, match="^the handshake is not over$"):
        joined.client.recv(1)
    with pytest.raises(ValueError, match="^the handshake is not over$"):
        joined.client.send(b"x")
    joined.client.end()
    assert joined.up.sent == b""


def test_a_certificate_that_is_not_verified_is_shown_only_in_der() -> None:
    joined = Joined(contexts()[0], client_context(verify=False), None)
    assert joined.client.peer_certificate is None
    der = joined.client.peer_certificate_der
    assert der == ssl.PEM_cert_to_DER_cert(Path(files().cert).read_text().partition("\n\n")[0])
    assert joined.server.peer_certificate is None
    assert joined.server.peer_certificate_der is None
    assert joined.server.server_name is None


def test_a_contexts_own_callback_for_names_is_called() -> None:
    server = server_context(TlsFiles(files().server))
    seen: list[Any] = []
    server.sni_callback = lambda session, name, context: seen.append((name, context))
    for _ in range(2):
        assert Joined(server).server.server_name == "localhost"
    assert seen == [("localhost", server)] * 2


# --- Answers that reading makes ---


def asked_who_it_is() -> Joined:
    """The server has asked the client for a certificate after the handshake: reading answers."""
    server = server_context(TlsFiles(files().server, client_ca=files().ca))
    client = client_context(files().ca, cert=files().client)
    server.post_handshake_auth = client.post_handshake_auth = True
    joined = Joined(server, client)
    joined.server._engine.ssl.verify_client_post_handshake()
    joined.server.send(b"who are you?")
    joined.up.sent = b""
    return joined


def test_an_answer_is_sent_before_the_reader_waits() -> None:
    joined = asked_who_it_is()
    assert joined.client.recv(100) == b"who are you?"
    assert not joined.up.sent  # it may be that a write takes it along
    assert received(joined.client) == b""
    assert joined.up.sent
    assert received(joined.server) == b""
    assert joined.server.peer_certificate


def test_an_answer_goes_with_the_next_write() -> None:
    joined = asked_who_it_is()
    joined.client.recv(100)
    joined.client.send(b"me")
    assert received(joined.server) == b"me"
    assert joined.server.peer_certificate


def test_a_reader_leaves_its_answer_to_a_writer_whose_peer_is_slow() -> None:
    joined = asked_who_it_is()
    waiting, go_on = threading.Event(), threading.Event()

    def send(data: bytes) -> int:
        waiting.set()
        assert go_on.wait(PATIENCE)
        return joined.up.send(data)

    joined.client._send = send
    with in_thread(joined.client.send, b"much"):
        assert waiting.wait(PATIENCE)
        assert not joined.client.is_interrupted()  # it is another thread that sends
        assert received(joined.client) == b"who are you?"
        joined.server.send(b"well?")
        assert received(joined.client) == b"well?"
        assert not joined.up.sent
        go_on.set()
    assert received(joined.server) == b"much"
    assert joined.server.peer_certificate


def test_a_reader_waits_for_the_writer_if_too_many_answers_are_due(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tls_stream, "MOST_ANSWERS", 0)
    joined = asked_who_it_is()
    ended = threading.Event()

    def read() -> None:
        received(joined.client)
        ended.set()

    with contextlib.ExitStack() as held:
        held.enter_context(joined.client._sending)  # as a writer holds it
        with in_thread(read):
            wait_until(lambda: joined.client._engine.answered)
            assert not ended.wait(0.05)
            held.close()
            assert ended.wait(PATIENCE)
    assert joined.up.sent


def test_an_answer_that_cannot_be_sent_fails_the_next_write_and_not_the_read() -> None:
    joined = asked_who_it_is()
    send = joined.client._send

    def refuse(_: bytes) -> None:
        raise BlockingIOError

    joined.client._send = refuse
    assert received(joined.client) == b"who are you?"
    joined.server.send(b"well?")
    assert received(joined.client) == b"well?"
    with pytest.raises(BlockingIOError):
        joined.client.send(b"me")
    joined.client._send = send
    joined.client.send(b"!")
    assert received(joined.server) == b"me!"
    assert joined.server.peer_certificate


def test_no_answer_follows_our_end() -> None:
    joined = asked_who_it_is()
    joined.client.end()
    sent = joined.up.sent
    assert received(joined.client) == b"who are you?"
    assert joined.up.sent == sent
    assert everything(joined.server) == b""


# --- Signal handlers ---


@pytest.mark.parametrize("call", [lambda stream: stream.send(b"amid"), TlsStream.end])
@pytest.mark.parametrize("amid", [received, lambda stream: stream.send(b"a")])
def test_a_signal_handler_that_interrupts_what_its_thread_sends_is_refused(
    call: Callable[[TlsStream], object], amid: Callable[[TlsStream], object]
) -> None:
    joined = asked_who_it_is()
    refused: list[RuntimeError] = []

    def send(data: bytes) -> int:  # calls what a signal handler calls at this point
        with pytest.raises(RuntimeError, match="^a signal handler cannot use TLS while") as caught:
            call(joined.client)
        refused.append(caught.value)
        assert joined.client.is_interrupted()
        received(joined.client)  # the interrupted thread sends the answers to it
        return joined.up.send(data)

    joined.client._send = send
    amid(joined.client)
    assert refused
    assert not joined.client.is_interrupted()
    joined.client._send = joined.up.send
    received(joined.client)
    joined.client.send(b"!")
    assert received(joined.server) in (b"!", b"a!")
    assert joined.server.peer_certificate


def test_a_signal_handler_that_interrupts_the_decrypting_changes_no_order() -> None:
    joined = Joined()
    for number in range(5):
        joined.client.send(b"%d" % number)
    joined.server._engine.chunk = 65536
    read = joined.server._engine._decrypt
    seen: list[object] = []

    def interrupted(size: int) -> bytes:
        data = read(size)
        seen.append((joined.server.pending(), joined.server.has_begun()))
        with pytest.raises(RuntimeError, match="^a signal handler cannot use TLS while"):
            joined.server.end()
        return data

    joined.server._engine._decrypt = interrupted  # type: ignore[assignment]
    assert received(joined.server) == b"01234"
    assert set(seen) == {(False, True)}
    joined.server.end()
    assert everything(joined.client) == b""


def test_a_signal_handler_that_interrupts_the_receiving_harms_no_read() -> None:
    joined = Joined()
    joined.client.send(b"a message")

    class Incoming:
        pending = 0

        def write(self, data: bytes) -> None:
            assert not joined.server.pending()
            incoming.write(data)

    incoming = joined.server._engine.incoming
    joined.server._engine.incoming = Incoming()  # type: ignore[assignment]
    assert received(joined.server) == b"a message"


@functools.cache
def with_large_tickets() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A session ticket holds the client's certificate, and this one is longer than a record."""
    server = server_context(TlsFiles(files().server, client_ca=files().ca))
    return server, client_context(files().ca, cert=files().large_client())


@pytest.fixture
def amid_a_ticket() -> tuple[Joined, bytes]:
    """A client that has the first record of a ticket, and the rest."""
    joined = Joined(*with_large_tickets(), shake=False)
    for stream in (joined.client, joined.server) * 2:
        with contextlib.suppress(Starved):
            stream.handshake()
    assert received(joined.server) == b""  # the ticket is sent when it waits
    first = 5 + int.from_bytes(joined.down.data[3:5], "big")
    rest = bytes(joined.down.data[first:])
    assert rest
    del joined.down.data[first:]
    assert received(joined.client) == b""
    return joined, rest


def test_a_writer_reads_itself_if_openssl_needs_input_first(
    amid_a_ticket: tuple[Joined, bytes],
) -> None:
    joined, rest = amid_a_ticket
    with pytest.raises(Starved):
        joined.client.send(b"hello")
    joined.down.send(rest)
    assert joined.client.send(b"hello") == 5
    assert received(joined.server) == b"hello"
    joined.server.send(b"good bye")
    assert received(joined.client) == b"good bye"


def test_a_writer_waits_for_the_reader_if_openssl_needs_input_first(
    amid_a_ticket: tuple[Joined, bytes],
) -> None:
    joined, rest = amid_a_ticket
    waiting, go_on = threading.Event(), threading.Event()

    def receive(size: int) -> bytes:
        waiting.set()
        assert go_on.wait(PATIENCE)
        return joined.down.receive(size)

    joined.client._receive = receive
    with in_thread(received, joined.client):
        assert waiting.wait(PATIENCE)
        with in_thread(joined.client.send, b"hello"):
            wait_until(lambda: joined.client._sending.is_held)
            joined.down.send(rest)
            go_on.set()
    assert received(joined.server) == b"hello"


def test_a_signal_handler_that_interrupts_a_read_does_not_read_for_its_write(
    amid_a_ticket: tuple[Joined, bytes],
) -> None:
    joined, rest = amid_a_ticket

    def receive(size: int) -> bytes:
        joined.client._receive = joined.down.receive
        with pytest.raises(RuntimeError, match="^a signal handler cannot use TLS while"):
            joined.client.send(b"hello")
        return joined.down.receive(size)

    joined.client._receive = receive
    joined.down.send(rest)
    received(joined.client)
    joined.client.send(b"hello")
    assert received(joined.server) == b"hello"


def test_a_writer_that_has_to_read_sees_a_truncation(
    amid_a_ticket: tuple[Joined, bytes],
) -> None:
    joined, _ = amid_a_ticket
    joined.down.ended = True
    with pytest.raises(TruncatedError):
        joined.client.send(b"hello")


def test_a_writer_that_has_to_read_sees_a_damaged_record(
    amid_a_ticket: tuple[Joined, bytes],
) -> None:
    joined, rest = amid_a_ticket
    joined.down.send(rest[:40] + bytes([rest[40] ^ 1]) + rest[41:])
    joined.up.sent = b""
    with pytest.raises(TlsError, match="^the server sent a damaged or forged record$"):
        joined.client.send(b"hello")
    assert joined.up.sent  # the alert


# --- Other programs' TLS ---


class Peer:
    """``openssl s_client`` or ``s_server`` as a process, whose output is read by a thread."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [tool("openssl"), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.output = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        while data := self.process.stdout.read1(65536):
            self.output += data

    def type(self, text: bytes) -> None:
        """Its commands count at the beginning of what it reads at once."""
        assert self.process.stdin
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def wait_for(self, text: bytes) -> None:
        wait_until(lambda: text in self.output or self.process.poll() is not None, repr(text))
        assert text in self.output, self.output

    def wait(self) -> int:
        status = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return status

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.wait()
        assert self.process.stdin and self.process.stdout
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()


@contextlib.contextmanager
def openssl_client(
    *arguments: str, server: ssl.SSLContext | None = None
) -> Iterator[tuple[Peer, TlsStream, socket.socket]]:
    """``openssl s_client`` and our stream to it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        port = listener.getsockname()[1]
        with Peer("s_client", "-connect", f"127.0.0.1:{port}", *arguments) as peer:
            sock, _ = listener.accept()
            with sock:
                sock.settimeout(PATIENCE)
                context = server or contexts()[0]
                stream = TlsStream(sock.recv, sock.send, context, server_side=True)
                stream.handshake()
                yield peer, stream, sock


def test_the_peer_can_have_the_keys_of_both_directions_renewed() -> None:
    with openssl_client("-tls1_3") as (peer, stream, _):
        for number in range(1, 6):
            line = b"line %d\n" % number
            peer.type(b"K\n")
            wait_until(lambda: peer.output.count(b"KEYUPDATE") == number)  # noqa: B023
            peer.type(line)
            assert stream.recv(100) == line
            stream.send(b"got " + line)
            peer.wait_for(b"got " + line)


def pythons_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files().server)
    return context


@pytest.mark.parametrize("own", [True, False], ids=["netkits", "the user's"])
def test_a_renegotiation_is_refused(own: bool) -> None:
    if not own and ssl.OPENSSL_VERSION_INFO < (3,):  # pragma: no cover - OpenSSL 1.1.1
        pytest.skip("OpenSSL 1.1.1 renegotiates unless the context says otherwise")
    context = contexts()[0] if own else pythons_context()
    with openssl_client("-tls1_2", server=context) as (peer, stream, _):
        peer.type(b"R\n")
        with pytest.raises(TlsError):  # that is how openssl takes it
            stream.recv(100)
        peer.wait()
        assert b"no renegotiation" in peer.output


OPENSSL_VERSIONS = {VERSIONS[0]: "-tls1_2", VERSIONS[1]: "-tls1_3"}


@each_version
def test_openssls_client_sees_our_end_and_answers_it(version: ssl.TLSVersion) -> None:
    with openssl_client(OPENSSL_VERSIONS[version], "-quiet", "-no_ign_eof") as (peer, stream, _):
        peer.type(b"hello\n")
        assert stream.recv(100) == b"hello\n"
        stream.send(MUCH[:300_000] + b"the end")
        stream.end()
        assert everything(stream) == b""
        assert peer.wait() == 0
        assert MUCH[:300_000] + b"the end" in peer.output


@each_version
def test_the_end_of_openssls_client_is_an_end(version: ssl.TLSVersion) -> None:
    with openssl_client(OPENSSL_VERSIONS[version]) as (peer, stream, _):
        peer.type(b"hello\n")
        assert stream.recv(100) == b"hello\n"
        peer.type(b"Q\n")
        assert everything(stream) == b""


@contextlib.contextmanager
def connected(port: int, version: ssl.TLSVersion) -> Iterator[TlsStream]:
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as sock:
        client = contexts(version)[1]
        stream = TlsStream(
            sock.recv, sock.send, client, server_side=False, server_hostname="localhost"
        )
        stream.handshake()
        yield stream


@each_version
def test_openssls_server_sees_our_end_and_answers_it(version: ssl.TLSVersion) -> None:
    arguments = ["-accept", "127.0.0.1:0", "-cert", files().cert, "-key", files().key]
    with Peer("s_server", *arguments) as peer:
        peer.wait_for(b"ACCEPT 127.0.0.1:")
        wait_until(lambda: b"\n" in peer.output.partition(b"ACCEPT 127.0.0.1:")[2])
        port = int(peer.output.partition(b"ACCEPT 127.0.0.1:")[2].split()[0])
        with connected(port, version) as stream:
            stream.send(b"hello from netkit\n")
            peer.wait_for(b"hello from netkit")
            peer.type(b"good bye\n")
            assert stream.recv(100) == b"good bye\n"
            stream.end()
            assert everything(stream) == b""


@each_version
def test_pythons_own_tls_goes_on_after_our_end(version: ssl.TLSVersion) -> None:
    server, client = contexts(version)

    def talk(sock: socket.socket) -> None:
        with client.wrap_socket(sock, server_hostname="localhost") as peer:
            assert b"".join(iter(lambda: peer.recv(65536), b"")) == MUCH[:3_000_000]
            peer.sendall(MUCH[3_000_000:7_000_000])
            peer.unwrap().close()

    with tcp_pair() as (ours, peer):
        ours.settimeout(PATIENCE)
        with in_thread(talk, peer):
            stream = TlsStream(ours.recv, ours.send, server, server_side=True)
            stream.handshake()
            stream.send(MUCH[:3_000_000])
            stream.end()
            assert everything(stream) == MUCH[3_000_000:7_000_000]


# node -e NODE_CLIENT PORT VERSION CA: writes after it has seen our end
NODE_CLIENT = """
const [port, version, ca] = process.argv.slice(1)
const socket = require('tls').connect({
  port: Number(port), host: '127.0.0.1', servername: 'localhost', allowHalfOpen: true,
  minVersion: version, maxVersion: version, ca: require('fs').readFileSync(ca),
})
let size = 0
socket.on('error', (error) => { console.error(error); process.exitCode = 1 })
socket.on('data', (data) => { size += data.length })
socket.on('end', () => socket.end(`${size} `.repeat(100000)))
"""

# node -e NODE_SERVER CERT KEY: sends back what it got, once we have ended our side
NODE_SERVER = """
const {readFileSync} = require('fs')
const [cert, key] = process.argv.slice(1).map((path) => readFileSync(path))
const server = require('tls').createServer({cert, key, allowHalfOpen: true}, (socket) => {
  const chunks = []
  socket.on('data', (data) => chunks.push(data))
  socket.on('end', () => socket.end(Buffer.concat(chunks)))
  socket.on('close', () => server.close())
})
server.listen(0, '127.0.0.1', () => console.log(server.address().port))
"""


@each_version
def test_a_node_client_goes_on_after_our_end(version: ssl.TLSVersion) -> None:
    node = tool("node")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        arguments = [str(listener.getsockname()[1]), version.name.replace("_", "."), files().ca]
        with subprocess.Popen([node, "-e", NODE_CLIENT, *arguments]) as process:
            sock, _ = listener.accept()
            with sock:
                sock.settimeout(PATIENCE)
                stream = TlsStream(sock.recv, sock.send, contexts()[0], server_side=True)
                stream.handshake()
                stream.send(MUCH[:3_000_000])
                stream.end()
                assert everything(stream) == b"3000000 " * 100_000
            assert process.wait(PATIENCE) == 0


@each_version
def test_a_node_server_answers_after_our_end(version: ssl.TLSVersion) -> None:
    command = [tool("node"), "-e", NODE_SERVER, files().cert, files().key]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        with connected(int(process.stdout.readline()), version) as stream:
            stream.send(MUCH[:3_000_000])
            stream.end()
            assert everything(stream) == MUCH[:3_000_000]
        assert process.wait(PATIENCE) == 0


def test_a_reader_takes_what_a_writer_has_received_meanwhile() -> None:
    joined = Joined()
    results: list[bytes] = []
    joined.client.send(b"hello")
    server = joined.server
    with server._receiving:  # as a writer does that has to read first
        thread = threading.Thread(target=lambda: results.append(server.recv(100)))
        thread.start()
        time.sleep(0.05)  # that it waits for the lock cannot be seen from outside
        with server._lock:
            server._engine.feed(joined.up.receive(10_000))
    thread.join()
    assert results == [b"hello"]
