"""Live events for operators: a bounded buffer for each of them, in each process that serves.

An operator's process asks for what has happened since it last asked. What it is too slow to take is
lost, and counted.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Any

from ..core import events
from ..core.text import described, said

MOST_EVENTS = 2000  # of one operator, which are some 500 bytes each
FORGET_SECONDS = 60.0  # after which an operator that asks no more is forgotten


class Feed:
    """The events of this process that one operator has not been given yet. Thread-safe."""

    def __init__(
        self,
        kinds: Collection[str] = (),
        most: int = MOST_EVENTS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin to collect events: those of the classes named `kinds`, or all if it is empty."""
        self._kinds = frozenset(kinds)
        self._clock = clock
        self._lock = threading.RLock()  # guards the attributes that follow; for signal handlers
        self._events: deque[tuple[float, events.Event]] = deque()
        self._most = most
        self._lost = 0
        self.asked_at = clock()
        self._unsubscribe = events.subscribe(self._note)

    def _note(self, event: events.Event) -> None:
        if self.is_forgotten():  # nobody has ended it: the operator's process was killed
            self.close()
            return
        if self._kinds and type(event).__name__ not in self._kinds:
            return
        with self._lock:
            self._events.append((time.time(), event))
            if len(self._events) > self._most:
                self._events.popleft()
                self._lost += 1

    def take(self) -> dict[str, Any]:
        """Return ``events``, as JSON values, and how many were ``lost`` since the last call."""
        with self._lock:
            taken, self._events = self._events, deque()
            lost, self._lost = self._lost, 0
            self.asked_at = self._clock()
        return {"events": [as_row(*each) for each in taken], "lost": lost}

    def is_forgotten(self) -> bool:
        """Whether nobody has asked for so long that nobody will."""
        return self._clock() - self.asked_at > FORGET_SECONDS

    def close(self) -> None:
        """Collect no more events, and drop those collected. Idempotent."""
        self._unsubscribe()
        with self._lock:
            self._events.clear()


def as_row(moment: float, event: events.Event) -> dict[str, Any]:
    """Return an event as a JSON object."""
    fields = {name: _json(value) for name, value in event.as_dict().items()}
    known = {"time": moment, "event": type(event).__name__, "message": event.message()}
    return {**known, **{name: value for name, value in fields.items() if name not in known}}


def _json(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, BaseException):
        return described(value)
    is_address = hasattr(value, "port")  # a SocketAddress, which is a tuple as well
    if isinstance(value, (list, tuple)) and not is_address:
        return [_json(each) for each in value]
    return said(value)


class Feeds:
    """The feeds of one process, by the name that the one who asks has chosen. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # guards the dictionary
        self._feeds: dict[str, Feed] = {}

    def take(self, name: str, kinds: Sequence[str] = ()) -> dict[str, Any]:
        """Return what the feed `name` has collected. It begins with the first call."""
        self._forget_old()
        with self._lock:
            feed = self._feeds.get(name)
            if feed is None:
                feed = self._feeds[name] = Feed(kinds, clock=self._clock)
        return feed.take()

    def _forget_old(self) -> None:
        with self._lock:
            old = [name for name, feed in self._feeds.items() if feed.is_forgotten()]
            feeds = [self._feeds.pop(name) for name in old]
        for feed in feeds:
            feed.close()

    def end(self, name: str) -> None:
        """Forget the feed `name`, if there is one."""
        with self._lock:
            feed = self._feeds.pop(name, None)
        if feed is not None:
            feed.close()

    def close(self) -> None:
        """Forget all feeds."""
        with self._lock:
            feeds, self._feeds = self._feeds, {}
        for feed in feeds.values():
            feed.close()
