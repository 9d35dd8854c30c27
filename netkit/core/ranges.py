"""Parses rules about IP addresses: single addresses, networks and ranges.

An address is a number of 128 bits; that of IPv4 is in ::ffff:0:0/96. A rule is a set of networks.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, summarize_address_range
from typing import Any

from .addresses import parse_ip
from .record import NamedTuple

Network = tuple[int, int]  # prefix length in IPv6's terms, and the first bits as a number

BITS = 128
MAPPED = BITS - 32  # bits before an IPv4 address in its IPv6 form

# The first 96 bits of an IPv6 address whose last 32 bits are the IPv4 address that it leads to.
_NAT64 = 0x0064FF9B << 64  # 64:ff9b::/96, RFC 6052 section 2.1
_COMPATIBLE = 0  # ::/96, RFC 4291 section 2.5.5.1
_6TO4 = 0x2002  # the first 16 bits; the next 32 are an IPv4 address (RFC 3056 section 2)


class Rule(NamedTuple):
    text: str  # as in `BlockList.rules` of Node
    networks: tuple[Network, ...]


def number_of(address: Any) -> int | None:
    """Return an address as a number; None if it is text but no address.

    TypeError unless it is text, an object of `ipaddress` or a `SocketAddress`.
    """
    packed = parse_ip(_text(address))
    if packed is None:
        return None
    return int.from_bytes(packed if len(packed) == 16 else b"\xff\xff" + packed, "big")


def _text(address: Any) -> str:
    if isinstance(address, tuple):  # a SocketAddress has its text under this name
        address = getattr(address, "address", address)
    if isinstance(address, str):
        return address
    if isinstance(address, (IPv4Address, IPv6Address)):
        return str(address)
    raise TypeError(f"an address must be text, not {address!r}")


def is_ipv4(number: int) -> bool:
    """Whether `number` is an IPv4 address."""
    return number >> 32 == 0xFFFF


def embedded_ipv4(number: int) -> int | None:
    """Return the IPv4 address that an IPv6 address leads to, or None."""
    first = number >> 32
    if first == _NAT64 or (first == _COMPATIBLE and number > 1):  # `::` and `::1` lead to none
        return 0xFFFF << 32 | number & 0xFFFFFFFF
    if number >> 112 == _6TO4:
        return 0xFFFF << 32 | number >> 80 & 0xFFFFFFFF
    return None


def _known(address: Any) -> int:
    text = _text(address)
    if "%" in text:
        raise ValueError(f"a rule must have no zone, since it holds on every link: {text!r}")
    number = number_of(text)
    if number is None:
        raise ValueError(f"not an IP address: {address!r}")
    return number


def _named(number: int) -> str:
    if is_ipv4(number):
        return f"IPv4 {IPv4Address(number & 0xFFFFFFFF)}"
    return f"IPv6 {IPv6Address(number)}"


def parse(rule: Any, host_bits: bool = True) -> Rule:
    """Parse an address, a network or ``first-last``. ValueError, TypeError.

    A network may have bits behind its prefix only if `host_bits` is set.
    """
    if isinstance(rule, (IPv4Network, IPv6Network)):
        rule = str(rule)
    text = _text(rule).strip()
    if "/" in text:
        address, _, prefix = text.partition("/")
        return _subnet(address, prefix, host_bits)
    if "-" in text:
        return parse_range(*(part.strip() for part in text.split("-", 1)))
    number = _known(text)
    return Rule(f"Address: {_named(number)}", ((BITS, number),))


def _subnet(address: str, prefix: str, host_bits: bool) -> Rule:
    number = _known(address)
    bits = 32 if ":" not in address else BITS
    if not (prefix.isascii() and prefix.isdecimal() and int(prefix) <= bits):
        raise ValueError(
            f"the prefix length must be from 0 to {bits}, not {prefix!r}: {address}/{prefix}"
        )
    length = int(prefix) + BITS - bits
    if not host_bits and number & ((1 << (BITS - length)) - 1):
        raise ValueError(f"host bits behind the prefix, so it may be cut off: '{address}/{prefix}'")
    if is_ipv4(number) and length < MAPPED:  # a network that IPv4 is a part of
        text = f"Subnet: IPv6 {address}/{prefix}"
    else:
        text = f"Subnet: {_named(number)}/{length - MAPPED if is_ipv4(number) else length}"
    return Rule(text, ((length, number >> (BITS - length)),))


def parse_range(first: Any, last: Any) -> Rule:
    """Make the rule for `first` to `last`, both included. ValueError if `last` is less."""
    low, high = _known(first), _known(last)
    if low > high:
        raise ValueError(f"a range that ends before it begins: {first}-{last}")
    spans = summarize_address_range(IPv6Address(low), IPv6Address(high))
    networks = ((it.prefixlen, int(it.network_address) >> (BITS - it.prefixlen)) for it in spans)
    # An IPv4 address that begins a range of IPv6 is shown in its IPv6 form, as the family says.
    start = _named(low) if is_ipv4(high) else f"IPv6 {IPv6Address(low)}"
    return Rule(f"Range: {start}-{_named(high)[5:]}", tuple(networks))


def parse_shown(text: str) -> Rule:
    """Parse ``Subnet: IPv4 10.0.0.0/8``. ValueError unless its kind and family are the rule's."""
    kind, _, given = text.rpartition(" ")
    rule = parse(given)
    shown = rule.text.rpartition(" ")[0]
    if ":" in given:  # as in Node, it may be an IPv4 address in its IPv6 form
        shown = shown.replace("IPv4", "IPv6")
    if kind != shown:
        raise ValueError(f"not a rule: {text!r}")
    return rule
