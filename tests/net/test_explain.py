"""Errors of a connected socket, in words."""

from __future__ import annotations

import errno

import pytest

from netkit.net.explain import is_hang_up


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionResetError(errno.ECONNRESET, ""), True),
        (BrokenPipeError(errno.EPIPE, ""), True),
        (ConnectionAbortedError(), True),
        (OSError(errno.ENOTCONN, ""), True),
        (TimeoutError(errno.ETIMEDOUT, ""), True),
        (OSError(errno.EBADF, ""), False),
        (TimeoutError(), False),
        (ValueError(), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_these_errors_mean_that_the_peer_is_gone(error: BaseException, expected: bool) -> None:
    assert is_hang_up(error) is expected
