"""The PROXY header that comes first on an accepted connection: reading it, and what it changes.

Rules:

1. Exactly the header is taken from the kernel's queue. The bytes are first looked at (MSG_PEEK);
   while the header is incomplete, all of them belong to it. So a handler that reads the socket, and
   TLS, find the byte that follows the header, and no thread spins.
2. One deadline covers the header, and the TLS handshake if that comes next (`handshake_until`).
3. For a connection without a client of its own (LOCAL, UNKNOWN), the addresses stay those of the
   socket.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from typing import TYPE_CHECKING, Any

from ..core.addresses import SocketAddress, format_unix
from ..core.deadline import Deadline
from ..core.errors import ProxyHeaderError
from ..core.proxyheader import ProxyHeader, ProxyHeaderParser
from .addresses import address_of, describe_peer
from .bare import Bare
from .explain import in_seconds

if TYPE_CHECKING:
    from .connection import Connection

_GLANCE = 4096  # bytes that are looked at; most headers have less than 300


def introduce(conn: Connection[Any], seconds: float | None, tls_follows: bool) -> bool:
    """Read the header of an accepted connection within `seconds`, and apply it. None is no limit.

    `tls_follows` tells whether a TLS handshake comes next, for which only the rest of the time is
    left. False if the input ends without a header, by the peer or by a stop. ProxyHeaderError if
    the header is invalid; TimeoutError; errors as of a read. For the connection's thread.
    """
    deadline = Deadline(seconds)
    link, parser = conn._link, ProxyHeaderParser()
    former = conn.socket.gettimeout()
    try:
        link.waiting = True
        link.fence()
        header = _read(conn, parser, deadline)
    except ProxyHeaderError as error:
        link.note("proxy_header")
        where = conn.remote_address or conn.peer
        raise ProxyHeaderError(f"the proxy {where} sent {error}") from None
    except OSError as error:
        if isinstance(error, TimeoutError) and error.errno is None:  # of `_receive`
            late = f"no PROXY header from {conn.peer} within {in_seconds(seconds or 0)}"
            error = TimeoutError(errno.ETIMEDOUT, f"handshake_timeout: {late}")
        elif parser.size:  # else it is a probe
            link.note("proxy_header")
        raise link.failure(error) from None
    finally:
        link.waiting = False
        link.leave()
    if header is None:
        return False
    with contextlib.suppress(OSError):  # another thread may have closed it since
        conn.socket.settimeout(former)
    if isinstance(link.wire, Bare):
        link.wire.introduced = parser.size
    _apply(conn, header)
    if tls_follows:
        vars(conn)["handshake_until"] = deadline
    return True


def _read(
    conn: Connection[Any], parser: ProxyHeaderParser, deadline: Deadline
) -> ProxyHeader | None:
    link, sock = conn._link, conn.socket
    while parser.header is None:
        data = b""
        if not (link.changed and link.is_at_end()):
            data = _receive(sock, _GLANCE, deadline, socket.MSG_PEEK)
        if not data:
            _note_end(conn, parser)
            return None
        taken = parser.feed(data)
        while taken:
            taken -= len(_receive(sock, taken, deadline))
    return parser.header


def _receive(sock: socket.socket, size: int, deadline: Deadline, flags: int = 0) -> bytes:
    left = deadline.remaining()
    if left is not None and left <= 0:
        raise TimeoutError
    sock.settimeout(left)
    # A TLS socket, whose handshake is still to be done, would accept no flags.
    return socket.socket.recv(sock, size, flags)


def _note_end(conn: Connection[Any], parser: ProxyHeaderParser) -> None:
    """Handle an input that has ended before the header.

    ProxyHeaderError if the peer has ended it within the header. OSError if another thread has ended
    the connection; `Link.failure` replaces it by the error of that thread.
    """
    link = conn._link
    if link.interruption is not None or link.was_cut:
        raise OSError
    if not link.has_ended_input():
        if parser.size:
            raise ProxyHeaderError(f"an incomplete PROXY header, of {parser.size} bytes")
        link.note("probe")


def _apply(conn: Connection[Any], header: ProxyHeader) -> None:
    name, link = conn._remote_name, conn._link
    conn.proxy = header._replace(via=address_of(name))
    if header.source is None:
        return
    conn._remote_name, conn._local_name = map(_sockname, (header.source, header.destination))
    conn.peer = link.peer = describe_peer(conn._remote_name)
    if link.wire.timer is not None:
        link.wire.timer.peer = conn.peer


def _sockname(address: SocketAddress | str | None) -> Any:
    """Return the address in the form that a socket has for it."""
    if not isinstance(address, SocketAddress):
        return address
    is_ipv6 = address.family == "IPv6"
    return (address.address, address.port, 0, 0) if is_ipv6 else (address.address, address.port)


def via_of(header: ProxyHeader | None) -> str:
    """The proxy for messages: its IP address, or its path; empty without a header."""
    if header is None or header.via is None:
        return ""
    return header.via.address if isinstance(header.via, SocketAddress) else format_unix(header.via)
