"""Decides which clients are admitted, before they cost a thread or a byte of TLS.

Rules:

1. A place is taken before a client is accepted, so that there is never one too many, however many
   threads, and worker processes, accept at once. It is given back when the connection is over, or
   when all that is left is its polite close, which may wait for the client: a limit of `N` clients
   must not be one of `N` closes. Connections that are being closed have places of their own,
   `MAX_LINGERING`.
2. The other limits are judged once the address is known. Of two lists of addresses, the longest
   prefix counts; if there is a list of those allowed, no other address is.
3. Refused clients are counted, and logged once for each episode.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..core import events
from ..core.addresses import network_of, site_of
from ..core.options import Options
from ..net.addresses import SocketAddress, describe_peer

if TYPE_CHECKING:
    from ..net.connection import Connection


class Places(Protocol):
    """What `Admission` needs of places that several processes share."""

    def take(self) -> bool: ...
    def give_back(self) -> None: ...
    def any_free(self) -> bool: ...
    def fileno(self) -> int: ...


# An episode is over once no client has been refused for so long (seconds).
EPISODE_QUIET = 5.0

# How many connections, at most, are being closed without a place of `max_connections` (each costs a
# thread and a descriptor). If more begin to close, the oldest of them are closed at once.
MAX_LINGERING = 256

# What all networks of a site (a /48 of IPv6) may have together: so many times the share of one. A
# customer may have a whole site, that is 65,536 networks.
SITE_SHARES = 16

# Of how many networks and sites the rate is kept. Each takes about 200 bytes.
MAX_RATES = 16384


class Ticket(NamedTuple):
    """What a connection has taken, and gives back: a place, and a share of its network's."""

    network: str | None


NO_SHARE = Ticket(None)  # where there is no limit
PLACE = Ticket(None)  # where there is one, but the client's network is not counted


class Admission:
    """The limits of one server. All methods may be called from any thread.

    `wake`: called, with no lock held, when the accepting thread has something to look at: a place,
    after it has been told that there is none.
    """

    def __init__(self, options: Options, wake: Callable[[], None]) -> None:
        self._wake = wake
        # Guards what follows. Re-entrant, since a signal handler may stop the server from within.
        self._lock = threading.RLock()
        self._taken = 0  # how many places are taken
        self._wanted = False  # the accepting thread waits for a place
        self.suspended = False
        """Whether no client is let in for the time being."""
        self._shared: Places | None = None
        # Connections that are being closed, the oldest first. One without a ticket has given its
        # place back; the others have come while `MAX_LINGERING` of these were there.
        self._lingering: dict[Connection, None] = {}
        self._of_network: dict[str, int] = {}
        self._rates = _Rates()
        self._options = options
        # What the accepting threads ask for each client.
        self.unlimited = self.judges = False
        self._note_limits_locked()

    def configure(self, options: Options) -> None:
        """Have other limits from now on; clients that are connected stay."""
        with self._lock:
            self._options = options
            self._note_limits_locked()
        self._wake()

    def share(self, places: Places) -> None:
        """Have `max_connections` hold for all worker processes together; before any client."""
        with self._lock:
            self._shared = places
            self._note_limits_locked()

    # Places

    def enter(self, wanted: bool = False) -> bool:
        """Take a place for a client about to be accepted, if there is one.

        `wanted`: else have `wake` called once there is.
        """
        with self._lock:
            if self._take_locked():
                self._taken += 1
                return True
            self._wanted = self._wanted or wanted
            return False

    def leave(self, ticket: Ticket | None) -> None:
        """Give back what `enter`, and `judge`, have given; None stands for nothing."""
        if ticket is None:
            return
        with self._lock:
            self._taken -= 1
            if self._shared is not None:
                self._shared.give_back()
            self._forgo_locked(ticket)
            wanted, self._wanted = self._wanted, False
        if wanted:
            self._wake()

    def linger(self, connection: Connection) -> None:
        """`connection` is being closed: its place is free from now on, though it may last a while.

        If there are more than `MAX_LINGERING` such connections, the oldest one is destroyed, and
        `connection` keeps its place until one of them is over.
        """
        if connection.ticket is None or connection.ticket is NO_SHARE:
            return
        ticket = oldest = None
        with self._lock:
            if connection.ticket is None:  # it is over by now
                return
            self._lingering[connection] = None
            if len(self._lingering) <= MAX_LINGERING:
                ticket, connection.ticket = connection.ticket, None
            else:
                oldest = next((each for each in self._lingering if not each.closed), None)
        if oldest is not None and oldest is not connection:
            oldest.destroy()
        self.leave(ticket)

    def over(self, connection: Connection) -> None:
        """`connection` is over: give back what it has. To be called once."""
        with self._lock:
            ticket, connection.ticket = connection.ticket, None
            if connection in self._lingering:
                del self._lingering[connection]
                if ticket is None:
                    ticket = self._next_ticket_locked()
        self.leave(ticket)

    def _next_ticket_locked(self) -> Ticket | None:
        """That of the connection which lingers from now on without a place."""
        if len(self._lingering) < MAX_LINGERING:  # else one of them has kept its place
            return None
        heir = next(each for each in self._lingering if each.ticket is not None)
        ticket: Ticket
        ticket, heir.ticket = heir.ticket, None
        return ticket

    def _take_locked(self) -> bool:
        limit = self._options.max_connections
        if self.suspended:
            return False
        if self._shared is not None:
            return self._shared.take()
        return limit is None or self._taken < limit

    def _note_limits_locked(self) -> None:
        options = self._options
        shared = self._shared is not None
        self.unlimited = options.max_connections is None and not (self.suspended or shared)
        lists = (options.allow, options.deny)
        numbers = (options.max_connection_rate, options.max_connections_per_ip)
        self.judges = not self.unlimited or (*lists, *numbers) != (None,) * 4

    def must_wait(self) -> bool:
        """Whether new clients are to be left in the kernel's queue; `wake` is called when not."""
        with self._lock:
            full = self.suspended or (self._options.when_full == "wait" and self._is_full_locked())
            self._wanted = self._wanted or full
            return full

    def _is_full_locked(self) -> bool:
        if self._shared is not None:
            return not self._shared.any_free()
        limit = self._options.max_connections
        return limit is not None and self._taken >= limit

    def suspend(self) -> None:
        """Admit no client until `resume`: new clients wait in the kernel's queue."""
        self._set_suspended(True)

    def resume(self) -> None:
        """Admit clients again."""
        self._set_suspended(False)

    def _set_suspended(self, suspended: bool) -> None:
        with self._lock:
            self.suspended = suspended
            self._note_limits_locked()
        self._wake()

    def places_fileno(self) -> int | None:
        """A descriptor that is readable once another process has given a place back, if any."""
        return None if self._shared is None else self._shared.fileno()

    # The other limits

    def judge(self, client_address: Any) -> Ticket | str:
        """What an accepted client takes if it is admitted, else the name of the option at fault."""
        options = self._options
        ticket = NO_SHARE if self.unlimited else PLACE
        if not isinstance(client_address, tuple):  # of a Unix socket
            return ticket
        address = client_address[0]
        if options.allow is not None or options.deny is not None:
            why = _why_not_listed(address, options)
            if why:
                return why
        rate, most = options.max_connection_rate, options.max_connections_per_ip
        if rate is None and most is None:
            return ticket
        network = network_of(address)
        shares = _shares(network)
        with self._lock:
            if rate is not None and not self._rates.take(shares, rate, time.monotonic()):
                return "max_connection_rate"
            if most is None:
                return ticket
            if any(self._of_network.get(name, 0) >= most * factor for name, factor in shares):
                return "max_connections_per_ip"
            for name, _ in shares:
                self._of_network[name] = self._of_network.get(name, 0) + 1
            return Ticket(network)

    def forgo(self, ticket: Ticket) -> None:
        """Give back what `judge` has given, to one that never had a place."""
        with self._lock:
            self._forgo_locked(ticket)

    def _forgo_locked(self, ticket: Ticket) -> None:
        if ticket.network is not None:
            for name, _ in _shares(ticket.network):
                self._of_network[name] -= 1
                if not self._of_network[name]:
                    del self._of_network[name]


def _why_not_listed(address: str, options: Options) -> str | None:
    allowed = None if options.allow is None else options.allow.longest_match(address)
    denied = None if options.deny is None else options.deny.longest_match(address, embedded=True)
    if denied is not None and (allowed is None or denied >= allowed):
        return "deny"
    if options.allow is not None and allowed is None:
        return "allow"
    return None


def _shares(network: str) -> Sequence[tuple[str, int]]:
    """What a client of `network` takes a share of, and how many shares that has."""
    site = site_of(network)
    return ((network, 1),) if site is None else ((network, 1), (site, SITE_SHARES))


class _Rates:
    """Token buckets: for each share `rate` clients a second, and as many at once."""

    def __init__(self) -> None:
        self._full_at: dict[str, float] = {}  # when each bucket is full again, unless it is

    def take(self, shares: Sequence[tuple[str, int]], rate: float, now: float) -> bool:
        """Take a token from each bucket; False, and nothing is taken, if one of them is empty."""
        full_at = {name: max(self._full_at.get(name, now), now) for name, _ in shares}
        for name, factor in shares:
            missing = (full_at[name] - now) * rate * factor
            if max(1.0, rate * factor) - missing < 1 - 1e-6:  # as far as numbers are exact
                return False
        for name, factor in shares:
            self._full_at[name] = full_at[name] + 1 / (rate * factor)
        if len(self._full_at) > MAX_RATES:
            self._forget()
        return True

    def _forget(self) -> None:
        """A quarter of the buckets: those that are full, and then those that will be so first."""
        buckets = sorted(self._full_at.items(), key=lambda bucket: bucket[1])
        self._full_at = dict(buckets[len(buckets) // 4 :])


class _Episode:
    def __init__(self, now: float) -> None:
        self.began = self.last = now
        self.clients = 0


class Refusals:
    """Counts refused clients, and emits events once for each episode. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, server: Any = None) -> None:
        self._clock = clock
        self._server = server  # which emits the events
        self._lock = threading.RLock()  # guards what follows; signal handlers, as above
        self.episodes: dict[str, _Episode] = {}
        """Those under way, by their reason: others only look whether there are any."""
        self.count = 0
        """How many have been refused so far."""

    def refused(self, reason: str, client_address: Any, local_name: Any) -> bool:
        """A client has been refused, for `reason`. True if it is the first of an episode."""
        peer = describe_peer(client_address)
        with self._lock:
            self.count += 1
            first = self._note_locked(reason)
            self.episodes[reason].clients += 1
        if first:
            events.emit(events.Refusing(reason, peer, False), self._server)
        remote, local = map(SocketAddress.from_sockname, (client_address, local_name))
        events.emit(events.ClientRefused(peer, reason, remote, local), self._server)
        return first

    def waiting(self, reason: str) -> None:
        """New clients have to wait, for `reason`."""
        with self._lock:
            first = self._note_locked(reason)
        if first:
            events.emit(events.Refusing(reason, "", True), self._server)

    def _note_locked(self, reason: str) -> bool:
        now = self._clock()
        episode = self.episodes.get(reason)
        if episode is None:
            self.episodes[reason] = _Episode(now)
            return True
        episode.last = now
        return False

    def end_episodes(self, quiet: float = EPISODE_QUIET) -> float | None:
        """Emit an event for each episode in which no client was refused for `quiet` seconds.

        Returns the seconds until this is worth another call, None if there is no episode.
        """
        now = self._clock()
        over = []
        with self._lock:
            for reason, episode in list(self.episodes.items()):
                if now - episode.last >= quiet:
                    over.append((reason, self.episodes.pop(reason)))
            left = [episode.last + quiet - now for episode in self.episodes.values()]
        for reason, episode in over:
            if episode.clients:
                seconds = episode.last - episode.began
                events.emit(events.Refused(reason, episode.clients, seconds), self._server)
        return min(left, default=None)
