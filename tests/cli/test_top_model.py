"""The state of netkit top: samples, rates, sorting, the filter, and what each key does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from netkit.cli.top_model import Request, Sample, Top

from .control_server import client_row, status_row


def sample(at: float = 0.0, clients: Iterable[Any] = (), **status: Any) -> Sample:
    return Sample.of(at, [status_row(**status)], clients)


def top_with(*clients: Any) -> Top:
    top = Top("/run/app.ctl")
    top.take(sample(clients=clients or [client_row(number) for number in (1, 2, 3)]))
    top.rows()
    return top


def ids(top: Top) -> list[str]:
    return [row["id"] for row in top.rows()]


def press(top: Top, *keys: str) -> Request | None:
    top.visible(top.rows(), 10)  # as the screen does, which selects the first row
    return [top.press(key) for key in keys][-1]


# Samples


def test_a_sample_has_the_workers_that_have_not_answered_once() -> None:
    silent = {"pid": 9, "error": "no answer within 1 s"}
    status = status_row(processes=[{"pid": 8, "error": ""}, silent])
    rows = [client_row(1), {"error": "worker 9: no answer within 1 s", "worker": 9}]
    found = Sample.of(1.0, [status], rows)
    assert found.errors == ("worker 9: no answer within 1 s",)
    assert found.clients == [client_row(1)]


def test_rates_are_the_differences_of_two_samples() -> None:
    top = Top("x")
    top.take(sample(10.0, [client_row(1, **{"in": 100, "out": 0})], accepted=5, received=1000))
    assert (top.rate("accepted"), top.rates(client_row(1))) == (None, (None, None))
    clients = [client_row(1, **{"in": 300, "out": 50}), client_row(2, age=0.5)]
    top.take(sample(12.0, clients, accepted=9, received=1000))
    assert (top.rate("accepted"), top.rate("received")) == (2.0, 0.0)
    assert top.rates(client_row(1)) == (100.0, 25.0)
    assert top.rates(client_row(2)) == (4000.0, 8_000_000.0)  # since it came, half a second ago


def test_what_is_not_known_has_no_rate() -> None:
    top = Top("x")
    top.take(sample(1.0, [client_row(1, **{"in": None}), client_row(2, id="")], received=None))
    top.take(sample(2.0, [client_row(1, **{"in": None}), client_row(2, id="")], received=7))
    assert top.rate("received") is None
    assert top.rate("sent") == 0.0
    assert top.rates(client_row(1)) == (None, 0.0)
    assert top.rates(client_row(2, id="")) == (None, None)


def test_after_a_restart_there_are_no_rates_until_the_second_sample() -> None:
    top = Top("x")
    top.take(sample(1.0, accepted=100))
    top.take(sample(2.0, accepted=3, started_at=5.0))
    assert (top.rate("accepted"), top.notice) == (None, "the server has been restarted")
    top.take(sample(3.0, accepted=5, started_at=5.0))
    assert top.rate("accepted") == 2.0


def test_a_failed_sample_leaves_the_numbers_and_says_why() -> None:
    top = top_with()
    top.take(Sample(5.0, failure="nobody listens"))
    top.take(Sample(6.0, failure="nobody listens"))
    assert (top.failure, top.failing_since, len(top.rows())) == ("nobody listens", 5.0, 3)
    top.take(sample(7.0))
    assert top.failure == ""


# Rows


@pytest.mark.parametrize(
    ("keys", "expected"),
    [("", "312"), ("a", "213"), ("aa", "312"), ("i", "123"), ("r", "321"), ("p", "213")],
)
def test_a_key_sorts_and_the_same_key_again_turns_the_order_round(keys: str, expected: str) -> None:
    top = top_with(
        client_row(1, peer="b", age=2.0),
        client_row(2, peer="a", age=1.0),
        client_row(3, peer="c", age=3.0),
    )
    for key in keys:
        press(top, key)
    assert "".join(ids(top)) == expected


def test_clients_are_sorted_by_traffic_and_those_without_a_value_come_last() -> None:
    top = Top("x")
    top.take(sample(1.0, [client_row(1), client_row(2), client_row(3, id="", idle=None)]))
    later = [client_row(1, **{"in": 1500}), client_row(2), client_row(3, id="", idle=None)]
    top.take(sample(2.0, later))
    press(top, "t")
    assert ids(top) == ["1", "2", ""]
    press(top, "t")
    assert ids(top) == ["2", "1", ""]
    press(top, "i", "i")
    assert ids(top)[2] == ""


def test_the_filter_keeps_clients_with_its_text_and_escape_shows_all() -> None:
    top = top_with(client_row(1, peer="::1"), client_row(2, where="app.py:9 Upload"))
    press(top, "/", "u", "p", "é", "backspace", "l", "\x01", "enter")
    assert (ids(top), top.filter, top.typing) == (["2"], "upl", False)
    press(top, "escape")
    assert ids(top) == ["2", "1"]
    press(top, "/", "x", "escape")
    assert (top.filter, top.typing) == ("", False)
    press(top, "/", "z", "enter", "k")
    assert (ids(top), top.killing) == ([], "")


def test_the_selection_moves_and_follows_its_client() -> None:
    top = top_with()
    press(top, "down")
    assert top.is_selected(client_row(2))
    top.take(sample(1.0, [client_row(2), client_row(7), client_row(8)]))
    top.visible(top.rows(), 10)
    assert top.is_selected(client_row(2))
    press(top, "home", "up", "pageup")
    assert top.is_selected(client_row(8))
    press(top, "end", "pagedown")
    assert top.is_selected(client_row(2))
    top.take(sample(2.0, [client_row(7)]))
    top.visible(top.rows(), 10)
    assert top.is_selected(client_row(7))
    top.take(sample(3.0))
    assert top.visible(top.rows(), 10) == []


def test_the_rows_scroll_with_the_selection() -> None:
    top = top_with(*[client_row(number) for number in range(1, 31)])

    def shown() -> list[str]:
        return [row["id"] for row in top.visible(top.rows(), 3)]

    assert shown() == ["30", "29", "28"]
    press(top, "pagedown")
    assert shown() == ["22", "21", "20"]
    press(top, "up")
    assert shown() == ["22", "21", "20"]
    press(top, "end")
    assert shown() == ["3", "2", "1"]
    assert top.visible(top.rows(), -1) == []


# Killing, and stacks


def test_a_client_is_killed_after_y_only_and_it_is_the_one_that_was_asked_about() -> None:
    top = top_with()
    assert press(top, "k") is None
    assert top.killing == "3"
    top.take(sample(1.0, [client_row(9)]))
    assert top.press("y") == Request("kill", "3")
    top.answered(Request("kill", "3"), [{"id": "3", "result": "killed"}])
    assert top.notice == "3 is killed"
    assert press(top, "k", "n") is None
    assert (top.killing, top.notice) == ("", "9 is not killed")
    top.answered(Request("kill", "9"), [{"error": "no client has the id 9"}])
    assert top.notice == "no client has the id 9"
    top.answered(Request("kill", "9"), [], "no server listens on x")
    assert top.notice == "no server listens on x"


def test_enter_shows_the_stack_until_escape() -> None:
    top = top_with()
    assert press(top, "enter") == Request("stacks", "3")
    assert (top.stack_of, top.stack) == ("3", None)
    top.answered(Request("stacks", "2"), [{"id": "2"}])  # of a client that was shown before
    assert top.stack is None
    top.answered(Request("stacks", "3"), [{"id": "3", "frames": []}])
    assert top.stack == [{"id": "3", "frames": []}]
    press(top, "k")
    assert top.killing == "3"
    press(top, "n", "x", "escape")
    assert (top.stack_of, top.stack) == ("", None)


@pytest.mark.parametrize("key", ["k", "enter"])
def test_a_held_client_has_no_stack_and_cannot_be_killed(key: str) -> None:
    top = top_with(client_row(1, id="", state="held"))
    assert press(top, key) is None
    assert (top.killing, top.stack_of) == ("", "")
    assert top.notice == "this client is held: it has no id and no thread yet"


def test_q_ends_it() -> None:
    top = top_with()
    press(top, "q")
    assert top.is_over
