"""Lists of addresses: rules of each kind, looking, changing, files and JSON."""

from __future__ import annotations

import ipaddress
import json
import pickle
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support import in_threads

from netkit import BlockList, SocketAddress


def test_an_empty_list_has_nobody() -> None:
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
        ("1.2.3.4", ["1.2.3.4", "::ffff:1.2.3.4", "::ffff:102:304"], ["1.2.3.5", "::1.2.3.4"]),
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
def test_a_rule_matches_what_it_names(rule: str, inside: list[str], outside: list[str]) -> None:
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
def test_what_is_no_address_is_in_no_list(text: str) -> None:
    assert text not in BlockList(["0.0.0.0/0", "::/0"])


@pytest.mark.parametrize("thing", [None, 5, b"1.2.3.4", ("1.2.3.4", 5)])
def test_what_is_no_text_is_a_type_error(thing: Any) -> None:
    found = BlockList()
    with pytest.raises(TypeError, match="an address must be text"):
        found.check(thing)
    with pytest.raises(TypeError, match="an address must be text"):
        found.add(thing)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("1.2.3", "not an IP address: '1.2.3'"),
        ("1.2.3.4/33", "not a prefix length from 0 to 32: '33'"),
        ("::1/129", "not a prefix length from 0 to 128: '129'"),
        ("1.2.3.4/-1", "not a prefix length from 0 to 32: '-1'"),
        ("1.2.3.4/", "not a prefix length from 0 to 32: ''"),
        ("1.2.3.9-1.2.3.4", "a range that ends before it begins: 1.2.3.9-1.2.3.4"),
    ],
)
def test_a_wrong_rule_is_refused_and_changes_nothing(rule: str, message: str) -> None:
    found = BlockList()
    with pytest.raises(ValueError, match="prefix|address|range") as caught:
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


def test_the_longest_prefix_is_told() -> None:
    found = BlockList(["10.0.0.0/8", "10.1.0.0/16", "10.1.1.1", "2001:db8::/32", "::/0"])
    assert found.prefix_length("10.2.2.2") == 8
    assert found.prefix_length("::ffff:10.1.2.2") == 16
    assert found.prefix_length("10.1.1.1") == 32
    assert found.prefix_length("2001:db8::1") == 32
    assert found.prefix_length("x") is None


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


def test_many_threads_may_change_it_and_look() -> None:
    found = BlockList()

    def work(number: int) -> None:
        for last in range(100):
            found.add(f"10.0.{number}.{last}")
            assert f"10.0.{number}.{last}" in found

    in_threads(work, [(number,) for number in range(8)])
    assert len(found) == 800


def test_private_ranges_are_there() -> None:
    found = BlockList(BlockList.PRIVATE_RANGES)
    assert all(each in found for each in ("127.0.0.1", "192.168.3.4", "::1", "fe80::1"))
    assert "8.8.8.8" not in found


def test_a_list_goes_through_json_and_pickle() -> None:
    found = BlockList(["1.2.3.4", "10.0.0.0/8", "1.2.3.4-1.2.3.9"])
    again = BlockList()
    again.from_json(found.to_json())
    assert again.rules == found.rules == pickle.loads(pickle.dumps(found)).rules


@pytest.mark.parametrize(
    "text", ['{"a": 1}', "[5]", '["Address: IPv5 1.2.3.4"]', '["1.2.3.4"]', "["]
)
def test_what_is_no_list_in_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"array of strings|not a rule|Expecting"):
        BlockList().from_json(text)


# What somebody may write for a rule: pieces of one in any order, or anything at all.
pieces = [*("1", "0", "10", "255", "256", "33", "129", "."), *(":", "::", "ffff", "fe80", "/", "-")]
pieces += ["%eth0", " ", "\u0661", "x", "1.2.3.4", "::1", "10.0.0.0", "2001:db8::"]
rules = st.one_of(st.lists(st.sampled_from(pieces), max_size=8).map("".join), st.text())


@pytest.mark.fuzz
@given(rules)
def test_any_text_is_a_rule_that_can_be_written_and_read_again_or_a_value_error(text: str) -> None:
    found = BlockList()
    try:
        found.add(text)
    except ValueError:
        assert found.rules == []
    else:
        again = BlockList()
        again.from_json(found.to_json())
        assert again._state.networks == found._state.networks
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
def test_any_json_is_added_whole_or_is_a_value_error_and_not_added_at_all(text: str) -> None:
    found = BlockList(["1.2.3.4"])
    before = found.rules
    try:
        found.from_json(text)
    except ValueError:
        assert found.rules == before
    else:
        assert set(found.rules) == {*before, *json.loads(text)}


@pytest.mark.fuzz
@given(st.one_of(st.binary(), st.lists(rules).map(lambda lines: "\n".join(lines).encode())))
@example(b"1.2.3.4\n\xff\n")
@example(b"1.2.3.4/" + b"1" * 5_000)
def test_any_file_is_a_list_or_an_error_that_names_it(data: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        try:
            found = BlockList.load(file.name)
        except ValueError as error:
            message = str(error)
        else:
            message = f"{file.name}, line "
            assert len(found) <= len(data.splitlines())
        assert message.startswith(f"{file.name}, line ")


def test_a_file_has_a_rule_a_line(tmp_path: Path) -> None:
    path = tmp_path / "deny"
    path.write_text("# who is not wanted\n\n10.0.0.0/8  # all of it\n1.2.3.4-1.2.3.9\n")
    found = BlockList.load(path)
    assert len(found) == 2
    assert found.path == str(path)
    path.write_text("5.5.5.5\n")
    assert pickle.loads(pickle.dumps(found)).path == str(path)
    assert found.reload()
    assert found.rules == ["Address: IPv4 5.5.5.5"]
    path.write_text("6.6.6.6\n", encoding="utf-8-sig")  # some editors mark a file so
    assert found.reload()
    path.write_text("5.5.5.5\n")
    assert found.reload()
    path.write_text("5.5.5.5\n6.6.6\n")
    with pytest.raises(ValueError, match="line 2") as caught:
        found.reload()
    assert str(caught.value) == f"{path}, line 2: not an IP address: '6.6.6'"
    assert "5.5.5.5" in found
    path.write_bytes(b"5.5.5.5\n\xff\n")
    with pytest.raises(ValueError, match="line 2: not an IP address") as caught:
        found.reload()
    assert str(caught.value) == f"{path}, line 2: not an IP address: '\\\\xff'"
    path.unlink()
    with pytest.raises(FileNotFoundError):
        found.reload()


def test_what_may_stand_for_a_list(tmp_path: Path) -> None:
    found = BlockList(["1.2.3.4"])
    assert BlockList.of(found) is found
    (tmp_path / "list").write_text("1.2.3.4")
    assert "1.2.3.4" in BlockList.of(tmp_path / "list")
    assert "1.2.3.4" in BlockList.of(["1.2.3.4"])
    for wrong in ("1.2.3.4", b"1.2.3.4", 5):
        with pytest.raises(TypeError, match="a BlockList, a path or a list of rules, not"):
            BlockList.of(wrong)


def test_a_list_of_100000_rules_is_looked_up_as_quickly_as_one_of_ten() -> None:
    found = BlockList(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(100_000))
    assert len(found) == 100_000
    assert found._state.lengths == (128,)  # so many questions each look asks
    assert "10.1.134.159" in found
    assert json.loads(found.to_json())[-1] == "Address: IPv4 10.0.0.0"
