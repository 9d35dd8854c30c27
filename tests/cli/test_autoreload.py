"""``netkit serve --reload``: new workers as soon as a file has changed."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support import Cli, receive_all, wait_until

from netkit.cli import autoreload
from netkit.cli.autoreload import Watch
from netkit.cli.serve import Serve

from .commands import Run, understood


@pytest.fixture(autouse=True)
def bytecode(monkeypatch: pytest.MonkeyPatch) -> None:
    """A watch changes this for its process."""
    monkeypatch.setattr(sys, "dont_write_bytecode", sys.dont_write_bytecode)


@contextlib.contextmanager
def developed(folder: Path, *options: str) -> Iterator[Cli]:
    """A server that replies with what app.py in `folder` says."""
    save(folder, "one")
    with Cli("serve", "app:reply", "0", *options, cwd=folder) as program:
        program.wait_for_line("workers? ready")
        yield program
        program.send_signal()
        assert program.wait() == 0


def save(folder: Path, reply: str) -> None:
    """Write the application, and rename it, so that no part of a file is read."""
    (folder / "new").write_text(f"def reply(conn): conn.end({reply!r}); conn.read()\n")
    (folder / "new").rename(folder / "app.py")


def reply_of(program: Cli) -> str:
    with program.connect() as sock:
        return receive_all(sock).decode()


def count(program: Cli, text: str) -> int:
    return sum(text in line for line in program.lines)


@pytest.mark.parametrize("workers", [[], ["--workers", "2"]])
def test_new_code_serves_once_it_is_saved(workers: list[str], tmp_path: Path) -> None:
    with developed(tmp_path, "--reload", *workers) as program, program.connect() as old:
        assert old.recv(3) == b"one"
        save(tmp_path, "two")
        wait_until(lambda: reply_of(program) == "two")
        assert receive_all(old) == b""  # it is drained within a second
        save(tmp_path, "three")
        wait_until(lambda: reply_of(program) == "three")
        wait_until(lambda: count(program, "reloaded: ") == 2)
        assert count(program, "app.py has changed") == 2  # said by one worker
    assert count(program, "--reload is for development: it watches the loaded modules") == 1


def test_code_that_does_not_load_changes_nothing_until_it_is_repaired(tmp_path: Path) -> None:
    with developed(tmp_path, "--reload") as program:
        (tmp_path / "app.py").write_text("import helper\ndef reply(conn) conn.end('two')\n")
        wait_until(lambda: count(program, "not reloaded, the old workers continue"))
        assert count(program, "SyntaxError") == 1
        assert reply_of(program) == "one"
        (tmp_path / "app.py").write_text("import helper\ndef reply(conn): conn.end('two')\n")
        wait_until(lambda: count(program, "not reloaded, the old workers continue") == 2)
        (tmp_path / "helper.py").touch()  # which no worker has loaded
        wait_until(lambda: reply_of(program) == "two")


def test_modules_in_a_folder_are_watched_and_other_files_are_not(tmp_path: Path) -> None:
    files = tmp_path / "files"
    (files / "inner" / ".git").mkdir(parents=True)
    (files / "node_modules").mkdir()
    with developed(tmp_path, "--reload", "files") as program:
        for name in ("page.html", "inner/.git/x.py", "node_modules/x.py", "inner/.#x.py"):
            (files / name).touch()
        (files / "inner" / "x.py").touch()
        wait_until(lambda: count(program, "reloaded: 1 worker"))
        assert count(program, f"{files / 'inner' / 'x.py'} has changed") == 1
        assert count(program, f"and those in {files}") == 1


# One watch


@pytest.fixture
def watch(tmp_path: Path) -> Callable[..., list[str]]:
    """Runs a watch of a folder for as many looks as there are functions. Returns its reports.

    Each function is called before a look.
    """

    def run(*changes: Callable[[], object]) -> list[str]:
        lock = autoreload.new_lock()
        reports: list[str] = []
        rest = list(changes)

        def wait(folders: Sequence[str]) -> None:
            assert str(tmp_path) in folders
            rest.pop(0)()

        watch = Watch(str(tmp_path), lock, wait, lambda: reports.append("changed"))
        rest.append(lambda: None)
        watch.run(lambda: bool(rest))
        os.unlink(lock)
        return reports

    return run


def test_each_kind_of_change_is_reported_once(
    watch: Callable[..., list[str]], tmp_path: Path
) -> None:
    first, second = tmp_path / "first.py", tmp_path / "second.py"
    first.touch()
    assert watch(lambda: None) == []
    assert watch(second.touch, lambda: None) == ["changed"]
    assert watch(second.unlink, lambda: None) == ["changed"]
    assert watch(lambda: first.write_text("x"), lambda: os.utime(first, (1, 1))) == ["changed"] * 2
    assert watch(lambda: first.write_text("yy"), lambda: second.symlink_to("nothing")) == [
        "changed"
    ]


def test_an_old_worker_does_not_report_once_more_what_another_one_has_reported(
    tmp_path: Path,
) -> None:
    """The one that has reported it ends first, and the lock passes to the next one."""
    (first, second), lock = (tmp_path / "first.py", tmp_path / "second.py"), autoreload.new_lock()
    first.touch()
    second.touch()
    reports: list[str] = []

    def looks(count: int) -> Callable[[], bool]:
        rest = [True] * count + [False]
        return lambda: rest.pop(0)

    one, other, third = (
        Watch(str(tmp_path), lock, lambda _: None, lambda name=name: reports.append(name))
        for name in ("one", "other", "third")
    )
    first.write_text("changed")
    second.unlink()
    one.run(looks(2))
    other.run(looks(2))
    assert reports == ["one"]
    first.write_text("changed again")
    third.run(looks(2))
    assert reports == ["one", "third"]
    os.unlink(lock)


def test_modules_of_python_and_of_netkit_are_not_watched(tmp_path: Path) -> None:
    lock = autoreload.new_lock()
    watched = Watch("", lock)._seen
    assert str(Path(__file__)) in watched
    assert not [path for path in watched if path in (autoreload.__file__, contextlib.__file__)]


def test_a_parent_that_has_ended_gets_no_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(os, "kill", lambda *arguments: sent.append(arguments))
    autoreload._ask_for_reload(os.getppid() + 1)
    assert sent == []


def test_without_watchfiles_the_files_are_looked_at_each_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    monkeypatch.setattr(autoreload, "INTERVAL", 0.0)
    autoreload.waiting()([])


def test_watchfiles_ends_the_wait_at_a_change(tmp_path: Path) -> None:
    pytest.importorskip("watchfiles")
    autoreload.waiting()([str(tmp_path), str(tmp_path / "gone")])  # nothing changes: for a second


# The flag


@pytest.mark.parametrize(
    ("argv", "reload", "words"),
    [
        ("app:f 80", None, 1),
        ("--reload app:f 80", "", 1),
        ("app:f --reload 80", "", 1),
        ("app:f 80 --reload", "", 1),
        ("app:f 81 --reload .", ".", 1),
        ("app:f --reload=. 80 81", ".", 2),
        ("app:f -- 80", None, 1),
    ],
)
def test_the_folder_may_be_left_out(
    argv: str, reload: str | None, words: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "80").mkdir()
    from netkit.cli.serve import _with_folder

    arguments, _ = understood(Serve(), *_with_folder(argv.split()))
    expected = None if reload is None else reload and os.path.abspath(reload)
    assert (arguments.reload, len(arguments.addresses)) == (expected, words)
    assert Serve().has_parent(arguments) == (reload is not None)


def test_the_variable_has_a_folder_or_on(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    for text, expected in (("on", ""), ("off", None), ("/", "/")):
        monkeypatch.setenv("NETKIT_RELOAD", text)
        assert understood(Serve(), "app:f")[0].reload == expected
    monkeypatch.setenv("NETKIT_RELOAD", "nowhere")
    result = run("serve", "app:f")
    assert result.status == 2
    assert "NETKIT_RELOAD: there is no folder 'nowhere'" in result.lines[-1]
