"""Formats log records as lines of text or JSON, and writes them to a stream.

A record becomes one line (in text, its traceback follows it), escaped and of a bounded length.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from ..core.events import Event
from ..core.text import cut, described, one_line, said
from ..net.addresses import describe_peer
from ..net.sockopts import wait_until_ready
from .log import logger, traceback_lines


class StreamHandler(logging.StreamHandler):  # type: ignore[type-arg] # generic for checkers only
    """Writes each record at once. A record that cannot be written is dropped."""

    longest_write = 1.0
    """The seconds that a record waits for the reader of a full pipe."""
    _is_full = False  # the last record was dropped, because nobody read the pipe

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record. Raises nothing."""
        if self.stream is None:  # a process without standard error (pythonw, a daemon)
            return
        try:
            line = self.format(record)
        except Exception as error:  # the arguments of the record do not fit its message
            where = f"{record.pathname}:{record.lineno}"
            text = f"a record of {where} cannot be formatted: {described(error)}"
            line = self.format(logging.LogRecord(record.name, logging.ERROR, "", 0, text, (), None))
        try:
            encoding = getattr(self.stream, "encoding", None) or "utf-8"
            text = line.encode(encoding, "backslashreplace").decode(encoding)
            if self._is_writable():
                self.stream.write(text + self.terminator)
                self.flush()
        except Exception:  # it is full or closed, or a signal has interrupted another write to it
            return

    def _is_writable(self) -> bool:
        # Only the first record for a full pipe waits, since all threads that log wait with it.
        try:
            seconds = 0.0 if self._is_full else self.longest_write
            self._is_full = not wait_until_ready(self.stream, True, seconds)
        except Exception:  # it has no descriptor, or no longer
            return True
        return not self._is_full


class TextFormatter(logging.Formatter):
    """Formats a record for people. A `full` line begins with the local time and the level."""

    def __init__(self, full: bool = False) -> None:
        super().__init__()
        self._full = full

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of the record, and below it those of its traceback and its stack."""
        level = record.levelname
        if self._full:
            seconds = self.formatTime(record, "%Y-%m-%d %H:%M:%S")
            head = f"{seconds}.{int(record.msecs):03d} {level} "
        else:
            head = f"{level.lower()}: " if record.levelno >= logging.WARNING else ""
        if record.processName != "MainProcess":  # a worker
            head += f"pid {record.process}: "
        if record.name != logger.name:
            head += f"{record.name}: "
        first = one_line(head) + one_line(record.getMessage())
        return "\n".join([first, *_lines_below(record)])


class JsonFormatter(logging.Formatter):
    """Formats a record, with the fields of its event, as one line of JSON. Times are UTC."""

    converter = staticmethod(time.gmtime)

    def __init__(self) -> None:
        super().__init__()
        import json  # here because most programs never need it

        self._dumps = json.dumps

    def format(self, record: logging.LogRecord) -> str:
        """Return the JSON object of the record; docs/logging.md lists its members."""
        error = record.exc_info[1] if record.exc_info else None
        data: dict[str, Any] = {
            "time": f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "thread": record.threadName,
        }
        event = getattr(record, "event", None)
        if isinstance(event, Event):  # programs may have an attribute of this name
            data.update(_members(event))
            error = data.pop("error", error)
        data["message"] = record.getMessage()
        if error is not None:
            data.update(error=said(error), error_type=type(error).__name__)
        below = _lines_below(record)
        if below:
            data["traceback"] = "\n".join(below)
        data = {name: cut(it) if isinstance(it, str) else it for name, it in data.items()}
        return self._dumps(data, default=said)


def _members(event: Event) -> dict[str, Any]:
    members = {"event": type(event).__name__, **event.as_dict()}
    if "pid" in members:  # a worker that has ended; in a record, `pid` is the process that logs
        members["worker"] = members.pop("pid")
    address = getattr(event.server, "server_address", None)  # kept after the server is closed
    if address is not None:
        members["server"] = describe_peer(address)
    return members


def _lines_below(record: logging.LogRecord) -> list[str]:
    lines: list[str] = []
    if record.exc_text and (record.name == logger.name or not record.exc_info):
        lines += map(one_line, record.exc_text.split("\n"))  # netkit's, or of another process
    elif record.exc_info and record.exc_info[1]:
        lines += traceback_lines(record.exc_info[1])
    if record.stack_info:
        lines += map(one_line, record.stack_info.split("\n"))
    return lines
