"""Logging for a whole process: its forms, and what Python itself would write to standard error."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import logging
import multiprocessing
import os
import re
import select
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import PATIENCE, ROOT, Program, logging_put_back, receive_all

import netkit
from netkit.core import events
from netkit.core.text import said
from netkit.server import log, log_config
from server.test_log import ERROR, RECORDS


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., io.StringIO]]:
    """`configure_logging` with a stream of ours, undone in the end."""
    monkeypatch.setattr(log_config, "_episodes", log_config.Episodes())

    def configure(level: str = "debug", style: str = "text", terminal: bool = True) -> io.StringIO:
        stream = Terminal() if terminal else io.StringIO()
        netkit.configure_logging(level, style, stream)
        return stream

    with logging_put_back():
        yield configure


# --- Text ---


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (events.Stopped(2, 1), "stopped: 2 finished, 1 cut\n"),
        (events.AcceptResumed(1.0), "warning: accepting clients again, after 1.0 s\n"),
        (
            events.ListenerLost(ERROR),
            "error: no new clients any more: ValueError: what went wrong\n",
        ),
    ],
)
def test_on_a_terminal_text_is_the_message_and_from_warnings_on_the_level(
    event: Any, text: str, configured: Callable[..., io.StringIO]
) -> None:
    stream = configured()
    log.write(event)
    assert stream.getvalue() == text


def test_elsewhere_text_has_the_time_and_the_level(configured: Callable[..., io.StringIO]) -> None:
    stream = configured(terminal=False)
    log.write(events.Stopped(2, 1))
    log.write(events.AcceptResumed(1.0))
    first, second = stream.getvalue().splitlines()
    time = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}"
    assert re.fullmatch(time + " INFO stopped: 2 finished, 1 cut", first)
    assert re.fullmatch(time + " WARNING accepting clients again, after 1.0 s", second)


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
    monkeypatch.setattr(log_config, "LONGEST_WRITE", 0.01)
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


@pytest.mark.parametrize(
    ("level", "count"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1), ("critical", 0)]
)
def test_only_records_of_the_level_and_above_are_shown(
    level: str, count: int, configured: Callable[..., io.StringIO]
) -> None:
    stream = configured(level)
    log.write(events.ConnectionOpened(1, "p"))
    log.write(events.Stopped(0, 0))
    log.write(events.AcceptResumed(1.0))
    log.write(events.ListenerLost(ERROR))
    assert stream.getvalue().count("\n") == count


def test_a_second_call_takes_the_place_of_the_first_and_can_be_undone(
    configured: Callable[..., io.StringIO],
) -> None:
    hooks = sys.excepthook, sys.unraisablehook, threading.excepthook, warnings.showwarning
    level = logging.getLogger().level
    first = configured()
    second = io.StringIO()
    undo = netkit.configure_logging("error", stream=second)
    log.write(events.ListenerLost(ERROR))
    undo()
    log.write(events.Stopped(1, 0))
    assert (first.getvalue().count("\n"), second.getvalue().count("\n")) == (1, 1)
    with logging_put_back():
        undo = netkit.configure_logging()
        undo()
        assert logging.getLogger().level == logging.DEBUG
    logging.getLogger().setLevel(level)
    assert hooks != (sys.excepthook, sys.unraisablehook, threading.excepthook, warnings.showwarning)


@pytest.mark.parametrize(
    ("level", "style", "text"),
    [
        ("loud", "text", "level must be one of debug, info, warning, error, critical, not 'loud'"),
        ("info", "xml", "style must be 'text' or 'json', not 'xml'"),
    ],
)
def test_an_unknown_level_or_style_is_refused(level: str, style: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        netkit.configure_logging(level, style)


# --- JSON ---


@pytest.mark.parametrize(("event", "level", "text"), RECORDS)
def test_json_is_one_object_a_line_with_the_data_of_the_event(
    event: Any, level: str, text: str, configured: Callable[..., io.StringIO]
) -> None:
    stream = configured(style="json")
    log.write(event)
    (line,) = stream.getvalue().splitlines()
    data = json.loads(line)
    assert (data.pop("level"), data.pop("message")) == (level.lower(), text)
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
        r"a record of .*test_log_config.py:\d+ cannot be formatted: TypeError", message
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


# --- Warnings and uncaught exceptions ---


class Fails:
    """Raises where nothing can catch it, with a name that would forge a record."""

    def __del__(self) -> None:
        raise ValueError("\x1b[31m\nforged")

    def __repr__(self) -> str:
        return "<a\nforged \x1b thing>"


class Mute:
    def __repr__(self) -> str:
        raise RuntimeError


def drop(kind: type[Fails]) -> None:
    kind()
    gc.collect()


def raise_in_thread(error: BaseException) -> None:
    def target() -> None:
        raise error

    thread = threading.Thread(target=target, name="netkit-1 a\nforged")
    thread.start()
    thread.join()


def raise_uncaught(error: BaseException) -> None:
    try:
        raise error
    except BaseException as caught:
        sys.excepthook(type(caught), caught, caught.__traceback__)


HOOKED = [
    (lambda: drop(Fails), "error", "ignored in "),
    (
        lambda: raise_in_thread(ValueError("a\nforged")),
        "error",
        r"uncaught in thread netkit-1 a\nforged: ValueError: a\nforged",
    ),
    (
        lambda: raise_in_thread(KeyboardInterrupt()),
        "error",
        r"uncaught in thread netkit-1 a\nforged: KeyboardInterrupt",
    ),
    (
        lambda: raise_uncaught(OSError(5, "no\x1b")),
        "error",
        r"uncaught OSError: no\x1b",
    ),
    (
        lambda: warnings.warn_explicit("a\nforged", UserWarning, "app.py", 5),
        "warning",
        r"app.py:5: UserWarning: a\nforged",
    ),
]


@pytest.mark.parametrize("style", ["text", "json"])
@pytest.mark.parametrize(("act", "level", "text"), HOOKED)
def test_a_warning_or_an_uncaught_exception_is_one_record(
    act: Callable[[], None],
    level: str,
    text: str,
    style: str,
    configured: Callable[..., io.StringIO],
    capfd: pytest.CaptureFixture[str],
) -> None:
    stream = configured(style=style)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = log_config._showwarning  # which the block puts back
        act()
    lines = stream.getvalue().splitlines()
    assert all(line.isprintable() for line in lines)
    if style == "text":
        assert lines[0].startswith(f"{level}: {text}")
        assert not any(line.startswith("forged") for line in lines)
    else:
        (data,) = map(json.loads, lines)
        assert (data["level"], data["message"].startswith(text)) == (level, True)
        assert level == "warning" or data["traceback"].startswith("Traceback")
    assert capfd.readouterr().err == ""


def test_the_object_of_an_ignored_exception_is_shown(
    configured: Callable[..., io.StringIO],
) -> None:
    stream = configured()
    args: Any = SimpleNamespace(exc_type=ValueError, exc_value=ValueError("x"), object=Fails)
    args.exc_traceback = None
    sys.unraisablehook(args)
    args.object, args.exc_value = 5, None
    sys.unraisablehook(args)
    args.object = Mute()
    sys.unraisablehook(args)
    first, _, second, third = stream.getvalue().splitlines()
    assert third == "error: ignored in Mute: ValueError"
    assert first == f"error: ignored in {Fails!r}: ValueError: x"
    assert second == "error: ignored in 5: ValueError"


def test_sys_exit_in_a_thread_is_not_logged_and_a_thread_without_a_name_is(
    configured: Callable[..., io.StringIO],
) -> None:
    stream = configured()
    raise_in_thread(SystemExit(1))
    threading.excepthook(threading.ExceptHookArgs((ValueError, None, None, None)))
    assert stream.getvalue() == "error: uncaught in thread that has ended: ValueError\n"


def test_a_warning_for_a_file_goes_there(configured: Callable[..., io.StringIO]) -> None:
    stream, file = configured(), io.StringIO()
    warnings.showwarning("odd", UserWarning, "app.py", 5, file)
    assert (stream.getvalue(), file.getvalue()) == ("", "app.py:5: UserWarning: odd\n")


# --- Episodes ---


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_first_of_a_kind_is_written_and_the_others_of_five_seconds_are_counted() -> None:
    clock = Clock()
    episodes = log_config.Episodes(clock)
    assert [episodes.note("a"), episodes.note("b")] == [0, 0]
    assert [episodes.note("a") for _ in range(9)] == [None] * 9
    clock.now += log_config.EPISODE_SECONDS
    assert [episodes.note("a"), episodes.note("a"), episodes.note("b")] == [9, None, 0]
    assert (episodes.take_rest(), episodes.take_rest()) == (1, 0)


def test_the_number_of_kinds_is_bounded() -> None:
    clock = Clock()
    episodes = log_config.Episodes(clock)
    kinds = range(log_config.MOST_KINDS)
    assert [episodes.note(kind) for kind in kinds] == [0] * len(kinds)
    assert episodes.note(0) is None
    assert [episodes.note(-1), episodes.note(-2), episodes.note(-1)] == [0, None, None]
    clock.now += log_config.EPISODE_SECONDS
    assert episodes.note(-1) == 0  # there is room again
    assert episodes.note(0) == 1
    assert len(episodes._kinds) <= log_config.MOST_KINDS


def test_a_flood_is_two_records(configured: Callable[..., io.StringIO]) -> None:
    stream = configured()
    for number in range(1000):
        try:
            raise ValueError(number)
        except ValueError as error:
            sys.excepthook(type(error), error, error.__traceback__)
    assert stream.getvalue().count("uncaught ValueError") == 1
    log_config.report_rest()
    log_config.report_rest()
    assert stream.getvalue().splitlines()[-1] == (
        "warning: 999 more records like those above were not written"
    )


def test_a_record_that_follows_a_flood_says_how_many_were_not_written(
    configured: Callable[..., io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(log_config, "_episodes", log_config.Episodes(clock))
    stream = configured()
    for later in (0.0, 0.0, 0.0, log_config.EPISODE_SECONDS):
        clock.now += later
        warnings.showwarning("odd", UserWarning, "app.py", 5)
    assert stream.getvalue().splitlines()[-1] == (
        "warning: app.py:5: UserWarning: odd (2 more like it since the last one)"
    )


# --- A whole program ---

PROGRAM = """
import atexit, logging, sys, threading, warnings
import netkit

netkit.configure_logging(style="json")
logging.getLogger("app").info("an\\nentry")
warnings.warn("a\\nwarning", UserWarning)

class Fails:
    def __del__(self):
        raise ValueError("a\\nfinalizer")

for _ in range(3):
    Fails()
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
raise KeyError("the\\nend")
"""


def test_everything_on_the_standard_error_of_a_program_is_json() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", PROGRAM],
        cwd=ROOT,
        capture_output=True,
        timeout=PATIENCE,
        text=True,
    )
    records = [json.loads(line) for line in done.stderr.splitlines()]
    assert [record.get("error_type") for record in records] == [
        *(None, None, "ValueError", "ZeroDivisionError", "KeyError", None)
    ]
    assert records[0]["message"] == "an\nentry"
    assert records[-1]["message"] == "2 more records like those above were not written"
    assert (done.returncode, done.stdout) == (1, "")


WORKERS = """
import warnings
import netkit

def handler(conn):
    for _ in range(3):
        warnings.warn_explicit("odd", UserWarning, "app.py", 5)

if __name__ == "__main__":
    netkit.configure_logging()
    warnings.simplefilter("always")
    for _ in range(6):
        warnings.warn_explicit("of the parent", UserWarning, "app.py", 1)
    netkit.run(netkit.create_server(handler).listen(0, "127.0.0.1"), workers=2)
"""


def test_each_process_logs_the_number_of_the_records_that_it_has_skipped(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(WORKERS)
    with Program(sys.executable, script) as program:
        program.wait_for_line("2 workers ready")
        with program.connect() as sock:
            assert receive_all(sock) == b""
        program.send_signal()
        assert program.wait() == 0
    rests = [line for line in program.lines if "not written" in line]
    text = "more records like those above were not written"
    assert [line.partition("pid ")[0] for line in rests] == ["warning: ", f"warning: 5 {text}"]
    assert rests[0].endswith(f": 2 {text}")
