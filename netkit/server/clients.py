"""Serves the clients of netkit's own handlers, and starts to serve all clients.

The connection of a client is made once and passed along: to the registry, to a thread, to the
handler. That thread alone closes it and removes it from the registry. If the server overrides a
hook of `socketserver`, or if the handler reads the bare socket, `netkit.server.compat` serves the
client once it is registered.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from ..core.endpoint import DIRECT, Layers
from ..core.errors import NotBegunError
from ..net.connection import Connection
from ..net.gate import PLAIN
from .accept_loop import AcceptLoop
from .adapting import Serve, check_result
from .admission import Ticket
from .compat import Compat
from .proxying import Proxying
from .registrar import Registrar
from .registry import Registry
from .reports import Reports
from .setup import Configuration, Setup
from .threads import ClientThreads


class Clients:
    """Starts to serve each client of one server, and serves those of netkit's own handlers.

    Thread-safe.
    """

    deliver: Callable[[Connection], object] | None = None
    """Takes each connection that is accepted while the program iterates over the server.

    None unless it does. The program then serves and closes the connection.
    """

    def __init__(
        self,
        configuration: Configuration,
        loop: AcceptLoop,
        registrar: Registrar,
        registry: Registry,
        threads: ClientThreads,
        compat: Compat,
        reports: Reports,
        proxying: Proxying,
        overrides_hooks: Callable[[], bool],
    ) -> None:
        """``overrides_hooks()`` tells whether the program has replaced a hook of a client."""
        self._configuration = configuration
        self._loop = loop
        self._registrar = registrar
        self._registry = registry
        self._threads = threads
        self._compat = compat
        self._reports = reports
        self._proxying = proxying
        self._overrides_hooks = overrides_hooks

    # In the accepting thread

    def admit(
        self,
        request: Any,
        client_address: Any,
        ticket: Ticket,
        layers: Layers = DIRECT,
        accepted_at: float | None = None,
    ) -> None:
        """Start to serve a client that has a place; a failure ends that client alone.

        `layers` are those of its listener. `accepted_at`, on the monotonic clock, is None for a
        client that has been accepted just now. An exception that is meant to end the program is
        raised.
        """
        connection = None
        try:
            setup, deliver = self._configuration.setup, self.deliver
            is_opaque = setup.serve is None and deliver is None
            connection = self._registrar.register(
                request, client_address, ticket, setup, is_opaque, layers
            )
            if accepted_at is not None:
                connection.accepted_at = accepted_at
            connection.thread = None  # from now on a thread may claim it
            is_hooked = (
                setup.serve is None
                or deliver is not None
                or type(request) not in PLAIN
                or self._overrides_hooks()
            )
            if layers.proxy:
                self._start_proxied(connection, request, setup, deliver, is_hooked)
            elif is_hooked:
                self._compat.start(connection, request, client_address, deliver)
            elif not self._threads.run(self.serve, connection, client_address, setup, setup.serve):
                self._compat.close_request(request)
        except BaseException as error:
            self._failed_to_start(connection, error, request, client_address)
        else:
            if self._loop.back_off.pause:
                self._loop.succeeded()

    def _start_proxied(self, connection: Connection, request: Any, *how: Any) -> None:
        if not self._threads.run(self._serve_proxied, connection, request, *how):
            self._compat.close_at_once(connection, request)

    def _failed_to_start(
        self,
        connection: Connection | None,
        error: BaseException,
        request: Any,
        client_address: Any,
    ) -> None:
        if self._loop.is_for_caller(error):
            # Its thread may run already, and have claimed it.
            if connection is None or self._registry.claim(connection):
                self._compat.close_at_once(connection, request)
            raise error
        self._close_unstarted(connection, error, request, client_address)

    def _close_unstarted(
        self,
        connection: Connection | None,
        error: BaseException,
        request: Any,
        client_address: Any,
    ) -> None:
        try:
            if not isinstance(error, Exception):
                self._reports.of_hook("process_request", error)
            elif connection is not None:
                self._compat.handle_error_of(connection, client_address)
            else:
                self._compat.call("handle_error", request, client_address)
        finally:
            self._compat.close_at_once(connection, request)

    # In the client's thread

    def _serve_proxied(
        self,
        connection: Connection,
        request: Any,
        setup: Setup,
        deliver: Callable[[Connection], object] | None,
        is_hooked: bool,
    ) -> None:
        """Serve a client whose PROXY header is still to be read, as `admit` serves the others."""
        if not self._registry.claim(connection) or not self._proxying.introduce(connection, setup):
            return
        client_address = connection._remote_name
        if not is_hooked and setup.serve is not None:
            self.serve(connection, client_address, setup, setup.serve)
            return
        connection.thread = None  # an overridden hook may have another thread serve it
        try:
            self._compat.start(connection, request, client_address, deliver, in_thread=True)
        except BaseException as error:  # the thread has more clients to serve
            self._close_unstarted(connection, error, request, client_address)
        if deliver is not None:
            self._loop.wake()

    def serve(
        self, connection: Connection, client_address: Any, setup: Setup, serve: Serve
    ) -> None:
        """Serve a client from its first byte to its end, by a handler of netkit's own kinds.

        `serve` is that of `setup`, with which the client was accepted.
        """
        if not self._registry.claim(connection):
            return
        threading.current_thread().name = f"netkit-{connection.id} {connection.peer}"
        try:
            tls = connection.begins_tls
            if setup.speaks_tls if tls is None else tls:  # as `begins_tls`, without a call
                connection.start_tls(setup.tls)
            connection.began_at = time.monotonic()
            try:
                result = serve(connection)
                if result is not None:
                    check_result(result)
            except BaseException as error:
                connection.fail(error)
                raise
        except BaseException as error:
            self._report_failed(connection, client_address, setup, error)
        finally:
            try:
                if not connection.closed:
                    connection.forget_frames()  # before the close, which may wait for the client
                    connection.close()
                    connection.destroy()  # if another thread is closing it, which is not waited for
                connection.forget_frames()
            finally:
                self._registry.remove(connection)

    def _report_failed(
        self, connection: Connection, client_address: Any, setup: Setup, error: BaseException
    ) -> None:
        """Report the error of a handler; call `handle_error` as `socketserver` does."""
        if not isinstance(error, Exception):
            self._reports.fault(connection, client_address, error)
        elif not (isinstance(error, NotBegunError) and setup.begins_tls(connection.begins_tls)):
            # A client that sends nothing is no error, as on a port without TLS.
            self._compat.handle_error_of(connection, client_address)
