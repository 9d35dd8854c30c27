"""How ``netkit top`` looks: lines of text for a screen of any size, and a plain table.

A line is a text and its style: "", "bold" or "reverse". The text of a server is escaped
and cut to whole characters, of which some are two columns wide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from unicodedata import combining, east_asian_width

from ..core.record import NamedTuple
from ..core.text import printable
from .top_model import SORTS, Row, Top

Line = tuple[str, str]

_KEYS = "q quit  Enter stack  k kill  / filter  sort: a i r s t u p w"
_KEYS_OF_STACK = "Esc back  k kill"
_GAP = "  "

# Below how many seconds a time is shown in which units, which have so many seconds.
_UNITS = (
    (3600, "ms", 60, 1),
    (86_400, "hm", 3600, 60),
    (math.inf, "dh", 86_400, 3600),
)


# Values


def width_of(text: str) -> int:
    """Return the number of columns that printable `text` takes."""
    if text.isascii():
        return len(text)
    return sum((not combining(char)) + (east_asian_width(char) in "WF") for char in text)


def cut(text: str, width: int) -> str:
    """Return as many whole characters of printable `text` as `width` columns take."""
    while text and width_of(text) > width:
        text = text[: max(width, 0)] if len(text) > width else text[:-1]
    return text


def amount(number: float | None) -> str:
    """Return a number in at most five characters: ``999``, ``1.2K``, ``34M``; ``-`` for None."""
    if number is None:
        return "-"
    unit, *greater = ("", "K", "M", "G", "T")
    while number >= 999.5 and greater:
        number, unit = number / 1000, greater.pop(0)
    digits = 1 if number < 9.95 and (unit or number % 1) else 0
    return f"{number:.{digits}f}{unit}"


def duration(seconds: float | None) -> str:
    """Return a time in at most six characters: ``5s``, ``1m05s``, ``3h12m``, ``4d02h``."""
    if seconds is None:
        return "-"
    rest = int(seconds)
    if rest < 60:
        return f"{rest}s"
    _, names, size, part = next(units for units in _UNITS if rest < units[0])
    return f"{rest // size}{names[0]}{rest % size // part:02d}{names[1]}"


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    number = seconds * 1000
    return f"{number:.{2 if number < 1 else 1 if number < 10 else 0}f}ms"


# The table


class Column(NamedTuple):
    """A column. Where the screen is narrow, those with the highest `rank` are left out first."""

    title: str
    value: Callable[[Top, Row], str]
    rank: int
    is_number: bool = True


def _text(name: str) -> Callable[[Top, Row], str]:
    return lambda _, row: printable(str(row.get(name) or ""))


def _number(name: str) -> Callable[[Top, Row], str]:
    return lambda _, row: amount(row.get(name))


def _time(name: str) -> Callable[[Top, Row], str]:
    return lambda _, row: duration(row.get(name))


def _state(_: Top, row: Row) -> str:
    return printable(str(row.get("end") or row.get("state") or ""))


COLUMNS = (
    Column("ID", _text("id"), 0, is_number=False),
    Column("PEER", _text("peer"), 1, is_number=False),
    Column("VIA", _text("via"), 8, is_number=False),
    Column("STATE", _state, 5, is_number=False),
    Column("AGE", _time("age"), 3),
    Column("IDLE", _time("idle"), 6),
    Column("IN", _number("in"), 4),
    Column("OUT", _number("out"), 4),
    Column("IN/s", lambda top, row: amount(top.rates(row)[0]), 7),
    Column("OUT/s", lambda top, row: amount(top.rates(row)[1]), 7),
    Column("RTT", lambda _, row: _milliseconds(row.get("rtt")), 9),
    Column("SENDQ", _number("send_queue"), 9),
    Column("TLS", _text("tls"), 10, is_number=False),
    Column("WHERE", _text("where"), 2, is_number=False),
)


def _table(top: Top, rows: Sequence[Row], width: int | None) -> list[str]:
    """Return the heading and a line for each row. `width` is that of the screen, or None."""
    cells = {column: [column.value(top, row) for row in rows] for column in COLUMNS}
    empty = ("VIA", "TLS")  # columns that most servers have no values for
    shown = [column for column in COLUMNS if column.title not in empty or any(cells[column])]
    widths = {each: max(map(width_of, [each.title, *cells[each]])) for each in shown}
    if width is not None:
        where = COLUMNS[-1]
        widths[where] = min(widths[where], 16)  # it gets what is left
        while len(shown) > 1 and sum(widths[each] + 2 for each in shown) - 2 > width:
            last = max(column.rank for column in shown)
            shown = [column for column in shown if column.rank < last]
        widths[where] += max(width - sum(widths[each] + 2 for each in shown) + 2, 0)
    lines = [_line(shown, widths, [each.title for each in shown])]
    for index in range(len(rows)):
        lines.append(_line(shown, widths, [cells[each][index] for each in shown]))
    return lines


def _line(columns: Sequence[Column], widths: dict[Column, int], texts: Iterable[str]) -> str:
    parts = []
    for column, text in zip(columns, texts, strict=True):
        text = cut(text, widths[column])
        gap = " " * (widths[column] - width_of(text))
        parts.append(gap + text if column.is_number else text + gap)
    return _GAP.join(parts).rstrip()


# The header


def _headings(top: Top) -> list[list[str]]:
    """Return the parts of each line above the table, the most important ones first."""
    now = top.sample.status
    get: Any = now.get
    state = "" if get("ready", True) else f" ({get('reason')})"
    limit = "" if get("limit") is None else f" of {get('limit')}"
    version = f"netkit {get('version', '?')}, Python {get('python', '?')}"
    restarts = f", {get('restarts')} restarted" if get("restarts") else ""
    workers = f"workers {get('workers')}{restarts}" if get("workers") else "one process"
    return [
        [
            f"netkit top {top.name}",
            f"{get('phase', '?')}{state}",
            f"up {duration(get('uptime'))}",
            version,
        ],
        [
            f"clients {get('connected', '-')}{limit}",
            f"held {get('held', 0)}",
            f"accepted {_total(top, 'accepted')}",
            f"in {_total(top, 'received')}",
            f"out {_total(top, 'sent')}",
            f"refused {get('refused', 0)}",
        ],
        [workers, f"threads {get('threads', '-')}", " ".join(get("addresses", ()))],
    ]


def _total(top: Top, name: str) -> str:
    rate = top.rate(name)
    return amount(top.sample.status.get(name)) + ("" if rate is None else f" ({amount(rate)}/s)")


def _warnings(top: Top) -> list[str]:
    lines = list(top.sample.errors)
    if top.failure:
        lines.insert(0, f"{top.failure}; trying again")
    return [f"! {each}" for each in lines]


def _joined(parts: Iterable[str], width: int | None) -> str:
    """Join those parts, from the first one on, that fit into `width`."""
    line = ""
    for part in map(printable, parts):
        longer = f"{line}{_GAP if line else ''}{part}"
        if line and width is not None and width_of(longer) > width:
            break
        line = longer
    return line if width is None else cut(line, width)


# The screen


def screen(top: Top, width: int, height: int) -> list[Line]:
    """Return the lines of a screen of this size; never more, and none that is too long."""
    first, *rest = [_joined(parts, width) for parts in _headings(top)]
    lines: list[Line] = [(first, "bold"), *((line, "") for line in rest)]
    lines += [(cut(printable(text), width), "bold") for text in _warnings(top)]
    body = height - len(lines) - 2
    lines += _stack_lines(top, width, body) if top.stack_of else _rows(top, width, body)
    del lines[max(height - 1, 0) :]
    lines += [("", "")] * (height - 1 - len(lines))
    lines.append((cut(_foot(top), width), "bold" if top.killing or top.typing else ""))
    return lines


def _rows(top: Top, width: int, height: int) -> list[Line]:
    rows = top.visible(top.rows(), height)
    heading, *texts = _table(top, rows, width)
    lines: list[Line] = [(_filled(heading, width), "reverse")]
    for row, text in zip(rows, texts, strict=True):
        is_selected = top.is_selected(row)
        lines.append((_filled(text, width), "reverse") if is_selected else (cut(text, width), ""))
    return lines


def _filled(text: str, width: int) -> str:
    text = cut(text, width)
    return text + " " * (width - width_of(text))


def _stack_lines(top: Top, width: int, height: int) -> list[Line]:
    lines = [(f"stack of {top.stack_of}", "reverse")]
    if top.stack is None:
        lines.append(("waiting for the server", ""))
    for row in top.stack or ():
        names = [row.get("peer"), row.get("state"), row.get("thread"), row.get("inside")]
        lines.append((_GAP.join(str(name) for name in names if name), "bold"))
        for frame in row.get("frames", ()):
            where = f"{frame.get('file')}:{frame.get('line')} {frame.get('function')}"
            lines += [(f"  {where}", ""), (f"      {frame.get('code', '')}", "")]
    return [(cut(printable(text), width), style) for text, style in lines[: max(height, 0) + 1]]


def _foot(top: Top) -> str:
    if top.killing:
        return f"kill {top.killing}? y kills this client, any other key does not"
    if top.typing:
        return printable(f"filter: {top.filter}") + "_"
    if top.notice:
        return printable(top.notice)
    if top.stack_of:
        return _KEYS_OF_STACK
    name, descending = SORTS[top.sort]
    order = "greatest first" if descending != top.reverse else "least first"
    chosen = f"by {name}, {order}"
    return _KEYS + _GAP + (printable(f"[{top.filter}] ") if top.filter else "") + chosen


def plain(top: Top) -> str:
    """Return everything as one table without a limit of its width."""
    lines = [_joined(parts, None) for parts in _headings(top)]
    return "\n".join([*lines, *_table(top, top.rows(), None), ""])
