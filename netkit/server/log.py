"""Writes events to `logging`, under the name ``netkit``.

`netkit.server.server` subscribes `write` to the events. Text from a client is escaped, so that it
can neither forge a record nor command the terminal that shows it.
"""

from __future__ import annotations

import logging
import traceback

from ..core import events
from ..core.errors import ConnectError
from ..core.text import MOST_TEXT, cut, described, one_line

logger = logging.getLogger("netkit")

MOST_LINES = 100  # lines at each end of a traceback
MOST_LINKS = 20  # exceptions of a chain
_CAUSE = "The above exception was the direct cause of the following exception"
_CONTEXT = "During handling of the above exception, another exception occurred"


def traceback_lines(error: BaseException) -> list[str]:
    """Return the lines of Python's traceback. An exception's text is one line, escaped and cut.

    A very long traceback is reduced to its first and last lines, a long chain of exceptions to the
    last ones.
    """
    try:
        lines = "".join(_links(error)).removesuffix("\n").split("\n")
    except Exception:  # notes that are not text; an import by Python 3.15, for a suggestion
        lines = [*"".join(traceback.format_tb(error.__traceback__)).splitlines(), described(error)]
    left_out = len(lines) - 2 * MOST_LINES
    if left_out > 0:
        lines[MOST_LINES:-MOST_LINES] = [f"  [{left_out} lines left out]"]
    return [one_line(line) for line in lines]


def _links(error: BaseException) -> list[str]:
    """The tracebacks of a chain of exceptions, and the lines that Python writes between them."""
    link: BaseException | None = error
    parts: list[str] = []
    seen: set[int] = set()
    while link is not None and id(link) not in seen:
        if len(seen) == MOST_LINKS:
            return ["[older exceptions left out]\n", *parts[::-1]]
        seen.add(id(link))
        cause, context = link.__cause__, link.__context__
        between = _CAUSE if cause is not None else _CONTEXT
        parts += [_traceback(link), f"\n{between}:\n\n"]
        link = cause if cause is not None or link.__suppress_context__ else context
    return parts[-2::-1]


def _traceback(error: BaseException) -> str:
    """The traceback of one exception, without those of its cause and its context."""
    shown = traceback.TracebackException(type(error), error, error.__traceback__)
    shown.__cause__ = shown.__context__ = None
    if hasattr(error, "exceptions"):  # a group: Python indents all of it
        return "".join(shown.format())
    shown.__notes__ = None  # type: ignore[attr-defined] # Python would neither indent nor escape them
    notes = ["    " + note for note in getattr(error, "__notes__", ())]
    parts = [*(part.removesuffix("\n") for part in shown.format_exception_only()), *notes]
    frames = ["Traceback (most recent call last):\n", *shown.stack.format()] if shown.stack else []
    lines = (one_line(cut(part, MOST_TEXT)) + "\n" for part in parts)
    return "".join([*frames, *lines])


def _add_traceback(record: logging.LogRecord) -> bool:
    """Format the traceback here: another formatter would not escape the text of a client.

    The stack of an event is written in the same way, below its message.
    """
    if record.exc_info and record.exc_info[1]:
        record.exc_text = "\n".join(traceback_lines(record.exc_info[1]))
    stack = getattr(getattr(record, "event", None), "stack", ())
    if stack:
        record.stack_info = "\n".join(stack)
    return True


logger.addFilter(_add_traceback)

_has_failed = False


def write(event: events.Event) -> None:
    """Log one event. The first exception of a log handler is reported on standard error."""
    global _has_failed
    if not logger.isEnabledFor(event.level):
        return
    error = getattr(event, "error", None) if event.with_traceback else None
    if isinstance(error, ConnectError):  # a service that is down: the traceback adds nothing
        error = None
    try:
        logger.log(event.level, event.message(), exc_info=error, extra={"event": event})
    except Exception as failure:
        if not _has_failed:
            _has_failed = True
            events.last_resort("a record could not be logged", failure)
