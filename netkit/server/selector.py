"""Waits for clients at the listeners of a server.

Nothing here owns a listener: the part that has opened it closes it.
"""

from __future__ import annotations

import os
import select
import selectors
import socket

from ..core.deadline import wait_time
from ..net.waker import Waker


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

    For a client, the kernel wakes one of the waiting processes, where poll(2) wakes all of them.
    It goes by the order in which they have registered. So if there are several (`contended`), a
    process registers anew after each client, or the first process would get nearly all clients.
    """

    def __init__(self, contended: bool, waker: int, *listeners: int) -> None:
        self._to_register_anew = listeners if contended else ()
        self._epoll = select.epoll()
        self._epoll.register(waker, select.EPOLLIN)
        for listener in listeners:
            self._register(listener)

    def _register(self, listener: int) -> None:
        self._epoll.register(listener, select.EPOLLIN | select.EPOLLEXCLUSIVE)

    def select(self, timeout: float | None, also: int | None) -> set[int]:
        """Return the descriptors that are ready, including `also`; none after `timeout` seconds.

        It may return none earlier, see `wait_time`.
        """
        if also is not None:
            self._epoll.register(also, select.EPOLLIN)
        seconds = None if timeout is None else wait_time(timeout)
        ready = {fd for fd, _ in self._epoll.poll(seconds)}
        if also is not None:
            self._epoll.unregister(also)
        for listener in self._to_register_anew:
            if listener in ready:
                self._epoll.unregister(listener)
                self._register(listener)
        return ready

    def close(self) -> None:
        """Close the epoll descriptor."""
        self._epoll.close()


class PlainSelector:
    """The same by poll(2) or select(2), for systems without EPOLLEXCLUSIVE."""

    def __init__(self, _: bool, *descriptors: int) -> None:
        kind = getattr(selectors, "PollSelector", selectors.SelectSelector)
        self._selector: selectors.BaseSelector = kind()
        for descriptor in descriptors:
            self._selector.register(descriptor, selectors.EVENT_READ)

    def select(self, timeout: float | None, also: int | None) -> set[int]:
        """As that of `ExclusiveSelector`."""
        if also is not None:
            self._selector.register(also, selectors.EVENT_READ)
        ready = {key.fd for key, _ in self._selector.select(wait_time(timeout))}
        if also is not None:
            self._selector.unregister(also)
        return ready

    def close(self) -> None:
        """Give back what the selector holds."""
        self._selector.close()


_Selector = ExclusiveSelector if hasattr(select, "EPOLLEXCLUSIVE") else PlainSelector


class ListenerSelector:
    """One thread's wait at one or more listeners, which other threads can end.

    `wait` and `pause` belong to that thread; `wake` may be called from any thread and from a signal
    handler. Listeners are made non-blocking, so that an accept never waits: of several processes
    that see one client, all but one get BlockingIOError. Holds three descriptors until `close`.
    `contended`: whether other processes accept from the same listeners.
    """

    def __init__(self, *listeners: socket.socket, contended: bool = True) -> None:
        for listener in listeners:
            unblock(listener)
        self._listeners = listeners
        self.waker = Waker()
        self._wakes = self.waker.fileno()
        try:
            descriptors = (listener.fileno() for listener in listeners)
            self._selector = _Selector(contended, self._wakes, *descriptors)
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
        if self._wakes in ready:
            self.waker.clear()
            return False
        return not ready.isdisjoint(descriptors)

    def pause(self, seconds: float | None, also: int | None = None) -> None:
        """As `wait`, but not for clients."""
        selector = PlainSelector(False, self._wakes)
        try:
            if self._wakes in selector.select(seconds, also):
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
