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

import json
import os
import threading
from collections.abc import Iterable
from typing import Any, NamedTuple

from .addressrules import (
    BITS,
    MAPPED,
    Rule,
    embedded_ipv4,
    is_ipv4,
    number_of,
    parse,
    parse_range,
    parse_shown,
)
from .listfile import read_entries


class _State(NamedTuple):
    rules: dict[str, Rule]  # in the order of adding
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
                rules.append(parse(text, host_bits=False))
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
        self._add([parse(rule) for rule in rules])

    def _add(self, new: Iterable[Rule]) -> None:
        with self._changing:
            self._state = _added(self._state, new)

    def add_range(self, first: Any, last: Any) -> None:
        """From `first` to `last`, both included. ValueError if it would be empty."""
        self._add([parse_range(first, last)])

    def remove(self, rule: Any) -> None:
        """Exactly this rule, as it was added; nothing if there is none."""
        text = parse(rule).text
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
        number = number_of(address)
        return max(0, length - MAPPED) if number is not None and is_ipv4(number) else length

    def longest_match(self, address: Any, embedded: bool = False) -> int | None:
        """As `prefix_length`, but always of 128 bits, so that any two lengths can be compared.

        `embedded`: also by the IPv4 address that it contains, see `check`.
        """
        number = number_of(address)
        if number is None:
            return None
        length = self._find(number)
        inner = embedded_ipv4(number) if embedded else None
        if inner is not None:
            within = self._find(inner)
            length = within if length is None else max(length, within or 0)
        return length

    def _find(self, number: int) -> int | None:
        state = self._state
        for length in state.lengths:
            if number >> (BITS - length) in state.networks[length]:
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
        self._add([parse_shown(rule) for rule in reversed(rules)])


def _restored(path: str | None, rules: str) -> BlockList:
    found = BlockList()
    found._path = path
    found.from_json(rules)
    return found


def _added(state: _State, new: Iterable[Rule]) -> _State:
    rules = dict(state.rules)
    networks = {length: dict(numbers) for length, numbers in state.networks.items()}
    for rule in new:
        if rule.text not in rules:
            rules[rule.text] = rule
            for length, bits in rule.networks:
                numbers = networks.setdefault(length, {})
                numbers[bits] = numbers.get(bits, 0) + 1
    return _State(rules, networks, tuple(sorted(networks, reverse=True)))
