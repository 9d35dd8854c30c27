"""What is done after a failed accept."""

from __future__ import annotations

import errno
import ssl
import sys

import pytest

from netkit.server.acceptor import Answer, answer_to, is_lost_race


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        *(
            (OSError(getattr(errno, name), ""), Answer.SKIP)
            for name in ("EINTR", "ECONNABORTED", "ECONNRESET", "EPROTO", "EPERM")
        ),
        *(
            (OSError(getattr(errno, name), ""), Answer.BACK_OFF)
            for name in ("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "EOPNOTSUPP")
        ),
        *(
            (OSError(getattr(errno, name), ""), Answer.STOP)
            for name in ("EBADF", "EINVAL", "ENOTSOCK")
        ),
        (OSError(errno.EAGAIN, ""), Answer.EMPTY),
        (TimeoutError(), Answer.EMPTY),
        (ssl.SSLError(1, "bad handshake"), Answer.SKIP),
        (OSError("without a number"), Answer.BACK_OFF),
        (RuntimeError("can't start new thread"), Answer.BACK_OFF),
        (ValueError(), Answer.BACK_OFF),
    ],
)
def test_a_failed_accept_has_one_of_these_answers(error: Exception, answer: Answer) -> None:
    assert answer_to(error) is answer


def test_ssl_is_not_imported_to_answer_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ssl")
    assert answer_to(OSError(errno.EMFILE, "")) is Answer.BACK_OFF
    assert "ssl" not in sys.modules


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (BlockingIOError(), True),
        (ConnectionAbortedError(), True),
        (InterruptedError(), True),
        (OSError(errno.EPROTO, ""), False),
        (TimeoutError(), False),
    ],
)
def test_clients_that_went_away_are_not_worth_telling(error: Exception, expected: bool) -> None:
    assert is_lost_race(error) is expected
