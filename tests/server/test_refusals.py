"""Refused clients are counted, and reported once per episode."""

from __future__ import annotations

import pytest
from support import observed

from netkit.core import events
from netkit.server.refusals import EPISODE_QUIET, Refusals


class Clock:
    now = 50.0

    def __call__(self) -> float:
        return self.now


def test_an_episode_of_refusals_has_an_event_at_its_beginning_and_at_its_end() -> None:
    clock = Clock()
    refusals = Refusals(clock)
    with observed() as seen:
        for port in range(3):
            refusals.refused("deny", ("1.2.3.4", port), ("127.0.0.1", 5))
            clock.now += 1
        assert refusals.end_episodes() == pytest.approx(EPISODE_QUIET - 1)
        clock.now += 10
        assert refusals.end_episodes() is None
        refusals.refused("deny", ("1.2.3.4", 9), None)
    kinds = [event for event in seen if not isinstance(event, events.ClientRefused)]
    assert kinds == [
        events.Refusing("deny", "1.2.3.4:0", False),
        events.Refused("deny", 3, 2.0),
        events.Refusing("deny", "1.2.3.4:9", False),
    ]
    assert refusals.count == 4
    assert seen[1].remote == ("1.2.3.4", 0, "IPv4")
    assert seen[1].local == ("127.0.0.1", 5, "IPv4")


def test_an_episode_of_waiting_ends_without_an_event() -> None:
    clock = Clock()
    refusals = Refusals(clock)
    with observed() as seen:
        refusals.waiting("max_connections")
        refusals.waiting("max_connections")
        clock.now += 10
        assert refusals.end_episodes() is None
    assert seen == [events.Refusing("max_connections", "", True)]
    assert refusals.count == 0
