"""The servers that are compared, and how one is started."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import machine
from processes import Process, process

ROOT = Path(__file__).resolve().parent.parent
BUILT = ROOT / ".bench"
PEERS = ROOT / "benchmarks" / "peers"
HOST = "127.0.0.1"
PATIENCE = 20.0  # seconds after which a server that does not listen has failed
SETTLING = 0.2  # seconds of rest between what was started and what is measured

PYTHON = "PYTHON"
FREE_THREADED = "FREE_THREADED"  # without the GIL
WITH_GIL = "WITH_GIL"  # the same build with it
_FREE_THREADED_NAMES = ("python3.15t", "python3.14t", "python3.13t")

NETKIT_WORKERS = (2, 4, 8)


class ServerError(Exception):
    """A server that does not start, or is gone."""


class Work(NamedTuple):
    """What a server does for each message. `amount`: milliseconds."""

    kind: str
    amount: float = 0


ECHO = Work("echo")


@dataclass(frozen=True)
class Peer:
    """A server. `command` begins with an interpreter (of the above), or it is a program."""

    name: str
    title: str
    command: tuple[str, ...]
    needs: str = ""
    """A module that its interpreter must have."""
    parallel: int = 1
    """How many clients it computes for at once, at most."""
    workers: int = 1
    gate: bool = True
    """Whether netkit's compiled calls are used, if they are built."""

    @property
    def in_python(self) -> bool:
        return self.command[0] in (PYTHON, FREE_THREADED, WITH_GIL)

    def cores(self) -> int:
        """What it can use of this machine when it computes."""
        return min(self.parallel, machine.cores())


ALL_CORES = 1 << 20


def _script(name: str) -> str:
    return str(PEERS / name)


def _netkit(name: str, title: str, style: str, **more: object) -> Peer:
    workers = int(str(more.get("workers", 1)))
    interpreter = str(more.get("interpreter", PYTHON))
    return Peer(
        name,
        title,
        (interpreter, _script("netkit_server.py"), style, str(workers)),
        parallel=ALL_CORES if interpreter == FREE_THREADED else workers,
        workers=workers,
        gate=bool(more.get("gate", True)),
    )


NETKIT = [
    _netkit("netkit", "**netkit**, `Handler` class", "handler"),
    _netkit("netkit-plain", "**netkit**, the same without the gate", "handler", gate=False),
    _netkit("netkit-function", "**netkit**, `for chunk in conn`", "function"),
    _netkit("netkit-loop", "**netkit**, `socketserver` handler", "loop"),
    *(
        _netkit(f"netkit-w{count}", f"**netkit**, {count} workers", "handler", workers=count)
        for count in NETKIT_WORKERS
    ),
    _netkit("netkit-ft", "**netkit**, free-threaded", "handler", interpreter=FREE_THREADED),
]
NETKIT_WITH_LIMITS = _netkit("netkit-limits", "**netkit**, with all time limits", "limits")
NETKIT_WITH_GIL = _netkit(
    "netkit-ft-gil", "**netkit**, free-threaded build with the GIL", "handler", interpreter=WITH_GIL
)

C = Peer("c", "C, thread per client", (str(BUILT / "server"), "--port"), parallel=ALL_CORES)
NODE = Peer("node", "Node `net`", ("node", _script("node_net.js")))
GO = Peer("go", "Go `net`", (str(BUILT / "go_net"),), parallel=ALL_CORES)
CEILING = Peer(
    "ceiling", "the load generator's ceiling", (str(BUILT / "server"), "--epoll", "--port")
)
SOCKETSERVER = Peer(
    "socketserver", "`socketserver.ThreadingTCPServer`", (PYTHON, _script("stdlib_socketserver.py"))
)

# The least that a loop in Python costs: what the interpreter itself makes impossible.
GATED_THREADS = Peer(
    "threads-gate",
    "a `threading.Thread` per client, with netkit's gate",
    (PYTHON, _script("bare_threads.py"), "gated"),
)

_ASYNCIO_STREAMS = (PYTHON, _script("asyncio_streams.py"), "asyncio")

OTHERS = [
    SOCKETSERVER,
    Peer(
        "socketserver-ft",
        "`socketserver.ThreadingTCPServer`, free-threaded",
        (FREE_THREADED, _script("stdlib_socketserver.py")),
        parallel=ALL_CORES,
    ),
    Peer("threads", "a `threading.Thread` per client", (PYTHON, _script("bare_threads.py"))),
    GATED_THREADS,
    Peer("asyncio-streams", "asyncio, streams", _ASYNCIO_STREAMS),
    Peer(
        "asyncio-protocol",
        "asyncio, protocol",
        (PYTHON, _script("asyncio_protocol.py"), "asyncio"),
    ),
    Peer(
        "uvloop-streams",
        "uvloop, streams",
        (PYTHON, _script("asyncio_streams.py"), "uvloop"),
        needs="uvloop",
    ),
    Peer(
        "uvloop-protocol",
        "uvloop, protocol",
        (PYTHON, _script("asyncio_protocol.py"), "uvloop"),
        needs="uvloop",
    ),
    Peer("gevent", "gevent", (PYTHON, _script("gevent_stream.py")), needs="gevent"),
    Peer("trio", "trio", (PYTHON, _script("trio_streams.py")), needs="trio"),
    Peer("twisted", "Twisted", (PYTHON, _script("twisted_protocol.py")), needs="twisted"),
    NODE,
    GO,
    C,
]

# Those that can broadcast.
CHATS = [peer for peer in OTHERS if peer.name in ("asyncio-protocol", "uvloop-protocol", NODE.name)]

# The same wait as in `sleep`, but in a call that blocks, as most libraries have it.
TO_THREAD = [
    Peer("asyncio-to-thread", "asyncio, streams, `to_thread`", _ASYNCIO_STREAMS),
    Peer("asyncio-to-pool", "asyncio, streams, `to_thread`, 256 threads", _ASYNCIO_STREAMS),
]

HTTP_SERVER = Peer(
    "http-server", "`python -m http.server`", (PYTHON, "-m", "http.server", "--bind", HOST)
)

ALL = [*NETKIT, NETKIT_WITH_LIMITS, NETKIT_WITH_GIL, *OTHERS, *TO_THREAD, HTTP_SERVER, CEILING]


@dataclass
class Laboratory:
    """The interpreters and programs there are."""

    free_threaded: str = ""
    skipped: dict[str, str] = field(default_factory=dict)
    """Why a server is not measured, by its name."""
    rounds: dict[str, int] = field(default_factory=dict)
    """How many rounds of its loop take a millisecond, by program: one measure for the whole run."""
    _port: int = 20000  # below those that the system gives to clients

    def __post_init__(self) -> None:
        self._find_free_threaded()
        for peer in ALL:
            if reason := self._missing(peer):
                self.skipped[peer.name] = reason
        self.rounds[PYTHON] = self._calibrated(sys.executable, _script("work.py"))
        for peer in (C, NODE, GO):
            if peer.name not in self.skipped:
                # C's ends with the option of the port; and a script belongs to its interpreter.
                self.rounds[peer.name] = self._calibrated(
                    *(word for word in peer.command if word != "--port")
                )

    @staticmethod
    def _calibrated(*command: str) -> int:
        return int(
            subprocess.run(
                [*command, "calibrate"], capture_output=True, text=True, check=True
            ).stdout
        )

    def _find_free_threaded(self) -> None:
        for name in [self.free_threaded] if self.free_threaded else _FREE_THREADED_NAMES:
            path = shutil.which(name) or ""
            code = "import sys; print(sys._is_gil_enabled())"
            if path and machine.output("env", "PYTHON_GIL=0", path, "-c", code) == "False":
                self.free_threaded = path
                return
        self.free_threaded = ""

    def _missing(self, peer: Peer) -> str:
        interpreter = self.interpreter(peer)
        if not interpreter or not shutil.which(interpreter):
            return "not here"
        code = f"import {peer.needs}"
        if peer.workers > 1:
            code = "import inspect, netkit; inspect.signature(netkit.serve).parameters['workers']"
        code += "; print('there')" if peer.needs or peer.workers > 1 else ""
        if peer is GATED_THREADS:
            code = "import netkit; print('there' if netkit.gate_active() else '')"
        if peer.needs or peer.workers > 1 or peer is GATED_THREADS:
            found = machine.output("env", f"PYTHONPATH={ROOT}", interpreter, "-c", code)
            return "" if found else "not installed" if peer.needs else "not supported"
        return ""

    def interpreter(self, peer: Peer) -> str:
        if peer.command[0] == PYTHON:
            return sys.executable
        return self.free_threaded if peer.in_python else peer.command[0]

    def _free_port(self) -> int:
        while True:
            self._port = 20000 + (self._port - 20000 + 1) % 10000
            with socket.socket() as sock, contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((HOST, self._port))
                return self._port

    def _command(self, peer: Peer, work: Work, port: int) -> list[str]:
        command = [self.interpreter(peer), *peer.command[1:], str(port)]
        if peer in (HTTP_SERVER, CEILING):
            return command
        if peer in TO_THREAD:
            return [*command, f"{work.kind}-{peer.name.removeprefix('asyncio-')}", str(work.amount)]
        if work.kind == "compute":
            rounds = self.rounds[PYTHON if peer.in_python else peer.name]
            return [*command, "rounds", str(round(work.amount * rounds))]
        return [*command, work.kind, *([str(work.amount)] if work.amount else [])]

    @contextlib.contextmanager
    def serving(
        self, peer: Peer, work: Work = ECHO, settling: float = SETTLING
    ) -> Iterator[Server]:
        """A server that listens, until the end of the block."""
        port = self._free_port()
        environment = {"PYTHONPATH": str(ROOT)} | ({} if peer.gate else {"NETKIT_GATE": "off"})
        if peer.command[0] in (FREE_THREADED, WITH_GIL):
            environment["PYTHON_GIL"] = str(int(peer.command[0] == WITH_GIL))
        started = time.monotonic()
        with process(self._command(peer, work, port), environment) as running:
            server = Server(peer, running, port)
            server.wait_until_listening()
            server.starting = time.monotonic() - started
            while settling and len(machine.tree(running.pid)) < peer.workers:
                server.check()
                time.sleep(0.05)
            time.sleep(settling)
            yield server
            server.check()


@dataclass
class Server:
    """One that runs."""

    peer: Peer
    process: Process
    port: int
    starting: float = 0.0
    """Seconds from the start of the process until it accepted a connection."""
    stopped: bool = False

    def pids(self) -> list[int]:
        return machine.tree(self.process.pid)

    def check(self) -> None:
        """ServerError if it is gone, unless it was stopped."""
        status = self.process.popen.poll()
        if status is not None and not self.stopped:
            said = self.process.said().rpartition("\n")[2]
            raise ServerError(f"ended with status {status}: {said}")

    def wait_until_listening(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with contextlib.suppress(ConnectionError):
                socket.create_connection((HOST, self.port)).close()
                return
            self.check()
            time.sleep(0.0005)
        raise ServerError(f"does not listen after {PATIENCE:.0f} s")
