"""A server that speaks the protocol of a control socket, with answers that the test chooses."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import netkit

NESTED = "[" * 100_000 + "\n"
"""JSON that Python does not read, since it is nested too deeply."""


class ControlServer:
    """Answers each request by the text or the rows in `answers`, or that a function there gives."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.requests: list[str] = []
        self.answers: dict[str, Any] = {}

    def answer(self, conn: netkit.Connection) -> None:
        request = conn.readline().decode().removesuffix("\n")
        self.requests.append(request)
        found = self._found(request)
        if isinstance(found, str):
            conn.write(found)
        else:
            for row in found:
                conn.write(json.dumps(row) + "\n")

    def _found(self, request: str) -> Any:
        name = max((key for key in self.answers if request.startswith(key)), key=len, default=None)
        found = "error: no such command\n" if name is None else self.answers[name]
        return found() if callable(found) else found


@contextlib.contextmanager
def control_server(path: Path, **answers: Any) -> Iterator[ControlServer]:
    """A `ControlServer` that listens on `path` in the block."""
    control = ControlServer(path)
    control.answers.update(answers)
    with netkit.create_server(control.answer).listen(path=path):
        yield control


def client_row(number: int, **changes: Any) -> dict[str, Any]:
    """A row of `json conns`."""
    return {
        "id": str(number),
        "worker": 4711,
        "peer": f"192.0.2.{number % 256}:50312",
        "via": "",
        "local": "127.0.0.1:8080",
        "state": "serving",
        "age": 60.0 * number,
        "idle": 1.5,
        "in": 1000 * number,
        "out": 2_000_000 * number,
        "rtt": 0.0021,
        "retransmits": 0,
        "send_queue": 0,
        "tls": "",
        "end": "",
        "where": "app.py:12 shout",
        **changes,
    }


def status_row(**changes: Any) -> dict[str, Any]:
    """The row of `json status`."""
    return {
        "version": "0.1.0",
        "python": "3.13.0",
        "gil": True,
        "pid": 4711,
        "phase": "ready",
        "ready": True,
        "reason": "",
        "started_at": 1_000_000.0,
        "uptime": 3725.0,
        "addresses": ["127.0.0.1:8080"],
        "connected": 3,
        "held": 0,
        "limit": 100,
        "refused": 0,
        "accepted": 1234,
        "closed": 1231,
        "received": 5_000_000,
        "sent": 7_000_000_000,
        "threads": 6,
        "workers": 0,
        "restarts": 0,
        "reloads": {"ok": 0, "failed": 0},
        "processes": [],
        **changes,
    }
