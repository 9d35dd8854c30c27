"""Which thread accepts for a server, and how the others tell it to stop.

At most one thread at a time is in its turn, and waits on the listeners. The others wait for the end
of that turn, or wake its thread, through one Condition.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from ..core import events
from ..core.backoff import BackOff
from .listener import FIRST_PAUSE, LONGEST_PAUSE, Acceptor


def _nobody_waits() -> None:
    pass


class Accepting:
    """The turn of the accepting thread. All methods may be called from any thread.

    `request_stop` may also be called from a signal handler that has interrupted one of the others.
    """

    def __init__(self, ended: Callable[[], None] = _nobody_waits, server: Any = None) -> None:
        """`ended` is called, with no lock held, when a turn has ended, or rests."""
        self._ended = ended
        self._server = server  # which emits the events
        # Guards what follows. Re-entrant, for the signal handlers.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)  # notified when a turn ends, or rests
        self._acceptor: Acceptor | None = None
        self._thread: int | None = None
        self.back_off = BackOff(FIRST_PAUSE, LONGEST_PAUSE)
        self._paused_at = 0.0
        self._resting = False
        self.stop_requested = False
        self.has_begun = False
        """Whether there was a turn since the last `expect`, if only one that ended at once."""

    @property
    def under_way(self) -> bool:
        """Whether a thread is in its turn."""
        return self._acceptor is not None

    def begin(self, *listeners: socket.socket, contended: bool = True) -> Acceptor | None:
        """Begin a turn, for the calling thread or for one that will `take_over`.

        `contended` as for `Acceptor`. None if another thread is in its turn, or if a stop was
        requested before the first turn.
        """
        with self._lock:
            if self._acceptor is not None:
                return None
            self.has_begun = True
            if self.stop_requested:
                self.stop_requested = False
                return None
            self._thread = threading.get_ident()  # first: a signal handler may ask whose turn it is
            try:
                self._acceptor = Acceptor(*listeners, contended=contended)
            except BaseException as error:
                self._thread = None
                if self.stop_requested and isinstance(error, (OSError, ValueError)):
                    self.stop_requested = False  # by such a handler, which has closed them
                    return None
                raise
            return self._acceptor

    def expect(self) -> None:
        """A thread is about to begin a turn; a stop that is requested before ends it at once."""
        with self._changed:
            if self._acceptor is None:
                self.has_begun = False

    def take_over(self, acceptor: Acceptor) -> bool:
        """The turn of `acceptor` is the calling thread's from now on. False if it has ended."""
        with self._lock:
            if self._acceptor is not acceptor:
                return False
            self._thread = threading.get_ident()
            return True

    def runs_here(self) -> bool:
        """Whether the calling thread is the one whose turn it is."""
        return self._thread == threading.get_ident()

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """Meanwhile its thread does something else, and no thread waits for the end of the turn."""
        with self._changed:
            self._resting = True
            self._changed.notify_all()
        self._ended()
        try:
            yield
        finally:
            with self._changed:
                self._resting = False

    def end(self) -> None:
        """End the turn."""
        with self._changed:
            if self._acceptor is not None:
                self._acceptor.close()
            self._acceptor = self._thread = None
            self.stop_requested = False
            self._changed.notify_all()
        self._ended()

    def end_in_child(self) -> bool:
        """In a forked child, where no thread accepts: close the descriptors, and write to none.

        Returns whether a thread of the parent is in its turn.
        """
        if self._acceptor is None:
            return False
        self._acceptor.close()
        return True

    def request_stop(self) -> None:
        """Have the turn end soon; if there never was one, the first will end at once."""
        with self._changed:
            self.stop_requested = self._thread is not None or not self.has_begun
            self._changed.notify_all()
            if self._acceptor is not None:
                self._acceptor.wake()

    def wake(self) -> None:
        """Have the accepting thread, if there is one, look around."""
        with self._lock:
            if self._acceptor is not None:
                self._acceptor.wake()

    def wait_for_end(self) -> None:
        """Wait until the turn has ended; not in the thread whose turn it is."""
        with self._changed:
            self._changed.wait_for(self.has_ended())

    def has_ended(self) -> Callable[[], bool]:
        """A function that says whether the present turn has ended, or need not be waited for.

        That is so while it rests, and in its own thread.
        """
        acceptor, mine = self._acceptor, self._thread == threading.get_ident()
        return lambda: mine or acceptor is None or self._acceptor is not acceptor or self._resting

    def failed(self, error: BaseException) -> None:
        """The machine cannot serve one more client: wait a little, and longer each time.

        The wait ends early when a stop is requested. Another thread than that of the turn (a hook
        may have put a client off) waits for that, and leaves the listeners alone.
        """
        with self._changed:
            first = not self.back_off.pause
            if first:
                self._paused_at = time.monotonic()
            self.back_off.failed()
        if first:
            events.emit(events.AcceptPaused(error), self._server)
        acceptor, seconds = self._acceptor, self.back_off.pause
        if acceptor is not None and self._thread == threading.get_ident():
            acceptor.pause(seconds)
            return
        with self._changed:
            self._changed.wait_for(lambda: self.stop_requested or self._acceptor is None, seconds)

    def succeeded(self) -> None:
        """A client has been accepted and given a thread: the machine is fine again."""
        with self._lock:
            paused = bool(self.back_off.pause)
            self.back_off.succeeded()
        if paused:
            seconds = time.monotonic() - self._paused_at
            events.emit(events.AcceptResumed(seconds), self._server)
