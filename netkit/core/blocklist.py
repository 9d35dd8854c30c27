"""Lists of IP addresses, ranges and networks, for instance of clients that may not connect.

Rules:

1. A change replaces the state of a list, which is immutable. So a lookup takes no lock, and sees
   all of a change or nothing of it.
2. Each rule is stored as networks, by their prefix length. So a lookup takes one step for each
   prefix length in use, however many rules there are.
3. IPv4 is a part of IPv6 (::ffff:0:0/96, RFC 4291 section 2.5.5.2): an address in either form
   matches a rule in either form.
4. Some IPv6 addresses lead to an IPv4 address that they contain. A rule that blocks the IPv4
   address also blocks them; a rule that allows it does not allow them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from typing import Any

from .listfile import read_entries
from .ranges import (
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
from .record import NamedTuple


class _State(NamedTuple):
    rules: dict[str, Rule]  # by text, the oldest first
    networks: dict[int, set[int]]  # by prefix length: the first bits of each network
    lengths: tuple[int, ...]  # the longest first
    # Empty, or the state that has replaced this one, under the key "". `dict.setdefault` is atomic:
    # if several threads replace one state at the same time, the first of them succeeds.
    successor: dict[str, _State]


class BlockList:
    """A set of addresses, ranges and networks. Thread-safe.

    Addresses are strings, objects of `ipaddress`, or `SocketAddress`es. A lookup ignores the zone
    of an address (``%eth0``); a rule must have no zone, since it holds on every link. The methods
    that add rules raise ValueError for text that is no address, and TypeError for other types.

    Two constants contain rules that keep a client from where it must not connect: `PRIVATE_RANGES`
    has this machine and private networks, `NON_GLOBAL_RANGES` has every address that the registries
    of IANA do not call globally reachable unicast.
    """

    PRIVATE_RANGES = (
        *("0.0.0.0/8", "127.0.0.0/8", "::/128", "::1/128"),  # this machine
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "fec0::/10"),
        *("169.254.0.0/16", "fe80::/10"),  # this link
        *("100.64.0.0/10", "192.0.0.0/24", "198.18.0.0/15"),  # providers' and laboratories' own
        "64:ff9b:1::/48",  # NAT64 of this network, RFC 8215
    )
    # RFC 6890 and its registries; and all of IPv6 outside of 2000::/3, except IPv4 in its IPv6 form
    # and NAT64, whose IPv4 address is looked up.
    NON_GLOBAL_RANGES = (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
        *("172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16"),
        *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3"),
        *("::-::fffe:ffff:ffff", "::1:0:0:0-64:ff9a:ffff:ffff:ffff:ffff:ffff:ffff"),
        "64:ff9b::1:0:0-1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "4000::/2", "8000::/1"),
    )

    def __init__(self, rules: Iterable[Any] = ()) -> None:
        """Make a list of `rules`, each as for `add`."""
        self._state = _with_rules(())  # an old one until `_newest` is called
        self._path: str | None = None
        self.add_many(rules)

    @classmethod
    def of(cls, value: Any) -> BlockList:
        """Return `value` if it is a BlockList, or one of a path object or of rules as for `add`."""
        if isinstance(value, BlockList):
            return value
        if isinstance(value, os.PathLike):
            return cls.load(value)
        if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
            raise TypeError(f"expected a BlockList, a path or a list of rules, not {value!r}")
        return cls(value)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> BlockList:
        """Read a text file with a rule on each line, as for `add`; ``#`` begins a comment.

        A file that may be incomplete is invalid: one that changes while it is read, that does not
        end with a newline, that has a network with host bits, or that has neither a rule nor a line
        ``# empty``. OSError; ValueError, which names the file and the line.
        """
        found = cls()
        found._path = os.fspath(path)
        found.reload()
        return found

    def reload(self) -> bool:
        """Read the file again, and return True. Return False if the list is not from a file.

        Errors as for `load`; the list keeps its rules then.
        """
        if self._path is None:
            return False
        rules = []
        for number, text in read_entries(self._path):
            try:
                rules.append(parse(text, host_bits=False))
            except ValueError as error:
                raise ValueError(f"{self._path}, line {number}: {error}") from None
        self._change(lambda _: _with_rules(rules))
        return True

    @property
    def path(self) -> str | None:
        """The file that the list is from, or None."""
        return self._path

    # Changing it

    def add(self, rule: Any) -> None:
        """Add an address, a network (``10.0.0.0/8``, host bits allowed) or ``first-last``."""
        self.add_many([rule])

    def add_many(self, rules: Iterable[Any]) -> None:
        """Add all of them, or none if one is invalid."""
        self._add([parse(rule) for rule in rules])

    def _add(self, new: Iterable[Rule]) -> None:
        self._change(lambda state: _with_rules(new, state))

    def _change(self, change: Callable[[_State], _State]) -> None:
        """Replace the state by `change` of it; again if another thread has replaced it first."""
        while True:
            state = self._newest()
            new = change(state)
            if state.successor.setdefault("", new) is new:
                return

    def _newest(self) -> _State:
        state = self._state
        while state.successor:
            state = state.successor[""]
        self._state = state  # so that the next call is short
        return state

    def add_range(self, first: Any, last: Any) -> None:
        """Add `first` to `last`, both included. ValueError if `last` is less than `first`."""
        self._add([parse_range(first, last)])

    def remove(self, rule: Any) -> None:
        """Remove exactly this rule, as it was added, if it is there."""
        text = parse(rule).text
        self._change(
            lambda state: _with_rules(each for each in state.rules.values() if each.text != text)
        )

    def clear(self) -> None:
        """Remove all rules."""
        self._change(lambda _: _with_rules(()))

    # Looking up

    def __contains__(self, address: Any) -> bool:
        return self.check(address)

    def check(self, address: Any) -> bool:
        """Whether a rule matches, which blocks the address. False for text that is no address.

        For an address of NAT64 (64:ff9b::/96), of 6to4 (2002::/16) or of ::/96, this also looks up
        the IPv4 address that it contains and leads to. A list of allowed addresses must not do so:
        use `prefix_length` there. TypeError for other types.
        """
        return self.longest_match(address, embedded=True) is not None

    def prefix_length(self, address: Any) -> int | None:
        """Return the length of the longest prefix that matches the address itself, or None.

        For IPv4 it is from 0 to 32; it is 0 for an IPv6 network that contains all of IPv4. A rule
        for a single address is a prefix of all its bits. Errors as for `check`.
        """
        number, length = number_of(address), self.longest_match(address)
        if number is None or length is None or not is_ipv4(number):
            return length
        return max(0, length - MAPPED)

    def longest_match(self, address: Any, embedded: bool = False) -> int | None:
        """As `prefix_length`, but from 0 to 128 for IPv4 too, so that lengths can be compared.

        With `embedded`, this also looks up the IPv4 address in an IPv6 address, see `check`.
        """
        number = number_of(address)
        if number is None:
            return None
        inner = embedded_ipv4(number) if embedded else None
        state = self._newest()
        for length in state.lengths:
            networks, rest = state.networks[length], BITS - length
            if number >> rest in networks or (inner is not None and inner >> rest in networks):
                return length
        return None

    @property
    def rules(self) -> list[str]:
        """The rules as text in Node's form, the newest first: ``Subnet: IPv4 10.0.0.0/8``."""
        return [rule.text for rule in reversed(self._newest().rules.values())]

    def __len__(self) -> int:
        return len(self._newest().rules)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} rules>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self._path, self.to_json())

    def to_json(self) -> str:
        """Return `rules` as a JSON array, for `from_json`."""
        return json.dumps(self.rules)

    def from_json(self, text: str) -> None:
        """Add the rules of a JSON array of strings, or none. ValueError if one is invalid."""
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


def _with_rules(new: Iterable[Rule], state: _State | None = None) -> _State:
    """Make a state with the rules of `state`, if any, and the `new` ones."""
    rules = {} if state is None else dict(state.rules)
    networks = {} if state is None else {each: set(it) for each, it in state.networks.items()}
    for rule in new:
        rules[rule.text] = rule
        for length, bits in rule.networks:
            networks.setdefault(length, set()).add(bits)
    return _State(rules, networks, tuple(sorted(networks, reverse=True)), {})
