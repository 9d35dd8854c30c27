"""Events: what each one says, and how observers are called."""

from __future__ import annotations

import contextlib
import io
import logging
import pickle
import re
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from support import EVENT_KINDS, PATIENCE, ROOT, exchange, in_thread, in_threads, observed

import netkit
from netkit.core import events
from netkit.core.events import base
from netkit.net.explain import timed_out
from netkit.server import log

ERROR = ValueError("what went wrong")
CLIENT = (7, "192.0.2.7:50312")

# An event of every class. docs/events.md shows the level and the message of each.
SAMPLES: list[events.Event] = [
    events.ConnectionOpened(*CLIENT),
    events.ConnectionClosed(*CLIENT, 1, 20, 1.5, end="done"),
    events.ClientFailed(*CLIENT, ConnectionResetError(104, "Connection reset by peer")),
    events.HandlerFailed(*CLIENT, ERROR),
    events.HandlerStuck(*CLIENT, 30.5, ("app.py:12 shout: time.sleep(60)",)),
    events.HandlerResumed(*CLIENT, 41.0),
    events.Report(*CLIENT, "192.0.2.7:50312 closed: 5 bytes received, 0 sent, 1.0 s"),
    events.ClientRefused("192.0.2.9:40022", "deny", None, None),
    events.Refusing("max_connections", "192.0.2.9:40022", False),
    events.Refused("deny", 3, 1.25),
    events.Listening("127.0.0.1:8080"),
    events.Unlimited("0.0.0.0:8080"),
    events.ListLoaded("deny", 812, "deny.txt"),
    events.KeyReadable("/x/key.pem"),
    events.AcceptFailed(ERROR),
    events.AcceptPaused(OSError(24, "Too many open files")),
    events.AcceptResumed(1.26),
    events.ListenerLost(OSError(9, "Bad file descriptor")),
    events.HandshakeInAccept("get_request"),
    events.HookFailed("service_actions", ERROR),
    events.OperatorCommand("kill 7", "uid 1000, pid 4242"),
    events.StatusReported("connected  3 of at most 100, 0 held"),
    events.ObserverFailed("metrics.count", ERROR),
    events.SettingsReloaded("the list 'deny'", 812, 800),
    events.SettingsKept("the list 'deny'", ValueError("no address")),
    events.NothingToReload(),
    events.Stopping(3, 10.0),
    events.Stopped(2, 1),
    events.ServingOn("127.0.0.1:8080"),
    events.SignalsUnavailable(),
    events.WorkersReady(4),
    events.WorkerEnded(7, -9, 0.0),
    events.WorkerFailed("ModuleNotFoundError: No module named 'app'", 5.0),
    events.WorkersStopping(4, 10.0),
    events.Reloaded(4),
    events.ReloadFailed("SyntaxError: invalid syntax"),
    events.Ready(),
    events.ReloadBegun(),
    events.ReloadEnded(""),
    events.StopDelayed(5.0),
    events.FrontEnded(7, -9, 0.0),
    events.Resolved("example.org", ("192.0.2.1:80", "198.51.100.1:80")),
    events.AttemptStarted("192.0.2.1:80"),
    events.AttemptFailed("192.0.2.1:80", ConnectionRefusedError(111, "Connection refused")),
]

TIMED_OUT = timed_out("idle_timeout", 1.0, CLIENT[1])


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (
            events.ConnectionClosed(1, "unix", None, None, 0.0),
            "[1] unix closed after 0.000 s: bytes not counted",
        ),
        (
            events.ClientFailed(*CLIENT, TIMED_OUT),
            "[7] TimeoutError: idle_timeout: nothing received from 192.0.2.7:50312 for 1 second",
        ),
        (events.ClientFailed(*CLIENT, EOFError()), "[7] 192.0.2.7:50312: EOFError"),
        (events.Refusing("max_connections", "", True), "max_connections: new clients wait"),
        (events.Refused("deny", 1, 0.0), "deny: 1 refused"),
        (events.Listening("0.0.0.0:80"), "listening on 0.0.0.0:80 (every address)"),
        (events.Listening("[::]:80"), "listening on [::]:80 (every address)"),
        (events.Listening("[::]:80", True), "listening on [::]:80 (every address, TLS)"),
        (events.Listening("unix:/x", True), "listening on unix:/x (TLS)"),
        (events.ListLoaded("deny", 1, "deny.txt"), "deny: 1 rule from deny.txt"),
        (events.SettingsReloaded("TLS"), "TLS reloaded"),
        (events.Stopping(3, 0.5), "stopping: 3 connected, up to 0.5 s to finish"),
        (events.Stopping(3, None), "stopping: 3 connected, no time limit"),
        (
            events.WorkerEnded(7, 1, 0.2),
            "worker 7 ended with status 1; starting another in 0.2 s",
        ),
        (events.ReloadEnded("TLS not reloaded"), "reload ended: TLS not reloaded"),
        (events.WorkerEnded(7, -50, 0.0), "worker 7 ended by signal 50; starting another"),
        (
            events.WorkerEnded(7, None, 0.0),
            "worker 7 ended with an unknown status; starting another",
        ),
        (
            events.WorkerFailed("no\nmodule", 5.0),
            r"a worker failed: no\nmodule; starting another in 5 s",
        ),
    ],
)
def test_a_message_depends_on_the_fields(event: events.Event, text: str) -> None:
    assert event.message() == text


def test_with_several_listeners_a_message_names_the_listener_of_a_client() -> None:
    opened = events.ConnectionOpened(1, "1.2.3.4:5", "127.0.0.1:80")
    failed = events.ClientFailed(1, "1.2.3.4:5", ValueError("1.2.3.4:5 is odd"), "127.0.0.1:80")
    events.show_listeners(True)
    try:
        assert opened.message() == "[1] 1.2.3.4:5 to 127.0.0.1:80 connected"
        assert failed.message() == "[1] 1.2.3.4:5 to 127.0.0.1:80: ValueError: 1.2.3.4:5 is odd"
    finally:
        events.show_listeners(False)
    assert opened.message() == "[1] 1.2.3.4:5 connected"


# --- The page of the documentation ---

PAGE = (ROOT / "docs/events.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^### (\w+)\n\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL))


def test_the_page_has_a_section_for_each_event() -> None:
    names = sorted(kind.__name__ for kind in EVENT_KINDS)
    assert sorted(SECTIONS) == sorted(type(event).__name__ for event in SAMPLES) == names


@pytest.mark.parametrize("event", SAMPLES, ids=lambda event: type(event).__name__)
def test_the_page_shows_the_level_the_message_and_the_fields_of_each_event(
    event: events.Event,
) -> None:
    kind = type(event)
    first, _, rest = SECTIONS[kind.__name__].partition("\n")
    level = logging.getLevelName(kind.level).lower()
    assert first == f"{level}{', with a traceback' * kind.with_traceback}: `{event.message()}`"
    shown = dict(re.findall(r"`(\w+)` \(`(.+?)`\)", rest))
    assert sorted(shown) == sorted(kind.field_names)
    for name, annotation in kind.__annotations__.items():
        assert annotation in (shown[name], "Any"), name


# --- Observers ---


def test_an_event_is_wanted_if_an_observer_wants_its_level(monkeypatch: pytest.MonkeyPatch) -> None:
    without_observers(monkeypatch)
    assert not events.is_wanted(logging.ERROR)
    with contextlib.ExitStack() as stack:
        stack.callback(events.subscribe(print, wants=lambda level: level >= logging.INFO))
        assert [events.is_wanted(level) for level in (logging.DEBUG, logging.INFO)] == [False, True]
        stack.callback(events.subscribe(print))
        assert events.is_wanted(logging.DEBUG)


def test_an_observer_whose_wish_cannot_be_asked_gets_all_events(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: int) -> bool:
        raise ValueError

    without_observers(monkeypatch)
    end = events.subscribe(print, wants=fail)
    assert events.is_wanted(logging.DEBUG)
    end()


@contextlib.contextmanager
def subscribed(*observers: Any) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for observer in observers:
            stack.callback(events.subscribe(observer))
        yield


def without_observers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the log, too, whose module another test may have imported."""
    monkeypatch.setattr(base, "_subscriptions", {})


class CustomError(BaseException):
    """Not an `Exception`, like those of some libraries."""


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
def test_exceptions_that_end_the_program_pass_an_observer_in_the_main_thread(kind: Any) -> None:
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

    without_observers(monkeypatch)
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

    without_observers(monkeypatch)
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


def test_a_standard_error_that_cannot_be_written_is_ignored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stderr", io.BytesIO())
    events.last_resort("it failed", ValueError())
    monkeypatch.setattr(sys, "stderr", None)
    events.last_resort("it failed", ValueError())


def test_observers_are_called_in_order_and_two_subscriptions_of_one_end_one_by_one() -> None:
    seen: list[Any] = []

    def second(event: Any) -> None:
        seen.append(type(event))

    ends = [events.subscribe(each) for each in (seen.append, second, second)]
    event = events.Stopped(1, 2)
    for end in ends:
        events.emit(event)
        end()
        end()  # which has no effect
    events.emit(event)
    assert seen == [event, *[events.Stopped] * 2, *[events.Stopped] * 2, events.Stopped]


def test_an_observer_may_end_its_own_subscription() -> None:
    seen: list[Any] = []

    def once(event: Any) -> None:
        seen.append(event)
        end()

    end = events.subscribe(once)
    with observed() as seen_later:
        events.emit(events.Stopped(1, 0))
        events.emit(events.Stopped(2, 0))
    assert seen == [events.Stopped(1, 0)]
    assert len(seen_later) == 2


def test_no_subscription_is_lost_when_many_threads_subscribe() -> None:
    seen: list[int] = []
    ends: list[Any] = []

    def subscribe(number: int) -> None:
        for _ in range(50):
            ends.append(events.subscribe(lambda _: seen.append(number)))

    in_threads(subscribe, [(number,) for number in range(8)])
    events.emit(events.SignalsUnavailable())
    in_threads(lambda end: end(), [(end,) for end in ends[:8]])
    for end in ends:
        end()
    events.emit(events.SignalsUnavailable())
    assert len(seen) == 400


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


def test_the_public_module_has_no_name_that_it_imports_from_elsewhere() -> None:
    names = {name for name in vars(netkit.events) if not name.startswith("_")}
    assert {"Event", "Observer", "emit", "subscribe"} <= names
    modules = {getattr(netkit.events, name).__module__ for name in names - {"Observer"}}
    assert {module.rpartition(".")[0] for module in modules} == {"netkit.core.events"}


def test_an_event_has_its_fields_in_order_and_defaults() -> None:
    assert (opened.id, opened.peer, opened.local) == (7, "1.2.3.4:5", "127.0.0.1:80")
    assert opened.as_dict() == {"id": 7, "peer": "1.2.3.4:5", "local": "127.0.0.1:80", "via": ""}
    assert (
        events.ConnectionOpened(1, "p", via="10.0.0.7").message() == "[1] p connected via 10.0.0.7"
    )
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
                assert first.wait_for_connections(0, PATIENCE)
                assert second.wait_for_connections(0, PATIENCE)
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


class Own(events.Event):
    """An event of a program."""

    what: str


def test_a_message_is_one_printable_line() -> None:
    assert Own("a\nb").message() == r"Own(what='a\nb')"
    assert opened.message() == "[7] 1.2.3.4:5 connected"
    assert events.Report(1, "p", "a\nb\x1b[31m").message() == r"[1] a\nb\x1b[31m"
