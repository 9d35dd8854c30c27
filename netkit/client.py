"""The client: the other end of a connection, in the same blocking form."""

from __future__ import annotations

import socket

from .addresses import check_port
from .connection import Connection


def connect(
    port: int | str, host: str = "localhost", *, timeout: float | None = None
) -> Connection:
    """Connect to a TCP server and return the `Connection`, which the caller closes.

    The addresses of `host` are tried one after the other, each for at most `timeout` seconds (None:
    as long as the system tries). OSError of the last attempt; ValueError for a port that is none.
    """
    sock = socket.create_connection((host, check_port(port)), timeout)
    try:
        sock.settimeout(None)
        return Connection(sock)
    except BaseException:  # the server may have reset it already: then it has no address
        sock.close()
        raise
