"""The figures that are looked up when somebody asks: of a server, and of this process.

A function returns the samples of counters and those of gauges. What a platform cannot tell is left
out.
"""

from __future__ import annotations

import os
import platform
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import netkit

from ..core.cores import has_gil
from ..net.connection import Connection
from ..net.endings import carried
from ..server.registry import Tally
from ..server.server import Server
from .exposition import Samples, sample
from .states import STATES, state_of

# The counters that `figures_of_server` returns.
OF_SERVERS = (
    "netkit_connections_accepted_total",
    "netkit_received_bytes_total",
    "netkit_sent_bytes_total",
    "netkit_accept_pauses_total",
)
_STATE_OF_HELD = STATES[-1]
STATM = "/proc/self/statm"


def build_info() -> Samples:
    """Return the versions of netkit and of Python, as the labels of one sample."""
    gil = "on" if has_gil() else "off"
    version, python = netkit.__version__, platform.python_version()
    return {sample("netkit_build_info", version=version, python=python, gil=gil): 1}


def totals_of(server: Server) -> tuple[Tally, tuple[Connection, ...]]:
    """Return the sums of a server, open connections included, and the open connections."""
    tally, live = server._connections.snapshot()
    received, sent = tally.received, tally.sent
    for connection in live:
        more_received, more_sent = carried(connection)
        received += more_received or 0
        sent += more_sent or 0
    return tally._replace(received=received, sent=sent), live


def figures_of_server(server: Server) -> tuple[Mapping[str, float], Samples]:
    """Return the counters and gauges of one server, with the bytes of its open connections."""
    tally, live = totals_of(server)
    states = dict.fromkeys(STATES, 0)
    states[_STATE_OF_HELD] = len(server._overflow.held)
    for connection in live:
        states[state_of(connection)] += 1
    loop = server._accept_loop
    sums = tally.opened, tally.received, tally.sent, loop.pauses
    counters = dict(zip(OF_SERVERS, sums, strict=True))
    gauges: Samples = {
        **{sample("netkit_connections", state=state): count for state, count in states.items()},
        "netkit_accept_paused": int(loop.back_off.pause > 0),
        **_certificates(server),
    }
    limit = server._options.max_connections
    if limit is not None:
        gauges["netkit_connections_limit"] = limit
    return counters, gauges


def _certificates(server: Server) -> Samples:
    """When each certificate ends that clients get at present, also if its file is newer."""
    context: Any = server._configuration.setup.tls
    by_name = {"*": context, **getattr(context, "named", {})}
    ends = {name: getattr(each, "expiry", None) for name, each in by_name.items()}
    family = "netkit_tls_certificate_expiry_seconds"
    return {sample(family, name=name): end for name, end in ends.items() if end is not None}


def figures_of_process() -> tuple[Samples, Samples]:
    """Return the counters and gauges of this process."""
    gauges: Samples = {"netkit_threads": threading.active_count()}
    resident = _resident_memory()
    if resident is not None:
        gauges["process_resident_memory_bytes"] = resident
    if sys.platform != "win32":  # pragma: no branch - Windows has neither /dev/fd nor the limit
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            gauges["process_open_fds"] = len(os.listdir("/dev/fd")) - 1  # that of the listing
        except OSError:  # none is free for the listing
            gauges["process_open_fds"] = soft
        if soft != resource.RLIM_INFINITY:  # pragma: no branch - else there is no maximum
            gauges["process_max_fds"] = soft
    return {"process_cpu_seconds_total": time.process_time()}, gauges


def _resident_memory() -> int | None:
    """The memory that this process has in RAM, in bytes (proc(5)); None if it is not known."""
    try:
        with open(STATM, "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):  # no /proc: not Linux, or hidden
        return None
