"""The status of a whole program, made of what its processes have answered."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from typing import Any

from .. import __version__
from ..core.cores import has_gil
from ..process.program import Answer, ProgramState

_REASONS = {
    "starting": "the program does not accept clients yet",
    "suspended": "an operator has suspended it",
    "stopping": "it is stopping",
}

# The sums over all processes, and the counters of `netkit.ops.metrics` that have the share of the
# processes that have ended.
_SUMS = {
    "connected": None,
    "held": None,
    "refused": "netkit_connections_refused_total",
    "accepted": "netkit_connections_accepted_total",
    "closed": "netkit_connections_closed_total",
    "received": "netkit_received_bytes_total",
    "sent": "netkit_sent_bytes_total",
    "threads": None,
}


def status_row(state: ProgramState, answers: Sequence[Answer]) -> dict[str, Any]:
    """Return the status as one JSON object. docs/operations.md lists its members."""
    good = [answer.value for answer in answers if not answer.error]
    processes = [
        {"pid": answer.pid, "error": answer.error}
        if answer.error
        else {"pid": answer.pid, **answer.value, "error": ""}
        for answer in answers
    ]
    phase, reason = _phase(state, good)
    return {
        "version": __version__,
        "python": platform.python_version(),
        "gil": has_gil(),
        "pid": state.pid,
        "phase": phase,
        "ready": not reason,
        "reason": reason,
        "started_at": state.started_at,
        "uptime": max(0.0, time.time() - state.started_at),
        "addresses": list(state.addresses),
        "limit": good[0]["limit"] if good else None,
        **{name: _sum(name, good, state.retired) for name in _SUMS},
        "workers": state.workers,
        "restarts": state.restarts,
        "reloads": dict(state.reloads),
        "processes": processes,
    }


def _phase(state: ProgramState, good: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """The phase of the program, and why it is not ready; empty if it is."""
    phase = state.phase
    if phase == "ready" and good and all(each["suspended"] for each in good):
        phase = "suspended"
    if phase == "ready" and not good:
        return phase, "no process answers"
    return phase, _REASONS.get(phase, "")


def _sum(name: str, good: Sequence[Mapping[str, Any]], retired: Mapping[str, float]) -> int:
    total = sum(each[name] for each in good)
    counter = _SUMS[name]
    if counter is not None:
        total += sum(it for key, it in retired.items() if key.partition("{")[0] == counter)
    return int(total)
