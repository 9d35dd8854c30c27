"""The server: accepting, in whichever way a program asks for it.

`socketserver`'s words, and Node's, for one engine. What it listens on is in
`netkit.server.listeners`, what happens to a single client in `netkit.server.serving`, how it stops
in `netkit.server.stopping`. Rules:

1. Nothing ends the accept loop but a stop, the loss of a listener, and what is meant to end the
   program (KeyboardInterrupt, SystemExit), if `serve_forever` has a caller to be raised in.
2. Nothing polls: the loop wakes up for a client, for a stop, and for a hook that asks for it.
"""

from __future__ import annotations

import os
import socketserver
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from ..core.deadline import Deadline
from ..core.errors import ServerStateError
from ..core.options import Options
from ..net import bind
from ..net.connection import Connection
from ..net.waker import woken_by_signals
from .accepting import Accepting
from .adapting import problem_of_result
from .exiting import close_at_exit
from .listener import Acceptor, Verdict
from .listeners import State
from .reload import make_tls_context
from .stopping import StoppableServer
from .threads import check_threads

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


class Server(StoppableServer):
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
        """TypeError for a hook that is a coroutine function: a call of it would run nothing.

        A `RequestHandlerClass` of the class is what a server of it has until it is given another.
        """
        super().__init_subclass__(**more)
        if "RequestHandlerClass" in vars(cls) and not hasattr(cls.RequestHandlerClass, "__set__"):
            cls._handler_class = cls.RequestHandlerClass
            del cls.RequestHandlerClass
        for name in _HOOKS:
            problem = problem_of_result(getattr(cls, name))
            if problem:
                raise TypeError(f"{cls.__name__}.{name}: {problem}")

    def __init__(
        self,
        server_address: Any,
        RequestHandlerClass: Any,
        bind_and_activate: bool = True,
        **options: Any,
    ) -> None:
        """As in `socketserver`. `server_address` None: not bound yet, see `listen`.

        TypeError or ValueError for an invalid address, handler or option;
        OSError, with the attributes `address` and `port`, if the address cannot be bound.
        """
        server_address = bind.checked(server_address)
        given = Options(**options)
        self._set_options(given, None, make_tls_context(given))
        socketserver.BaseServer.__init__(self, server_address, RequestHandlerClass)
        if server_address is not None:
            self._make_socket(bind.family_of(server_address, self.address_family), server_address)
            if bind_and_activate:
                self._bind_and_activate()

    def _prepare(self) -> None:
        super()._prepare()
        self._when_accepting: Callable[[], object] | None = None  # to be called once

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

        Like a server in the foreground, it keeps the process alive until it is stopped; Ctrl+C
        stops it gracefully once the program has come to its end. (CPython 3.12 starts no thread
        after that, so there the main thread should wait, in `run` for instance.) A `daemon` is
        stopped when the program ends, as by `server_close`. ServerStateError if the server is
        serving already, is not bound, or closed.
        """
        acceptor = self._begin_alone()
        if acceptor is not None:
            self._start_accepting(acceptor, daemon)
        return self

    def _start_accepting(self, acceptor: Acceptor, daemon: bool) -> None:
        accepting = self._accepting
        thread = self._background = threading.Thread(
            target=self._accept_until_stopped,
            args=(acceptor, 0.5),
            name=f"netkit-accept {self._place()}",
            daemon=daemon,
        )
        try:
            thread.start()
        except BaseException:
            accepting.request_stop()
            if thread.ident is None:  # else it runs, and ends its turn itself
                accepting.end()
            raise

    def _begin_alone(self, taken: deque[Connection] | None = None) -> Acceptor | None:
        """As `_begin_accepting`, but ServerStateError if another thread is serving."""
        if self._state is State.CLOSED:
            raise ServerStateError(_CLOSED)
        acceptor = self._begin_accepting(taken, wait=False)
        if acceptor is None and self._accepting.under_way:
            raise ServerStateError(f"the server is serving already, on {self._place()}")
        return acceptor

    def _begin_accepting(
        self, taken: deque[Connection] | None = None, wait: bool = True
    ) -> Acceptor | None:
        """Begin a turn of accepting.

        None if the server is stopping or was told to, or if another thread is in its turn, after it
        has ended (`wait`).
        """
        if isinstance(self, getattr(socketserver, "ForkingMixIn", ())):
            raise TypeError(_FORKS)
        check_threads()
        with self._changed:  # no stop begins in between: it would not await the clients of the turn
            if self._state is State.NEW and not self._is_activated():
                raise ServerStateError("the server is not bound; call listen() first")
            if self._state is State.DRAINING:
                return None
            accepting = self._accepting
            if not accepting.stop_requested and self.socket.fileno() < 0:
                raise ServerStateError(_CLOSED)
            if taken is None and self._handler_class is no_handler:
                raise ServerStateError(_NO_HANDLER)
            contended = self._opened_by != os.getpid()
            acceptor = accepting.begin(*self._listeners, contended=contended)
            if acceptor is not None:
                self._taken = taken
        self._note_overrides()
        close_at_exit(self)
        if acceptor is None:
            if wait:
                accepting.wait_for_end()
        elif self._when_accepting is not None:
            call, self._when_accepting = self._when_accepting, None
            try:
                call()
            except BaseException:
                accepting.end()
                raise
        return acceptor

    def _is_activated(self) -> bool:
        """Whether it is a listener, though perhaps by an overridden `server_activate`."""
        return hasattr(self, "socket") and bind.is_listening(self.socket)

    def _accept_until_stopped(self, acceptor: Acceptor, poll_interval: float) -> None:
        accepting = self._accepting  # that of another life, if a hook takes long
        if not accepting.take_over(acceptor):  # the thread that began it was interrupted
            acceptor.close()
            return
        try:
            with woken_by_signals(acceptor.waker):
                self._accept_clients(accepting, acceptor, poll_interval)
        finally:
            accepting.end()

    def _accept_clients(
        self, accepting: Accepting, acceptor: Acceptor, poll_interval: float
    ) -> None:
        tick = poll_interval if self._overrides("service_actions") else None
        last_client = time.monotonic()
        while not accepting.stop_requested:
            ready = self._wait_for_client(acceptor, _sooner(tick, self.timeout))
            if accepting.stop_requested:
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
        """Serve one client, in a thread of its own; `handle_timeout` after `timeout` seconds.

        ServerStateError if the server is not bound, or closed. Returns at once while it stops.
        """
        deadline = Deadline(_sooner(self.timeout, self.socket.gettimeout()))
        accepting, acceptor = self._accepting, self._begin_accepting()
        if acceptor is None:
            return
        try:
            with woken_by_signals(acceptor.waker):
                while not accepting.stop_requested:
                    if self._wait_for_client(acceptor, deadline.remaining()):
                        if self._accept_one() not in (Verdict.FULL, Verdict.NOBODY):
                            return
                    elif deadline.expired():
                        self.handle_timeout()
                        return
        finally:
            accepting.end()

    def __iter__(self) -> Iterator[Connection]:
        """Accept clients in the calling thread, until the server is stopped.

        Yields each `Connection`, which the caller closes, in whichever thread; the handler is not
        called. All limits hold. Clients that are queued when the server is stopped are not served;
        those that are connected have the usual time to finish. ServerStateError as for `start`.
        """
        accepting, taken = self._accepting, deque[Connection]()
        acceptor = self._begin_alone(taken)
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
        with woken_by_signals(acceptor.waker):
            ready = self._wait_for_client(acceptor, None)
        return not ready or self._accepting.stop_requested or self._accept_one() is not Verdict.STOP

    # In a ``with`` block

    def __repr__(self) -> str:
        """Where it is in its life, and how many clients are connected."""
        state = self._state
        text = state.value
        if state in (State.LISTENING, State.DRAINING):
            more = len(self._more_sockets)
            place = f"{self._place()} and {more} more" if more else self._place()
            text += f" on {place}, {len(self._connections.live())} connected"
        return f"<{type(self).__name__} {text}>"

    def __enter__(self: _Self) -> _Self:
        idle = not self._accepting.under_way
        if self._serve_in_with and idle and self._handler_class is not no_handler:
            self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server_close()


def no_handler(connection: Connection) -> None:
    """The handler of a server that was given none."""
    raise ServerStateError(_NO_HANDLER)


def create_server(handler: Any = no_handler, **options: Any) -> Server:
    """A server that is not bound yet: ``create_server(handler).listen(8080)``.

    `handler` and `options` as for `Server`; TypeError or ValueError if they are invalid.
    Without a handler, clients are taken by ``for connection in server``.
    """
    return Server(None, handler, **options)


def _sooner(a: float | None, b: float | None) -> float | None:
    return b if a is None else a if b is None else min(a, b)
