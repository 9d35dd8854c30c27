"""Waits for clients at the listeners of a server.

Nothing here owns a listener: the part that has opened it closes it.
"""

from __future__ import annotations

import os
import select
import selectors
import socket
from collections import deque
from collections.abc import Callable

from ..core.deadline import wait_time
from ..net.waker import Waker

_PollSelector = getattr(selectors, "PollSelector", selectors.SelectSelector)


def unblock(listener: socket.socket) -> None:
    """Make `listener` non-blocking for the kernel; its timeout in Python stays the user's.

    An ``ssl.SSLSocket`` does not wait for the handshake of a client, either.
    """
    if hasattr(listener, "do_handshake_on_connect"):
        listener.do_handshake_on_connect = False
    if hasattr(os, "set_blocking"):  # pragma: no branch - Windows before 3.12 has none
        os.set_blocking(listener.fileno(), False)


class ListenerSelector:
    """One thread's wait at one or more listeners, which other threads can end. Uses poll(2).

    `wait` and `pause` belong to that thread; `wake` may be called from any thread and from a signal
    handler. Listeners are made non-blocking, so that an accept never waits: of several processes
    that see one client, all but one get BlockingIOError. Holds three descriptors until `close`.
    """

    def __init__(self, *listeners: socket.socket, contended: bool = True) -> None:
        """`contended`: whether other processes accept from the same listeners."""
        for listener in listeners:
            unblock(listener)
        self._listeners = listeners
        self.stopped = False
        """Whether the accept loop is to end. Another thread sets it, and calls `wake`."""
        self.waker = Waker()
        self.calls = deque[Callable[[], object]]()
        """What the thread is to call once `wake` has ended its wait. Thread-safe."""

    def wait(self, timeout: float | None, also: int | None = None) -> bool:
        """Wait until a client may have connected, and return True.

        Return False if `wake` is called, another descriptor, `also`, is readable, or `timeout`
        seconds are over. A closed listener counts as one with a client: an accept raises an error.
        """
        descriptors = [listener.fileno() for listener in self._listeners]
        return -1 in descriptors or self._wait(timeout, also, descriptors)

    def pause(self, seconds: float | None, also: int | None = None) -> None:
        """As `wait`, but not for clients."""
        self._wait(seconds, also, [])

    def _wait(self, timeout: float | None, also: int | None, descriptors: list[int]) -> bool:
        wakes = self.waker.fileno()
        with _PollSelector() as selector:
            for descriptor in (wakes, *descriptors, *(() if also is None else (also,))):
                selector.register(descriptor, selectors.EVENT_READ)
            ready = {key.fd for key, _ in selector.select(wait_time(timeout))}
        if wakes in ready:
            self._end_wait()
            return False
        return not ready.isdisjoint(descriptors)

    def _end_wait(self) -> None:
        self.waker.clear()
        self.call()

    def call(self) -> None:
        """Call each of `calls`, once."""
        while True:
            try:
                function = self.calls.popleft()
            except IndexError:
                return
            function()

    def wake(self) -> None:
        """End the present `wait` or `pause`, or the next one if there is none."""
        self.waker.wake()

    def close(self) -> None:
        """Give the descriptors back. `wake` does nothing afterwards. Idempotent."""
        self.waker.close()


class ExclusiveSelector(ListenerSelector):
    """A selector by epoll, for listeners that processes share (EPOLLEXCLUSIVE, epoll(7)).

    For a client, the kernel wakes one of the waiting processes, where poll(2) wakes all of them.
    It prefers the process that has registered first. So if there are several (`contended`), a
    process registers anew after each client, or the first process would get nearly all clients.
    """

    def __init__(self, *listeners: socket.socket, contended: bool = True) -> None:
        super().__init__(*listeners, contended=contended)
        self._contended = contended
        self._wakes = self.waker.fileno()
        try:
            self._epoll = select.epoll()
            self._epoll.register(self._wakes, select.EPOLLIN)
            for listener in listeners:
                self._epoll.register(listener, select.EPOLLIN | select.EPOLLEXCLUSIVE)
        except BaseException:
            self.waker.close()
            raise

    def wait(self, timeout: float | None, also: int | None = None) -> bool:
        descriptors = [listener.fileno() for listener in self._listeners]
        if -1 in descriptors:  # which epoll has forgotten
            return True
        epoll = self._epoll
        if also is not None:
            epoll.register(also, select.EPOLLIN)
        ready = {fd for fd, _ in epoll.poll(None if timeout is None else wait_time(timeout))}
        if also is not None:
            epoll.unregister(also)
        found = ready.intersection(descriptors)
        for descriptor in found if self._contended else ():
            epoll.unregister(descriptor)
            epoll.register(descriptor, select.EPOLLIN | select.EPOLLEXCLUSIVE)
        if self._wakes in ready:
            self._end_wait()
            return False
        return bool(found)

    def close(self) -> None:
        self._epoll.close()
        super().close()


new_selector: type[ListenerSelector] = (
    ExclusiveSelector if hasattr(select, "EPOLLEXCLUSIVE") else ListenerSelector
)
