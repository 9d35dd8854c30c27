"""Which clients are admitted: places, lists of addresses, shares of networks, rates."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from support import in_threads

from netkit.core.options import Options
from netkit.process.shared import SharedPlaces
from netkit.server.admission import NO_SHARE, PLACE, Admission, Ticket

LOCAL = ("127.0.0.1", 5)


class Limits(Admission):
    """Counts the calls of `wake`, and has a clock that stands still."""

    def __init__(self, max_lingering: int = 256, max_rates: int = 16384, **options: Any) -> None:
        self.woken = 0
        self.now = 100.0
        super().__init__(
            Options(**options),
            self._count,
            max_lingering=max_lingering,
            max_rates=max_rates,
            clock=lambda: self.now,
        )

    def _count(self) -> None:
        self.woken += 1

    def admits(self, address: str) -> bool:
        return self.judge((address, 1)) == NO_SHARE


# Places


def test_without_a_limit_each_client_has_a_place() -> None:
    limits = Limits()
    assert all(limits.enter() for _ in range(100))
    assert not limits.must_wait()
    assert limits.places_fileno() is None


def test_there_are_as_many_places_as_the_limit_says() -> None:
    limits = Limits(max_connections=2)
    assert [limits.enter(), limits.enter(), limits.enter()] == [True, True, False]
    limits.leave(NO_SHARE)
    assert [limits.enter(), limits.enter()] == [True, False]
    limits.leave(None)  # of a client that had none
    assert not limits.enter()


def test_places_are_exact_however_many_threads_take_them() -> None:
    limits = Limits(max_connections=5)
    inside, most, lock = 0, 0, threading.Lock()

    def come_and_go() -> None:
        nonlocal inside, most
        for _ in range(300):
            if limits.enter():
                with lock:
                    inside += 1
                    most = max(most, inside)
                with lock:
                    inside -= 1
                limits.leave(NO_SHARE)

    in_threads(come_and_go, [()] * 8)
    assert 1 <= most <= 5
    assert not limits._taken


def test_a_thread_that_waits_for_a_place_is_woken_when_one_is_free() -> None:
    limits = Limits(max_connections=1)
    assert limits.enter()
    assert limits.must_wait()
    limits.leave(NO_SHARE)
    assert limits.woken == 1
    assert not limits.must_wait()
    limits.enter()
    assert not limits.enter()
    limits.leave(NO_SHARE)
    assert limits.woken == 2


def test_clients_do_not_wait_where_a_full_server_refuses_them() -> None:
    limits = Limits(max_connections=0, when_full="refuse")
    assert not limits.enter()
    assert not limits.must_wait()


def test_while_suspended_all_clients_wait() -> None:
    limits = Limits(when_full="refuse")
    limits.suspend()
    assert limits.suspended
    assert not limits.enter()
    assert limits.must_wait()
    limits.suspend(False)
    assert limits.woken == 2
    assert limits.enter()


def test_shared_places_hold_for_all_that_share_them() -> None:
    places = SharedPlaces(1)
    try:
        one, other = Limits(max_connections=1), Limits(max_connections=1)
        for limits in (one, other):
            limits.share(places)
        assert one.enter()
        assert not other.enter()
        assert other.must_wait()
        assert other.places_fileno() == places.fileno()
        one.leave(NO_SHARE)
        assert not other.must_wait()
        assert other.enter()
    finally:
        places.close()


# The end of a connection


class Closing:
    """A connection, as far as its place is concerned."""

    def __init__(self, ticket: Any) -> None:
        self.ticket = ticket
        self.closed = False

    def destroy(self) -> None:
        self.closed = True


def admitted(limits: Limits) -> Any:
    assert limits.enter()
    return Closing(limits.judge(LOCAL))


def test_a_connection_that_is_being_closed_has_given_its_place_back() -> None:
    limits = Limits(max_connections=1, max_connections_per_ip=1)
    first = admitted(limits)
    assert not limits.enter()
    limits.linger(first)
    assert limits.woken == 1
    second = admitted(limits)
    limits.over(first)
    assert not limits.enter()
    limits.over(second)  # it does not linger
    assert limits.enter()
    assert not limits._of_network


def test_a_connection_that_is_over_gives_nothing_back_when_another_thread_closes_it() -> None:
    limits = Limits(max_connections=1)
    connection = admitted(limits)
    taken = connection.ticket
    limits.over(connection)
    limits.linger(connection)

    class Late(Closing):
        """Its ticket is gone between two looks."""

        looks = 0

        @property
        def ticket(self) -> Any:
            self.looks += 1
            return taken if self.looks < 3 else None

        @ticket.setter
        def ticket(self, _: Any) -> None:
            pass

    limits.linger(Late(taken))  # type: ignore[arg-type]
    assert not limits._lingering
    assert [limits.enter(), limits.enter()] == [True, False]


def test_without_a_limit_closing_connections_are_not_counted() -> None:
    limits = Limits()
    connection = admitted(limits)
    assert connection.ticket is NO_SHARE
    limits.linger(connection)
    assert not limits._lingering
    limits.over(connection)
    assert not limits._taken


def test_a_limited_number_closes_without_a_place_and_more_destroy_the_oldest() -> None:
    limits = Limits(max_connections=5, max_lingering=2)
    everyone = first, second, third, fourth, fifth = [admitted(limits) for _ in range(5)]
    for connection in everyone:
        limits.linger(connection)
    assert [each.closed for each in everyone] == [True, True, True, False, False]
    # Their handlers have not returned, so that the last three keep their places.
    assert [each.ticket for each in everyone] == [None, None, PLACE, PLACE, PLACE]
    limits.over(first)
    limits.over(fourth)
    assert [each.ticket for each in everyone] == [None, None, None, None, PLACE]
    assert limits._taken == 1
    for connection in (fifth, second, third):
        limits.over(connection)
    assert not limits._taken
    assert not limits._lingering


def test_a_connection_that_begins_to_close_is_not_destroyed_for_itself() -> None:
    limits = Limits(max_connections=1, max_lingering=0)
    connection = admitted(limits)
    limits.linger(connection)
    assert not connection.closed
    limits.over(connection)
    assert not limits._taken


# Lists of addresses


@pytest.mark.parametrize(
    ("allow", "deny", "admitted", "refused"),
    [
        (None, ["10.0.0.0/8"], ["11.0.0.1", "::1"], ["10.1.2.3", "::ffff:10.1.2.3"]),
        (["10.0.0.0/8"], None, ["10.1.2.3", "::ffff:10.1.2.3"], ["11.0.0.1", "::1"]),
        (["10.1.0.0/16"], ["10.0.0.0/8"], ["10.1.2.3"], ["10.2.0.1", "11.0.0.1"]),
        (["10.0.0.0/8"], ["10.1.0.0/16"], ["10.2.0.1"], ["10.1.2.3", "11.0.0.1"]),
        (["10.0.0.0/8"], ["10.0.0.0/8"], [], ["10.2.0.1"]),
        # Across both families.
        (["0.0.0.0/0"], ["::/0"], ["10.0.0.1"], []),
        (["10.0.0.0/8"], ["::/90"], ["10.0.0.1"], []),
        (["::/0"], ["0.0.0.0/0"], [], ["10.0.0.1"]),
    ],
)
def test_of_two_lists_the_longest_prefix_decides(
    allow: Any, deny: Any, admitted: list[str], refused: list[str]
) -> None:
    limits = Limits(allow=allow, deny=deny)
    assert all(limits.admits(address) for address in admitted)
    assert all(limits.judge((address, 1)) in ("allow", "deny") for address in refused)


def test_clients_of_a_unix_socket_have_no_address_to_judge() -> None:
    assert Limits(allow=["10.0.0.0/8"]).judge("") == NO_SHARE


@pytest.mark.parametrize("address", ["64:ff9b::a00:1", "2002:a00:1::1", "::10.0.0.1"])
def test_an_address_with_another_one_inside_is_denied_as_that_one_and_not_allowed_as_it(
    address: str,
) -> None:
    assert Limits(deny=["10.0.0.0/8"]).judge((address, 1)) == "deny"
    assert Limits(deny=["10.0.0.0/8"], allow=["::/0"]).judge((address, 1)) == "deny"
    assert Limits(deny=["11.0.0.0/8"]).admits(address)
    assert Limits(allow=["10.0.0.0/8"]).judge((address, 1)) == "allow"
    assert Limits(allow=[address], deny=["10.0.0.0/8"]).admits(address)


# Shares of networks


def test_each_address_has_its_share_and_ipv6_counts_by_network() -> None:
    limits = Limits(max_connections_per_ip=2)
    tickets = [limits.judge(("2001:db8::1", 1, 0, 0)), limits.judge(("2001:db8::2", 1, 0, 0))]
    assert tickets == [Ticket("2001:db8::/64")] * 2
    assert limits.judge(("2001:db8::3", 1, 0, 0)) == "max_connections_per_ip"
    assert limits.judge(("2001:db8:0:1::3", 1, 0, 0)) == Ticket("2001:db8:0:1::/64")
    assert limits.judge(("::ffff:1.2.3.4", 1, 0, 0)) == limits.judge(("1.2.3.4", 1))
    limits.enter()
    limits.leave(Ticket("2001:db8::/64"))
    limits.give_share_back(Ticket("2001:db8::/64"))
    limits.give_share_back(NO_SHARE)
    assert isinstance(limits.judge(("2001:db8::3", 1, 0, 0)), Ticket)
    assert "1.2.3.4" in limits._of_network
    limits.give_share_back(Ticket("1.2.3.4"))
    limits.give_share_back(Ticket("1.2.3.4"))
    assert "1.2.3.4" not in limits._of_network


def test_the_networks_of_a_site_have_a_share_together() -> None:
    limits = Limits(max_connections_per_ip=2)
    came = [limits.judge((f"2001:db8:1:{number:x}::1", 1, 0, 0)) for number in range(40)]
    assert came[31] == Ticket("2001:db8:1:1f::/64")
    assert came[32:] == ["max_connections_per_ip"] * 8
    assert isinstance(limits.judge(("2001:db8:2::1", 1, 0, 0)), Ticket)
    limits.give_share_back(Ticket("2001:db8:1:1f::/64"))
    assert isinstance(limits.judge(("2001:db8:1:ffff::1", 1, 0, 0)), Ticket)
    for ticket in came[:31]:
        assert isinstance(ticket, Ticket)
        limits.give_share_back(ticket)
    limits.give_share_back(Ticket("2001:db8:2::/64"))
    limits.give_share_back(Ticket("2001:db8:1:ffff::/64"))
    assert not limits._of_network


# Rates


def test_a_rate_allows_a_burst_and_then_so_many_clients_a_second() -> None:
    limits = Limits(max_connection_rate=2)
    assert [limits.admits("1.2.3.4") for _ in range(3)] == [True, True, False]
    assert limits.admits("1.2.3.5")
    limits.now += 0.5
    assert [limits.admits("1.2.3.4") for _ in range(2)] == [True, False]
    limits.now += 60
    assert [limits.admits("1.2.3.4") for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize("rate", [0.1, 0.3, 1, 3, 7, 33, 1.7])
def test_a_rate_is_exact_whatever_its_number(rate: float) -> None:
    limits = Limits(max_connection_rate=rate)
    limits.now = 123_456.789
    for _ in range(3):
        assert sum(limits.admits("1.2.3.4") for _ in range(40)) == max(1, int(rate))
        limits.now += 60


def test_the_networks_of_a_site_have_a_rate_together() -> None:
    limits = Limits(max_connection_rate=1)

    def came(numbers: range, site: int = 1) -> list[bool]:
        return [limits.admits(f"2001:db8:{site:x}:{number:x}::1") for number in numbers]

    assert came(range(20)) == [True] * 16 + [False] * 4
    assert came(range(1), site=2) == [True]
    limits.now += 0.5
    assert came(range(100, 110)) == [True] * 8 + [False] * 2


def test_a_refused_client_takes_nothing_from_the_others_of_its_site() -> None:
    limits = Limits(max_connection_rate=1)
    one = ("2001:db8:1:1::1", 1, 0, 0)
    assert [limits.judge(one) for _ in range(100)] == [NO_SHARE] + ["max_connection_rate"] * 99
    assert limits.admits("2001:db8:1:2::1")


def test_the_rates_of_a_limited_number_of_networks_are_remembered() -> None:
    limits = Limits(max_rates=3, max_connection_rate=1, max_connections_per_ip=1)
    for number in range(10):
        assert isinstance(limits.judge((f"1.2.3.{number}", 1)), Ticket)
    assert len(limits._rates._full_at) == 3


def test_a_network_that_has_used_its_burst_is_remembered_longer_than_those_that_have_not() -> None:
    limits = Limits(max_rates=100, max_connection_rate=5)
    assert [limits.admits("1.2.3.4") for _ in range(6)] == [True] * 5 + [False]
    assert all(limits.admits(f"10.0.{number >> 8}.{number & 255}") for number in range(10_000))
    assert not limits.admits("1.2.3.4")
