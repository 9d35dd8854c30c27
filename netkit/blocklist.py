"""Sets of IP addresses by rule: single ones, ranges, networks. For lists of who may connect.

Rules:

1. A list is replaced as a whole when it changes: whoever looks in it takes no lock, and sees either
   all of a change or nothing of it.
2. Addresses are numbers, and each rule is kept as the networks that it consists of, by their prefix
   length. So a look takes one question for each length there is, however many rules there are.
3. IPv4 is a part of IPv6 here (::ffff:0:0/96, RFC 4291 section 2.5.5.2): an address in either form
   matches a rule in either form.
4. Some IPv6 addresses lead to an IPv4 address that they contain. To block that one blocks them too,
   but to allow it does not allow them.
"""

from __future__ import annotations

import ipaddress
import json
import os
import threading
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from .addresses import SocketAddress, parse_ip
from .listfile import read_entries

_Network = tuple[int, int]  # prefix length in IPv6's terms, and the first bits as a number

_BITS = 128
_MAPPED = _BITS - 32  # bits before an IPv4 address in its IPv6 form

# The first 96 bits of an IPv6 address whose last 32 bits are the IPv4 address that it leads to.
_NAT64 = 0x0064FF9B << 64  # 64:ff9b::/96, RFC 6052 section 2.1
_COMPATIBLE = 0  # ::/96, RFC 4291 section 2.5.5.1
_6TO4 = 0x2002  # the first 16 bits; the next 32 are an IPv4 address (RFC 3056 section 2)


class _Rule(NamedTuple):
    """One entry. `text` is as in Node's `BlockList.rules`."""

    text: str
    networks: tuple[_Network, ...]


class _State(NamedTuple):
    rules: dict[str, _Rule]  # in the order of adding
    networks: dict[int, dict[int, int]]  # by prefix length: first bits, and how many rules have it
    lengths: tuple[int, ...]  # the longest first


_EMPTY = _State({}, {}, ())


class BlockList:
    """A set of addresses, ranges and networks. Thread-safe.

    Addresses are strings, objects of `ipaddress`, or `SocketAddress`es. The zone of an address that
    is looked up (``%eth0``) is ignored; a rule may have none, since it holds on every link. The
    methods that add raise ValueError for text that is no address, and TypeError for what is no
    text.

    Two constants have rules against a client that is led to where it must not connect:
    `PRIVATE_RANGES` for this machine and private networks, `NON_GLOBAL_RANGES` for every address
    that the registries of IANA do not call globally reachable unicast.
    """

    PRIVATE_RANGES = (
        *("0.0.0.0/8", "127.0.0.0/8", "::/128", "::1/128"),  # this machine
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "fec0::/10"),
        *("169.254.0.0/16", "fe80::/10"),  # this link
        *("100.64.0.0/10", "192.0.0.0/24", "198.18.0.0/15"),  # providers' and laboratories' own
        "64:ff9b:1::/48",  # NAT64 of this network, RFC 8215
    )
    # RFC 6890 and its registries; and all of IPv6 outside of 2000::/3, but for IPv4 in its IPv6
    # form and NAT64, which are looked up by their IPv4 address.
    NON_GLOBAL_RANGES = (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
        *("172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16"),
        *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3"),
        *("::-::fffe:ffff:ffff", "::1:0:0:0-64:ff9a:ffff:ffff:ffff:ffff:ffff:ffff"),
        "64:ff9b::1:0:0-1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "4000::/2", "8000::/1"),
    )

    def __init__(self, rules: Iterable[Any] = ()) -> None:
        """`rules`: each as for `add`."""
        self._changing = threading.Lock()  # held while _state is being replaced
        self._state = _EMPTY
        self._path: str | None = None
        self.add_many(rules)

    @classmethod
    def of(cls, value: Any) -> BlockList:
        """The list that `value` means: a BlockList itself, a path object, or rules as for `add`."""
        if isinstance(value, BlockList):
            return value
        if isinstance(value, os.PathLike):
            return cls.load(value)
        if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
            raise TypeError(f"a BlockList, a path or a list of rules, not {value!r}")
        return cls(value)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> BlockList:
        """From a text file: a rule on each line, as for `add`; ``#`` begins a comment.

        A file that may be incomplete is refused: one that changes while it is read, that does not
        end with a newline, or that has no rule and no line ``# empty``; and so is a network with
        host bits. OSError, and ValueError that names the file and the line.
        """
        found = cls()
        found._path = os.fspath(path)
        found.reload()
        return found

    def reload(self) -> bool:
        """Read the file again. False, and nothing is done, if it does not come from a file.

        If that fails, it stays as it is; errors as for `load`.
        """
        if self._path is None:
            return False
        rules = []
        for number, text in read_entries(self._path):
            try:
                rules.append(_parse(text, host_bits=False))
            except ValueError as error:
                raise ValueError(f"{self._path}, line {number}: {error}") from None
        with self._changing:
            self._state = _added(_EMPTY, rules)
        return True

    @property
    def path(self) -> str | None:
        """The file that it comes from, if it does."""
        return self._path

    # Changing it

    def add(self, rule: Any) -> None:
        """An address, a network (``10.0.0.0/8``, host bits allowed) or ``first-last``."""
        self.add_many([rule])

    def add_many(self, rules: Iterable[Any]) -> None:
        """All of them, or none if one is wrong."""
        self._add([_parse(rule) for rule in rules])

    def _add(self, new: Iterable[_Rule]) -> None:
        with self._changing:
            self._state = _added(self._state, new)

    def add_range(self, first: Any, last: Any) -> None:
        """From `first` to `last`, both included. ValueError if it would be empty."""
        self._add([_range(first, last)])

    def remove(self, rule: Any) -> None:
        """Exactly this rule, as it was added; nothing if there is none."""
        text = _parse(rule).text
        with self._changing:
            if text in self._state.rules:
                rules = [each for each in self._state.rules.values() if each.text != text]
                self._state = _added(_EMPTY, rules)

    def clear(self) -> None:
        """All rules."""
        with self._changing:
            self._state = _EMPTY

    # Looking

    def __contains__(self, address: Any) -> bool:
        return self.check(address)

    def check(self, address: Any) -> bool:
        """Whether a rule matches, so that the address is blocked. False for text that is none.

        An address of NAT64 (64:ff9b::/96), of 6to4 (2002::/16) or ::/96 is also looked up by the
        IPv4 address that it contains and leads to. To allow only what matches, use `prefix_length`,
        which does not do so. TypeError for no text.
        """
        return self.longest_match(address, embedded=True) is not None

    def prefix_length(self, address: Any) -> int | None:
        """The length of the longest prefix that matches the address itself; None if none does.

        For IPv4, of 32 bits: 0 if the prefix is that of an IPv6 network which IPv4 is a part of. A
        single address is a prefix of all its bits. Errors as for `check`.
        """
        length = self.longest_match(address)
        if length is None:
            return None
        number = _number(_text(address))
        is_ipv4 = number is not None and _is_ipv4(number)
        return max(0, length - _MAPPED) if is_ipv4 else length

    def longest_match(self, address: Any, embedded: bool = False) -> int | None:
        """As `prefix_length`, but always of 128 bits, so that any two lengths can be compared.

        `embedded`: also by the IPv4 address that it contains, see `check`.
        """
        number = _number(_text(address))
        if number is None:
            return None
        length = self._find(number)
        inner = _embedded(number) if embedded else None
        if inner is not None:
            within = self._find(inner)
            length = within if length is None else max(length, within or 0)
        return length

    def _find(self, number: int) -> int | None:
        state = self._state
        for length in state.lengths:
            if number >> (_BITS - length) in state.networks[length]:
                return length
        return None

    @property
    def rules(self) -> list[str]:
        """As text in Node's form, the newest first: ``Subnet: IPv4 10.0.0.0/8``."""
        return [rule.text for rule in reversed(self._state.rules.values())]

    def __len__(self) -> int:
        return len(self._state.rules)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} rules>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self._path, self.to_json())

    # JSON, in Node's form

    def to_json(self) -> str:
        """A JSON array of `rules`, which `from_json` takes."""
        return json.dumps(self.rules)

    def from_json(self, text: str) -> None:
        """Add the rules of a JSON array of strings. ValueError, and nothing is added, else."""
        try:
            rules = json.loads(text)
        except RecursionError:  # brackets without end
            rules = None
        if not isinstance(rules, list) or not all(isinstance(rule, str) for rule in rules):
            raise ValueError("a BlockList in JSON is an array of strings")
        self._add([_parse_shown(rule) for rule in reversed(rules)])


def _restored(path: str | None, rules: str) -> BlockList:
    found = BlockList()
    found._path = path
    found.from_json(rules)
    return found


def _added(state: _State, new: Iterable[_Rule]) -> _State:
    rules = dict(state.rules)
    networks = {length: dict(numbers) for length, numbers in state.networks.items()}
    for rule in new:
        if rule.text not in rules:
            rules[rule.text] = rule
            for length, bits in rule.networks:
                numbers = networks.setdefault(length, {})
                numbers[bits] = numbers.get(bits, 0) + 1
    return _State(rules, networks, tuple(sorted(networks, reverse=True)))


# Rules from text


def _text(address: Any) -> str:
    if isinstance(address, str):
        return address
    if isinstance(address, SocketAddress):
        return address.address
    if isinstance(address, (ipaddress.IPv4Address, ipaddress.IPv6Address)):
        return str(address)
    raise TypeError(f"an address must be text, not {address!r}")


def _number(text: str) -> int | None:
    packed = parse_ip(text)
    if packed is None:
        return None
    number = int.from_bytes(packed, "big")
    return number if len(packed) == 16 else 0xFFFF << 32 | number


def _is_ipv4(number: int) -> bool:
    return number >> 32 == 0xFFFF


def _embedded(number: int) -> int | None:
    """The IPv4 address that an IPv6 address leads to, as a number; None if it has none."""
    first = number >> 32
    if first == _NAT64 or (first == _COMPATIBLE and number > 1):  # `::` and `::1` are none
        return 0xFFFF << 32 | number & 0xFFFFFFFF
    if number >> 112 == _6TO4:
        return 0xFFFF << 32 | number >> 80 & 0xFFFFFFFF
    return None


def _known(address: Any) -> int:
    text = _text(address)
    if "%" in text:
        raise ValueError(f"a rule must have no zone, since it holds on every link: {text!r}")
    number = _number(text)
    if number is None:
        raise ValueError(f"not an IP address: {address!r}")
    return number


def _shown(number: int) -> str:
    if _is_ipv4(number):
        return str(ipaddress.IPv4Address(number & 0xFFFFFFFF))
    return str(ipaddress.IPv6Address(number))


def _family(number: int) -> str:
    return "IPv4" if _is_ipv4(number) else "IPv6"


def _parse(rule: Any, host_bits: bool = True) -> _Rule:
    if isinstance(rule, (ipaddress.IPv4Network, ipaddress.IPv6Network)):
        rule = str(rule)
    text = _text(rule).strip()
    if "/" in text:
        address, _, prefix = text.partition("/")
        return _subnet(address, prefix, host_bits)
    if "-" in text:
        return _range(*(part.strip() for part in text.split("-", 1)))
    number = _known(text)
    return _Rule(f"Address: {_family(number)} {_shown(number)}", ((_BITS, number),))


def _subnet(address: str, prefix: str, host_bits: bool) -> _Rule:
    number = _known(address)
    bits = 32 if ":" not in address else _BITS
    if not (prefix.isascii() and prefix.isdecimal() and int(prefix) <= bits):
        raise ValueError(f"not a prefix length from 0 to {bits}: {prefix!r}")
    length = int(prefix) + _BITS - bits
    if not host_bits and number & ((1 << (_BITS - length)) - 1):
        raise ValueError(f"host bits behind the prefix, so it may be cut off: '{address}/{prefix}'")
    if _is_ipv4(number) and length < _MAPPED:  # a network that IPv4 is a part of
        text = f"Subnet: IPv6 {address}/{prefix}"
    else:
        shown = length - _MAPPED if _is_ipv4(number) else length
        text = f"Subnet: {_family(number)} {_shown(number)}/{shown}"
    return _Rule(text, ((length, number >> (_BITS - length)),))


def _range(first: Any, last: Any) -> _Rule:
    low, high = _known(first), _known(last)
    if low > high:
        raise ValueError(f"a range that ends before it begins: {first}-{last}")
    text = f"Range: {_family(low)} {_shown(low)}-{_shown(high)}"
    return _Rule(text, tuple(_networks(low, high)))


def _networks(low: int, high: int) -> Iterator[_Network]:
    """The fewest networks that are exactly the numbers from `low` to `high`."""
    while low <= high:
        # As large as `low` is a multiple of, but no larger than what is left.
        free = min(
            (low & -low).bit_length() - 1 if low else _BITS, (high - low + 1).bit_length() - 1
        )
        yield _BITS - free, low >> free
        low += 1 << free


def _parse_shown(text: str) -> _Rule:
    """``Subnet: IPv4 10.0.0.0/8``: what is before the rule itself must be true of it."""
    kind, _, given = text.rpartition(" ")
    rule = _parse(given)
    shown = rule.text.rpartition(" ")[0]
    # As in Node, an IPv4 address may be there as an IPv6 one: ::ffff:1.2.3.4.
    mapped = ":" in given and kind == shown.replace("IPv4", "IPv6")
    if not mapped and (kind != shown or (":" in given and kind.endswith("IPv4"))):
        raise ValueError(f"not a rule: {text!r}")
    return rule
