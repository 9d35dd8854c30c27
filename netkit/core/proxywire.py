"""The two forms of a PROXY header on the wire: a line of text (version 1), and binary (version 2).

The rules are those of HAProxy's doc/proxy-protocol.txt. A function that reads raises
`ProxyHeaderError` for a header that breaks one of them; one that writes raises ValueError for what
does not fit into a header.

Rules:

1. The first byte that no header can have is an error, however little has arrived.
2. Strict, with one exception: nginx writes an IPv4 address in a line ``TCP6``, where the families
   of client and server differ.
3. For a connection that is not relayed (LOCAL, UNKNOWN and UNSPEC, or datagrams), the addresses in
   the header are ignored, whatever they are. Anything else would let a proxy's check be taken for a
   client.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from . import proxytlvs
from .addresses import MAX_PORT, SocketAddress, parse_ip
from .encodings import printable_bytes
from .errors import ProxyHeaderError
from .proxytlvs import invalid
from .record import NamedTuple

MOST = 16 * 1024  # bytes of a header, as many as the buffer of HAProxy has

_LINE = b"PROXY "
_LONGEST_LINE = 107  # with CRLF
_KINDS_OF_LINE = (b"TCP4 ", b"TCP6 ", b"UNKNOWN ", b"UNKNOWN\r\n")
_MAY_BE_LINE = re.compile(rb"[0-9a-fA-F:. ]*\r?")  # behind the kind, if it is not UNKNOWN
_PORT = re.compile("0|[1-9][0-9]{0,4}")

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_HEAD = 16  # bytes: signature, version and command, family and transport, length
COMMANDS = ("LOCAL", "PROXY")
_UNSPECIFIED, _INET, _INET6, _UNIX = range(4)
_SIZES = (0, 12, 36, 216)  # bytes of both addresses, by family
_STREAM, _DATAGRAM = 1, 2
_LONGEST_PATH = 108

_MAPPED = bytes(10) + b"\xff\xff"  # before an IPv4 address in its IPv6 form
_SHOWN = 40  # bytes of what is no header

Address = SocketAddress | str | None


class Parts(NamedTuple):
    """The fields of a `ProxyHeader`, which explains them."""

    source: Address
    destination: Address
    command: str
    version: int
    via: Address
    tlvs: Mapping[int, bytes]


def end_of(data: bytearray) -> int | None:
    """Return the size of the header that `data` begins with; None if that is not known yet."""
    if _begins(data, _SIGNATURE):
        return _end_of_binary(data)
    if _begins(data, _LINE):
        return _end_of_line(data)
    shown = bytes(data[:_SHOWN])
    first_line = shown.partition(b"\n")[0].rstrip(b"\r") or shown
    raise ProxyHeaderError(f"no PROXY header: '{printable_bytes(first_line, 'ascii')}'")


def decoded(header: bytes) -> Parts:
    """Return the parts of a whole header, of which `end_of` has found the end."""
    return _of_line(header) if header.startswith(_LINE) else _of_binary(header)


def _begins(data: bytearray | bytes, start: bytes) -> bool:
    """Whether `data` begins with `start`, or may do so once more has arrived."""
    return data[: len(start)] == start[: len(data)]


# Version 1


def _end_of_line(data: bytearray) -> int | None:
    kind = data[len(_LINE) :]
    if not any(_begins(kind, each) for each in _KINDS_OF_LINE):
        raise invalid("its protocol is none of TCP4, TCP6 and UNKNOWN")
    end = data.find(b"\r\n", 0, _LONGEST_LINE)
    if end >= 0:
        return end + 2
    if kind[:3] == b"TCP" and not _MAY_BE_LINE.fullmatch(kind, len(_KINDS_OF_LINE[0])):
        raise invalid("its line has characters that are in no address")
    if len(data) >= _LONGEST_LINE:
        raise invalid(f"a line of more than {_LONGEST_LINE} bytes")
    return None


def _of_line(line: bytes) -> Parts:
    kind, *fields = line[len(_LINE) : -2].split(b" ")
    if kind == b"UNKNOWN":
        return _relayed(1, None, None)
    try:
        source, destination, *ports = (field.decode("ascii") for field in fields)
        source_port, destination_port = map(_port, ports)
    except ValueError:  # also for the wrong number of fields
        raise invalid("its line is not two addresses and two ports") from None
    may_be_ipv6 = kind == b"TCP6"
    return _relayed(
        1,
        _of_ip(_packed(source, may_be_ipv6), source_port),
        _of_ip(_packed(destination, may_be_ipv6), destination_port),
    )


def _port(text: str) -> int:
    if not _PORT.fullmatch(text) or int(text) > MAX_PORT:
        raise ValueError(text)
    return int(text)


def _packed(text: str, may_be_ipv6: bool) -> bytes:
    packed = None if "%" in text else parse_ip(text)
    if packed is None or (len(packed) == 16 and not may_be_ipv6):
        raise invalid(f"{text!r} is no IPv{6 if may_be_ipv6 else 4} address")
    return packed


def to_line(header: Parts) -> bytes:
    """Return a header of version 1; ``UNKNOWN`` unless both ends have IP addresses."""
    source, destination = header.source, header.destination
    if not (isinstance(source, SocketAddress) and isinstance(destination, SocketAddress)):
        return _LINE + b"UNKNOWN\r\n"
    ends = [source, destination]
    is_ipv4 = all(end.family == "IPv4" for end in ends)
    mapped = "" if is_ipv4 else "::ffff:"
    addresses = [
        (mapped if end.family == "IPv4" else "") + end.address.partition("%")[0] for end in ends
    ]
    words = ["TCP4" if is_ipv4 else "TCP6", *addresses, *(str(end.port) for end in ends)]
    return _LINE + " ".join(words).encode("ascii") + b"\r\n"


# Version 2


def _end_of_binary(data: bytearray) -> int | None:
    if len(data) > 12:
        version, command = divmod(data[12], 16)
        if version != 2:
            raise invalid(f"its version is {version}, neither 1 nor 2")
        if command >= len(COMMANDS):
            raise invalid(f"its command is {command}, neither LOCAL nor PROXY")
    if len(data) < _HEAD:
        return None
    end = _HEAD + int.from_bytes(data[14:_HEAD], "big")
    if end > MOST:
        raise invalid(f"it has {end} bytes, where {MOST} are allowed")
    if COMMANDS[data[12] & 15] == "PROXY":
        family, transport = divmod(data[13], 16)
        if family >= len(_SIZES) or transport > _DATAGRAM:
            raise invalid(f"its family and transport are {data[13]:#04x}")
        if end < _HEAD + _SIZES[family]:
            raise invalid("it is too short for its addresses")
    return end if len(data) >= end else None


def _of_binary(header: bytes) -> Parts:
    command = COMMANDS[header[12] & 15]
    family, transport = divmod(header[13], 16)
    size = _SIZES[family] if family < len(_SIZES) else 0
    block, start = header[_HEAD:], _HEAD + size
    if command == "LOCAL" or transport != _STREAM or family == _UNSPECIFIED:
        return _relayed(2, None, None, _fields_of_unrelayed(header, start), command)
    tlvs = proxytlvs.read(header, start)
    proxytlvs.check(tlvs)
    if family == _UNIX:
        half = _LONGEST_PATH
        return _relayed(2, _of_path(block[:half]), _of_path(block[half:size]), tlvs)
    half = (size - 4) // 2  # bytes of an address
    ports = [int.from_bytes(block[at : at + 2], "big") for at in (size - 4, size - 2)]
    source, destination = block[:half], block[half : 2 * half]
    return _relayed(2, _of_ip(source, ports[0]), _of_ip(destination, ports[1]), tlvs)


def _fields_of_unrelayed(header: bytes, start: int) -> dict[int, bytes]:
    """Return the fields behind addresses that are ignored; none if there are no valid ones.

    ProxyHeaderError for a wrong checksum alone.
    """
    try:
        proxytlvs.check({kind: value for kind, _, value in proxytlvs.split(header, start)})
    except ProxyHeaderError:
        return {}
    return proxytlvs.read(header, start)


def _of_path(data: bytes) -> str:
    """Return the path in an address of a Unix socket; an abstract name begins with a null."""
    path = data.rstrip(b"\0") if data.startswith(b"\0") else data.partition(b"\0")[0]
    return os.fsdecode(path)


def to_binary(header: Parts, crc: bool) -> bytes:
    """Return a header of version 2, with a checksum if `crc`. ValueError if it is too long."""
    source, destination = header.source, header.destination
    family, addresses = _UNSPECIFIED, b""
    if isinstance(source, SocketAddress) and isinstance(destination, SocketAddress):
        packed = [parse_ip(end.address) or b"" for end in (source, destination)]
        family = _INET if max(map(len, packed)) == 4 else _INET6
        if family == _INET6:
            packed = [it if len(it) == 16 else _MAPPED + it for it in packed]
        ports = (end.port.to_bytes(2, "big") for end in (source, destination))
        addresses = b"".join([*packed, *ports])
    elif isinstance(source, str) and isinstance(destination, str):
        family = _UNIX
        addresses = b"".join(_path(end) for end in (source, destination))
    fields = proxytlvs.join(
        (kind, value) for kind, value in header.tlvs.items() if kind != proxytlvs.CRC32C
    )
    body = addresses + fields + (proxytlvs.NO_CHECKSUM if crc else b"")
    if len(body) > MOST - _HEAD:
        raise ValueError(f"the header has {_HEAD + len(body)} bytes, where {MOST} are allowed")
    kinds = [0x20 | COMMANDS.index(header.command), family and family << 4 | _STREAM]
    data = _SIGNATURE + bytes(kinds) + len(body).to_bytes(2, "big") + body
    return proxytlvs.with_checksum(data) if crc else data


def _path(path: str) -> bytes:
    encoded = os.fsencode(path)
    if len(encoded) > _LONGEST_PATH:
        raise ValueError(f"a path of {len(encoded)} bytes, where {_LONGEST_PATH} are allowed")
    return encoded.ljust(_LONGEST_PATH, b"\0")


# Both versions


def _relayed(
    version: int,
    source: Address,
    destination: Address,
    tlvs: dict[int, bytes] | None = None,
    command: str = "PROXY",
) -> Parts:
    return Parts(source, destination, command, version, None, tlvs or {})


def _of_ip(packed: bytes, port: int) -> SocketAddress:
    if packed.startswith(_MAPPED):
        packed = packed[len(_MAPPED) :]
    if len(packed) == 4:
        return SocketAddress._make((".".join(map(str, packed)), port, "IPv4"))
    from ipaddress import IPv6Address  # here because the import takes long

    return SocketAddress._make((str(IPv6Address(packed)), port, "IPv6"))
