"""Waits for clients: the wake-up, the answers to a failed accept, the back-off.

Nothing here owns the listener, which its maker closes.
"""

from __future__ import annotations

import errno
import os
import select
import selectors
import socket
import sys
from enum import Enum

from ..core.deadline import wait_time
from ..net.waker import Waker


class Verdict(Enum):
    """The answer to an ``accept`` that failed."""

    NOBODY = "wait for a client, since none is there"
    SKIP = "take the next client, since this one has failed"
    BACK_OFF = "try again after a pause, since this machine has failed"
    FULL = "wait for a place, since none is free"
    STOP = "end, since the listener is gone"


# accept(2): errors already pending on the new connection are reported by accept, and the listener
# is as good as before.
_CLIENT = (
    "EINTR ECONNABORTED ECONNRESET EPROTO EPERM ETIMEDOUT "
    "ENETDOWN ENOPROTOOPT EHOSTDOWN ENONET EHOSTUNREACH ENETUNREACH"
)
_NOBODY = "EAGAIN EWOULDBLOCK"  # another process, or thread, was faster
_GONE = "EBADF EINVAL ENOTSOCK"
_VERDICTS = {
    getattr(errno, name): verdict
    for names, verdict in (
        (_NOBODY, Verdict.NOBODY),
        (_CLIENT, Verdict.SKIP),
        (_GONE, Verdict.STOP),
    )
    for name in names.split()
    if hasattr(errno, name)
}


def judge(error: BaseException) -> Verdict:
    """Return the answer to an error. An unknown error calls for a pause, so no loop can spin."""
    ssl = sys.modules.get("ssl")  # an overridden get_request may shake hands in accept
    if isinstance(error, TimeoutError):  # of the listener's own time limit
        return Verdict.NOBODY
    if ssl and isinstance(error, ssl.SSLError):
        return Verdict.SKIP
    if isinstance(error, OSError) and error.errno is not None:
        return _VERDICTS.get(error.errno, Verdict.BACK_OFF)
    return Verdict.BACK_OFF


def is_lost_race(error: BaseException) -> bool:
    """Whether the client has gone away, or to another acceptor, which needs no log record."""
    return isinstance(error, (BlockingIOError, ConnectionAbortedError, InterruptedError))


# The pauses while this machine cannot serve one more client (seconds). The first is short enough
# that a momentary shortage goes unnoticed, the longest so long that a lasting one costs nothing.
FIRST_PAUSE = 0.005
LONGEST_PAUSE = 1.0


def unblock(listener: socket.socket) -> None:
    """Make `listener` non-blocking for the kernel; its timeout in Python stays the user's.

    An ``ssl.SSLSocket`` does not wait for the handshake of a client, either.
    """
    if hasattr(listener, "do_handshake_on_connect"):
        listener.do_handshake_on_connect = False
    if hasattr(os, "set_blocking"):  # pragma: no branch - Windows before 3.12 has none
        os.set_blocking(listener.fileno(), False)


class ExclusiveSelector:
    """Waits by epoll for listeners that processes share (EPOLLEXCLUSIVE, epoll(7)).

    For a client, the kernel wakes one of the processes that wait, where poll(2) wakes them all. It
    goes by the order in which they have registered. So if there are others (`contended`), a process
    that has been woken registers anew, or the first one would get nearly all clients.
    """

    def __init__(self, contended: bool, waker: int, *listeners: int) -> None:
        self._to_register_anew = listeners if contended else ()
        self._epoll = select.epoll()
        self._epoll.register(waker, select.EPOLLIN)
        for listener in listeners:
            self._stand_in_line(listener)

    def _stand_in_line(self, listener: int) -> None:
        self._epoll.register(listener, select.EPOLLIN | select.EPOLLEXCLUSIVE)

    def select(self, timeout: float | None, also: int | None) -> set[int]:
        """Return the descriptors that are ready, including `also`; none after `timeout` seconds.

        It may return none earlier, see `wait_time`.
        """
        if also is not None:
            self._epoll.register(also, select.EPOLLIN)
        ready = {fd for fd, _ in self._epoll.poll(wait_time(timeout))}
        if also is not None:
            self._epoll.unregister(also)
        for listener in self._to_register_anew:
            if listener in ready:
                self._epoll.unregister(listener)
                self._stand_in_line(listener)
        return ready

    def close(self) -> None:
        self._epoll.close()


class _PlainSelector:
    """The same for systems without such an epoll, by poll(2) or select(2)."""

    def __init__(self, _: bool, *descriptors: int) -> None:
        kind = getattr(selectors, "PollSelector", selectors.SelectSelector)
        self._selector: selectors.BaseSelector = kind()
        for descriptor in descriptors:
            self._selector.register(descriptor, selectors.EVENT_READ)

    def select(self, timeout: float | None, also: int | None) -> set[int]:
        if also is not None:
            self._selector.register(also, selectors.EVENT_READ)
        ready = {key.fd for key, _ in self._selector.select(wait_time(timeout))}
        if also is not None:
            self._selector.unregister(also)
        return ready

    def close(self) -> None:
        self._selector.close()


_Selector = ExclusiveSelector if hasattr(select, "EPOLLEXCLUSIVE") else _PlainSelector


class Acceptor:
    """One thread's wait on one or more listeners, which other threads can end.

    `wait` and `pause` belong to that thread; `wake` may be called from any thread and from a signal
    handler. Listeners are made non-blocking, so that an accept never waits: of several acceptors
    that see one client, all but one get BlockingIOError. Holds three descriptors until `close`.
    `contended`: whether other processes accept from the same listeners.
    """

    def __init__(self, *listeners: socket.socket, contended: bool = True) -> None:
        for listener in listeners:
            unblock(listener)
        self._listeners = listeners
        self.waker = Waker()
        try:
            descriptors = (listener.fileno() for listener in listeners)
            self._selector = _Selector(contended, self.waker.fileno(), *descriptors)
        except BaseException:
            self.waker.close()
            raise

    def wait(self, timeout: float | None, also: int | None = None) -> bool:
        """Wait until a client may be there, and return True.

        Return False if `wake` is called, another descriptor, `also`, is readable, or `timeout`
        seconds are over.
        """
        descriptors = [listener.fileno() for listener in self._listeners]
        if -1 in descriptors:  # closed: epoll has forgotten it, and accept raises an error
            return True
        ready = self._selector.select(timeout, also)
        if self.waker.fileno() in ready:
            self.waker.clear()
            return False
        return not ready.isdisjoint(descriptors)

    def pause(self, seconds: float | None, also: int | None = None) -> None:
        """As `wait`, but not for clients."""
        selector = _PlainSelector(False, self.waker.fileno())
        try:
            if self.waker.fileno() in selector.select(seconds, also):
                self.waker.clear()
        finally:
            selector.close()

    def wake(self) -> None:
        """End the present `wait` or `pause`, or the next one if there is none."""
        self.waker.wake()

    def close(self) -> None:
        """Give the descriptors back. `wake` does nothing afterwards."""
        self._selector.close()
        self.waker.close()
