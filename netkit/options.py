"""The options of a server, in one place for the library and the command line.

An option ``max_line`` of the library is the flag ``--max-line`` of the command line: both are made
from the fields below. Times are seconds, sizes are bytes, None disables.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from .encodings import check_encoding


def _option(default: Any, help: str, kind: type = float) -> Any:
    return field(default=default, metadata={"help": help, "kind": kind})


@dataclass(frozen=True)
class Options:
    """What `Server`, `create_server` and `serve` take as keyword arguments.

    Immutable. ValueError or TypeError, naming the option, for a value that cannot be meant.
    """

    drain_timeout: float = _option(
        10.0, "seconds that busy clients get to finish when the server stops"
    )
    idle_timeout: float | None = _option(
        None, "seconds a read or a write may wait for the client; then TimeoutError"
    )
    encoding: str = _option("utf-8", "how text is written, and read by lines()", str)
    max_line: int = _option(64 * 1024, "bytes that a line may have", int)
    # Replies are written whole, so that waiting to fill a packet (RFC 896) only delays them.
    no_delay: bool = _option(True, "send small writes at once (TCP_NODELAY)", bool)
    # A peer that lost its power never says goodbye: without probes its thread waits for ever.
    keep_alive: bool = _option(True, "probe silent clients, to find dead ones", bool)
    handler_args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_seconds("drain_timeout", self.drain_timeout)
        if self.idle_timeout is not None:
            check_seconds("idle_timeout", self.idle_timeout, zero=False)
        check_encoding(self.encoding)
        if isinstance(self.max_line, bool) or not isinstance(self.max_line, int):
            raise TypeError(f"max_line must be a number of bytes, not {self.max_line!r}")
        if self.max_line < 1:
            raise ValueError(f"max_line must be at least 1 byte, not {self.max_line}")
        for name in ("no_delay", "keep_alive"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, not {getattr(self, name)!r}")
        if not isinstance(self.handler_args, Mapping):
            raise TypeError(f"handler_args must be a mapping, not {self.handler_args!r}")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Options:
        """From keyword arguments; TypeError that names an unknown one and those there are."""
        names = [option.name for option in fields(cls)]
        for name in given:
            if name not in names:
                raise TypeError(f"unknown option {name!r}; the options are {', '.join(names)}")
        return cls(**given)


def check_seconds(name: str, value: object, zero: bool = True) -> None:
    """TypeError or ValueError, with `name`, unless `value` is a finite time, positive or 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if not (math.isfinite(value) and (value > 0 or (zero and value == 0))):
        least = "0 or more" if zero else "more than 0"
        raise ValueError(f"{name} must be {least} seconds, not {value!r}")
