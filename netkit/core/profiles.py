"""Profiles: sets of limits. The option `profile` stands for all options of such a set.

A profile is a function that returns options, since some of their values depend on the machine.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

# A client needs a descriptor, and its handler often another one (a file, a database). The rest is
# for connections that are being closed, and for clients that are being refused.
_DESCRIPTORS_PER_CLIENT = 2
_MOST_CLIENTS = 10_000  # some 200 MB, or 600 with TLS, while they are idle


def public() -> dict[str, Any]:
    """Limits for a server on the Internet. docs/security.md gives the reasons.

    `max_connections` depends on the limit of descriptors of this process (RLIMIT_NOFILE).
    """
    return {
        "max_connections": clients_for(_descriptors()),
        "max_connections_per_ip": 50,
        "max_connection_rate": 20.0,
        "idle_timeout": 60.0,
        "read_timeout": 120.0,
        "write_timeout": 30.0,
        "min_rate": 500.0,
        "max_message": 1024 * 1024,
    }


PROFILES: Mapping[str, Callable[[], dict[str, Any]]] = {"public": public}


def clients_for(descriptors: float) -> int:
    """Return `max_connections` of the profile for a process with this limit of descriptors."""
    return int(max(1, min(descriptors / _DESCRIPTORS_PER_CLIENT, _MOST_CLIENTS)))


def _descriptors() -> float:
    if sys.platform == "win32":  # pragma: no cover - sockets are no descriptors there
        return float("inf")
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return float("inf") if soft == resource.RLIM_INFINITY else soft
