"""Connects to the address of a host that answers first (Happy Eyeballs, RFC 8305).

Rules:

1. The families alternate, the resolver's first address first; each address is tried once.
2. The next attempt begins when one has failed, or after a delay, while the earlier ones go on. The
   first to connect wins, and the others are closed.
3. All attempts share one thread and one selector, and every socket is closed in the end. Only the
   system's resolver cannot be interrupted: it has a thread of its own, which may go on after the
   wait for it has ended.
"""

from __future__ import annotations

import errno
import itertools
import os
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..core import events
from ..core.addresses import NEEDS_ZONE, needs_zone
from ..core.deadline import Deadline, wait_time
from ..core.errors import CancelledError
from ..net.bind import Candidate
from ..net.waker import Waker

# If the queue of a Unix listener is full, connecting fails, and the selector does not report that
# there is room again (unix(7)). So the attempt is repeated after this time (seconds).
QUEUE_PAUSE = 0.01

# How many names may be looked up at once, including those for which `connect` no longer waits.
# Further ones wait, so slow names that clients choose cannot start threads without limit. The deque
# has an element for each lookup that may begin. Unlike a lock, it cannot be held by another thread
# during a fork, and stay locked in the child.
MAX_LOOKUPS = 256
_LOOKUPS: deque[None] = deque([None] * MAX_LOOKUPS)


class Cancel:
    """Ends ``connect(..., cancel=c)`` from another thread or a signal handler: ``c.cancel()``.

    It may be used for any number of calls. Calls that begin after `cancel` end immediately.
    """

    # There is no lock, which a signal handler could not take: `cancel` sets the flag before it
    # reads the list, and `detach` changes the list before its caller reads the flag. The methods of
    # a list are atomic, also in free-threaded builds.

    def __init__(self) -> None:
        self._callbacks: list[Callable[[], object]] = []
        self._cancelled = False

    def cancel(self) -> None:
        """Have all the calls of `connect` raise CancelledError. Idempotent."""
        self._cancelled = True
        for callback in tuple(self._callbacks):
            callback()

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` has been called."""
        return self._cancelled

    def attach(self, callback: Callable[[], object]) -> None:
        """Have `cancel` call `callback`, in its thread; call it now if it has been cancelled.

        The callback must be idempotent, must not wait, and may run in a signal handler.
        """
        self._callbacks.append(callback)
        if self._cancelled:
            callback()

    def detach(self, callback: Callable[[], object]) -> None:
        """Have later calls of `cancel` not call `callback`.

        It may still be running in another thread, but only if `cancelled` is true by now.
        """
        self._callbacks.remove(callback)


class Waiter:
    """Waits for one `connect`. Each wait ends at its deadline, or when it is cancelled.

    It belongs to one thread, in a ``with`` block.
    """

    def __init__(
        self,
        deadline: Deadline,
        cancel: Cancel | None = None,
        lookups: deque[None] = _LOOKUPS,
    ) -> None:
        """`lookups` has an element for each lookup that may begin. OSError."""
        self._deadline = deadline
        self._cancel = Cancel() if cancel is None else cancel
        self._lookups = lookups
        self._waker = Waker()
        try:
            self._selector = selectors.DefaultSelector()
        except BaseException:  # no descriptor is left
            self._waker.close()
            raise
        self._selector.register(self._waker, selectors.EVENT_READ)
        self._cancel.attach(self._waker.wake)

    def add(self, sock: socket.socket) -> None:
        """Include a socket in the waits until it has connected, or failed."""
        self._selector.register(sock, selectors.EVENT_WRITE)

    def remove(self, sock: socket.socket) -> None:
        self._selector.unregister(sock)

    def wait(self, seconds: float | None = None) -> list[socket.socket]:
        """Return the sockets that have connected or failed, or none after `seconds`.

        TimeoutError at the deadline; CancelledError.
        """
        left = self._deadline.remaining()
        if left is not None:
            seconds = left if seconds is None else min(left, seconds)
        ready: list[Any] = [key.fileobj for key, _ in self._selector.select(wait_time(seconds))]
        if self._waker in ready:
            ready.remove(self._waker)
            self._waker.clear()
        if self._cancel.cancelled:
            raise CancelledError
        if not ready and self._deadline.expired():
            raise TimeoutError(errno.ETIMEDOUT, "timed out")
        return ready

    def call(self, function: Callable[[], Any]) -> Any:
        """Call `function` in a new thread, and return its result or raise its error.

        Raises the errors of `wait`, too; then the call goes on, and its result is lost.
        """
        outcome: list[tuple[Any, BaseException | None]] = []

        def run() -> None:
            try:
                outcome.append((function(), None))
            except BaseException as error:
                outcome.append((None, error))
            self._lookups.append(None)
            self._waker.wake()

        self._begin_lookup()
        try:
            # A daemon: a resolver may take minutes, and the process does not wait for it.
            threading.Thread(target=run, name="netkit-resolve", daemon=True).start()
        except BaseException:
            self._lookups.append(None)
            raise
        self.wait()  # at least once, so that `run` does not end a wait of a `Race`
        while not outcome:
            self.wait()
        result, error = outcome[0]
        if error is not None:
            raise error
        return result

    def _begin_lookup(self) -> None:
        while True:
            try:
                return self._lookups.pop()
            except IndexError:
                self.wait(QUEUE_PAUSE)

    def __enter__(self) -> Waiter:
        return self

    def __exit__(self, *_: object) -> None:
        self._cancel.detach(self._waker.wake)
        self._selector.close()
        self._waker.close()


def interleaved(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return each candidate once, with alternating families (RFC 8305 section 4)."""
    families: dict[int, list[Candidate]] = {}
    for candidate in dict.fromkeys(candidates):
        families.setdefault(candidate.family, []).append(candidate)
    in_turn = itertools.zip_longest(*families.values())
    return [candidate for group in in_turn for candidate in group if candidate is not None]


class Race:
    """Rounds of attempts to connect. For one thread."""

    def __init__(
        self,
        prepare: Callable[[socket.socket], object],
        delay: float,
        waiter: Waiter,
        blocked: Callable[[Any], bool] = lambda _: False,
    ) -> None:
        """`prepare` sets up each socket before it connects. `delay` is in seconds.

        `blocked` returns whether an address must not be used. It is called before the attempt, and
        with the address that was really reached: Linux connects to 127.0.0.1 instead of 0.0.0.0.
        """
        self._prepare = prepare
        self._delay = delay
        self._waiter = waiter
        self._blocked = blocked
        self._running: dict[socket.socket, Candidate] = {}
        self.attempted: list[str] = []
        """The addresses that were tried, in all rounds."""
        self.errors: list[tuple[str, OSError]] = []
        """Each address that has failed in the last round, and why."""

    def run(self, candidates: Iterable[Candidate]) -> socket.socket | None:
        """Do a round: try the candidates, in their order, until one has connected.

        Return the socket that connects first, still non-blocking, or None if all attempts fail.
        Raises the errors of `Waiter.wait`.
        """
        self.errors.clear()
        waiting = deque(each for each in candidates if self._is_permitted(each))
        winner = None
        try:
            while winner is None and waiting:
                winner = self._start(waiting.popleft())
                delay = self._delay if waiting else None
                while winner is None and self._running:
                    ready = self._waiter.wait(delay)
                    failed = len(self.errors)
                    for sock in ready:
                        winner = winner or self._finish(sock)
                    if delay is not None and (not ready or len(self.errors) > failed):
                        break
            return winner
        finally:
            for sock, candidate in self._running.items():
                self._waiter.remove(sock)
                sock.close()
                if winner is None:
                    self._note(candidate, TimeoutError(errno.ETIMEDOUT, "no answer in time"))
            self._running.clear()

    def _is_permitted(self, candidate: Candidate) -> bool:
        if self._blocked(candidate.address):
            self._note(candidate, _is_blocked())
            return False
        return True

    def _start(self, candidate: Candidate) -> socket.socket | None:
        events.emit(events.AttemptStarted(str(candidate)))
        self.attempted.append(str(candidate))
        sock = None
        try:
            sock = socket.socket(candidate.family)
            self._prepare(sock)
            sock.setblocking(False)
            code = self._connect(sock, candidate)
        except BaseException as error:
            if sock is not None:
                sock.close()
            if not isinstance(error, OSError) or isinstance(error, (CancelledError, TimeoutError)):
                raise
            self._note(candidate, error)
            return None
        if code == errno.EINPROGRESS:
            self._waiter.add(sock)
            self._running[sock] = candidate
            return None
        return self._judged(sock, candidate, code)

    def _connect(self, sock: socket.socket, candidate: Candidate) -> int:
        while True:
            code = sock.connect_ex(candidate.address)
            if code != errno.EAGAIN:
                return code
            self._waiter.wait(QUEUE_PAUSE)

    def _finish(self, sock: socket.socket) -> socket.socket | None:
        candidate = self._running.pop(sock)
        self._waiter.remove(sock)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return self._judged(sock, candidate, code)

    def _judged(self, sock: socket.socket, candidate: Candidate, code: int) -> socket.socket | None:
        """Return the socket if it has connected and may be used; else close it."""
        error = _failure(candidate, code) if code else self._problem(sock)
        if error is None:
            return sock
        sock.close()
        self._note(candidate, error)
        return None

    def _problem(self, sock: socket.socket) -> OSError | None:
        try:
            ours, theirs = sock.getsockname(), sock.getpeername()
        except OSError as error:  # it has been reset already
            return error
        if isinstance(ours, tuple) and ours == theirs:
            # The kernel has given it the port that it connects to, where nobody listens.
            return OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED).lower())
        return _is_blocked() if self._blocked(theirs) else None

    def _note(self, candidate: Candidate, error: OSError) -> None:
        self.errors.append((str(candidate), error))
        events.emit(events.AttemptFailed(str(candidate), error))


def _is_blocked() -> OSError:
    return PermissionError(errno.EACCES, "the address is blocked")


def _failure(candidate: Candidate, code: int) -> OSError:
    address = candidate.address
    if code == errno.EINVAL and isinstance(address, tuple) and needs_zone(address[0]):
        return OSError(code, NEEDS_ZONE)
    return OSError(code, os.strerror(code).lower())
