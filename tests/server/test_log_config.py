"""The logging of a whole process."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from core.test_events import ERROR
from support import PATIENCE, ROOT, Program, logging_put_back, receive_all

import netkit
from netkit.core import events
from netkit.server import log


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


def test_a_second_call_replaces_the_first_and_can_be_undone(
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
