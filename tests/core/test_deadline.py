"""Deadlines, with a clock that the tests set."""

from __future__ import annotations

import pytest

from netkit.core.deadline import Deadline


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_deadline_has_zero_seconds_left_once_it_has_passed() -> None:
    clock = Clock()
    deadline = Deadline(2.0, clock)
    assert deadline.remaining() == 2.0
    clock.now += 1.5
    assert deadline.remaining() == 0.5
    assert not deadline.expired()
    clock.now += 0.5
    assert deadline.remaining() == 0.0
    assert deadline.expired()
    clock.now += 100
    assert deadline.remaining() == 0.0
    assert deadline.expired()


def test_without_a_timeout_a_deadline_never_passes() -> None:
    clock = Clock()
    deadline = Deadline(None, clock)
    clock.now = 1e12
    assert deadline.remaining() is None
    assert not deadline.expired()


def test_a_timeout_of_zero_has_passed_at_once() -> None:
    assert Deadline(0, Clock()).expired()


def test_the_default_clock_is_the_monotonic_one() -> None:
    remaining = Deadline(1000).remaining()
    assert remaining is not None
    assert 900 < remaining <= 1000


@pytest.mark.parametrize(
    ("one", "other", "first"),
    [(1, 2, 1), (2, 1, 1), (None, 1, 1), (1, None, 1), (None, None, None), (3, 3, 3)],
)
def test_earlier_returns_the_first_of_two_deadlines(
    one: float | None, other: float | None, first: float | None
) -> None:
    clock = Clock()
    assert Deadline(one, clock).earlier(Deadline(other, clock)).remaining() == first
