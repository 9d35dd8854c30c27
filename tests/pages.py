"""What the tests of metrics share: judges of a page, and a program that is not there."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from support import PATIENCE, receive_all, tool

from netkit.process.program import Answer, ProgramState

STATE = ProgramState("ready", 1, 1.5, 0, 0, {}, {}, ["127.0.0.1:80"])


def samples_of(page: str) -> dict[str, float]:
    """The samples of a page that is valid for the library of Prometheus, which also checks it."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(page):
        assert family.documentation, family
        for each in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in each.labels.items())
            name = f"{each.name}{{{labels}}}" if labels else each.name
            assert name not in found, name
            found[name] = each.value
    return found


def check_by_promtool(page: str) -> None:
    """Fail if Prometheus's own tool finds a fault or a bad name."""
    done = subprocess.run(
        [tool("promtool"), "check", "metrics"],
        input=page,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


class NoProgram:
    """A program of which the test gives the answers. `state` may be replaced, too."""

    def __init__(self, *answers: Answer, ask: Callable[[], list[Answer]] | None = None) -> None:
        self.answers = list(answers)
        self.present = STATE
        self.states: list[ProgramState] = []  # the next ones, before `present`
        self.asked = 0
        self._ask = ask

    def state(self) -> ProgramState:
        return self.states.pop(0) if self.states else self.present

    def ask(self, command: str, *_: Any, **__: Any) -> list[Answer]:
        assert command == "metrics"
        self.asked += 1
        return self.answers if self._ask is None else self._ask()

    def order(self, command: str, **arguments: Any) -> None:
        raise AssertionError


def told(pid: int, counters: dict[str, float], gauges: dict[str, float] | None = None) -> Answer:
    """The answer of a process to the question for its metrics."""
    return Answer(pid, {"counters": counters, "gauges": gauges or {}})


def asked(address: Any, request: bytes) -> bytes:
    """What a status endpoint answers to `request`. The address is a path or that of TCP."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(address)
        sock.sendall(request)
        return receive_all(sock)


def page_of(address: Any, path: str = "/metrics") -> str:
    """A page of a status endpoint, whose status must be 200."""
    head, _, body = asked(address, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()).partition(
        b"\r\n\r\n"
    )
    assert head.startswith(b"HTTP/1.1 200 OK\r\n"), head
    return body.decode()


def until(seconds: float) -> Callable[[], bool]:
    """A function that is true until so many seconds have passed."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() < end
