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
from .profiles import PROFILES
from .record import NamedTuple

if TYPE_CHECKING:
    from .blocklist import BlockList

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
    check: Callable[[str, Any], Any]
    parse: Callable[[str], Any] | None = None
    metavar: str = ""
    number: str = ""
    group: str = "limits"


def kind_of(value: object) -> str:
    """Describe a value that may be a secret, for an error."""
    return f"of type {type(value).__name__}"


# Numbers


def check_seconds(name: str, value: Any, zero: bool = True) -> float:
    """Return `value` if it is a finite time, positive or, with `zero`, 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if not (value > 0 or (zero and value == 0)):  # also for NaN
        least = "0 or more" if zero else "more than 0"
        raise ValueError(f"{name} must be {least} seconds, not {value!r}")
    if value > LONGEST_TIME:
        raise ValueError(f"{name} must be at most {LONGEST_TIME:.0f} seconds, not {value!r}")
    return value


def check_timeout(name: str, value: Any) -> float:
    """Return `value` if it is a finite time of more than 0 seconds."""
    return check_seconds(name, value, zero=False)


def check_rate(name: str, value: Any) -> float:
    """Return `value` if it is a positive number per second."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number per second, not {value!r}")
    if not 0 < value <= sys.float_info.max:
        raise ValueError(f"{name} must be more than 0 per second, not {value!r}")
    return value


def check_whole(name: str, value: Any, noun: str, least: int, at_least: str) -> int:
    """Return `value` if it is an integer of at least `least`. Errors contain the two texts."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be {noun}, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be {at_least}, not {value}")
    return value


def check_count(name: str, value: Any) -> int:
    """Return `value` if it is a number of connections, or 0."""
    return check_whole(name, value, "a number of connections", 0, "0 or more connections")


def check_bytes(name: str, value: Any) -> int:
    """Return `value` if it is a positive number of bytes."""
    return check_whole(name, value, "a number of bytes", 1, "at least 1 byte")


def parse_seconds(text: str) -> float:
    """Convert ``30``, ``1.5s``, ``500ms``, ``5m`` or ``2h``. ValueError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)(ms|s|m|h)", text, re.ASCII)
    if match is None:
        return parse_number(text)
    factor, divisor = _UNITS[match[2]]
    return float(match[1]) * factor / divisor  # `* 0.001` would not be exact


def parse_number(text: str) -> float:
    """Convert a finite number. ValueError for anything else."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


_TIME = "a time such as 30, 500ms, 5m or 2h"
DURATION = Kind("seconds", check_seconds, parse_seconds, "TIME", _TIME, "time")
TIMEOUT = Kind("seconds", check_timeout, parse_seconds, "TIME", _TIME, "time")
COUNT = Kind("number", check_count, int, "N", "a number")
RATE = Kind("number per second", check_rate, parse_number, "N", "a number")
BYTE_RATE = RATE._replace(noun="bytes per second", metavar="BYTES", number="a number of bytes")
SIZE = Kind("bytes", check_bytes, int, "BYTES", "a number of bytes")


# Words


def check_switch(name: str, value: Any) -> bool:
    """Return `value` if it is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return value


def parse_switch(text: str) -> bool:
    """Convert ``on`` or ``off``. ValueError for anything else."""
    if text not in ("on", "off"):
        raise ValueError(f"it must be on or off, not {text!r}")
    return text == "on"


def check_text(name: str, value: Any) -> str:
    """Return `value` if it is text. An error does not show it, since it may be a secret."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be text, not {kind_of(value)}")
    return value


def _check_profile(name: str, value: Any) -> Any:
    if value not in tuple(PROFILES):
        raise ValueError(f"{name} must be {', '.join(map(repr, PROFILES))}, not {value!r}")
    return value


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


def _check_mapping(name: str, value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a mapping, not {kind_of(value)}")
    return value


SWITCH = Kind("True or False", check_switch, parse_switch, "on|off", group="data")
TEXT = Kind("text", check_text, str, "TEXT")
ENCODING = Kind("name", lambda _, value: check_encoding(value), str, "NAME", group="data")
PROFILE = Kind("name", _check_profile, str, "NAME")
WHEN_FULL = Kind(
    '`"wait"`, `"refuse"` or seconds', _check_when_full, _parse_when_full, "wait|refuse|TIME"
)
MAPPING = Kind("mapping", _check_mapping, group="data")


# Lists of addresses


def check_list(name: str, value: Any) -> BlockList:
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
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    except OSError as error:
        raise type(error)(error.errno, f"{name}: {error.strerror}", error.filename) from None


LIST = Kind("list of addresses", check_list, str, "LIST")
