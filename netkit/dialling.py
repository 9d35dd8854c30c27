"""To a server: the addresses of a name in turn, again if it is not there yet, with TLS or without.

The signature is that of `netkit.connect`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from typing import TYPE_CHECKING, Any

from .addresses import describe_peer
from .connection import Connection

if TYPE_CHECKING:
    import ssl

RETRY_PAUSE = 0.5  # seconds before another attempt


def connect(
    port: int | None = None,
    host: str = "localhost",
    *,
    path: str | None = None,
    connect_timeout: float = 30.0,
    family: int = 0,
    source_address: tuple[str, int] | None = None,
    retry: int = 0,
    tls: bool | ssl.SSLContext = False,
    tls_ca: str | None = None,
    tls_verify: bool = True,
    server_hostname: str | None = None,
) -> Connection:
    """A connection to `host` and `port`, or to the Unix socket `path`; the caller closes it.

    `retry`: how often more, `RETRY_PAUSE` apart. The connection has `attempted_addresses`. OSError
    of the last attempt.
    """
    until = time.monotonic() + connect_timeout
    attempted: list[str] = []
    while True:
        try:
            sock = _open(port, host, path, until, family, source_address, attempted)
            break
        except OSError:
            if not retry or time.monotonic() + RETRY_PAUSE > until:
                raise
            retry -= 1
            time.sleep(RETRY_PAUSE)
    try:
        sock.settimeout(None)
        conn = Connection(sock)
        conn.attempted_addresses = attempted  # type: ignore[attr-defined]
        if tls:
            left = max(until - time.monotonic(), 0.001)
            conn.start_tls(
                _context(tls, tls_ca, tls_verify),
                server_hostname=server_hostname or host,
                timeout=left,
            )
        return conn
    except BaseException:
        sock.close()
        raise


def _context(tls: bool | ssl.SSLContext, ca: str | None, verify: bool) -> ssl.SSLContext:
    if not isinstance(tls, bool):
        return tls
    from .certificates import client_context  # here because most programs do without

    return client_context(ca, verify=verify)


def _open(
    port: int | None,
    host: str,
    path: str | None,
    until: float,
    family: int,
    source: tuple[str, int] | None,
    attempted: list[str],
) -> socket.socket:
    targets: list[tuple[int, Any]] = [(socket.AF_UNIX, path)]
    if path is None:
        try:
            found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
        except (socket.gaierror, UnicodeError) as error:
            reason = getattr(error, "strerror", "not a host name")
            raise socket.gaierror(socket.EAI_NONAME, f"connect: {reason}: {host}") from None
        targets = [(kind, address) for kind, _, _, _, address in found]
    for number, (kind, address) in enumerate(targets, 1):
        name = describe_peer(address)
        attempted.append(name)
        with contextlib.ExitStack() as stack:
            sock = stack.enter_context(socket.socket(kind))
            try:
                sock.settimeout(max(until - time.monotonic(), 0.001))
                if source is not None:
                    sock.bind(source)
                sock.connect(address)
            except OSError as error:
                if number < len(targets):
                    continue
                code = error.errno or errno.ETIMEDOUT
                text = f"connect: {os.strerror(code).lower()}: {', '.join(attempted)}"
                raise OSError(code, text) from None
            stack.pop_all()
            return sock
    raise AssertionError("getaddrinfo returns one address at least")
