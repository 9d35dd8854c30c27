"""What Linux tells about processes and about the machine."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

PROC = Path("/proc")
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def cores() -> int:
    """What this process, and so each server, may use."""
    return len(os.sched_getaffinity(0))


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """What is started meanwhile runs on a single core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def tree(pid: int) -> list[int]:
    """`pid` and all that descend from it."""
    children = defaultdict(list)
    for path in PROC.glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            children[int(_after_name(path)[1])].append(int(path.parent.name))
    found = [pid]
    for process in found:
        found += children[process]
    return found


def memory(pids: Iterable[int]) -> int:
    """Bytes. Pages that several processes share are divided between them (PSS)."""
    return sum(_kilobytes(PROC / str(pid) / "smaps_rollup", {"Pss"}) for pid in pids) * 1024


def kernel_memory() -> int:
    """Bytes that the kernel uses for sockets, threads and page tables, of all processes."""
    return _kilobytes(PROC / "meminfo", {"Slab", "KernelStack", "PageTables"}) * 1024


def cpu_seconds(pids: Iterable[int]) -> float:
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            ticks += sum(map(int, _after_name(PROC / str(pid) / "stat")[11:13]))
    return ticks / TICKS_PER_SECOND


def others_cpu_seconds() -> float:
    """What all processes have used that are not ours, with what they have waited for.

    Without init, which inherits what is left of ours.
    """
    ours = {1, *tree(os.getpid())}
    ticks = 0
    for path in PROC.glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.parent.name) not in ours:
                ticks += sum(map(int, _after_name(path)[11:15]))
    return ticks / TICKS_PER_SECOND


def switches(pids: Iterable[int]) -> dict[str, int]:
    """For each thread how often it was given a core, which is how often it was woken or more."""
    found = {}
    for pid in pids:
        for path in PROC.glob(f"{pid}/task/*/status"):
            with contextlib.suppress(OSError):
                lines = path.read_text().splitlines()
                found[path.parent.name] = sum(
                    int(line.split()[1]) for line in lines if "ctxt_switches" in line
                )
    return found


def threads(pids: Iterable[int]) -> list[int]:
    return [int(path.name) for pid in pids for path in PROC.glob(f"{pid}/task/*")]


def tracer(thread: int) -> int:
    """Who traces it; 0: nobody."""
    for line in (PROC / str(thread) / "status").read_text().splitlines():
        if line.startswith("TracerPid:"):
            return int(line.split()[1])
    return 0


def describe() -> dict[str, str]:
    model = "unknown"
    for line in (PROC / "cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    gibibytes = _kilobytes(PROC / "meminfo", {"MemTotal"}) / 2**20
    return {
        "processor": model,
        "cores": str(cores()),
        "memory": f"{gibibytes:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "C library": " ".join(platform.libc_ver()),
    }


def output(*command: str) -> str:
    """The first line that a program writes; nothing if it cannot be run or fails."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        text = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
            stdin=subprocess.DEVNULL,
        ).stdout
        return text.partition("\n")[0].strip()
    return ""


def _after_name(stat: Path) -> list[str]:
    """The fields of /proc/PID/stat from the state on: the name before it may contain anything."""
    return stat.read_text().rpartition(")")[2].split()


def _kilobytes(path: Path, names: set[str]) -> int:
    total = 0
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in names:
                total += int(rest.split()[0])
    return total
