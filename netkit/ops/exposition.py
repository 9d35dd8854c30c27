"""The metrics of netkit, and their text in the format of Prometheus, version 0.0.4.

A sample is a name with its labels, as in the text, and a number. So the samples of a
process are plain JSON, and those of several processes are added by their names. Rules:

1. A counter of the program is the sum over its processes, and never falls.
2. A gauge is the sum, too, except those of which `FAMILIES` says otherwise.
3. No label has an address or any other value that a client chooses, so the number of samples has a
   limit.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..core.record import NamedTuple

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

OTHER = "other"

Samples = dict[str, float]


class Family(NamedTuple):
    """One metric: the lines that begin with its `name`."""

    name: str
    kind: str  # "counter", "gauge" or "histogram"
    help: str
    merge: Callable[[Iterable[float]], float] = sum
    """Makes one value of those of several processes."""


FAMILIES = (
    Family("netkit_build_info", "gauge", "Versions of netkit and Python, as labels.", max),
    Family(
        "netkit_start_time_seconds",
        "gauge",
        "When the program started, in seconds since 1970.",
        min,
    ),
    Family("netkit_ready", "gauge", "1 if the program wants new clients, else 0.", min),
    Family("netkit_workers", "gauge", "Worker processes wanted; 0 if the one process serves.", max),
    Family(
        "netkit_worker_restarts_total", "counter", "Worker processes that died and were replaced."
    ),
    Family("netkit_reloads_total", "counter", "Reloads, by result."),
    Family("netkit_connections", "gauge", "Open connections, by state."),
    Family("netkit_connections_limit", "gauge", "The option max_connections, if it is set.", max),
    Family("netkit_connections_accepted_total", "counter", "Connections opened."),
    Family("netkit_connections_closed_total", "counter", "Connections closed, by what ended them."),
    Family("netkit_connections_refused_total", "counter", "Clients refused, by option."),
    Family(
        "netkit_connection_duration_seconds",
        "histogram",
        "How long closed connections lasted.",
    ),
    Family(
        "netkit_connection_wait_seconds",
        "histogram",
        "How long the clients of closed connections waited for their handler.",
    ),
    Family(
        "netkit_received_bytes_total",
        "counter",
        "Bytes received from clients, those of open connections included.",
    ),
    Family(
        "netkit_sent_bytes_total",
        "counter",
        "Bytes sent to clients, those of open connections included.",
    ),
    Family(
        "netkit_accept_pauses_total",
        "counter",
        "Episodes in which no client was accepted, since this machine was short of something.",
    ),
    Family("netkit_accept_paused", "gauge", "Servers that are in such an episode now."),
    Family("netkit_handler_failures_total", "counter", "Handlers that raised an exception."),
    Family("netkit_threads", "gauge", "Threads of the processes that serve."),
    Family(
        "netkit_tls_certificate_expiry_seconds",
        "gauge",
        "When the certificate of a server name ends, in seconds since 1970.",
        min,
    ),
    Family(
        "netkit_processes_unresponsive",
        "gauge",
        "Processes that did not answer this scrape; their counters are those of their last answer.",
    ),
    Family(
        "process_cpu_seconds_total",
        "counter",
        "Processor time of the processes that serve, in user and system mode.",
    ),
    Family(
        "process_resident_memory_bytes",
        "gauge",
        "Resident memory of the processes that serve; shared pages count in each.",
    ),
    Family("process_open_fds", "gauge", "Open descriptors of the processes that serve."),
    Family("process_max_fds", "gauge", "The limits of these descriptors, added up."),
)

_BY_NAME = {
    family.name + suffix: family
    for family in FAMILIES
    for suffix in (("_bucket", "_sum", "_count") if family.kind == "histogram" else ("",))
}
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


def sample(name: str, /, **labels: str) -> str:
    """Return the name of a sample: ``netkit_connections{state="held"}``. Values are escaped."""
    if not labels:
        return name
    pairs = (f'{label}="{value.translate(_ESCAPES)}"' for label, value in labels.items())
    return f"{name}{{{','.join(pairs)}}}"


def family_of(name: str) -> Family | None:
    """Return the family of a sample; None if this version of netkit does not know it."""
    return _BY_NAME.get(name.partition("{")[0])


def merged(parts: Iterable[Mapping[str, Any]]) -> Samples:
    """Make the samples of a program of those of its processes. Unknown ones are left out."""
    values: dict[str, list[float]] = {}
    for part in parts:
        for name, value in part.items():
            values.setdefault(name, []).append(value)
    return {
        name: family.merge(found)
        for name, found in values.items()
        if (family := family_of(name)) is not None
    }


def text_of(samples: Mapping[str, float]) -> str:
    """Return the text of `samples`, in the order of `FAMILIES`. A family without any is left out.

    The samples of a family stay in their order.
    """
    lines: dict[Family, list[str]] = {family: [] for family in FAMILIES}
    for name, value in samples.items():
        family = family_of(name)
        if family is not None:
            lines[family].append(f"{name} {_number(value)}\n")
    return "".join(
        f"# HELP {family.name} {family.help}\n# TYPE {family.name} {family.kind}\n{''.join(found)}"
        for family, found in lines.items()
        if found
    )


def _number(value: float) -> str:
    """The shortest text of the number; that of a whole one has no fraction."""
    return str(int(value)) if value == int(value) else repr(value)


class Counts:
    """Counts by the value of a label, which has a closed set of values. Not thread-safe."""

    def __init__(self, name: str, label: str, values: Iterable[str]) -> None:
        self._name, self._label = name, label
        self._counts = dict.fromkeys(values, 0)

    def add(self, value: str) -> None:
        """Count `value`; as `OTHER` if it is not one of the set."""
        if value not in self._counts:
            value = OTHER
            self._counts.setdefault(value, 0)
        self._counts[value] += 1

    def samples(self) -> Samples:
        """Return the samples, all of which are counters."""
        counts = self._counts.items()
        return {sample(self._name, **{self._label: value}): count for value, count in counts}


class Histogram:
    """Counts how many values are at most as large as each of some limits. Not thread-safe."""

    def __init__(self, name: str, *limits: float) -> None:
        self._names = [sample(f"{name}_bucket", le=f"{limit:g}") for limit in limits]
        self._names.append(sample(f"{name}_bucket", le="+Inf"))
        self._name = name
        self._limits = limits
        self._counts = [0] * len(self._names)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Count `value`."""
        self._counts[bisect_left(self._limits, value)] += 1
        self._sum += value

    def samples(self) -> Samples:
        """Return the samples, all of which are counters."""
        found: Samples = {}
        total = 0
        for name, count in zip(self._names, self._counts, strict=True):
            total += count
            found[name] = total
        return {**found, f"{self._name}_sum": self._sum, f"{self._name}_count": total}
