"""The options of a server, in one place for the library and the command line.

An option ``max_line`` of the library is the flag ``--max-line`` of the command line: both come from
the table below. Times are seconds, sizes are bytes, None disables.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from .encodings import check_encoding

# With the GIL: as few threads as possible contend for each one. More than this did not help, and a
# process has its price in memory (docs/benchmarks).
WORKERS_PER_CORE = 4
MAX_WORKERS = 1024  # what is more must be a mistake


class _Values(NamedTuple):
    drain_timeout: float = 10.0
    idle_timeout: float | None = None
    encoding: str = "utf-8"
    max_line: int = 64 * 1024
    max_message: int | None = 16 * 1024 * 1024
    # Replies are written whole, so that waiting to fill a packet (RFC 896) only delays them.
    no_delay: bool = True
    # A peer that lost its power never says goodbye: without probes its thread waits for ever.
    keep_alive: bool = True
    handler_args: Mapping[str, Any] = MappingProxyType({})


class Options(_Values):
    """What `Server`, `create_server` and `serve` take as keyword arguments.

    Immutable. TypeError or ValueError (LookupError for an encoding), naming the option, for a value
    that cannot be meant; TypeError for an option that there is not.
    """

    __slots__ = ()

    def __new__(cls, **given: Any) -> Options:
        for name, value in given.items():
            if name not in cls._fields:
                known = ", ".join(cls._fields)
                raise TypeError(f"unknown option {name!r}; the options are {known}")
            if name == "handler_args":
                if not isinstance(value, Mapping):
                    raise TypeError(f"handler_args must be a mapping, not {value!r}")
            else:
                FLAGS[name].check(name, value)
        return super().__new__(cls, **given)


def check_seconds(name: str, value: object, zero: bool = True) -> None:
    """TypeError or ValueError, with `name`, unless `value` is a finite time, positive or 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if not (math.isfinite(value) and (value > 0 or (zero and value == 0))):
        least = "0 or more" if zero else "more than 0"
        raise ValueError(f"{name} must be {least} seconds, not {value!r}")
    if value > threading.TIMEOUT_MAX:  # about 300 years
        raise ValueError(
            f"{name} must be at most {threading.TIMEOUT_MAX:.0f} seconds, not {value!r}"
        )


def check_workers(count: object) -> int:
    """How many processes `count` means. TypeError or ValueError if it cannot be meant.

    ``"auto"``: one on a free-threaded build, and `WORKERS_PER_CORE` for each core elsewhere.
    """
    if count == "auto":
        if not getattr(sys, "_is_gil_enabled", lambda: True)():
            return 1
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0)) * WORKERS_PER_CORE
        return (os.cpu_count() or 1) * WORKERS_PER_CORE  # pragma: no cover - macOS
    if isinstance(count, bool) or not isinstance(count, int):
        raise TypeError(f"workers must be a number of processes, or 'auto', not {count!r}")
    if not 1 <= count <= MAX_WORKERS:
        raise ValueError(f"workers must be from 1 to {MAX_WORKERS}, not {count}")
    if count > 1 and os.name != "posix":  # pragma: no cover - Windows
        raise ValueError("worker processes need a POSIX system; leave workers at 1")
    return count


def _check_limit(name: str, value: object) -> None:
    if value is not None:
        check_seconds(name, value, zero=False)


def check_bytes(name: str, value: object) -> None:
    """TypeError or ValueError, with `name`, unless `value` is a number of bytes, at least one."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a number of bytes, not {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1 byte, not {value}")


def _check_bytes_or_none(name: str, value: object) -> None:
    if value is not None:
        check_bytes(name, value)


def _bytes_or_off(text: str) -> int | None:
    return None if text == "off" else int(text)


def _check_switch(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")


def _check_encoding(_: str, value: Any) -> None:
    check_encoding(value)


class Flag(NamedTuple):
    """How an option is checked, and how the command line takes it."""

    check: Callable[[str, Any], None]
    type: Callable[[str], Any]
    metavar: str
    help: str


FLAGS = {
    "drain_timeout": Flag(
        check_seconds, float, "SECONDS", "what busy clients get to finish when the server stops"
    ),
    "idle_timeout": Flag(
        _check_limit, float, "SECONDS", "what a read or a write may wait for its client"
    ),
    "encoding": Flag(_check_encoding, str, "NAME", "how text is written, and lines are read"),
    "max_line": Flag(check_bytes, int, "BYTES", "what a line may have"),
    "max_message": Flag(
        _check_bytes_or_none, _bytes_or_off, "BYTES", "what a message may have, or 'off'"
    ),
    "no_delay": Flag(_check_switch, bool, "on|off", "send small writes at once (TCP_NODELAY)"),
    "keep_alive": Flag(_check_switch, bool, "on|off", "probe silent clients, to find dead ones"),
}
