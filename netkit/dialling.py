"""To a server: the addresses of a name in turn, again if it is not there yet, with TLS or without.

The arguments are a part of those that `netkit.connect` is going to have: it takes its place then.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from typing import Any

from .addresses import describe_peer
from .connection import Connection

RETRY_PAUSE = 0.5  # seconds before another attempt


def connect(
    port: int | None = None,
    host: str = "localhost",
    *,
    path: str | None = None,
    connect_timeout: float = 30.0,
    source_address: tuple[str, int] | None = None,
    retry: int = 0,
    tls: bool = False,
    tls_ca: str | None = None,
    tls_verify: bool = True,
) -> Connection:
    """A connection to `host` and `port`, or to the Unix socket `path`; the caller closes it.

    `retry`: how often more, `RETRY_PAUSE` apart. The connection has `attempted_addresses`. OSError
    of the last attempt.
    """
    until = time.monotonic() + connect_timeout
    attempted: list[str] = []
    while True:
        try:
            sock = _open(port, host, path, until, source_address, attempted)
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
            from .certificates import client_context  # here because most programs do without

            conn.start_tls(
                client_context(tls_ca, verify=tls_verify),
                server_hostname=host,
                timeout=max(until - time.monotonic(), 0.001),
            )
        return conn
    except BaseException:
        sock.close()
        raise


def _open(
    port: int | None,
    host: str,
    path: str | None,
    until: float,
    source: tuple[str, int] | None,
    attempted: list[str],
) -> socket.socket:
    targets: list[tuple[int, Any]] = [(socket.AF_UNIX, path)]
    if path is None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (socket.gaierror, UnicodeError) as error:
            reason = getattr(error, "strerror", "not a host name")
            raise socket.gaierror(socket.EAI_NONAME, f"connect: {reason}: {host}") from None
        targets = [(kind, address) for kind, _, _, _, address in found]
    *others, last = targets
    for kind, address in others:
        with contextlib.suppress(OSError):
            return _attempt(kind, address, until, source, attempted)
    return _attempt(*last, until, source, attempted)


def _attempt(
    family: int,
    address: Any,
    until: float,
    source: tuple[str, int] | None,
    attempted: list[str],
) -> socket.socket:
    attempted.append(describe_peer(address))
    with contextlib.ExitStack() as stack:
        try:
            sock = stack.enter_context(socket.socket(family))
            sock.settimeout(max(until - time.monotonic(), 0.001))
            if source is not None:
                sock.bind(source)
            sock.connect(address)
        except OSError as error:
            code = error.errno or errno.ETIMEDOUT
            text = f"connect: {os.strerror(code).lower()}: {', '.join(attempted)}"
            raise OSError(code, text) from None
        stack.pop_all()
    return sock
