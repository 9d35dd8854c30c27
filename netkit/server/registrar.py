"""Makes the connections of accepted clients, with the limits of the server, and registers them."""

from __future__ import annotations

import socket
import threading
from typing import Any

from ..core.endpoint import DIRECT, Layers
from ..core.options import Options
from ..net import sockopts
from ..net.connection import Connection
from .admission import NO_SHARE, Admission, Ticket
from .listeners import Listeners
from .registry import Registry
from .reports import limit_of_calls
from .setup import Setup
from .watchdog import Watchdog


class Registrar:
    """Makes and registers the connections of one server. Thread-safe."""

    def __init__(
        self,
        server: Any,
        admission: Admission,
        listeners: Listeners,
        registry: Registry,
        watchdog: Watchdog,
    ) -> None:
        """`server` is the attribute `server` of each connection."""
        self._server = server
        self._admission = admission
        self._listeners = listeners
        self._registry = registry
        self._watchdog = watchdog

    def register(
        self,
        request: Any,
        client_address: Any,
        ticket: Ticket | None,
        setup: Setup,
        opaque: bool,
        layers: Layers = DIRECT,
    ) -> Connection:
        """Make the connection of an accepted client. If that fails, `ticket` is given back.

        `opaque` tells whether the handler reads the bare socket, and `layers` are those of its
        listener. The connection belongs to the calling thread at first: an observer that stops the
        server here does not wait for it.
        """
        connection, options = None, setup.options
        try:
            names = client_address, self._listeners.local_name, self._server
            texts = options.encoding, options.max_line, options.max_message
            # By position, since names of arguments cost a dictionary for each client.
            connection = Connection(request, *names, *texts, opaque)
            connection.lifetime = options.lifetime
            if not sockopts.INHERITS_OPTIONS:  # pragma: no cover - see there
                sockopts.set_options(request, options)
            if opaque:
                _limit_calls(request, options)
            elif setup.time_limits is not None:
                connection._link.set_limits(setup.time_limits)
            connection.ticket, connection.thread = ticket, threading.get_ident()
            if ticket is not NO_SHARE:
                connection.on_close = self._admission.linger
            if layers is not DIRECT:
                connection.begins_tls, connection.expects_proxy = layers
            self._registry.add(connection)
            if connection.lifetime is not None:
                self._watchdog.watch(connection.opened_at, connection.lifetime)
        except BaseException:
            self._undo(connection, ticket)
            raise
        return connection

    def _undo(self, connection: Connection | None, ticket: Ticket | None) -> None:
        if connection is not None and self._registry.claim(connection):
            connection.destroy()
            self._registry.remove(connection)
        else:  # the registry does not know it
            self._admission.leave(ticket)


def _limit_calls(request: socket.socket, options: Options) -> None:
    """Set the time limits of a socket that its handler reads and writes itself."""
    request.settimeout(limit_of_calls(options)[1])
    if options.write_timeout is not None:
        sockopts.set_acknowledgement_timeout(request, options.write_timeout)
