"""Lists of addresses: rules of each kind, lookups, changes, files and JSON."""

from __future__ import annotations

import ipaddress
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support import in_threads

from netkit import BlockList, SocketAddress
from netkit.core import blocklist
from netkit.core.ranges import parse


def test_an_empty_list_matches_nothing() -> None:
    found = BlockList()
    assert len(found) == 0
    assert "1.2.3.4" not in found
    assert found.prefix_length("1.2.3.4") is None
    assert repr(found) == "<BlockList of 0 rules>"
    assert found.path is None
    assert not found.reload()


@pytest.mark.parametrize(
    ("rule", "inside", "outside"),
    [
        ("1.2.3.4", ["1.2.3.4", "::ffff:1.2.3.4", "::ffff:102:304"], ["1.2.3.5"]),
        ("::ffff:1.2.3.4", ["1.2.3.4"], ["1.2.3.5"]),
        ("fe80::1", ["fe80::1", "fe80:0::1", "fe80::1%eth0"], ["fe80::2"]),
        ("10.0.0.0/8", ["10.0.0.0", "10.255.255.255"], ["11.0.0.0", "9.255.255.255"]),
        ("192.168.1.7/24", ["192.168.1.200"], ["192.168.2.7"]),
        ("0.0.0.0/0", ["1.2.3.4", "::ffff:1.2.3.4"], ["::1"]),
        ("::/0", ["1.2.3.4", "::1"], []),
        ("2001:db8::/32", ["2001:db8:ffff::1"], ["2001:db9::"]),
        ("1.2.3.4-1.2.3.9", ["1.2.3.4", "1.2.3.9"], ["1.2.3.3", "1.2.3.10"]),
        (" fe80::1 - fe80::ff ", ["fe80::80"], ["fe80::100"]),
        ("0.0.0.0-255.255.255.255", ["0.0.0.0", "255.255.255.255"], ["::1"]),
        ("::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", ["::", "1.2.3.4", "ffff::"], []),
    ],
)
def test_a_rule_matches_the_addresses_that_it_names(
    rule: str, inside: list[str], outside: list[str]
) -> None:
    found = BlockList([rule])
    assert [address for address in inside if address not in found] == []
    assert [address for address in outside if address in found] == []


def test_addresses_may_be_objects() -> None:
    found = BlockList(
        [
            ipaddress.ip_address("1.2.3.4"),
            ipaddress.ip_network("10.0.0.0/8"),
            ipaddress.ip_network("fc00::/7"),
            SocketAddress("::1", 80, "IPv6"),
        ]
    )
    assert ipaddress.ip_address("10.2.3.4") in found
    assert SocketAddress("1.2.3.4", 5, "IPv4") in found
    assert found.check("fd00::1")


@pytest.mark.parametrize("text", ["", "x", "1.2.3", "01.2.3.4", "1.2.3.4/8", "::1::", "é", "1\0"])
def test_text_that_is_no_address_matches_no_rule(text: str) -> None:
    assert text not in BlockList(["0.0.0.0/0", "::/0"])


@pytest.mark.parametrize("thing", [None, 5, b"1.2.3.4", ("1.2.3.4", 5)])
def test_an_address_of_another_type_is_a_type_error(thing: Any) -> None:
    found = BlockList()
    with pytest.raises(TypeError, match="an address must be text"):
        found.check(thing)
    with pytest.raises(TypeError, match="an address must be text"):
        found.add(thing)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("1.2.3", "not an IP address: '1.2.3'"),
        ("1.2.3.4/33", "the prefix length must be from 0 to 32, not '33': 1.2.3.4/33"),
        ("fe80::1%lo", "a rule must have no zone, since it holds on every link: 'fe80::1%lo'"),
        ("fe80::%lo/10", "a rule must have no zone, since it holds on every link: 'fe80::%lo'"),
        ("::1-fe80::%1", "a rule must have no zone, since it holds on every link: 'fe80::%1'"),
        ("::1/129", "the prefix length must be from 0 to 128, not '129': ::1/129"),
        ("1.2.3.4/-1", "the prefix length must be from 0 to 32, not '-1': 1.2.3.4/-1"),
        ("1.2.3.4/", "the prefix length must be from 0 to 32, not '': 1.2.3.4/"),
        ("1.2.3.9-1.2.3.4", "a range that ends before it begins: 1.2.3.9-1.2.3.4"),
    ],
)
def test_an_invalid_rule_is_an_error_and_changes_nothing(rule: str, message: str) -> None:
    found = BlockList()
    with pytest.raises(ValueError, match="prefix|address|range|zone") as caught:
        found.add_many(["10.0.0.1", rule])
    assert str(caught.value) == message
    assert len(found) == 0


def test_rules_are_shown_as_in_node_the_newest_first() -> None:
    found = BlockList(["1.2.3.4", "192.168.1.7/24", "::1/64"])
    found.add_range("10.0.0.1", "10.0.0.9")
    found.add("::ffff:0.0.0.0/90")
    found.add("1.2.3.4")
    assert found.rules == [
        "Subnet: IPv6 ::ffff:0.0.0.0/90",
        "Range: IPv4 10.0.0.1-10.0.0.9",
        "Subnet: IPv6 ::1/64",
        "Subnet: IPv4 192.168.1.7/24",
        "Address: IPv4 1.2.3.4",
    ]


def test_exactly_one_rule_is_removed() -> None:
    found = BlockList(["10.0.0.0/8", "10.0.0.1", "10.0.0.0-10.255.255.255"])
    found.remove("10.0.0.0/8")
    found.remove("10.0.0.0/9")
    assert len(found) == 2
    assert "10.200.0.1" in found
    found.remove("10.0.0.0-10.255.255.255")
    assert "10.200.0.1" not in found
    assert "10.0.0.1" in found
    found.clear()
    assert "10.0.0.1" not in found


def test_the_length_of_the_longest_matching_prefix_is_returned() -> None:
    found = BlockList(["10.0.0.0/8", "10.1.0.0/16", "10.1.1.1", "2001:db8::/32", "::/0"])
    assert found.prefix_length("10.2.2.2") == 8
    assert found.prefix_length("::ffff:10.1.2.2") == 16
    assert found.prefix_length("10.1.1.1") == 32
    assert found.prefix_length("2001:db8::1") == 32
    assert found.prefix_length("x") is None


def test_a_network_that_contains_ipv4_has_a_prefix_of_no_bits_for_it() -> None:
    for rule in ("::/0", "::/80", "0.0.0.0/0"):
        assert BlockList([rule]).prefix_length("1.2.3.4") == 0
    found = BlockList(["::/0", "::ffff:0:0/95"])
    assert found.longest_match("1.2.3.4") == 95
    assert found.longest_match("::1") == 0
    assert found.longest_match("x") is None


# Addresses of IPv6 that lead to an IPv4 address


LEADING_TO = [
    ("10.0.0.1", ["64:ff9b::a00:1", "64:ff9b::10.0.0.1", "2002:a00:1::", "2002:a00:1:9::9"]),
    ("10.0.0.1", ["::a00:1", "::10.0.0.1"]),
    ("255.255.255.255", ["64:ff9b::ffff:ffff", "2002:ffff:ffff::1", "::ffff:ffff"]),
]


@pytest.mark.parametrize(("inner", "outer"), LEADING_TO)
def test_an_address_that_leads_to_a_blocked_one_is_blocked(inner: str, outer: list[str]) -> None:
    found = BlockList([inner])
    for address in outer:
        assert found.check(address)
        assert address in found
        assert address not in BlockList(["10.0.0.2"])
        # But it is not allowed where that one is.
        assert found.prefix_length(address) is None
        assert found.longest_match(address) is None
        assert found.longest_match(address, embedded=True) == 128


def test_the_longer_match_of_an_address_and_of_the_one_that_it_leads_to_counts() -> None:
    rules = BlockList(["64:ff9b::/96", "10.0.0.0/8", "2002:b00::/24"])
    assert rules.longest_match("64:ff9b::a00:1", embedded=True) == 104
    assert rules.longest_match("64:ff9b::b00:1", embedded=True) == 96
    assert rules.longest_match("2002:b00:1::", embedded=True) == 24


@pytest.mark.parametrize("address", ["::", "::1", "64:ff9c::a00:1", "2003:a00:1::", "::1:a00:1"])
def test_an_address_that_leads_to_no_other_is_looked_up_alone(address: str) -> None:
    assert address not in BlockList(["0.0.0.0/0"])


addresses = st.integers(0, 2**32 - 1).map(lambda number: str(ipaddress.IPv4Address(number)))


@pytest.mark.fuzz
@given(st.lists(st.tuples(addresses, addresses), max_size=5), st.lists(addresses, max_size=20))
def test_ranges_are_exact(ranges: list[tuple[str, str]], asked: list[str]) -> None:
    found = BlockList()
    spans = [sorted(map(ipaddress.IPv4Address, pair)) for pair in ranges]
    for low, high in spans:
        found.add_range(low, high)
    edges = [str(edge) for span in spans for edge in span]
    for address in asked + edges:
        number = ipaddress.IPv4Address(address)
        assert (address in found) == any(low <= number <= high for low, high in spans)


def test_many_threads_may_change_a_list_and_look_up_addresses() -> None:
    found = BlockList()

    def work(number: int) -> None:
        for last in range(100):
            found.add(f"10.0.{number}.{last}")
            assert f"10.0.{number}.{last}" in found

    in_threads(work, [(number,) for number in range(8)])
    assert len(found) == 800


def test_a_change_is_made_anew_if_another_one_came_first() -> None:
    found = BlockList(["1.1.1.1"])

    def add_slowly(state: Any) -> Any:
        if "2.2.2.2" not in found:
            found.add("2.2.2.2")
        return blocklist._with_rules([parse("3.3.3.3")], state)

    found._change(add_slowly)
    assert all(address in found for address in ("1.1.1.1", "2.2.2.2", "3.3.3.3"))


networks = st.one_of(
    st.builds(
        lambda number, length: ipaddress.IPv4Network((number, length), strict=False),
        st.integers(0, 2**32 - 1),
        st.integers(0, 32),
    ),
    st.builds(
        lambda number, length: ipaddress.IPv6Network((number, length), strict=False),
        st.integers(0, 2**128 - 1),
        st.integers(0, 128),
    ),
)


@pytest.mark.fuzz
@given(networks, st.integers(0, 2**128 - 1), st.booleans())
def test_a_network_has_the_addresses_that_pythons_module_says(
    network: Any, number: int, as_text: bool
) -> None:
    found = BlockList([str(network) if as_text else network])
    address = type(network[0])(number % 2**network.max_prefixlen)
    inside = network[number % network.num_addresses]
    for each in (address, inside, network[0], network[-1]):
        matches = found.prefix_length(each) is not None
        mapped = getattr(each, "ipv4_mapped", None)
        assert matches == (each in network)
        assert not matches or each in found
        if mapped is None and matches:
            assert found.prefix_length(each) == network.prefixlen


HERE = ["0.0.0.0", "0.1.2.3", "127.0.0.1", "::", "::1", "::ffff:0.0.0.0", "::ffff:127.0.0.1"]
PRIVATE = ["10.1.2.3", "172.31.0.1", "192.168.3.4", "169.254.169.254", "100.64.0.1", "198.19.0.1"]
PRIVATE += ["fe80::1", "fec0::1", "fd00:ec2::254", "64:ff9b:1::1", "64:ff9b::a9fe:a9fe"]
SPECIAL = ["192.0.2.1", "192.88.99.1", "203.0.113.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"]
SPECIAL += ["ff02::1", "2001:db8::1", "2001::1", "3fff::1", "100::1", "5f00::1", "4000::", "f000::"]
SPECIAL += ["2002:808:808::1", "::8.8.8.8", "::ffff:0:8.8.8.8", "::fffe:ffff:ffff", "1fff::"]
GLOBAL = ["8.8.8.8", "1.0.0.0", "126.255.255.255", "191.255.255.255", "223.255.255.255"]
GLOBAL += ["2000::", "2606:4700::1111", "2a00::1", "3ffe:ffff::", "3ff0::", "64:ff9b::808:808"]
GLOBAL += ["::ffff:8.8.8.8"]


def test_private_ranges_contain_private_addresses_only() -> None:
    found = BlockList(BlockList.PRIVATE_RANGES)
    assert [each for each in (*HERE, *PRIVATE) if each not in found] == []
    assert [each for each in GLOBAL if each in found] == []


def test_the_ranges_that_are_not_global_contain_no_global_address() -> None:
    found = BlockList(BlockList.NON_GLOBAL_RANGES)
    assert [each for each in (*HERE, *PRIVATE, *SPECIAL) if each not in found] == []
    assert [each for each in GLOBAL if each in found] == []


# Networks in these rules that Python's module may call global: some versions of it do so for
# multicast, reserved and transition addresses, or for a global service in a reserved network.
STRICTER = ["224.0.0.0/4", "192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2002::/16", "::/3"]
STRICTER += ["3fff::/20", "4000::/2", "8000::/1"]


def oracle(address: Any) -> bool:
    """Whether Python's module calls `address`, or the IPv4 address in it, global."""
    if address.version == 6 and address in ipaddress.ip_network("64:ff9b::/96"):
        return oracle(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    if address.version == 6 and address.ipv4_mapped:
        return oracle(address.ipv4_mapped)
    return bool(address.is_global)


def edges() -> list[Any]:
    """The first and last address of each rule, those beside them, and of the module's networks."""
    found = []
    for rule in (*BlockList.NON_GLOBAL_RANGES, *STRICTER, "64:ff9b::/96", "::ffff:0:0/96"):
        if "/" in rule:
            network = ipaddress.ip_network(rule)
            ends = [network[0], network[-1]]
        else:
            ends = list(map(ipaddress.ip_address, rule.split("-")))
        for end in ends:
            most = 2**end.max_prefixlen - 1
            found += [type(end)(min(max(int(end) + step, 0), most)) for step in (-1, 0, 1)]
    return found


def test_each_edge_of_what_is_not_global_is_as_pythons_module_says() -> None:
    found = BlockList(BlockList.NON_GLOBAL_RANGES)
    assert [address for address in edges() if not oracle(address) and address not in found] == []


def test_a_list_goes_through_json_and_pickle() -> None:
    found = BlockList(["1.2.3.4", "10.0.0.0/8", "1.2.3.4-1.2.3.9", "1.2.3.4-2001:db8::"])
    again = BlockList()
    again.from_json(found.to_json())
    assert again.rules == found.rules == pickle.loads(pickle.dumps(found)).rules


# Pieces of rules in any order, or any text.
pieces = [*("1", "0", "10", "255", "256", "33", "129", "."), *(":", "::", "ffff", "fe80", "/", "-")]
pieces += ["%eth0", " ", "\u0661", "x", "1.2.3.4", "::1", "10.0.0.0", "2001:db8::"]
rules = st.one_of(st.lists(st.sampled_from(pieces), max_size=8).map("".join), st.text())


@pytest.mark.fuzz
@given(rules)
def test_any_text_is_a_rule_that_goes_through_json_or_a_value_error(text: str) -> None:
    found = BlockList()
    try:
        found.add(text)
    except ValueError:
        assert found.rules == []
    else:
        again = BlockList()
        again.from_json(found.to_json())
        assert again._newest().networks == found._newest().networks
        found.remove(text)
        assert found.rules == []


json_values = st.recursive(
    st.one_of(st.none(), st.integers(), rules, rules.map("Address: IPv4 {}".format)),
    lambda values: st.one_of(st.lists(values), st.dictionaries(st.text(), values)),
    max_leaves=4,
)


@pytest.mark.fuzz
@given(st.one_of(st.text(), json_values.map(json.dumps)))
@example("[" * 10_000)
@example("1" * 5_000)
@example('["Address: IPv4 ::"]')
@example('["Address: IPv4 ::ffff:1.2.3.4"]')
@example('["Address: IPv4 1.2.3.4/24"]')
def test_any_json_is_added_as_a_whole_or_is_a_value_error(text: str) -> None:
    found = BlockList(["1.2.3.4"])
    before = found.rules
    try:
        found.from_json(text)
    except ValueError:
        assert found.rules == before
    else:
        assert set(found.rules) == {*before, *json.loads(text)}


def test_a_file_has_a_rule_on_each_line_and_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "deny"
    path.write_text("# a comment\n\n10.0.0.0/8  # all of it\n1.2.3.4-1.2.3.9\n")
    found = BlockList.load(path)
    assert len(found) == 2
    assert found.path == pickle.loads(pickle.dumps(found)).path == str(path)
    path.write_bytes(b"\xef\xbb\xbf5.5.5.5\r\n# a line\r\n")
    assert found.reload()
    assert found.rules == ["Address: IPv4 5.5.5.5"]
    for line, shown in ((b"6.6.6", "6.6.6"), (b"\xff", "\\\\xff")):
        path.write_bytes(b"5.5.5.6\n" + line + b"\n")
        with pytest.raises(ValueError, match="line 2") as caught:
            found.reload()
        assert str(caught.value) == f"{path}, line 2: not an IP address: '{shown}'"
    path.unlink()
    with pytest.raises(FileNotFoundError):
        found.reload()
    assert found.rules == ["Address: IPv4 5.5.5.5"]


def test_a_list_is_made_of_a_path_or_of_rules(tmp_path: Path) -> None:
    found = BlockList(["1.2.3.4"])
    assert BlockList.of(found) is found
    (tmp_path / "list").write_text("1.2.3.4\n")
    assert "1.2.3.4" in BlockList.of(tmp_path / "list")
    assert "1.2.3.4" in BlockList.of(["1.2.3.4"])
    for wrong in ("1.2.3.4", b"1.2.3.4", 5):
        with pytest.raises(TypeError, match="expected a BlockList, a path or a list of rules, not"):
            BlockList.of(wrong)


def test_a_list_of_10000_rules_is_looked_up_as_quickly_as_one_of_ten() -> None:
    found = BlockList(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(10_000))
    assert len(found) == 10_000
    assert found._newest().lengths == (128,)  # a lookup takes one step for each of them
    assert "10.0.39.15" in found
    assert json.loads(found.to_json())[-1] == "Address: IPv4 10.0.0.0"
