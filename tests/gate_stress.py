"""A mixed load for the compiled module of netkit, by hand and under the sanitizers of the compiler.

    python tests/gate_stress.py [--seconds N] [--sanitizer address|undefined|thread]

Many threads exchange messages of all sizes, compute, and run into time limits. Meanwhile other
threads end their connections, signals arrive, and the process forks. At the end the process exits
while its threads wait and work. With a sanitizer, the module is compiled for it ($CC, or cc), and
each report that names the module is a failure: the interpreter itself is an ordinary one. With that
of addresses the process does not fork. The exit status is 1 after a failure.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import importlib.util
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "netkit" / "net" / "_gate.c"
MODULE = "netkit.net._gate"

LIBRARIES = {"address": "libasan.so", "thread": "libtsan.so", "undefined": "libubsan.so"}
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0",
    "TSAN_OPTIONS": "die_after_fork=0 report_signal_unsafe=0 exitcode=0",
    "UBSAN_OPTIONS": "halt_on_error=1 print_stacktrace=1",
}
GRACE = 120.0  # seconds beyond its own that the load may take under a sanitizer

gate: Any = None
errors: list[str] = []
counts: dict[str, int] = {}
sizes = (1, 1, 10, 500, 5000, 100_000, 1_000_000)


def load(path: str) -> None:
    """Import the module from `path`, or as usual if that is empty."""
    global gate
    sys.path.insert(0, str(ROOT))
    if path:
        spec = importlib.util.spec_from_file_location(MODULE, path)
        assert spec and spec.loader
        sys.modules[MODULE] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[MODULE])
    from netkit.net import gate as loaded

    if not loaded.gate_active():
        sys.exit("the module is not built: bin/build")
    gate = loaded


def forever(work: Callable[[random.Random], None]) -> None:
    """Repeat `work`. Anything unexpected that it raises is an error of the run."""
    numbers = random.Random(work.__name__ + str(threading.get_ident()))
    while True:
        try:
            work(numbers)
        except BaseException as error:
            errors.append(f"{work.__name__}: {error!r}")
            raise
        counts[work.__name__] = counts.get(work.__name__, 0) + 1


@contextlib.contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, peer = socket.socketpair()
    with ours, peer:
        yield ours, peer


def exchange(numbers: random.Random) -> None:
    """Requests and replies of one connection. The peer is a thread, too."""
    with pair() as (ours, peer):
        other = threading.Thread(target=echo, args=[peer], daemon=True)
        other.start()
        for _ in range(numbers.randrange(1, 50)):
            message = numbers.randbytes(numbers.choice(sizes))
            sender = threading.Thread(target=gate.sendall, args=(ours, message), daemon=True)
            sender.start()
            reply = bytearray()
            while len(reply) < len(message):
                reply += gate.recv(ours, numbers.choice(sizes))
            assert reply == message
            sender.join()
        ours.shutdown(socket.SHUT_WR)
        other.join()


def echo(sock: socket.socket) -> None:
    buffer = bytearray(50_000)
    while size := gate.recv_into(sock, buffer):
        if size % 3 == 0:
            end = time.monotonic() + 0.0005
            while time.monotonic() < end:
                pass
        done = 0
        while done < size:
            done += gate.send(sock, memoryview(buffer)[done:size])


def time_limits(numbers: random.Random) -> None:
    """Waits that end by a limit of the kernel or of Python."""
    with pair() as (ours, _):
        if numbers.random() < 0.5:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 2000))
        else:
            ours.settimeout(0.002)
        with contextlib.suppress(BlockingIOError, TimeoutError):
            gate.recv(ours, 10)
            raise AssertionError


def ends(numbers: random.Random) -> None:
    """Another thread closes the peer, or shuts down the socket in use.

    It does not close the socket: the thread in `recv` may have read the number of the descriptor,
    which could belong to another socket by then.
    """
    with pair() as (ours, peer):
        other = threading.Thread(target=until_the_end, args=[ours], daemon=True)
        other.start()
        for _ in range(numbers.randrange(5)):
            gate.send(peer, b"x")
        if numbers.random() < 0.5:
            peer.close()
        else:
            ours.shutdown(socket.SHUT_RDWR)
        other.join()


def until_the_end(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it is shut down
        while gate.recv(sock, 10):
            gate.send(sock, b"reply")


def fork() -> None:
    """A child begins with an open gate, while the threads of the parent wait at theirs."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(60)  # a child that hangs ends
        with pair() as (ours, peer):
            gate.sendall(ours, b"child")
            os._exit(0 if gate.recv(peer, 10) == b"child" else 1)
    assert os.waitpid(child, 0)[1] == 0
    counts["fork"] = counts.get("fork", 0) + 1


def run(seconds: float, forks: bool) -> None:
    """The load, in this process."""
    warnings.simplefilter("ignore")  # about forks
    faulthandler.dump_traceback_later(seconds + GRACE, exit=True)
    signal.signal(signal.SIGALRM, lambda *_: counts.update(signal=counts.get("signal", 0) + 1))
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    works = [exchange] * 10 + [time_limits] * 2 + [ends] * 3
    for work in works:
        threading.Thread(target=forever, args=[work], daemon=True).start()
    end = time.monotonic() + seconds
    with pair() as (ours, peer):
        while time.monotonic() < end and not errors:
            if forks:
                fork()
            gate.sendall(peer, b"x" * 100)  # the main thread, which the signals interrupt
            gate.recv(ours, 100)
            time.sleep(0.02)
    signal.setitimer(signal.ITIMER_REAL, 0)
    print(*(f"{name} {count}" for name, count in sorted(counts.items())), sep=", ")
    print(*errors, sep="\n", end="", flush=True)
    if errors:
        os._exit(1)
    # The interpreter ends while all these threads wait and work.


def compiled(sanitizer: str, folder: str) -> str:
    """Compile the module for a sanitizer, and return its path."""
    path = f"{folder}/_gate{sysconfig.get_config_var('EXT_SUFFIX')}"
    compiler = os.environ.get("CC", "cc")
    flags = ["-std=c11", "-g", "-O1", "-fno-omit-frame-pointer", f"-fsanitize={sanitizer}"]
    include = f"-I{sysconfig.get_path('include')}"
    command = [compiler, *flags, "-shared", "-fPIC", "-pthread", include, "-o", path, str(SOURCE)]
    subprocess.run(command, check=True)
    return path


def sanitized(sanitizer: str, seconds: float) -> int:
    """Run the load under a sanitizer. Returns the exit status."""
    compiler = os.environ.get("CC", "cc")
    if shutil.which(compiler) is None:
        print(f"{sanitizer}: skipped, since there is no C compiler ({compiler})")
        return int(os.environ.get("CI") == "true")
    find = [compiler, f"-print-file-name={LIBRARIES[sanitizer]}"]
    library = subprocess.run(find, capture_output=True, text=True, check=True).stdout.strip()
    with tempfile.TemporaryDirectory() as folder:
        path = compiled(sanitizer, folder)
        environment = {**os.environ, **OPTIONS, "LD_PRELOAD": library, "PYTHONMALLOC": "malloc"}
        command = [sys.executable, __file__, "--seconds", str(seconds), "--module", path]
        if sanitizer == "address":  # its allocator may keep a forked child waiting for a lock
            command.append("--no-forks")
        log = Path(folder, "log")
        with log.open("wb") as file:  # a child that hangs would keep a pipe open
            done = subprocess.run(command, env=environment, stdout=file, stderr=file)
        output = log.read_text(errors="replace")
    reports = re.split(r"(?=^(?:=+$\s)?.*(?:WARNING|ERROR): \w+Sanitizer)", output, flags=re.M)
    ours = [report for report in reports if "_gate.c" in report]
    print(reports[0].strip(), *ours, sep="\n")
    others = len(reports) - 1 - len(ours)
    print(f"{sanitizer}: status {done.returncode}, {len(ours)} reports, {others} of others")
    return 1 if ours or done.returncode else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--sanitizer", choices=sorted(LIBRARIES))
    parser.add_argument("--module", default="", help=argparse.SUPPRESS)
    parser.add_argument("--no-forks", dest="forks", action="store_false", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.sanitizer:
        sys.exit(sanitized(options.sanitizer, options.seconds))
    load(options.module)
    run(options.seconds, options.forks)


if __name__ == "__main__":
    main()
