"""Addresses of sockets: as values, and as text."""

from __future__ import annotations

import errno
import pickle
import socket
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netkit.core.addresses import SocketAddress, is_ip
from netkit.net.addresses import describe_peer


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

    monkeypatch.setattr(socket, "if_indextoname", if_indextoname)
    name = ("fe80::1", 80, 0, 7)
    address = SocketAddress.from_sockname(name)
    assert address == (shown, 80, "IPv6")
    assert describe_peer(name) == f"[{shown}]:80"
    assert SocketAddress.parse(str(address)) == address


def test_a_program_without_sockets_sees_the_number_of_a_zone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "socket")
    assert SocketAddress.from_sockname(("fe80::1", 80, 0, 7)) == ("fe80::1%7", 80, "IPv6")


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
    assert address == made == (address.address, address.port, address.family)
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
        assert is_ip(parsed.address) == {"IPv4": 4, "IPv6": 6}[parsed.family]
        assert SocketAddress.parse(str(parsed)) == parsed
        assert parsed.port == int(text.rpartition(":")[2])
