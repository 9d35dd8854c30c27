"""For all tests: servers, plain clients, waits, and programs in processes of their own."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import signal
import socket
import socketserver
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import settings

import netkit
from netkit.core import events
from netkit.core.buffer import ReceiveBuffer
from netkit.server import log_hooks

ROOT = Path(__file__).resolve().parent.parent
_Self = TypeVar("_Self", bound="Program")

PATIENCE = 30.0  # seconds after which a test fails that waits for something


def wait_until(condition: Callable[[], Any], what: str = "it") -> None:
    """Return once `condition` holds; fail if it does not within `PATIENCE`."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.002)


def examples(least: int) -> settings:
    """Settings for `least` examples of generated input, or more if the profile has more."""
    return settings(max_examples=max(least, settings().max_examples), deadline=None)


@contextlib.contextmanager
def serving(handler: Any, **options: Any) -> Iterator[netkit.Server]:
    """A server on a free port of 127.0.0.1 that serves in the background until the block ends."""
    with netkit.create_server(handler, **options).listen(0, "127.0.0.1") as server:
        yield server


@contextlib.contextmanager
def serving_forever(server: netkit.Server) -> Iterator[threading.Thread]:
    """Run `server.serve_forever` in a thread. The end of the block closes the server."""
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield thread
    finally:
        server.server_close()
        thread.join(PATIENCE)
        assert not thread.is_alive()


@contextlib.contextmanager
def served(server: netkit.Server) -> Iterator[netkit.Server]:
    """As `serving_forever`; yields the server."""
    with server, serving_forever(server):
        yield server


def echo(conn: netkit.Connection) -> None:
    """Sends everything back."""
    for data in conn:
        conn.write(data)


class EchoRequest(socketserver.BaseRequestHandler):
    """As `echo`, for a handler that reads the bare socket."""

    def handle(self) -> None:
        while data := self.request.recv(65536):
            self.request.sendall(data)


# A handler of netkit's own kinds, and one of socketserver.
each_echo = pytest.mark.parametrize("handler", [echo, EchoRequest])


class Shout(socketserver.StreamRequestHandler):
    """Sends each line back in capitals."""

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line.upper())


@contextlib.contextmanager
def client(server: netkit.Server) -> Iterator[socket.socket]:
    """A plain socket that is connected to `server`. It has a time limit, so that no test hangs."""
    address = server.server_address
    with socket.create_connection(address[:2], timeout=PATIENCE) as sock:
        yield sock


@contextlib.contextmanager
def tcp_pair(
    host: str = "127.0.0.1", receive_buffer: int | None = None
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected TCP sockets: ours, which blocks, and the peer, which has a time limit.

    `receive_buffer` is the size of the peer's receive buffer in bytes.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        with socket.socket(family) as peer:
            peer.settimeout(PATIENCE)
            if receive_buffer is not None:
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            peer.connect(listener.getsockname()[:2])
            ours, _ = listener.accept()
            with ours:
                listener.close()
                yield ours, peer


@contextlib.contextmanager
def full_listener() -> Iterator[tuple[str, int]]:
    """The address of a listener that accepts no client and whose queue is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        time.sleep(0.01)  # until the kernel has put them into the queue, which no call shows
        yield listener.getsockname()


def receive_all(sock: socket.socket) -> bytes:
    """All that arrives before the end of input."""
    return b"".join(iter(lambda: sock.recv(65536), b""))


def input_of_client(server: netkit.Server) -> bytes:
    """Connect, send nothing, and return all that comes before the end of input."""
    with client(server) as sock:
        return receive_all(sock)


def exchange(server: netkit.Server, data: bytes) -> bytes:
    """Connect, send `data`, end our side, and return all that comes back."""
    with client(server) as sock:
        send_and_end(sock, data)
        return receive_all(sock)


def receive_exactly(sock: socket.socket, size: int) -> bytes:
    """Receive `size` bytes. The AssertionError of an earlier end of input shows what arrived."""
    received = bytearray()
    while len(received) < size:
        chunk = sock.recv(size - len(received))
        assert chunk, bytes(received)
        received += chunk
    return bytes(received)


def send_and_end(sock: socket.socket, data: bytes) -> None:
    """Send all of `data`, then end our side."""
    sock.sendall(data)
    with contextlib.suppress(OSError):  # of a reset, which the next read raises
        sock.shutdown(socket.SHUT_WR)


MUCH = 50_000_000  # bytes, more than the kernel's buffers hold


def fill(sock: socket.socket) -> int:
    """Send until the kernel takes no more. Returns how many bytes; the socket is blocking then.

    The kernel takes some more once it has moved what it has to the peer: after a delayed
    acknowledgement (40 ms), and after a window probe (200 ms). So it is full once it refuses a try
    that is made so long after the last bytes, however long this thread was not running before.
    """
    sent, full_since, tried_at = 0, time.monotonic(), 0.0
    sock.setblocking(False)
    while tried_at - full_since < 0.3:
        time.sleep(0.01)
        tried_at = time.monotonic()
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += sock.send(bytes(100_000))
                full_since = time.monotonic()
    sock.setblocking(True)
    return sent


@contextlib.contextmanager
def connected(
    host: str = "127.0.0.1", receive_buffer: int | None = None, **settings: Any
) -> Iterator[tuple[netkit.Connection, socket.socket]]:
    """A connection, which is destroyed after the block, and its peer."""
    with tcp_pair(host, receive_buffer) as (ours, peer):
        conn = netkit.Connection(ours, **settings)
        try:
            yield conn, peer
        finally:
            conn.destroy()


def reset(sock: socket.socket) -> None:
    """Close the socket so that the peer sees a reset (SO_LINGER with 0 seconds, socket(7))."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0))
    sock.close()


@contextlib.contextmanager
def in_thread(function: Callable[..., Any], *arguments: Any) -> Iterator[None]:
    """Call `function` in a thread; after the block, wait for its end and raise what it raised."""
    errors: list[BaseException] = []

    def call() -> None:
        try:
            function(*arguments)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    try:
        yield
    finally:
        thread.join(PATIENCE)
        assert not thread.is_alive(), function
    if errors:
        raise errors[0]


def once(
    condition: Callable[[], object], function: Callable[..., Any], *arguments: Any
) -> contextlib.AbstractContextManager[None]:
    """As `in_thread`, but call `function` only once `condition` holds."""
    return in_thread(lambda: (wait_until(condition), function(*arguments)))


def in_threads(function: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> None:
    """Call `function` with each tuple of arguments at once, and raise what one call raised."""
    with contextlib.ExitStack() as stack:
        for arguments in calls:
            stack.enter_context(in_thread(function, *arguments))


def until_reset(sock: socket.socket, data: bytes = b"") -> bytes:
    """Send `data`, and return all that arrives before a reset. Fails if the input ends instead."""
    received = bytearray()
    try:
        sock.sendall(data)
        while chunk := sock.recv(65536):
            received += chunk
    except (ConnectionResetError, BrokenPipeError):
        return bytes(received)
    pytest.fail(f"no reset, but an end, after {bytes(received)!r}")


def exchange_and_fail(server: netkit.Server, data: bytes) -> bytes:
    """As `exchange`, for a handler that raises: return what arrives before the reset."""
    try:
        with client(server) as sock:
            return until_reset(sock, data)
    except ConnectionResetError:  # before `connect` has returned
        return b""


def exchange_much(server: netkit.Server, data: bytes) -> bytes:
    """As `exchange`, for more than the kernel's buffers hold."""
    with client(server) as sock, in_thread(send_and_end, sock, data):
        return receive_all(sock)


class CountingBuffer(ReceiveBuffer):
    """A buffer that counts the bytes that searches and slices may touch."""

    touched = 0

    def find(self, wanted: Any, start: Any = 0, end: Any = None) -> int:
        self.touched += max(0, len(self) - start)
        return super().find(wanted, start)

    def __getitem__(self, key: Any) -> Any:
        part = super().__getitem__(key)
        self.touched += len(part) if isinstance(key, slice) else 1
        return part


# Every class of event.
EVENT_KINDS = {
    kind for kind in events.Event.__subclasses__() if kind.__module__.startswith("netkit.")
}


@contextlib.contextmanager
def observed(*kinds: type) -> Iterator[list[Any]]:
    """The events of these classes (or of all) that are emitted in the block."""
    seen: list[Any] = []
    unsubscribe = events.subscribe(
        lambda event: seen.append(event) if not kinds or isinstance(event, kinds) else None
    )
    try:
        yield seen
    finally:
        unsubscribe()


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="no IPv6 here")


def tool(name: str) -> str:
    """The path of a program. If it is not installed, the test is skipped, or fails with CI=true."""
    path = shutil.which(name)
    if path is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{name} is not installed")
        pytest.skip(f"{name} is not installed")
    return path


class Hostile:
    """A folder with modules that have the names of modules that netkit and Python import."""

    NAMES = ("argparse", "socket", "ssl", "json", "signal", "logging", "multiprocessing", "string")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        source = "import os\nos.close(os.open(__file__ + '.imported', os.O_CREAT))\n"
        for name in self.NAMES:
            (folder / f"{name}.py").write_text(source)
        (folder / "netkit").mkdir()
        (folder / "netkit" / "__init__.py").write_text(source)

    def imported(self) -> list[str]:
        """The modules of the folder that were imported."""
        return sorted(path.name for path in self.folder.rglob("*.imported"))


@contextlib.contextmanager
def logging_put_back() -> Iterator[None]:
    """Restore the configuration of logging after the block."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    hooks = [(module, name, getattr(module, name)) for module, name, _ in log_hooks.HOOKS]
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        for module, name, hook in hooks:
            setattr(module, name, hook)


_TIME_AND_LEVEL = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} ([A-Z]+) ")


def without_time(line: str) -> str:
    """A line of the log without its time, and without the level if that is below WARNING."""
    found = _TIME_AND_LEVEL.match(line)
    if found is None:
        return line
    level = "" if found[1] in ("DEBUG", "INFO") else f"{found[1].lower()}: "
    return level + line[found.end() :]


class Program:
    """A program in a process and session of its own. `port` is set once it listens."""

    def __init__(self, *command: Any, cwd: Any = ROOT, listening: bool = True) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        environment["PYTHONWARNINGS"] = "default"
        self.process = subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
            env=environment,
            start_new_session=True,
        )
        self.lines: list[str] = []
        """The lines that the program has written to standard error so far."""
        self.port = 0
        self._reader = threading.Thread(target=self._read_lines)
        self._reader.start()
        if listening:
            self._find_port()

    def _find_port(self) -> None:
        pattern = re.compile(r"listening on .*:(\d+)")
        try:
            self.wait_for_line(pattern)
        except BaseException:
            self.__exit__()
            raise
        self.port = int(next(m[1] for m in map(pattern.search, self.lines) if m))

    def _read_lines(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.lines.append(without_time(line.decode(errors="replace").rstrip("\n")))

    def wait_for_line(self, pattern: str | re.Pattern[str]) -> None:
        """Wait until a line on standard error matches. Fails if the program ends before."""

        def found() -> bool:
            return any(re.search(pattern, line) for line in list(self.lines))

        wait_until(lambda: found() or self.process.poll() is not None, f"a line {pattern!r}")
        if not found():
            self._reader.join(PATIENCE)  # the last lines may not have been read yet
        assert found(), self.lines

    def connect(self) -> socket.socket:
        """A plain socket that is connected to the program. The caller closes it."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def send_signal(self, signum: int = signal.SIGINT) -> None:
        self.process.send_signal(signum)

    def wait(self) -> int:
        """Wait for the end of the program, and return its exit status; `lines` is complete then."""
        try:
            status = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # the stack of each thread, by faulthandler
            self.process.wait()
            children = self.left_behind()
            self.__exit__()
            pytest.fail("\n".join(["it has not ended:", *self.lines, f"children: {children}"]))
        self._reader.join(PATIENCE)
        return status

    def children(self) -> list[int]:
        """The running processes that the program has started."""
        return [pid for pid, parent, _ in _processes() if parent == self.process.pid]

    def left_behind(self) -> list[int]:
        """The running processes of its process group, the program included."""
        return [pid for pid, _, group in _processes() if group == self.process.pid]

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        for pid in self.left_behind():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join()
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.stderr.close()


class Cli(Program):
    """``python -m netkit ARGUMENTS``."""

    def __init__(self, *arguments: str, cwd: Any = ROOT, listening: bool = True) -> None:
        super().__init__(sys.executable, "-m", "netkit", *arguments, cwd=cwd, listening=listening)


def _processes() -> Iterator[tuple[int, int, int]]:
    """Each running process: its number, its parent's, and its group's."""
    for pid, state, parent, group in _proc() if os.path.isdir("/proc/self") else _ps():
        if not state.startswith("Z"):
            yield int(pid), int(parent), int(group)


def _proc() -> Iterator[list[str]]:
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # the process has just ended
            yield [path.parent.name, *path.read_text().rpartition(")")[2].split()[:3]]


def _ps() -> Iterator[list[str]]:
    command = ["ps", "-A", "-o", "pid=,stat=,ppid=,pgid="]
    for line in subprocess.check_output(command, text=True).splitlines():
        yield line.split()


@contextlib.contextmanager
def silent_log() -> Iterator[None]:
    """Write no log records to standard error in the block, since the test provokes errors."""
    logger = logging.getLogger("netkit")
    logger.addHandler(handler := logging.NullHandler())
    propagate, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
