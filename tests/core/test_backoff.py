"""Pauses between attempts that fail."""

from __future__ import annotations

from netkit.core.backoff import BackOff


def test_the_pauses_double_up_to_the_longest_one() -> None:
    back_off = BackOff(0.005, 1.0)
    assert back_off.pause == 0.0
    pauses = [back_off.failed() for _ in range(10)]
    assert pauses == [0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0, 1.0]
    assert back_off.pause == 1.0


def test_after_a_success_the_pauses_begin_with_the_first_one() -> None:
    back_off = BackOff(0.005, 1.0)
    back_off.failed()
    back_off.failed()
    back_off.succeeded()
    assert back_off.pause == 0.0
    assert back_off.failed() == 0.005


def test_no_pause_is_longer_than_the_longest_one() -> None:
    assert BackOff(5.0, 1.0).failed() == 1.0
