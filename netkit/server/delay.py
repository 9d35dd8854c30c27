"""The time between the announcement that a server is to stop, and its stop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ..core import events
from ..core.deadline import Deadline

_NAME = "netkit-stop-delay"


class Delay:
    """Delays the stop of one server, which accepts and serves meanwhile. Thread-safe.

    The methods may be called in signal handlers, except `wait`.
    """

    def __init__(self, server: Any, stop: Callable[[Delay], object]) -> None:
        """`stop` is called with the delay that has passed, in a thread of its own."""
        self._server = server
        self._stop = stop
        # Guards what follows; notified when a delay ends. Re-entrant, for signal handlers.
        self._changed = threading.Condition()
        self._until: Deadline | None = None  # None if no delay runs

    def begin(self, seconds: float) -> None:
        """Have `stop` called after `seconds`, or as soon as an earlier delay has passed."""
        with self._changed:
            runs = self._until is not None
            until = Deadline(seconds)
            self._until = until if self._until is None else self._until.earlier(until)
            self._changed.notify_all()
        if runs:
            return
        thread = threading.Thread(target=self._run, args=(seconds,), name=_NAME, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system gives no thread
            self.end()
            self._stop(self)

    def end(self) -> None:
        """End the delay now, if one runs. `stop` is not called then."""
        with self._changed:
            self._until = None
            self._changed.notify_all()

    def wait(self) -> None:
        """Wait for the end of the delay, if one runs."""
        with self._changed:
            self._changed.wait_for(lambda: self._until is None)

    def _run(self, seconds: float) -> None:
        events.emit(events.StopDelayed(seconds), self._server)
        with self._changed:
            while self._until is not None and not self._until.expired():
                self._changed.wait(self._until.remaining())
            has_passed, self._until = self._until is not None, None
            self._changed.notify_all()
        if has_passed:
            self._stop(self)
