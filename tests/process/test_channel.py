"""The messages between a parent and its workers: all that is invalid is refused."""

from __future__ import annotations

import contextlib
import json
import pickle
import socket
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from netkit.process import channel
from netkit.process.channel import (
    MAX_MESSAGES,
    Alive,
    Ask,
    Channel,
    Failed,
    Ready,
    Stop,
    channel_pair,
)
from netkit.server.registry import StopReport

KINDS = (Ready, Failed, StopReport, Stop, Ask, Alive)


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    ours, theirs = channel_pair()
    with closing(ours), closing(theirs):
        yield ours, theirs


def received(data: bytes, *kinds: Any) -> list[Any]:
    """What a channel makes of `data`, and of the end after it."""
    ours, theirs = socket.socketpair()
    messages: list[Any] = []
    with closing(Channel(ours)) as reader:
        with theirs:
            theirs.setblocking(False)
            theirs.sendall(data)
        with contextlib.suppress(EOFError):
            while True:
                messages += reader.receive(*(kinds or KINDS))
    return messages


@pytest.mark.parametrize(
    "message",
    [
        Ready(),
        Ask(),
        Alive(7),
        Failed("why \x1b é"),
        Stop(1.5, 2.5),
        Stop(10),
        Stop(float("inf")),
        StopReport(1, 2),
    ],
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
    for byte in b'["Ready"]':
        theirs._socket.send(bytes([byte]))
        assert ours.receive(Ready) == []
    theirs._socket.send(b"\n")
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
    "data",
    [
        b"",
        b"\x80\x04K\x01.",
        b"[" * 16000,
        b"null",
        b'"Ready"',
        b'{"Ready": 1}',
        b"[]",
        b'[["Ready"]]',
        b'["Channel"]',
        b'["Ready", 1]',
        b'["StopReport", 1]',
        b'["StopReport", -1, 1]',
        b'["StopReport", 1, true]',
        b'["StopReport", 1, 1.5]',
        b'["StopReport", 1, 1e400]',
        b'["StopReport", 1, %d]' % 2**63,
        b'["Stop", NaN, 0]',
        b'["Stop", 1, -0.5]',
        b'["Stop", "1", 0]',
        b'["Failed", null]',
        b'["Failed", "%s"]' % (b"x" * 1001),
    ],
)
def test_anything_but_a_message_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="an invalid message"):
        received(data + b"\n")


def test_too_much_and_what_is_not_expected_is_refused() -> None:
    with pytest.raises(ValueError, match="a message that is too long"):
        received(b"[" * 16385)
    with pytest.raises(ValueError, match="an invalid message"):
        received(b'["Ready"]\n\xff')  # without waiting for its end
    with pytest.raises(ValueError, match="too many messages"):
        received(b'["Ready"]\n' * 1001)
    with pytest.raises(ValueError, match="an invalid message"):
        received(b'["Stop", 1, 0]\n', Ready, Failed)


def test_answers_to_questions_have_no_limit(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    for number in range(MAX_MESSAGES + 1):
        ours.allow()
        theirs.send(Alive(number))
        assert ours.receive(Alive) == [(number,)]


values = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just([1])
)
kinds = st.sampled_from([kind.__name__ for kind in KINDS])
messages = st.tuples(kinds, st.lists(values, max_size=3)).map(
    lambda parts: json.dumps([parts[0], *parts[1]]).encode() + b"\n"
)


@pytest.mark.fuzz
@given(st.lists(messages | st.binary(max_size=50)).map(b"".join))
@example(b'["StopReport", 1, 2]\n')
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
