"""Clients that have been accepted and have no thread: held until a place is free, or refused.

The socket of a refused client is closed in two steps. If it was closed at once, a client that has
sent something would see a reset, and not the message. So the end of output is sent first, and the
accepting thread closes the socket a moment later.
"""

from __future__ import annotations

import contextlib
import operator
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from ..core.endpoint import DIRECT, Layers
from ..core.record import NamedTuple
from ..net import sockopts

CLOSE_SECONDS = 1.0  # how long a refused client has to read the message
MAX_REFUSED = 128  # how many sockets of refused clients are open at most
MAX_HELD = 1024
SWALLOWED = 64 * 1024  # bytes of a refused client's input that are dropped before the close


class Held(NamedTuple):
    """A client that has been accepted and judged, and waits for a place."""

    request: socket.socket
    client_address: Any
    ticket: Any  # of `Admission.judge`
    until: float  # on the clock of `Overflow`
    layers: Layers = DIRECT  # of its listener
    accepted_at: float = 0.0  # on the clock of `Overflow`


_until = operator.attrgetter("until")


class Overflow:
    """The clients of one server that have no thread. Thread-safe."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        max_held: int = MAX_HELD,
        max_refused: int = MAX_REFUSED,
    ) -> None:
        self._clock = clock
        self.max_held = max_held
        self.max_refused = max_refused
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()  # guards the attributes that follow
        self.held: deque[Held] = deque()
        """The clients that wait for a place. Other classes only look whether there are any."""
        self.refused: deque[tuple[float, socket.socket]] = deque()
        """The clients that were refused, each with the moment when its socket is to be closed."""
        self._closed = False

    def hold(
        self,
        request: socket.socket,
        address: Any,
        ticket: Any,
        seconds: float,
        layers: Layers = DIRECT,
    ) -> bool:
        """Keep a client until a place is free, at most `seconds`. `layers` are of its listener.

        False if too many clients are held, or after `close`.
        """
        with self._lock:
            if self._closed or len(self.held) >= self.max_held:
                return False
            now = self._clock()
            self.held.append(Held(request, address, ticket, now + seconds, layers, now))
            return True

    def take_held(self) -> Held | None:
        """Remove and return the client that was held first; None if none is held."""
        with self._lock:
            return self.held.popleft() if self.held else None

    def take_overdue(self) -> Held | None:
        """Remove and return a held client whose time is over; None if no time is over."""
        with self._lock:
            first = min(self.held, key=_until, default=None)
            if first is None or first.until > self._clock():
                return None
            self.held.remove(first)
            return first

    def waiting(self) -> list[Held]:
        """Return the held clients, the oldest first, for a look at them."""
        with self._lock:
            return list(self.held)

    def refuse(self, request: socket.socket, message: bytes) -> None:
        """Send as much of `message` as is sent at once, and the end; close the socket soon."""
        with contextlib.suppress(OSError):
            request.setblocking(False)
            if message:
                request.send(message)
        sockopts.shut_down(request, socket.SHUT_WR)
        oldest = None
        with self._lock:
            self.refused.append((self._clock() + CLOSE_SECONDS, request))
            if self._closed or len(self.refused) > self.max_refused:
                _, oldest = self.refused.popleft()
        if oldest is not None:
            _close(oldest)

    def close_refused(self) -> float | None:
        """Close the sockets of refused clients whose time is over.

        Return the seconds until the time of a refused or held client is over; None without clients.
        """
        now = self._clock()
        over = []
        with self._lock:
            while self.refused and self.refused[0][0] <= now:
                over.append(self.refused.popleft()[1])
            due = [until for until, _ in list(self.refused)[:1]]
            due += [each.until for each in self.held]
        for request in over:
            _close(request)
        return max(0.0, min(due) - now) if due else None

    def close(self) -> list[Held]:
        """Close the sockets of refused clients. Return the held clients; the caller closes them.

        From now on no client is held, and the socket of a refused client is closed at once: the
        accepting thread may accept a client later than this.
        """
        with self._lock:
            self._closed = True
            refused, self.refused = self.refused, deque()
            held, self.held = list(self.held), deque()
        for _, request in refused:
            _close(request)
        return held

    def reopen(self) -> None:
        """Undo `close`."""
        with self._lock:
            self._closed = False

    def end_in_child(self) -> None:
        """In a forked child: close all descriptors, and send nothing to the parent's clients."""
        for request in [each.request for each in self.held] + [each for _, each in self.refused]:
            sockopts.force_close(request)
        self._reset()


def _close(request: socket.socket) -> None:
    with contextlib.suppress(OSError):
        request.recv(SWALLOWED)
    sockopts.force_close(request)
