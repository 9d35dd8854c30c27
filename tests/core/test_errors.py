"""The exceptions: their bases, their messages and their attributes."""

from __future__ import annotations

import copy
import pickle

import pytest

from netkit.core import errors


@pytest.mark.parametrize(
    ("error", "bases", "text"),
    [
        (errors.ServerStateError("x"), (errors.LocalError, RuntimeError), "x"),
        (
            errors.WriteAfterEndError(),
            (errors.LocalError, ConnectionError),
            "write after end: this side of the connection has been ended",
        ),
        (
            errors.ConnectionClosedError(),
            (errors.LocalError, ConnectionError),
            "the connection is closed",
        ),
        (
            errors.UnknownEncodingError("utf9"),
            (errors.LocalError, LookupError),
            "unknown encoding 'utf9'",
        ),
        (
            errors.UnknownEncodingError("utf9", ["utf8", "utf-8"]),
            (errors.LocalError, LookupError),
            "unknown encoding 'utf9'; did you mean 'utf8', 'utf-8'?",
        ),
        (
            errors.IncompleteReadError(b"abc", 5),
            (errors.PeerError, EOFError),
            "the input ended after 3 of 5 bytes",
        ),
        (
            errors.IncompleteReadError(b"abc", None),
            (errors.PeerError, EOFError),
            "the input ended 3 bytes after the last separator",
        ),
        (
            errors.LineTooLongError(10),
            (errors.PeerError, ValueError),
            "line longer than 10 bytes (max_line)",
        ),
        (
            errors.LineTooLongError(10, b"\r\n.\r\n"),
            (errors.PeerError, ValueError),
            "line longer than 10 bytes (max_line); "
            r"read_message(Delimiter(b'\r\n.\r\n')) reads longer messages",
        ),
        (
            errors.MessageTooLongError(10),
            (errors.PeerError, ValueError),
            "message longer than 10 bytes (max_message)",
        ),
        (
            errors.MessageTooLongError(10, 11),
            (errors.PeerError, ValueError),
            "message of 11 bytes, where 10 are allowed (max_message)",
        ),
        (
            errors.MessageTooLongError(10, 11, option=None),
            (errors.PeerError, ValueError),
            "message of 11 bytes, where 10 are allowed",
        ),
        (errors.FramingError("x"), (errors.PeerError, ValueError), "x"),
    ],
)
def test_each_error_has_its_message_and_the_base_of_whose_fault_it_is(
    error: errors.NetkitError, bases: tuple[type, ...], text: str
) -> None:
    assert isinstance(error, errors.NetkitError)
    for base in bases:
        assert isinstance(error, base)
    assert isinstance(error, errors.LocalError) != isinstance(error, errors.PeerError)
    assert str(error) == text


def test_an_error_has_the_values_that_a_program_needs() -> None:
    encoding = errors.UnknownEncodingError("utf9", ["utf8"])
    assert (encoding.name, encoding.close) == ("utf9", ("utf8",))
    incomplete = errors.IncompleteReadError("ab", 5)
    assert (incomplete.partial, incomplete.expected) == ("ab", 5)
    assert errors.LineTooLongError(10).limit == 10
    too_long = errors.MessageTooLongError(10, 11)
    assert (too_long.limit, too_long.size) == (10, 11)


def test_errors_of_the_program_are_not_errors_of_the_network() -> None:
    for error in (errors.WriteAfterEndError(), errors.ConnectionClosedError()):
        assert error.errno is None
        assert not isinstance(error, (ConnectionResetError, BrokenPipeError))


@pytest.mark.parametrize(
    "error",
    [
        errors.ServerStateError("x"),
        errors.WriteAfterEndError(),
        errors.ConnectionClosedError(),
        errors.UnknownEncodingError("utf9", ["utf8"]),
        errors.IncompleteReadError(b"abc", 5),
        errors.LineTooLongError(10, b"--"),
        errors.MessageTooLongError(10, 11),
        errors.FramingError("x"),
        errors.CancelledError(),
        errors.HandshakeError("x"),
        errors.TruncatedError(),
        errors.TlsConfigError("x"),
        errors.MissingExtraError("x"),
    ],
)
def test_errors_can_be_copied_and_pickled(
    error: errors.NetkitError,
) -> None:
    for other in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(other) is type(error)
        assert str(other) == str(error)
        assert vars(other) == vars(error)


def every_kind(kind: type[errors.NetkitError]) -> set[type[errors.NetkitError]]:
    return {kind}.union(*map(every_kind, kind.__subclasses__()))


@pytest.mark.parametrize("kind", sorted(every_kind(errors.NetkitError), key=str))
def test_an_error_of_any_class_can_be_pickled_whatever_its_constructor_takes(
    kind: type[errors.NetkitError],
) -> None:
    error = kind.__new__(kind, "x")
    error.args = ("x",)
    error.note = ["y"]  # type: ignore[attr-defined]
    other = pickle.loads(pickle.dumps(error))
    assert type(other) is kind
    assert (other.args, vars(other)) == (("x",), {"note": ["y"]})


@pytest.mark.parametrize("kind", [ConnectionRefusedError, TimeoutError, OSError])
def test_an_error_of_connecting_can_be_copied_and_pickled(kind: type[OSError]) -> None:
    error = errors.ConnectError.of("h:1", [("p", kind(5, "no"))])
    error.address = "h"
    for other in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(other) is type(error)
        assert isinstance(other, kind)
        assert str(other) == str(error) == "connect to h:1 failed: p no"
        assert (other.errno, other.code, other.address, len(other.errors)) == (5, "EIO", "h", 1)
