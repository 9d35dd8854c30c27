"""The server: its states, serving and stopping.

`socketserver`'s words, and Node's, for one engine. What it listens on is in `netkit.listening`,
what happens to a single client in `netkit.serving`. Rules:

1. Nothing ends the accept loop but a stop, the loss of a listener, and what is meant to end the
   program (KeyboardInterrupt, SystemExit).
2. Nothing polls: the loop wakes up for a client, for a stop, and for a hook that asks for it.
3. Stopping has an order: stop accepting; tell the idle to end; take in who is queued; wait for the
   busy ones until the deadline; cut the rest; join; report.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socketserver
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

from . import binding, events
from .adapting import problem_of_result
from .connection import Connection
from .deadline import Deadline
from .errors import ServerStateError
from .listener import Acceptor, Verdict, woken_by_signals
from .listening import ListeningServer, State
from .options import Options, check_seconds
from .registry import StopReport
from .settings import make_tls_context
from .subclassing import gives_way

# What a cut client's thread gets to notice and end (seconds). A handler that is busy with something
# else is left behind.
CUT_GRACE = 1.0

_CLOSED = "the server is closed; call listen() to open it again"
_FORKS = (
    "a netkit server has a thread for each client, and does not fork: leave out ForkingMixIn, "
    "or serve with several processes (workers=)"
)
_NO_HANDLER = "the server has no handler; take its clients by 'for connection in server'"

_Self = TypeVar("_Self", bound="Server")


# What a subclass may override, and netkit calls.
_HOOKS = {
    *("server_bind", "server_activate", "get_request", "verify_request", "process_request"),
    *("process_request_thread", "finish_request", "shutdown_request", "close_request"),
    *("handle_error", "handle_timeout", "service_actions"),
}


class Supervisor(Protocol):
    """What a server needs of `netkit.workers.Workers`."""

    stopping: bool

    def stop(self, timeout: float | None, patience: float) -> None: ...

    def outcome(self) -> StopReport: ...


class Server(ListeningServer):
    """A TCP server with a thread for each client; drop-in for `socketserver.ThreadingTCPServer`.

    ``Server(server_address, handler)`` binds at once, as there; `create_server` and `listen` are
    the other way. `handler` is a request handler class, a `Handler` class or a function that takes
    a `Connection`. `options` are those of `Options`.

    In a ``with`` block, a server bound by `listen` serves in the background until the block ends;
    one bound by the constructor serves when told to. Both are closed at its end. All methods may be
    called from any thread; `shutdown`, `server_close`, `stop` and `close` also from handlers and
    from signal handlers.
    """

    def __init_subclass__(cls, **more: Any) -> None:
        """TypeError for a hook that is a coroutine function: a call of it would run nothing."""
        super().__init_subclass__(**more)
        for name in _HOOKS & vars(cls).keys():
            problem = problem_of_result(vars(cls)[name])
            if problem:
                raise TypeError(f"{cls.__name__}.{name}: {problem}")

    @gives_way
    def __init__(
        self,
        server_address: Any,
        RequestHandlerClass: Any,
        bind_and_activate: bool = True,
        **options: Any,
    ) -> None:
        """As in `socketserver`. `server_address` None: not bound yet, see `listen`.

        TypeError or ValueError for an address, a handler or an option that cannot be meant;
        OSError, with the attributes `address` and `port`, if the address cannot be bound.
        """
        server_address = binding.checked(server_address)
        given = Options(**options)
        self._tls = make_tls_context(given)
        self._set_options(given, None)
        socketserver.BaseServer.__init__(self, server_address, RequestHandlerClass)
        if server_address is not None:
            self._make_socket(
                binding.family_of(server_address, self.address_family), server_address
            )
            if bind_and_activate:
                self._bind_and_activate()

    def _prepare(self) -> None:
        super()._prepare()
        self._background: threading.Thread | None = None
        self._closing_thread: int | None = None
        self._when_accepting: Callable[[], object] | None = None  # to be called once
        self._supervisor: Supervisor | None = None  # of worker processes that serve in its stead
        self._report = StopReport(0, 0)

    # Serving

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Accept clients until `shutdown`, `stop` or `close`.

        Waits without waking up, unless `service_actions` is overridden, which is then called every
        `poll_interval` seconds and after each client; `handle_timeout` is called whenever `timeout`
        seconds pass without one. If another thread is serving already, waits until it has ended.
        Returns at once if `shutdown` was called before the server ever served. ServerStateError if
        it is not bound, or closed.
        """
        acceptor = self._begin_accepting()
        if acceptor is not None:
            self._accept_until_stopped(acceptor, poll_interval)

    def start(self: _Self, daemon: bool = False) -> _Self:
        """Serve in the background, in a thread of its own; returns the server itself.

        Like a server in the foreground, it keeps the process alive; but not as a `daemon`, which is
        stopped, as by `server_close`, when the program has come to its end. ServerStateError if the
        server is serving already, is not bound, or closed.
        """
        self._check_not_serving()
        acceptor = self._begin_accepting()
        if acceptor is not None:
            self._background = threading.Thread(
                target=self._accept_until_stopped,
                args=(acceptor, 0.5),
                name=f"netkit-accept {self._place()}",
                daemon=daemon,
            )
            try:
                self._background.start()
            except BaseException:
                self._background = None
                self._accepting.end()
                raise
        return self

    def _check_not_serving(self) -> None:
        if self._accepting.under_way:
            raise ServerStateError(f"the server is serving already, on {self._place()}")
        if self._state is State.CLOSED:
            raise ServerStateError(_CLOSED)

    def _begin_accepting(self, single: bool = False, taken: Any = None) -> Acceptor | None:
        if isinstance(self, getattr(socketserver, "ForkingMixIn", ())):
            raise TypeError(_FORKS)
        if self._state is State.NEW and not self._is_activated():
            raise ServerStateError("the server is not bound; call listen() first")
        if not self._accepting.stop_requested and self.socket.fileno() < 0:
            raise ServerStateError(_CLOSED)
        if taken is None and self._handler_class is no_handler:
            raise ServerStateError(_NO_HANDLER)
        if not self._accepting.under_way:
            self._taken = taken
        acceptor = self._accepting.begin(
            *self._listeners,
            shared=not single and not self._accepts_alone(),
            contended=self._opened_by != os.getpid(),
        )
        self._note_overrides()
        _to_be_closed.add(self)
        if acceptor is not None and self._when_accepting is not None:
            self._when_accepting()
            self._when_accepting = None
        return acceptor

    def _is_activated(self) -> bool:
        """Whether it is a listener, though perhaps by an overridden `server_activate`."""
        return hasattr(self, "socket") and binding.is_listening(self.socket)

    def _accept_until_stopped(self, acceptor: Acceptor, poll_interval: float) -> None:
        self._accepting.take_over()
        try:
            with woken_by_signals(acceptor):
                self._accept_clients(acceptor, poll_interval)
        finally:
            self._accepting.end()

    def _accept_clients(self, acceptor: Acceptor, poll_interval: float) -> None:
        tick = poll_interval if self._overrides("service_actions") else None
        last_client = time.monotonic()
        while not self._accepting.stop_requested:
            ready = self._wait_for_client(acceptor, _sooner(tick, self.timeout))
            if self._accepting.stop_requested:
                return
            if ready:
                last_client = time.monotonic()
                if self._accept_one() is Verdict.STOP:
                    return
            elif self.timeout is not None and time.monotonic() - last_client >= self.timeout:
                last_client = time.monotonic()
                self._call_hook("handle_timeout")
            if tick is not None:
                self._call_hook("service_actions")

    def handle_request(self) -> None:
        """Serve one client, in a thread of its own; `handle_timeout` after `timeout` seconds."""
        deadline = Deadline(_sooner(self.timeout, self.socket.gettimeout()))
        acceptor = self._begin_accepting(single=True)
        if acceptor is None:
            return
        try:
            with woken_by_signals(acceptor):
                while not self._accepting.stop_requested:
                    if self._wait_for_client(acceptor, deadline.remaining()):
                        if self._accept_one() not in (Verdict.FULL, Verdict.NOBODY):
                            return
                    elif deadline.expired():
                        self.handle_timeout()
                        return
        finally:
            self._accepting.end()

    def __iter__(self) -> Iterator[Connection]:
        """Accept clients in the calling thread, until the server is stopped.

        Yields each `Connection`, which the caller closes, in whichever thread; the handler is not
        called. All limits hold. Who is queued when the server is stopped is not served; who is
        connected has the usual time to finish. ServerStateError as for `start`.
        """
        self._check_not_serving()
        accepting, taken = self._accepting, deque[Connection]()
        acceptor = self._begin_accepting(single=True, taken=taken)
        if acceptor is None:
            return
        try:
            while not accepting.stop_requested:
                if taken:
                    with accepting.resting(), self._connections.claimed(taken[0]):
                        yield taken.popleft()
                elif not self._take_in(acceptor):
                    return
        finally:
            for connection in taken:
                connection.destroy()
            accepting.end()

    def _take_in(self, acceptor: Acceptor) -> bool:
        """Accept a client, if one comes; False if the listener is lost."""
        with woken_by_signals(acceptor):
            ready = self._wait_for_client(acceptor, None)
        return not ready or self._accepting.stop_requested or self._accept_one() is not Verdict.STOP

    # Stopping

    def request_stop(self, timeout: float | None = None, patience: float = 0.0) -> None:
        """End `serve_forever` soon; returns at once, from wherever it is called.

        `timeout` and `patience` are for the `stop` that follows, if it is given none of its own.
        """
        if self._supervisor is not None:
            self._supervisor.stop(timeout, patience)
            return
        with self._changed:
            self._stop_order = (timeout, patience)
            if self._state is State.DRAINING:
                self._limit(timeout, patience)
        self._accepting.request_stop()

    def _limit(self, timeout: float | None, patience: float) -> None:
        seconds = self._options.drain_timeout if timeout is None else timeout
        self._connections.limit(Deadline(patience + seconds), Deadline(patience))

    def shutdown(self) -> None:
        """End `serve_forever`, and wait until it has ended (milliseconds).

        Clients stay connected, and new ones are queued by the kernel until the server serves again
        or is closed. In the serving thread itself (a signal handler), it does not wait. Before the
        server has ever served, the next `serve_forever` returns at once.
        """
        self._accepting.request_stop()
        self._accepting.wait_for_end()

    def stop(self, timeout: float | None = None, patience: float = 0.0) -> StopReport:
        """Stop gracefully, and say what became of the clients.

        Nobody is accepted any more but who is queued already. For `patience` seconds nobody is
        disturbed: clients may go on, and leave by themselves. Then idle ones see the end of input;
        busy ones get `timeout` seconds (None: the option `drain_timeout`), then they are cut.
        Idempotent; a second call, from another thread, waits for the first, and the shorter of the
        two time limits counts. In a handler, its own connection is left out; other threads that
        call this later, and the interpreter's exit, give that one its time.
        """
        with self._changed:
            if timeout is None:
                timeout, patience = self._stop_order
            else:
                check_seconds("timeout", timeout)
                check_seconds("patience", patience)
                self._stop_order = (None, 0.0)  # an order that comes from now on counts, too
            supervisor = self._supervisor
            if self._state is not State.CLOSED and supervisor is None:
                self._limit(timeout, patience)
        if supervisor is not None:
            supervisor.stop(timeout, patience)
            return supervisor.outcome()
        self.server_close()
        if self._state is State.CLOSED and self._connections.limited:
            seconds = self._options.drain_timeout if timeout is None else timeout
            self._connections.finish_spared(seconds, spare=_me())
        return self._report

    def close(self) -> StopReport:
        """Stop now: as `stop`, with no time for anybody."""
        return self.stop(0)

    def server_close(self) -> None:
        """Stop gracefully within `drain_timeout`, as `stop` does; idempotent.

        With `block_on_close` False: closes the listener, and leaves those who are connected.
        """
        if self._supervisor is not None and not self._supervisor.stopping:
            self.stop()
            return
        with self._changed:
            # Whom the stop under way waits for, or has interrupted, cannot wait for it.
            if self._closing_thread != _me() and not self._connections.serves(_me()):
                while self._state is State.DRAINING:
                    self._changed.wait()
            if self._state in (State.DRAINING, State.CLOSED) or not hasattr(self, "socket"):
                return
            self._enter(State.DRAINING)
            self._closing_thread = _me()
            if self._stop_order[0] is not None:  # it came since, or is all that was said
                self._limit(*self._stop_order)
        drain = self.block_on_close or self._connections.limited
        try:
            self._remove_files()
            self.shutdown()
            if self._background not in (None, threading.current_thread()):
                self._background.join()
            if drain:
                if not self._connections.limited:  # not by `stop`
                    self._connections.limit(Deadline(self._options.drain_timeout))
                self._drain()
        finally:
            try:
                self._close_listeners()
                self._shut_doors()
                self._client_threads.close()
                self._lifetimes.close()
            finally:  # others wait for it
                self._closing_thread = None
                self._enter(State.CLOSED)

    def _drain(self) -> None:
        connections = self._connections
        try:
            if connections.patient:
                self._accept_queued()
                self._close_listeners()
                connections.wait_for_leaving(spare=_me())
            connections.begin_draining()
            self._accept_queued()
            self._close_listeners()
            connections.wait_while_draining(spare=_me())
        finally:  # a second Ctrl+C may have ended the wait
            connections.cut(spare=_me())
        self._client_threads.close()
        grace = Deadline(CUT_GRACE)
        connections.wait_until_empty(CUT_GRACE, spare=_me())
        self._client_threads.join(grace.remaining())
        self._report = connections.drained()
        if self._accepting.has_begun:
            events.emit(events.Stopped(*self._report))

    def __enter__(self: _Self) -> _Self:
        idle = not self._accepting.under_way
        if self._serve_in_with and idle and self._handler_class is not no_handler:
            self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server_close()


def no_handler(connection: Connection) -> None:
    """What stands for the handler of a server that has none."""
    raise ServerStateError(_NO_HANDLER)


def create_server(handler: Any = no_handler, **options: Any) -> Server:
    """A server that is not bound yet: ``create_server(handler).listen(8080)``.

    `handler` and `options` as for `Server`; TypeError or ValueError if they cannot be meant.
    Without a handler, clients are taken by ``for connection in server``.
    """
    return Server(None, handler, **options)


def _me() -> int:
    return threading.get_ident()


def _sooner(a: float | None, b: float | None) -> float | None:
    return b if a is None else a if b is None else min(a, b)


# Servers that have accepted clients. Their threads are daemons, so that a handler that never ends
# cannot keep the interpreter; replies under way at its exit are waited for here, for a while.
_to_be_closed: weakref.WeakSet[Server] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows
    os.register_at_fork(after_in_child=_to_be_closed.clear)  # they are the parent's


@atexit.register
def _close_all() -> None:
    for server in list(_to_be_closed):
        with contextlib.suppress(Exception):
            server.server_close()
            server.stop()  # for a handler that has stopped its server, and is not done
