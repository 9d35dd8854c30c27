"""What is seen of a TLS stream without its keys: the ends of records, and the name in SNI."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netkit.tls.records import Records, server_name


@pytest.mark.fuzz
@given(
    sizes=st.lists(st.integers(0, 600), max_size=6),
    rest=st.binary(max_size=4),
    cuts=st.lists(st.integers(0, 700), max_size=20),
)
def test_the_ends_of_records_are_found_in_any_pieces(
    sizes: list[int], rest: bytes, cuts: list[int]
) -> None:
    records = Records()
    ends, stream = {0}, b""
    for size in sizes:
        stream += b"\x17\x03\x03" + size.to_bytes(2, "big") + bytes(size)
        ends.add(len(stream))
    stream += rest
    at = 0
    for cut in [*cuts, len(stream)]:
        records.feed(stream[at : at + cut])
        at = min(len(stream), at + cut)
        assert records.whole == (at in ends)


def client_hello(name: str | None, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> bytes:
    """What OpenSSL's client begins with."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.maximum_version = version
    context.set_alpn_protocols(["one", "two"])
    sent = ssl.MemoryBIO()
    session = context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        session.do_handshake()
    return sent.read()


HELLO = client_hello("example.org")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("name", [None, "example.org", "EXAMPLE.org", "x" * 60 + ".example.org"])
def test_the_name_is_the_one_that_the_client_sends(
    name: str | None, version: ssl.TLSVersion
) -> None:
    assert server_name(client_hello(name, version)) == name


def in_records(message: bytes, sizes: list[int]) -> bytes:
    records, at = b"", 0
    for size in [*sizes, len(message)]:
        part = message[at : at + size]
        if part:
            records += b"\x16\x03\x01" + len(part).to_bytes(2, "big") + part
        at += size
    return records


@pytest.mark.fuzz
@given(st.lists(st.integers(1, 40), max_size=20), st.binary(max_size=40))
def test_a_hello_may_be_spread_over_records_and_followed_by_more(
    sizes: list[int], more: bytes
) -> None:
    assert server_name(in_records(HELLO[5:], sizes) + more) == "example.org"


def test_a_part_of_a_hello_has_no_name() -> None:
    assert {server_name(HELLO[:end]) for end in range(len(HELLO))} == {None}


@pytest.mark.parametrize(
    "shown", [b"\xffxample.org", b"\x1b[31mle.org", b"exa\rple.org", b"exa\0ple.org", b" " * 0]
)
def test_a_name_that_is_not_printable_ascii_is_none(shown: bytes) -> None:
    good = (14).to_bytes(2, "big") + b"\0" + (11).to_bytes(2, "big") + b"example.org"
    assert HELLO.count(good) == 1
    bad = shown.ljust(11, b"x") if shown else b""
    hello = HELLO.replace(good, good[:5] + bad) if bad else HELLO.replace(good, bytes(16))
    assert server_name(hello) is None


def test_other_messages_records_and_kinds_of_names_have_no_name() -> None:
    name = b"\0" + (11).to_bytes(2, "big") + b"example.org"
    assert server_name(HELLO.replace(name, b"\1" + name[1:])) is None
    assert server_name(HELLO[:5] + b"\2" + HELLO[6:]) is None
    assert server_name(b"\x17" + HELLO[1:]) is None
    assert server_name(b"\x16\x03\x01\0\0" + HELLO) is None
    assert server_name(b"GET / HTTP/1.1\r\n\r\n") is None
    assert server_name(b"") is None
