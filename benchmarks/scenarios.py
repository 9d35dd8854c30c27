"""What is measured: for each scenario some points, for each point the servers and how.

A measurement has a server process of its own, and the load comes from a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import machine
from processes import Process, process
from servers import (
    BUILT,
    CEILING,
    CHATS,
    ECHO,
    HTTP_SERVER,
    NETKIT,
    NETKIT_WITH_GIL,
    NETKIT_WITH_LIMITS,
    OTHERS,
    SETTLING,
    TO_THREAD,
    C,
    Laboratory,
    Peer,
    Server,
    ServerError,
    Work,
)

Figures = dict[str, Any]

SLEEP_MS = 5.0
COMPUTE_MS = 1.0
WORKING_CLIENTS = 200
CALLS_CLIENTS = 10
SENDING_CLIENTS = 10
LOAD_PATIENCE = 180.0  # seconds beyond its own that the load generator may take


class LoadError(Exception):
    """The load generator failed, or saw errors; with what it measured nevertheless."""

    def __init__(self, text: str, figures: Figures | None = None) -> None:
        super().__init__(text)
        self.figures = figures or {}


@dataclass(frozen=True)
class Settings:
    seconds: float = 3.0
    quick: bool = False

    @property
    def warmup(self) -> float:
        """Until lazily made things are made, and a convoy has formed if there will be one."""
        return min(1.0, self.seconds / 3)


Measure = Callable[[Laboratory, Settings, Peer], Figures]


@dataclass(frozen=True)
class Point:
    scenario: str
    name: str
    peers: Sequence[Peer]
    measure: Measure


# The load generator


@contextlib.contextmanager
def _load(settings: Settings, server: Server, *arguments: object) -> Iterator[Process]:
    command = [BUILT / "load", *arguments, "--port", server.port]
    command += ["--seconds", settings.seconds, "--warmup", settings.warmup]
    with process([str(word) for word in command], piped=True) as running:
        yield running


def _result(running: Process, settings: Settings) -> Figures:
    """Let it run to its end. LoadError if there was none, or errors."""
    try:
        out, _ = running.popen.communicate(timeout=settings.seconds + LOAD_PATIENCE)
    except subprocess.TimeoutExpired:
        raise LoadError("the load generator did not end") from None
    figures = json.loads(out) if out else {}
    if running.popen.returncode != 0:
        raise LoadError(running.said().rpartition("load: ")[2] or "no result", figures)
    if figures["busy"] and not figures["requests"]:
        raise LoadError("no reply while it was measured", figures)
    return figures


def _run(settings: Settings, server: Server, *arguments: object) -> Figures:
    """The load's figures, what the server needed for a request, and the bytes in MiB."""
    before = machine.cpu_seconds(server.pids())
    with _load(settings, server, *arguments) as running:
        figures = _result(running, settings)
    used = machine.cpu_seconds(server.pids()) - before
    return {
        **figures,
        "server_cpu_us": used * 1e6 / max(1, figures["replies"]),
        "mib_per_s": figures["requests_per_s"] * figures["size"] / 2**20,
    }


@contextlib.contextmanager
def _idle_clients(
    settings: Settings, server: Server, clients: int, busy: int = 0
) -> Iterator[Process]:
    """Clients that have been served once, and wait. `_result` lets those run that are busy."""
    with _load(settings, server, "idle", "--clients", clients, "--busy", busy) as running:
        deadline = time.monotonic() + LOAD_PATIENCE
        while "ready" not in running.said():
            server.check()
            if running.popen.poll() is not None or time.monotonic() > deadline:
                raise LoadError(running.said() or "the clients cannot connect")
            time.sleep(0.01)
        yield running


# How a point is measured


def _loaded(work: Work, *arguments: object) -> Measure:
    def measure(laboratory: Laboratory, settings: Settings, peer: Peer) -> Figures:
        with laboratory.serving(peer, work) as server:
            return _run(settings, server, *arguments)

    return measure


def _on_one_core(measure: Measure) -> Measure:
    """Server and load take turns on one core: nothing counts but what they compute.

    With a core for each and one client, most of the time goes by until a core wakes up.
    """

    def wrapped(laboratory: Laboratory, settings: Settings, peer: Peer) -> Figures:
        with machine.one_core():
            return measure(laboratory, settings, peer)

    return wrapped


def _idle(clients: int, busy: int) -> Measure:
    """Memory; and, if some are busy, how much the idle ones are in their way."""

    def measure(laboratory: Laboratory, settings: Settings, peer: Peer) -> Figures:
        figures: Figures = {"clients": clients}
        if busy:
            with laboratory.serving(peer) as server:
                figures["alone"] = _run(settings, server, "echo", "--clients", busy)
        with laboratory.serving(peer) as server:
            memory, kernel = machine.memory(server.pids()), machine.kernel_memory()
            with _idle_clients(settings, server, clients, busy) as running:
                time.sleep(SETTLING)
                figures["memory"] = machine.memory(server.pids())
                figures["memory_per_client"] = (figures["memory"] - memory) / clients
                figures["kernel_per_client"] = (machine.kernel_memory() - kernel) / clients
                if busy:
                    figures["among_idle"] = _result(running, settings)
        return figures

    return measure


def _resting(clients: int) -> Measure:
    """How often a server wakes up that has nothing to do."""

    def measure(laboratory: Laboratory, settings: Settings, peer: Peer) -> Figures:
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(laboratory.serving(peer))
            if clients:
                stack.enter_context(_idle_clients(settings, server, clients))
            time.sleep(1.0)  # what was started or has served comes to rest
            pids = server.pids()
            woken, cpu = machine.switches(pids), machine.cpu_seconds(pids)
            start = time.monotonic()
            time.sleep(max(1.0, settings.seconds))
            taken = time.monotonic() - start
            cpu = machine.cpu_seconds(pids) - cpu
            more = sum(n - woken.get(thread, 0) for thread, n in machine.switches(pids).items())
            return {"wakeups_per_s": more / taken, "cpu_ms_per_s": cpu * 1000 / taken}

    return measure


def _stopping(clients: int) -> Measure:
    def measure(laboratory: Laboratory, settings: Settings, peer: Peer) -> Figures:
        with laboratory.serving(peer) as server, _idle_clients(settings, server, clients):
            start = time.monotonic()
            server.stopped = True
            server.process.popen.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.process.popen.wait(30)
            return {
                "seconds": time.monotonic() - start,
                "status": server.process.popen.poll(),
            }

    return measure


def _starting(laboratory: Laboratory, settings: Settings, peer: Peer) -> Figures:
    seconds = []
    for _ in range(2 if settings.quick else 5):
        with laboratory.serving(peer, settling=0) as server:
            seconds.append(server.starting)
    return {"seconds": sorted(seconds)[len(seconds) // 2], "all": seconds}


def _calls(laboratory: Laboratory, settings: Settings, peer: Peer) -> Figures:
    """System calls of the server for each exchange, as strace counts them."""
    with contextlib.ExitStack() as stack:
        summary = stack.enter_context(tempfile.NamedTemporaryFile())
        server = stack.enter_context(laboratory.serving(peer))
        clients = stack.enter_context(_idle_clients(settings, server, CALLS_CLIENTS, CALLS_CLIENTS))
        attach = [word for pid in server.pids() for word in ("-p", str(pid))]
        strace = stack.enter_context(process(["strace", "-c", "-f", "-o", summary.name, *attach]))
        threads = machine.threads(server.pids())
        deadline = time.monotonic() + 10
        while not all(map(machine.tracer, threads)):
            if strace.popen.poll() is not None or time.monotonic() > deadline:
                raise ServerError(strace.said() or "strace cannot attach")
            time.sleep(0.01)
        figures = _result(clients, settings)
        strace.popen.send_signal(signal.SIGINT)
        strace.popen.wait(30)
        exchanges = max(1, figures["replies"] - CALLS_CLIENTS)  # the first was before
        counted = {
            match[2]: int(match[1]) / exchanges
            for match in re.finditer(
                rb"^ *[\d.]+ +[\d.]+ +\d+ +(\d+) +(?:\d+ +)?([a-z]\w+)$", summary.read(), re.M
            )
            if match[2] != b"total"
        }
    by_name = {name.decode(): calls for name, calls in counted.items()}
    return {"calls": sum(by_name.values()), "by_name": by_name}


# The points


def _some(*names: str) -> list[Peer]:
    return [peer for peer in NETKIT if peer.name in names]


def points(settings: Settings) -> list[Point]:
    quick = settings.quick
    everybody = [*NETKIT, *OTHERS]
    chosen = [
        *_some("netkit", "netkit-plain", "netkit-function", "netkit-w2", "netkit-w4", "netkit-ft"),
        *OTHERS,
    ]
    few = [*_some("netkit", "netkit-w2", "netkit-ft"), *OTHERS]
    found = [
        Point(
            "echo",
            f"{clients} clients",
            [*everybody, CEILING],
            _loaded(ECHO, "echo", "--clients", clients, "--size", 64),
        )
        for clients in (10, 100, 1000)
    ]
    found += [
        Point(
            "overhead",
            "1 client",
            [
                *_some("netkit", "netkit-function", "netkit-loop"),
                NETKIT_WITH_LIMITS,
                *(peer for peer in OTHERS if peer.name in ("socketserver", "threads", "c")),
            ],
            _on_one_core(_loaded(ECHO, "echo", "--clients", 1, "--size", 64)),
        ),
        Point(
            "connect",
            "20 clients",
            [*everybody, CEILING],
            _loaded(ECHO, "connect", "--clients", 20),
        ),
        *(
            Point(
                "bulk",
                f"{title} messages, 4 clients",
                [*chosen, CEILING],
                _loaded(ECHO, "echo", "--clients", 4, "--size", size),
            )
            for title, size in (("64 KiB", 1 << 16), ("1 MiB", 1 << 20))
        ),
        *(
            Point(
                "broadcast",
                f"{members} members",
                [*_some("netkit", "netkit-ft"), *CHATS],
                _loaded(
                    Work("broadcast"), "broadcast", "--clients", members, "--busy", SENDING_CLIENTS
                ),
            )
            for members in (100, 1000)
        ),
        Point(
            "sleep",
            f"{WORKING_CLIENTS} clients, {SLEEP_MS:g} ms",
            [*chosen, *TO_THREAD],
            _loaded(Work("sleep", SLEEP_MS), "echo", "--clients", WORKING_CLIENTS),
        ),
        Point(
            "compute",
            f"{WORKING_CLIENTS} clients, {COMPUTE_MS:g} ms",
            chosen,
            _loaded(Work("compute", COMPUTE_MS), "echo", "--clients", WORKING_CLIENTS),
        ),
        *(
            Point("idle", f"{clients} clients", few, _idle(clients, busy))
            for clients, busy in (
                ((100, 0), (1000, 100)) if quick else ((100, 0), (1000, 0), (10_000, 100))
            )
        ),
        *(
            Point("rest", f"{clients} idle clients", few, _resting(clients))
            for clients in (0, 100 if quick else 1000)
        ),
        Point(
            "stop",
            "100 clients" if quick else "1000 clients",
            few,
            _stopping(100 if quick else 1000),
        ),
        Point("start", "", [*few, HTTP_SERVER], _starting),
        Point("calls", f"{CALLS_CLIENTS} clients", [*few, NETKIT_WITH_LIMITS], _calls),
    ]
    scaling = [*_some("netkit", "netkit-w2", "netkit-w4", "netkit-ft"), NETKIT_WITH_GIL, C]
    found += [
        Point(
            "scaling",
            f"{clients} clients",
            scaling,
            _loaded(Work("compute", COMPUTE_MS), "echo", "--clients", clients),
        )
        for clients in (1, 2, 4, 8, 16)
    ]
    return found
