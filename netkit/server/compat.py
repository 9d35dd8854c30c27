"""The hooks of `socketserver`, for the clients that need them.

A client is served here if its server overrides a hook, or if its handler reads the bare socket.
The hooks carry the accepted socket (`request`) and the client's address, so the connection of a
socket is looked up in a dictionary. The hooks run in the client's own thread, so that no client
delays another one, with two exceptions: `get_request`, and `verify_request` if `process_request` is
overridden, which expects a verified client.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..core import events
from ..core.errors import NotBegunError
from ..net import sockopts
from ..net.connection import Connection
from .adapting import check_result

if TYPE_CHECKING:
    from .server import Server

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


class Compat:
    """Serves clients of one server through the hooks of `socketserver`. Thread-safe.

    The dictionaries need no lock: each use of them is one operation, which Python makes atomic.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        # By the accepted socket, and by each one that has replaced it (TLS).
        self._of_request: dict[Any, Connection] = {}
        # The sockets of a connection that another one has replaced.
        self._replaced: dict[Connection, list[Any]] = {}
        # By the thread that serves it.
        self._of_thread: dict[int, Connection] = {}

    # Connections

    def connection_of(self, request: Any) -> Connection | None:
        """Return the connection of `request`, also after another socket has replaced it."""
        return self._of_request.get(request)

    def _find(self, request: Any) -> Connection | None:
        """As `connection_of`, also for a connection that is served without the hooks."""
        found = self._of_request.get(request)
        if found is None:
            live = self._server._connections.live()
            found = next((each for each in live if each.socket is request), None)
        return found

    def _claim(self, connection: Connection) -> bool:
        if not self._server._connections.claim(connection):
            return False
        self._of_thread[threading.get_ident()] = connection
        return True

    def _replace(self, connection: Connection, request: Any) -> None:
        """Have `request` replace the socket of `connection`."""
        self._replaced.setdefault(connection, []).append(connection.socket)
        self._of_request[request] = connection
        connection.socket = request

    def _adopt(self, request: Any) -> Connection | None:
        """Return the connection of the calling thread, whose socket `request` wraps.

        If `request` has taken over the descriptor, as TLS does, it replaces the socket. Else the
        connection goes on watching its socket.
        """
        connection = self._of_thread.get(threading.get_ident())
        if connection is not None and not (connection.opaque and connection.fileno() >= 0):
            self._replace(connection, request)
        return connection

    def remove(self, connection: Connection) -> None:
        """Forget a closed connection, here and in the registry. Idempotent."""
        for request in (connection.socket, *self._replaced.pop(connection, ())):
            self._of_request.pop(request, None)
        thread = connection.thread
        if thread is not None and self._of_thread.get(thread) is connection:
            self._of_thread.pop(thread, None)
        self._server._connections.remove(connection)

    def forget(self, request: Any) -> None:
        """Close the connection of `request` at once, without its handler."""
        self._server._clients.abandon(self._find(request), request)

    # From the accepting thread

    def start(self, connection: Connection, request: Any, client_address: Any) -> None:
        """Start to serve a registered client, by `process_request` if that is overridden."""
        server = self._server
        self._of_request[request] = connection
        iterated, schedules = server._clients.iterated, server._overrides("process_request")
        if iterated is None and not schedules:
            self._run(request, client_address, not server._overrides("verify_request"))
        elif not self._is_verified(request, client_address):
            server.shutdown_request(request)
        elif iterated is not None:
            iterated.append(connection)
        else:
            self._schedule(connection, request, client_address)

    def _schedule(self, connection: Connection, request: Any, client_address: Any) -> None:
        thread = threading.get_ident()
        self._of_thread[thread] = connection  # for a `process_request` that wraps `request`
        try:
            self._server.process_request(request, client_address)
        finally:
            self._of_thread.pop(thread, None)

    def process_request(self, request: Any, client_address: Any) -> None:
        """As `Server.process_request`."""
        self._run(request, client_address, is_verified=True)

    def _run(self, request: Any, client_address: Any, is_verified: bool) -> None:
        connection = self.connection_of(request) or self._adopt(request)
        serve = self._serve
        arguments = connection, request, client_address, is_verified
        if not self._server._client_threads.run(serve, *arguments):
            self.forget(request)

    def _is_verified(self, request: Any, client_address: Any) -> bool:
        verdict = self._server.verify_request(request, client_address)
        check_result(verdict, "verify_request")  # a coroutine would let everybody in
        return bool(verdict)

    # In the client's thread

    def _serve(
        self, connection: Connection | None, request: Any, client_address: Any, is_verified: bool
    ) -> None:
        if connection is not None:
            if not self._claim(connection):
                return
            threading.current_thread().name = f"netkit-{connection.id} {connection.peer}"
        try:
            if not is_verified:
                is_verified = self._verify(request, client_address)
                # A TLS handshake may have replaced the socket.
                request = request if connection is None else connection.socket
            if is_verified:
                self._server.process_request_thread(request, client_address)
            else:
                self._shut_down(request)
        except BaseException as error:  # the thread has more clients to serve
            events.emit(events.HookFailed("process_request_thread", error), self._server)
            self.forget(request)
        finally:
            if connection is not None:  # an overridden shutdown_request may not call netkit's
                self.remove(connection)

    def _verify(self, request: Any, client_address: Any) -> bool:
        try:
            request = self._secured_below(request, self.connection_of(request))
            return self._is_verified(request, client_address)
        except Exception:
            self.call("handle_error", request, client_address)
        except BaseException as error:
            events.emit(events.HookFailed("verify_request", error), self._server)
        return False

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """As `Server.process_request_thread`."""
        server = self._server
        connection = self._claimed(self.connection_of(request), request, client_address)
        try:
            request = self._secured(request, connection)
            server.finish_request(request, client_address)
        except Exception as error:
            expects_tls = server._clients.speaks_tls() or hasattr(request, "do_handshake")
            if isinstance(error, NotBegunError) and expects_tls:
                return  # a client that sends nothing is no error, as on a port without TLS
            self.call("handle_error", connection.socket if connection else request, client_address)
        except BaseException as error:
            if threading.current_thread() is threading.main_thread():
                raise  # Ctrl+C, say
            server._clients.report_fault(connection, client_address, error)
        finally:
            if connection is None:
                self._shut_down(request)
            else:
                self._end(connection, request)

    def _end(self, connection: Connection, request: Any) -> None:
        connection.forget_frames()  # before the close, which may wait for the client
        self._shut_down(connection.socket)  # `finish_request` may have replaced `request`
        self.remove(connection)
        if connection.socket is not request:
            sockopts.force_close(request)
        connection.forget_frames()

    def _claimed(
        self, connection: Connection | None, request: Any, client_address: Any
    ) -> Connection | None:
        """Claim `connection` for the calling thread, and return it.

        If the program has accepted `request` elsewhere, and the server speaks TLS, a connection is
        made for it.
        """
        if connection is None and self._server._clients.speaks_tls():
            connection = self._register(request, client_address)
        if connection is not None and connection.thread is None:
            self._claim(connection)
        return connection

    def _register(self, request: Any, client_address: Any) -> Connection:
        is_opaque = self._server._serve is None
        connection = self._server._clients.register(request, client_address, None, is_opaque)
        self._of_request[request] = connection
        self._of_thread[threading.get_ident()] = connection
        return connection

    def _secured(self, request: Any, connection: Connection | None) -> Any:
        """Do the TLS handshake of the server's options, if it is still to be done.

        Returns `request`, or the TLS socket that replaces it if the handler reads the socket
        itself.
        """
        server = self._server
        if type(request) is not socket.socket:
            return self._secured_below(request, connection)
        if not server._clients.speaks_tls() or connection is None or connection.is_secured():
            return request
        context, seconds = server._tls, server._options.handshake_timeout
        assert context is not None
        if not connection.opaque:
            connection.start_tls(context)
            return request
        from ..net import tls_socket  # here because most programs do without

        limit = request.gettimeout()
        secured = tls_socket.wrap(request, context)
        self._replace(connection, secured)
        return tls_socket.secure(connection, secured, seconds, limit)

    def _secured_below(self, request: Any, connection: Connection | None) -> Any:
        """As `_secured`, for a TLS socket that the program, or its listener, has made."""
        if connection is None or connection.tls is not None or not hasattr(request, "context"):
            return request
        from ..net import tls_socket

        if not tls_socket.is_pending(request):
            return request
        server = self._server
        if connection.opaque:
            tls_socket.make_stoppable(request)
            limit = request.gettimeout()
            seconds = server._options.handshake_timeout
            return tls_socket.secure(connection, request, seconds, limit)
        context = request.context
        request = sockopts.blocking(socket.socket(fileno=request.detach()))
        self._replace(connection, request)
        limits = server._time_limits
        if limits is not None:
            connection.set_limits(limits)
        connection.start_tls(context)
        return request

    def finish_request(self, request: Any, client_address: Any) -> None:
        """As `Server.finish_request`. `request` may be a socket that wraps the accepted one."""
        server = self._server
        connection = self.connection_of(request) or self._adopt(request)
        connection = self._claimed(connection, request, client_address)
        request = self._secured(request, connection)  # if the caller has not done so
        serve = server._serve
        if serve is None:
            server._handler_class(request, client_address, server, **server._options.handler_args)
            return
        connection = connection or self._register(request, client_address)
        try:
            check_result(serve(connection))
        except BaseException as error:
            connection.fail(error)
            raise

    # Ending

    def shutdown_request(self, request: Any) -> None:
        """As `Server.shutdown_request`."""
        connection = self._find(request)
        if connection is None:
            sockopts.shut_down(request, socket.SHUT_WR)
        else:
            connection.finish()
        self._server.close_request(request)
        if connection is not None:  # an overridden close_request may close the descriptor alone
            self.remove(connection)

    def _shut_down(self, request: Any) -> None:
        if not self.call("shutdown_request", request):
            self.forget(request)

    # Errors

    def handle_error(self, request: Any, client_address: Any) -> None:
        """As `Server.handle_error`."""
        connection = self.connection_of(request)
        if connection is None:  # finish_request has wrapped it in an object of its own
            connection = self._of_thread.get(threading.get_ident())
        self._server._clients.report(connection, client_address)

    def handle_error_of(self, connection: Connection, client_address: Any) -> None:
        """Call `handle_error` for a connection that is served without the hooks."""
        thread = threading.get_ident()
        self._of_thread[thread] = connection
        try:
            self.call("handle_error", connection.socket, client_address)
        finally:
            self._of_thread.pop(thread, None)

    def call(self, name: str, *arguments: Any) -> bool:
        """Call a hook of the server. False if it has raised, which is reported.

        An exception that is meant to end the program is raised.
        """
        try:
            getattr(self._server, name)(*arguments)
        except BaseException as error:
            if self._server._acceptor.is_for_caller(error):
                raise
            events.emit(events.HookFailed(name, error), self._server)
            return False
        return True
