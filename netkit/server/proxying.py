"""Reads the PROXY header of a client, and judges the client that it names.

A proxy that is not trusted is refused by the acceptor, before anything is read. Everything here
happens in the client's thread, which has one of the `max_connections` places by then.
"""

from __future__ import annotations

import contextlib
import threading

from ..net.connection import Connection
from ..net.proxied import introduce
from .admission import Admission
from .compat import Compat
from .overflow import CLOSE_SECONDS
from .refusals import Refusals
from .registry import Registry
from .setup import Setup


class Proxying:
    """Introduces the clients of one server that come through proxies. Thread-safe."""

    def __init__(
        self, admission: Admission, refusals: Refusals, registry: Registry, compat: Compat
    ) -> None:
        self._admission = admission
        self._refusals = refusals
        self._registry = registry
        self._compat = compat

    def introduce(self, connection: Connection, setup: Setup) -> bool:
        """Read the header, and judge the client, of a connection that the calling thread serves.

        False if the client is not to be served. Then its connection is closed.
        """
        threading.current_thread().name = f"netkit-{connection.id} {connection.peer}"
        is_admitted = False
        try:
            is_admitted = self._is_introduced(connection, setup) and self._is_admitted(
                connection, setup
            )
        except Exception:
            self._compat.handle_error_of(connection, connection._remote_name)
        finally:
            if not is_admitted:
                connection.forget_frames()
                connection.destroy()
                self._registry.remove(connection)
        return is_admitted

    def _is_introduced(self, connection: Connection, setup: Setup) -> bool:
        # A listener of the program's own may speak TLS, which is done later.
        is_tls = setup.begins_tls(connection.begins_tls) or connection.is_secured()
        try:
            return introduce(connection, setup.options.handshake_timeout, is_tls)
        finally:
            self._registry.introduced(connection)

    def _is_admitted(self, connection: Connection, setup: Setup) -> bool:
        header = connection.proxy
        is_check = header is not None and header.command == "LOCAL"
        if is_check or not self._admission.judges:  # a check of the proxy has no client
            return True
        reason = self._admission.judge_introduced(connection, connection._remote_name)
        if reason:
            self._refuse(connection, setup, reason)
        return not reason

    def _refuse(self, connection: Connection, setup: Setup, reason: str) -> None:
        connection._link.note("refused")
        ends = connection._remote_name, connection._local_name
        self._refusals.refused(reason, *ends, connection.id)
        message = setup.refusal(reason, connection.begins_tls)
        if message is None:
            return
        connection.linger_seconds = CLOSE_SECONDS
        with contextlib.suppress(OSError):
            if message:
                (connection.socket.sendall if connection.opaque else connection.write)(message)
        connection.close()
