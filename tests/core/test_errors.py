"""The exceptions: their bases, their messages and their attributes."""

from __future__ import annotations

import copy
import pickle

import pytest

from netkit.core import errors

BEGINNING = "write after end: this side of the connection has been ended"
NEXT = r"read_message(Delimiter(b'\r\n.\r\n')) reads longer messages"


@pytest.mark.parametrize(
    ("error", "base", "text"),
    [
        (errors.ServerStateError("x"), RuntimeError, "x"),
        (errors.WriteAfterEndError(), ConnectionError, BEGINNING),
        (errors.ConnectionClosedError(), ConnectionError, "the connection is closed"),
        (errors.UnknownEncodingError("u"), LookupError, "unknown encoding 'u'"),
        (
            errors.UnknownEncodingError("utf9", ["utf8", "utf-8"]),
            LookupError,
            "unknown encoding 'utf9'; did you mean 'utf8', 'utf-8'?",
        ),
        (errors.IncompleteReadError(b"abc", 5), EOFError, "the input ended after 3 of 5 bytes"),
        (
            errors.IncompleteReadError(b"abc", None),
            EOFError,
            "the input ended 3 bytes after the last separator",
        ),
        (
            errors.InvalidTextError("utf-8", b"a\xff", 1, 2, "invalid start byte"),
            ValueError,
            "'utf-8' codec can't decode byte 0xff in position 1: invalid start byte",
        ),
        (errors.LineTooLongError(10), ValueError, "line longer than 10 bytes (max_line)"),
        (
            errors.LineTooLongError(10, b"\r\n.\r\n"),
            ValueError,
            f"line longer than 10 bytes (max_line); {NEXT}",
        ),
        (errors.MessageTooLongError(10), ValueError, "message longer than 10 bytes (max_message)"),
        (
            errors.MessageTooLongError(10, 11),
            ValueError,
            "message of 11 bytes, where 10 are allowed (max_message)",
        ),
        (
            errors.MessageTooLongError(10, 11, option=None),
            ValueError,
            "message of 11 bytes, where 10 are allowed",
        ),
        (errors.FramingError("x"), ValueError, "x"),
    ],
)
def test_each_error_has_its_message_and_a_base_of_python(
    error: errors.NetkitError, base: type[Exception], text: str
) -> None:
    assert isinstance(error, base)
    assert isinstance(error, errors.LocalError) != isinstance(error, errors.PeerError)
    assert isinstance(error, (EOFError, ValueError)) == isinstance(error, errors.PeerError)
    assert str(error) == text
    for other in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert (type(other), str(other), vars(other)) == (type(error), text, vars(error))


def test_an_error_has_the_values_that_a_program_needs() -> None:
    encoding = errors.UnknownEncodingError("utf9", ["utf8"])
    assert (encoding.name, encoding.close) == ("utf9", ("utf8",))
    incomplete = errors.IncompleteReadError("ab", 5)
    assert (incomplete.partial, incomplete.expected) == ("ab", 5)
    assert errors.LineTooLongError(10).limit == 10
    too_long = errors.MessageTooLongError(10, 11)
    assert (too_long.limit, too_long.size) == (10, 11)


def test_the_error_of_a_full_outbox_names_the_peer_and_the_limit() -> None:
    error = errors.OutboxFullError("h:1", 90, 100)
    text = "the outbox of the connection to h:1 is full: 90 bytes of at most 100 (max_bytes)"
    for other in (error, copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert isinstance(other, OSError)
        assert str(other) == f"{text} are queued"
        assert (other.peer, other.queued, other.max_bytes) == ("h:1", 90, 100)


def test_the_error_of_a_killed_connection_names_the_peer() -> None:
    error = errors.KilledError("h:1")
    for other in (error, copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert isinstance(other, ConnectionAbortedError)
        assert str(other) == "an operator has killed the connection to h:1"
        assert other.peer == "h:1"


def test_an_error_of_a_codec_without_a_position_is_one_of_all_the_text() -> None:
    error = errors.InvalidTextError.of(UnicodeError("incomplete"), "idna", b"abc")  # before 3.13
    assert (error.encoding, error.object, error.start, error.end) == ("idna", b"abc", 0, 3)
    assert error.reason == "incomplete"


def test_errors_of_the_program_are_not_errors_of_the_network() -> None:
    for error in (errors.WriteAfterEndError(), errors.ConnectionClosedError()):
        assert error.errno is None
        assert not isinstance(error, (ConnectionResetError, BrokenPipeError))


def every_kind(kind: type[errors.NetkitError]) -> set[type[errors.NetkitError]]:
    return {kind}.union(*map(every_kind, kind.__subclasses__()))


@pytest.mark.parametrize("kind", sorted(every_kind(errors.NetkitError), key=str))
def test_an_error_of_any_class_can_be_pickled_whatever_its_constructor_takes(
    kind: type[errors.NetkitError],
) -> None:
    args = ("utf-8", b"x", 0, 1, "x") if issubclass(kind, UnicodeError) else ("x",)
    error = kind.__new__(kind, *args)
    error.args = args
    error.note = ["y"]  # type: ignore[attr-defined]
    other = pickle.loads(pickle.dumps(error))
    assert type(other) is kind
    assert (other.args, vars(other)) == (args, {"note": ["y"]})


@pytest.mark.parametrize("kind", [ConnectionRefusedError, TimeoutError, OSError])
def test_an_error_of_connecting_can_be_copied_and_pickled(kind: type[OSError]) -> None:
    error = errors.ConnectError.of("h:1", [("p", kind(5, "no"))])
    error.address = "h"
    for other in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(other) is type(error)
        assert isinstance(other, kind)
        assert str(other) == str(error) == "connect to h:1 failed: p no"
        assert (other.errno, other.code, other.address, len(other.errors)) == (5, "EIO", "h", 1)
