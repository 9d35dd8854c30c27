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


class _Fields:
    """Bytes that are parsed from their front. The methods raise IndexError if bytes are missing."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def number(self, size: int) -> int:
        """Remove and return a number of `size` bytes."""
        return int.from_bytes(self.take(size), "big")

    def take(self, size: int) -> bytes:
        """Remove and return `size` bytes."""
        taken, self.data = self.data[:size], self.data[size:]
        if len(taken) < size:
            raise IndexError
        return taken

    def vector(self, size: int) -> _Fields:
        """Remove and return a field that begins with its length, a number of `size` bytes."""
        return _Fields(self.take(self.number(size)))


def server_name(first: bytes) -> str | None:
    """Return the name in the ClientHello at the start of `first`.

    None if the ClientHello is incomplete, or has no name of printable ASCII (RFC 6066 section 3).
    """
    try:
        name = _server_name(_Fields(_message(_Fields(first))))
    except IndexError:
        return None
    text = name.decode("latin-1") if name else ""
    return text if text.isascii() and text.isprintable() and text else None


def _message(records: _Fields) -> bytes:
    """Return the ClientHello without its header. Several records may contain it."""
    message = b""
    while len(message) < 4 or len(message) < 4 + int.from_bytes(message[1:4], "big"):
        kind, _ = records.number(1), records.take(2)
        part = records.vector(2).data
        if kind != _HANDSHAKE or not part:
            raise IndexError
        message += part
    if message[0] != _CLIENT_HELLO:
        raise IndexError
    return message[4:]


def _server_name(hello: _Fields) -> bytes | None:
    hello.take(2 + 32)  # the version and the client's random bytes
    hello.vector(1)  # the session
    hello.vector(2)  # the cipher suites
    hello.vector(1)  # the compression methods
    extensions = hello.vector(2)
    while extensions.data:
        kind, value = extensions.number(2), extensions.vector(2)
        if kind == _SERVER_NAME:
            names = value.vector(2)
            return names.vector(2).data if names.number(1) == 0 else None
    return None
