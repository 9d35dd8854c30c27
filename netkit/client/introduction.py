"""The PROXY header that a client sends first: which one the option `proxy` means."""

from __future__ import annotations

from typing import Any

from ..core.addresses import SocketAddress, is_ip
from ..core.proxyheader import ProxyHeader
from ..core.proxytlvs import ProxyTls
from ..core.record import NamedTuple
from ..net.addresses import address_of
from ..net.connection import Connection

WORDS = ("v1", "v2", "local")


class Pretended(NamedTuple):
    """A header of version 1 or 2 that names `source` as the client of a server."""

    version: int
    source: SocketAddress


def check(name: str, value: Any) -> Any:
    """Return `value` if it tells which header to send. TypeError, ValueError."""
    if isinstance(value, (ProxyHeader, Connection, Pretended)) or value in WORDS:
        return value
    if isinstance(value, str):
        raise ValueError(f"{name} must be 'v1', 'v2' or 'local', not {value!r}")
    raise TypeError(f"{name} must be text, a ProxyHeader or a Connection, not {value!r}")


def header_of(proxy: Any, conn: Connection) -> bytes:
    """Return the header for `conn`, which has connected to a server. ValueError if it is too long.

    `proxy` is a value of the option.
    """
    if isinstance(proxy, Connection):
        return _passed_on(proxy).encode()
    if isinstance(proxy, ProxyHeader):
        return proxy.encode()
    if isinstance(proxy, Pretended):
        server = address_of(conn._remote_name)
        if not isinstance(server, SocketAddress):  # of a Unix socket, which goes with no IP address
            server = SocketAddress("::" if is_ip(proxy.source.address) == 6 else "0.0.0.0")
        return ProxyHeader(proxy.source, server).encode(proxy.version)
    if proxy == "local":
        return ProxyHeader(command="LOCAL").encode()
    own = ProxyHeader(address_of(conn._local_name), address_of(conn._remote_name))
    return own.encode(int(proxy.removeprefix("v")))


def _passed_on(conn: Connection) -> ProxyHeader:
    """Return the header that introduces the client of `conn` to another server."""
    header, tls = conn.proxy, conn.tls
    if header is None:
        header = ProxyHeader(address_of(conn._remote_name), address_of(conn._local_name))
    if tls is None:
        return header._replace(version=2)
    return ProxyHeader(
        *(header.source, header.destination, header.command),
        tlvs=header.tlvs,
        alpn=tls.alpn_protocol,
        authority=tls.server_name,
        tls=_reported(tls),
    )


def _reported(tls: Any) -> ProxyTls:
    """Return what to report of TLS that this process has ended."""
    certificate = tls.peer_certificate or {}
    subject = dict(pair for part in certificate.get("subject", ()) for pair in part)
    # A context of netkit's has verified each certificate that it has accepted.
    return ProxyTls(tls.version, tls.cipher, subject.get("commonName"), bool(certificate))
