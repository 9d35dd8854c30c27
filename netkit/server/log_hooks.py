"""Log records of what Python itself would write to standard error.

These are warnings and uncaught exceptions. A peer may be able to cause the same uncaught exception
without end. So the first one is logged at once, and those of the next seconds are counted.
"""

from __future__ import annotations

import atexit
import logging
import sys
import threading
import time
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Any, TextIO

from ..core.text import cut, described, one_line, said
from ..net.forks import call_in_children, renew_in_children
from .log import logger

EPISODE_SECONDS = 5.0  # for which records of a kind are counted after the first one
MOST_KINDS = 100  # of records that are counted separately


class Episodes:
    """Chooses the records that are written, and counts those that are skipped. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # For each kind: when a record was last written, and how many have been skipped since.
        self._kinds: dict[Any, tuple[float, int]] = {}
        # Guards _kinds. Re-entrant, because a finalizer may fail in the thread that holds it.
        self._lock = threading.RLock()

    def note(self, kind: Any) -> int | None:
        """Return None if a record of `kind` is to be skipped.

        If it is to be written, return the number of records of its kind that were skipped before.
        """
        now = self._clock()
        with self._lock:
            if kind not in self._kinds and len(self._kinds) >= MOST_KINDS:
                for each, (began, more) in list(self._kinds.items()):
                    if not more and began + EPISODE_SECONDS <= now:
                        del self._kinds[each]
                if len(self._kinds) >= MOST_KINDS:
                    kind = None  # a common kind for all that there is no room for
            began, more = self._kinds.get(kind, (float("-inf"), 0))
            if began + EPISODE_SECONDS > now:
                self._kinds[kind] = began, more + 1
                return None
            self._kinds[kind] = now, 0
            return more

    def take_rest(self) -> int:
        """The number of skipped records that no other record has named yet. Forgets them."""
        with self._lock:
            rest = sum(more for _, more in self._kinds.values())
            self._kinds.clear()
            return rest


_episodes = Episodes()
renew_in_children(_episodes, "_lock")
call_in_children(_episodes._kinds.clear)  # the records that the parent has skipped


def _report(kind: Any, level: int, text: str, error: BaseException | None = None) -> None:
    more = _episodes.note(kind)
    if more is not None:
        since = f" ({more} more like it since the last one)" if more else ""
        logger.log(level, "%s%s", one_line(text), since, exc_info=error)


@atexit.register
def report_rest() -> None:
    """Log the number of skipped records, at the end of the process."""
    rest = _episodes.take_rest()
    if rest:
        logger.warning("%d more records like those above were not written", rest)


def _report_exception(
    where: object,
    what: str,
    kind: type[BaseException],
    error: BaseException | None,
    at: TracebackType | None,
) -> None:
    """Log an exception. `where`, its class and its line in the program are the kind of record."""
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    place = (at.tb_frame.f_code, at.tb_lineno) if at is not None else ()
    text = kind.__name__ if error is None else described(error)
    _report((where, kind, place), logging.ERROR, f"{what}{text}", error)


def _excepthook(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    _report_exception("main", "uncaught ", kind, error, traceback)


def _thread_excepthook(args: threading.ExceptHookArgs) -> None:
    if not issubclass(args.exc_type, SystemExit):  # a way to end a thread
        name = args.thread.name if args.thread else "that has ended"
        _report_exception("thread", f"uncaught in thread {name}: ", *args[:3])


def _unraisablehook(args: sys.UnraisableHookArgs) -> None:
    try:
        place = cut(repr(args.object))
    except Exception:  # of its `__repr__`
        place = type(args.object).__name__
    where, what = type(args.object), f"ignored in {place}: "
    _report_exception(where, what, args.exc_type, args.exc_value, args.exc_traceback)


def _showwarning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if file is not None:
        file.write(warnings.formatwarning(message, category, filename, lineno, line))
        return
    text = f"{filename}:{lineno}: {category.__name__}: {said(message)}"
    _report(("warning", category, filename, lineno), logging.WARNING, text)


HOOKS: tuple[tuple[Any, str, Callable[..., None]], ...] = (
    (sys, "excepthook", _excepthook),
    (sys, "unraisablehook", _unraisablehook),
    (threading, "excepthook", _thread_excepthook),
    (warnings, "showwarning", _showwarning),
)


def replace_hooks() -> Callable[[], None]:
    """Install the hooks of this module. Returns a function that puts the former ones back."""
    before = [(module, name, getattr(module, name)) for module, name, _ in HOOKS]
    for module, name, hook in HOOKS:
        setattr(module, name, hook)

    def restore() -> None:
        for module, name, hook in before:
            setattr(module, name, hook)

    return restore
