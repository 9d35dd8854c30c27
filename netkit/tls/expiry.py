"""When a certificate ends. `ssl` tells this of the peer's certificate only, so it is parsed here.

A certificate is a tree of values (ITU-T X.690, DER). A value has a tag of one byte, its length, and
its contents.
"""

from __future__ import annotations

import binascii
import datetime
import re

_CERTIFICATE = re.compile(
    rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----([^-]+)-----END", re.DOTALL
)
_VERSION, _UTC_TIME = 0xA0, 0x17  # tags
_EPOCH = datetime.date(1970, 1, 1).toordinal()


def expiry_of(pem: bytes) -> int | None:
    """Return when the first certificate in `pem` ends (RFC 5280), in seconds since 1970.

    None if it cannot be parsed.
    """
    block = _CERTIFICATE.search(pem)
    try:
        return None if block is None else _not_after(binascii.a2b_base64(block[1]))
    except (ValueError, IndexError):
        return None


def day_of(expiry: int) -> str:
    """Return the day of a time in seconds since 1970, in UTC: ``2027-01-31``."""
    return datetime.date.fromordinal(_EPOCH + expiry // 86400).isoformat()


def _not_after(certificate: bytes) -> int:
    (_, whole), *_ = _values(certificate)
    (_, signed), *_ = _values(whole)
    fields = [value for tag, value in _values(signed) if tag != _VERSION]
    _, (tag, end) = _values(fields[3])  # after the serial number, the algorithm and the issuer
    text = end.decode("ascii")
    if tag == _UTC_TIME:  # two digits of the year: 1950 to 2049 (RFC 5280 section 4.1.2.5.1)
        text = ("19" if text >= "5" else "20") + text
    if not re.fullmatch("[0-9]{14}Z", text):
        raise ValueError("not a time")
    day = datetime.date(int(text[:4]), int(text[4:6]), int(text[6:8])).toordinal() - _EPOCH
    hours, minutes, seconds = int(text[8:10]), int(text[10:12]), int(text[12:14])
    return ((day * 24 + hours) * 60 + minutes) * 60 + seconds


def _values(data: bytes) -> list[tuple[int, bytes]]:
    """The tag and the contents of each value in `data`. IndexError or ValueError."""
    found = []
    position = 0
    while position < len(data):
        tag, length = data[position], data[position + 1]
        position += 2
        if length > 0x7F:  # the number of bytes that have the length
            size = length & 0x7F
            length = int.from_bytes(data[position : position + size], "big")
            position += size
        if position + length > len(data):
            raise ValueError("it is cut off")
        found.append((tag, data[position : position + length]))
        position += length
    return found
