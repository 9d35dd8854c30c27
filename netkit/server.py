"""The server: its address, its states, serving and stopping.

`socketserver`'s words, and Node's, for one engine. What happens to a single client is in
`netkit.serving`. Rules:

1. Nothing ends the accept loop but a stop, the loss of the listener, and what is meant to end the
   program (KeyboardInterrupt, SystemExit).
2. Nothing polls: the loop wakes up for a client, for a stop, and for a hook that asks for it.
3. Stopping has an order: stop accepting; tell the idle to end; take in who is queued; wait for the
   busy ones until the deadline; cut the rest; join; report.
"""

from __future__ import annotations

import atexit
import contextlib
import socket
import threading
import time
import weakref
from enum import Enum
from typing import Any, TypeVar

from . import binding, events
from .accepting import Accepting
from .addresses import SocketAddress, check_port
from .deadline import Deadline
from .doorway import INHERITS_OPTIONS
from .errors import ServerStateError
from .lifetimes import Lifetimes
from .listener import Acceptor, Verdict, woken_by_signals
from .options import Options, check_seconds
from .registry import StopReport
from .serving import ClientServer, Shown

# What a cut client's thread gets to notice and end (seconds). A handler that is busy with something
# else is left behind.
CUT_GRACE = 1.0

_CLOSED = "the server is closed; call listen() to open it again"

_Self = TypeVar("_Self", bound="Server")


class State(Enum):
    """Where a server is in its life. `Server.listen` leads from CLOSED back to LISTENING."""

    NEW = "not bound"
    LISTENING = "listening"  # clients are accepted while it serves, else queued by the kernel
    DRAINING = "stopping"  # no new clients; the others finish
    CLOSED = "closed"


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
        super().__init__(server_address, RequestHandlerClass, Options(**options))
        # Guards the state; notified when it changes. Re-entrant, for signal handlers.
        self._changed = threading.Condition()
        self._state = State.NEW
        self._background: threading.Thread | None = None
        self._closing_thread: int | None = None
        self._serve_in_with = False
        self._report = StopReport(0, 0)
        self._stop_order: tuple[float | None, float] = (None, 0.0)
        if server_address is not None:
            self._make_socket(
                binding.family_of(server_address, self.address_family), server_address
            )
            if bind_and_activate:
                self._bind_and_activate()

    # Binding

    def _make_socket(self, family: int, address: Any) -> None:
        if hasattr(self, "socket"):  # of an earlier life, or never bound
            self.socket.close()
        self.address_family = family
        self.server_address = address
        self.socket = socket.socket(family, self.socket_type)

    def _bind_and_activate(self) -> None:
        try:
            self.server_bind()
            self.server_activate()
        except BaseException:
            self.server_close()
            raise

    def server_bind(self) -> None:
        """Bind the socket to `server_address`, which becomes the address that it got."""
        reuse_port = self.allow_reuse_port
        try:
            binding.prepare(self.socket, reuse_port)
            self.allow_reuse_port = False  # done; `socketserver` would try Unix sockets, too
            super().server_bind()
        except OSError as error:
            raise binding.explain(error, self.server_address) from None
        finally:
            self.allow_reuse_port = reuse_port

    def server_activate(self) -> None:
        """Make it a listener, with room for `request_queue_size` clients not accepted yet."""
        super().server_activate()
        self._local_name = binding.name_of_all(self.socket)
        if INHERITS_OPTIONS:  # pragma: no branch - Linux has it so
            self._configure(self.socket)
        self._enter(State.LISTENING)
        events.emit(events.Listening(str(self._where())))

    def listen(
        self: _Self,
        port: int | str = 0,
        host: str | None = None,
        *,
        backlog: int | None = None,
        sock: socket.socket | None = None,
    ) -> _Self:
        """Bind and listen; returns the server itself.

        `port` 0: the system chooses, see `address`. `host` None: every address, IPv6 and IPv4; a
        name: the first of its addresses that can be bound. `backlog`: how many clients may wait to
        be accepted (511; the system may allow fewer). `sock`: listen on this bound socket instead,
        and close it in the end. Allowed again after the server was closed.

        ServerStateError if it listens already; ValueError for a port that is none; OSError (with
        the attributes `address`, `port` and `syscall`) if the address cannot be had, and
        socket.gaierror, which is one, if the name does not resolve.
        """
        port = check_port(port)
        with self._changed:
            if self._state in (State.LISTENING, State.DRAINING):
                raise ServerStateError(f"the server is {self._state.value} on {self._where()}")
            self._begin_new_life()
        if backlog is not None:
            self.request_queue_size = backlog
        if sock is not None:
            self.socket, self.address_family = sock, sock.family
            self.server_address = sock.getsockname()
            self.server_activate()
        else:
            self._listen_on(binding.candidates(host, port))
        self._serve_in_with = True
        return self

    def take_over(self, listener: socket.socket) -> None:
        """Serve on a listener that another process has made; nothing of its life counts here.

        For worker processes. The hooks of binding are not called again.
        """
        self._begin_new_life()
        self.socket, self.address_family = listener, listener.family
        self.server_address = listener.getsockname()
        self._local_name = binding.name_of_all(listener)
        self._enter(State.LISTENING)

    def _begin_new_life(self) -> None:
        """Not bound, and whatever was stopped before is forgotten."""
        with self._changed:
            self._state = State.NEW
            self._stop_order = (None, 0.0)
            self._accepting = Accepting()
            self._connections.reopen()
            self._client_threads = self._make_threads()
            self._lifetimes = Lifetimes(self._connections.live)

    def _listen_on(self, candidates: list[binding.Candidate]) -> None:
        *others, last = candidates
        for family, address in others:
            try:
                self._make_socket(family, address)
                return self._bind_and_activate()
            except OSError as error:
                if not binding.worth_another(error):
                    raise
                self._begin_new_life()  # the failed attempt has closed it
        self._make_socket(*last)
        return self._bind_and_activate()

    @Shown
    def listening(self) -> bool:
        """Whether it is bound and has not been stopped."""
        return self._state is State.LISTENING

    @Shown
    def address(self) -> SocketAddress | str | None:
        """Where it listens: a `SocketAddress`, or a Unix socket's path; None if it does not."""
        return self._where() if self._state is State.LISTENING else None

    def _where(self) -> SocketAddress | str:
        return SocketAddress.from_sockname(self.server_address) or str(self.server_address)

    def _enter(self, state: State) -> None:
        with self._changed:
            self._state = state
            self._changed.notify_all()

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

    def start(self: _Self) -> _Self:
        """Serve in the background, in a thread of its own; returns the server itself.

        The thread is not a daemon: like a server in the foreground, it keeps the process alive.
        ServerStateError if the server is serving already, is not bound, or closed.
        """
        if self._accepting.under_way:
            raise ServerStateError(f"the server is serving already, on {self._where()}")
        if self._state is State.CLOSED:
            raise ServerStateError(_CLOSED)
        acceptor = self._begin_accepting()
        if acceptor is not None:
            self._background = threading.Thread(
                target=self._accept_until_stopped,
                args=(acceptor, 0.5),
                name=f"netkit-accept {self._where()}",
                daemon=False,
            )
            try:
                self._background.start()
            except BaseException:
                self._accepting.end()
                raise
        return self

    def _begin_accepting(self, single: bool = False) -> Acceptor | None:
        if self._state is State.NEW and not hasattr(self, "socket"):
            raise ServerStateError("the server is not bound; call listen() first")
        if not self._accepting.stop_requested and self.socket.fileno() < 0:
            raise ServerStateError(_CLOSED)
        acceptor = self._accepting.begin(
            self.socket, shared=not single and not self._accepts_alone()
        )
        _to_be_closed.add(self)
        return acceptor

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
                    if acceptor.wait(deadline.remaining()):
                        self._accept_one()
                        return
                    if deadline.expired():
                        self.handle_timeout()
                        return
        finally:
            self._accepting.end()

    # Stopping

    def request_stop(self, timeout: float | None = None, patience: float = 0.0) -> None:
        """End `serve_forever` soon; returns at once, from wherever it is called.

        `timeout` and `patience` are for the `stop` that follows, if it is given none of its own.
        """
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
            if self._state is not State.CLOSED:
                self._limit(timeout, patience)
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
            self.shutdown()
            if self._background not in (None, threading.current_thread()):
                self._background.join()
            if drain:
                if not self._connections.limited:  # not by `stop`
                    self._connections.limit(Deadline(self._options.drain_timeout))
                self._drain()
        finally:
            self.socket.close()
            self._shut_doors()
            self._client_threads.close()
            self._lifetimes.close()
            self._closing_thread = None
            self._enter(State.CLOSED)

    def _drain(self) -> None:
        connections = self._connections
        try:
            if connections.patient:
                self._accept_queued()
                self.socket.close()
                connections.wait_for_leaving(spare=_me())
            connections.begin_draining()
            self._accept_queued()
            self.socket.close()
            connections.wait_while_draining(spare=_me())
        finally:  # a second Ctrl+C may have ended the wait
            connections.cut(spare=_me())
        self._client_threads.close()
        connections.wait_until_empty(CUT_GRACE, spare=_me())
        self._client_threads.join(CUT_GRACE)
        self._report = connections.drained()
        if self._accepting.has_begun:
            events.emit(events.Stopped(*self._report))

    def __enter__(self: _Self) -> _Self:
        if self._serve_in_with and not self._accepting.under_way:
            self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server_close()


def create_server(handler: Any, **options: Any) -> Server:
    """A server that is not bound yet: ``create_server(handler).listen(8080)``.

    `handler` and `options` as for `Server`; TypeError or ValueError if they cannot be meant.
    """
    return Server(None, handler, **options)


def _me() -> int:
    return threading.get_ident()


def _sooner(a: float | None, b: float | None) -> float | None:
    return b if a is None else a if b is None else min(a, b)


# Servers that have accepted clients. Their threads are daemons, so that a handler that never ends
# cannot keep the interpreter; replies under way at its exit are waited for here, for a while.
_to_be_closed: weakref.WeakSet[Server] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for server in list(_to_be_closed):
        with contextlib.suppress(Exception):
            server.server_close()
            server.stop()  # for a handler that has stopped its server, and is not done
