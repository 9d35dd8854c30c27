"""The kinds of values that options have: how each is checked, and how text becomes one.

A check takes the name of an option and a value, and returns the value to store. It raises TypeError
or ValueError, with the name, if the value is invalid. Times are seconds, sizes are bytes.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .encodings import check_encoding
from .record import NamedTuple

if TYPE_CHECKING:
    from .blocklist import BlockList

Check = Callable[[str, Any], Any]

# The longest time that a wait of a thread can take. It is `threading.TIMEOUT_MAX`: some 300 years,
# or 49 days on Windows.
LONGEST_TIME = 4294967.0 if sys.platform == "win32" else 9223372036.0

_UNITS = {"ms": (1, 1000), "s": (1, 1), "m": (60, 1), "h": (3600, 1)}


class Kind(NamedTuple):
    """A kind of values.

    `noun` names it in the table of docs/options.md. `parse` converts text to a value, or
    raises ValueError; it is None if the values cannot be written as text. In the help of a command,
    `metavar` is the name of the value, and `group` the heading of the flag. `number` describes the
    text of a number, for errors.
    """

    noun: str
    check: Check
    parse: Callable[[str], Any] | None = None
    metavar: str = ""
    number: str = ""
    group: str = "limits"


def kind_of(value: object) -> str:
    """Describe a value that may be a secret, for an error."""
    return f"of type {type(value).__name__}"


def instance(kind: Any, noun: str, is_secret: bool = False) -> Check:
    """Return a check of the type. Errors show the value unless it may be a secret."""

    def check(name: str, value: Any) -> Any:
        if not isinstance(value, kind):
            shown = kind_of(value) if is_secret else repr(value)
            raise TypeError(f"{name} must be {noun}, not {shown}")
        return value

    return check


def number(kind: Any, noun: str, limits: str, holds: Callable[[Any], bool]) -> Check:
    """Return a check of a number, for which `holds` is true if it is within the `limits`."""

    def check(name: str, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, kind):
            raise TypeError(f"{name} must be {noun}, not {value!r}")
        if not holds(value):
            raise ValueError(f"{name} must be {limits}, not {value!r}")
        return value

    return check


# Numbers

_REAL = (int, float)
_check_time = number(_REAL, "a number of seconds", "0 or more seconds", lambda it: it >= 0)
_check_limit = number(_REAL, "a number of seconds", "more than 0 seconds", lambda it: it > 0)
_check_rate = number(
    _REAL,
    "a number per second",
    "more than 0 per second",
    lambda it: 0 < it <= sys.float_info.max,
)
check_count = number(int, "a number of connections", "0 or more connections", lambda it: it >= 0)
check_bytes = number(int, "a number of bytes", "at least 1 byte", lambda it: it >= 1)


def check_seconds(name: str, value: Any, zero: bool = True) -> Any:
    """Return `value` if it is a time that a thread can wait, positive or, with `zero`, 0."""
    (_check_time if zero else _check_limit)(name, value)
    if value > LONGEST_TIME:
        raise ValueError(f"{name} must be at most {LONGEST_TIME:.0f} seconds, not {value!r}")
    return value


def parse_seconds(text: str) -> float:
    """Convert ``30``, ``1.5s``, ``500ms``, ``5m`` or ``2h``. ValueError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)(ms|s|m|h)", text, re.ASCII)
    if match is None:
        return _parse_number(text)
    factor, divisor = _UNITS[match[2]]
    return float(match[1]) * factor / divisor  # `* 0.001` would not be exact


def _parse_number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


_TIME = "a time such as 30, 500ms, 5m or 2h"
DURATION = Kind("seconds", check_seconds, parse_seconds, "TIME", _TIME, "time")
TIMEOUT = DURATION._replace(check=lambda name, value: check_seconds(name, value, zero=False))
COUNT = Kind("number", check_count, int, "N", "a number")
RATE = Kind("number per second", _check_rate, _parse_number, "N", "a number")
BYTE_RATE = RATE._replace(noun="bytes per second", metavar="BYTES", number="a number of bytes")
SIZE = Kind("bytes", check_bytes, int, "BYTES", "a number of bytes")


# Words


def _parse_switch(text: str) -> bool:
    if text not in ("on", "off"):
        raise ValueError(f"it must be on or off, not {text!r}")
    return text == "on"


def _check_when_full(name: str, value: Any) -> Any:
    if value in ("wait", "refuse"):
        return value
    if isinstance(value, str):
        raise ValueError(f"{name} must be 'wait', 'refuse' or a number of seconds, not {value!r}")
    return check_seconds(name, value)


def _parse_when_full(text: str) -> str | float:
    try:
        return parse_seconds(text)
    except ValueError:
        return text


def _check_list(name: str, value: Any) -> BlockList:
    """Return `value` as a `BlockList`. OSError, with the name, if a file cannot be read.

    It is one, or rules as for `BlockList.of`, or text: rules with commas between them, or ``@`` and
    the path of a file.
    """
    from .blocklist import BlockList  # here because most programs have no list

    try:
        if isinstance(value, str):
            is_file = value.startswith("@")
            return BlockList.load(value[1:]) if is_file else BlockList.of(value.split(","))
        return BlockList.of(value)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name}: {error}") from None
    except OSError as error:
        raise type(error)(error.errno, f"{name}: {error.strerror}", error.filename) from None


_check_switch = instance(bool, "True or False")
SWITCH = Kind("True or False", _check_switch, _parse_switch, "on|off", group="data")
TEXT = Kind("text", instance(str, "text", is_secret=True), str, "TEXT")
ENCODING = Kind("name", lambda _, value: check_encoding(value), str, "NAME", group="data")
WHEN_FULL = Kind(
    '`"wait"`, `"refuse"` or seconds', _check_when_full, _parse_when_full, "wait|refuse|TIME"
)
MAPPING = Kind("mapping", instance(Mapping, "a mapping", is_secret=True), group="data")
LIST = Kind("list of addresses", _check_list, str, "LIST")
