"""Connects to a server, and returns the same `Connection` that a handler gets."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ..core.deadline import Deadline
from ..core.endpoint import Endpoint
from ..core.errors import CancelledError
from ..core.options import TimeLimits
from ..net.connection import Connection
from .dial import Dialler, target
from .happy_eyeballs import Waiter
from .options import ConnectOptions

if TYPE_CHECKING:
    import ssl


def connect(
    port: int | str | None = None,
    host: str = "localhost",
    *,
    path: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Connection:
    """Connect to a server, and return the `Connection`, which the caller closes.

    `path` names a Unix socket instead of a port; ``"\\0name"`` is an abstract one (Linux).
    `options` are those of `ConnectOptions`, such as ``connect_timeout=5`` (for everything together,
    30 seconds by default) and ``tls=True``.

    Raises ConnectError, an OSError that contains the error of each address that was tried. If all
    of these are of one kind, it is also a ConnectionRefusedError, TimeoutError or PermissionError.
    Raises socket.gaierror if the name does not resolve, CancelledError, and with TLS HandshakeError
    and TlsConfigError.
    """
    chosen = ConnectOptions(**options)
    aim = target(port, host, path)
    context = _context(chosen, aim)
    deadline = Deadline(chosen.connect_timeout)
    with Waiter(deadline, chosen.cancel) as waiter:
        conn = Dialler(aim, chosen, waiter).connect()
    try:
        if context is not None:
            _start_tls(conn, context, chosen, aim, deadline)
        conn.set_limits(TimeLimits(*(getattr(chosen, name) for name in TimeLimits._fields)))
    except BaseException:
        conn.destroy()
        raise
    return conn


def _context(options: ConnectOptions, aim: Endpoint) -> ssl.SSLContext | None:
    """Make the context for TLS, before anything connects: a bad file is no reason to connect."""
    if options.tls is False:
        return None
    context: ssl.SSLContext = options.tls
    if options.tls is True:
        from ..tls.context import client_context  # here because most programs do without

        context = client_context(
            options.tls_ca,
            options.tls_cert,
            options.tls_key,
            options.tls_key_password,
            options.tls_alpn,
            options.tls_verify,
        )
    if context.check_hostname and aim.host is None and options.server_hostname is None:
        raise ValueError("TLS through a Unix socket needs server_hostname")
    return context


def _start_tls(
    conn: Connection,
    context: ssl.SSLContext,
    options: ConnectOptions,
    aim: Endpoint,
    deadline: Deadline,
) -> None:
    def interrupt() -> None:
        conn.interrupt(CancelledError(), hard=True)

    if options.cancel is not None:
        options.cancel.attach(interrupt)
    try:
        # A certificate names no zone, since the same link has another one on another machine.
        hostname = options.server_hostname or (aim.host and aim.host.partition("%")[0])
        conn.start_tls(context, server_hostname=hostname, timeout=deadline.remaining())
    finally:
        if options.cancel is not None:
            options.cancel.detach(interrupt)
