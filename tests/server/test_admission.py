"""Who may come in: places, lists, shares, rates, and how those are told of who may not."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from support import in_threads, observed

from netkit.core import events
from netkit.core.options import Options
from netkit.process.semaphore import SharedPlaces
from netkit.server import admission
from netkit.server.admission import NO_SHARE, PLACE, Admission, Refusals, Ticket

LOCAL = ("127.0.0.1", 5)


class Door(Admission):
    def __init__(self, **options: Any) -> None:
        self.woken = 0
        super().__init__(Options(**options), self._count_wakes)

    def _count_wakes(self) -> None:
        self.woken += 1


def test_without_a_limit_everybody_has_a_place() -> None:
    door = Door()
    assert all(door.enter() for _ in range(100))
    assert not door.must_wait()
    assert door.places_fileno() is None


def test_there_are_as_many_places_as_the_limit_says() -> None:
    door = Door(max_connections=2)
    assert [door.enter(), door.enter(), door.enter()] == [True, True, False]
    door.leave(NO_SHARE)
    assert [door.enter(), door.enter()] == [True, False]
    door.leave(None)  # of one that had none
    assert not door.enter()


def test_places_are_exact_however_many_threads_come_and_go() -> None:
    door = Door(max_connections=5)
    inside, most, lock = 0, 0, threading.Lock()

    def come_and_go() -> None:
        nonlocal inside, most
        for _ in range(300):
            if door.enter():
                with lock:
                    inside += 1
                    most = max(most, inside)
                with lock:
                    inside -= 1
                door.leave(NO_SHARE)

    in_threads(come_and_go, [()] * 8)
    assert 1 <= most <= 5
    assert not door._taken


def test_a_thread_that_waits_for_a_place_is_woken_when_there_is_one() -> None:
    door = Door(max_connections=1)
    assert door.enter()
    assert door.must_wait()
    door.leave(NO_SHARE)
    assert door.woken == 1
    assert not door.must_wait()
    door.enter()
    assert not door.enter(wanted=True)
    door.leave(NO_SHARE)
    assert door.woken == 2


def test_no_client_waits_where_surplus_clients_are_refused() -> None:
    door = Door(max_connections=0, when_full="refuse")
    assert not door.enter()
    assert not door.must_wait()


def test_while_suspended_all_wait() -> None:
    door = Door(when_full="refuse")
    door.suspend()
    assert door.suspended
    assert not door.enter()
    assert door.must_wait()
    door.resume()
    assert door.woken == 2  # when it began, too: somebody may stand by
    assert door.enter()


def test_shared_places_are_those_of_all() -> None:
    places = SharedPlaces(1)
    try:
        one, other = Door(max_connections=1), Door(max_connections=1)
        for door in (one, other):
            door.share(places)
        assert one.enter()
        assert not other.enter()
        assert other.must_wait()
        assert other.places_fileno() == places.fileno()
        one.leave(NO_SHARE)
        assert not other.must_wait()
        assert other.enter()
    finally:
        places.close()


class Closing:
    """A connection, as far as the place that it has is concerned."""

    def __init__(self, ticket: Any) -> None:
        self.ticket = ticket
        self.closed = False

    def destroy(self) -> None:
        self.closed = True


def came(door: Door) -> Any:
    assert door.enter()
    return Closing(door.judge(LOCAL))


def test_a_connection_that_is_being_closed_has_given_its_place_back() -> None:
    door = Door(max_connections=1, max_connections_per_ip=1)
    first = came(door)
    assert not door.enter(wanted=True)
    door.linger(first)
    assert door.woken == 1
    second = came(door)
    door.over(first)
    assert not door.enter()
    door.over(second)  # it does not linger
    assert door.enter()
    assert not door._of_network


def test_a_connection_that_is_over_gives_nothing_back_when_another_thread_closes_it() -> None:
    door = Door(max_connections=1)
    connection = came(door)
    taken = connection.ticket
    door.over(connection)
    door.linger(connection)

    class Late(Closing):
        """One whose ticket is gone between two looks."""

        looks = 0

        @property
        def ticket(self) -> Any:
            self.looks += 1
            return taken if self.looks < 3 else None

        @ticket.setter
        def ticket(self, _: Any) -> None:
            pass

    door.linger(Late(taken))  # type: ignore[arg-type]
    assert not door._lingering
    assert [door.enter(), door.enter()] == [True, False]


def test_without_a_limit_closing_connections_are_not_counted() -> None:
    door = Door()
    connection = came(door)
    assert connection.ticket is NO_SHARE
    door.linger(connection)
    assert not door._lingering
    door.over(connection)
    assert not door._taken


def test_so_many_close_without_a_place_and_more_destroy_the_oldest_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admission, "MAX_LINGERING", 2)
    door = Door(max_connections=5)
    all_of_them = first, second, third, fourth, fifth = [came(door) for _ in range(5)]
    for connection in all_of_them:
        door.linger(connection)
    assert [each.closed for each in all_of_them] == [True, True, True, False, False]
    # Their handlers have not returned, so that the last three keep their places.
    assert [each.ticket for each in all_of_them] == [None, None, PLACE, PLACE, PLACE]
    door.over(first)
    door.over(fourth)
    assert [each.ticket for each in all_of_them] == [None, None, None, None, PLACE]
    assert door._taken == 1
    door.over(fifth)
    door.over(second)
    door.over(third)
    assert not door._taken
    assert not door._lingering


def test_the_last_that_closes_is_not_destroyed_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "MAX_LINGERING", 0)
    door = Door(max_connections=1)
    connection = came(door)
    door.linger(connection)
    assert not connection.closed
    door.over(connection)
    assert not door._taken


@pytest.mark.parametrize(
    ("allow", "deny", "admitted", "refused"),
    [
        (None, ["10.0.0.0/8"], ["11.0.0.1", "::1"], ["10.1.2.3", "::ffff:10.1.2.3"]),
        (["10.0.0.0/8"], None, ["10.1.2.3", "::ffff:10.1.2.3"], ["11.0.0.1", "::1"]),
        (["10.1.0.0/16"], ["10.0.0.0/8"], ["10.1.2.3"], ["10.2.0.1", "11.0.0.1"]),
        (["10.0.0.0/8"], ["10.1.0.0/16"], ["10.2.0.1"], ["10.1.2.3", "11.0.0.1"]),
        (["10.0.0.0/8"], ["10.0.0.0/8"], [], ["10.2.0.1"]),
    ],
)
def test_of_two_lists_the_longest_prefix_counts(
    allow: Any, deny: Any, admitted: list[str], refused: list[str]
) -> None:
    door = Door(allow=allow, deny=deny)
    assert [door.judge((address, 1)) for address in admitted] == [NO_SHARE] * len(admitted)
    assert all(door.judge((address, 1)) in ("allow", "deny") for address in refused)


def test_the_clients_of_a_unix_socket_have_no_address_to_judge() -> None:
    assert Door(allow=["10.0.0.0/8"]).judge("") == NO_SHARE


@pytest.mark.parametrize("address", ["64:ff9b::a00:1", "2002:a00:1::1", "::10.0.0.1"])
def test_an_address_that_leads_to_another_one_is_denied_as_that_one_and_not_allowed_as_it(
    address: str,
) -> None:
    assert Door(deny=["10.0.0.0/8"]).judge((address, 1)) == "deny"
    assert Door(deny=["10.0.0.0/8"], allow=["::/0"]).judge((address, 1)) == "deny"
    assert Door(deny=["11.0.0.0/8"]).judge((address, 1)) == NO_SHARE
    assert Door(allow=["10.0.0.0/8"]).judge((address, 1)) == "allow"
    assert Door(allow=[address], deny=["10.0.0.0/8"]).judge((address, 1)) == NO_SHARE


def test_the_longest_prefix_counts_across_both_families() -> None:
    for allow, deny in (("0.0.0.0/0", "::/0"), ("10.0.0.0/8", "::/90")):
        assert Door(allow=[allow], deny=[deny]).judge(("10.0.0.1", 1)) == NO_SHARE
    assert Door(allow=["::/0"], deny=["0.0.0.0/0"]).judge(("10.0.0.1", 1)) == "deny"


def test_each_address_has_its_share_and_ipv6_counts_by_network() -> None:
    door = Door(max_connections_per_ip=2)
    tickets = [door.judge(("2001:db8::1", 1, 0, 0)), door.judge(("2001:db8::2", 1, 0, 0))]
    assert tickets == [Ticket("2001:db8::/64")] * 2
    assert door.judge(("2001:db8::3", 1, 0, 0)) == "max_connections_per_ip"
    assert door.judge(("2001:db8:0:1::3", 1, 0, 0)) == Ticket("2001:db8:0:1::/64")
    assert door.judge(("::ffff:1.2.3.4", 1, 0, 0)) == door.judge(("1.2.3.4", 1))
    door.enter()
    door.leave(Ticket("2001:db8::/64"))
    door.forgo(Ticket("2001:db8::/64"))
    door.forgo(NO_SHARE)
    assert isinstance(door.judge(("2001:db8::3", 1, 0, 0)), Ticket)
    assert "1.2.3.4" in door._of_network
    door.forgo(Ticket("1.2.3.4"))
    door.forgo(Ticket("1.2.3.4"))
    assert "1.2.3.4" not in door._of_network


def test_a_rate_allows_a_burst_and_then_so_many_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    door = Door(max_connection_rate=2)

    def come(address: str = "1.2.3.4") -> bool:
        return door.judge((address, 1)) == NO_SHARE

    assert [come(), come(), come()] == [True, True, False]
    assert come("1.2.3.5")
    now += 0.5
    assert [come(), come()] == [True, False]
    now += 60
    assert [come(), come(), come()] == [True, True, False]


def test_a_rate_is_exact_whatever_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 123_456.789
    monkeypatch.setattr("time.monotonic", lambda: now)
    for rate in (0.1, 0.3, 1, 3, 7, 33, 1.7):
        door = Door(max_connection_rate=rate)
        for _ in range(3):
            came = [door.judge(("1.2.3.4", 1)) for _ in range(40)]
            assert came.count(NO_SHARE) == max(1, int(rate))
            now += 60


def test_the_networks_of_a_site_have_a_share_together() -> None:
    door = Door(max_connections_per_ip=2)
    came = [door.judge((f"2001:db8:1:{number:x}::1", 1, 0, 0)) for number in range(40)]
    assert came[31] == Ticket("2001:db8:1:1f::/64")
    assert came[32:] == ["max_connections_per_ip"] * 8
    assert isinstance(door.judge(("2001:db8:2::1", 1, 0, 0)), Ticket)
    door.forgo(Ticket("2001:db8:1:1f::/64"))
    assert isinstance(door.judge(("2001:db8:1:ffff::1", 1, 0, 0)), Ticket)
    for ticket in came[:31]:
        assert isinstance(ticket, Ticket)
        door.forgo(ticket)
    door.forgo(Ticket("2001:db8:2::/64"))
    door.forgo(Ticket("2001:db8:1:ffff::/64"))
    assert not door._of_network


def test_the_networks_of_a_site_have_a_rate_together(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    door = Door(max_connection_rate=1)

    def come(network: int, site: int = 1) -> bool:
        return door.judge((f"2001:db8:{site:x}:{network:x}::1", 1, 0, 0)) == NO_SHARE

    assert [come(network) for network in range(20)] == [True] * 16 + [False] * 4
    assert come(0, site=2)
    now += 0.5
    assert [come(network) for network in range(100, 110)] == [True] * 8 + [False] * 2


def test_a_refused_client_takes_nothing_from_the_others_of_its_site(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    door = Door(max_connection_rate=1)
    one = ("2001:db8:1:1::1", 1, 0, 0)
    assert [door.judge(one) for _ in range(100)] == [NO_SHARE] + ["max_connection_rate"] * 99
    assert door.judge(("2001:db8:1:2::1", 1, 0, 0)) == NO_SHARE


def test_the_rates_of_a_bounded_number_of_networks_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admission, "MAX_RATES", 3)
    door = Door(max_connection_rate=1, max_connections_per_ip=1)
    for number in range(10):
        assert isinstance(door.judge((f"1.2.3.{number}", 1)), Ticket)
    assert len(door._rates._full_at) == 3


def test_a_network_whose_burst_is_used_up_is_not_forgotten_for_those_that_have_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    monkeypatch.setattr(admission, "MAX_RATES", 100)
    door = Door(max_connection_rate=5)

    def come(address: str) -> bool:
        return door.judge((address, 1)) == NO_SHARE

    assert [come("1.2.3.4") for _ in range(6)] == [True] * 5 + [False]
    assert all(come(f"10.0.{number >> 8}.{number & 255}") for number in range(10_000))
    assert not come("1.2.3.4")


# Telling


class Clock:
    now = 50.0

    def __call__(self) -> float:
        return self.now


def test_an_episode_of_refusals_has_an_event_at_its_begin_and_at_its_end() -> None:
    clock = Clock()
    refusals = Refusals(clock)
    with observed() as seen:
        for port in range(3):
            refusals.refused("deny", ("1.2.3.4", port), LOCAL)
            clock.now += 1
        assert refusals.end_episodes() == pytest.approx(admission.EPISODE_QUIET - 1)
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


def test_an_episode_of_waiting_ends_silently() -> None:
    clock = Clock()
    refusals = Refusals(clock)
    with observed() as seen:
        refusals.waiting("max_connections")
        refusals.waiting("max_connections")
        clock.now += 10
        assert refusals.end_episodes() is None
    assert seen == [events.Refusing("max_connections", "", True)]
    assert refusals.count == 0
