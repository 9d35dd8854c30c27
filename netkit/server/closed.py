"""Makes the event about the end of a connection, once it is wanted."""

from __future__ import annotations

import time
from typing import Any

from ..core import events
from ..net.connection import Connection
from ..net.endings import carried
from ..net.proxied import via_of


def closed_event(connection: Connection, end: str = "done") -> events.ConnectionClosed:
    """Return the event about a `connection` that has just been closed.

    `end` is why it ended, if no reason is known.
    """
    received, sent = carried(connection)
    version, server_name = _of_tls(connection)
    return events.ConnectionClosed(
        connection.id,
        connection.peer,
        received,
        sent,
        time.monotonic() - connection.opened_at,
        connection.local,
        connection.end_reason or end,
        connection.waited,
        *_of_proxy(connection),
        version,
        server_name,
        _unique_id(connection),
    )


def _of_tls(connection: Connection) -> tuple[str, str]:
    """Return the version of TLS, and the name that the client has asked for."""
    tls: Any = connection.tls
    if tls is not None:
        return tls.version or "", tls.server_name or ""
    return getattr(connection._link.wire, "tls_version", ""), ""  # of a bare TLS socket


def _of_proxy(connection: Connection) -> tuple[str, str]:
    """Return the address of the proxy, and the command of its header."""
    header = connection.proxy
    return via_of(header), "" if header is None else header.command


def _unique_id(connection: Connection) -> str:
    header = connection.proxy
    return "" if header is None else (header.unique_id or b"").decode("utf-8", "backslashreplace")
