"""Clients without a thread: held until there is a place, or turned away and about to be closed.

A client that has sent something before it is turned away would see a reset, and not the message, if
its socket were closed at once. So its end is sent first, and the socket closed a moment later, by
the accepting thread, which looks in here.
"""

from __future__ import annotations

import contextlib
import operator
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from ..net import sockopts

LEAVE_SECONDS = 1.0  # how long a client that was turned away has to read the message
MAX_LEAVING = 128  # how many of them there are at most, and of those held: each has a descriptor
MAX_HELD = 1024
SWALLOWED = 64 * 1024  # bytes of its input that are dropped before it is closed


class Guest(NamedTuple):
    """One that has been accepted and judged, and has no place yet."""

    request: socket.socket
    client_address: Any
    ticket: Any
    until: float


_until = operator.attrgetter("until")


class Anteroom:
    """The clients of one server that have no thread. Thread-safe; `wake` as for `Admission`."""

    def __init__(
        self, wake: Callable[[], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._wake = wake
        self._clock = clock
        self._lock = threading.RLock()  # guards both; re-entrant, for signal handlers
        self.held: deque[Guest] = deque()
        """Clients that wait for a place; others may only look whether there are any."""
        self.leaving: deque[tuple[float, socket.socket]] = deque()
        """Clients that were turned away, each with the moment to close it."""
        self._closed = False

    def hold(self, request: socket.socket, address: Any, ticket: Any, seconds: float) -> bool:
        """Keep a client until there is a place, at most `seconds`.

        False if there are too many, or after `close`.
        """
        with self._lock:
            if self._closed or len(self.held) >= MAX_HELD:
                return False
            self.held.append(Guest(request, address, ticket, self._clock() + seconds))
            return True

    def next_held(self) -> Guest | None:
        """Remove and return the client that has waited for longest."""
        with self._lock:
            return self.held.popleft() if self.held else None

    def next_overdue(self) -> Guest | None:
        """Remove and return a client whose time is up."""
        with self._lock:
            first = min(self.held, key=_until, default=None)
            if first is None or first.until > self._clock():
                return None
            self.held.remove(first)
            return first

    def turn_away(self, request: socket.socket, message: bytes) -> None:
        """Send `message`, as far as it goes at once, and the end; close it a moment later."""
        with contextlib.suppress(OSError):
            request.setblocking(False)
            if message:
                request.send(message)
        sockopts.shut_down(request, socket.SHUT_WR)
        oldest = None
        with self._lock:
            self.leaving.append((self._clock() + LEAVE_SECONDS, request))
            if self._closed or len(self.leaving) > MAX_LEAVING:
                _, oldest = self.leaving.popleft()
        if oldest is not None:
            _close(oldest)
        self._wake()

    def close_those_who_left(self) -> float | None:
        """Close the clients that had time to leave.

        Returns the seconds until the next client's time is up, None if there is none.
        """
        now = self._clock()
        over = []
        with self._lock:
            while self.leaving and self.leaving[0][0] <= now:
                over.append(self.leaving.popleft()[1])
            due = [until for until, _ in list(self.leaving)[:1]]
            due += [guest.until for guest in self.held]
        for request in over:
            _close(request)
        return max(0.0, min(due) - now) if due else None

    def close(self) -> list[Guest]:
        """Close the clients that were turned away; return those that were held, for the caller.

        From now on no client is held, and one that is turned away is closed at once: a thread that
        has accepted a client may come late.
        """
        with self._lock:
            self._closed = True
            leaving, self.leaving = self.leaving, deque()
            held, self.held = list(self.held), deque()
        for _, request in leaving:
            _close(request)
        return held

    def close_descriptors(self) -> None:
        """In a forked child: they are the parent's clients, and nothing may be told to them."""
        for request in [guest.request for guest in self.held] + [each for _, each in self.leaving]:
            sockopts.force_close(request)


def _close(request: socket.socket) -> None:
    with contextlib.suppress(OSError):
        request.recv(SWALLOWED)
    sockopts.force_close(request)
