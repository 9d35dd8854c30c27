"""TLS handshakes of clients that are served through the hooks of `socketserver`.

A hook carries the socket of a client, which a handshake may replace. So the caller says how the
connection of a client gets another socket.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from ..core.errors import NotBegunError
from ..net import gate, sockopts
from ..net.connection import Connection
from ..net.starttls import handshake_seconds
from .setup import Configuration


class Handshakes:
    """Does the TLS handshakes of one server's clients, each in the client's own thread."""

    def __init__(
        self, configuration: Configuration, replace: Callable[[Connection, Any], object]
    ) -> None:
        """``replace(connection, request)`` has `request` replace the socket of `connection`."""
        self._configuration = configuration
        self._replace = replace

    def secured(self, request: Any, connection: Connection | None) -> Any:
        """Do the TLS handshake of the server's options, if it is still to be done.

        Returns `request`, or the TLS socket that replaces it for a handler that reads the socket.
        """
        if type(request) not in gate.PLAIN:
            return self.secured_below(request, connection)
        setup = self._configuration.setup
        context = None if connection is None else setup.context(connection.begins_tls)
        if context is None or connection is None or connection.is_secured():
            return request
        if not connection.opaque:
            connection.start_tls(context)
            return request
        from ..net import tls_socket  # here because most programs do without

        limit = request.gettimeout()
        try:
            secured = tls_socket.wrap(request, context)
        except ConnectionError:  # the client has reset the connection meanwhile, and `ssl` reads
            raise connection._link.failure(NotBegunError()) from None
        self._replace(connection, secured)
        return tls_socket.secure(connection, secured, handshake_seconds(connection), limit)

    def secured_below(self, request: Any, connection: Connection | None) -> Any:
        """As `secured`, for a TLS socket that the program, or its listener, has made."""
        if connection is None or connection.tls is not None or not hasattr(request, "context"):
            return request
        from ..net import tls_socket

        if not tls_socket.is_pending(request):
            return request
        setup = self._configuration.setup
        if connection.opaque:
            tls_socket.make_stoppable(request)
            seconds = handshake_seconds(connection)
            return tls_socket.secure(connection, request, seconds, request.gettimeout())
        context = request.context
        request = sockopts.blocking(socket.socket(fileno=request.detach()))
        self._replace(connection, request)
        if setup.time_limits is not None:
            connection._link.set_limits(setup.time_limits)
        connection.start_tls(context)
        return request
