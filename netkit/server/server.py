"""The server: accepting, in whichever way a program asks for it.

`socketserver`'s words, and Node's, for one engine. What it listens on is in
`netkit.server.listeners`, what happens to a single client in `netkit.server.serving`, how it stops
in `netkit.server.drain`. Rules:

1. Nothing ends the accept loop but a stop, the loss of a listener, and what is meant to end the
   program (KeyboardInterrupt, SystemExit), if `serve_forever` has a caller to be raised in.
2. Nothing polls: the loop wakes up for a client, for a stop, and for a hook that asks for it.
"""

from __future__ import annotations

import os
import socket
import socketserver
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from ..core.deadline import Deadline
from ..core.endpoint import Endpoint
from ..core.errors import ServerStateError
from ..core.options import Options
from ..net import bind
from ..net.addresses import SocketAddress
from ..net.bound import BoundSocket
from ..net.connection import Connection
from ..net.waker import woken_by_signals
from . import reload
from .accepting import Accepting
from .adapting import Serve, problem_of_result
from .admission import Places
from .drain import Drain, Order
from .exiting import close_at_exit
from .life import Life, State
from .listener import Acceptor, Verdict
from .listeners import Listeners
from .overflow import Anteroom
from .registry import StopReport
from .serving import ClientServer, Shown
from .threads import check_threads
from .watchdog import Lifetimes

if TYPE_CHECKING:
    import ssl

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


class Server(ClientServer):
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
        self._set_options(given, None, reload.make_tls_context(given))
        socketserver.BaseServer.__init__(self, server_address, RequestHandlerClass)
        if server_address is not None:
            family = bind.family_of(server_address, self.address_family)
            self._listeners.make_socket(family, server_address)
            if bind_and_activate:
                self._listeners.bind_and_activate()

    def _prepare(self) -> None:
        super()._prepare()
        self._life = Life()
        self._listeners = Listeners(self, self._life)
        self._drain = Drain(self)
        self._when_accepting: Callable[[], object] | None = None  # to be called once

    def _begin_new_life(self) -> None:
        """Not bound, and whatever was stopped before is forgotten."""
        with self._life.changed:
            self._life.state = State.NEW
            self._drain.order = Order()
            self._listeners.opened_by = None
            self._accepting = Accepting(self._connections.notify, self)
            self._anteroom = Anteroom(self._wake_acceptor)
            self._connections.reopen()
            self._client_threads = self._make_threads()
            self._lifetimes = Lifetimes(self._connections.live)

    def _end_in_child(self) -> None:
        """In a forked child: it is closed, and has no connection but those of the calling thread.

        The threads of the parent are not here, and may have left any lock held. Nothing is written
        to the descriptors that are shared with the parent. A server that does not accept is left.
        """
        if not self._accepting.end_in_child():
            return
        self._life.end_in_child()
        self._changes = reload.Changes()
        self._anteroom.close_descriptors()
        self._connections.end_in_child()
        self._client_threads.end_in_child()
        self._begin_new_life()
        self._begin_admitting()
        self._listeners.end_in_child()
        self._life.state = State.CLOSED

    # Listening

    def server_bind(self) -> None:
        """Bind the socket to `server_address`, which becomes the address that it got.

        TypeError if the address, or the kind of socket, is not that of a server of connections.
        """
        self._listeners.bind_socket(super().server_bind)

    def server_activate(self) -> None:
        """Make it a listener, with room for `request_queue_size` clients not accepted yet."""
        self._listeners.activate(super().server_activate)

    def listen(
        self: _Self,
        port: int | str = 0,
        host: str | None = None,
        *,
        backlog: int | None = None,
        path: str | os.PathLike[str] | None = None,
        mode: int | None = None,
        owner: str | None = None,
        fd: int | None = None,
        sock: socket.socket | BoundSocket | None = None,
        ipv6_only: bool = False,
        reuse_port: bool = False,
        exclusive: bool = False,
    ) -> _Self:
        """Bind and listen; returns the server itself.

        With `port` 0 the system chooses the port, see `address`. Without a `host` the server
        listens on every address, IPv6 and IPv4; if `host` is a name, on the first of its addresses
        that can be bound. With `reuse_port`, others that say so may listen there, too. Or instead
        of a port:

        - `path`, of a Unix socket, or an abstract name on Linux (``"\\0name"``). Its file gets
          `mode` (0o660) and `owner` (``"user:group"``) before anybody can connect. The file of a
          dead server is removed first, and the server's own when it stops;
        - `fd`, an inherited descriptor; `sock`, a bound socket or `BoundSocket`. They are closed
          when the server stops.

        `backlog` is how many clients the kernel queues until they are accepted (511; the system may
        allow fewer). An `exclusive` listener is not for worker processes. A server that was closed
        may listen again.

        ServerStateError if it listens already; TypeError or ValueError for invalid arguments;
        OSError (with `address`, `port` and `syscall`) if the address cannot be bound, and
        socket.gaierror, which is one, if the name does not resolve.
        """
        given = (port, host, path, mode, owner, fd, ipv6_only, reuse_port)
        if sock is not None and given != (0, None, None, None, None, None, False, False):
            raise TypeError("sock is bound already: only backlog and exclusive may go with it")
        flags = {"ipv6_only": ipv6_only, "reuse_port": reuse_port}
        endpoint = Endpoint.of(port, host, path=path, fd=fd, mode=mode, owner=owner, **flags)
        self._listeners.open([endpoint], backlog, exclusive, sock)
        return self

    def listen_on(
        self: _Self,
        *addresses: str | int | Endpoint,
        backlog: int | None = None,
        exclusive: bool = False,
    ) -> _Self:
        """As `listen`, on each of `addresses`; returns the server itself.

        An address is a port, or text: ``8080``, ``*:8080``, ``localhost:8080``, ``[::1]:8080``,
        ``unix:/run/app.sock``, ``@name`` (Linux) or ``fd:3``. After a ``?`` it may have settings,
        with ``&`` between them: ``ipv6_only=on`` and ``reuse_port=on`` for TCP, ``mode=660`` and
        ``owner=user:group`` for a Unix socket. If one of them cannot be bound, none is listened on.
        """
        if not addresses:
            raise TypeError("listen_on() needs at least one address")
        self._listeners.open(list(map(Endpoint.from_any, addresses)), backlog, exclusive)
        return self

    def take_over(self, *listeners: socket.socket) -> None:
        """Serve on listeners that another process has opened. No hook is called.

        For worker processes.
        """
        self._listeners.take_over(*listeners)

    @Shown
    def listening(self) -> bool:
        """Whether it is bound and has not been stopped."""
        return self._life.state is State.LISTENING

    @Shown
    def address(self) -> SocketAddress | str | None:
        """Where it listens: a `SocketAddress`, or a Unix socket's path; None if it does not.

        If there are several addresses, the first.
        """
        return next(self._addresses(), None)

    @Shown
    def addresses(self) -> tuple[SocketAddress | str, ...]:
        """All addresses where it listens; empty if it does not."""
        return tuple(self._addresses())

    def _addresses(self) -> Iterator[SocketAddress | str]:
        if self._life.state is State.LISTENING:
            yield from self._listeners.addresses()

    # Options

    def _set_options(
        self, options: Options, serve: Serve | None, tls: ssl.SSLContext | None
    ) -> None:
        self._serve = serve
        self._tls = tls
        self._options = options
        self._time_limits = options.time_limits
        self._admission.configure(options)
        self._listeners.set_options(options)

    def suspend(self) -> None:
        """Accept no client until `resume`: new clients wait in the kernel's queue."""
        self._admission.suspend()

    def resume(self) -> None:
        """Accept clients again."""
        self._admission.resume()

    def configure(self, **options: Any) -> None:
        """Change options of the constructor. They hold for new clients, not for connected ones.

        A `profile` changes all options that it sets, except those given beside it. Errors as there,
        and then nothing is changed. In a worker process, the options of this process change; how
        many connections all of them may have together stays.
        """
        reload.configure(self, options)

    def reload(self) -> bool:
        """Read again what the options name by file: certificates, and lists of addresses.

        A handler's setting (`handler_args`) that has a method `reopen`, such as a log file, is
        reopened. A file that cannot be read, or is invalid, leaves its option as it is, and is
        logged; then the result is False. SIGHUP does this in a program that calls `run` or `serve`.
        """
        return reload.reload(self)

    def reload_tls(self) -> bool:
        """As `reload`, for certificates and keys only. New connections have the new ones."""
        return reload.reload_tls(self)

    @property
    def can_reload(self) -> bool:
        """Whether there is something to `reload`."""
        return reload.can_reload(self._options)

    def tls_context(self) -> ssl.SSLContext | None:
        """The context for the TLS of new clients; None if the server has no TLS."""
        return self._tls

    def share_places(self, places: Places) -> None:
        """Have `max_connections` hold for all worker processes together. For worker processes."""
        self._admission.share(places)

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
        thread = self._drain.background = threading.Thread(
            target=self._accept_until_stopped,
            args=(acceptor, 0.5),
            name=f"netkit-accept {self._listeners.describe()}",
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
        if self._life.state is State.CLOSED:
            raise ServerStateError(_CLOSED)
        acceptor = self._begin_accepting(taken, wait=False)
        if acceptor is None and self._accepting.under_way:
            place = self._listeners.describe()
            raise ServerStateError(f"the server is serving already, on {place}")
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
        with (
            self._life.changed
        ):  # no stop begins in between: it would not await the clients of the turn
            if self._life.state is State.NEW and not self._is_activated():
                raise ServerStateError("the server is not bound; call listen() first")
            if self._life.state is State.DRAINING:
                return None
            accepting = self._accepting
            if not accepting.stop_requested and self.socket.fileno() < 0:
                raise ServerStateError(_CLOSED)
            if taken is None and self._handler_class is no_handler:
                raise ServerStateError(_NO_HANDLER)
            contended = self._listeners.opened_by != os.getpid()
            acceptor = accepting.begin(*self._listeners.sockets, contended=contended)
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

    # Stopping

    def request_stop(self, timeout: float | None = None, patience: float = 0.0) -> None:
        """End `serve_forever` soon; returns at once, from wherever it is called.

        `timeout` and `patience` are for the `stop` that follows, if it is given none of its own.
        """
        self._drain.request(timeout, patience)

    def shutdown(self) -> None:
        """End `serve_forever`, and wait until it has ended (milliseconds).

        Clients stay connected, and the kernel queues new ones until the server serves again or is
        closed. In the serving thread itself (a signal handler), it does not wait. Before the server
        has ever served, the next `serve_forever` returns at once.
        """
        self._accepting.request_stop()
        self._accepting.wait_for_end()

    def stop(self, timeout: float | None = None, patience: float = 0.0) -> StopReport:
        """Stop gracefully, and report how many clients finished and how many were cut.

        The clients that are queued already are the last to be accepted. For `patience` seconds
        clients go on as before. Then idle ones see the end of input; busy ones get `timeout`
        seconds (by default the option `drain_timeout`) before they are cut. Idempotent; a second
        call, from another thread, waits for the first, and the shorter of the two time limits
        counts. A handler that calls this does not wait for its own connection; other threads that
        call this later, and the interpreter's exit, give that connection its time.
        """
        return self._drain.stop(timeout, patience)

    def close(self) -> StopReport:
        """Stop now: as `stop`, with no time for busy clients."""
        return self.stop(0)

    def server_close(self) -> None:
        """Stop gracefully within `drain_timeout`, as `stop` does; idempotent.

        If `block_on_close` is False, it closes the listeners and leaves the clients connected.
        """
        self._drain.close()

    # In a ``with`` block

    def __repr__(self) -> str:
        """Where it is in its life, and how many clients are connected."""
        state = self._life.state
        text = state.value
        if state in (State.LISTENING, State.DRAINING):
            place, more = self._listeners.describe(), len(self._listeners.more)
            if more:
                place = f"{place} and {more} more"
            text += f" on {place}, {len(self._connections.live())} connected"
        return f"<{type(self).__name__} {text}>"

    def __enter__(self: _Self) -> _Self:
        idle = not self._accepting.under_way
        if self._listeners.by_listen and idle and self._handler_class is not no_handler:
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
