"""Registers clients, and serves those of netkit's own handlers.

The connection of a client is made once and handed along: to the registry, to a thread, to the
handler. That thread alone closes it and removes it from the registry. If the server overrides a
hook of `socketserver`, or if the handler reads the bare socket, `netkit.server.compat` serves the
client once it is registered.
"""

from __future__ import annotations

import errno
import socket
import sys
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from ..core import events
from ..core.deadline import wait_time
from ..core.errors import NotBegunError, PeerError
from ..core.options import Options
from ..net import sockopts
from ..net.addresses import describe_peer
from ..net.connection import Connection
from ..net.explain import in_seconds, unacknowledged
from .adapting import Serve, check_result, error_of_handle
from .admission import NO_SHARE, Ticket
from .listeners import INHERITS_OPTIONS, set_options

if TYPE_CHECKING:
    from .server import Server


class IteratedConnection(Connection):
    """A connection that ``for connection in server`` has given to the program, which closes it."""

    __slots__ = ()

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._link.released = self._forget

    def _forget(self) -> None:
        self.server._compat.remove(self)

    def detach(self) -> tuple[socket.socket, bytes]:
        """As `Connection.detach`; afterwards its place in the server is free."""
        detached = super().detach()
        self.server._compat.remove(self)
        return detached


class Clients:
    """Makes the connections of one server, gives each of them a thread, serves and ends it."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.iterated: deque[Connection] | None = None
        """The connections that ``for connection in server`` has accepted and not yielded yet.

        None unless the program iterates over the server.
        """

    def speaks_tls(self) -> bool:
        """Whether clients speak TLS from the first byte on."""
        server = self._server
        return server._tls is not None and not server._options.starttls

    # In the accepting thread

    def admit(self, request: Any, client_address: Any, ticket: Ticket) -> None:
        """Start to serve a client that has a place; a failure ends that client alone.

        An exception that is meant to end the program is raised.
        """
        server, connection = self._server, None
        try:
            serve = server._serve
            connection = self.register(request, client_address, ticket, serve is None)
            connection.thread = None  # from now on a thread may claim it
            if (
                serve is None
                or self.iterated is not None
                or type(request) is not socket.socket
                or server._overrides_hooks_of_client()
            ):
                server._compat.start(connection, request, client_address)
            elif not server._client_threads.run(self.serve, connection, client_address, serve):
                server._compat.forget(request)
        except BaseException as error:
            if server._acceptor.is_for_caller(error):
                # Its thread may run already, and have claimed it.
                if connection is None or server._connections.claim(connection):
                    self.abandon(connection, request)
                raise
            try:
                self._report_failed_start(connection, error, request, client_address)
            finally:
                self.abandon(connection, request)
        else:
            if server._accept_loop.back_off.pause:
                server._accept_loop.succeeded()

    def _report_failed_start(
        self,
        connection: Connection | None,
        error: BaseException,
        request: Any,
        client_address: Any,
    ) -> None:
        if connection is not None and isinstance(error, Exception):
            self._server._compat.handle_error_of(connection, client_address)
        elif isinstance(error, Exception):
            self._server._compat.call("handle_error", request, client_address)
        else:
            events.emit(events.HookFailed("process_request", error), self._server)

    def register(
        self, request: Any, client_address: Any, ticket: Ticket | None, is_opaque: bool
    ) -> Connection:
        """Make the connection of an accepted client. If that fails, `ticket` is given back.

        `is_opaque`: whether the handler reads the bare socket. The connection belongs to the
        calling thread at first: an observer that stops the server here does not wait for it.
        """
        server, connection = self._server, None
        options, limits = server._options, server._time_limits
        try:
            is_opaque = is_opaque and self.iterated is None
            connection = (Connection if self.iterated is None else IteratedConnection)(
                request,  # by position, since names cost a dictionary for each client
                client_address,
                server._listeners.local_name,
                server,
                *(options.encoding, options.max_line, options.max_message),
                is_opaque,
            )
            connection.lifetime = options.lifetime
            if not INHERITS_OPTIONS:  # pragma: no cover - see there
                set_options(request, options)
            if is_opaque:
                _limit_calls(request, options)
            elif limits is not None:
                connection.set_limits(limits)
            connection.ticket, connection.thread = ticket, threading.get_ident()
            if ticket is not NO_SHARE:
                connection.on_close = server._admission.linger
            server._connections.add(connection)
            if connection.lifetime is not None:
                server._watchdog.watch(connection.opened_at, connection.lifetime)
        except BaseException:
            if connection is not None and server._connections.claim(connection):
                self.abandon(connection, request)
            else:  # the registry does not know it
                server._admission.leave(ticket)
            raise
        return connection

    def may_retry(self, error: RuntimeError) -> bool:
        """Whether to try again to start a thread, which has met `error`.

        If the server accepts clients, this pauses, since a thread may end soon. Else the client is
        to be closed unserved.
        """
        server, loop = self._server, self._server._accept_loop
        if "interpreter shutdown" in str(error):  # no client can be served any more
            events.emit(events.ListenerLost(error), server)
            loop.request_stop()
        elif loop.under_way and not loop.stop_requested:
            loop.failed(error)
            return True
        else:
            events.emit(events.AcceptFailed(error), server)
        return False

    # In the client's thread

    def serve(self, connection: Connection, client_address: Any, serve: Serve) -> None:
        """Serve a client from its first byte to its end, by a handler of netkit's own kinds."""
        server = self._server
        if not server._connections.claim(connection):
            return
        threading.current_thread().name = f"netkit-{connection.id} {connection.peer}"
        try:
            tls = server._tls  # read once, since `configure` may replace it
            if tls is not None and not server._options.starttls:
                connection.start_tls(tls)
            try:
                result = serve(connection)
                if result is not None:
                    check_result(result)
            except BaseException as error:
                connection.fail(error)
                raise
        except BaseException as error:
            self._report_failed(connection, client_address, error)
        finally:
            try:
                if not connection.closed:
                    connection.forget_frames()  # before the close, which may wait for the client
                    connection.close()
                    connection.destroy()  # if another thread is closing it, which is not waited for
            finally:
                server._connections.remove(connection)
                connection.forget_frames()

    def _report_failed(
        self, connection: Connection, client_address: Any, error: BaseException
    ) -> None:
        """Report the error of a handler; call `handle_error` as `socketserver` does."""
        if not isinstance(error, Exception):
            self.report_fault(connection, client_address, error)
        elif not (isinstance(error, NotBegunError) and self.speaks_tls()):
            # A client that sends nothing is no error, as on a port without TLS.
            self._server._compat.handle_error_of(connection, client_address)

    def abandon(self, connection: Connection | None, request: Any) -> None:
        """Close a client at once, without its handler."""
        if connection is not None:
            connection.destroy()
            self._server._compat.remove(connection)
        if connection is None or connection.socket is not request:
            sockopts.force_close(request)

    # Errors

    def report(self, connection: Connection | None, client_address: Any) -> None:
        """Emit an event about the exception being handled: whether the client is to blame or not.

        `connection` None: it is not known whose error it is.
        """
        error = sys.exc_info()[1]
        assert error is not None, "to be called while an exception is being handled"
        # If the client is gone, the error of `finish` must not hide that of `handle`.
        faults = [e for e in (error, error_of_handle(error)) if not _is_clients(e, connection)]
        if faults:
            self.report_fault(connection, client_address, faults[0])
        else:
            reason = self._explained(error, connection)
            event = events.ClientFailed(*_ends(connection, client_address, reason))
            events.emit(event, self._server)

    def report_fault(
        self, connection: Connection | None, client_address: Any, error: BaseException
    ) -> None:
        """Emit an event about an error that is not the client's."""
        events.emit(events.HandlerFailed(*_ends(connection, client_address, error)), self._server)

    def _explained(self, error: BaseException, connection: Connection | None) -> BaseException:
        """Return `error`, or one that names the limit, where Python only says "timed out"."""
        options = self._server._options
        if connection and isinstance(error, TimeoutError) and error.errno is None:
            name, limit = _limit_of_calls(options)
            if limit is not None and limit == connection.socket.gettimeout():
                text = f"{connection.peer} kept a read or a write waiting for {in_seconds(limit)}"
                return TimeoutError(errno.ETIMEDOUT, f"{name}: {text}")
        if connection and options.write_timeout is not None and isinstance(error, OSError):
            return unacknowledged(error, options.write_timeout, connection.peer)
        return error


def _limit_calls(request: socket.socket, options: Options) -> None:
    """Set the time limits of a socket that its handler reads and writes itself."""
    request.settimeout(_limit_of_calls(options)[1])
    if options.write_timeout is not None:
        sockopts.set_acknowledgement_timeout(request, options.write_timeout)


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
