"""IP addresses and ports as text."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netkit.core import addresses
from netkit.core.addresses import check_port, format_address


def test_only_ipv6_gets_brackets() -> None:
    assert format_address("localhost", 8080) == "localhost:8080"
    assert format_address("::", 0) == "[::]:0"


def test_a_host_is_shown_in_one_printable_line() -> None:
    assert format_address("\x1b[31m\nred", 80) == "\\x1b[31m\\nred:80"
    assert format_address("b\u00fccher.example", 80) == "b\u00fccher.example:80"


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


# Pieces of addresses in any order, or any text.
pieces = [
    *("1", "0", "01", "255", "256", "80", "65536", "."),
    *(":", "::", "ffff", "fe80", "[", "]"),
]
pieces += ["%eth0", "%", " ", "\u0661", "x", "1.2.3.4", "::1", "[::1]:80", ":80"]
texts = st.one_of(st.lists(st.sampled_from(pieces), max_size=8).map("".join), st.text())


@pytest.mark.fuzz
@given(texts)
def test_any_text_is_an_ip_address_if_the_system_accepts_it(text: str) -> None:
    version = 0
    for number, family in ((4, socket.AF_INET), (6, socket.AF_INET6)):
        with contextlib.suppress(OSError, ValueError):
            socket.inet_pton(family, text)
            version = number
    if "%" not in text:
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
