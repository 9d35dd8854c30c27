"""The addresses of sockets: values for programs, and text for messages.

As in Node's `net`, the names of the families are ``"IPv4"`` and ``"IPv6"``. Of the names that a
system can look up, only those of network interfaces are looked up here.
"""

from __future__ import annotations

import functools
import socket
from typing import Any

from ..core.addresses import check_port, format_address, format_unix, is_ip, unmapped
from ..core.record import NamedTuple


class _Fields(NamedTuple):
    address: str
    port: int
    family: str


class SocketAddress(_Fields):
    """One end of a TCP connection, or a listener: `address` (numeric), `port`, `family`.

    Immutable; it compares, hashes and unpacks as a tuple.
    """

    __slots__ = ()

    def __new__(
        cls, address: str | None = None, port: int | str = 0, family: str | None = None
    ) -> SocketAddress:
        """Check and combine the parts.

        `family` is ``"IPv4"`` or ``"IPv6"``, in any case, or None for that of the address.
        `address` is numeric; None stands for 127.0.0.1, or for ``::`` if `family` is IPv6.
        ValueError or TypeError if a part is invalid, or the address is of the other family.
        """
        known = {"ipv4": "IPv4", "ipv6": "IPv6"}
        if family is not None and str(family).lower() not in known:
            raise ValueError(f"family must be IPv4 or IPv6, not {family!r}")
        wanted = None if family is None else known[family.lower()]
        if address is None:
            address = "::" if wanted == "IPv6" else "127.0.0.1"
        found = {4: "IPv4", 6: "IPv6"}.get(is_ip(address))
        if found is None or wanted not in (None, found):
            raise ValueError(f"not an {wanted or 'IP'} address: {address!r}")
        return cls._make((address, check_port(port), found))

    def __str__(self) -> str:
        return format_address(self.address, self.port)

    @classmethod
    def from_sockname(cls, name: Any) -> SocketAddress | None:
        """Convert a name from `socket.getsockname` or `accept`. None if it is of a Unix socket.

        An IPv4 address in its IPv6 form, which an IPv6 listener returns, becomes the IPv4 address.
        A link-local address gets its zone (``fe80::1%eth0``), see `zoned`.
        """
        if not isinstance(name, tuple) or len(name) < 2:
            return None
        if len(name) == 2:
            return cls._make((name[0], name[1], "IPv4"))
        address = unmapped(zoned(name))
        return cls._make((address, name[1], "IPv6" if ":" in address else "IPv4"))

    @classmethod
    def parse(cls, text: str) -> SocketAddress | None:
        """Parse ``127.0.0.1:80`` or ``[::1]:80``. None for anything else.

        Unlike in a URL, and in Node, an IPv4 address must be four decimal numbers, and the port
        must be digits.
        """
        host, colon, port = text.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        address = host[1:-1] if bracketed else host
        if not colon or is_ip(address) != (6 if bracketed else 4) or not port.isdecimal():
            return None
        try:
            return cls(address, port)
        except ValueError:
            return None


def part_of(name: Any, part: str) -> Any:
    """Return the `part` of the `SocketAddress` of a name; None if it is of a Unix socket."""
    return getattr(SocketAddress.from_sockname(name), part, None)


def zoned(name: tuple[Any, ...]) -> str:
    """Return the address in the name of a socket; a link-local address gets its zone.

    Each link may use the same address, so no socket can connect to ``fe80::1`` without its zone, as
    in ``fe80::1%eth0`` (RFC 4007 section 6). The zone is the name of the interface, or its number
    if the interface is gone or `is_ip` does not accept the name.
    """
    address: str = name[0]
    scope = name[3] if len(name) > 3 else 0
    if not scope or "%" in address:
        return address
    try:
        named = f"{address}%{socket.if_indextoname(scope)}"
    except OSError:  # the interface is gone
        named = ""
    return named if is_ip(named) else f"{address}%{scope}"


def describe_peer(client_address: Any) -> str:
    """Return the address of a client as text: ``127.0.0.1:50312``, or as `format_unix`."""
    if isinstance(client_address, tuple) and len(client_address) > 1:
        host, port, *more = client_address
        return format_address(unmapped(zoned(client_address)) if more else host, port)
    if client_address is None or isinstance(client_address, (str, bytes)):
        return format_unix(client_address)
    return str(client_address)


# Most connections of a server have the same local name.
described = functools.lru_cache(maxsize=64)(describe_peer)
