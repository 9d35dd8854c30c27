"""Parses the arguments of the commands of the control socket.

Each function takes the text after the name of a command, and returns a dictionary. ValueError says
what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..core import events
from ..core.blocklist import BlockList
from ..core.cores import check_workers
from ..core.kinds import parse_seconds
from ..core.text import printable
from ..server.log_config import LEVELS
from . import settings
from .states import STATES

Arguments = dict[str, Any]
_DIGITS = 18  # of a number


def quoted(text: str) -> str:
    """Return the beginning of an operator's text for an error."""
    return f"'{printable(text[:100])}'"


def nothing(text: str) -> Arguments:
    """Parse the arguments of a command that has none."""
    if text:
        raise ValueError(f"unexpected {quoted(text)}")
    return {}


def filters(text: str) -> Arguments:
    """Parse filters of clients: ``older=60 idle=30 peer=10.0.0.0/8 worker=4242 state=closing``."""
    found: Arguments = {}
    for word in text.split():
        name, equals, value = word.partition("=")
        if name not in _FILTERS or not equals:
            raise ValueError(f"unknown filter {quoted(word)}")
        try:
            found[name] = _FILTERS[name](value)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return found


def _seconds(text: str) -> float:
    try:
        seconds = parse_seconds(text)
    except ValueError:
        seconds = -1.0
    if seconds < 0:
        raise ValueError(f"{quoted(text)} is not a time such as 30, 500ms, 5m or 2h")
    return seconds


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= _DIGITS):
        raise ValueError(f"{quoted(text)} is not a number")
    return int(text)


def _network(text: str) -> str:
    BlockList([text])
    return text


def _state(text: str) -> str:
    if text not in STATES:
        raise ValueError(f"it must be one of {', '.join(STATES)}, not {quoted(text)}")
    return text


_FILTERS: dict[str, Callable[[str], Any]] = {
    "older": _seconds,
    "idle": _seconds,
    "peer": _network,
    "worker": _number,
    "state": _state,
}


def ids(text: str) -> Arguments:
    """Parse identifiers, ``ID`` or ``PID.ID``, to pairs; the process is 0 if it is not named."""
    found = []
    for word in text.split():
        pid, _, number = word.rpartition(".")
        found.append((_number(pid) if pid else 0, _number(number)))
    return {"ids": found}


def some_ids(text: str) -> Arguments:
    """As `ids`, at least one."""
    if not text:
        raise ValueError("an ID is missing")
    return ids(text)


def ids_or_peer(text: str) -> Arguments:
    """As `some_ids`, or ``peer=NETWORK``."""
    if text.startswith("peer="):
        return {"peer": _network(text.removeprefix("peer="))}
    return some_ids(text)


def stop_times(text: str) -> Arguments:
    """Parse the time limit of a stop, and its patience: both, the first one, or none."""
    words = text.split()
    if len(words) > 2:
        raise ValueError(f"unexpected {quoted(words[2])}")
    return {name: _seconds(word) for name, word in zip(("timeout", "patience"), words)}  # noqa: B905


def count(text: str) -> Arguments:
    """Parse a number of worker processes."""
    return {"count": check_workers(_number(text))}


def option_names(text: str) -> Arguments:
    """Parse names of options, or nothing for all."""
    for name in text.split():
        settings.check_name(name)
    return {"names": text.split()}


def option(text: str) -> Arguments:
    """Parse the name of an option and a value, which may contain spaces."""
    name, _, value = text.partition(" ")
    if not value.strip():
        raise ValueError("a name and a value are needed")
    settings.parse(name, value.strip())
    return {"name": name, "value": value.strip()}


def path(text: str) -> Arguments:
    """Parse a path, which may contain spaces."""
    if not text:
        raise ValueError("a path is needed")
    return {"path": text}


def level(text: str) -> Arguments:
    """Parse a level of the log."""
    if text not in LEVELS:
        raise ValueError(f"the level must be one of {', '.join(LEVELS)}, not {quoted(text)}")
    return {"level": text}


def kinds(text: str) -> Arguments:
    """Parse names of classes of events, or nothing for all."""
    known = {kind.__name__ for kind in events.Event.__subclasses__()}
    for word in text.split():
        if word not in known:
            raise ValueError(f"unknown event {quoted(word)}; docs/events.md lists them")
    return {"kinds": text.split()}
