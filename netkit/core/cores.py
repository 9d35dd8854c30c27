"""The cores that this process may use, and the number of worker processes that suits them."""

from __future__ import annotations

import math
import os
import sys
from typing import Any

# With the GIL. One worker that stays on its core nearly fills it; a second one uses the core while
# threads of the first wait for its GIL, above all if handlers compute (docs/benchmarks).
# A quota of CPU time counts as so many cores, and the product is rounded up: one worker too few may
# leave a part of the quota unused. A worker for each core of a large machine would be far too many:
# together they spend a small quota early in each period, and the kernel stops all of them until the
# next one.
WORKERS_PER_CORE = 2
MAX_WORKERS = 1024  # more must be a mistake


def has_gil() -> bool:
    """Whether the threads of this process run Python one at a time."""
    return getattr(sys, "_is_gil_enabled", lambda: True)()


def usable_cores() -> tuple[int, ...]:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))  # pragma: no cover - macOS


def _for_all_cores() -> int:
    from .quota import cpu_quota  # here because most programs have one process

    cores, quota = len(usable_cores()), cpu_quota()
    cpus = cores if quota is None else min(cores, quota)
    return min(max(1, math.ceil(cpus * WORKERS_PER_CORE)), MAX_WORKERS)


def check_workers(count: Any) -> int:
    """Return a valid number of worker processes. TypeError or ValueError for an invalid one.

    ``"auto"`` is 1 on a free-threaded build, and `WORKERS_PER_CORE` for each core elsewhere: for
    each that this process may use, or for fewer if its control group has a quota of CPU time.
    """
    if count == "auto":
        return _for_all_cores() if has_gil() else 1
    if isinstance(count, bool) or not isinstance(count, int):
        raise TypeError(f"workers must be a number of processes, or 'auto', not {count!r}")
    if not 1 <= count <= MAX_WORKERS:
        raise ValueError(f"workers must be from 1 to {MAX_WORKERS}, not {count}")
    if count > 1 and os.name != "posix":  # pragma: no cover - Windows
        raise ValueError("worker processes need a POSIX system; leave workers at 1")
    return count
