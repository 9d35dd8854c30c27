"""The access log: one line for each client, when its connection is over, or when it is refused.

A line is a record of the logger ``netkit.access``, of level INFO. `AccessLog` gives this logger a
handler that writes to a file; without one, the program's own handlers get the records.

Rules:

1. A client cannot forge a line or a field: what it has a say in has no space and no character that
   is not printable, and a bounded length. So each line fits into one write to a pipe, too.
2. A file that cannot be written to stops neither the server nor a client.
3. A thread that ends a connection does not wait while another one writes: it leaves its line, which
   the other one writes, too. A write has whole lines, and as much as a pipe takes at once.
4. If a write does not return (a disk that hangs), a limited number of lines wait. Further lines are
   lost, and the log has one record about that.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import stat
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from ..core import events
from ..core.errors import Failure
from ..core.text import printable, said
from ..net.addresses import describe_peer
from ..net.files import OutputError, open_at_once
from ..server import log
from ..server.closed import closed_event
from ..server.log_files import LogFiles
from ..server.log_format import JsonFormatter
from ..server.server import Server

logger = logging.getLogger("netkit.access")

MOST_FIELD = 255  # characters of a field that a client has a say in
PIPE_SECONDS = 1.0  # how long a line waits for the reader of a full pipe
MOST_WRITTEN = 4096  # bytes of one write, unless a line is longer: PIPE_BUF of Linux
MOST_WAITING = 50_000  # lines, while a write does not return: about 10 MB
LOOK_SECONDS = 1.0  # how often a line looks whether the file was renamed: that is a system call


def log_accesses() -> Callable[[], None]:
    """Log each connection of this process when it is over, and each client that is refused.

    The records are of the logger ``netkit.access``, of level INFO, and have the event as their
    attribute `event`. The program's handlers write them. Returns a function that ends this.
    """
    return events.subscribe(_log)


def _log(event: events.Event) -> None:
    is_refusal = isinstance(event, events.ClientRefused) and not getattr(event, "id", 0)
    if not (is_refusal or isinstance(event, events.ConnectionClosed)):
        return
    if logger.isEnabledFor(logging.INFO):
        # Without `Logger.info`, which would look for the caller in the stack.
        message = _Message(event)
        record = logging.LogRecord(logger.name, logging.INFO, "", 0, message, (), None)
        record.event = event
        logger.handle(record)


class _Message:
    """The message of a record. Its text is made when it is needed, which JSON does not."""

    def __init__(self, event: Any) -> None:
        self.event = event

    def __str__(self) -> str:
        return text_of(self.event)


# The line


def text_of(event: Any) -> str:
    """Return the line of a connection, or of a client that was refused, without the time."""
    if isinstance(event, events.ClientRefused):
        line = f"{_field(event.peer)} -> {_listener_of(event)} 0.000s in 0 out 0"
        return f"{line} refused:{event.reason}"
    proxy = f" via {_field(event.via)}" if event.via else ""
    if event.proxy == "LOCAL":  # of the proxy itself
        proxy = " local"
    received, sent = ("-" if it is None else it for it in (event.bytes_read, event.bytes_written))
    line = f"{_field(event.peer)}{proxy} -> {_listener_of(event)} {event.seconds:.3f}s"
    tls = "".join(f" {_field(it)}" for it in (event.tls_version, event.server_name) if it)
    return f"{line} in {received} out {sent} {event.end}{tls} [{event.id}]"


def members_of(event: Any) -> dict[str, Any]:
    """Return the members of the JSON object, but for the time and the process."""
    if isinstance(event, events.ClientRefused):
        local = "" if event.local is None else str(event.local)
        values: dict[str, Any] = {
            **dict.fromkeys(_MEMBERS, ""),
            "id": None,
            "peer": event.peer,
            "local": local,
            "seconds": 0.0,
            "waited": 0.0,
            "bytes_read": 0,
            "bytes_written": 0,
            "end": "refused",
            "reason": event.reason,
        }
    else:
        values = {name: getattr(event, name, "") for name in _MEMBERS}
        values["seconds"], values["waited"] = round(event.seconds, 6), round(event.waited, 6)
    values["listener"] = _listener_of(event)
    texts = {name: it[:MOST_FIELD] for name, it in values.items() if isinstance(it, str)}
    return {"event": type(event).__name__, **values, **texts}


_MEMBERS = (
    *("id", "peer", "via", "proxy", "local", "listener", "seconds", "waited"),
    *("bytes_read", "bytes_written", "end", "tls_version", "server_name", "unique_id"),
)


def _field(text: str) -> str:
    """Return `text` as one word of a line."""
    if len(text) < MOST_FIELD and text.isprintable() and " " not in text and "\\" not in text:
        return text
    return printable(text[:MOST_FIELD]).replace(" ", r"\x20")


def _listener_of(event: Any) -> str:
    """Return the address of the listener: ``127.0.0.1:8080``; ``:8080`` if it has no host.

    It is the local address of the client, unless a proxy has announced another one.
    """
    server, local = event.server, "" if event.local is None else str(event.local)
    if server is None:
        return _field(local or "-")
    more = server._listeners.more
    first = _shown(server.server_address)
    if not more:
        return first
    with contextlib.suppress(OSError):  # it is closed
        every = f":{local.rpartition(':')[2]}"
        for known in (first, *(_shown(listener.getsockname()) for listener in more)):
            if known in (local, every):
                return known
    return _field(local or "-")


@functools.lru_cache(maxsize=64)
def _shown(name: Any) -> str:
    return _field(_without_host(describe_peer(name)))


def _without_host(listener: str) -> str:
    for every in ("0.0.0.0:", "[::]:"):
        if listener.startswith(every):
            return f":{listener.removeprefix(every)}"
    return listener


# The file


class _TextFormatter(logging.Formatter):
    """A line that begins with the local time."""

    _last = 0, ""  # the last second, and its text, which most lines share

    def format(self, record: logging.LogRecord) -> str:
        second, text = self._last
        if second != int(record.created):
            text = self.formatTime(record, "%Y-%m-%d %H:%M:%S")
            self._last = int(record.created), text
        return f"{text}.{int(record.msecs):03d} {record.getMessage()}"


class _JsonFormatter(JsonFormatter):
    """One JSON object, with the members that docs/operations.md lists. The time is UTC."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = self.formatTime(record, "%Y-%m-%dT%H:%M:%S")
        head = {"time": f"{seconds}.{int(record.msecs):03d}Z", "pid": record.process}
        event = getattr(record, "event", None)
        known = isinstance(event, (events.ConnectionClosed, events.ClientRefused))
        body = members_of(event) if known else {"message": record.getMessage()}
        return self._dumps({**head, **body})


class AccessLog(logging.Handler):
    """Writes the records of ``netkit.access`` to a file or to standard output. Thread-safe."""

    def __init__(self, path: str, is_json: bool = False, servers: Sequence[Server] = ()) -> None:
        """`path` is ``"-"`` for standard output. Nothing is opened yet.

        `end` writes the lines of connections of `servers` that are open then.
        """
        super().__init__()
        self.path = path
        self._servers = servers
        self._files = LogFiles(
            None if path == "-" else path, patience=PIPE_SECONDS, interval=LOOK_SECONDS
        )
        self._files.owner = "the access log: "
        self._has_ended = False  # nobody reads standard output any more
        self._lines: deque[bytes] = deque()  # those that are to be written
        self._is_behind = False  # lines have been lost since all were written
        self._writing = threading.Lock()  # held by the thread that takes and writes the lines
        self.setFormatter(_JsonFormatter() if is_json else _TextFormatter())

    def begin(self) -> None:
        """Open the file, and write the lines of this process to it, and nowhere else.

        OSError, with a text for users, if it cannot be opened.
        """
        if self.path == "-" and sys.stdout is None:
            raise OSError(errno.EBADF, "standard output is closed: name a file as the access log")
        try:
            self._files.__enter__()
        except Failure as error:
            number = getattr(error.__context__, "errno", None) or errno.EIO
            raise OSError(number, f"the access log: {said(error)}") from None
        self._file = self._files.file_of_all()
        self._end = log_accesses()
        self._former = logger.level, logger.propagate
        logger.addHandler(self)
        logger.setLevel(logging.INFO)
        logger.propagate = False

    def handle(self, record: logging.LogRecord) -> bool:
        """Write one record, without a lock of its own: a failure is logged, by other handlers."""
        wanted = bool(self.filter(record))
        if wanted:
            self.emit(record)
        return wanted

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record. Raises nothing; what cannot be written is lost, which is logged."""
        if len(self._lines) < MOST_WAITING:
            self._lines.append(f"{self.format(record)}\n".encode("utf-8", "backslashreplace"))
        elif not self._is_behind:
            self._is_behind = True
            text = "the access log: %d lines wait for a write; further ones are lost"
            log.logger.error(text, MOST_WAITING)
        while self._lines and self._writing.acquire(blocking=False):
            try:
                self._write_some()
            finally:
                self._writing.release()

    def _write_some(self) -> None:
        lines, size = [], 0
        while self._lines and (not size or size + len(self._lines[0]) <= MOST_WRITTEN):
            lines.append(self._lines.popleft())
            size += len(lines[-1])
        self._is_behind = self._is_behind and bool(self._lines)
        try:
            if lines:  # else another thread has just written them
                self._files.append(self._file, b"".join(lines))
        except OutputError as error:
            if not self._has_ended:
                self._has_ended = True
                log.logger.error("the access log has ended: %s", said(error))

    def reopen(self) -> None:
        """Open the file anew, or, if that fails, go on with the former one. Emits an event."""
        if self._files.reopen is None:
            return
        try:
            self._files.reopen()
        except OSError as error:
            events.emit(events.SettingsKept("the access log", error))
        else:
            events.emit(events.SettingsReloaded("the access log"))

    def end(self) -> None:
        """End what `begin` has begun. Waits a moment for a thread that writes."""
        self._end()  # first, so that no connection has two lines
        self._log_open()
        logger.removeHandler(self)
        level, logger.propagate = self._former
        logger.setLevel(level)
        if self._writing.acquire(timeout=PIPE_SECONDS):
            self._writing.release()
        try:
            self._files.__exit__(None)
        except Failure as error:
            log.logger.error("the access log: %s", said(error))

    def _log_open(self) -> None:
        """Log each connection that is still open: its handler has not returned after the cut."""
        for server in self._servers:
            for connection in server._connections.live():
                event = closed_event(connection, "cut")
                vars(event)["server"] = server
                _log(event)


def check(path: str) -> int | None:
    """Return a descriptor of the access log if it is a named pipe, for the caller to close.

    It keeps the pipe open until the processes that write lines have opened it: most readers end
    when no process has it open any more. OSError, with a text for users, if it cannot be opened.
    """
    access_log = AccessLog(path)
    access_log.begin()
    try:
        is_pipe = path != "-" and stat.S_ISFIFO(os.stat(path).st_mode)
        return open_at_once(path, os.O_WRONLY) if is_pipe else None
    finally:
        access_log.end()
