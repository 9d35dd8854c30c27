"""The ways to serve: until stopped, in the background, for one client, and by iteration.

Each of them runs the accept loop of a server in one thread.
"""

from __future__ import annotations

import os
import socketserver
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ..core.deadline import Deadline
from ..core.errors import ServerStateError
from ..net import bind
from ..net.connection import Connection
from ..net.waker import woken_by_signals
from .accept_loop import AcceptLoop
from .acceptor import Answer, sooner
from .exiting import close_at_exit
from .life import State
from .selector import ListenerSelector
from .threads import check_threads

if TYPE_CHECKING:
    from .server import Server

POLL_SECONDS = 0.5  # how often `service_actions` is called, as in `socketserver`

_CLOSED = "the server is closed; call listen() to open it again"
_FORKS = (
    "a netkit server has a thread for each client, and does not fork: leave out ForkingMixIn, "
    "or serve with several processes (workers=)"
)
_NO_HANDLER = "the server has no handler; take its clients by 'for connection in server'"

Begun = tuple[AcceptLoop, ListenerSelector]


def no_handler(connection: Connection) -> None:
    """The handler of a server that was given none."""
    raise ServerStateError(_NO_HANDLER)


class Serving:
    """Runs the accept loop of one server. Its methods may be called from any thread."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.when_accepting: Callable[[], object] | None = None
        """Called once, when the next loop has begun."""

    def forever(self, poll_interval: float) -> None:
        """As `Server.serve_forever`."""
        with self._server._accept_loop.ending_after_exception():
            begun = self.begin()
            if begun is not None:
                self.run(*begun, poll_interval)

    def in_background(self, daemon: bool) -> None:
        """As `Server.start`."""
        with self._server._accept_loop.ending_after_exception():
            begun = self._begin_alone()
            if begun is not None:
                self._start_thread(*begun, daemon)

    def _start_thread(self, loop: AcceptLoop, selector: ListenerSelector, daemon: bool) -> None:
        server = self._server
        thread = server._drain.background = threading.Thread(
            target=self.run,
            args=(loop, selector, POLL_SECONDS),
            name=f"netkit-accept {server._listeners.describe()}",
            daemon=daemon,
        )
        try:
            thread.start()
        except BaseException:
            loop.request_stop()  # for a thread that runs already, after a Ctrl+C
            raise

    def once(self) -> None:
        """As `Server.handle_request`."""
        server = self._server
        timeouts = [t for t in (server.timeout, server.socket.gettimeout()) if t is not None]
        deadline = Deadline(min(timeouts, default=None))
        with server._accept_loop.ending_after_exception():
            begun = self.begin()
            if begun is not None:
                self._accept_one(*begun, deadline)

    def _accept_one(self, loop: AcceptLoop, selector: ListenerSelector, deadline: Deadline) -> None:
        loop.take_over(selector)
        try:
            with woken_by_signals(selector.waker):
                while True:
                    answer = self._server._acceptor.step(loop, selector, deadline.remaining())
                    if answer not in (Answer.EMPTY, Answer.FULL):
                        return
                    if deadline.expired():
                        self._server.handle_timeout()
                        return
        finally:
            loop.end()

    def iterate(self) -> Iterator[Connection]:
        """As `Server.__iter__`."""
        accepted = deque[Connection]()
        with self._server._accept_loop.ending_after_exception():
            begun = self._begin_alone(accepted)
            if begun is not None:
                yield from self._yield_each(*begun, accepted)

    def _yield_each(
        self, loop: AcceptLoop, selector: ListenerSelector, accepted: deque[Connection]
    ) -> Iterator[Connection]:
        server = self._server
        loop.take_over(selector)
        try:
            while not loop.stop_requested:
                if accepted:
                    with loop.suspended(), server._connections.claimed(accepted[0]):
                        yield accepted.popleft()
                else:
                    with woken_by_signals(selector.waker):
                        answer = server._acceptor.step(loop, selector, None)
                    if answer is Answer.STOP:
                        return
        finally:
            for connection in accepted:
                connection.destroy()
            loop.end()

    def run(self, loop: AcceptLoop, selector: ListenerSelector, poll_interval: float) -> None:
        """Accept clients in the calling thread until the loop is stopped, and end the loop."""
        if not loop.take_over(selector):  # the thread that began it was interrupted
            selector.close()
            return
        try:
            with woken_by_signals(selector.waker):
                self._accept_until_stopped(loop, selector, poll_interval)
        finally:
            loop.end()

    def _accept_until_stopped(
        self, loop: AcceptLoop, selector: ListenerSelector, poll_interval: float
    ) -> None:
        server = self._server
        tick = poll_interval if server._overrides("service_actions") else None
        last_client = time.monotonic()
        while True:
            seconds = tick if server.timeout is None else sooner(tick, server.timeout)
            answer = server._acceptor.step(loop, selector, seconds)
            if answer is Answer.STOP:
                return
            if answer is not Answer.EMPTY:
                last_client = time.monotonic()
            elif server.timeout is not None and time.monotonic() - last_client >= server.timeout:
                last_client = time.monotonic()
                server._compat.call("handle_timeout")
            if tick is not None:
                server._compat.call("service_actions")

    def _begin_alone(self, iterated: deque[Connection] | None = None) -> Begun | None:
        """As `begin`, but ServerStateError if another thread is serving."""
        server = self._server
        if server._life.state is State.CLOSED:
            raise ServerStateError(_CLOSED)
        begun = self.begin(iterated, wait=False)
        if begun is None and server._accept_loop.under_way:
            place = server._listeners.describe()
            raise ServerStateError(f"the server is serving already, on {place}")
        return begun

    def begin(self, iterated: deque[Connection] | None = None, wait: bool = True) -> Begun | None:
        """Begin the accept loop. ServerStateError if the server is not bound, or closed.

        None if the server stops, or was told to stop before it ever served. None also if another
        thread runs the loop; with `wait`, after that has ended. `iterated`: the queue of
        ``for connection in server``.
        """
        server = self._server
        if isinstance(server, getattr(socketserver, "ForkingMixIn", ())):
            raise TypeError(_FORKS)
        check_threads()
        with server._life.changed:  # a stop that begins later sees the loop, and awaits its clients
            loop = server._accept_loop
            selector = self._begin_locked(iterated)
        close_at_exit(server)
        if selector is None:
            if wait and server._life.state is not State.DRAINING:
                loop.wait_for_end()
            return None
        call, self.when_accepting = self.when_accepting, None
        if call is not None:
            call()
        return loop, selector

    def _begin_locked(self, iterated: deque[Connection] | None) -> ListenerSelector | None:
        server = self._server
        if server._life.state is State.NEW and not self._is_activated():
            raise ServerStateError("the server is not bound; call listen() first")
        if server._life.state is State.DRAINING:
            return None
        if not server._accept_loop.stop_requested and server.socket.fileno() < 0:
            raise ServerStateError(_CLOSED)
        if iterated is None and server._handler_class is no_handler:
            raise ServerStateError(_NO_HANDLER)
        listeners = server._listeners
        contended = listeners.opened_by != os.getpid()
        selector = server._accept_loop.begin(*listeners.sockets, contended=contended)
        if selector is not None:
            server._clients.iterated = iterated
        return selector

    def _is_activated(self) -> bool:
        """Whether there is a listener, though perhaps by an overridden `server_activate`."""
        server = self._server
        is_open = hasattr(server, "socket") and server.socket.fileno() >= 0
        return is_open and bind.is_listening(server.socket)
