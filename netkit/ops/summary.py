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

# The figures to which processes that have ended contributed, by the name of their counter in
# `netkit.ops.metrics`.
COUNTERS = {
    "refused": "netkit_connections_refused_total",
    "accepted": "netkit_connections_accepted_total",
    "closed": "netkit_connections_closed_total",
    "received": "netkit_received_bytes_total",
    "sent": "netkit_sent_bytes_total",
}
_GAUGES = ("connected", "held", "threads")


def status_row(
    state: ProgramState, answers: Sequence[Answer], counted: Sequence[Answer]
) -> dict[str, Any]:
    """Return the status as one JSON object. docs/operations.md lists its members.

    `answers` are those to ``"status"``, and `counted` those to ``"metrics"``.
    """
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
        **{name: sum(each[name] for each in good) for name in _GAUGES},
        **{name: _total(counter, counted, state.retired) for name, counter in COUNTERS.items()},
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


def _total(counter: str, counted: Sequence[Answer], retired: Mapping[str, float]) -> int:
    """The sum of a counter with all its labels, over all processes there are and have been."""
    every = [retired, *(each.value["counters"] for each in counted if each.value is not None)]
    return int(sum(it for one in every for key, it in one.items() if _base(key) == counter))


def _base(name: str) -> str:
    return name.partition("{")[0]
