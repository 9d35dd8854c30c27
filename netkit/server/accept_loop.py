"""Which thread accepts the clients of a server, and how other threads end its loop.

At most one thread at a time runs the accept loop. Other threads wake that thread, or wait for the
end of the loop, through one Condition.
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
from .selector import ListenerSelector, new_selector
from .threads import join

# The pauses while this machine cannot serve one more client (seconds). The first is so short that
# nobody notices it, and the longest so long that a lasting shortage costs nothing.
FIRST_PAUSE = 0.005
LONGEST_PAUSE = 1.0

# A shortage is over once accepting has not paused for so long (seconds). While clients come and go,
# it pauses many times a second.
QUIET = 5.0


class AcceptLoop:
    """The state of one server's accept loop, whose `ListenerSelector` identifies it. Thread-safe.

    A signal handler may call `request_stop`, `wake` and `wait_for_end` in the thread that runs the
    loop. The lock is re-entrant for its sake: it may have interrupted one of these methods.
    """

    def __init__(self, on_end: Callable[[], object], server: Any) -> None:
        """`on_end` is called without a lock when the loop has ended, or has been suspended.

        The events name `server`.
        """
        self._on_end = on_end
        self._server = server
        self.back_off = BackOff(FIRST_PAUSE, LONGEST_PAUSE)
        self.quiet = QUIET
        self.pauses = 0
        """How often accepting has paused so far."""
        self._short_at = self._resumed_at = 0.0  # on the monotonic clock
        self.background: threading.Thread | None = None
        """The accepting thread of `Server.start`."""
        self._reset()

    def _reset(self) -> None:
        # Guards the attributes; notified when one of them changes that a thread may wait for.
        self._changed = threading.Condition()
        self._selector: ListenerSelector | None = None
        self._thread: int | None = None  # the thread that runs the loop; None while suspended
        self.lost: Any = None
        """The error by which the listener has failed, and the last loop has ended; else None."""
        self._taken_over = False
        self.stop_requested = False
        self.has_begun = False
        """Whether the loop has run since the last `expect`, though it may have ended at once."""
        self.is_short = False
        """Whether there is a shortage, in which accepting may go on between two pauses."""

    @property
    def under_way(self) -> bool:
        """Whether a thread runs the loop."""
        return self._selector is not None

    def begin(self, *listeners: socket.socket, contended: bool = True) -> ListenerSelector | None:
        """Begin the loop, for the thread that calls `take_over`.

        Returns the selector to wait with; `contended` as for `ListenerSelector`. Returns None if
        another thread runs the loop, or if a stop was requested before the loop ever ran.
        """
        with self._changed:
            if self._selector is not None:
                return None
            self.has_begun = True
            self.lost = None
            if self.stop_requested:
                self.stop_requested = False
                return None
            self._thread = threading.get_ident()  # first, since a signal handler may ask for it
            try:
                selector = self._selector = new_selector(*listeners, contended=contended)
            except BaseException as error:
                self._thread = None
                if self.stop_requested and isinstance(error, (OSError, ValueError)):
                    self.stop_requested = False  # by a signal handler that has closed the listeners
                    return None
                raise
            selector.stopped = selector.stopped or self.stop_requested
            return selector

    def expect(self) -> None:
        """Have a stop that is requested from now on end the next loop at once."""
        with self._changed:
            if self._selector is None:
                self.has_begun = False

    def take_over(self, selector: ListenerSelector) -> bool:
        """Run the loop of `selector` in the calling thread from now on. False if it has ended."""
        with self._changed:
            if self._selector is not selector:
                return False
            self._thread = threading.get_ident()
            self._taken_over = True
            return True

    def hand_over(self, selector: ListenerSelector, thread: threading.Thread) -> None:
        """Have `thread`, which has started, run the loop of `selector`, unless that has ended.

        `thread` calls `take_over`, but perhaps later. From now on the calling thread does not run
        the loop, so that it can wait for its end.
        """
        with self._changed:
            if self._selector is selector:
                self._thread = thread.ident

    def runs_here(self) -> bool:
        """Whether the calling thread runs the loop."""
        return self._thread == threading.get_ident()

    def accepts_here(self) -> bool:
        """Whether the calling thread has taken the loop over, and runs it."""
        return self.runs_here() and self._taken_over

    def suspend(self) -> None:
        """Have no thread run the loop, or wait for its end, until `take_over`."""
        with self._changed:
            self._thread = None
            self._taken_over = False
            selector = self._selector
            self._changed.notify_all()
        if selector is not None:  # else another thread has ended the loop
            selector.call()
        self._on_end()

    def end(self, selector: ListenerSelector) -> None:
        """End the loop of `selector`, and close the selector. Idempotent."""
        with self._changed:
            selector.close()
            if self._selector is selector:
                self._selector = self._thread = None
                self.stop_requested = self._taken_over = False
                self._changed.notify_all()
        selector.call()
        self._on_end()

    @contextlib.contextmanager
    def ending_after_exception(self) -> Iterator[None]:
        """If the ``with`` block raises, end the loop that it has begun in the calling thread.

        A signal handler may raise an exception as soon as the loop has begun.
        """
        is_nested = self.runs_here()  # in a hook, say
        try:
            yield
        except BaseException:
            if self._selector is not None and self.runs_here() and not is_nested:
                self.end(self._selector)
            raise

    def reopen(self) -> None:
        """Forget the present loop, since the server listens again.

        If there is one, its thread runs code of the program for longer than the stop has waited.
        """
        with self._changed:
            self._selector = self._thread = None
            self.stop_requested = self._taken_over = self.has_begun = self.is_short = False
            self._changed.notify_all()
        self.back_off.succeeded()

    def end_in_child(self) -> bool:
        """End the loop in a forked child, where no other thread runs it.

        Returns whether a thread of the parent runs it.
        """
        selector = self._selector
        if selector is None:
            return False
        selector.stopped = True
        selector.close()
        self._reset()
        return True

    def request_stop(self) -> None:
        """Have the loop end soon. If it has never run, the first one ends at once."""
        with self._changed:
            begins = self._thread is not None
            self.stop_requested = begins or self._selector is not None or not self.has_begun
            self._changed.notify_all()
            if self._selector is not None:
                self._selector.stopped = True
                self._selector.wake()

    def wake(self) -> None:
        """End the wait of the thread that runs the loop, if there is one."""
        with self._changed:
            if self._selector is not None:
                self._selector.wake()

    def call_soon(self, function: Callable[[], object]) -> None:
        """Have the thread that runs the loop call `function`, as soon as its present step is over.

        So the call shows that this thread accepts clients, and does not hang. `function` must be
        quick and must not raise. If no thread runs the loop, or its thread ends the loop, there is
        nothing to hang, and `function` is called all the same.
        """
        with self._changed:
            selector = None if self._thread is None else self._selector
            if selector is not None:
                selector.calls.append(function)
                selector.wake()
        if selector is None:
            function()

    def wait_for_end(self) -> None:
        """Wait until the loop has ended. Returns at once in the thread that runs it."""
        with self._changed:
            self._changed.wait_for(self.has_ended())

    def has_ended(self) -> Callable[[], bool]:
        """Return a function that tells whether the present loop has ended.

        It also returns True while the loop is suspended, and always if the calling thread runs it.
        """
        selector, mine = self._selector, self.runs_here()
        return lambda: (
            mine or selector is None or self._selector is not selector or self._thread is None
        )

    # The thread of `Server.start`

    def is_for_caller(self, error: BaseException) -> bool:
        """Whether `error` is meant to end the program (Ctrl+C), and has a caller to be raised in.

        The thread that `Server.start` has made has no caller.
        """
        is_background = threading.current_thread() is self.background
        return not (isinstance(error, Exception) or is_background)

    def keeps_alive(self) -> bool:
        """Whether Python waits for the accepting thread at the end of the program."""
        thread = self.background
        return thread is not None and thread.is_alive() and not thread.daemon

    def join_background(self, timeout: float | None) -> None:
        """Wait for the end of the accepting thread of `Server.start`, at most `timeout` seconds."""
        if self.background is not None:
            join(self.background, timeout)

    # Pauses

    def failed(self, error: BaseException) -> None:
        """Pause, since this machine cannot serve one more client; longer after each failure.

        A requested stop ends the pause. The thread that runs the loop waits with its selector, any
        other thread (an overridden `process_request` may start clients elsewhere) for the
        Condition.
        """
        with self._changed:
            is_first, self.is_short = not self.is_short, True
            if is_first:
                self._short_at = time.monotonic()
            self.pauses += not self.back_off.pause
            seconds = self.back_off.failed()
        if is_first:
            events.emit(events.AcceptPaused(error), self._server)
        selector = self._selector
        if selector is not None and self.runs_here():
            selector.pause(seconds)
            return
        with self._changed:
            self._changed.wait_for(lambda: self.stop_requested or not self.under_way, seconds)

    def may_retry(self, error: RuntimeError) -> bool:
        """Whether to try again to start a thread for a client, which has failed with `error`.

        While the loop runs, this pauses, since a thread may end soon. Else the client is to be
        closed unserved.
        """
        if "interpreter shutdown" in str(error):  # no client can be served any more
            events.emit(events.ListenerLost(error), self._server)
            self.request_stop()
        elif self.under_way and not self.stop_requested:
            self.failed(error)
            return True
        else:
            events.emit(events.AcceptFailed(error), self._server)
        return False

    def succeeded(self) -> None:
        """Note that a client has got its thread, so the next pause is short again."""
        with self._changed:
            if self.back_off.pause:
                self._resumed_at = time.monotonic()
            self.back_off.succeeded()

    def end_shortage(self) -> float | None:
        """End the shortage if accepting has not paused for `quiet` seconds.

        Return the seconds until that may be so; None if there is no shortage, or a pause.
        """
        with self._changed:
            if self.back_off.pause or not self.is_short:
                return None
            left = self._resumed_at + self.quiet - time.monotonic()
            if left > 0:
                return left
            self.is_short = False
            seconds = self._resumed_at - self._short_at
        events.emit(events.AcceptResumed(seconds), self._server)
        return None
