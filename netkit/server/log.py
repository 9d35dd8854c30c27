"""Events as log records: the one place that writes to `logging`, under the name ``netkit``.

`netkit.server.serving` subscribes `write` to the events. Text from a client is escaped, so that it
can neither forge a record nor command the terminal that shows it.
"""

from __future__ import annotations

import logging
import signal
import traceback
from collections.abc import Callable
from typing import Any

from ..core import events
from ..core.encodings import printable
from ..core.errors import ConnectError

logger = logging.getLogger("netkit")

MOST_TEXT = 2000  # characters of the text of one exception, before they are escaped
MOST_LINE = 25_000  # characters of a record, and of each line of a traceback
MOST_LINES = 100  # lines at each end of a traceback
MOST_LINKS = 20  # exceptions of a chain
_CAUSE = "The above exception was the direct cause of the following exception"
_CONTEXT = "During handling of the above exception, another exception occurred"

_Text = Callable[[Any], str]


_listeners_shown = False


def show_listeners(several: bool) -> None:
    """Name the listener in each record about a client, if there are `several`."""
    global _listeners_shown
    _listeners_shown = several


def _who(event: Any) -> str:
    to = f" to {event.local}" if _listeners_shown and event.local else ""
    return f"[{event.id}] {event.peer}{to}"


def _everywhere(address: str) -> str:
    """A note for an address that stands for all addresses of this machine."""
    return " (every address)" if address.startswith(("0.0.0.0:", "[::]:")) else ""


def _failed(event: Any) -> str:
    text = _error(event.error)
    named = (
        event.peer in text and not _listeners_shown
    )  # the error of a time limit names the client
    return f"[{event.id}] {text}" if named else f"{_who(event)}: {text}"


def _traffic(event: Any) -> str:
    read, written = event.bytes_read, event.bytes_written
    if read is None:
        return "bytes not counted"
    return f"{in_bytes(read)} received, {in_bytes(written)} sent"


def in_bytes(number: int) -> str:
    """``1 byte``, ``2 bytes``."""
    return f"{number} byte{'' if number == 1 else 's'}"


def _limit(seconds: float | None) -> str:
    return "no time limit" if seconds is None else f"up to {round(seconds, 1):g} s to finish"


def _status(status: int | None) -> str:
    if status is None:
        return "with an unknown status"
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


# The level and the text of each event's record.
_RECORDS: dict[type[Any], tuple[int, _Text]] = {
    events.Listening: (logging.INFO, lambda e: f"listening on {e.address}{_everywhere(e.address)}"),
    events.Unlimited: (
        logging.INFO,
        lambda e: (
            f"{e.address} can be reached from other machines, and no limit is set; "
            "profile='public' (--profile public) sets limits for the Internet"
        ),
    ),
    events.ConnectionOpened: (logging.DEBUG, lambda e: f"{_who(e)} connected"),
    events.ConnectionClosed: (
        logging.DEBUG,
        lambda e: f"{_who(e)} closed after {e.seconds:.3f} s: {_traffic(e)}",
    ),
    events.ClientFailed: (logging.INFO, _failed),
    events.HandlerFailed: (
        logging.ERROR,
        lambda e: f"{_who(e)}: the handler failed: {_error(e.error)}",
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
        lambda e: (
            f"{e.reason}: {e.clients} refused in {e.seconds:.1f} s"
            if e.clients > 1
            else f"{e.reason}: 1 refused"
        ),
    ),
    events.ListLoaded: (logging.INFO, lambda e: f"{e.name}: {e.rules} rules from {e.path}"),
    events.KeyReadable: (
        logging.WARNING,
        lambda e: f"every user of this machine can read the key file {e.name!r}: chmod o-r",
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
    events.NothingToReload: (logging.INFO, lambda _: "SIGHUP: there is nothing to reload"),
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
    events.ServingOn: (
        logging.WARNING,
        lambda e: f"the server on {e.address} serves on; Ctrl+C stops it, and ends the program",
    ),
    events.Stopping: (
        logging.INFO,
        lambda e: f"stopping: {e.connections} connected, {_limit(e.timeout)}",
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
        lambda e: f"stopping: {_workers(e)}, {_limit(e.timeout)}",
    ),
    events.Reloaded: (logging.INFO, lambda e: f"reloaded: {_workers(e)}"),
    events.ReloadFailed: (
        logging.ERROR,
        lambda e: f"not reloaded, the old workers go on: {printable(e.reason)}",
    ),
}
_WITH_TRACEBACK = (events.HandlerFailed, events.HookFailed, events.ObserverFailed)


# Text that comes from outside


def cut(text: str, most: int = MOST_LINE) -> str:
    """`text`, or its beginning and its length if it has more than `most` characters."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def one_line(text: str) -> str:
    """`text` as one line that is safe on a terminal, cut. Backslashes stay as they are."""
    if not text.isprintable():
        text = printable(cut(text)).replace(r"\\", "\\")
    return cut(text)


def said(thing: object) -> str:
    """The text of an exception, or of any other object, without an error number."""
    if isinstance(thing, OSError) and thing.strerror and type(thing).__str__ is OSError.__str__:
        where = "" if thing.filename is None else f": {_str(thing.filename)!r}"
        return cut(f"{_str(thing.strerror)}{where}", MOST_TEXT)
    return cut(_str(thing), MOST_TEXT)


def _str(thing: object) -> str:
    try:
        return str(thing)
    except KeyboardInterrupt:  # Ctrl+C, and not a fault of the object's `__str__`
        raise
    except BaseException:
        return ""


def _error(error: BaseException) -> str:
    text = printable(said(error))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def traceback_lines(error: BaseException) -> list[str]:
    """The lines of Python's traceback. The text of each exception is one line, escaped and cut.

    A very long traceback is reduced to its first and last lines, a long chain of exceptions to the
    last ones.
    """
    try:
        lines = "".join(_links(error)).removesuffix("\n").split("\n")
    except Exception:  # notes that are not text; an import by Python 3.15, for a suggestion
        lines = [*"".join(traceback.format_tb(error.__traceback__)).splitlines(), _error(error)]
    left_out = len(lines) - 2 * MOST_LINES
    if left_out > 0:
        lines[MOST_LINES:-MOST_LINES] = [f"  [{left_out} lines left out]"]
    return [one_line(line) for line in lines]


def _links(error: BaseException) -> list[str]:
    """The tracebacks of a chain of exceptions, and the lines that Python writes between them."""
    link: BaseException | None = error
    parts: list[str] = []
    between = ""
    seen: set[int] = set()
    while link is not None and id(link) not in seen:
        if len(seen) == MOST_LINKS:
            parts.append("[older exceptions left out]\n")
            break
        if parts:
            parts.append(f"\n{between}:\n\n")
        seen.add(id(link))
        parts.append(_traceback(link))
        cause, context = link.__cause__, link.__context__
        link = cause if cause is not None or link.__suppress_context__ else context
        between = _CAUSE if cause is not None else _CONTEXT
    return parts[::-1]


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
    """Format the traceback here: another formatter would not escape the text of a client."""
    if record.exc_info and record.exc_info[1]:
        lines = traceback_lines(record.exc_info[1])
        record.exc_text = "\n".join(lines)
        record.traceback_lines = lines
    return True


logger.addFilter(_add_traceback)


_hidden: set[type[Any]] = set()


def hide(*kinds: type[Any]) -> None:
    """Log no more events of these kinds."""
    _hidden.update(kinds)


_has_failed = False


def write(event: events.Event) -> None:
    """Log one event. The first exception of a log handler is reported on standard error."""
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
        if isinstance(error, ConnectError):  # a service that is down: the traceback adds nothing
            error = None
        logger.log(level, one_line(text(event)), exc_info=error, extra={"event": event})
