"""Runs a server with good, slow, hostile and dying clients. Its state must not change.

    python tests/soak.py --seconds 600 [--seed 7] [--handler function|request] [--tls PEM --ca PEM]

The server is a process of its own, which is also sent signals and, on Linux, deprived of
descriptors for moments. After all clients have left, it must have as many threads and descriptors
as at the start. Python must have allocated at most `BLOCKS` blocks more, and the resident set must
have grown by at most `MEMORY`. A good client must not have met an error. The exit status is 0 if
all of this is so.

With `--handler request` the handler is one of `socketserver`, which reads the socket itself. With a
certificate and its key, the good clients and half of the others speak TLS. The rest send data that
is not TLS.

Threads and descriptors are counted for the first time after one client. Memory is measured for the
first time after a round of each kind of client, since the interpreter imports, compiles and fills
its caches until then. Before both measurements the server collects garbage, and has the C library
return free memory (malloc_trim(3)).

The tolerance of blocks is for caches and for a log record or two. An object that is leaked for each
of some hundred clients a second exceeds it within seconds. The resident set contains arenas that
are not quite empty, as many as the clients needed at the worst moment; it shows memory that Python
does not count. On builds without the GIL it has no limit, since Python 3.13 keeps what threads have
used that have ended.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import goodclients
from goodclients import GoodClients, good_clients

ROOT = Path(__file__).resolve().parent.parent
BLOCKS = 2_000
MEMORY = 16 * 1024 if getattr(sys, "_is_gil_enabled", lambda: True)() else float("inf")  # KiB
SETTLING = 20.0  # seconds that the last clients and idle threads have to end
PATIENCE = 30.0  # seconds for each step of a client, since the machine is busy

SERVER = """
import ctypes, gc, signal, socketserver, sys
import netkit, netkit.server.threads

netkit.server.threads.ClientThreads.park_seconds = 0.1
kept = []

def bad(conn, said):
    if said.startswith(b"!raise"):
        raise ValueError("on purpose")
    if said.startswith(b"!exit"):
        sys.exit()
    if said.startswith(b"!file"):
        kept[:] = [getattr(conn, "socket", conn).makefile("rwb")]
    if said.startswith(b"!line"):
        for line in conn.lines() if isinstance(conn, netkit.Connection) else conn.makefile("rb"):
            write(conn, line)
    while said.startswith(b"!flood"):
        write(conn, b"flood" * 10_000)

def write(conn, data):
    (conn.write if isinstance(conn, netkit.Connection) else conn.sendall)(data)

def function(conn):
    for chunk in conn:
        if chunk.startswith(b"!"):
            return bad(conn, chunk)
        conn.write(chunk)

class Request(socketserver.BaseRequestHandler):
    def handle(self):
        while chunk := self.request.recv(65536):
            if chunk.startswith(b"!"):
                return bad(self.request, chunk)
            self.request.sendall(chunk)

def tidy_up(*_):
    gc.collect()
    getattr(ctypes.CDLL(None), "malloc_trim", int)(0)
    print(sys.getallocatedblocks(), flush=True)

signal.signal(signal.SIGUSR1, tidy_up)
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
kind, cert = sys.argv[1:]
limits = {"max_connections": 800, "idle_timeout": 20, "tls_cert": cert or None}
if kind == "function":  # the other kind has a limit for each call of its socket
    limits["write_timeout"] = 0.5
server = netkit.create_server({"function": function, "request": Request}[kind], **limits)
server.listen(0, "127.0.0.1")
print(server.address.port, flush=True)
report = netkit.run(server)
signal.setitimer(signal.ITIMER_REAL, 0)
print(report, flush=True)
"""


class Measured(NamedTuple):
    """What the process of the server holds: `memory` in KiB, `blocks` of Python's allocator."""

    threads: int
    descriptors: int
    memory: int
    blocks: int = 0

    def __str__(self) -> str:
        return ", ".join(f"{value} {name}" for name, value in self._asdict().items() if value)


class Setup(NamedTuple):
    """The kind of handler, ``function`` or ``request``, and the certificate, if there is one."""

    handler: str = "function"
    tls: str = ""  # a file with the certificate and its key
    ca: str = ""  # a file with the certificate of its issuer


class Served:
    """The process of the server."""

    def __init__(self, setup: Setup) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self._context = ssl.create_default_context(cafile=setup.ca) if setup.tls else None
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, setup.handler, setup.tls],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
        )
        self.port = int(self._line())

    def _line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline()

    def connect(self) -> Any:
        """Connect as a good client does."""
        sock = self.connect_bare()
        if self._context is None:
            return sock
        try:
            return self._context.wrap_socket(sock, server_hostname="localhost")
        except BaseException:
            sock.close()
            raise

    def connect_bare(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def connect_somehow(self, chance: random.Random) -> Any:
        return self.connect() if chance.random() < 0.5 else self.connect_bare()

    def leave(self, sock: Any) -> None:
        """End a conversation as a good client does."""
        if self._context is None:
            goodclients.leave(sock)
        else:
            sock.unwrap()

    def measure(self) -> Measured:
        folder = Path(f"/proc/{self.process.pid}")
        status = (folder / "status").read_text()
        memory, threads = re.findall(r"^(?:VmRSS|Threads):\s+(\d+)", status, re.MULTILINE)
        descriptors = len(list((folder / "fd").iterdir()))
        return Measured(int(threads), descriptors, int(memory))

    def at_rest(self, wanted: Measured | None = None) -> Measured:
        """What it holds without clients, once that is as `wanted`, or no longer changes."""
        deadline = time.monotonic() + SETTLING
        last, unchanged = self.measure(), 0
        while (unchanged < 3 if wanted is None else last[:2] != wanted[:2]) and (
            time.monotonic() < deadline
        ):
            time.sleep(0.3)  # longer than a thread waits for its next client
            measured = self.measure()
            unchanged = unchanged + 1 if measured[:2] == last[:2] else 0
            last = measured
        self.process.send_signal(signal.SIGUSR1)
        blocks = int(self._line())
        return self.measure()._replace(blocks=blocks)

    def stop(self) -> tuple[int, str]:
        self.process.send_signal(signal.SIGTERM)
        report = self._line()
        return self.process.wait(PATIENCE), report.strip()

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stdout
        self.process.stdout.close()


# Clients that are not good. Each function is called again and again, and may raise OSError.


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()


def slow(served: Served, chance: random.Random) -> None:
    """Sends and reads a byte at a time, with pauses."""
    with served.connect_somehow(chance) as sock:
        for byte in b"a line that takes its time\n":
            sock.send(bytes([byte]))
            time.sleep(chance.random() / 100)
            sock.recv(1)


def garbage(served: Served, chance: random.Random) -> None:
    with served.connect_somehow(chance) as sock:
        sock.sendall(chance.randbytes(chance.randrange(1, 200_000)))
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(65536):
            pass


def demanding(served: Served, chance: random.Random) -> None:
    """Makes the handler fail in one way or another, and leaves in one way or another."""
    said = (b"!raise", b"!exit", b"!file", b"!line half a li", b"!flood", b"")
    with served.connect_somehow(chance) as sock:
        sock.settimeout(0.1)
        sock.sendall(chance.choice(said))
        way = chance.randrange(4)
        if way < 2:
            sock.recv(chance.choice((1, 100_000)))
        if way % 2:
            reset(sock)


def crowd(served: Served, chance: random.Random) -> None:
    """A hundred connect and reset at once."""
    socks = [served.connect_somehow(chance) for _ in range(100)]
    for sock in socks:
        sock.send(chance.choice((b"x", b"!flood", b"!line half")))
    for sock in socks:
        reset(sock)
    time.sleep(0.2)


def endless_line(served: Served, chance: random.Random) -> None:
    with served.connect_somehow(chance) as sock:
        sock.sendall(b"!line")
        for _ in range(50):
            sock.sendall(b"x" * 20_000)


def deaf(served: Served, chance: random.Random) -> None:
    """Reads nothing of a flood until the server cuts the connection."""
    with served.connect_somehow(chance) as sock:
        sock.sendall(b"!flood")
        time.sleep(chance.random())


def staying(served: Served, chance: random.Random) -> None:
    """Some whose handler fails, and that go on sending while the server closes."""
    socks = [served.connect_somehow(chance) for _ in range(20)]
    for sock in socks:
        sock.sendall(chance.choice((b"!raise", b"!line" + b"x" * 70_000)))
        sock.setblocking(False)
    for _ in range(chance.randrange(10)):
        for sock in socks:
            with contextlib.suppress(OSError):
                sock.send(b"and more")
        time.sleep(0.02)
    for sock in socks:
        sock.close()


def urgent(served: Served, chance: random.Random) -> None:
    """Sends bytes out of band, which a server does not see (RFC 6093)."""
    with served.connect_bare() as sock:
        for _ in range(chance.randrange(1, 100)):
            sock.send(b"some")
            sock.send(b"!", socket.MSG_OOB)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(65536):
            pass


def lawless(served: Served, chance: random.Random) -> None:
    """Sends invalid records during the handshake or after it."""
    with served.connect_somehow(chance) as sock:
        sock.settimeout(0.2)
        header = b"\x17\x03\x03\x01\0" if chance.random() < 0.5 else b"\x16\x03\x01\x01\0"
        socket.socket.sendall(sock, header + chance.randbytes(chance.choice((10, 256, 5000))))
        if chance.random() < 0.5:
            sock.recv(100)


def dying(served: Served, chance: random.Random) -> None:
    """A process that is stopped for a while, and then killed."""
    source = (
        "import socket, sys\n"
        "socks = [socket.create_connection(('127.0.0.1', int(sys.argv[1]))) for _ in range(4)]\n"
        "for sock, said in zip(socks, (b'half a li', b'!flood', b'!line', b'')): sock.send(said)\n"
        "print(flush=True)\n"
        "while socks[1].recv(1000): pass\n"
    )
    command = [sys.executable, "-I", "-S", "-c", source, str(served.port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        time.sleep(chance.random() / 4)
        if chance.random() < 0.5:
            process.send_signal(signal.SIGCONT)
            time.sleep(0.05)
        process.kill()


def starving(served: Served, chance: random.Random) -> None:
    """No client: leaves the server without free descriptors for a moment."""
    import resource

    pid = served.process.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = len(os.listdir(f"/proc/{pid}/fd"))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (used, limits[1]))
    try:
        time.sleep(0.1)
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    time.sleep(chance.random())


KINDS = (
    *(slow, garbage, demanding, crowd, endless_line, deaf),
    *(staying, urgent, lawless, dying, starving),
)


class Attack:
    """A thread for each kind of client, and a second one for some kinds, until the block ends."""

    def __init__(self, served: Served, seed: int) -> None:
        self.turns = dict.fromkeys((kind.__name__ for kind in KINDS), 0)
        self._served = served
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._repeat, args=(kind, random.Random(f"{seed} {number}")))
            for number, kind in enumerate((*KINDS, slow, garbage, demanding, deaf))
        ]

    def _repeat(self, kind: Callable[[Served, random.Random], None], chance: random.Random) -> None:
        while True:
            with contextlib.suppress(OSError):
                kind(self._served, chance)
            self.turns[kind.__name__] += 1
            if self._over.wait(0.01):
                return

    def __enter__(self) -> Attack:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


@contextlib.contextmanager
def attacked(served: Served, seed: int) -> Iterator[tuple[GoodClients, Attack]]:
    """Good clients, and all kinds of other clients at the same time."""
    with good_clients(served.connect, staying=4, returning=4, leave=served.leave) as good:
        with Attack(served, seed) as attack:
            yield good, attack


class Result(NamedTuple):
    """The state `before` and `after`, and how many `blocks` of good clients came back intact."""

    before: Measured
    after: Measured
    blocks: int
    turns: dict[str, int]
    status: int
    report: str

    def problems(self) -> list[str]:
        """What is different from what it should be."""
        found = []
        pairs = zip(self.before, self.after, strict=True)
        more = Measured(*(after - before for before, after in pairs))
        if more[:2] != (0, 0) or more.memory > MEMORY or more.blocks > BLOCKS:
            found.append(f"before: {self.before}; after: {self.after}")
        if (self.status, self.report) != (0, "stopped: 0 finished, 0 cut"):
            found.append(f"status {self.status}, {self.report!r}")
        return found


def soak(seconds: float, seed: int, setup: Setup, say: Callable[[str], Any] = str) -> Result:
    """Run the server for that time. Exceptions of good clients are raised."""
    with Served(setup) as served:
        with good_clients(served.connect, staying=0, leave=served.leave):
            pass  # so that the server has made all that it keeps
        start = served.at_rest()
        with attacked(served, seed) as (good, attack):
            while not all(attack.turns.values()):
                good.go_on(1)
        before = served.at_rest(start)
        say(f"before: {before}")
        end = time.monotonic() + seconds
        with attacked(served, seed + 1) as (good, attack):
            while time.monotonic() < end:
                time.sleep(min(10.0, max(0.0, end - time.monotonic())))
                good.go_on(1)
                say(f"{max(0.0, end - time.monotonic()):5.0f} s left, now: {served.measure()}")
        after = served.at_rest(before)
        say(f"after: {after}")
        say(f"good blocks: {good.blocks}, the others: {attack.turns}")
        return Result(before, after, good.blocks, attack.turns, *served.stop())


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--handler", choices=("function", "request"), default="function")
    parser.add_argument("--tls", metavar="PEM", default="", help="a certificate and its key")
    parser.add_argument("--ca", metavar="PEM", default="", help="who has signed it")
    arguments = parser.parse_args()
    print(f"{arguments.seconds:g} seconds, --seed {arguments.seed}", flush=True)
    setup = Setup(arguments.handler, arguments.tls, arguments.ca)
    result = soak(arguments.seconds, arguments.seed, setup, lambda text: print(text, flush=True))
    problems = result.problems()
    print(*problems or ["as it was before"], sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
