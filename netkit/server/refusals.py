"""Counts the clients that a server refuses, and reports them once per episode."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from ..core import events
from ..core.addresses import SocketAddress
from ..net.addresses import describe_peer

# An episode is over once no client has been refused for so long (seconds).
EPISODE_QUIET = 5.0


class _Episode:
    def __init__(self, now: float) -> None:
        self.began = self.last = now
        self.clients = 0


class Refusals:
    """Emits one event when clients begin to be refused for a reason, and one when that ends.

    A reason is the name of an option. Thread-safe.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, server: Any = None) -> None:
        """The events name `server`."""
        self._clock = clock
        self._server = server
        self.reset()

    def reset(self) -> None:
        """Begin anew, in a forked child."""
        self._lock = threading.Lock()  # guards the attributes that follow
        self.episodes: dict[str, _Episode] = {}
        """The present episodes by their reason. Other classes only look whether there are any."""
        self.count = 0
        """How many clients have been refused so far."""

    def refused(self, reason: str, client_address: Any, local_name: Any, id: int = 0) -> None:
        """Note a client that was refused. `local_name` is that of its socket.

        `id` is that of its connection, if there is one already.
        """
        peer = describe_peer(client_address)
        self._note(reason, peer, 1)
        remote, local = map(SocketAddress.from_sockname, (client_address, local_name))
        events.emit(events.ClientRefused(peer, reason, remote, local, id), self._server)

    def waiting(self, reason: str) -> None:
        """Note that new clients wait in the kernel's queue."""
        self._note(reason, "", 0)

    def _note(self, reason: str, peer: str, clients: int) -> None:
        now = self._clock()
        with self._lock:
            is_first = reason not in self.episodes
            episode = self.episodes.setdefault(reason, _Episode(now))
            episode.last = now
            episode.clients += clients
            self.count += clients
        if is_first:
            events.emit(events.Refusing(reason, peer, not clients), self._server)

    def end_episodes(self, quiet: float = EPISODE_QUIET) -> float | None:
        """End each episode in which no client was refused for `quiet` seconds.

        Return the seconds until the next episode may end; None if there is no episode.
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
