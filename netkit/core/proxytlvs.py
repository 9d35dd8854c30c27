"""The fields behind the addresses of a PROXY header of version 2: type, length and value (TLV).

The rules are those of HAProxy's doc/proxy-protocol.txt, sections 2.2.1 to 2.2.7. A function raises
`ProxyHeaderError` for a header that breaks one of them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping

from .errors import ProxyHeaderError
from .record import NamedTuple

ALPN, AUTHORITY, CRC32C, UNIQUE_ID, SSL = 0x01, 0x02, 0x03, 0x05, 0x20
_VERSION, _COMMON_NAME, _CIPHER, _CERTIFICATE = 0x21, 0x22, 0x23, 0x28  # within SSL

HEAD = 3  # bytes before a value: its type and its length
MOST_VALUE = 0xFFFF
MOST_UNIQUE_ID = 128
_CHECKSUM = 4  # bytes

# The bits of the field `client` of an SSL value.
_HAS_TLS, _CERTIFICATE_NOW, _CERTIFICATE_BEFORE = 1, 2, 4  # before: in the session that is resumed
_SSL_HEAD = 5  # bytes before the fields within it: `client`, and the result of the verification


def invalid(why: str) -> ProxyHeaderError:
    """Return the error for a header that begins as one and breaks a rule."""
    return ProxyHeaderError(f"an invalid PROXY header: {why}")


class ProxyTls(NamedTuple):
    """The TLS between a client and the proxy that has ended it, as the proxy reports it.

    `version` and `cipher` are names such as ``TLSv1.3``. `common_name` is that of the client's
    certificate, and `verified` tells whether the client has presented a certificate that the proxy
    has verified. `certificate_der` is that certificate. What the proxy does not report is None.
    """

    version: str | None = None
    cipher: str | None = None
    common_name: str | None = None
    verified: bool = False
    certificate_der: bytes | None = None


def split(data: bytes, start: int = 0) -> Iterator[tuple[int, int, bytes]]:
    """The type, the offset of the value and the value of each field in `data`, from `start` on."""
    while start < len(data):
        begin = start + HEAD
        start = begin + int.from_bytes(data[begin - 2 : begin], "big")
        if len(data) < max(begin, start):
            raise invalid("a field of it is longer than the header")
        yield data[begin - HEAD], begin, data[begin:start]


def join(fields: Iterable[tuple[int, bytes]]) -> bytes:
    """Return the fields as bytes. ValueError if a value is too long."""
    parts = []
    for kind, value in fields:
        if len(value) > MOST_VALUE:
            raise ValueError(f"the field {kind:#04x} has {len(value)} bytes, and {MOST_VALUE} fit")
        parts.append(bytes([kind]) + len(value).to_bytes(2, "big") + value)
    return b"".join(parts)


def read(header: bytes, start: int) -> dict[int, bytes]:
    """Return the values of a whole header by their types. `start` is where its fields begin.

    The checksum is verified, and nothing else; of several values of one type, the last one counts.
    """
    found = {}
    for kind, at, value in split(header, start):
        if kind == CRC32C:
            _verify(header, at, value)
        found[kind] = value
    return found


def check(fields: Mapping[int, bytes]) -> None:
    """Check the values whose form the protocol determines."""
    text_of(fields, ALPN)
    text_of(fields, AUTHORITY)
    tls_of(fields)
    if len(fields.get(UNIQUE_ID, b"")) > MOST_UNIQUE_ID:
        raise invalid(f"its unique ID is longer than {MOST_UNIQUE_ID} bytes")


def text_of(fields: Mapping[int, bytes], kind: int) -> str | None:
    """Return a value that is text in UTF-8; None if there is none."""
    value = fields.get(kind)
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        raise invalid(f"the field {kind:#04x} is no text in UTF-8") from None


def tls_of(fields: Mapping[int, bytes]) -> ProxyTls | None:
    """Return what an SSL value says; None if there is none, or the client does not speak TLS."""
    value = fields.get(SSL)
    if value is None:
        return None
    if len(value) < _SSL_HEAD:
        raise invalid("its field about TLS is too short")
    within = {kind: part for kind, _, part in split(value, _SSL_HEAD)}
    version, name, cipher = (text_of(within, it) for it in (_VERSION, _COMMON_NAME, _CIPHER))
    # The result is 0 also for a client that has presented no certificate.
    is_certified = value[0] & (_CERTIFICATE_NOW | _CERTIFICATE_BEFORE) != 0
    verified = is_certified and not any(value[1:_SSL_HEAD])
    found = ProxyTls(version, cipher, name, verified, within.get(_CERTIFICATE))
    return found if value[0] & _HAS_TLS else None


def ssl_value(tls: ProxyTls) -> bytes:
    """Return the value of the type SSL that says what `tls` does. ValueError if it is too long."""
    is_certified = tls.verified or tls.common_name is not None or tls.certificate_der is not None
    client = _HAS_TLS | (_CERTIFICATE_NOW if is_certified else 0)
    texts = ((_VERSION, tls.version), (_COMMON_NAME, tls.common_name), (_CIPHER, tls.cipher))
    fields = [(kind, text.encode()) for kind, text in texts if text is not None]
    if tls.certificate_der is not None:
        fields.append((_CERTIFICATE, tls.certificate_der))
    return bytes([client]) + int(not tls.verified).to_bytes(4, "big") + join(fields)


# The checksum


def with_checksum(header: bytes) -> bytes:
    """Return `header`, which ends with a field of the type CRC32C, with the right checksum."""
    return header[:-_CHECKSUM] + crc32c(header).to_bytes(_CHECKSUM, "big")


NO_CHECKSUM = join([(CRC32C, bytes(_CHECKSUM))])


def _verify(header: bytes, at: int, value: bytes) -> None:
    zeroed = header[:at] + bytes(len(value)) + header[at + len(value) :]
    if value != crc32c(zeroed).to_bytes(_CHECKSUM, "big"):
        raise invalid("its checksum is wrong")


@functools.cache
def _table() -> tuple[int, ...]:
    table = []
    for remainder in range(256):
        for _ in range(8):
            remainder = remainder >> 1 ^ (0x82F63B78 if remainder & 1 else 0)
        table.append(remainder)
    return tuple(table)


def crc32c(data: bytes) -> int:
    """Return the CRC with Castagnoli's polynomial, reflected (RFC 3720 appendix B.4)."""
    table, crc = _table(), 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF
