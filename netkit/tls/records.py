"""Parses the parts of a TLS stream that are not encrypted: headers of records, and the ClientHello.

Python passes the name in SNI only to a callback of the context, and netkit does not change the
context of a program. So the name that handlers see is parsed here. OpenSSL chooses the certificate.
"""

from __future__ import annotations

HEADER = 5  # bytes of a record's header, the last two of which are its length
LONGEST_HELLO = 16 * 1024  # bytes in which a ClientHello is looked for; real ones have 200 to 2000

_HANDSHAKE = 22  # the type of a record, RFC 8446 section 5.1
_CLIENT_HELLO = 1  # the type of a handshake message, section 4
_SERVER_NAME = 0  # the type of an extension, RFC 6066 section 3


class Records:
    """Finds the ends of records in a stream of ciphertext."""

    __slots__ = ("_head", "_missing", "whole")

    def __init__(self) -> None:
        self._head = b""  # an incomplete header
        self._missing = 0  # bytes that an incomplete record lacks
        self.whole = True
        """Whether the stream ends at the end of a record."""

    def feed(self, data: bytes) -> None:
        """Parse the next bytes of the stream."""
        if self._head:
            data = self._head + data
            self._head = b""
        at, size = self._missing, len(data)
        while at + HEADER <= size:
            at += HEADER + (data[at + 3] << 8 | data[at + 4])
        self._missing = max(0, at - size)
        self._head = data[at:]
        self.whole = at == size


def server_name(first: bytes) -> str | None:
    """Return the name in the ClientHello at the start of `first`.

    None if the ClientHello is incomplete, or has no name of printable ASCII (RFC 6066 section 3).
    """
    try:
        name = _server_name(_message(first))
    except IndexError:
        return None
    text = name.decode("latin-1") if name else ""
    return text if text.isascii() and text.isprintable() and text else None


def _message(records: bytes) -> bytes:
    """Return the ClientHello without its header. Several records may contain it."""
    message = b""
    while len(message) < 4 or len(message) < 4 + int.from_bytes(message[1:4], "big"):
        kind = records[0]
        part, records = _field(records[3:], 2)
        if kind != _HANDSHAKE or not part:
            raise IndexError
        message += part
    if message[0] != _CLIENT_HELLO:
        raise IndexError
    return message[4:]


def _server_name(hello: bytes) -> bytes | None:
    rest = hello[2 + 32 :]  # after the version and the client's random bytes
    for size in (1, 2, 1):  # the session, the cipher suites, the compression methods
        _, rest = _field(rest, size)
    extensions, _ = _field(rest, 2)
    while extensions:
        kind = int.from_bytes(extensions[:2], "big")
        value, extensions = _field(extensions[2:], 2)
        if kind == _SERVER_NAME:
            names, _ = _field(value, 2)
            return _field(names[1:], 2)[0] if names[0] == 0 else None
    return None


def _field(data: bytes, size: int) -> tuple[bytes, bytes]:
    """Split `data` after a field that begins with its length, a number of `size` bytes.

    IndexError if bytes are missing.
    """
    end = size + int.from_bytes(data[:size], "big")
    if len(data) < max(size, end):
        raise IndexError
    return data[size:end], data[end:]
