"""``netkit serve``: the handler of the user."""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
from support import PATIENCE, Hostile

from .commands import HANDLERS, Run, ask, started


def test_a_handler_that_cannot_be_called_is_refused(module: Any, run: Run) -> None:
    module("def handler(*, key): pass")
    status, _, lines = run("serve", "app:handler")
    assert (status, len(lines)) == (2, 1)
    assert lines[0].startswith("netkit serve: error: handler(key) cannot serve a client: ")
    assert "--handler-args" not in lines[0]  # there is no such flag


@pytest.mark.parametrize("name", ["nosuch", "json.nosuch"])
def test_a_missing_module_is_named_in_one_line(name: str, module: Any, run: Run) -> None:
    text = f"no module named {name!r}, neither here ({os.getcwd()}) nor installed"
    assert run("serve", f"{name}:Shout") == (1, b"", [f"netkit: error: {text}"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shuot", "shuot; did you mean shout?"),
        ("frobnicate", "frobnicate"),
        ("Group.innner", "Group.innner; did you mean inner?"),
    ],
)
def test_the_error_of_a_missing_name_suggests_a_similar_one(
    name: str, message: str, module: Any, run: Run
) -> None:
    module("def shout(conn): pass\nclass Group:\n    def inner(conn): pass\n")
    assert run("serve", f"app:{name}") == (1, b"", [f"netkit: error: app has no {message}"])


def test_a_missing_module_is_named_where_python_fails_to_explain_it(
    module: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> list[str]:
        raise ModuleNotFoundError("No module named 'app.parts'")

    monkeypatch.setattr(traceback, "TracebackException", fail)
    path = module("import app.parts\n")
    status, out, lines = run("serve", "app:Shout")
    assert (status, out) == (1, b"")
    assert lines[:2] == [
        "error: app could not be imported",
        f'  File "{path}", line 1, in <module>',
    ]
    assert lines[-2].startswith("ModuleNotFoundError: No module named 'app.parts'")
    assert lines[-1] == "netkit: error: app could not be imported, see above"


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("def work():\n    1 / 0\n\nwork()\n", "ZeroDivisionError: division by zero"),
        ("import no_such_thing\n", "ModuleNotFoundError: No module named 'no_such_thing'"),
        ("import app.parts\n", "ModuleNotFoundError: No module named 'app.parts'; .*"),
        ("from json import nothing\n", "ImportError: cannot import name 'nothing' .*"),
        ("def (:\n", "SyntaxError: .*"),
    ],
)
def test_a_module_that_fails_shows_its_own_traceback_without_frames_of_netkit(
    source: str, error: str, module: Any, run: Run
) -> None:
    path = module(source)
    status, out, lines = run("serve", "app:Shout")
    assert (status, out) == (1, b"")
    frames = [line for line in lines if line.startswith("  File ")]
    assert frames[0].startswith(f'  File "{path}", line ')
    assert not any("netkit" in frame or "importlib" in frame for frame in frames)
    assert re.fullmatch(error, lines[-2])
    assert lines[-1] == "netkit: error: app could not be imported, see above"


def test_the_failure_of_a_module_is_json_where_that_is_asked_for(module: Any, run: Run) -> None:
    module("1 / 0")
    status, _, lines = run("serve", "app:Shout", "--log-format", "json")
    first, last = map(json.loads, lines)
    assert (status, first["error_type"]) == (1, "ZeroDivisionError")
    assert first["traceback"].startswith("Traceback")
    assert last["message"] == "app could not be imported, see above"


def test_a_module_may_end_the_program(module: Any, run: Run) -> None:
    module("raise SystemExit('not today')")
    assert run("serve", "app:Shout").status == "not today"


@pytest.mark.parametrize("name", ["function", "Class", "Old", "Group.inner"])
def test_serve_runs_a_handler_of_the_current_directory(name: str, module: Any, run: Run) -> None:
    module(HANDLERS)
    replies: list[bytes] = []
    result = run("serve", f"app:{name}", during=lambda port: replies.append(ask(port, b"hello")))
    assert (result.status, replies) == (0, [b"HELLO"])


INSTALLED = """
import multiprocessing, sys
from netkit.__main__ import run
if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    sys.exit(run())
"""
needs_safe_path = pytest.mark.skipif(sys.version_info < (3, 11), reason="no -P before Python 3.11")


def installed(folder: Path) -> tuple[Path, Path]:
    """The path of a command that is installed in `folder`, and a current folder elsewhere."""
    (folder / "bin").mkdir()
    (folder / "bin" / "netkit").write_text(INSTALLED)
    (folder / "elsewhere").mkdir()
    return folder / "bin" / "netkit", folder / "elsewhere"


def test_an_installed_command_finds_the_module_in_the_current_directory(tmp_path: Path) -> None:
    command, folder = installed(tmp_path)
    (folder / "app.py").write_text(HANDLERS)
    with started(command, "serve", "app:function", cwd=folder) as (process, port):
        assert ask(port, b"hello") == b"HELLO"
        process.terminate()
        assert process.wait(PATIENCE) == 0


@needs_safe_path
@pytest.mark.parametrize("safe_path", [None, "yes"])
def test_spawned_workers_import_the_handler_alone_from_the_current_directory(
    safe_path: str | None, tmp_path: Path
) -> None:
    """And the programs that a handler starts have the environment that netkit was started with."""
    command, folder = installed(tmp_path)
    hostile = Hostile(folder)
    (folder / "app.py").write_text(
        "import os\ndef show(conn): conn.end(os.environ.get('PYTHONSAFEPATH', 'unset'))\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    if safe_path is not None:
        environment["PYTHONSAFEPATH"] = safe_path
    words = ["serve", "app:show", "--workers", "2"]
    with started(command, *words, cwd=folder, env=environment) as (process, port):
        assert ask(port, b"") == (safe_path or "unset").encode()
        process.terminate()
        assert process.wait(PATIENCE) == 0
    assert hostile.imported() == []


def test_a_module_with_the_name_of_one_of_pythons_is_explained(module: Any, run: Run) -> None:
    module(HANDLERS, "queue")
    assert run("serve", "queue:function").lines == [
        "netkit: error: queue has no function: it is Python's own module queue; "
        "give queue.py here another name"
    ]


def test_an_installed_module_does_not_hide_one_of_the_current_directory(
    module: Any, run: Run, tmp_path: Path
) -> None:
    installed = tmp_path / "site-packages"
    installed.mkdir()
    (installed / "app.py").write_text("raise AssertionError('the installed one')")
    sys.path.append(str(installed))
    module(HANDLERS)
    assert run("serve", "app:function", during=lambda port: ask(port, b"")).status == 0


def test_a_current_directory_that_is_gone_is_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    text = "cannot look for the handler in the current folder: no such file or directory"
    assert run("serve", "app:Shout") == (1, b"", [f"netkit: error: {text}"])
