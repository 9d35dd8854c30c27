"""Which error stands for which reason of an end."""

from __future__ import annotations

import errno

import pytest

from netkit.core import errors
from netkit.core.ends import ENDS, LIMITS, limit_of, reason_of
from netkit.net.explain import timed_out


class SSLEOFError(OSError):
    """As the class of this name in `ssl`."""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionResetError(), "reset"),
        (BrokenPipeError(), "reset"),
        (OSError(errno.EHOSTUNREACH, "No route to host"), "reset"),
        (TimeoutError(errno.ETIMEDOUT, "Connection timed out"), "reset"),
        (SSLEOFError("EOF occurred"), "reset"),
        (errors.TruncatedError(), "reset"),
        (errors.IncompleteReadError(b"half", 10), "reset"),
        (errors.TlsError("a damaged record"), "protocol"),
        (errors.FramingError("no length"), "protocol"),
        (errors.LineTooLongError(10), "protocol"),
        (errors.HandshakeError("plain text, not TLS"), "handshake"),
        (errors.NotBegunError(), "probe"),
        (errors.OutboxFullError("192.0.2.7:50312", 10, 10), "outbox_full"),
        (errors.ConnectionClosedError(), ""),
        (timed_out("min_rate", 10.0, "192.0.2.7:50312"), "min_rate"),
        (timed_out("close", 5.0, "192.0.2.7:50312"), "write_timeout"),
        (timed_out("timeout", 5.0, "192.0.2.7:50312"), "deadline"),
    ],
    ids=lambda it: type(it).__name__ if isinstance(it, Exception) else it,
)
def test_an_error_stands_for_a_reason(error: Exception, reason: str) -> None:
    assert reason_of(error) == reason
    assert reason in ("", *ENDS)


def test_the_limits_are_those_that_options_set() -> None:
    assert all(limit_of(timed_out(name, 1.0, "peer")) == name for name in LIMITS)
    assert len(ENDS) == len(set(ENDS))
    assert limit_of(ValueError("idle_timeout: this is no limit")) == ""
