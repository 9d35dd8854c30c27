"""PROXY headers: what is valid, and what is said about the rest."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import examples

from netkit.core import proxytlvs
from netkit.core.addresses import SocketAddress, parse_ip
from netkit.core.errors import PeerError, ProxyHeaderError
from netkit.core.proxyheader import ProxyHeader, ProxyHeaderParser
from netkit.core.proxytlvs import ProxyTls, crc32c

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
CLIENT, SERVER = SocketAddress("192.0.2.7", 50312), SocketAddress("198.51.100.1", 443)
CLIENT6, SERVER6 = SocketAddress("2001:db8::7", 50312), SocketAddress("2001:db8::1", 443)
V4 = bytes([192, 0, 2, 7, 198, 51, 100, 1, 0xC4, 0x88, 1, 0xBB])
TLS = ProxyTls("TLSv1.3", "TLS_AES_128_GCM_SHA256", "client.example", True, b"\x30\x82")


def v2(kind: int, family: int, block: bytes = b"", tlvs: bytes = b"") -> bytes:
    """A header of version 2. `kind` is its command, with the version in the high bits."""
    body = block + tlvs
    return SIGNATURE + bytes([kind, family]) + len(body).to_bytes(2, "big") + body


def line(text: str) -> bytes:
    return f"PROXY {text}\r\n".encode("latin-1")


def fields(*given: tuple[int, bytes]) -> bytes:
    return proxytlvs.join(given)


VALID = {
    line("TCP4 192.0.2.7 198.51.100.1 50312 443"): (CLIENT, SERVER),
    line("TCP4 0.0.0.0 255.255.255.255 0 65535"): (("0.0.0.0", 0), ("255.255.255.255", 65535)),
    line("TCP6 2001:DB8:0::7 2001:db8::1 50312 443"): (CLIENT6, SERVER6),
    line("TCP6 " + " ".join(["ffff:" * 7 + "ffff"] * 2) + " 65535 65535"): (
        (":".join(["ffff"] * 8), 65535),
        (":".join(["ffff"] * 8), 65535),
    ),
    line("TCP6 192.0.2.7 2001:db8::1 50312 443"): (CLIENT, SERVER6),  # as nginx writes it
    line("TCP6 ::ffff:192.0.2.7 2001:db8::1 50312 443"): (CLIENT, SERVER6),
    line("UNKNOWN"): (None, None),
    line("UNKNOWN " + "f" * 91): (None, None),
    line("UNKNOWN a\nb\rc \xff"): (None, None),
    v2(0x21, 0x11, V4): (CLIENT, SERVER),
    v2(0x21, 0x11, V4, fields((4, bytes(300)))): (CLIENT, SERVER),
    v2(0x21, 0x21, bytes(10) + b"\xff\xff\xc0\0\2\7" + bytes(15) + b"\1" + V4[8:]): (
        CLIENT,
        ("::1", 443),
    ),
    v2(0x21, 0x31, b"/a".ljust(108, b"\0") + b"\0b".ljust(108, b"\0")): ("/a", "\0b"),
    v2(0x21, 0x31, bytes(108) + b"/" * 108): ("", "/" * 108),
    v2(0x20, 0x00): (None, None),
    v2(0x20, 0x11, V4): (None, None),  # a check, with addresses that count for nothing
    v2(0x20, 0xFF, b"anything"): (None, None),
    v2(0x21, 0x00): (None, None),
    v2(0x21, 0x12, V4): (None, None),  # datagrams
    v2(0x21, 0x01, b"\x03\0"): (None, None),
}

INVALID = {
    b"GET / HTTP/1.1\r\n": "no PROXY header: 'GET / HTTP/1.1'",
    b"\x16\x03\x01": r"no PROXY header: '\x16\x03\x01'",
    b"\r\n\r\n\0\r\nQUIX": r"no PROXY header: '\r\n\r\n\x00\r\nQUIX'",
    b"PROXY\t": r"no PROXY header: 'PROXY\t'",
    b"proxy ": "no PROXY header: 'proxy '",
    b"x" * 99: f"no PROXY header: '{'x' * 40}'",
    line("TCP"): "its protocol is none of TCP4, TCP6 and UNKNOWN",
    line("UDP4 1.2.3.4 1.2.3.4 1 2"): "its protocol is none of",
    line("UNKNOWNX"): "its protocol is none of",
    line("UNKNOWNX 1.2.3.4 1.2.3.4 1 2"): "its protocol is none of",
    line("UNKNOWN\r"): "its protocol is none of",
    b"PROXY UNKNOWN\n": "its protocol is none of",
    line("UNKNOWN " + "f" * 92): "a line of more than 107 bytes",
    line("TCP4 1.2.3.4 1.2.3.4 1"): "not two addresses and two ports",
    line("TCP4 1.2.3.4 1.2.3.4 1 2 3"): "not two addresses and two ports",
    line("TCP4  1.2.3.4 1.2.3.4 1 2"): "not two addresses and two ports",
    line("TCP4 1.2.3.4 1.2.3.4 1 2 "): "not two addresses and two ports",
    line("TCP4 1.2.3.4 1.2.3.4 01 2"): "not two addresses and two ports",
    line("TCP4 1.2.3.4 1.2.3.4 1 65536"): "not two addresses and two ports",
    line("TCP4 1.2.3.4 1.2.3.4 +1 2"): "not two addresses and two ports",
    line("TCP4 1.2.3.4 1.2.3.4 1_0 2"): "not two addresses and two ports",
    line("TCP4 1.2.3.4 1.2.3.4 1 \xb2"): "not two addresses and two ports",
    line("TCP4 1.2.3.04 1.2.3.4 1 2"): "'1.2.3.04' is no IPv4 address",
    line("TCP4 1.2.3 1.2.3.4 1 2"): "'1.2.3' is no IPv4 address",
    line("TCP4 ::1 1.2.3.4 1 2"): "'::1' is no IPv4 address",
    line("TCP6 fe80::1%1 ::1 1 2"): "'fe80::1%1' is no IPv6 address",
    line("TCP6 ::1 1::2::3 1 2"): "'1::2::3' is no IPv6 address",
    b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n": "characters that are in no address",
    b"PROXY TCP4 1.2.3.4\r1": "characters that are in no address",
    b"PROXY TCP4 " + b"1" * 96: "a line of more than 107 bytes",
    SIGNATURE + b"\x11": "its version is 1, neither 1 nor 2",
    SIGNATURE + b"\x22": "its command is 2, neither LOCAL nor PROXY",
    v2(0x21, 0x41): "its family and transport are 0x41",
    v2(0x21, 0x13, V4): "its family and transport are 0x13",
    v2(0x21, 0x11, V4[:-1]): "it is too short for its addresses",
    v2(0x21, 0x21, V4): "it is too short for its addresses",
    v2(0x21, 0x31, bytes(215)): "it is too short for its addresses",
    SIGNATURE + b"\x21\x11\x3f\xf1": "it has 16385 bytes, where 16384 are allowed",
    v2(0x21, 0x11, V4, b"\x04"): "a field of it is longer than the header",
    v2(0x21, 0x11, V4, b"\x04\x00\x01"): "a field of it is longer than the header",
    v2(0x21, 0x11, V4, fields((1, b"\xff"))): "the field 0x01 is no text in UTF-8",
    v2(0x21, 0x11, V4, fields((2, b"\xff"))): "the field 0x02 is no text in UTF-8",
    v2(0x21, 0x11, V4, fields((5, bytes(129)))): "its unique ID is longer than 128 bytes",
    v2(0x21, 0x11, V4, fields((3, b"crc?"))): "its checksum is wrong",
    v2(0x21, 0x11, V4, fields((3, b"crc"))): "its checksum is wrong",
    v2(0x20, 0x00, b"", fields((3, b"crc?"))): "its checksum is wrong",
    v2(0x21, 0x11, V4, fields((0x20, bytes(4)))): "its field about TLS is too short",
    v2(0x21, 0x11, V4, fields((0x20, bytes(5) + b"\x21"))): "a field of it is longer",
    v2(0x21, 0x11, V4, fields((0x20, bytes(5) + fields((0x22, b"\xe4"))))): "0x22 is no text",
    b"": "it is incomplete, after 0 bytes",
    line("UNKNOWN")[:-1]: "it is incomplete, after 14 bytes",
    v2(0x20, 0)[:15]: "it is incomplete, after 15 bytes",
    line("UNKNOWN") + b"hello": "5 bytes follow it",
}


@pytest.mark.parametrize(("data", "ends"), VALID.items())
def test_a_valid_header_gives_both_ends(data: bytes, ends: tuple[Any, Any]) -> None:
    header = ProxyHeader.parse(data)
    source, destination = ends
    assert header.source == (SocketAddress(*source) if isinstance(source, tuple) else source)
    assert header.destination == (
        SocketAddress(*destination) if isinstance(destination, tuple) else destination
    )
    assert header.version == (1 if data.startswith(b"PROXY") else 2)
    assert header.command == ("LOCAL" if data[12:13] == b"\x20" else "PROXY")


@pytest.mark.parametrize(("data", "message"), INVALID.items())
def test_an_invalid_header_is_an_error_that_says_why(data: bytes, message: str) -> None:
    with pytest.raises(ProxyHeaderError) as caught:
        ProxyHeader.parse(data)
    assert message in str(caught.value)
    assert str(caught.value).startswith(("no PROXY header: ", "an invalid PROXY header: "))
    assert isinstance(caught.value, PeerError)


def outcome(*pieces: bytes) -> Any:
    """The header, or the class of the error, and what of the pieces follows the header."""
    parser, rest = ProxyHeaderParser(), b""
    try:
        for piece in pieces:
            rest += piece[parser.feed(piece) :]
    except ProxyHeaderError as error:
        return type(error)
    return parser.header, rest


@pytest.mark.parametrize("data", [*VALID, *INVALID])
def test_each_split_of_a_header_gives_the_same_result(data: bytes) -> None:
    data += b"\r\nhello"
    whole = outcome(data)
    assert outcome(*(data[at : at + 1] for at in range(len(data)))) == whole
    for at in range(len(data)):
        assert outcome(data[:at], data[at:]) == whole


@pytest.mark.parametrize("data", [b"G", b"PROXY T", SIGNATURE[:3], b""])
def test_what_may_become_a_header_or_not_is_decided_by_its_first_wrong_byte(data: bytes) -> None:
    parser = ProxyHeaderParser()
    if data == b"G":
        with pytest.raises(ProxyHeaderError):
            parser.feed(data)
    else:
        assert parser.feed(data) == len(data)
        assert parser.header is None


_BYTES = st.binary(max_size=40)
_NEARLY = st.builds(
    lambda start, kind, family, size, rest: start + bytes([kind, family]) + size + rest,
    st.just(SIGNATURE),
    st.sampled_from([0x20, 0x21, 0x22, 0x31]),
    st.sampled_from([0x00, 0x11, 0x12, 0x21, 0x31, 0x41]),
    st.sampled_from([b"\0\0", b"\0\x0c", b"\0\x20", b"\0\x40", b"\xff\xff"]),
    st.binary(max_size=80),
)
_LINES = st.builds(
    lambda text: b"PROXY " + text.encode("latin-1"),
    st.text(st.sampled_from("TCP46UNKNOW 0123456789abcdef:.\r\n%+"), max_size=120),
)


@pytest.mark.fuzz
@examples(300)
@given(st.one_of(_BYTES, _NEARLY, _LINES), st.integers(0, 100))
def test_random_bytes_raise_nothing_but_the_one_error(data: bytes, at: int) -> None:
    whole = outcome(data)
    assert outcome(data[:at], data[at:]) == whole
    try:
        header = ProxyHeader.parse(data)
    except ProxyHeaderError:
        return
    assert ProxyHeader.parse(header.encode(2, crc=True)).source == header.source


_IPS = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)
_ENDS = st.builds(SocketAddress, _IPS, st.integers(0, 65535), st.none())
_PATHS = st.sampled_from(["", "/run/a", "\0name", "/ä"])


@pytest.mark.fuzz
@examples(100)
@given(
    st.one_of(st.tuples(_ENDS, _ENDS), st.tuples(_PATHS, _PATHS), st.just((None, None))),
    st.dictionaries(st.integers(0xE0, 0xFF), st.binary(max_size=20), max_size=3),
    st.booleans(),
)
def test_what_is_written_is_read_again(ends: Any, tlvs: dict[int, bytes], crc: bool) -> None:
    header = ProxyHeader(*ends, tlvs=tlvs)
    again = ProxyHeader.parse(header.encode(crc=crc))
    known = {kind: value for kind, value in again.tlvs.items() if kind != proxytlvs.CRC32C}
    assert [str(end) for end in again[:2]] == [_canonical(end) for end in ends]
    assert known == tlvs
    assert (proxytlvs.CRC32C in again.tlvs) == crc
    first = ProxyHeader.parse(header.encode(1))
    assert first[:2] == (again[:2] if isinstance(ends[0], SocketAddress) else (None, None))


def _canonical(end: Any) -> str:
    """An address of IPv4 in the IPv6 form is that of IPv4."""
    if isinstance(end, SocketAddress):
        packed = parse_ip(end.address) or b""
        if packed.startswith(bytes(10) + b"\xff\xff"):
            return str(SocketAddress(".".join(map(str, packed[12:])), end.port))
    return str(end)


def test_the_further_fields_have_names() -> None:
    header = ProxyHeader(
        CLIENT,
        ("198.51.100.1", 443),
        alpn="h2",
        authority="example.org",
        unique_id=b"17-4",
        tls=TLS,
        tlvs={0xEE: b"azure"},
    )
    again = ProxyHeader.parse(header.encode(crc=True))
    assert (again.alpn, again.authority, again.unique_id) == ("h2", "example.org", b"17-4")
    assert again.tls == TLS
    assert again.tlvs[0xEE] == b"azure"
    assert again.source == CLIENT
    assert (header.via, again.via) == (None, None)
    version_alone = ProxyTls("TLSv1.2")
    assert ProxyHeader(tls=version_alone).tls == version_alone
    bare = ProxyHeader()
    assert (bare.alpn, bare.authority, bare.unique_id, bare.tls) == (None, None, None, None)


@pytest.mark.parametrize(
    ("value", "tls"),
    [
        (b"\0\0\0\0\0", None),  # a client without TLS
        (b"\1\0\0\0\0", ProxyTls()),  # no certificate, with which nothing is wrong
        (b"\3\0\0\0\0", ProxyTls(verified=True)),
        (b"\5\0\0\0\0", ProxyTls(verified=True)),
        (b"\3\0\0\0\1", ProxyTls()),
    ],
)
def test_a_client_is_verified_only_if_it_has_presented_a_certificate(
    value: bytes, tls: ProxyTls | None
) -> None:
    header = ProxyHeader.parse(v2(0x21, 0x11, V4, fields((0x20, value))))
    assert header.tls == tls


def test_a_check_keeps_the_fields_behind_its_addresses_if_they_are_valid() -> None:
    data = v2(0x20, 0x11, V4, fields((5, b"id")))
    assert ProxyHeader.parse(data).unique_id == b"id"
    for wrong in (b"\5\0", fields((2, b"\xff"))):
        assert ProxyHeader.parse(v2(0x20, 0x11, V4, wrong)).tlvs == {}


def test_version_1_has_addresses_alone() -> None:
    assert ProxyHeader(CLIENT, SERVER, alpn="h2").encode(1) == (
        b"PROXY TCP4 192.0.2.7 198.51.100.1 50312 443\r\n"
    )
    assert ProxyHeader(CLIENT, SERVER6, version=1).encode() == (
        b"PROXY TCP6 ::ffff:192.0.2.7 2001:db8::1 50312 443\r\n"
    )
    zoned = SocketAddress("fe80::1%eth0", 1)
    assert ProxyHeader(zoned, zoned).encode(1) == b"PROXY TCP6 fe80::1 fe80::1 1 1\r\n"
    assert ProxyHeader("/a", "/b").encode(1) == b"PROXY UNKNOWN\r\n"
    assert ProxyHeader(command="LOCAL").encode(1) == b"PROXY UNKNOWN\r\n"


def test_a_header_of_version_2_has_these_bytes() -> None:
    assert ProxyHeader(CLIENT, SERVER).encode() == v2(0x21, 0x11, V4)
    assert ProxyHeader(command="LOCAL").encode() == v2(0x20, 0)
    assert ProxyHeader().encode() == v2(0x21, 0)


def test_the_checksum_is_that_of_castagnoli() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    header = ProxyHeader.parse(ProxyHeader(CLIENT, SERVER).encode(crc=True))
    assert ProxyHeader.parse(header.encode(crc=True)) == header  # the old one is not repeated
    assert header.encode() == v2(0x21, 0x11, V4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"command": "local"}, ValueError, "command must be 'PROXY' or 'LOCAL', not 'local'"),
        ({"version": 3}, ValueError, "version must be 1 or 2, not 3"),
        ({"source": CLIENT}, ValueError, "addresses of one kind, or both None"),
        ({"source": CLIENT, "destination": "/a"}, ValueError, "addresses of one kind"),
        ({"source": 7}, TypeError, "source must be a SocketAddress, a path or None, not 7"),
        ({"source": ("x", 1)}, ValueError, "not an IP address: 'x'"),
        (
            {"source": CLIENT, "destination": SERVER, "command": "LOCAL"},
            ValueError,
            "a LOCAL header has no addresses",
        ),
        ({"tlvs": {256: b""}}, ValueError, "the type of a field is from 0 to 255, not 256"),
        ({"tlvs": {1: "h2"}}, TypeError, "a field has a number and bytes, not 1 and 'h2'"),
        ({"unique_id": bytes(129)}, ValueError, "longer than 128 bytes"),
    ],
)
def test_a_header_is_made_of_valid_parts(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ProxyHeader(**arguments)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (ProxyHeader(tlvs={0xE0: bytes(65536)}), "the field 0xe0 has 65536 bytes, and 65535 fit"),
        (ProxyHeader(tlvs={0xE0: bytes(16384)}), "has 16403 bytes, where 16384 are allowed"),
        (ProxyHeader("/" * 109, ""), "a path of 109 bytes, where 108 are allowed"),
    ],
)
def test_what_does_not_fit_into_a_header_is_an_error(header: ProxyHeader, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        header.encode()
    with pytest.raises(ValueError, match="version must be 1 or 2, not 0"):
        header.encode(0)


def test_a_header_is_a_value() -> None:
    header = ProxyHeader(CLIENT, SERVER, authority="example.org")
    assert pickle.loads(pickle.dumps(header)) == header == copy.deepcopy(header)
    assert header._replace(via=SERVER).via == SERVER
    assert ProxyHeaderParser().feed(header.encode() + b"rest") == len(header.encode())
    parser = ProxyHeaderParser()
    parser.feed(header.encode())
    assert parser.feed(b"more") == 0
