"""Where threads wait that accept for themselves, beside the accepting thread.

Such a thread serves the client that it accepts, without waking another one. While a thread stands
here, the accepting thread leaves the clients to it. Rules:

1. Each stand is an epoll of its own, with the listeners as exclusive (EPOLLEXCLUSIVE, epoll(7)), so
   that the kernel wakes one thread for a client. Without EPOLLEXCLUSIVE, no thread stands.
2. The kernel tells of a client only the epoll that it has woken, even if others are waited for
   later. So a thread that was woken and cannot accept wakes the accepting thread, which looks at
   the listeners itself; and so does the last thread that leaves.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable

from .listener import ExclusiveSelector

# How many stands a server has at most, each with a descriptor: clients that come while more threads
# are idle find one here soon enough. The other threads wait to be given a client.
MOST = 8


class Stands:
    """The stands of one server, made as they are needed. Thread-safe.

    `wake` has the accepting thread look at the listeners; it is called with no lock held.
    """

    def __init__(
        self, wake: Callable[[], None], *listeners: socket.socket, contended: bool = True
    ) -> None:
        """`contended` as for `Acceptor`."""
        self._wake = wake
        self._listeners = listeners
        self._contended = contended
        self._lock = threading.RLock()  # guards what follows; re-entrant, for signal handlers
        self._free: list[ExclusiveSelector] = []
        self._standing = 0  # how many threads have one of the others
        self._closed = False
        self._end = -1  # a descriptor that is readable from then on

    def __len__(self) -> int:
        """How many threads stand."""
        return self._standing

    def wait(self, seconds: float) -> bool:
        """Stand until there may be a client (True), for at most `seconds`, or until `close`.

        False at once if there is no stand left, nor a descriptor for one more.
        """
        stand = self._take()
        if stand is None:
            return False
        try:
            ready = stand.select(seconds, None)
            return bool(ready) and self._end not in ready
        finally:
            with self._lock:
                self._standing -= 1
                self._free.append(stand)
                if self._closed:
                    self.close()
                is_needed = self._closed or not self._standing
            if is_needed:
                self._wake()

    def _take(self) -> ExclusiveSelector | None:
        if not hasattr(select, "EPOLLEXCLUSIVE"):  # pragma: no cover - not Linux
            return None
        with self._lock:
            if self._closed or self._standing == MOST:
                return None
            if self._free:
                stand = self._free.pop()
            else:
                try:
                    if self._end < 0:
                        self._end = os.eventfd(0)
                    descriptors = [listener.fileno() for listener in self._listeners]
                    stand = ExclusiveSelector(self._contended, self._end, *descriptors)
                except (OSError, ValueError):  # no descriptor, or a listener that has been closed
                    return None
            self._standing += 1
            return stand

    def close(self) -> None:
        """Have all threads leave, and no more come; each stand is closed once it is free."""
        with self._lock:
            self._closed = True
            if self._end >= 0:
                os.eventfd_write(self._end, 1)
            while self._free:
                self._free.pop().close()
            if self._end >= 0 and not self._standing:
                os.close(self._end)
                self._end = -1
