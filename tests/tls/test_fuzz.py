"""TLS fed with bytes that nobody should send: documented errors, in bounded time and memory."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from secure import VERSIONS, Joined, contexts
from support import examples

from netkit.core.errors import TlsError, WriteAfterEndError
from netkit.tls import explain
from netkit.tls.engine import RECEIVED
from netkit.tls.records import LONGEST_HELLO, server_name
from netkit.tls.stream import TlsStream

pytestmark = pytest.mark.fuzz

MOST_STEPS = 10_000  # reads and writes of one example, of at most 70,000 bytes


def recorded(version: ssl.TLSVersion) -> tuple[bytes, bytes]:
    """What a client and a server send each other: a handshake, some records, and the end."""
    joined = Joined(version)
    for stream in (joined.client, joined.server):
        stream.send(b"hello" * 100)
        stream.end()
    return joined.up.sent, joined.down.sent


FAILED, ENDED = ssl.SSLError(1, "text"), ssl.SSLEOFError(8, "EOF")
FAILED.reason, ENDED.reason = "WRONG_VERSION_NUMBER", "EOF"  # type: ignore[misc]
CONVERSATIONS = {version: recorded(version) for version in VERSIONS}
HEADERS = [b"\x14\x03\x03", b"\x15\x03\x01", b"\x16\x03\x01", b"\x16\x03\x03", b"\x17\x03\x03"]


@st.composite
def ciphertexts(draw: Any) -> bytes:
    """Real records, cut, changed, repeated, out of order; and records that never were."""
    whole = draw(st.sampled_from([side for both in CONVERSATIONS.values() for side in both]))
    pieces: list[bytes] = []
    for _ in range(draw(st.integers(0, 6))):
        kind = draw(st.integers(0, 4))
        if kind == 0:
            start = draw(st.integers(0, len(whole)))
            pieces.append(whole[start : start + draw(st.integers(0, 600))])
        elif kind == 1:
            body = draw(st.binary(max_size=300))
            claimed = draw(st.one_of(st.just(len(body)), st.integers(0, 65535)))
            pieces.append(draw(st.sampled_from(HEADERS)) + claimed.to_bytes(2, "big") + body)
        elif kind == 2:
            pieces.append(draw(st.binary(max_size=100)))
        elif kind == 3:
            changed = bytearray(whole)
            for at in draw(st.lists(st.integers(0, len(whole) - 1), max_size=4)):
                changed[at] ^= draw(st.integers(1, 255))
            pieces.append(bytes(changed))
        else:
            pieces.append(draw(st.sampled_from(HEADERS)) + b"\x40\x00" + bytes(16 * 1024))
    return b"".join(pieces)


class Script:
    """A peer that sends these bytes in pieces, and then ends."""

    def __init__(self, data: bytes, step: int) -> None:
        self.data, self.step = data, step
        self.steps = self.sent = 0

    def receive(self, size: int) -> bytes:
        self.steps += 1
        assert self.steps < MOST_STEPS
        assert 0 < size <= RECEIVED
        taken, self.data = self.data[: min(size, self.step)], self.data[min(size, self.step) :]
        return taken

    def send(self, data: bytes) -> int:
        self.steps += 1
        assert self.steps < MOST_STEPS
        self.sent += len(data)
        assert self.sent < 200_000
        return len(data)


def stream_of(peer: Script, server_side: bool, version: ssl.TLSVersion) -> TlsStream:
    context = contexts(version)[0 if server_side else 1]
    name = None if server_side else "localhost"
    return TlsStream(
        peer.receive, peer.send, context, server_side=server_side, server_hostname=name
    )


def tried(call: Callable[[], Any]) -> Any:
    """What it returns; None for the errors that are documented."""
    try:
        return call()
    except (TlsError, WriteAfterEndError, ValueError) as error:
        text = str(error)
        assert text
        assert text.isprintable()
        assert len(text) < 500
        assert "_ssl.c" not in text
        return None


@examples(60)
@given(ciphertexts(), st.integers(1, 20_000), st.booleans(), st.sampled_from(VERSIONS))
def test_a_handshake_with_any_bytes_fails_as_documented_or_succeeds(
    data: bytes, step: int, server_side: bool, version: ssl.TLSVersion
) -> None:
    peer = Script(data, max(step, len(data) // 1000))
    stream = stream_of(peer, server_side, version)
    for _ in range(2):
        tried(stream.handshake)
        tried(lambda: stream.recv(100))
        tried(lambda: stream.send(b"hello"))
        tried(stream.pending)
        tried(stream.has_begun)
        tried(stream.end)
    assert len(stream._engine._first) < LONGEST_HELLO + RECEIVED
    assert stream.server_name is None or stream.server_name.isprintable()


@examples(60)
@given(
    ciphertexts(),
    st.integers(1, 20_000),
    st.booleans(),
    st.sampled_from(VERSIONS),
    st.lists(st.sampled_from(["recv", "send", "end", "pending"]), max_size=8),
    st.integers(0, 3),
)
def test_after_a_handshake_any_bytes_are_an_error_or_what_the_peer_has_sent(
    data: bytes,
    step: int,
    server_side: bool,
    version: ssl.TLSVersion,
    calls: list[str],
    good: int,
) -> None:
    joined = Joined(version)
    stream, other = (
        (joined.server, joined.client) if server_side else (joined.client, joined.server)
    )
    pipe = joined.up if server_side else joined.down
    for number in range(good):
        other.send(b"message %d;" % number)
    real = bytes(pipe.data)
    peer = Script(real + data, max(step, len(data) // 1000))
    stream._receive, stream._send = peer.receive, peer.send
    received = b""
    for call in [*calls, "recv", "recv", "end", "recv"]:
        if call == "recv":
            received += tried(lambda: stream.recv(100_000)) or b""
        elif call == "send":
            tried(lambda: stream.send(b"hello" * 1000))
        else:
            tried(getattr(stream, call))
    sent = b"".join(b"message %d;" % number for number in range(good))
    assert received == sent  # what came whole is delivered, and nothing else


@examples(100)
@given(st.binary(max_size=300), ciphertexts())
def test_what_is_said_of_any_first_bytes_is_one_short_line(odd: bytes, data: bytes) -> None:
    for first in (odd, data):
        shown = explain.plain_text(first)
        assert shown is None or (shown.isprintable() and len(shown) < 500)
        for peer in ("client", "server"):
            for error in (None, FAILED, ENDED):
                assert str(explain.handshake_failure(error, peer, first)).isprintable()
        name = server_name(first)
        assert name is None or (name.isprintable() and name.isascii())
