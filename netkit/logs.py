"""Events as log records: the one place that writes to `logging`, under the name ``netkit``.

The server's module attaches it to the events. What comes from a client is escaped, so that it can
neither forge a record nor command the terminal that shows it.
"""

from __future__ import annotations

import logging
import signal
import time
import traceback
from collections.abc import Callable
from typing import Any, TextIO

from . import events
from .encodings import printable
from .errors import ConnectError

logger = logging.getLogger("netkit")

_Text = Callable[[Any], str]


def _amount(count: int | None) -> str:
    return "not counted" if count is None else f"{count} bytes"


def _limit(seconds: float | None) -> str:
    return "any time" if seconds is None else f"{seconds:.0f} s"


def _status(status: int | None) -> str:
    if status is None:
        return "with a status that is not known"
    if status >= 0:
        return f"with status {status}"
    try:
        return f"by {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal
        return f"by signal {-status}"


def _workers(event: Any) -> str:
    return f"{event.workers} worker{'s' if event.workers != 1 else ''}"


def _again(pause: float) -> str:
    return f"starting another in {pause:g} s" if pause else "starting another"


# What each event looks like: its level and its text.
_RECORDS: dict[type[Any], tuple[int, _Text]] = {
    events.Listening: (logging.INFO, lambda e: f"listening on {e.address}"),
    events.Unlimited: (
        logging.INFO,
        lambda e: (
            f"{e.address} can be reached from other machines, and no limit is set; "
            "profile='public' (--profile public) sets limits for the Internet"
        ),
    ),
    events.ConnectionOpened: (logging.DEBUG, lambda e: f"[{e.id}] {e.peer} connected"),
    events.ConnectionClosed: (
        logging.DEBUG,
        lambda e: (
            f"[{e.id}] {e.peer} closed after {e.seconds:.3f} s: "
            f"{_amount(e.bytes_read)} received, {_amount(e.bytes_written)} sent"
        ),
    ),
    events.ClientFailed: (logging.INFO, lambda e: f"[{e.id}] {e.peer}: {_error(e.error)}"),
    events.HandlerFailed: (
        logging.ERROR,
        lambda e: f"[{e.id}] {e.peer}: the handler failed: {_error(e.error)}",
    ),
    events.HookFailed: (logging.ERROR, lambda e: f"{e.hook} failed: {_error(e.error)}"),
    events.ObserverFailed: (
        logging.ERROR,
        lambda e: f"the observer {e.observer} failed: {_error(e.error)}",
    ),
    events.HandshakeInAccept: (
        logging.WARNING,
        lambda e: (
            f"{e.hook} does TLS handshakes, so that one silent client keeps all others waiting: "
            "use the option tls, or wrap_socket(..., do_handshake_on_connect=False)"
        ),
    ),
    events.AcceptFailed: (
        logging.WARNING,
        lambda e: f"a client could not be accepted: {_error(e.error)}",
    ),
    events.AcceptPaused: (
        logging.WARNING,
        lambda e: f"no new clients for the moment: {_error(e.error)}",
    ),
    events.AcceptResumed: (
        logging.WARNING,
        lambda e: f"accepting clients again, after {e.seconds:.1f} s",
    ),
    events.ListenerLost: (
        logging.ERROR,
        lambda e: f"no new clients any more: {_error(e.error)}",
    ),
    events.ClientRefused: (logging.DEBUG, lambda e: f"{e.peer} refused: {e.reason}"),
    events.Refusing: (
        logging.WARNING,
        lambda e: (
            f"{e.reason}: new clients wait"
            if e.waiting
            else f"{e.reason}: refusing clients, {e.peer} first"
        ),
    ),
    events.Refused: (
        logging.WARNING,
        lambda e: f"{e.reason}: {e.clients} refused in {e.seconds:.1f} s",
    ),
    events.SettingsReloaded: (
        logging.INFO,
        lambda e: (
            f"{e.what} reloaded"
            + ("" if e.rules is None else f": {e.rules} rules (were {e.before})")
        ),
    ),
    events.SettingsKept: (
        logging.ERROR,
        lambda e: f"{e.what} not reloaded, the old one stays: {_error(e.error)}",
    ),
    events.Resolved: (
        logging.DEBUG,
        lambda e: f"{e.host} is {', '.join(e.addresses)}",
    ),
    events.AttemptStarted: (logging.DEBUG, lambda e: f"connecting to {e.address}"),
    events.AttemptFailed: (
        logging.DEBUG,
        lambda e: f"{e.address}: {e.error.strerror or e.error}",
    ),
    events.SignalsUnavailable: (
        logging.WARNING,
        lambda _: (
            "signals are not handled here: this is not the main thread; "
            "call stop() to end the server"
        ),
    ),
    events.Stopping: (
        logging.INFO,
        lambda e: f"stopping: {e.connections} connected, up to {_limit(e.timeout)} to finish",
    ),
    events.Stopped: (logging.INFO, lambda e: f"stopped: {e.finished} finished, {e.cut} cut"),
    events.Report: (logging.INFO, lambda e: f"[{e.id}] {e.text}"),
    events.WorkersReady: (logging.INFO, lambda e: f"{_workers(e)} ready"),
    events.WorkerEnded: (
        logging.ERROR,
        lambda e: f"worker {e.pid} ended {_status(e.status)}; {_again(e.pause)}",
    ),
    events.WorkerFailed: (
        logging.ERROR,
        lambda e: f"a worker failed: {printable(e.reason)}; {_again(e.pause)}",
    ),
    events.WorkersStopping: (
        logging.INFO,
        lambda e: f"stopping: {_workers(e)}, up to {_limit(e.timeout)} to finish",
    ),
    events.Reloaded: (logging.INFO, lambda e: f"reloaded: {_workers(e)}"),
    events.ReloadFailed: (
        logging.ERROR,
        lambda e: f"not reloaded, the old workers go on: {printable(e.reason)}",
    ),
}
_WITH_TRACEBACK = (events.HandlerFailed, events.HookFailed, events.ObserverFailed)


def _str(thing: object) -> str:
    try:
        return str(thing)
    except Exception:  # its own fault, and no reason to say nothing of it
        return ""


def _error(error: BaseException) -> str:
    text = printable(_str(error))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _traceback(error: BaseException) -> str:
    """As Python shows it, but that what each exception says takes one line, and is printable."""
    text = "".join(traceback.format_exception(error)).removesuffix("\n")
    chain: list[BaseException] = [error]
    for link in chain:
        for said in (_str(link), *map(_str, getattr(link, "__notes__", ()))):
            if "\n" in said and not said.isspace():
                text = text.replace(said, printable(said))
        others = (link.__cause__, link.__context__)
        chain += [other for other in others if other is not None and other not in chain]
    return "\n".join(printable(line).replace(r"\\", "\\") for line in text.split("\n"))


def _add_traceback(record: logging.LogRecord) -> bool:
    """Format the traceback here, lest another formatter pass on what a client has sent."""
    if record.exc_info and record.exc_info[1]:
        record.exc_text = _traceback(record.exc_info[1])
    return True


logger.addFilter(_add_traceback)


_hidden: set[type[Any]] = set()


def hide(*kinds: type[Any]) -> None:
    """Write no more records of these events."""
    _hidden.update(kinds)


_has_failed = False


def write(event: events.Event) -> None:
    """Log one event. If a log handler raises, that is said once, on standard error."""
    global _has_failed
    try:
        _write(event)
    except Exception as error:
        if not _has_failed:
            _has_failed = True
            events.last_resort("a record could not be logged", error)


def _write(event: events.Event) -> None:
    level, text = _RECORDS[type(event)]
    if type(event) in _hidden:
        return
    if logger.isEnabledFor(level):
        error = event.error if isinstance(event, _WITH_TRACEBACK) else None
        if isinstance(error, ConnectError):  # a service that is down: its text says all
            error = None
        logger.log(level, text(event), exc_info=error, extra={"event": event})


def configure(stream: TextIO, level: str, style: str) -> None:
    """Send the records of `level` and above to `stream`, as ``"text"`` or as ``"json"``.

    For programs that leave logging to netkit, such as its command line. Level: a name of
    `logging`'s, in small letters.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    logger.propagate = False


class TextFormatter(logging.Formatter):
    """The message alone; from warnings on with the level before it."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno < logging.WARNING:
            return text
        return f"{record.levelname.lower()}: {text}"


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC, RFC 3339), level, event, message, and the event's data."""

    def __init__(self) -> None:
        super().__init__()
        import json  # here because most programs never need it

        self._dumps = json.dumps

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        data: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
        }
        event = getattr(record, "event", None)
        if event is not None:
            data["event"] = type(event).__name__
            data.update(event._asdict())
        data["message"] = record.getMessage()
        if record.exc_info:
            data["traceback"] = self.formatException(record.exc_info)
        return self._dumps(data, default=_str)
