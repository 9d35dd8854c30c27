"""The hooks of `socketserver`, for the clients that need them.

A client is served here if its server overrides a hook, or if its handler reads the bare socket.
The hooks carry the accepted socket (`request`) and the client's address, so the connection of a
socket is looked up in a dictionary. They run in the client's own thread, with two exceptions:
`get_request`, and `verify_request` if an overridden `process_request` expects a verified client.
"""

from __future__ import annotations

import functools
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from typing import Any

from ..core.errors import NotBegunError
from ..net import sockopts
from ..net.connection import Connection
from .accept_loop import AcceptLoop
from .adapting import check_result
from .handshakes import Handshakes
from .registrar import Registrar
from .registry import Registry
from .reports import Reports
from .setup import Configuration
from .threads import ClientThreads


class Compat:
    """Serves clients of one server through the hooks of `socketserver`. Thread-safe.

    The dictionaries need no lock: each use of them is one operation, which Python makes atomic.
    """

    def __init__(
        self,
        server: socketserver.ThreadingTCPServer,
        overrides: Callable[[str], bool],
        configuration: Configuration,
        loop: AcceptLoop,
        registrar: Registrar,
        registry: Registry,
        threads: ClientThreads,
        reports: Reports,
    ) -> None:
        """`overrides` tells whether the program has replaced a hook of `server`."""
        self._server = server
        self._overrides = overrides
        self._configuration = configuration
        self._loop = loop
        self._registrar = registrar
        self._registry = registry
        self._threads = threads
        self._reports = reports
        # By the accepted socket, and by each one that has replaced it (TLS).
        self._of_request: dict[Any, Connection] = {}
        self._replaced: dict[Connection, list[Any]] = {}  # the sockets that others have replaced
        self._of_thread: dict[int, Connection] = {}  # by the thread that serves it
        self._scheduled: dict[int, Connection] = {}  # by the descriptor; some are closed
        self._handshakes = Handshakes(configuration, self._replace)

    # Connections

    def connection_of(self, request: Any) -> Connection | None:
        """Return the connection of `request`, also after another socket has replaced it."""
        return self._of_request.get(request)

    def _find(self, request: Any) -> Connection | None:
        """As `connection_of`, also for a connection that is served without the hooks."""
        found = self._of_request.get(request)
        if found is None:
            found = next((each for each in self._registry.live() if each.socket is request), None)
        return found

    def _claim(self, connection: Connection) -> bool:
        if not self._registry.claim(connection):
            return False
        self._of_thread[threading.get_ident()] = connection
        return True

    def _replace(self, connection: Connection, request: Any) -> None:
        """Have `request` replace the socket of `connection`."""
        self._replaced.setdefault(connection, []).append(connection.socket)
        self._of_request[request] = connection
        connection.socket = request

    def _adopt(self, request: Any, connection: Connection | None = None) -> Connection | None:
        """Return `connection`, or else that of the calling thread; `request` wraps its socket.

        `request` replaces the socket if it has taken over the descriptor, as TLS does.
        """
        connection = connection or self._of_thread.get(threading.get_ident())
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
        self._registry.remove(connection)

    def close_request(self, request: Any) -> None:
        """As `Server.close_request`; a client that has not been served yet is not served."""
        self.close_at_once(self._find(request), request)

    def close_at_once(self, connection: Connection | None, request: Any) -> None:
        """Close a connection and its socket without waiting; the handler is not called."""
        if connection is not None:
            connection.destroy()
            self.remove(connection)
        if connection is None or connection.socket is not request:
            sockopts.force_close(request)

    # From the accepting thread, or that of a client which a proxy has introduced

    def start(
        self,
        connection: Connection,
        request: Any,
        client_address: Any,
        deliver: Callable[[Connection], object] | None,
        in_thread: bool = False,
    ) -> None:
        """Start to serve a registered client, by `process_request` if that is overridden.

        With `deliver`, the client is not served, and `deliver` takes its connection. `in_thread`
        tells whether the calling thread is the client's own.
        """
        self._of_request[request] = connection
        is_own = deliver is None and not self._overrides("process_request")
        if is_own and in_thread:
            self._serve(connection, request, client_address, not self._overrides("verify_request"))
        elif is_own:
            self.process_request(request, client_address, not self._overrides("verify_request"))
        elif not self._is_verified(request, client_address):
            self._server.shutdown_request(request)
        elif deliver is None:
            # `process_request` may wrap `request`, for a thread of netkit or of the program.
            self._scheduled[connection.fileno()] = connection
            connection.began_at = time.monotonic()
            self._call_for(connection, self._server.process_request, request, client_address)
        else:
            connection._link.released = functools.partial(self.remove, connection)
            deliver(connection)

    def _call_for(
        self, connection: Connection, function: Callable[..., object], *arguments: Any
    ) -> None:
        thread = threading.get_ident()
        self._of_thread[thread] = connection
        try:
            function(*arguments)
        finally:
            self._of_thread.pop(thread, None)

    def process_request(self, request: Any, client_address: Any, is_verified: bool = True) -> None:
        """As `Server.process_request`."""
        connection = self.connection_of(request) or self._adopt(request)
        if not self._threads.run(self._serve, connection, request, client_address, is_verified):
            self.close_request(request)

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
            self._reports.of_hook("process_request_thread", error)
            self.close_request(request)
        finally:
            if connection is not None:  # an overridden shutdown_request may not call netkit's
                self.remove(connection)

    def _verify(self, request: Any, client_address: Any) -> bool:
        try:
            request = self._handshakes.secured_below(request, self.connection_of(request))
            return self._is_verified(request, client_address)
        except Exception:
            self.call("handle_error", request, client_address)
        except BaseException as error:
            self._reports.of_hook("verify_request", error)
        return False

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """As `Server.process_request_thread`."""
        connection = self.connection_of(request)
        if self._scheduled and hasattr(request, "fileno"):
            scheduled = self._scheduled.pop(request.fileno(), None)
            if connection is None and scheduled is not None and not scheduled.closed:
                connection = self._adopt(request, scheduled)
        connection = self._claimed(connection, request, client_address)
        try:
            request = self._handshakes.secured(request, connection)
            if connection is not None:
                connection.began_at = time.monotonic()
            self._server.finish_request(request, client_address)
        except Exception as error:
            begins = self._configuration.setup.begins_tls(getattr(connection, "begins_tls", None))
            if isinstance(error, NotBegunError) and (begins or hasattr(request, "do_handshake")):
                return  # a client that sends nothing is no error, as on a port without TLS
            self.call("handle_error", connection.socket if connection else request, client_address)
        except BaseException as error:
            if threading.current_thread() is threading.main_thread():
                raise  # Ctrl+C, say
            self._reports.fault(connection, client_address, error)
        finally:
            if connection is None:
                self._shut_down(request)
            else:
                connection.forget_frames()  # before the close, which may wait for the client
                self._shut_down(connection.socket)  # `finish_request` may have replaced `request`
                connection.forget_frames()
                self.remove(connection)
                if connection.socket is not request:
                    sockopts.force_close(request)

    def _claimed(
        self, connection: Connection | None, request: Any, client_address: Any
    ) -> Connection | None:
        """Claim `connection` for the calling thread, and return it.

        If the program has accepted `request` elsewhere, and the server speaks TLS, a connection is
        made for it.
        """
        if connection is None and self._configuration.setup.speaks_tls:
            connection = self._register(request, client_address)
        if connection is not None and connection.thread is None:
            self._claim(connection)
        return connection

    def _register(self, request: Any, client_address: Any) -> Connection:
        setup = self._configuration.setup
        is_opaque = setup.serve is None
        connection = self._registrar.register(request, client_address, None, setup, is_opaque)
        self._of_request[request] = connection
        self._of_thread[threading.get_ident()] = connection
        return connection

    def finish_request(self, request: Any, client_address: Any) -> None:
        """As `Server.finish_request`. `request` may be a socket that wraps the accepted one."""
        connection = self.connection_of(request) or self._adopt(request)
        connection = self._claimed(connection, request, client_address)
        request = self._handshakes.secured(request, connection)  # if the caller has not done so
        setup = self._configuration.setup
        if setup.serve is not None:
            connection = connection or self._register(request, client_address)
        try:
            if connection is not None and setup.serve is not None:
                check_result(setup.serve(connection))
            else:
                handler: Any = setup.handler
                handler(request, client_address, self._server, **setup.options.handler_args)
        except BaseException as error:
            if connection is not None:
                connection.fail(self._reports.cause_of(error, connection)[0])
            raise

    # Ending, and errors

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
            self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """As `Server.handle_error`."""
        # `finish_request` may have wrapped the socket in an object of its own.
        mine = self._of_thread.get(threading.get_ident())
        self._reports.report(self.connection_of(request) or mine, client_address)

    def handle_error_of(self, connection: Connection, client_address: Any) -> None:
        """Call `handle_error` for a connection that is served without the hooks."""
        self._call_for(connection, self.call, "handle_error", connection.socket, client_address)

    def call(self, name: str, *arguments: Any) -> bool:
        """Call a hook of the server. False if it has raised, which is reported.

        An exception that is meant to end the program is raised.
        """
        try:
            getattr(self._server, name)(*arguments)
        except BaseException as error:
            if self._loop.is_for_caller(error):
                raise
            self._reports.of_hook(name, error)
            return False
        return True
