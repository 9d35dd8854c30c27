"""Shows the rows of the commands as text, for people."""

from __future__ import annotations

import time
from collections.abc import Iterator

from ..core.text import several
from .rows import Row

_CLIENT = "{:<12} {:<7} {:<24} {:<16} {:<9} {:>9} {:>8} {:>11} {:>11} {:>9} {:>5} {:>8}  {}"
CLIENTS = _CLIENT.format(
    *("id", "worker", "peer", "via", "state", "age/s", "idle/s", "in", "out", "rtt/ms", "retr"),
    *("sendq", "where"),
)
"""The heading of the table of clients."""


def client(row: Row) -> Iterator[str]:
    """Yield the line of a client in the table of clients."""
    rtt = row["rtt"]
    yield _CLIENT.format(
        *(row["id"] or "-", row["worker"], row["peer"], row["via"] or "-", row["state"]),
        *(_seconds(row["age"]), _seconds(row["idle"]), _number(row["in"]), _number(row["out"])),
        *("-" if rtt is None else f"{rtt * 1000:.2f}", _number(row["retransmits"])),
        *(_number(row["send_queue"]), row["where"]),
    ).rstrip()


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def stack(row: Row) -> Iterator[str]:
    """Yield a line about a client, and one for each frame of the stack of its thread."""
    who = f"{row['id'] or '-'} {row['peer'] or '-'} {row['state']}"
    yield f"{who} {row['thread']}".rstrip()
    for frame in row["frames"]:
        line = f"  {frame['file']}:{frame['line']} {frame['function']}"
        yield f"{line}: {frame['code']}" if frame["code"] else line
    if row["inside"]:
        yield f"  inside netkit: {row['inside']}"


def status(row: Row) -> Iterator[str]:
    """Yield the lines of the status."""
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["started_at"]))
    limit = "" if row["limit"] is None else f" of at most {row['limit']}"
    gil = "" if row["gil"] else ", free-threaded"
    reloads = ", ".join(f"{count} {result}" for result, count in sorted(row["reloads"].items()))
    lines = {
        "netkit": f"{row['version']}, Python {row['python']}{gil}",
        "pid": row["pid"],
        "state": _state(row["phase"], row["reason"]),
        "up": f"{row['uptime']:.0f} s, since {since}",
        "addresses": ", ".join(row["addresses"]) or "none",
        "connected": f"{row['connected']}{limit}, {row['held']} held",
        "accepted": f"{row['accepted']}, {row['closed']} closed, {row['refused']} refused",
        "bytes": f"{row['received']} received, {row['sent']} sent",
        "threads": row["threads"],
    }
    if row["workers"]:
        lines["workers"] = f"{row['workers']}, {several(row['restarts'], 'restart')}"
        lines["reloads"] = reloads or "none"
    yield from (f"{name:<10} {value}" for name, value in lines.items())
    if row["workers"]:
        yield from map(_process, row["processes"])


def _state(phase: str, reason: str) -> str:
    return f"{phase}: {reason}" if reason and phase != "stopping" else phase


def _process(row: Row) -> str:
    if row["error"]:
        return f"worker {row['pid']}: {row['error']}"
    suspended = ", suspended" if row["suspended"] else ""
    counts = f"{row['connected']} connected, {row['held']} held, {row['refused']} refused"
    return f"worker {row['pid']}: {counts}, {several(row['threads'], 'thread')}{suspended}"


def ended(row: Row) -> Iterator[str]:
    """Yield the line of a client that a command has ended."""
    yield f"{row['id']} {row['peer']}: {row['result']}"


def result(row: Row) -> Iterator[str]:
    """Yield what a command has done."""
    yield str(row["result"])


def option(row: Row) -> Iterator[str]:
    """Yield the line of an option."""
    worker = f" (worker {row['worker']})" if "worker" in row else ""
    yield f"{row['name']} {row['value']}{worker}"


def command(row: Row) -> Iterator[str]:
    """Yield the lines about a command."""
    yield row["usage"]
    yield f"    {row['help']}"
