"""Logging of a whole process, as the command line sets it up. Any program may do the same.

Everything on standard error is then a record of the chosen form: the records of netkit and of any
other logger, warnings, and uncaught exceptions, which Python itself would write there.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from .log import logger
from .log_format import JsonFormatter, StreamHandler, TextFormatter
from .log_hooks import replace_hooks

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
    Returns a function that undoes the call. Undo several calls in the reverse order.
    """
    if level not in LEVELS:
        raise ValueError(f"level must be one of {', '.join(LEVELS)}, not {level!r}")
    if style not in ("text", "json"):
        raise ValueError(f"style must be 'text' or 'json', not {style!r}")
    stream = sys.stderr if stream is None else stream
    number, is_json = getattr(logging, level.upper()), style == "json"
    restore_handlers = _write_to(logging.getLogger(), stream, number, is_json)
    restore_hooks = replace_hooks()

    def undo() -> None:
        restore_handlers()
        restore_hooks()

    return undo


def is_configured() -> bool:
    """Whether `configure_logging` has been called, in this process or before it was forked."""
    return bool(_handlers(logging.getLogger()))


def writes_json() -> bool:
    """Whether `configure_logging` has been called with the style ``"json"``."""
    handlers = _handlers(logging.getLogger())
    return any(isinstance(each.formatter, JsonFormatter) for each in handlers)


@contextlib.contextmanager
def status_lines() -> Iterator[bool]:
    """Write netkit's records to standard error, unless the program has configured logging.

    The least level is INFO, or that of the logger ``netkit`` if it has one. Yields whether the
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
    """Begin what `status_lines` does. Returns a function that ends it."""
    undo = _write_to(logger, sys.stderr, logger.level or logging.INFO)
    # Once the program configures logging, its handlers write the records.
    _handlers(logger)[0].addFilter(lambda _: not logging.getLogger().handlers)
    return undo


def shows_status_lines() -> bool:
    """Whether `status_lines` or `add_status_lines` is in effect."""
    return bool(_handlers(logger))


def _handlers(of: logging.Logger) -> list[logging.Handler]:
    return [each for each in of.handlers if isinstance(each, StreamHandler)]


def _write_to(
    of: logging.Logger, stream: TextIO, level: int, is_json: bool = False
) -> Callable[[], None]:
    """Have the logger write its records to `stream`, and to no other. Returns the undo."""
    handler = StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if is_json else TextFormatter(full=not _is_tty(stream)))
    former, former_level = _handlers(of), of.level
    for each in former:
        of.removeHandler(each)
    of.addHandler(handler)
    of.setLevel(level)

    def undo() -> None:
        of.removeHandler(handler)
        for each in former:
            of.addHandler(each)
        of.setLevel(former_level)

    return undo


def _is_tty(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, OSError, ValueError):  # it is closed, or not a file
        return False
