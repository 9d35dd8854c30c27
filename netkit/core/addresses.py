"""IP addresses and ports: as text, and as the values that programs get.

As in Node's `net`, the names of the families are ``"IPv4"`` and ``"IPv6"``. Of the names that a
system can look up, only those of network interfaces are looked up here.
"""

from __future__ import annotations

import os
import re
import sys
from typing import Any

from .record import NamedTuple
from .text import printable

MAX_PORT = 65535  # 16 bits in the TCP header, RFC 9293 section 3.1

# The first 12 bytes of an IPv6 address whose last four are the IPv4 address of the same host: of
# its IPv6 form (RFC 4291 section 2.5.5.2), and of an address of NAT64 (RFC 6052 section 2.1).
_IPV4_PREFIXES = (bytes(10) + b"\xff\xff", b"\x00\x64\xff\x9b" + bytes(8))

_OCTETS = {str(number): number for number in range(256)}  # without leading zeros

NEEDS_ZONE = "a link-local address needs its zone, such as fe80::1%eth0"


def parse_ip(text: str) -> bytes | None:
    """Return the 4 or 16 bytes of an IPv4 or IPv6 address; None if `text` is neither.

    The zone of an IPv6 address (``%eth0``) is ignored.
    """
    try:
        if text.count(":") < 2:
            packed = bytes(map(_OCTETS.__getitem__, text.split(".")))
            return packed if len(packed) == 4 else None
        # Not at the top: the import takes longer than that of all of the core, and most servers
        # never parse an IPv6 address.
        from ipaddress import IPv6Address

        return IPv6Address(text.partition("%")[0]).packed
    except (KeyError, ValueError):
        return None


def is_ip(text: str) -> int:
    """Return 4 for an IPv4 address, 6 for an IPv6 address, 0 for anything else.

    An IPv6 address may have a ``%zone``. Leading zeros in a number of an IPv4 address, white space
    and prefix lengths are invalid.
    """
    if not isinstance(text, str):
        return 0
    address, percent, zone = text.partition("%")
    if percent and not (":" in address and re.fullmatch(r"[0-9a-zA-Z\-._:]+", zone)):
        return 0
    packed = parse_ip(address)
    return 0 if packed is None else 4 if len(packed) == 4 else 6


def is_ipv4(text: str) -> bool:
    """Whether `text` is an IPv4 address, see `is_ip`."""
    return is_ip(text) == 4


def is_ipv6(text: str) -> bool:
    """Whether `text` is an IPv6 address, see `is_ip`."""
    return is_ip(text) == 6


# Checks


def check_port(port: int | str) -> int:
    """Return `port`, an integer or a string of digits, as an integer.

    ValueError unless it is a number from 0 to 65535; TypeError if it has another type.
    """
    must = f"port must be a number from 0 to {MAX_PORT}"
    if isinstance(port, bool) or not isinstance(port, (int, str)):
        raise TypeError(f"{must}, not {port!r}")
    if isinstance(port, str):
        if not (port.isascii() and port.isdigit()):
            raise ValueError(f"{must}, not {port!r}")
        port = int(port.lstrip("0")[:6] or "0")  # six digits are out of range already
    if not 0 <= port <= MAX_PORT:
        raise ValueError(f"{must}, not {port}")
    return port


def check_first_port(port: int | str) -> int:
    """As `check_port`; if `port` looks like a host, the error adds that the port comes first."""
    try:
        return check_port(port)
    except (TypeError, ValueError) as error:
        looks_like_host = isinstance(port, str) and re.search("[a-zA-Z.:]", port)
        if not (looks_like_host or isinstance(port, tuple)):
            raise
        raise type(error)(f"{error}; the port comes first, and then the host") from None


def check_name(host: str) -> None:
    """UnicodeError, as Python raises it for an invalid name, if `host` has a null character.

    The resolver of the system would look up the part before that character.
    """
    if "\0" in host:
        raise UnicodeError("a null character in a host name")


def unmapped(address: str) -> str:
    """Return ``1.2.3.4`` for ``::ffff:1.2.3.4`` (RFC 4291 section 2.5.5.2), others unchanged."""
    if address.startswith("::ffff:") and "." in address:
        return address[7:]
    return address


def is_loopback(address: str) -> bool:
    """Whether `address` only reaches the same machine (RFC 1122 3.2.1.3, RFC 4291 2.5.3)."""
    return address == "::1" or unmapped(address).startswith("127.")


def needs_zone(address: str) -> bool:
    """Whether `address` is a link-local address without a zone, which no socket accepts."""
    packed = parse_ip(address)
    if packed is None or len(packed) == 4 or "%" in address:
        return False
    return packed[0] == 0xFE and packed[1] & 0xC0 == 0x80  # fe80::/10


def network_of(address: str) -> str:
    """Return the network that limits for one address count: an IPv4 address or an IPv6 /64.

    A client with an IPv6 address has a whole such network (RFC 6177). An address of a translator
    (``64:ff9b::/96``, RFC 7755) counts as the IPv4 address in it. Text that is no address is
    returned unchanged.
    """
    packed = parse_ip(address) if ":" in address else None
    if packed is None:
        return address
    if packed[:12] in _IPV4_PREFIXES:
        return ".".join(map(str, packed[12:]))
    return _network(packed, 64)


def site_of(network: str) -> str | None:
    """Return the /48 network that contains a network of `network_of`; None for IPv4.

    One site gets at most a /48 (RFC 6177), which has 65,536 networks of 64 bits.
    """
    packed = parse_ip(network.partition("/")[0])
    return None if packed is None or len(packed) == 4 else _network(packed, 48)


def _network(packed: bytes, length: int) -> str:
    from ipaddress import IPv6Network  # as in `parse_ip`

    return str(IPv6Network((packed, length), strict=False))


def format_address(host: str, port: int) -> str:
    """Return ``host:port`` as one printable line, with brackets around an IPv6 address."""
    host = host if host.isprintable() else printable(host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def format_unix(name: str | bytes | None) -> str:
    """Return the name of a Unix socket for messages, as one printable line.

    It is ``unix:/path``, ``@abstract``, or ``unix`` if the socket has no name.
    """
    name = os.fsdecode(name or "")
    shown = printable(name.removeprefix("\0"))
    return f"@{shown}" if name.startswith("\0") else f"unix:{shown}" if name else "unix"


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
    socket: Any = sys.modules.get("socket")  # a program that has names of sockets has imported it
    try:
        named = f"{address}%{socket.if_indextoname(scope)}" if socket else ""
    except OSError:  # the interface is gone
        named = ""
    return named if is_ip(named) else f"{address}%{scope}"
