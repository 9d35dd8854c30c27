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

from . import sockets

LEAVE_SECONDS = 1.0  # what one that was turned away gets to read why
MAX_LEAVING = 128  # how many of them, and how many are held, at most: each costs a descriptor
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
    """Of one server. Thread-safe; `wake` as for `Admission`: there is something to look at."""

    def __init__(
        self, wake: Callable[[], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._wake = wake
        self._clock = clock
        self._lock = threading.RLock()  # guards both; re-entrant, for signal handlers
        self.held: deque[Guest] = deque()
        """Who waits for a place: others only look whether there is somebody."""
        self.leaving: deque[tuple[float, socket.socket]] = deque()
        """Who was turned away, and when to close them."""
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
        """The one who has waited for longest, who leaves the room."""
        with self._lock:
            return self.held.popleft() if self.held else None

    def next_overdue(self) -> Guest | None:
        """One whose time is up, who leaves the room."""
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
        sockets.shut_down(request, socket.SHUT_WR)
        oldest = None
        with self._lock:
            self.leaving.append((self._clock() + LEAVE_SECONDS, request))
            if self._closed or len(self.leaving) > MAX_LEAVING:
                _, oldest = self.leaving.popleft()
        if oldest is not None:
            _close(oldest)
        self._wake()

    def close_those_who_left(self) -> float | None:
        """Close whose moment is over. Seconds until the next thing to do in here; None: nothing."""
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
        """Close all who were turned away; those who are held are the caller's now.

        From now on nobody is held, and who is turned away is closed at once: a thread that has
        accepted a client may come by late.
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
            sockets.force_close(request)


def _close(request: socket.socket) -> None:
    with contextlib.suppress(OSError):
        request.recv(SWALLOWED)
    sockets.force_close(request)
