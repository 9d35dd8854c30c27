"""What ``netkit top`` knows of a server, and what each key does. Knows no terminal and no socket.

Rules:

1. A client is selected by its id, and not by its row: the rows change places at each sample. A
   question about a client names the id that was selected when the key was pressed.
2. A rate is the difference of two samples of the same start of the server. There is none after a
   restart, and none of a number that is not known.
3. A sample that failed changes no numbers: the last ones stay, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ..core.record import NamedTuple

Row = Mapping[str, Any]

# The keys that sort, by what, and whether the greatest comes first.
SORTS = {
    "a": ("age", True),
    "i": ("idle", True),
    "r": ("in", True),
    "s": ("out", True),
    "t": ("rate", True),
    "u": ("send_queue", True),
    "p": ("peer", False),
    "w": ("where", False),
}

# The columns in which the filter looks.
_FILTERED = ("id", "peer", "via", "local", "state", "tls", "end", "where")

_PAGE = 10  # rows


class Sample(NamedTuple):
    """One answer of the server, or the reason why there is none."""

    at: float  # seconds of a clock that never goes back
    status: Row = MappingProxyType({})
    clients: Sequence[Row] = ()
    errors: Sequence[str] = ()  # of workers that have not answered
    failure: str = ""

    @classmethod
    def of(cls, at: float, status: Iterable[Row], clients: Iterable[Row]) -> Sample:
        """Make a sample of the rows of the two answers."""
        found = [*status, *clients]
        errors = [str(row["error"]) for row in found if "error" in row and "id" not in row]
        good = [row for row in found if "error" not in row]
        first: Row = next((row for row in good if "phase" in row), {})
        for process in first.get("processes", ()):
            if process.get("error"):
                errors.append(f"worker {process.get('pid')}: {process['error']}")
        rows = [row for row in good if row is not first]
        return cls(at, first, rows, tuple(dict.fromkeys(errors)))


class Request(NamedTuple):
    """What the server is to be asked because of a key."""

    command: str  # "stacks" or "kill"
    id: str


class Top:
    """The state of the screen. `take` is for samples, `press` for keys."""

    def __init__(self, name: str) -> None:
        """`name` is that of the control socket."""
        self.name = name
        self.sample = Sample(0.0)  # the last one that did not fail
        self.failure = ""  # why the last one failed
        self.failing_since = 0.0
        self.notice = ""  # the outcome of the last key
        self.sort, self.reverse = "a", False
        self.filter = ""
        self.typing = False  # whether keys are text of the filter
        self.killing = ""  # the id of the client that is to be killed, if the answer is yes
        self.selected: tuple[str, str] | None = None
        self.stack_of = ""  # the id of the client whose stack is shown instead of the table
        self.stack: Sequence[Row] | None = None  # None until the server has answered
        self.is_over = False
        self._before = Sample(0.0)
        self._first = 0  # the uppermost row that is shown
        self._rates: dict[str, tuple[float | None, ...]] = {}  # bytes in and out per second, by id

    # Samples

    def take(self, sample: Sample) -> None:
        """Show `sample` from now on."""
        if sample.failure:
            if not self.failure:
                self.failing_since = sample.at
            self.failure = sample.failure
            return
        if self._has_restarted(sample):
            self.notice = "the server has been restarted"
            self.selected = None
        self.failure = ""
        self._before, self.sample = self.sample, sample
        self._rates = {}
        former = {row.get("id"): row for row in self._before.clients}
        for row in sample.clients if self._is_comparable() else ():
            before = former.get(row.get("id"), {"in": 0, "out": 0})
            seconds = min(sample.at - self._before.at, row.get("age") or 0.0)
            grown = [_growth(row.get(key), before.get(key)) for key in ("in", "out")]
            if row.get("id") and seconds > 0:
                self._rates[row["id"]] = tuple(it and it / seconds for it in grown)

    def _has_restarted(self, sample: Sample) -> bool:
        then = self.sample.status
        return bool(then) and then.get("started_at") != sample.status.get("started_at")

    def _is_comparable(self) -> bool:
        then, now = self._before.status, self.sample.status
        is_same = then.get("started_at") == now.get("started_at")
        return bool(then) and is_same and self.sample.at > self._before.at

    def rate(self, name: str) -> float | None:
        """Return by how much a total has grown each second. None if that is not known."""
        now, then = self.sample.status.get(name), self._before.status.get(name)
        if now is None or then is None or now < then or not self._is_comparable():
            return None
        return float(now - then) / (self.sample.at - self._before.at)

    def rates(self, row: Row) -> tuple[float | None, ...]:
        """Return the bytes in and out per second of a client."""
        return self._rates.get(row.get("id", ""), (None, None))

    # Rows

    def rows(self) -> list[Row]:
        """Return the clients that the filter leaves, sorted."""
        text = self.filter.lower()
        rows = [row for row in self.sample.clients if self._matches(row, text)]
        name, descending = SORTS[self.sort]
        known = [row for row in rows if self._value(row, name) is not None]
        unknown = [row for row in rows if self._value(row, name) is None]
        known.sort(key=lambda row: self._value(row, name), reverse=descending != self.reverse)
        return known + unknown

    def _matches(self, row: Row, text: str) -> bool:
        return any(text in str(row.get(name, "")).lower() for name in _FILTERED)

    def _value(self, row: Row, name: str) -> Any:
        if name == "rate":
            known = [rate for rate in self.rates(row) if rate is not None]
            return sum(known) if known else None
        return row.get(name)

    def visible(self, rows: Sequence[Row], height: int) -> Sequence[Row]:
        """Return those of `rows` that fit into `height`, with the one that is selected."""
        index = self._index(rows)
        self._first = max(min(self._first, index, len(rows) - height), index - height + 1, 0)
        return rows[self._first : self._first + max(height, 0)]

    def is_selected(self, row: Row) -> bool:
        return self.selected == _key(row)

    def _index(self, rows: Sequence[Row]) -> int:
        """Return the index of the selected row. If the client has gone, another is selected."""
        for index, row in enumerate(rows):
            if self.is_selected(row):
                return index
        self.selected = _key(rows[0]) if rows else None
        return 0

    # Keys

    def press(self, key: str) -> Request | None:
        """Do what `key` asks for: a character or a name such as "up"."""
        if self.killing:
            return self._answer(key)
        self.notice = ""
        if self.typing:
            self._type(key)
        elif self.stack_of:
            return self._press_in_stack(key)
        elif key in ("enter", "k"):
            return self._ask(key)
        elif key in SORTS:
            self.reverse = self.sort == key and not self.reverse
            self.sort = key
        else:
            self._move(key)
        return None

    def _move(self, key: str) -> None:
        if key == "q":
            self.is_over = True
        elif key == "/":
            self.typing = True
        elif key == "escape":
            self.filter = ""
        rows = self.rows()
        steps = {"up": -1, "down": 1, "pageup": -_PAGE, "pagedown": _PAGE}
        steps.update(home=-len(rows), end=len(rows))
        if key in steps and rows:
            index = self._index(rows) + steps[key]
            self.selected = _key(rows[min(max(index, 0), len(rows) - 1)])

    def _type(self, key: str) -> None:
        if key in ("enter", "escape"):
            self.typing = False
            self.filter = self.filter if key == "enter" else ""
        elif key == "backspace":
            self.filter = self.filter[:-1]
        elif len(key) == 1 and key.isprintable():
            self.filter += key

    def _press_in_stack(self, key: str) -> Request | None:
        if key == "k":
            self.killing = self.stack_of
        elif key in ("enter", "escape", "q"):
            self.stack_of, self.stack = "", None
        return None

    def _ask(self, key: str) -> Request | None:
        rows = self.rows()
        if not rows:
            return None
        client = rows[self._index(rows)].get("id", "")
        if not client:
            self.notice = "this client is held: it has no id and no thread yet"
        elif key == "k":
            self.killing = client
        else:
            self.stack_of, self.stack = client, None
            return Request("stacks", client)
        return None

    def _answer(self, key: str) -> Request | None:
        client, self.killing = self.killing, ""
        if key.lower() == "y":
            return Request("kill", client)
        self.notice = f"{client} is not killed"
        return None

    # Answers

    def answered(self, request: Request, rows: Sequence[Row], failure: str = "") -> None:
        """Take the answer to a request, or the reason why there is none."""
        errors = [failure, *(str(row["error"]) for row in rows if "error" in row)]
        if any(errors):
            self.notice = "; ".join(filter(None, errors))
        elif request.command == "kill":
            self.notice = f"{request.id} is killed"
        if request == ("stacks", self.stack_of):
            self.stack = [row for row in rows if "error" not in row]


def _growth(now: float | None, then: float | None) -> float | None:
    return None if now is None or then is None else max(now - then, 0.0)


def _key(row: Row) -> tuple[str, str]:
    return str(row.get("id", "")), str(row.get("peer", ""))
