"""Live events: what is kept for an operator, and what is lost."""

from __future__ import annotations

from support import observed

from netkit.core import events
from netkit.core.addresses import SocketAddress
from netkit.core.events import base
from netkit.ops.feed import FORGET_SECONDS, Feed, Feeds, as_row


def report(number: int) -> events.Event:
    return events.Report(number, "h:1", "text")


def test_a_feed_has_the_events_since_it_was_last_asked() -> None:
    feed = Feed()
    try:
        events.emit(report(1))
        events.emit(report(2))
        assert [row["id"] for row in feed.take()["events"]] == [1, 2]
        events.emit(report(3))
        assert [row["id"] for row in feed.take()["events"]] == [3]
        assert feed.take() == {"events": [], "lost": 0}
    finally:
        feed.close()
    events.emit(report(4))
    assert feed.take()["events"] == []


def test_a_feed_of_some_kinds_has_no_others() -> None:
    feed = Feed(["Stopped"])
    try:
        events.emit(report(1))
        events.emit(events.Stopped(1, 0))
        assert [row["event"] for row in feed.take()["events"]] == ["Stopped"]
    finally:
        feed.close()


def test_an_operator_that_is_too_slow_loses_the_oldest_events_and_learns_how_many() -> None:
    feed = Feed(most=2)
    try:
        for number in range(5):
            events.emit(report(number))
        taken = feed.take()
        assert ([row["id"] for row in taken["events"]], taken["lost"]) == ([3, 4], 3)
        assert feed.take()["lost"] == 0
    finally:
        feed.close()


def test_a_feed_that_nobody_asks_for_any_more_is_forgotten() -> None:
    now = [0.0]
    feeds = Feeds(clock=lambda: now[0])
    before = len(base._subscriptions)
    feeds.take("one")
    now[0] = FORGET_SECONDS - 1
    feeds.take("two")
    assert len(base._subscriptions) == before + 2
    now[0] = FORGET_SECONDS + 1
    feeds.take("two")
    assert len(base._subscriptions) == before + 1
    feeds.end("two")
    feeds.end("two")
    feeds.take("three")
    feeds.close()
    assert len(base._subscriptions) == before


def test_a_feed_ends_with_the_next_event_though_no_other_operator_asks() -> None:
    now = [0.0]
    feeds = Feeds(clock=lambda: now[0])
    before = len(base._subscriptions)
    feeds.take("one")
    now[0] = FORGET_SECONDS + 1
    events.emit(report(1))
    assert len(base._subscriptions) == before
    assert feeds.take("one") == {"events": [], "lost": 0}
    events.emit(report(2))
    assert [row["id"] for row in feeds.take("one")["events"]] == [2]
    feeds.close()


def test_the_fields_of_an_event_become_json_values() -> None:
    where = SocketAddress("192.0.2.1", 80)
    row = as_row(1.5, events.ClientRefused("192.0.2.7:1", "deny", where, None))
    expected = {
        "time": 1.5,
        "event": "ClientRefused",
        "message": "192.0.2.7:1 refused: deny",
        "peer": "192.0.2.7:1",
        "reason": "deny",
        "remote": "192.0.2.1:80",
        "local": None,
    }
    assert row.items() >= expected.items()
    assert as_row(0, events.Resolved("h", ("192.0.2.1:80",)))["addresses"] == ["192.0.2.1:80"]
    failed = as_row(0, events.HookFailed("get_request", ValueError("x\ny")))
    assert failed["error"] == r"ValueError: x\ny"
    with observed() as seen:
        assert seen == []
