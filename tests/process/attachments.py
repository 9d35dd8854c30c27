"""An attachment for tests: it answers questions, and notes what it is asked to do."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import netkit
from netkit.process.program import Answering, Closeable, Program
from netkit.process.supervised import NoNotices, Notices, Supervised


class Noting:
    """Attached to `servers`; `calls` has the names of what has been done."""

    survives_terminal = False

    def __init__(self, attaches: bool = True, has_endpoints: bool = True) -> None:
        self.attaches, self.has_endpoints = attaches, has_endpoints
        self.calls: list[str] = []
        self.program: Program | None = None
        self.files = False
        self.figures = 0

    def open(self, servers: Sequence[netkit.Server]) -> None:
        self.calls.append("open")

    def attach(self, servers: Sequence[netkit.Server]) -> Answering:
        self.calls.append("attach")
        return self.answer

    def answer(self, command: str, arguments: dict[str, Any]) -> Any:
        if command == "metrics":
            self.figures += 1
            return {"counters": {"asked_total": self.figures}, "gauges": {"x": 1}}
        if command == "wrong":
            raise ValueError("a wrong question")
        if command == "fault":
            raise KeyError("fault")
        if command == "set":
            return {1, 2}  # no JSON value
        self.calls.append(command)
        return arguments

    def detach(self) -> None:
        self.calls.append("detach")

    def serve(self, program: Program) -> Closeable:
        self.calls.append("serve")
        self.program = program
        stack = contextlib.ExitStack()
        stack.callback(self.calls.append, "closed")
        return stack

    def report(self, program: Program) -> None:
        self.calls.append(f"report {program.state().phase}")

    def reopen(self) -> bool:
        self.calls.append("reopen")
        return self.files

    def forget(self) -> None:
        self.calls.append("forget")

    def prepare_log(self) -> None:
        self.calls.append("prepare_log")

    def notices(self, program: Supervised) -> Notices:
        return NoNotices()

    def close(self) -> None:
        self.calls.append("close")
