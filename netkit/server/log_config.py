"""Logging for a whole process: what the command line sets up, and any program may.

Rules:

1. Everything on standard error is a record of the chosen form: the records of netkit and of any
   other logger, warnings, and uncaught exceptions, which Python itself would write there.
2. A record is one line (in text, its traceback follows), escaped and of a bounded length.
3. A peer may be able to cause the same uncaught exception without end. The first one is written at
   once, and those of the next seconds are counted.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, TextIO

from ..core.events import Event
from ..core.text import cut, one_line, said
from ..net.addresses import describe_peer
from ..net.forks import call_in_children, free_in_children
from ..net.sockopts import wait_until_ready
from .log import logger, traceback_lines

EPISODE_SECONDS = 5.0  # for which records of a kind are counted after the first one
MOST_KINDS = 100  # of records that are counted separately
LONGEST_WRITE = 1.0  # seconds that a record waits for the reader of a full pipe

LEVELS = ("debug", "info", "warning", "error", "critical")


def configure_logging(
    level: str = "info", style: str = "text", stream: TextIO | None = None
) -> Callable[[], None]:
    """Write the records of all loggers to `stream` (standard error if None).

    `level` is the least severe level that is written: ``"debug"``, ``"info"``, ``"warning"``,
    ``"error"`` or ``"critical"``. `style` is ``"text"`` or ``"json"``, as docs/logging.md shows
    them. ValueError for any other.

    Warnings and uncaught exceptions become records, too: `warnings.showwarning`, `sys.excepthook`,
    `threading.excepthook` and `sys.unraisablehook` are replaced. A second call replaces the first.
    Returns a function that undoes the call; of several calls, undo the last one first.
    """
    if level not in LEVELS:
        raise ValueError(f"level must be one of {', '.join(LEVELS)}, not {level!r}")
    if style not in ("text", "json"):
        raise ValueError(f"style must be 'text' or 'json', not {style!r}")
    stream = sys.stderr if stream is None else stream
    handler = Handler(stream)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter(not _is_tty(stream)))
    root = logging.getLogger()
    former, former_level = [each for each in root.handlers if isinstance(each, Handler)], root.level
    _swap(root, former, [handler], getattr(logging, level.upper()))
    restore_hooks = _replace_hooks()

    def undo() -> None:
        _swap(root, [handler], former, former_level)
        restore_hooks()

    return undo


def _swap(root: logging.Logger, old: list[Handler], new: list[Handler], level: int) -> None:
    for handler in old:
        root.removeHandler(handler)
    for handler in new:
        root.addHandler(handler)
    root.setLevel(level)


def is_configured() -> bool:
    """Whether `configure_logging` has been called, in this process or before it was forked."""
    return any(isinstance(each, Handler) for each in logging.getLogger().handlers)


@contextlib.contextmanager
def status_lines() -> Iterator[bool]:
    """Write netkit's records to standard error, unless the program has configured logging.

    The least level is INFO, or that of the logger ``netkit`` if it has one. Yields True if the
    records are written. A `logging.NullHandler` of that logger switches them off.
    """
    if logger.hasHandlers():
        yield False
        return
    undo = add_status_lines()
    try:
        yield True
    finally:
        undo()


def add_status_lines() -> Callable[[], None]:
    """Begin what `status_lines` does, and return the function that ends it."""
    handler, level = _StatusHandler(sys.stderr), logger.level
    handler.setFormatter(TextFormatter(not _is_tty(sys.stderr)))
    handler.addFilter(lambda _: not logging.getLogger().handlers)  # configured in the meantime
    logger.addHandler(handler)
    if level == logging.NOTSET:
        logger.setLevel(logging.INFO)

    def undo() -> None:
        logger.removeHandler(handler)
        logger.setLevel(level)

    return undo


def shows_status_lines() -> bool:
    """Whether `status_lines` or `add_status_lines` is in effect."""
    return any(isinstance(each, _StatusHandler) for each in logger.handlers)


def _is_tty(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, OSError, ValueError):  # it is closed, or not a file
        return False


class Handler(logging.StreamHandler):  # type: ignore[type-arg] # generic only for type checkers
    """Writes each record at once. A record that cannot be written is dropped."""

    _is_full = False  # the last record was dropped, since nobody read the pipe

    def emit(self, record: logging.LogRecord) -> None:
        """As of any handler. Raises nothing."""
        if self.stream is None:  # a process without standard error (pythonw, a daemon)
            return
        try:
            line = self.format(record)
        except Exception as error:  # its arguments do not fit its message
            line = self.format(_about(record, error))
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        try:
            text = line.encode(encoding, "backslashreplace").decode(encoding)
            if self._takes_more():
                self.stream.write(text + self.terminator)
                self.flush()
        except Exception:  # it is full or closed, or a signal has interrupted another write to it
            return

    def _takes_more(self) -> bool:
        """Whether a write would not block, perhaps after a wait: one, and not one per record.

        All threads that log wait for the one that writes, and so would a stop.
        """
        try:
            seconds = 0.0 if self._is_full else LONGEST_WRITE
            self._is_full = not wait_until_ready(self.stream, True, seconds)
        except Exception:  # it has no descriptor, or none any more
            return True
        return not self._is_full


class _StatusHandler(Handler):
    """The handler that `add_status_lines` adds."""


def _about(record: logging.LogRecord, error: Exception) -> logging.LogRecord:
    where = f"{record.pathname}:{record.lineno}"
    text = f"a record of {where} cannot be formatted: {type(error).__name__}: {said(error)}"
    level = {"levelno": logging.ERROR, "levelname": "ERROR"}
    return logging.makeLogRecord({"name": record.name, "msg": text, **level})


# Forms of records


class TextFormatter(logging.Formatter):
    """A line for people. If it is `full`, it begins with the time and the level."""

    def __init__(self, full: bool = False) -> None:
        super().__init__()
        self._full = full

    def format(self, record: logging.LogRecord) -> str:
        """As of any formatter."""
        level = record.levelname
        if self._full:
            seconds = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
            head = f"{seconds}.{int(record.msecs):03d} {level} "
        else:
            head = f"{level.lower()}: " if record.levelno >= logging.WARNING else ""
        if record.processName != "MainProcess":  # a worker's
            head += f"pid {record.process}: "
        if record.name != logger.name:
            head += f"{record.name}: "
        first = one_line(head) + one_line(record.getMessage())
        return "\n".join([first, *_lines_below(record)])


def _lines_below(record: logging.LogRecord) -> list[str]:
    lines: list[str] = list(getattr(record, "traceback_lines", ()))  # by the logger netkit
    if not lines and record.exc_info and record.exc_info[1]:
        lines += traceback_lines(record.exc_info[1])
    if record.stack_info:
        lines += map(one_line, record.stack_info.split("\n"))
    return lines


class JsonFormatter(logging.Formatter):
    """One JSON object on a line: the record, and the data of its event."""

    def __init__(self) -> None:
        super().__init__()
        import json  # here because most programs never need it

        self._dumps = json.dumps

    def format(self, record: logging.LogRecord) -> str:
        """As of any formatter."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        data: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "thread": record.threadName,
        }
        event = getattr(record, "event", None)
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(event, Event):  # programs may have an attribute of this name
            fields = event.as_dict()
            error = fields.pop("error", error)
            if "pid" in fields:  # of a worker that has ended; `pid` is this process
                fields["worker"] = fields.pop("pid")
            data.update(event=type(event).__name__, **fields)
            address = getattr(event.server, "server_address", None)  # also once it is closed
            if address is not None:
                data["server"] = describe_peer(address)
        data["message"] = record.getMessage()
        if error is not None:
            data.update(error=said(error), error_type=type(error).__name__)
        below = _lines_below(record)
        if below:
            data["traceback"] = "\n".join(below)
        return self._dumps({name: _capped(value) for name, value in data.items()}, default=said)


def _capped(value: Any) -> Any:
    return cut(value) if isinstance(value, str) else value


# Records of what Python itself would write to standard error


class Episodes:
    """Chooses the records that are written, and counts the others. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # For each kind, when a record was last written, and how many have been skipped since.
        self._kinds: dict[Any, tuple[float, int]] = {}
        # Guards _kinds. Re-entrant: while it is held, a finalizer may fail in the same thread.
        self._lock = threading.RLock()

    def note(self, kind: Any) -> int | None:
        """Count a record of `kind`. None, or the number of skipped ones if it is to be written."""
        now = self._clock()
        with self._lock:
            if kind not in self._kinds and len(self._kinds) >= MOST_KINDS:
                self._forget_locked(now)
                if len(self._kinds) >= MOST_KINDS:
                    kind = None  # all kinds for which there is no room are one
            began, more = self._kinds.get(kind, (-EPISODE_SECONDS, 0))
            if began + EPISODE_SECONDS > now and kind in self._kinds:
                self._kinds[kind] = began, more + 1
                return None
            self._kinds[kind] = now, 0
            return more

    def _forget_locked(self, now: float) -> None:
        for kind, (began, more) in list(self._kinds.items()):
            if not more and began + EPISODE_SECONDS <= now:
                del self._kinds[kind]

    def take_rest(self) -> int:
        """The number of records that no other record has counted yet. Forgets them."""
        with self._lock:
            rest = sum(more for _, more in self._kinds.values())
            self._kinds.clear()
            return rest


_episodes = Episodes()
free_in_children(_episodes._lock)
call_in_children(_episodes._kinds.clear)  # the parent logs the number of its own


def _report(kind: Any, level: int, text: str, error: BaseException | None = None) -> None:
    more = _episodes.note(kind)
    if more is not None:
        since = f" ({more} more like it since the last one)" if more else ""
        logger.log(level, "%s%s", one_line(text), since, exc_info=error)


@atexit.register
def report_rest() -> None:
    """Log the number of records that were skipped. Called when the process ends."""
    rest = _episodes.take_rest()
    if rest:
        logger.warning("%d more records like those above were not written", rest)


def _place(traceback: TracebackType | None) -> tuple[Any, ...]:
    """The place at which it was raised, a part of the kind of an exception."""
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return (traceback.tb_frame.f_code, traceback.tb_lineno) if traceback is not None else ()


def _with_type(error: BaseException | None, kind: type[BaseException]) -> str:
    text = "" if error is None else said(error)
    return f"{kind.__name__}: {text}" if text else kind.__name__


def _excepthook(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    text = f"uncaught {_with_type(error, kind)}"
    _report(("main", kind, _place(traceback)), logging.ERROR, text, error)


def _thread_excepthook(args: threading.ExceptHookArgs) -> None:
    kind, error = args.exc_type, args.exc_value
    if issubclass(kind, SystemExit):  # a way to end a thread
        return
    name = args.thread.name if args.thread else "that has ended"
    text = f"uncaught in thread {name}: {_with_type(error, kind)}"
    _report(("thread", kind, _place(args.exc_traceback)), logging.ERROR, text, error)


def _unraisablehook(args: sys.UnraisableHookArgs) -> None:
    kind, error = args.exc_type, args.exc_value
    try:
        place = cut(repr(args.object))
    except Exception:  # of its `__repr__`
        place = type(args.object).__name__
    text = f"ignored in {place}: {_with_type(error, kind)}"
    what = ("unraisable", kind, type(args.object), _place(args.exc_traceback))
    _report(what, logging.ERROR, text, error)


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


_HOOKS: tuple[tuple[Any, str, Callable[..., None]], ...] = (
    (sys, "excepthook", _excepthook),
    (sys, "unraisablehook", _unraisablehook),
    (threading, "excepthook", _thread_excepthook),
    (warnings, "showwarning", _showwarning),
)


def _replace_hooks() -> Callable[[], None]:
    before = [(module, name, getattr(module, name)) for module, name, _ in _HOOKS]
    for module, name, hook in _HOOKS:
        setattr(module, name, hook)

    def restore() -> None:
        for module, name, hook in before:
            setattr(module, name, hook)

    return restore
