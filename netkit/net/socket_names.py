"""The names of socket and file methods, for programs that expect those of a connection."""

from __future__ import annotations

from typing import Any

# The methods of sockets and files that a `Connection` does not have, and what it has for each.
OTHER_NAMES = {
    "send": "write",
    "sendall": "write",
    "writelines": "write, once for each",
    "recv": "read",
    "recv_into": "read_into",
    "readlines": "lines",
    "makefile": "read, readline, lines and write, which it has itself",
    "shutdown": "end",
    "settimeout": "set_timeout",
    "getpeername": "remote_address and remote_port",
    "getsockname": "local_address and local_port",
    "setsockopt": "socket.setsockopt",
    "getsockopt": "socket.getsockopt",
}


def no_attribute(thing: object, name: str) -> Any:
    """Raise the error for an unknown attribute, which names the method to use instead."""
    text = f"{type(thing).__name__!r} object has no attribute {name!r}"
    if name in OTHER_NAMES:
        text += f": use {OTHER_NAMES[name]}"
    raise AttributeError(text, name=name, obj=thing)
