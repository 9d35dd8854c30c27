"""The header of the PROXY protocol, with which a proxy says who the client of a connection is.

It comes first on the connection, before TLS. Nothing here touches a socket. `netkit.core.proxywire`
has the two forms of a header, and `netkit.core.proxytlvs` the further fields of version 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from . import proxytlvs, proxywire
from .addresses import SocketAddress
from .proxytlvs import ProxyTls, invalid
from .proxywire import COMMANDS, MOST, Address, Parts


class ProxyHeader(Parts):
    """What a proxy says about a connection: the client, and what else it knows. Immutable.

    `source` is the client and `destination` is where it has connected to: a `SocketAddress` each,
    or the path of a Unix socket (``""`` if it has none). Both are None if the proxy has connected
    for itself (`command` is ``"LOCAL"``), or does not tell the addresses. `version` is that of the
    protocol, 1 or 2. `via` is the proxy, as a server sees it. `tlvs` has the further fields of
    version 2 by their types, also those that netkit does not know.
    """

    __slots__ = ()

    def __new__(
        cls,
        source: Any = None,
        destination: Any = None,
        command: str = "PROXY",
        version: int = 2,
        via: Address = None,
        tlvs: Mapping[int, bytes] = MappingProxyType({}),
        *,
        alpn: str | None = None,
        authority: str | None = None,
        unique_id: bytes | None = None,
        tls: ProxyTls | None = None,
    ) -> ProxyHeader:
        """Check and combine the parts. ``(address, port)`` will do for a `SocketAddress`.

        The arguments by name are fields, instead of those in `tlvs`. TypeError or ValueError if a
        part is invalid, or the parts do not belong together.
        """
        if command not in COMMANDS:
            raise ValueError(f"command must be 'PROXY' or 'LOCAL', not {command!r}")
        _check_version(version)
        ends = _address("source", source), _address("destination", destination)
        if len({type(end) for end in ends}) > 1:
            raise ValueError("source and destination must be addresses of one kind, or both None")
        if command == "LOCAL" and ends != (None, None):
            raise ValueError("a LOCAL header has no addresses")
        fields = _checked_fields(tlvs)
        texts = {proxytlvs.ALPN: alpn, proxytlvs.AUTHORITY: authority}
        fields |= {kind: text.encode() for kind, text in texts.items() if text is not None}
        if unique_id is not None:
            fields[proxytlvs.UNIQUE_ID] = bytes(unique_id)
        if tls is not None:
            fields[proxytlvs.SSL] = proxytlvs.ssl_value(tls)
        proxytlvs.check(fields)
        return cls._make((*ends, command, version, via, fields))

    @property
    def alpn(self) -> str | None:
        """The protocol that the proxy has agreed on with the client (ALPN)."""
        return proxytlvs.text_of(self.tlvs, proxytlvs.ALPN)

    @property
    def authority(self) -> str | None:
        """The name of the server that the client has asked for, that of SNI in TLS."""
        return proxytlvs.text_of(self.tlvs, proxytlvs.AUTHORITY)

    @property
    def unique_id(self) -> bytes | None:
        """The proxy's identifier of the connection, to be found in its log as well."""
        return self.tlvs.get(proxytlvs.UNIQUE_ID)

    @property
    def tls(self) -> ProxyTls | None:
        """The TLS that the proxy has ended; None if there is none, or the proxy does not tell."""
        return proxytlvs.tls_of(self.tlvs)

    @classmethod
    def parse(cls, data: bytes) -> ProxyHeader:
        """Parse a whole header, of either version, with nothing behind it.

        ProxyHeaderError, whatever is wrong with `data`. `ProxyHeaderParser` takes pieces.
        """
        parser = ProxyHeaderParser()
        taken = parser.feed(bytes(data))
        if parser.header is None:
            raise invalid(f"it is incomplete, after {taken} bytes")
        if taken < len(data):
            raise invalid(f"{len(data) - taken} bytes follow it")
        return parser.header

    def encode(self, version: int | None = None, crc: bool = False) -> bytes:
        """Return the header as bytes, in `version` (by default its own).

        With `crc`, a checksum protects version 2. Version 1 has neither `tlvs` nor paths of Unix
        sockets; a header without addresses is ``UNKNOWN`` there. ValueError if the header would be
        longer than 16 KiB, or `version` is neither 1 nor 2.
        """
        version = self.version if version is None else version
        _check_version(version)
        return proxywire.to_line(self) if version == 1 else proxywire.to_binary(self, crc)


class ProxyHeaderParser:
    """Finds the header at the beginning of a stream, which arrives in any pieces."""

    def __init__(self) -> None:
        self.header: ProxyHeader | None = None
        """The header, once all of it has been fed."""
        self._data = bytearray()

    @property
    def size(self) -> int:
        """How many bytes have been fed, up to the end of the header."""
        return len(self._data)

    def feed(self, data: bytes) -> int:
        """Take what belongs to the header from the beginning of `data`; return how many bytes.

        That is all of `data` unless the header ends in it. ProxyHeaderError if the header is
        invalid; the parser is of no use then.
        """
        if self.header is not None:
            return 0
        before = len(self._data)
        self._data += data[: MOST - before]
        end = proxywire.end_of(self._data)
        if end is None:
            return len(data)
        del self._data[end:]
        self.header = ProxyHeader._make(proxywire.decoded(bytes(self._data[:end])))
        return end - before


def _check_version(version: Any) -> None:
    if version not in (1, 2):
        raise ValueError(f"version must be 1 or 2, not {version!r}")


def _address(name: str, value: Any) -> Address:
    if value is None or isinstance(value, (SocketAddress, str)):
        return value
    if isinstance(value, tuple) and len(value) == 2:
        return SocketAddress(*value)
    raise TypeError(f"{name} must be a SocketAddress, a path or None, not {value!r}")


def _checked_fields(tlvs: Mapping[int, bytes]) -> dict[int, bytes]:
    for kind, value in tlvs.items():
        if not (isinstance(kind, int) and isinstance(value, bytes)):
            raise TypeError(f"a field has a number and bytes, not {kind!r} and {value!r}")
        if not 0 <= kind <= 0xFF:
            raise ValueError(f"the type of a field is from 0 to 255, not {kind}")
    return dict(tlvs)
