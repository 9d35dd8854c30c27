"""A program of one process, or of several that are faked, for the tests of its operation."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from support import PATIENCE, receive_all

import netkit
from netkit.ops.answers import Answers
from netkit.process.program import Answer, ProgramState

Ask = Callable[[str, dict[str, Any]], Any]


class FakeProgram:
    """Serves with `servers` in this process; `others` are workers, by the number of each.

    With `others`, this process is a worker, too.
    """

    def __init__(self, *servers: netkit.Server, others: dict[int, Ask] | None = None) -> None:
        self.others = others or {}
        self.questions = Answers(servers).questions
        self.servers = servers
        self.phase = "ready"
        self.retired: dict[str, float] = {}
        self.orders: list[tuple[str, dict[str, Any]]] = []

    def state(self) -> ProgramState:
        count = len(self.others) and len(self.others) + 1
        addresses = [str(each) for server in self.servers for each in server.addresses]
        return ProgramState(
            self.phase,
            os.getpid(),
            time.time() - 10,
            count,
            0,
            {"ok": 0, "failed": 0},
            self.retired,
            addresses,
        )

    def ask(
        self,
        command: str,
        arguments: dict[str, Any],
        pids: Collection[int] | None = None,
        seconds: float = 1.0,
    ) -> list[Answer]:
        every: dict[int, Ask] = {os.getpid(): self.answer, **self.others}
        return [
            _answer(pid, ask, command, arguments)
            for pid, ask in every.items()
            if pids is None or pid in pids
        ]

    def answer(self, question: str, arguments: dict[str, Any]) -> Any:
        return self.questions[question](**arguments)

    def order(self, command: str, /, **arguments: Any) -> None:
        if command == "resize" and not self.others:
            raise ValueError("one process serves, without workers")
        self.orders.append((command, arguments))


def _answer(pid: int, ask: Ask, command: str, arguments: dict[str, Any]) -> Answer:
    try:
        return Answer(pid, ask(command, arguments))
    except (ValueError, TimeoutError) as error:
        return Answer(pid, None, str(error))


class Operator:
    """Somebody who gives commands at the control socket `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def connect(self) -> socket.socket:
        """A plain socket with a time limit. The caller closes it."""
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(PATIENCE)
        sock.connect(str(self.path))
        return sock

    def ask(self, command: str) -> str:
        """The answer to a command, as text."""
        with self.connect() as sock:
            sock.sendall(f"{command}\n".encode())
            return receive_all(sock).decode()

    def rows(self, command: str) -> list[dict[str, Any]]:
        """The answer to a command, as JSON objects."""
        return list(map(json.loads, self.ask(f"json {command}").splitlines()))
