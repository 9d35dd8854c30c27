"""The messages between a parent and its workers: all that is invalid is refused."""

from __future__ import annotations

import contextlib
import json
import pickle
import socket
import struct
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from netkit.process import channel
from netkit.process.channel import Channel, Failed, Ready, Stop, channel_pair
from netkit.server.registry import StopReport

KINDS = (Ready, Failed, StopReport, Stop)


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    ours, theirs = channel_pair()
    with closing(ours), closing(theirs):
        yield ours, theirs


def framed(data: bytes) -> bytes:
    return struct.pack("!I", len(data)) + data


def received(data: bytes, *kinds: Any) -> list[Any]:
    """What a channel makes of `data`, and of the end after it."""
    ours, theirs = socket.socketpair()
    messages: list[Any] = []
    reader = Channel(ours)
    with closing(reader):
        with theirs:
            theirs.setblocking(False)
            theirs.sendall(data)
        with contextlib.suppress(EOFError):
            while True:
                messages += reader.receive(*(kinds or KINDS))
    return messages


@pytest.mark.parametrize(
    "message",
    [Ready(), Failed("why \x1b é"), Stop(1.5, 2.5), Stop(10), Stop(float("inf")), StopReport(1, 2)],
)
def test_messages_arrive_with_their_kind(message: Any, ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    for sender, receiver in ((ours, theirs), (theirs, ours)):
        sender.send(message)
        sender.send(Ready())
        one, two = receiver.receive(*KINDS)
        assert (one, two) == (message, Ready())
        assert type(one) is type(message)


def test_a_message_may_come_in_pieces(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    with pytest.raises(BlockingIOError):
        ours.receive(Ready)
    data = framed(b'{"kind": "Ready"}')
    for byte in data[:-1]:
        theirs._socket.send(bytes([byte]))
        assert ours.receive(Ready) == []
    theirs._socket.send(data[-1:])
    assert ours.receive(Ready) == [Ready()]


@pytest.mark.usefixtures("sending")
def test_an_end_that_is_sent_to_a_process_waits_whatever_that_has_done_to_its_sockets(
    ends: tuple[Channel, Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its main module may set a default time limit, and replace the class of all sockets."""

    class Other(socket.socket):
        pass

    pickled = pickle.dumps(ends[1])
    monkeypatch.setattr(socket, "socket", Other)
    socket.setdefaulttimeout(0.1)
    try:
        with closing(pickle.loads(pickled)) as theirs:
            assert isinstance(theirs._socket, Other)
            assert theirs._socket.gettimeout() is None
            theirs.send(Ready())
            with closing(pickle.loads(pickle.dumps(theirs))):
                pass
    finally:
        socket.setdefaulttimeout(None)
    assert ends[0].receive(Ready) == [Ready()]


def test_a_long_reason_is_cut(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    theirs.send(Failed("\U0001f600" * 100_000))
    assert ours.receive(Failed) == [Failed("\U0001f600" * channel.MAX_REASON)]


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"\xff\xff\xff\xff", "a message of 4294967295 bytes"),
        (b"\0\0\x40\x01", "a message of 16385 bytes"),
        (framed(b""), "not JSON"),
        (framed(b"\x80\x04K\x01."), "not JSON"),
        (framed(b"[" * 16000), "not JSON"),
        (framed(b"null"), "an unknown message"),
        (framed(b'"Ready"'), "an unknown message"),
        (framed(b'["Ready"]'), "an unknown message"),
        (framed(b"{}"), "an unknown message"),
        (framed(b'{"kind": ["Ready"]}'), "an unknown message"),
        (framed(b'{"kind": "Channel"}'), "an unknown message"),
        (framed(b'{"kind": "Ready", "more": 1}'), "an unknown message"),
        (framed(b'{"kind": "StopReport", "cut": 1}'), "an unknown message"),
        (framed(b'{"kind": "StopReport", "cut": 1, "finished": -1}'), "an invalid finished"),
        (framed(b'{"kind": "StopReport", "cut": true, "finished": 1}'), "an invalid cut"),
        (framed(b'{"kind": "StopReport", "cut": 1.5, "finished": 1}'), "an invalid cut"),
        (framed(b'{"kind": "StopReport", "cut": 1e400, "finished": 1}'), "an invalid cut"),
        (framed(b'{"kind": "StopReport", "cut": %d, "finished": 1}' % 2**63), "an invalid cut"),
        (framed(b'{"kind": "Stop", "timeout": NaN, "patience": 0}'), "an invalid timeout"),
        (framed(b'{"kind": "Stop", "timeout": 1, "patience": -0.5}'), "an invalid patience"),
        (framed(b'{"kind": "Stop", "timeout": "1", "patience": 0}'), "an invalid timeout"),
        (framed(b'{"kind": "Failed", "reason": null}'), "an invalid reason"),
        (framed(b'{"kind": "Failed", "reason": "%s"}' % (b"x" * 1001)), "an invalid reason"),
        (framed(b'{"kind": "Ready"}') * 1001, "more than 1000 messages"),
    ],
)
def test_anything_but_a_message_is_refused(data: bytes, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        received(data)


def test_a_message_of_a_kind_that_is_not_expected_is_refused() -> None:
    with pytest.raises(ValueError, match="an unknown message"):
        received(framed(b'{"kind": "Stop", "timeout": 1, "patience": 0}'), Ready, Failed)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values) | st.dictionaries(st.text(), values),
    max_leaves=5,
)
messages = st.dictionaries(
    st.sampled_from(["kind", "reason", "finished", "cut", "timeout", "patience", "x"]),
    st.sampled_from([kind.__name__ for kind in KINDS]) | json_values,
).map(lambda fields: framed(json.dumps(fields).encode()))


@pytest.mark.fuzz
@given(st.lists(messages | st.binary(max_size=50) | st.binary().map(framed)).map(b"".join))
@example(framed(b'{"kind": "StopReport", "cut": 1, "finished": 2}'))
def test_whatever_a_worker_sends_is_a_valid_message_or_refused(data: bytes) -> None:
    try:
        found = received(data, Ready, Failed, StopReport)
    except ValueError:
        return
    for message in found:
        if isinstance(message, StopReport):
            assert type(message.finished) is type(message.cut) is int
            assert min(message) >= 0
        elif isinstance(message, Failed):
            assert type(message.reason) is str
        else:
            assert type(message) is Ready
