"""When a certificate ends."""

from __future__ import annotations

import base64
import ssl
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from secure import files
from support import examples

from netkit.tls.context import TlsFiles, server_context
from netkit.tls.expiry import day_of, expiry_of


def value(tag: int, *contents: bytes) -> bytes:
    """A value of DER."""
    data = b"".join(contents)
    size = len(data).to_bytes(2, "big")
    return bytes([tag]) + (b"\x82" + size if len(data) > 127 else bytes([len(data)])) + data


def certificate(end: bytes, tag: int = 0x17, with_version: bool = True) -> bytes:
    """As much of a certificate as matters, in PEM."""
    version = value(0xA0, value(2, b"\2")) if with_version else b""
    validity = value(0x30, value(0x17, b"200101000000Z"), value(tag, end))
    issuer = value(0x30, b"x" * 300)
    signed = value(0x30, version, value(2, b"\1"), value(0x30), issuer, validity, value(0x30))
    return pem(value(0x30, signed, value(0x30), value(3, b"\0")))


def pem(der: bytes) -> bytes:
    body = base64.encodebytes(der)
    return b"-----BEGIN CERTIFICATE-----\n" + body + b"-----END CERTIFICATE-----\n"


@pytest.mark.parametrize(
    ("end", "tag", "expected"),
    [
        (b"260101123456Z", 0x17, "Jan  1 12:34:56 2026 GMT"),
        (b"991231235959Z", 0x17, "Dec 31 23:59:59 1999 GMT"),
        (b"20500229000000Z", 0x18, None),  # 2050 is no leap year
        (b"20520229000000Z", 0x18, "Feb 29 00:00:00 2052 GMT"),
        (b"2605", 0x17, None),
    ],
)
def test_the_end_is_read_from_both_kinds_of_time(end: bytes, tag: int, expected: Any) -> None:
    seconds = None if expected is None else ssl.cert_time_to_seconds(expected)
    assert expiry_of(certificate(end, tag)) == seconds
    assert expiry_of(certificate(end, tag, with_version=False)) == seconds


def test_the_first_certificate_of_a_file_counts_as_for_openssl() -> None:
    data = Path(files().server).read_bytes()
    decoded: Any = ssl._ssl._test_decode_cert(files().cert)  # type: ignore[attr-defined]
    assert expiry_of(data) == ssl.cert_time_to_seconds(decoded["notAfter"])
    assert expiry_of(data + certificate(b"200101000000Z")) == expiry_of(data)


def test_a_context_knows_when_the_certificate_of_each_name_ends() -> None:
    context: Any = server_context(
        TlsFiles(files().server, sni={"a.example": (files().cert, files().key)})
    )
    assert context.expiry == expiry_of(Path(files().server).read_bytes())
    assert context.named["a.example"].expiry == expiry_of(Path(files().cert).read_bytes())


@examples(100)
@given(st.binary(max_size=300), st.integers(0, 500))
def test_what_is_no_certificate_has_no_end(data: bytes, length: int) -> None:
    whole = certificate(b"260101123456Z")
    der = base64.b64decode(whole.split(b"-----")[2])
    assert expiry_of(data) is None
    assert expiry_of(pem(data)) is None
    assert expiry_of(pem(der[:length])) in (None, expiry_of(whole))
    expiry_of(pem(der[:length] + data + der[length:]))  # raises nothing


def test_the_day_of_a_time_is_that_of_utc() -> None:
    assert [day_of(each) for each in (0, 86399, 86400, 4102444800)] == [
        *("1970-01-01", "1970-01-01", "1970-01-02", "2100-01-01")
    ]
