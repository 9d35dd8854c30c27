"""Events as log records, which no text can forge, and their tracebacks."""

from __future__ import annotations

import builtins
import json
import logging
import re
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from core.test_events import ERROR
from hypothesis import example, given
from hypothesis import strategies as st
from support import examples, observed, wait_until

import netkit
from netkit.core import events
from netkit.core.errors import ConnectError
from netkit.server import log, log_format


def raised(error: BaseException) -> BaseException:
    """With a traceback."""
    try:
        raise error
    except BaseException as caught:
        return caught


@pytest.mark.parametrize(
    "event",
    [
        events.ConnectionOpened(1, "p"),
        events.HandlerFailed(1, "p", ERROR),
        events.HandlerFailed(1, "p", ConnectError(111, "a service that is down")),
        events.AcceptPaused(ERROR),
    ],
)
def test_an_event_becomes_one_record(event: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "netkit")
    log.write(event)
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("netkit", event.level)
    assert record.getMessage() == event.message()
    assert record.event is event  # type: ignore[attr-defined]
    has_traceback = event.with_traceback and event.error is ERROR
    assert bool(record.exc_info) is bool(record.exc_text) is has_traceback


def test_an_event_below_the_level_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", "netkit")
    log.write(events.Stopped(2, 1))
    log.write(events.Report(1, "p", "said something"))
    assert caplog.records == []


# --- Text from a client ---

FORGED = "a\nerror: forged"
HOSTILE = "a\nerror: forged\r\n\x1b[31m\x9b2J\x00\x7f\u2028\u2029\x85\u202e\\n\ud800 %s %d {0}"


def hostile_events(text: str) -> list[Any]:
    error = raised(RuntimeError(text))
    error.__cause__ = raised(KeyError(text))
    error.__context__ = error
    error.__cause__.__context__ = raised(OSError(5, text))
    if hasattr(error, "add_note"):
        error.add_note(text)
    return [
        events.ClientFailed(1, "p", error),
        events.HandlerFailed(1, "p", error),
        events.HookFailed("handle_error", error),
        events.AcceptFailed(error),
        events.AcceptPaused(error),
        events.ListenerLost(error),
    ]


def lines_of(formatter: logging.Formatter, event: Any) -> list[str]:
    """The lines of the record of `event`."""
    records: list[logging.LogRecord] = []
    handler = logging.NullHandler()
    handler.handle = records.append  # type: ignore[assignment, method-assign]
    logger = log.logger
    before, level = logger.propagate, logger.level
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel("DEBUG")
    try:
        log.write(event)
    finally:
        logger.removeHandler(handler)
        logger.propagate = before
        logger.setLevel(level)
    (record,) = records
    return formatter.format(record).split("\n")


FORMATTERS = [log_format.TextFormatter(), logging.Formatter("%(levelname)s:%(message)s")]


def looks_like_a_traceback(line: str) -> bool:
    return (
        not line
        or line.startswith("  ")
        or line
        in (
            "Traceback (most recent call last):",
            "The above exception was the direct cause of the following exception:",
            "During handling of the above exception, another exception occurred:",
        )
        or re.match(r"(RuntimeError|KeyError|OSError)\b", line) is not None
    )


@pytest.mark.fuzz
@examples(40)
@given(st.text(st.characters(), max_size=20))
@example(HOSTILE)
def test_no_text_of_a_client_can_forge_a_record_or_command_a_terminal(text: str) -> None:
    for event in hostile_events(text):
        for formatter in FORMATTERS:
            first, *others = lines_of(formatter, event)
            assert all(line.isprintable() for line in (first, *others))
            if not isinstance(event, (events.HandlerFailed, events.HookFailed)):
                assert others == []
            assert all(map(looks_like_a_traceback, others)), others
        (line,) = lines_of(log_format.JsonFormatter(), event)
        assert line.isprintable()
        assert line.isascii()
        assert json.loads(line)["error"] == text


def test_the_traceback_of_plain_exceptions_is_that_of_python() -> None:
    try:
        try:
            int("no number\\")
        except ValueError as error:
            raise RuntimeError("failed") from error
    except RuntimeError as error:
        first, *rest = lines_of(FORMATTERS[0], events.HandlerFailed(1, "p", error))
        plain = "".join(traceback.format_exception(error))
    assert first == "error: [1] p: the handler failed: RuntimeError: failed"
    assert rest == plain.splitlines()


class Odd(Exception):
    """An exception whose text is what `make` returns or raises."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make

    def __str__(self) -> str:
        return self.make()  # type: ignore[no-any-return]


def fail(error: BaseException) -> Any:
    raise error


ODD = [
    lambda: fail(ValueError()),
    lambda: fail(SystemExit()),
    lambda: fail(GeneratorExit()),
    lambda: str(Odd(ODD[-1])),  # without end
    lambda: 5,
]


@pytest.mark.parametrize("make", ODD)
def test_an_exception_whose_text_cannot_be_made_is_logged(make: Callable[[], Any]) -> None:
    event = events.HandlerFailed(1, "p", raised(Odd(make)))
    first, *_ = lines_of(FORMATTERS[0], event)
    assert first == "error: [1] p: the handler failed: Odd"
    (line,) = lines_of(log_format.JsonFormatter(), event)
    data = json.loads(line)
    assert (data["message"], data["error"]) == ("[1] p: the handler failed: Odd", "")
    assert data["error_type"] == "Odd"


def test_an_exception_whose_notes_are_not_text_is_logged() -> None:
    error = raised(RuntimeError("x"))
    error.__notes__ = 5  # type: ignore[attr-defined]
    first, *_ = lines_of(FORMATTERS[0], events.HandlerFailed(1, "p", error))
    assert first == "error: [1] p: the handler failed: RuntimeError: x"


def test_a_record_is_of_a_bounded_length() -> None:
    error = raised(RuntimeError("\x1b" * 10**6))
    error.__cause__ = raised(ValueError("x\n" * 10**6))
    for formatter in (*FORMATTERS, log_format.JsonFormatter()):
        lines = lines_of(formatter, events.HandlerFailed(1, "p", error))
        assert sum(map(len, lines)) < 200_000
        assert any(re.search(r"\.\.\. \(10000\d\d characters\)", line) for line in lines)
    assert log.traceback_lines(error)[0] == "Traceback (most recent call last):"
    assert max(map(len, log.traceback_lines(error))) < 5 * log.MOST_TEXT


def test_of_a_long_traceback_the_first_and_the_last_lines_are_shown() -> None:
    def ping(depth: int) -> None:
        pong(depth)

    def pong(depth: int) -> None:
        if not depth:
            raise ValueError("far down")
        ping(depth - 1)

    with pytest.raises(ValueError, match="far down") as caught:
        ping(100)
    lines = log.traceback_lines(caught.value)
    assert len(lines) == 2 * log.MOST_LINES + 1
    assert (lines[0], lines[-1]) == ("Traceback (most recent call last):", "ValueError: far down")
    assert re.fullmatch(r"  \[\d+ lines left out\]", lines[log.MOST_LINES])


def test_of_a_long_chain_the_last_exceptions_are_shown() -> None:
    error: BaseException = ValueError(0)
    for number in range(1, 5000):
        cause, error = error, ValueError(number)
        error.__cause__ = cause
    lines = log.traceback_lines(error)
    assert (lines[0], lines[-1]) == ("[older exceptions left out]", "ValueError: 4999")
    assert sum(line.startswith("ValueError") for line in lines) == log.MOST_LINKS


def test_a_circular_chain_of_exceptions_is_shown_once() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__context__ = second, first
    assert log.traceback_lines(first) == [
        "ValueError: second",
        "",
        "The above exception was the direct cause of the following exception:",
        "",
        "ValueError: first",
    ]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="no groups of exceptions here")
def test_a_group_of_exceptions_is_shown_with_all_of_them() -> None:
    kind = getattr(builtins, "ExceptionGroup")  # noqa: B009 - from Python 3.11 on
    inner = raised(ValueError(f"one{FORGED}"))
    inner.__cause__ = TypeError("the cause of one")
    group = raised(kind(FORGED, [inner, KeyError("two\n")]))
    group.__context__ = OSError(f"earlier{FORGED}")
    lines = lines_of(FORMATTERS[0], events.HandlerFailed(1, "p", group))
    for text in ("ValueError: one", "OSError: earlier", "TypeError: the cause of one"):
        assert any(text in line for line in lines)
    assert all(line.isprintable() for line in lines)
    assert not any(line.startswith("error: forged") for line in lines)


TEXTS = iter(range(10))


@pytest.mark.parametrize(
    ("error", "last"),
    [
        (SyntaxError(FORGED, (FORGED, 1, 1, FORGED, 1, 2)), r"SyntaxError: a\\nerror: forged"),
        (Odd(lambda: f"{next(TEXTS)}\nerror: forged"), r".*\.Odd: \d\\nerror: forged"),
    ],
    ids=["a parser's", "a text that changes"],
)
def test_an_odd_exception_forges_no_line(error: Exception, last: str) -> None:
    lines = lines_of(FORMATTERS[0], events.HandlerFailed(1, "p", raised(error)))
    assert re.fullmatch(last, lines[-1])
    assert not any(line.startswith("error: forged") for line in lines)


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here")
def test_the_path_of_a_unix_client_cannot_forge_a_record(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("DEBUG", "netkit")
    monkeypatch.chdir(tmp_path)  # the paths of sockets have to be short
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("server")
    server = netkit.create_server(lambda conn: conn.read()).listen(sock=listener)
    with server, socket.socket(socket.AF_UNIX) as peer:
        peer.bind("a\nerror: forged\x1b[31m\udcff")
        peer.connect("server")
        wait_until(lambda: server.connections)
    peers = [record.getMessage() for record in caplog.records if "connected" in record.getMessage()]
    assert r"a\nerror: forged\x1b[31m\udcff connected" in peers[0]
    assert all(record.getMessage().isprintable() for record in caplog.records)


def test_a_log_handler_that_raises_is_reported_once_on_standard_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def emit(_: object) -> None:
        raise ValueError("no disk\x1b[31m")

    monkeypatch.setattr(log, "_has_failed", False)
    handler = logging.Handler()
    handler.emit = emit  # type: ignore[method-assign]
    log.logger.addHandler(handler)
    try:
        with observed(events.ObserverFailed) as seen:
            for _ in range(3):
                log.write(events.ReloadFailed("a reason"))
    finally:
        log.logger.removeHandler(handler)
    text = "netkit: a record could not be logged: ValueError: no disk\\x1b[31m\n"
    assert (capsys.readouterr().err, seen) == (text, [])
