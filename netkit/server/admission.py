"""Decides which clients are admitted, before a client costs a thread or a byte of TLS.

To refuse clients by another property of their address, extend `Admission.judge`, and name the new
option in `_note_limits_locked`: `judge` is not called while none of the options there is set.

Rules:

1. A client takes one of the `max_connections` places before it is accepted. So the limit is exact,
   however many worker processes accept. The client gives its place back when its connection is over
   or only being closed: a close may wait for the client, and `N` slow closes must not fill a server
   for `N` clients. Connections that are being closed have a limit of their own.
2. The other limits are judged once the address is known. Of the lists `allow` and `deny`, the one
   with the longest matching prefix decides. With a list `allow`, other addresses are refused.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ..core.addresses import network_of, site_of
from ..core.options import Options
from ..core.record import NamedTuple

if TYPE_CHECKING:
    from ..core.blocklist import BlockList
    from ..net.connection import Connection

# How many connections may close without one of the `max_connections` places. Each costs a thread
# and a descriptor. If more begin to close, the oldest are closed at once.
MAX_LINGERING = 256

# How many times the share of one network a site may use (a /48 of IPv6, with 65,536 networks): one
# customer may own a whole site.
SITE_SHARES = 16

# The rates of so many networks and sites are remembered, in about 200 bytes each.
MAX_RATES = 16384


class Places(Protocol):
    """Places that several processes share, as `Admission` uses them."""

    def take(self) -> bool: ...
    def give_back(self) -> None: ...
    def any_free(self) -> bool: ...
    def fileno(self) -> int: ...


class Ticket(NamedTuple):
    """The place of an admitted client, and its share of its network's limit."""

    network: str | None  # None if `max_connections_per_ip` is off


NO_SHARE = Ticket(None)  # of a client that came while there was no limit
PLACE = Ticket(None)  # of a client that has a place, and no share


class Admission:
    """The limits of one server. Thread-safe.

    `wake` is called, with no lock held, when the accepting thread should look again: when a limit
    has changed, or when a place is free after that thread has found none.
    """

    def __init__(
        self,
        options: Options,
        wake: Callable[[], None],
        *,
        max_lingering: int = MAX_LINGERING,
        max_rates: int = MAX_RATES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = options
        self._wake = wake
        self.max_lingering = max_lingering
        self._max_rates = max_rates
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """Begin anew, in a forked child, with the same options and without a connection."""
        # Guards the attributes that follow. Re-entrant, since a signal handler may stop the server
        # while its thread holds it.
        self._lock = threading.RLock()
        self._taken = 0  # places
        self._wanted = False  # the accepting thread waits for a place
        self.suspended = False
        """Whether no client is admitted at present."""
        self._shared: Places | None = None
        # The connections that are being closed, the oldest first. Those without a ticket have given
        # their place back. The others keep it: they came when `max_lingering` were there.
        self._lingering: dict[Connection, None] = {}
        self._of_network: dict[str, int] = {}  # connections by network and by site
        self._rates = _Rates(self._max_rates)
        self.unlimited = False
        """Whether there is always a free place."""
        self.judges = False
        """Whether `judge` may refuse a client, or has something to count."""
        self._note_limits_locked()

    def configure(self, options: Options) -> None:
        """Replace the limits. Connected clients stay."""
        with self._lock:
            self._options = options
            self._note_limits_locked()
        self._wake()

    def share(self, places: Places) -> None:
        """Use places that several processes share. To be called before a client is admitted."""
        with self._lock:
            self._shared = places
            self._note_limits_locked()

    def suspend(self, suspended: bool = True) -> None:
        """Admit no client, so that new ones wait in the kernel's queue; or admit them again."""
        with self._lock:
            self.suspended = suspended
            self._note_limits_locked()
        self._wake()

    def _note_limits_locked(self) -> None:
        options = self._options
        shared = self._shared is not None
        self.unlimited = options.max_connections is None and not (self.suspended or shared)
        lists = options.allow, options.deny
        limits = *lists, options.max_connection_rate, options.max_connections_per_ip
        self.judges = not self.unlimited or any(limit is not None for limit in limits)

    # Places

    def enter(self) -> bool:
        """Take a place for a client that is about to be accepted.

        False if none is free. Then `wake` is called once one is.
        """
        with self._lock:
            if self.suspended:
                has_place = False
            elif self._shared is not None:
                has_place = self._shared.take()
            else:
                has_place = self.unlimited or not self._is_full_locked()
            self._taken += has_place
            self._wanted = self._wanted or not has_place
            return has_place

    def leave(self, ticket: Ticket | None) -> None:
        """Give back the place of `enter` and the share of `judge`. None has nothing to give."""
        if ticket is None:
            return
        with self._lock:
            self._taken -= 1
            if self._shared is not None:
                self._shared.give_back()
            if ticket.network is not None:
                self._give_share_back_locked(ticket.network)
            wanted, self._wanted = self._wanted, False
        if wanted:
            self._wake()

    def must_wait(self) -> bool:
        """Whether new clients are to stay in the kernel's queue.

        If so, `wake` is called once that may have changed.
        """
        with self._lock:
            full = self.suspended or (self._options.when_full == "wait" and self._is_full_locked())
            self._wanted = self._wanted or full
            return full

    def places_fileno(self) -> int | None:
        """A descriptor that is readable while shared places are free; None if none are shared."""
        return None if self._shared is None else self._shared.fileno()

    def _is_full_locked(self) -> bool:
        if self._shared is not None:
            return not self._shared.any_free()
        limit = self._options.max_connections
        return limit is not None and self._taken >= limit

    # The end of a connection

    def linger(self, connection: Connection) -> None:
        """Give back the place of `connection`, which is being closed; this may last a while.

        If too many connections are being closed, the oldest of them is destroyed, and `connection`
        keeps its place until one of them is over.
        """
        if connection.ticket is None or connection.ticket is NO_SHARE:
            return
        ticket = oldest = None
        with self._lock:
            if connection.ticket is None:  # another thread has called `over` since
                return
            self._lingering[connection] = None
            if len(self._lingering) <= self.max_lingering:
                ticket, connection.ticket = connection.ticket, None
            else:
                oldest = next((each for each in self._lingering if not each.closed), None)
        if oldest is not None and oldest is not connection:
            oldest.destroy()
        self.leave(ticket)

    def over(self, connection: Connection) -> None:
        """Give back the place and the share of a connection that is closed. To be called once."""
        with self._lock:
            ticket, connection.ticket = connection.ticket, None
            if connection in self._lingering:
                del self._lingering[connection]
                if ticket is None:
                    ticket = self._next_ticket_locked()
        self.leave(ticket)

    def _next_ticket_locked(self) -> Ticket | None:
        """Take the ticket of a connection which may close without a place from now on."""
        if len(self._lingering) < self.max_lingering:  # else one of them has kept its place
            return None
        oldest = next(each for each in self._lingering if each.ticket is not None)
        ticket: Ticket
        ticket, oldest.ticket = oldest.ticket, None
        return ticket

    # The address

    def judge(self, client_address: Any) -> Ticket | str:
        """Return the ticket of an accepted client, or the name of the option that refuses it."""
        options = self._options
        ticket = NO_SHARE if self.unlimited else PLACE
        if not isinstance(client_address, tuple):  # a client of a Unix socket has no address
            return ticket
        address = client_address[0]
        reason = _why_not_listed(address, options)
        if reason:
            return reason
        if options.max_connection_rate is None and options.max_connections_per_ip is None:
            return ticket
        return self._judge_network(network_of(address), ticket, options)

    def judge_proxy(self, address: Any) -> Ticket | str:
        """As `judge`, for a proxy, whose client is judged once its header has been read."""
        if isinstance(address, tuple):  # the mode of its file protects a Unix socket
            trusted = self._options.proxy_from  # an empty list trusts nobody
            trusted = _this_machine() if trusted is None else trusted
            if trusted.longest_match(address[0]) is None:
                return "proxy_from"
        return NO_SHARE if self.unlimited else PLACE

    def judge_introduced(self, connection: Connection, client_address: Any) -> str:
        """Judge the client of a connection that has been admitted for its proxy.

        Returns the name of the option that refuses it; empty if none does.
        """
        verdict = self.judge(client_address)
        if isinstance(verdict, str):
            return verdict
        with self._lock:
            is_open = connection.ticket is not None
            if is_open:
                connection.ticket = verdict
                connection.on_close = None if verdict is NO_SHARE else self.linger
        if not is_open:  # another thread is closing it
            self.give_share_back(verdict)
        return ""

    def _judge_network(self, network: str, ticket: Ticket, options: Options) -> Ticket | str:
        rate, most = options.max_connection_rate, options.max_connections_per_ip
        shares = _shares(network)
        with self._lock:
            if rate is not None and not self._rates.take(shares, rate, self._clock()):
                return "max_connection_rate"
            if most is None:
                return ticket
            if any(self._of_network.get(name, 0) >= most * factor for name, factor in shares):
                return "max_connections_per_ip"
            for name, _ in shares:
                self._of_network[name] = self._of_network.get(name, 0) + 1
            return Ticket(network)

    def give_share_back(self, ticket: Ticket) -> None:
        """Give back the share of `judge`, for a client that never had a place."""
        if ticket.network is not None:
            with self._lock:
                self._give_share_back_locked(ticket.network)

    def _give_share_back_locked(self, network: str) -> None:
        for name, _ in _shares(network):
            self._of_network[name] -= 1
            if not self._of_network[name]:
                del self._of_network[name]


@functools.cache
def _this_machine() -> BlockList:
    from ..core.blocklist import BlockList  # here because most programs have no list

    return BlockList(("127.0.0.0/8", "::1"))


def _why_not_listed(address: str, options: Options) -> str | None:
    allowed = None if options.allow is None else options.allow.longest_match(address)
    denied = None if options.deny is None else options.deny.longest_match(address, embedded=True)
    if denied is not None and (allowed is None or denied >= allowed):
        return "deny"
    if options.allow is not None and allowed is None:
        return "allow"
    return None


def _shares(network: str) -> Sequence[tuple[str, int]]:
    """The names that a client of `network` is counted under, and how many shares each has."""
    site = site_of(network)
    return ((network, 1),) if site is None else ((network, 1), (site, SITE_SHARES))


class _Rates:
    """Token buckets: for each share, `rate` clients a second, and as many at once."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._full_at: dict[str, float] = {}  # when each bucket is full again, unless it is full

    def take(self, shares: Sequence[tuple[str, int]], rate: float, now: float) -> bool:
        """Take a token from each bucket. If one of them is empty, take none and return False."""
        full_at = {name: max(self._full_at.get(name, now), now) for name, _ in shares}
        for name, factor in shares:
            missing = (full_at[name] - now) * rate * factor
            if max(1.0, rate * factor) - missing < 1 - 1e-6:  # as far as numbers are exact
                return False
        for name, factor in shares:
            self._full_at[name] = full_at[name] + 1 / (rate * factor)
        if len(self._full_at) > self._most:
            self._forget()
        return True

    def _forget(self) -> None:
        """Forget a quarter of the buckets: those that are full, or will be full first."""
        buckets = sorted(self._full_at.items(), key=lambda bucket: bucket[1])
        self._full_at = dict(buckets[len(buckets) // 4 :])
