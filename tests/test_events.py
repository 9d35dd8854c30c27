"""The seam where it is told what happens."""

from __future__ import annotations

from typing import Any, get_args

from support import in_threads, observed

from netkit import events


def test_observers_are_told_in_the_order_in_which_they_came() -> None:
    told: list[Any] = []
    end_first = events.subscribe(lambda event: told.append(("first", event)))
    end_second = events.subscribe(lambda event: told.append(("second", event)))
    event = events.Stopped(1, 2)
    events.emit(event)
    end_first()
    events.emit(event)
    end_second()
    events.emit(event)
    assert told == [("first", event), ("second", event), ("second", event)]


def test_ending_a_subscription_twice_does_no_harm() -> None:
    with observed() as seen:
        end = events.subscribe(lambda _: None)
        end()
        end()
        events.emit(events.SignalsUnavailable())
    assert seen == [events.SignalsUnavailable()]


def test_an_observer_that_raises_harms_neither_the_emitter_nor_the_others() -> None:
    def fail(_: Any) -> None:
        raise ValueError

    end = events.subscribe(fail)
    try:
        with observed() as seen:
            events.emit(events.Listening("somewhere"))
    finally:
        end()
    assert seen == [events.Listening("somewhere")]


def test_an_observer_may_end_its_own_subscription() -> None:
    told: list[Any] = []

    def once(event: Any) -> None:
        told.append(event)
        end()

    end = events.subscribe(once)
    with observed() as seen:
        events.emit(events.Stopped(1, 0))
        events.emit(events.Stopped(2, 0))
    assert told == [events.Stopped(1, 0)]
    assert len(seen) == 2


def test_nobody_is_lost_when_many_subscribe_at_once() -> None:
    told: list[int] = []
    ends: list[Any] = []

    def subscribe(number: int) -> None:
        for _ in range(50):
            ends.append(events.subscribe(lambda _: told.append(number)))

    in_threads(subscribe, [(number,) for number in range(8)])
    events.emit(events.SignalsUnavailable())
    in_threads(lambda end: end(), [(end,) for end in ends[:8]])
    for end in ends:
        end()
    events.emit(events.SignalsUnavailable())
    assert len(told) == 400


def test_every_kind_of_event_is_data_that_says_what_it_means() -> None:
    kinds = get_args(events.Event)
    defined = {
        value
        for value in vars(events).values()
        if isinstance(value, type) and issubclass(value, tuple)
    }
    assert set(kinds) == defined
    for kind in kinds:
        assert kind.__doc__
        assert not kind.__doc__.startswith(kind.__name__ + "(")
