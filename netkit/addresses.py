"""Addresses as values: what a socket name looks like, and what a port may be.

Nothing here resolves the name of a host, or touches a socket; only names of network interfaces are
looked up. Family names are those of Node's `net`, ``"IPv4"`` and ``"IPv6"``.
"""

from __future__ import annotations

import functools
import os
import re
import socket
from typing import Any, NamedTuple

MAX_PORT = 65535  # 16 bits in the TCP header, RFC 9293 section 3.1

_MAPPED_PREFIX = bytes(10) + b"\xff\xff"  # of an IPv4 address as IPv6, RFC 4291 section 2.5.5.2


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
        """`family`: ``"IPv4"`` or ``"IPv6"``, in any case; None: that of the address.

        `address` None: 127.0.0.1, or, for IPv6, ``::``. ValueError or TypeError for what is no
        address, no port, no family, or an address of the other one.
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
        """From what `socket.getsockname` or `accept` gave; None for a Unix socket's name.

        An IPv4 address in its IPv6 form, as an IPv6 listener gives it, is the IPv4 address. A
        link-local address has its zone (``fe80::1%eth0``), see `zoned`.
        """
        if not isinstance(name, tuple) or len(name) < 2:
            return None
        if len(name) == 2:
            return cls._make((name[0], name[1], "IPv4"))
        address = unmapped(zoned(name))
        return cls._make((address, name[1], "IPv6" if ":" in address else "IPv4"))

    @classmethod
    def parse(cls, text: str) -> SocketAddress | None:
        """From ``127.0.0.1:80`` or ``[::1]:80``; None for anything else.

        Stricter than a URL, and than Node: four decimal numbers, and a port of digits.
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


class Ends:
    """The names of the two ends of a connection, taken apart when somebody asks.

    For classes that have `_remote_name` and `_local_name`: what `accept` and `getsockname` gave,
    or None. All are None for a Unix socket.
    """

    __slots__ = ()
    _remote_name: Any
    _local_name: Any

    @property
    def remote_address(self) -> str | None:
        """The numeric address of the other end."""
        remote = SocketAddress.from_sockname(self._remote_name)
        return remote and remote.address

    @property
    def remote_port(self) -> int | None:
        """The port of the other end."""
        remote = SocketAddress.from_sockname(self._remote_name)
        return remote and remote.port

    @property
    def remote_family(self) -> str | None:
        """``"IPv4"`` or ``"IPv6"``."""
        remote = SocketAddress.from_sockname(self._remote_name)
        return remote and remote.family

    @property
    def local(self) -> str:
        """Our end, for people: ``127.0.0.1:8080``, or ``unix:/path``."""
        return _described(self._local_name)

    @property
    def local_address(self) -> str | None:
        """The numeric address of our end."""
        local = SocketAddress.from_sockname(self._local_name)
        return local and local.address

    @property
    def local_port(self) -> int | None:
        """The port of our end."""
        local = SocketAddress.from_sockname(self._local_name)
        return local and local.port

    @property
    def local_family(self) -> str | None:
        """``"IPv4"`` or ``"IPv6"``."""
        local = SocketAddress.from_sockname(self._local_name)
        return local and local.family


def format_address(host: str, port: int) -> str:
    """``host:port``, with brackets around an IPv6 address (RFC 3986 section 3.2.2).

    Whatever the host is, it is one line that is printable.
    """
    host = host if host.isprintable() else repr(host)[1:-1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def unmapped(address: str) -> str:
    """``1.2.3.4`` for ``::ffff:1.2.3.4`` (RFC 4291 section 2.5.5.2); others as they are."""
    if address.startswith("::ffff:") and "." in address:
        return address[7:]
    return address


def is_loopback(address: str) -> bool:
    """Whether only this machine has the address (RFC 1122 section 3.2.1.3, RFC 4291 2.5.3)."""
    return address == "::1" or unmapped(address).startswith("127.")


def zoned(name: tuple[Any, ...]) -> str:
    """The address in a socket's name, with the zone of a link-local one: ``fe80::1%eth0``.

    The same address may be in use on each link, so without its zone it cannot be connected to
    (RFC 4007 section 6). The zone is the interface's name, or its number if it has no name by now,
    or one that `is_ip` does not take.
    """
    address: str = name[0]
    scope = name[3] if len(name) > 3 else 0
    if not scope or "%" in address:
        return address
    try:
        zone = socket.if_indextoname(scope)
    except OSError:  # the interface is gone
        return f"{address}%{scope}"
    return f"{address}%{zone if _ZONE.fullmatch(zone) else scope}"


NEEDS_ZONE = "a link-local address needs its zone, such as fe80::1%eth0"


def needs_zone(address: str) -> bool:
    """Whether it is a link-local address without a zone: the system takes none for that."""
    packed = parse_ip(address)
    if packed is None or len(packed) == 4 or "%" in address:
        return False
    return packed[0] == 0xFE and packed[1] & 0xC0 == 0x80  # fe80::/10


def format_unix(name: str | bytes | None) -> str:
    """A Unix socket's name for people: ``unix:/path``, ``@abstract``, or ``unix`` if it has none.

    A client is free to choose its own: shown in one line that is printable.
    """
    name = os.fsdecode(name or "")
    shown = repr(name.removeprefix("\0"))[1:-1]
    return f"@{shown}" if name.startswith("\0") else f"unix:{shown}" if name else "unix"


def describe_peer(client_address: Any) -> str:
    """A client's address for people: ``127.0.0.1:50312``, or as `format_unix` for the others."""
    if isinstance(client_address, tuple) and len(client_address) > 1:
        host, port, *more = client_address
        return format_address(unmapped(zoned(client_address)) if more else host, port)
    if client_address is None or isinstance(client_address, (str, bytes)):
        return format_unix(client_address)
    return str(client_address)


_described = functools.lru_cache(maxsize=64)(describe_peer)  # of a server, most are the same


def check_port(port: int | str) -> int:
    """`port` as an integer from 0 to 65535; a string of digits will do.

    ValueError if it is out of range or no number, TypeError if it is of another type.
    """
    if isinstance(port, bool) or not isinstance(port, (int, str)):
        raise TypeError(f"port must be a number from 0 to {MAX_PORT}, not {port!r}")
    if isinstance(port, str):
        if not (port.isascii() and port.isdigit()):
            raise ValueError(f"port must be a number from 0 to {MAX_PORT}, not {port!r}")
        port = int(port.lstrip("0")[:6] or "0")  # six digits are out of range already
    if not 0 <= port <= MAX_PORT:
        raise ValueError(f"port must be a number from 0 to {MAX_PORT}, not {port}")
    return port


def check_first_port(port: int | str) -> int:
    """As `check_port`, where the port comes first, as in Node: in most of Python it does not."""
    try:
        return check_port(port)
    except (TypeError, ValueError) as error:
        looks_like_host = isinstance(port, str) and re.search("[a-zA-Z.:]", port)
        if not (looks_like_host or isinstance(port, tuple)):
            raise
        raise type(error)(f"{error}; the port comes first, and then the host") from None


def check_name(host: str) -> None:
    """UnicodeError, as Python raises it, for what is no name: one with a null character.

    The system's resolver would look up what is before it.
    """
    if "\0" in host:
        raise UnicodeError("a null character in a host name")


def parse_ip(text: str) -> bytes | None:
    """An IPv4 or IPv6 address in its 4 or 16 bytes; None if it is neither. A zone is ignored."""
    family = socket.AF_INET
    if ":" in text:
        family, text = socket.AF_INET6, text.partition("%")[0]
    try:
        return socket.inet_pton(family, text)
    except (OSError, ValueError):  # ValueError: a null character, or none of ASCII
        return None


_ZONE = re.compile(r"[0-9a-zA-Z\-._:]+")


def is_ip(text: str) -> int:
    """4 for an IPv4 address, 6 for an IPv6 address (``%zone`` allowed), 0 for anything else.

    Leading zeros, white space and prefix lengths are allowed in neither.
    """
    if not isinstance(text, str):
        return 0
    address, percent, zone = text.partition("%")
    if percent and (":" not in address or not _ZONE.fullmatch(zone)):
        return 0
    packed = parse_ip(address)
    return 0 if packed is None else 4 if len(packed) == 4 else 6


def is_ipv4(text: str) -> bool:
    """Whether `text` is an IPv4 address, see `is_ip`."""
    return is_ip(text) == 4


def is_ipv6(text: str) -> bool:
    """Whether `text` is an IPv6 address, see `is_ip`."""
    return is_ip(text) == 6


def network_of(address: str) -> str:
    """Under which name one client counts: an IPv4 address, or the /64 network of an IPv6 one.

    Whoever has an IPv6 address has a whole such network (RFC 6177). What is no address stands for
    itself.
    """
    if ":" not in address:
        return address
    packed = parse_ip(address)
    if packed is None:
        return address
    if packed[:12] == _MAPPED_PREFIX:
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    return socket.inet_ntop(socket.AF_INET6, packed[:8] + bytes(8)) + "/64"


def site_of(network: str) -> str | None:
    """The /48 network that a network of `network_of` is a part of; None for IPv4.

    That is what one site gets at most (RFC 6177): 65,536 networks of 64 bits.
    """
    packed = parse_ip(network.partition("/")[0])
    if packed is None or len(packed) == 4:
        return None
    return socket.inet_ntop(socket.AF_INET6, packed[:6] + bytes(10)) + "/48"
