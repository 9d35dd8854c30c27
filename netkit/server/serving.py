"""One client's way through a server: registered, given a thread, verified, handled, closed.

The names are those of `socketserver`, and each of these methods may be overridden as there. They
run in the client's own thread, so that no client delays another, with two exceptions:
`get_request`, and `verify_request` if `process_request` is overridden, which expects verified
clients.
"""

from __future__ import annotations

import errno
import socket
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..core import events
from ..core.deadline import wait_time
from ..core.errors import NotBegunError, PeerError
from ..core.options import Options, TimeLimits, check_count, check_seconds
from ..net import sockopts
from ..net.addresses import describe_peer
from ..net.connection import Connection
from ..net.timeouts import in_seconds, unacknowledged
from . import log
from .adapting import Serve, adapt, check_result, error_of_handle
from .admission import Ticket
from .doorway import Doorway
from .listeners import INHERITS_OPTIONS, set_options
from .reload import Changes
from .subclassing import Threads
from .threads import Job
from .watchdog import Lifetimes

if TYPE_CHECKING:
    import ssl

events.subscribe(log.write)  # the level of the logger "netkit" decides how much is logged

_T = TypeVar("_T")


class Shown(Generic[_T]):
    """A read-only property that an attribute of the same name replaces.

    Subclasses written for `socketserver` may use netkit's names for attributes of their own, so
    netkit itself never reads such a property.
    """

    def __init__(self, get: Callable[[Any], _T]) -> None:
        self._get = get
        self.__doc__ = get.__doc__

    def __get__(self, server: Any, _: type) -> _T:
        return self if server is None else self._get(server)  # type: ignore[return-value]


class TakenConnection(Connection):
    """A connection that a program has taken from its server, and closes itself."""

    __slots__ = ()

    def _release(self) -> None:
        super()._release()
        self.server._connections.remove(self)

    def detach(self) -> tuple[socket.socket, bytes]:
        """As `Connection.detach`; afterwards its place in the server is free."""
        detached = super().detach()
        self.server._connections.remove(self)
        return detached


class ClientServer(Doorway):
    """The part of `Server` that serves one client. Not used by itself."""

    _handler_class: Any = None  # a subclass may name one, see `Server.__init_subclass__`

    def _prepare(self) -> None:
        super()._prepare()
        self._changes = Changes()  # of the attributes that follow
        self._serve: Serve | None = None
        self._tls: ssl.SSLContext | None = None
        self._time_limits: TimeLimits | None = None
        self._lifetimes = Lifetimes(self._connections.live)

    @property
    def RequestHandlerClass(self) -> Any:
        """The handler, of any kind. It may be set; TypeError if it cannot serve a client."""
        return self._handler_class

    @RequestHandlerClass.setter
    def RequestHandlerClass(self, handler: Any) -> None:
        def prepare() -> Callable[[], None]:
            serve = self._adapted(handler, self._options)
            return lambda: self._set_handler(handler, serve)

        self._changes.make(prepare)

    def _set_handler(self, handler: Any, serve: Serve | None) -> None:
        self._serve = serve
        self._handler_class = handler

    def _adapted(self, handler: Any, options: Options) -> Serve | None:
        calls_it_itself = self._overrides("finish_request")
        if handler is None and calls_it_itself:  # it needs none
            return None
        return adapt(handler, options.handler_args, check=not calls_it_itself)

    @property
    def _threads(self) -> Threads:  # `socketserver` has this name, and programs use it
        return Threads(self._client_threads.threads(), self._drain.close)

    @Shown
    def connections(self) -> tuple[Connection, ...]:
        """The connections that are open now."""
        return self._connections.live()

    @Shown
    def connection_count(self) -> int:
        """How many connections are open now."""
        return len(self._connections.live())

    @Shown
    def refused_count(self) -> int:
        """How many clients have been refused so far, by a limit or a list."""
        return self._refusals.count

    def wait_for_connections(self, count: int, timeout: float | None = None) -> bool:
        """Wait until at least `count` connections are open, or, for 0, until none is.

        False if that takes more than `timeout` seconds. TypeError or ValueError for an invalid
        number.
        """
        check_count("count", count)
        if timeout is not None:
            check_seconds("timeout", timeout)
        return self._connections.wait_for(count, timeout)

    # Registered

    def _register(self, request: Any, client_address: Any) -> Connection:
        connection = self._note(request, client_address, None)
        self._announce(connection)
        return connection

    def _note(self, request: Any, client_address: Any, ticket: Ticket | None) -> Connection:
        """Register an accepted client. If that fails, its `ticket` is given back.

        The connection belongs to the calling thread: a stop that an observer makes here does not
        wait for it.
        """
        try:
            connection = self._connection(request, client_address)
            connection.ticket = ticket
            connection.thread = threading.get_ident()
            self._connections.add(connection)
        except BaseException:
            self._admission.leave(ticket)  # else the registry does it in the end
            raise
        return connection

    def _connection(self, request: Any, client_address: Any) -> Connection:
        taken = self._taken is not None
        opaque = self._serve is None and not taken
        options = self._options
        connection = (TakenConnection if taken else Connection)(  # names cost a dictionary
            request,
            client_address,
            self._listeners.local_name,
            self,
            options.encoding,
            options.max_line,
            options.max_message,
            opaque,
        )
        connection.lifetime = options.lifetime
        if not INHERITS_OPTIONS:  # pragma: no cover - see there
            set_options(request, options)
        if opaque:
            request.settimeout(_limit_of_calls(options)[1])
            if options.write_timeout is not None:
                sockopts.set_acknowledgement_timeout(request, options.write_timeout)
        elif self._time_limits is not None:
            connection.set_limits(self._time_limits)
        return connection

    def _announce(self, connection: Connection) -> None:
        if connection.lifetime is not None:
            self._lifetimes.watch(connection.opened_at, connection.lifetime)
        self._connections.announce(connection)

    def _speaks_tls(self) -> bool:
        """Whether it does so from a connection's first byte on."""
        return self._tls is not None and not self._options.starttls

    def process_request(self, request: Any, client_address: Any) -> None:
        """Run `process_request_thread` in a thread of the client's own."""
        self._start_client(request, client_address, True)

    def _start_client(self, request: Any, client_address: Any, verified: bool) -> None:
        connection = self._connections.get(request)
        job = self._job(connection, request, client_address, verified)
        self._client_threads.daemon = self.daemon_threads
        while True:
            try:
                return self._client_threads.run(job)
            except RuntimeError as error:
                if "interpreter shutdown" in str(error):  # no client can be served any more
                    events.emit(events.ListenerLost(error), self)
                    self._accepting.request_stop()
                elif self._accepting.under_way and not self._accepting.stop_requested:
                    self._accepting.failed(error)  # wait and try again: a thread may end soon
                    continue
                else:
                    events.emit(events.AcceptFailed(error), self)
                return self._forget(request)

    def _job(
        self, connection: Connection | None, request: Any, client_address: Any, verified: bool
    ) -> Job:
        # Not a partial: a call of Python code from C takes a kilobyte of each client's stack.
        return lambda: self._serve_client(connection, request, client_address, verified)

    # In the client's thread

    def _serve_client(
        self, connection: Connection | None, request: Any, client_address: Any, verified: bool
    ) -> None:
        if connection is not None:
            if not self._connections.claim(connection):
                return
            threading.current_thread().name = f"netkit-{connection.id} {connection.peer}"
        try:
            verified = verified or self._is_verified(request, client_address)
            if connection is not None:
                request = connection.socket  # a TLS handshake may have replaced it
            if verified:
                self.process_request_thread(request, client_address)
            else:
                self._shut_down(request)
        except BaseException as error:  # the thread has more clients to serve
            events.emit(events.HookFailed("process_request_thread", error), self)
            self._forget(request)
        finally:
            if connection is not None:  # an overridden shutdown_request may not call netkit's
                self._connections.remove(connection)

    def _is_verified(self, request: Any, client_address: Any) -> bool:
        try:
            request = self._secured_below(request, self._connections.get(request))
            return self._verified(request, client_address)
        except Exception:
            self._tell_error(request, client_address)
        except BaseException as error:
            events.emit(events.HookFailed("verify_request", error), self)
        return False

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one client to its end, in the calling thread."""
        connection = self._claimed(self._connections.get(request), request, client_address)
        try:
            request = self._secured(request, connection)
            self.finish_request(request, client_address)
        except Exception as error:
            expects_tls = self._speaks_tls() or hasattr(request, "do_handshake")
            if isinstance(error, NotBegunError) and expects_tls:
                return  # a client that sends nothing is no error, as on a port without TLS
            self._tell_error(connection.socket if connection else request, client_address)
        except BaseException as error:
            if threading.current_thread() is threading.main_thread():
                raise  # Ctrl+C, say
            events.emit(events.HandlerFailed(*_ends(connection, client_address, error)), self)
        finally:
            if connection is None:
                self._shut_down(request)
            else:  # `finish_request` may have replaced its socket
                connection.forget_frames()  # before the close, which may wait for the client
                self._shut_down(connection.socket)
                self._connections.remove(connection)
                if connection.socket is not request:
                    self._forget(request)
                connection.forget_frames()

    def _claimed(
        self, connection: Connection | None, request: Any, client_address: Any
    ) -> Connection | None:
        """`connection`, or a new one for TLS if the program has accepted `request` elsewhere."""
        if connection is None and self._speaks_tls():
            connection = self._register(request, client_address)
        if connection is not None and connection.thread is None:
            self._connections.claim(connection)
        return connection

    def _secured(self, request: Any, connection: Connection | None) -> Any:
        """`request` after the TLS handshake: another socket if the handler reads it itself."""
        if type(request) is not socket.socket:
            return self._secured_below(request, connection)
        if not self._speaks_tls() or connection is None or connection.is_secured():
            return request
        context, seconds = self._tls, self._options.handshake_timeout
        assert context is not None
        if not connection.opaque:
            connection.start_tls(context)
            return request
        from ..tls import context as tls_context  # here because most programs do without

        limit = request.gettimeout()
        secured = tls_context.wrap(request, context)
        self._connections.replace(connection, secured)
        return connection.shake_hands(secured, seconds, limit)

    def _secured_below(self, request: Any, connection: Connection | None) -> Any:
        """The same for a `request` that the program, or its wrapped listener, has wrapped."""
        if connection is None or connection.tls is not None or not hasattr(request, "context"):
            return request
        from ..tls import context as tls_context

        if not tls_context.is_pending(request):
            return request
        seconds = self._options.handshake_timeout
        if connection.opaque:
            tls_context.make_stoppable(request)
            return connection.shake_hands(request, seconds, request.gettimeout())
        context, request = request.context, sockopts.waiting(socket.socket(fileno=request.detach()))
        self._connections.replace(connection, request)
        if self._time_limits is not None:
            connection.set_limits(self._time_limits)
        connection.start_tls(context)
        return request

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Run the handler. `request` may be a socket that wraps the accepted one (TLS)."""
        connection = self._connections.get(request) or self._connections.adopt(request)
        connection = self._claimed(connection, request, client_address)
        request = self._secured(request, connection)  # if the caller has not done so
        if self._serve is None:
            self._handler_class(request, client_address, self, **self._options.handler_args)
        else:
            connection = connection or self._register(request, client_address)
            try:
                check_result(self._serve(connection))
            except BaseException as error:
                connection.fail(error)
                raise

    def shutdown_request(self, request: Any) -> None:
        """End a connection such that its client gets everything that was written to it."""
        connection = self._connection_of(request)
        if connection is None:
            sockopts.shut_down(request, socket.SHUT_WR)
        else:
            connection.finish()
        self.close_request(request)
        if connection is not None:  # an overridden close_request may close the descriptor alone
            self._connections.remove(connection)

    def _connection_of(self, request: Any) -> Connection | None:
        """The connection of `request`, also after another socket has replaced that (TLS)."""
        return self._connections.get(request) or self._connections.replaced.get(request)

    def _shut_down(self, request: Any) -> None:
        if not self._call_hook("shutdown_request", request):
            self._forget(request)

    def close_request(self, request: Any) -> None:
        """Close a connection's descriptor, even if a file made of the socket is still open."""
        self._forget(request)

    def _forget(self, request: Any) -> None:
        connection = self._connection_of(request)
        if connection is not None:
            connection.destroy()
            self._connections.remove(connection)
        if connection is None or connection.socket is not request:
            sockopts.force_close(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log the exception being handled: in one line if the client is to blame for it."""
        error = sys.exc_info()[1]
        assert error is not None, "to be called while an exception is being handled"
        connection = self._connection_of(request)
        if connection is None:  # finish_request has wrapped it in an object of its own
            connection = self._connections.of_thread(threading.get_ident())
        # If the client is gone, the error of `finish` must not hide that of `handle`.
        faults = [e for e in (error, error_of_handle(error)) if not _is_clients(e, connection)]
        if faults:
            events.emit(events.HandlerFailed(*_ends(connection, client_address, faults[0])), self)
        else:
            reason = self._in_words(error, connection)
            events.emit(events.ClientFailed(*_ends(connection, client_address, reason)), self)

    def _in_words(self, error: BaseException, connection: Connection | None) -> BaseException:
        """`error`, or one that names the limit, where Python only says "timed out"."""
        if connection and isinstance(error, TimeoutError) and error.errno is None:
            name, limit = _limit_of_calls(self._options)
            if limit is not None and limit == connection.socket.gettimeout():
                text = f"{connection.peer} kept a read or a write waiting for {in_seconds(limit)}"
                return TimeoutError(errno.ETIMEDOUT, f"{name}: {text}")
        limit = self._options.write_timeout
        if connection and limit is not None and isinstance(error, OSError):
            return unacknowledged(error, limit, connection.peer)
        return error

    def _tell_error(self, request: Any, client_address: Any) -> None:
        self._call_hook("handle_error", request, client_address)

    def _call_hook(self, name: str, *arguments: Any) -> bool:
        """Call an overridable method; False if it has failed, which is logged."""
        try:
            getattr(self, name)(*arguments)
        except BaseException as error:
            if self._is_for_caller(error):
                raise
            events.emit(events.HookFailed(name, error), self)
            return False
        return True

    def _overrides(self, name: str) -> bool:
        own = getattr(getattr(self, name), "__func__", None)
        return own is not getattr(ClientServer, name)


def _limit_of_calls(options: Options) -> tuple[str, float | None]:
    """The time limit of each call of a socket that its handler reads, and the option's name."""
    for name in ("idle_timeout", "read_timeout", "write_timeout"):
        if getattr(options, name) is not None:
            return name, wait_time(getattr(options, name))
    return "", None


def _ends(
    connection: Connection | None, client_address: Any, error: BaseException
) -> tuple[int, str, BaseException, str]:
    """The attributes of an event about `error`: id, peer, error and local address."""
    number, local = (connection.id, connection.local) if connection else (0, "")
    return number, describe_peer(client_address), error, local


def _is_clients(error: BaseException, connection: Connection | None) -> bool:
    """Whether the client is to blame for an error of its handler."""
    return isinstance(error, PeerError) or bool(connection and connection.is_to_blame(error))
