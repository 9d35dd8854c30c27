"""The names that sockets have for their ends, as values and as text for messages."""

from __future__ import annotations

import functools
import os
from typing import Any

from ..core.addresses import SocketAddress, format_address, format_unix, unmapped, zoned


def part_of(name: Any, part: str) -> Any:
    """Return the `part` of the `SocketAddress` of a name; None if it is of a Unix socket."""
    return getattr(SocketAddress.from_sockname(name), part, None)


def address_of(name: Any) -> SocketAddress | str:
    """Return the address that a name stands for. A Unix socket has its path, which may be empty."""
    path = os.fsdecode(name) if isinstance(name, bytes) else str(name or "")
    return SocketAddress.from_sockname(name) or path


def describe_peer(client_address: Any) -> str:
    """Return the address of a client as text: ``127.0.0.1:50312``, or as `format_unix`."""
    if isinstance(client_address, tuple) and len(client_address) > 1:
        host, port, *more = client_address
        return format_address(unmapped(zoned(client_address)) if more else host, port)
    if client_address is None or isinstance(client_address, (str, bytes)):
        return format_unix(client_address)
    return str(client_address)


# Most connections of a server have the same local name.
described = functools.lru_cache(maxsize=64)(describe_peer)
