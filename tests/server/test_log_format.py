"""From a record to a line of text or JSON on a stream."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import multiprocessing
import os
import re
import select
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from core.test_events import ERROR, SAMPLES
from support import logging_put_back

import netkit
from netkit.core import events
from netkit.core.text import said
from netkit.server import log, log_format

from .conftest import Terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_a_line_begins_with_the_time_unless_a_terminal_shows_it(
    terminal: bool, configured: Callable[..., io.StringIO]
) -> None:
    stream = configured(terminal=terminal)
    log.write(events.Stopped(2, 1))
    log.write(events.AcceptResumed(1.0))
    log.write(events.ListenerLost(ERROR))
    first, second, third = stream.getvalue().splitlines()
    time = "" if terminal else r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} "
    levels = ["", "warning: ", "error: "] if terminal else ["INFO ", "WARNING ", "ERROR "]
    assert re.fullmatch(f"{time}{levels[0]}stopped: 2 finished, 1 cut", first)
    assert re.fullmatch(f"{time}{levels[1]}accepting clients again, after 1.0 s", second)
    assert re.fullmatch(f"{time}{levels[2]}no new clients any more: ValueError: .*", third)


def test_characters_that_the_encoding_of_the_stream_lacks_are_escaped() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), "ascii")
    with logging_put_back():
        netkit.configure_logging(stream=stream)
        logging.getLogger("app").error("caf\xe9")
    assert stream.buffer.getvalue().endswith(b"ERROR app: caf\\xe9\n")  # type: ignore[attr-defined]


class Interrupted(Terminal):
    """A stream in whose `write` a signal handler logs."""

    def write(self, text: str) -> int:
        raise RuntimeError("reentrant call inside <_io.BufferedWriter>")


class Closed(Terminal):
    def __init__(self) -> None:
        super().__init__()
        self.close()


@pytest.mark.parametrize("stream", [None, Closed(), Interrupted()])
def test_a_stream_that_cannot_be_written_loses_the_records_only(
    stream: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    with logging_put_back():
        netkit.configure_logging()
        logging.getLogger("app").error("lost")


def fill(descriptor: int) -> None:
    """Write to a pipe until it is full."""
    os.set_blocking(descriptor, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(descriptor, bytes(4096))
    os.set_blocking(descriptor, True)


def test_a_pipe_that_nobody_reads_loses_records_until_it_is_read_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(log_format.StreamHandler, "longest_write", 0.01)
    ours, theirs = os.pipe()
    with open(ours, "rb", 0) as reader, open(theirs, "w") as stream, logging_put_back():
        fill(theirs)
        netkit.configure_logging(stream=stream)
        for _ in range(2):
            logging.getLogger("app").error("lost")
        while select.select([reader], [], [], 0)[0]:
            assert not reader.read(4096).strip(b"\0")
        logging.getLogger("app").error("kept")
        assert reader.read(4096).endswith(b"ERROR app: kept\n")


def test_a_process_that_is_not_the_main_one_shows_its_number(
    configured: Callable[..., io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = configured()
    monkeypatch.setattr(multiprocessing.current_process(), "name", "netkit-worker")
    log.write(events.Stopped(2, 1))
    assert stream.getvalue() == f"pid {os.getpid()}: stopped: 2 finished, 1 cut\n"


def test_a_record_of_the_application_begins_with_the_name_of_its_logger(
    configured: Callable[..., io.StringIO],
) -> None:
    stream = configured("info")
    log = logging.getLogger("app.db")
    log.debug("not at this level")
    log.info("%d rows\x1b[31m\n%s", 5, "C:\\new")
    log.warning("slow")
    assert stream.getvalue().splitlines() == [
        r"app.db: 5 rows\x1b[31m\nC:\new",
        "warning: app.db: slow",
    ]


def test_the_traceback_and_the_stack_of_a_record_follow_it(
    configured: Callable[..., io.StringIO],
) -> None:
    stream = configured()
    try:
        raise ValueError("a\x1b")
    except ValueError:
        logging.getLogger("app").exception("failed", stack_info=True)
    lines = stream.getvalue().splitlines()
    assert lines[:2] == ["error: app: failed", "Traceback (most recent call last):"]
    assert r"ValueError: a\x1b" in lines
    assert "Stack (most recent call last):" in lines


OF_EACH_FORM = (
    *(events.ConnectionClosed, events.ClientFailed, events.HandlerFailed),
    *(events.WorkerEnded, events.Resolved),
)


@pytest.mark.parametrize("event", [each for each in SAMPLES if isinstance(each, OF_EACH_FORM)])
def test_json_is_one_object_a_line_with_the_data_of_the_event(
    event: Any, configured: Callable[..., io.StringIO]
) -> None:
    stream = configured(style="json")
    log.write(event)
    (line,) = stream.getvalue().splitlines()
    data = json.loads(line)
    level = logging.getLevelName(event.level).lower()
    assert (data.pop("level"), data.pop("message")) == (level, event.message())
    assert data.pop("event") == type(event).__name__
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", data.pop("time"))
    assert (data.pop("logger"), data.pop("pid")) == ("netkit", os.getpid())
    assert data.pop("thread") == threading.current_thread().name
    has_traceback = data.pop("traceback", None) is not None
    assert has_traceback is event.with_traceback
    expected = event.as_dict()
    if "error" in expected:
        error = expected["error"]
        expected.update(error=said(error), error_type=type(error).__name__)
    if "pid" in expected:
        expected["worker"] = expected.pop("pid")
    assert data == {
        name: list(value) if isinstance(value, tuple) else value for name, value in expected.items()
    }


def test_json_names_the_server_also_after_it_is_closed(
    configured: Callable[..., io.StringIO],
) -> None:
    with netkit.create_server(netkit.EchoHandler).listen(0, "127.0.0.1") as server:
        where = str(server.address)
    stream = configured(style="json")
    events.emit(events.Stopped(1, 0), server)
    assert json.loads(stream.getvalue())["server"] == where


def test_json_has_the_records_and_the_exceptions_of_the_application(
    configured: Callable[..., io.StringIO],
) -> None:
    stream = configured(style="json")
    try:
        raise KeyError("k")
    except KeyError:
        logging.getLogger("app").exception("%d things\n", 5)
    data = json.loads(stream.getvalue())
    assert (data["message"], data["level"], data["logger"]) == ("5 things\n", "error", "app")
    assert (data["error"], data["error_type"], "event" in data) == ("'k'", "KeyError", False)
    assert data["traceback"].startswith("Traceback (most recent call last):\n")


@pytest.mark.parametrize("style", ["text", "json"])
def test_a_record_that_cannot_be_formatted_is_reported_in_the_same_form(
    style: str, configured: Callable[..., io.StringIO], capfd: pytest.CaptureFixture[str]
) -> None:
    stream = configured(style=style)
    record = logging.LogRecord("app", logging.INFO, __file__, 5, "%d", ("five",), None)
    logging.getLogger().handlers[-1].handle(record)  # not those of pytest
    (line,) = stream.getvalue().splitlines()
    message = json.loads(line)["message"] if style == "json" else line
    assert re.search(
        r"a record of .*test_log_format.py:\d+ cannot be formatted: TypeError", message
    )
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("style", ["text", "json"])
def test_attributes_and_levels_of_the_applications_own_are_shown_as_text(
    style: str, configured: Callable[..., io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "_levelToName", {**logging._levelToName, 33: "a\nlevel"})
    stream = configured(style=style)
    logging.getLogger("app").log(33, "x", extra={"event": "an\nevent"})
    (line,) = stream.getvalue().splitlines()
    if style == "text":
        assert line == r"a\nlevel: app: x"
    else:
        assert json.loads(line)["level"] == "a\nlevel"
        assert "event" not in json.loads(line)
