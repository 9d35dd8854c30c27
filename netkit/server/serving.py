"""The ways to serve: until stopped, in the background, for one client, and by iteration.

Each of them runs the accept loop of a server in one thread.
"""

from __future__ import annotations

import contextlib
import os
import socketserver
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from ..core.deadline import Deadline
from ..core.errors import ServerStateError
from ..net import bind
from ..net.connection import Connection
from ..net.waker import woken_by_signals
from .accept_loop import AcceptLoop
from .acceptor import Acceptor, Answer, sooner
from .clients import Clients
from .compat import Compat
from .exiting import close_at_exit
from .life import Life, State
from .listeners import Listeners
from .selector import ListenerSelector
from .setup import Configuration
from .threads import check_threads

POLL_SECONDS = 0.5  # how often `service_actions` is called, as in `socketserver`

_CLOSED = "the server is closed; call listen() to open it again"
_FORKS = (
    "a netkit server has a thread for each client, and does not fork: leave out ForkingMixIn, "
    "or serve with several processes (workers=)"
)
_SERVING = "the server is serving already, on {}"
_NO_HANDLER = "the server has no handler; take its clients by 'for connection in server'"


def no_handler(connection: Connection) -> None:
    """The handler of a server that was given none."""
    raise ServerStateError(_NO_HANDLER)


def _end_all(accepted: deque[Connection]) -> None:
    """Close connections that the program has not got. Several threads may do so."""
    with contextlib.suppress(IndexError):
        while True:
            connection = accepted.popleft()
            connection.cut()
            connection.destroy()


class Serving:
    """Runs the accept loop of one server. Its methods may be called from any thread."""

    when_accepting: Callable[[], object] | None = None
    """Called once, when the next loop has begun."""

    def __init__(
        self,
        server: socketserver.ThreadingTCPServer,
        overrides: Callable[[str], bool],
        configuration: Configuration,
        life: Life,
        listeners: Listeners,
        loop: AcceptLoop,
        acceptor: Acceptor,
        clients: Clients,
        compat: Compat,
    ) -> None:
        """`overrides` tells whether the program has replaced a hook of `server`."""
        self._server = server
        self._overrides = overrides
        self._configuration = configuration
        self._life = life
        self._listeners = listeners
        self._loop = loop
        self._acceptor = acceptor
        self._clients = clients
        self._compat = compat

    def forever(self, poll_interval: float) -> None:
        """As `Server.serve_forever`."""
        with self._loop.ending_after_exception():
            selector = self.begin()
            if selector is not None:
                self.run(selector, poll_interval)

    def in_background(self, daemon: bool) -> None:
        """As `Server.start`."""
        with self._loop.ending_after_exception():
            selector = self._begin_alone()
            if selector is not None:
                self._start_thread(selector, daemon)

    def _start_thread(self, selector: ListenerSelector, daemon: bool) -> None:
        thread = self._loop.background = threading.Thread(
            target=self.run,
            args=(selector, POLL_SECONDS),
            name=f"netkit-accept {self._listeners.describe()}",
            daemon=daemon,
        )
        try:
            thread.start()
        except BaseException:
            self._loop.request_stop()  # for a thread that runs already, after a Ctrl+C
            raise
        self._loop.hand_over(selector, thread)

    def once(self) -> None:
        """As `Server.handle_request`."""
        server = self._server
        timeouts = [t for t in (server.timeout, server.socket.gettimeout()) if t is not None]
        deadline = Deadline(min(timeouts, default=None))
        with self._loop.ending_after_exception():
            selector = self.begin()
            if selector is None:
                return
            self._loop.take_over(selector)
            with woken_by_signals(selector.waker):
                while self._acceptor.step(selector, deadline.remaining()) is Answer.EMPTY:
                    if deadline.expired():
                        server.handle_timeout()
                        break
            self._loop.end(selector)

    def iterate(self) -> Iterator[Connection]:
        """As `Server.__iter__`."""
        accepted = deque[Connection]()
        is_over = threading.Event()

        def deliver(connection: Connection) -> None:  # perhaps in a thread that has read a header
            accepted.append(connection)
            if is_over.is_set():
                _end_all(accepted)

        with self._loop.ending_after_exception():
            selector = self._begin_alone(deliver)
            if selector is None:
                return
            try:
                yield from self._yield_each(selector, accepted)
            finally:
                is_over.set()
                _end_all(accepted)
                self._loop.end(selector)

    def _yield_each(
        self, selector: ListenerSelector, accepted: deque[Connection]
    ) -> Iterator[Connection]:
        while self._loop.take_over(selector) and not selector.stopped:
            with woken_by_signals(selector.waker):
                while not accepted and self._acceptor.step(selector, None) is not Answer.STOP:
                    pass
            if not accepted:
                return
            connection = accepted.popleft()
            connection.thread = threading.get_ident()  # a stop in the body does not wait for it
            connection.began_at = time.monotonic()
            self._loop.suspend()
            try:
                yield connection
            finally:
                connection.thread = None

    def run(self, selector: ListenerSelector, poll_interval: float) -> None:
        """Accept clients in the calling thread until the loop is stopped, and end the loop."""
        if not self._loop.take_over(selector):  # the thread that began it was interrupted
            selector.close()
            return
        try:
            with woken_by_signals(selector.waker):
                self._accept_until_stopped(selector, poll_interval)
        finally:
            self._loop.end(selector)

    def _accept_until_stopped(self, selector: ListenerSelector, poll_interval: float) -> None:
        server = self._server
        tick = poll_interval if self._overrides("service_actions") else None
        last_client = time.monotonic()
        while True:
            seconds = tick if server.timeout is None else sooner(tick, server.timeout)
            answer = self._acceptor.step(selector, seconds)
            if answer is Answer.STOP:
                return
            if answer is not Answer.EMPTY:
                last_client = time.monotonic()
            elif server.timeout is not None and time.monotonic() - last_client >= server.timeout:
                last_client = time.monotonic()
                self._compat.call("handle_timeout")
            if tick is not None:
                self._compat.call("service_actions")

    def _begin_alone(
        self, deliver: Callable[[Connection], object] | None = None
    ) -> ListenerSelector | None:
        """As `begin`, but ServerStateError if another thread is serving."""
        if self._life.state is State.CLOSED:
            raise ServerStateError(_CLOSED)
        selector = self.begin(deliver, wait=False)
        if selector is None and self._loop.under_way:
            raise ServerStateError(_SERVING.format(self._listeners.describe()))
        return selector

    def begin(
        self, deliver: Callable[[Connection], object] | None = None, wait: bool = True
    ) -> ListenerSelector | None:
        """Begin the accept loop. ServerStateError if the server is not bound, or closed.

        None if the server stops, or was told to stop before it ever served. None also if another
        thread runs the loop; with `wait`, after that has ended. `deliver` as that of `Clients`.
        """
        server, loop = self._server, self._loop
        if isinstance(server, getattr(socketserver, "ForkingMixIn", ())):
            raise TypeError(_FORKS)
        check_threads()
        with self._life.changed:  # a stop that begins later sees the loop, and awaits its clients
            selector = self._begin_locked(deliver)
        close_at_exit(server)
        if selector is None:
            if wait and self._life.state is not State.DRAINING:
                loop.wait_for_end()
            return None
        call, self.when_accepting = self.when_accepting, None
        if call is not None:
            call()
        return selector

    def _begin_locked(
        self, deliver: Callable[[Connection], object] | None
    ) -> ListenerSelector | None:
        server, listeners = self._server, self._listeners
        if self._life.state is State.NEW and not self._is_activated():
            raise ServerStateError("the server is not bound; call listen() first")
        if self._life.state is State.DRAINING:
            return None
        if not self._loop.stop_requested and server.socket.fileno() < 0:
            raise ServerStateError(_CLOSED)
        if deliver is None and self._configuration.setup.handler is no_handler:
            raise ServerStateError(_NO_HANDLER)
        contended = listeners.opened_by != os.getpid()
        selector = self._loop.begin(*listeners.sockets, contended=contended)
        if selector is not None:
            self._clients.deliver = deliver
        return selector

    def check_for_run(self) -> None:
        """ServerStateError unless the server can serve. RuntimeError as by `check_threads`."""
        self._check_listening()
        if self._configuration.setup.handler is no_handler:
            raise ServerStateError(_NO_HANDLER)
        if self._loop.under_way:
            raise ServerStateError(_SERVING.format(self._listeners.describe()))
        check_threads()

    def _check_listening(self) -> None:
        if self._life.state is not State.LISTENING:
            raise ServerStateError(f"the server is {self._life.state.value}; call listen() first")

    def check_for_workers(self, needs_handler: bool) -> None:
        """ServerStateError unless worker processes can serve in the place of this server.

        RuntimeError as by `check_threads`.
        """
        self._check_listening()
        if self._listeners.exclusive:
            raise ServerStateError("the server listens exclusively: workers cannot share it")
        if needs_handler and self._configuration.setup.handler is no_handler:
            raise ServerStateError("the server has no handler, which workers would need")
        if self._loop.under_way:
            raise ServerStateError("the server is serving already: no workers can take its place")
        check_threads()

    def _is_activated(self) -> bool:
        """Whether there is a listener, though perhaps by an overridden `server_activate`."""
        server = self._server
        is_open = hasattr(server, "socket") and server.socket.fileno() >= 0
        return is_open and bind.is_listening(server.socket)
