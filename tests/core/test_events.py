"""The seam where it is told what happens."""

from __future__ import annotations

import contextlib
import io
import logging
import pickle
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from support import EVENT_KINDS, exchange, in_thread, in_threads, observed

import netkit
from netkit.core import events
from netkit.core.events import base
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
    monkeypatch.setattr(base, "_subscriptions", {})


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


# --- The events themselves ---

opened = events.ConnectionOpened(7, "1.2.3.4:5", local="127.0.0.1:80")


@pytest.mark.parametrize(
    "kind", sorted(EVENT_KINDS, key=lambda kind: kind.__name__), ids=lambda kind: kind.__name__
)
def test_every_class_of_event_is_public_and_documented(kind: Any) -> None:
    assert getattr(netkit, kind.__name__) is getattr(netkit.events, kind.__name__) is kind
    assert kind.__doc__
    assert kind.level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR)
    assert "error" in kind.field_names or not kind.with_traceback


def test_an_event_has_its_fields_in_order_and_defaults() -> None:
    assert (opened.id, opened.peer, opened.local) == (7, "1.2.3.4:5", "127.0.0.1:80")
    assert opened.as_dict() == {"id": 7, "peer": "1.2.3.4:5", "local": "127.0.0.1:80"}
    assert events.ConnectionOpened(1, "p").local == ""
    assert repr(events.Stopped(1, cut=2)) == "Stopped(finished=1, cut=2)"
    match opened:
        case events.ConnectionOpened(number, peer):
            assert (number, peer) == (7, "1.2.3.4:5")


@pytest.mark.parametrize(
    ("values", "named", "message"),
    [
        ((1,), {}, "Stopped: the field cut is missing"),
        ((1, 2, 3), {}, "Stopped has only these fields: finished, cut"),
        ((1, 2), {"cut": 3}, "Stopped has only these fields: finished, cut"),
        ((1, 2), {"other": 3}, "Stopped has only these fields: finished, cut"),
    ],
)
def test_a_wrong_set_of_fields_is_a_type_error(values: Any, named: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        events.Stopped(*values, **named)


def test_events_are_equal_if_their_classes_and_fields_are() -> None:
    same = events.Stopped(finished=1, cut=2)
    assert events.Stopped(1, 2) == same
    assert hash(events.Stopped(1, 2)) == hash(same)
    assert events.Stopped(1, 2) != events.Stopped(1, 3)
    assert events.WorkersReady(2) != events.Reloaded(2)


def test_an_event_cannot_be_changed() -> None:
    with pytest.raises(AttributeError, match="an event cannot be changed: id"):
        opened.id = 8  # type: ignore[misc]


def test_an_event_names_the_server_that_emits_it() -> None:
    with observed() as seen:
        with netkit.create_server(netkit.EchoHandler).listen(0, "127.0.0.1") as first:
            with netkit.create_server(netkit.EchoHandler).listen(0, "127.0.0.1") as second:
                assert exchange(second, b"x") == exchange(first, b"x") == b"x"
    for server in (first, second):
        kinds = [type(event).__name__ for event in seen if event.server is server]
        assert kinds == ["Listening", "ConnectionOpened", "ConnectionClosed", "Stopped"]
    assert events.Listening("p").server is None


def test_an_event_can_be_pickled_but_not_its_server() -> None:
    with observed() as seen:
        events.emit(events.Stopped(1, 2), threading.Lock())
    copied = pickle.loads(pickle.dumps(seen[0]))
    assert copied == events.Stopped(1, 2)
    assert copied.server is None


def test_a_message_is_one_printable_line() -> None:
    assert opened.message() == "[7] 1.2.3.4:5 connected"
    assert events.Report(1, "p", "a\nb\x1b[31m").message() == r"[1] a\nb\x1b[31m"
