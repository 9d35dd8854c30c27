"""Addresses and ports as values."""

from __future__ import annotations

import errno
import ipaddress
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netkit.core import addresses
from netkit.core.addresses import SocketAddress, check_port, describe_peer, format_address


@pytest.mark.parametrize(
    ("name", "address", "text"),
    [
        (("127.0.0.1", 80), SocketAddress("127.0.0.1", 80, "IPv4"), "127.0.0.1:80"),
        (("::1", 80, 0, 0), SocketAddress("::1", 80, "IPv6"), "[::1]:80"),
        (("fe80::1%lo", 1, 0, 1), SocketAddress("fe80::1%lo", 1, "IPv6"), "[fe80::1%lo]:1"),
    ],
)
def test_a_socket_name_becomes_an_address(name: Any, address: SocketAddress, text: str) -> None:
    assert SocketAddress.from_sockname(name) == address
    assert str(address) == text
    assert describe_peer(name) == text


@pytest.mark.parametrize(
    ("interface", "shown"),
    [
        ("eth0", "fe80::1%eth0"),
        ("br_lan.1", "fe80::1%br_lan.1"),
        ("a b", "fe80::1%7"),
        (None, "fe80::1%7"),
    ],
)
def test_a_link_local_address_has_the_interface_as_its_zone_or_else_its_number(
    monkeypatch: pytest.MonkeyPatch, interface: str | None, shown: str
) -> None:
    def if_indextoname(index: int) -> str:
        assert index == 7
        if interface is None:
            raise OSError(errno.ENXIO, "No such device or address")
        return interface

    monkeypatch.setattr(addresses.socket, "if_indextoname", if_indextoname)
    name = ("fe80::1", 80, 0, 7)
    address = SocketAddress.from_sockname(name)
    assert address == (shown, 80, "IPv6")
    assert describe_peer(name) == f"[{shown}]:80"
    assert SocketAddress.parse(str(address)) == address


@pytest.mark.parametrize("name", ["", "/run/x.sock", b"\0abstract", None, (), ("alone",)])
def test_the_name_of_a_unix_socket_has_no_address(name: Any) -> None:
    assert SocketAddress.from_sockname(name) is None


def test_an_ipv4_client_of_an_ipv6_listener_is_shown_by_its_ipv4_address() -> None:
    name = ("::ffff:192.0.2.1", 80, 0, 0)
    assert SocketAddress.from_sockname(name) == SocketAddress("192.0.2.1", 80, "IPv4")
    assert describe_peer(name) == "192.0.2.1:80"
    other = ("::ffff:c000:201:1", 80, 0, 0)  # no IPv4 address
    assert describe_peer(other) == "[::ffff:c000:201:1]:80"


@pytest.mark.parametrize("address", [7, ("alone",)])
def test_an_address_of_an_unknown_kind_is_shown_unchanged(address: Any) -> None:
    assert describe_peer(address) == str(address)


def test_an_address_can_be_taken_apart() -> None:
    address, port, family = SocketAddress("::1", 80, "IPv6")
    assert (address, port, family) == ("::1", 80, "IPv6")


@pytest.mark.parametrize(
    ("arguments", "made"),
    [
        ((), ("127.0.0.1", 0, "IPv4")),
        ((None, "80", "ipv6"), ("::", 80, "IPv6")),
        (("::1", 80), ("::1", 80, "IPv6")),
        (("1.2.3.4", 80, "IPV4"), ("1.2.3.4", 80, "IPv4")),
    ],
)
def test_the_parts_of_an_address_have_defaults(arguments: Any, made: tuple[Any, ...]) -> None:
    address = SocketAddress(*arguments)
    assert address == made
    assert pickle.loads(pickle.dumps(address)) == address
    assert address._replace(port=1) == SocketAddress(made[0], 1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("localhost",), ValueError, "not an IP address: 'localhost'"),
        ((5,), ValueError, "not an IP address: 5"),
        (("::1", 80, "IPv4"), ValueError, "not an IPv4 address: '::1'"),
        (("::1", 80, "unix"), ValueError, "family must be IPv4 or IPv6, not 'unix'"),
        (("::1", 80, 6), ValueError, "family must be IPv4 or IPv6, not 6"),
        (("::1", 65536), ValueError, "port must be a number from 0 to 65535, not 65536"),
        (("::1", None), TypeError, "port must be a number from 0 to 65535, not None"),
    ],
)
def test_an_invalid_address_is_named_in_the_error(
    arguments: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        SocketAddress(*arguments)
    assert str(caught.value) == message


def test_only_ipv6_gets_brackets() -> None:
    assert format_address("localhost", 8080) == "localhost:8080"
    assert format_address("::", 0) == "[::]:0"


def test_a_host_is_shown_in_one_printable_line() -> None:
    assert format_address("\x1b[31m\nred", 80) == "\\x1b[31m\\nred:80"
    assert format_address("b\u00fccher.example", 80) == "b\u00fccher.example:80"


@pytest.mark.parametrize(
    ("client_address", "shown"),
    [
        (None, "unix"),
        ("", "unix"),
        (b"", "unix"),
        ("/run/client.sock", "unix:/run/client.sock"),
        (b"/run/\xff", r"unix:/run/\udcff"),
        (b"\0name\0", r"@name\x00"),
        ("\0name", "@name"),
    ],
)
def test_a_unix_client_is_shown_by_its_path_if_it_has_one(client_address: Any, shown: str) -> None:
    assert describe_peer(client_address) == shown


@pytest.mark.fuzz
@given(st.text(st.characters()))
def test_a_path_that_a_client_has_chosen_is_shown_in_one_printable_line(path: str) -> None:
    assert describe_peer(path).isprintable()


@pytest.mark.parametrize(
    ("port", "expected"),
    [(0, 0), (65535, 65535), ("0", 0), ("8080", 8080), ("65535", 65535), ("0080", 80)],
)
def test_a_port_may_be_a_number_or_digits(port: int | str, expected: int) -> None:
    assert check_port(port) == expected


@pytest.mark.parametrize(
    ("port", "shown"),
    [(-1, "-1"), (65536, "65536"), ("65536", "65536"), ("9" * 5000, "999999")],
)
def test_a_port_out_of_range_is_a_value_error(port: int | str, shown: str) -> None:
    with pytest.raises(ValueError, match=rf"^port must be a number from 0 to 65535, not {shown}$"):
        check_port(port)


@pytest.mark.parametrize("port", ["", " ", "abc", "-1", "+1", "0x50", "8 0", "1.5", "٨", "²", "\0"])
def test_a_port_that_is_no_number_is_a_value_error(port: str) -> None:
    with pytest.raises(ValueError, match="^port must be a number from 0 to 65535, not ") as caught:
        check_port(port)
    assert repr(port) in str(caught.value)


@pytest.mark.parametrize("port", [None, True, False, 80.0, b"80", [80], float("nan")])
def test_a_port_of_another_type_is_a_type_error(port: Any) -> None:
    with pytest.raises(TypeError, match="^port must be a number from 0 to 65535, not "):
        check_port(port)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("127.0.0.1", 4),
        ("::1", 6),
        ("::ffff:1.2.3.4", 6),
        ("fe80::1%eth0", 6),
        ("fe80::1%br_lan", 6),
        ("::1%", 0),
        ("::1%a b", 0),
        ("1.2.3.4%eth0", 0),
        ("01.2.3.4", 0),
        (" 1.2.3.4", 0),
        ("1.2.3.4/8", 0),
        ("1.2.3", 0),
        ("localhost", 0),
        ("", 0),
        ("1.2.3.4\0", 0),
        ("\u0661.2.3.4", 0),
        ("fe80::1%eth0@1", 0),
        (None, 0),
        (5, 0),
    ],
)
def test_only_ip_addresses_are_recognized(text: Any, version: int) -> None:
    assert addresses.is_ip(text) == version
    assert addresses.is_ipv4(text) == (version == 4)
    assert addresses.is_ipv6(text) == (version == 6)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("1.2.3.4:80", ("1.2.3.4", 80, "IPv4")),
        ("[::1]:80", ("::1", 80, "IPv6")),
        ("[::1]", None),
        ("::1:80", None),
        ("[1.2.3.4]:80", None),
        ("1.2.3.4:65536", None),
        ("1.2.3.4:", None),
        ("1.2.3.4:+1", None),
        ("1.2.3.4:\u00b2", None),
        ("1.2.3.4", None),
        ("256.1.1.1:80", None),
    ],
)
def test_a_socket_address_is_parsed(text: str, parsed: Any) -> None:
    assert SocketAddress.parse(text) == parsed


# Pieces of addresses in any order, or any text.
pieces = [
    *("1", "0", "01", "255", "256", "80", "65536", "."),
    *(":", "::", "ffff", "fe80", "[", "]"),
]
pieces += ["%eth0", "%", " ", "\u0661", "x", "1.2.3.4", "::1", "[::1]:80", ":80"]
texts = st.one_of(st.lists(st.sampled_from(pieces), max_size=8).map("".join), st.text())


@pytest.mark.fuzz
@given(texts)
def test_any_text_is_parsed_and_shown_in_the_same_way_or_is_no_address(text: str) -> None:
    parsed = SocketAddress.parse(text)
    if parsed is not None:
        assert addresses.is_ip(parsed.address) == {"IPv4": 4, "IPv6": 6}[parsed.family]
        assert SocketAddress.parse(str(parsed)) == parsed
        assert parsed.port == int(text.rpartition(":")[2])


@pytest.mark.fuzz
@given(texts)
def test_any_text_is_an_ip_address_if_pythons_module_accepts_it(text: str) -> None:
    try:
        version = ipaddress.ip_address(text).version
    except ValueError:
        version = 0
    if "%" not in text:  # our rule for zones is stricter
        assert addresses.is_ip(text) == version
    assert addresses.network_of(text) or not text


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("1.2.3.4", "1.2.3.4"),
        ("::ffff:1.2.3.4", "1.2.3.4"),
        ("64:ff9b::1.2.3.4", "1.2.3.4"),  # or all IPv4 clients of a translator would be one
        ("64:ff9b:0:0:1::1", "64:ff9b::/64"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("x:y", "x:y"),
    ],
)
def test_limits_per_address_use_the_network_of_ipv6(address: str, network: str) -> None:
    assert addresses.network_of(address) == network


@pytest.mark.parametrize(
    ("network", "site"),
    [
        ("1.2.3.4", None),
        ("x:y", None),
        ("2001:db8:1:2::/64", "2001:db8:1::/48"),
        ("::/64", "::/48"),
    ],
)
def test_a_network_of_ipv6_belongs_to_a_site(network: str, site: str | None) -> None:
    assert addresses.site_of(network) == site


@pytest.mark.parametrize(
    ("address", "needed"),
    [("fe80::1", True), ("febf::", True), ("fe80::1%lo", False), ("fec0::1", False)]
    + [(other, False) for other in ("ff80::1", "254.128.0.1", "localhost", "")],
)
def test_a_link_local_address_needs_its_zone(address: str, needed: bool) -> None:
    assert addresses.needs_zone(address) is needed


@pytest.mark.parametrize(
    ("port", "kind", "hint"),
    [
        ("localhost", ValueError, True),
        (("localhost", 80), TypeError, True),
        ("99999", ValueError, False),
        ("8 0", ValueError, False),
        (None, TypeError, False),
    ],
)
def test_the_error_of_a_host_in_the_place_of_the_port_says_so(
    port: Any, kind: type[Exception], hint: bool
) -> None:
    with pytest.raises(kind, match="^port must be a number from 0 to 65535, not ") as caught:
        addresses.check_first_port(port)
    assert str(caught.value).endswith("; the port comes first, and then the host") is hint
    assert addresses.check_first_port("80") == 80
