"""The seam where it is told what happens."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from support import in_thread, in_threads, observed

from netkit.core import events
from netkit.server import log


def test_observers_are_called_in_the_order_of_their_subscriptions() -> None:
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


@contextlib.contextmanager
def subscribed(*observers: Any) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for observer in observers:
            stack.callback(events.subscribe(observer))
        yield


def nobody_observes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even the log, whose module another test may have imported."""
    monkeypatch.setattr(events, "_subscriptions", {})


class CustomError(BaseException):
    """Not an `Exception`, as those of some libraries."""


@pytest.mark.parametrize("kind", [ValueError, CustomError, KeyboardInterrupt, SystemExit])
def test_an_observer_that_raises_harms_neither_the_emitter_nor_the_others(kind: Any) -> None:
    def fail(_: Any) -> None:
        raise kind

    event = events.Listening("somewhere")
    with observed() as seen, subscribed(fail), observed() as seen_later:
        with in_thread(events.emit, event):
            pass
    assert event in seen
    assert event in seen_later
    failed = [each for each in seen if each != event]
    assert [type(each) for each in failed] == [events.ObserverFailed]
    assert isinstance(failed[0].error, kind)
    assert failed[0].observer.endswith("<locals>.fail")


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_program_passes_an_observer_in_the_main_thread(kind: Any) -> None:
    """A signal handler may have raised it there."""

    def interrupted(_: Any) -> None:
        raise kind

    with subscribed(interrupted), pytest.raises(kind):
        events.emit(events.SignalsUnavailable())


def test_the_first_failure_of_each_observer_is_logged_with_its_traceback(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def __call__(self, _: Any) -> None:
            raise ValueError("one\x1b[31m\ntwo")

    def other(_: Any) -> None:
        raise KeyError("other")

    nobody_observes(monkeypatch)
    with subscribed(Broken(), other, log.write):
        for _ in range(3):
            events.emit(events.Stopped(1, 0))
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    texts = sorted(record.getMessage() for record in errors)
    assert len(texts) == 2
    assert texts[0].endswith(".Broken failed: ValueError: one\\x1b[31m\\ntwo")
    assert texts[1].endswith(".other failed: KeyError: 'other'")
    for record in errors:
        assert record.exc_text is not None
        assert record.exc_text.startswith("Traceback")


def test_observers_that_all_fail_are_reported_once_each_on_standard_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(event: Any) -> None:
        raise ValueError(type(event).__name__)

    nobody_observes(monkeypatch)
    with subscribed(fail, fail):
        for _ in range(3):
            events.emit(events.Stopped(1, 0))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    said = sorted(line.partition(".fail failed: ValueError: ")[2] for line in lines)
    assert said == ["ObserverFailed", "Stopped"]
    with subscribed(fail):
        monkeypatch.setattr(logging, "raiseExceptions", False)
        events.emit(events.Stopped(1, 0))
        monkeypatch.setattr(logging, "raiseExceptions", True)
    assert capsys.readouterr().err == ""


def test_standard_error_that_is_of_no_use_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.BytesIO())
    events.last_resort("it failed", ValueError())
    monkeypatch.setattr(sys, "stderr", None)
    events.last_resort("it failed", ValueError())


def test_two_subscriptions_of_one_observer_end_one_by_one() -> None:
    told: list[Any] = []
    first, second = events.subscribe(told.append), events.subscribe(told.append)
    first()
    events.emit(events.SignalsUnavailable())
    assert len(told) == 1
    second()
    events.emit(events.SignalsUnavailable())
    assert len(told) == 1


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
