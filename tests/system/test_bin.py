"""The scripts in bin/: from any directory, by any path, with signals and arguments passed on."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import PATIENCE, ROOT, Hostile, receive_all, send_and_end, tool, without_time

SERVERS = ["echo-server", "greeter-server", "logger-server"]


@contextlib.contextmanager
def script(*command: str | Path, cwd: Path) -> Iterator[tuple[Any, int]]:
    """A script as a process, with its port."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    with subprocess.Popen(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=cwd,
        env={**environment, "PYTHON": sys.executable},
        text=True,
    ) as process:
        try:
            assert process.stderr
            line = process.stderr.readline()
            listening = re.search(r"listening on [^ \"]*:(\d+)", line)
            assert listening, line
            yield process, int(listening[1])
        finally:
            process.kill()


def ask(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
        send_and_end(sock, b"hello\n")
        return receive_all(sock)


@pytest.mark.parametrize("name", SERVERS)
def test_a_script_serves_from_another_directory_until_a_signal(name: str, tmp_path: Path) -> None:
    with script(ROOT / "bin" / name, cwd=tmp_path) as (process, port):
        reply = ask(port)
        process.send_signal(signal.SIGTERM)  # it arrives: the shell has been replaced
        output, lines = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
    assert without_time(lines.splitlines()[-1]).startswith("stopped: ")
    if name == "echo-server":
        assert reply == b"hello\n"
    elif name == "greeter-server":
        assert reply.startswith(b"Hello, 127.0.0.1:")
    else:
        assert output == "hello\n"


def test_a_script_works_through_symbolic_links(tmp_path: Path) -> None:
    (tmp_path / "first").symlink_to(ROOT / "bin" / "echo-server")
    (tmp_path / "second").symlink_to("first")
    with script("./second", cwd=tmp_path) as (_, port):
        assert ask(port) == b"hello\n"


def test_a_script_works_in_a_folder_with_special_characters_in_its_name(tmp_path: Path) -> None:
    folder = tmp_path / 'it\'s a $HOME  of * "quotes"'
    for part in ("bin", "netkit"):
        shutil.copytree(ROOT / part, folder / part)
    with script(folder / "bin" / "echo-server", cwd=tmp_path) as (_, port):
        assert ask(port) == b"hello\n"


@pytest.mark.parametrize("name", SERVERS)
def test_a_script_imports_nothing_from_the_current_directory(name: str, tmp_path: Path) -> None:
    hostile = Hostile(tmp_path)
    with script(ROOT / "bin" / name, "--log-format", "json", cwd=tmp_path) as (_, port):
        ask(port)
    assert hostile.imported() == []


@pytest.mark.parametrize("workers", ["1", "2"])
def test_serving_with_tls_imports_the_handler_alone_from_the_current_directory(
    workers: str, tmp_path: Path
) -> None:
    pytest.importorskip("trustme")
    from secure import files

    hostile = Hostile(tmp_path)
    (tmp_path / "app.py").write_text("import ssl, helper\nshout = helper.shout\n")
    (tmp_path / "helper.py").write_text("def shout(conn): conn.end(conn.read().upper())\n")
    options = ["serve", "app:shout", "--tls-cert", files().server, "--workers", workers]
    command = [ROOT / "bin" / "netkit", *options]
    client = ["connect", "--tls", "--tls-ca", files().ca, "localhost"]
    with script(*command, cwd=tmp_path) as (process, port):
        asked = subprocess.run(
            [ROOT / "bin" / "netkit", *client, str(port)],
            input=b"hello",
            capture_output=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHON": sys.executable},
            timeout=PATIENCE,
        )
        assert (asked.stdout, asked.stderr) == (b"HELLO", b"")
        process.send_signal(signal.SIGHUP)
        assert process.stderr
        for line in process.stderr:
            if "reloaded" in line:
                break
        else:
            pytest.fail("it did not reload")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
    assert hostile.imported() == []


def test_the_measuring_script_imports_nothing_from_the_current_directory(tmp_path: Path) -> None:
    hostile = Hostile(tmp_path)
    done = subprocess.run(
        [ROOT / "bin" / "bench", "--help"], cwd=tmp_path, capture_output=True, timeout=PATIENCE
    )
    assert done.returncode == 0
    assert hostile.imported() == []


def test_the_python_path_is_not_passed_on_to_programs_of_a_handler(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "import os\ndef show(conn): conn.end(os.environ.get('PYTHONPATH', 'unset'))\n"
    )
    with script(ROOT / "bin" / "netkit", "serve", "app:show", cwd=tmp_path) as (_, port):
        assert ask(port) == b"unset"


def test_arguments_are_passed_on_as_they_are(tmp_path: Path) -> None:
    greeting = "two  words, 'quotes' and * $HOME"
    with script(ROOT / "bin" / "greeter-server", "--greeting", greeting, cwd=tmp_path) as (_, port):
        assert ask(port) == greeting.encode() + b"\n"


def test_an_error_has_the_status_and_the_line_of_the_command(tmp_path: Path) -> None:
    result = subprocess.run(
        [ROOT / "bin" / "echo-server", "no-port"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHON": sys.executable},
        timeout=PATIENCE,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("netkit echo: error: 'no-port' has no port: ")


def test_a_python_path_of_the_user_is_kept(tmp_path: Path) -> None:
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "app.py").write_text("def shout(conn): conn.end(conn.read().upper())\n")
    command = f'PYTHONPATH="$1" exec "{ROOT}/bin/netkit" serve app:shout'
    with script("sh", "-c", command, "sh", modules, cwd=tmp_path) as (_, port):
        assert ask(port) == b"HELLO\n"


def test_all_scripts_are_executable_and_are_checked_with_the_style() -> None:
    scripts = [*(ROOT / "bin").iterdir(), ROOT / ".ci/run"]
    assert {"netkit", "test", "run", *SERVERS} <= {path.name for path in scripts}
    (checked,) = re.findall(r"^ +shellcheck (.*)", (ROOT / "tox.ini").read_text(), re.MULTILINE)
    assert sorted(checked.split()) == sorted(str(path.relative_to(ROOT)) for path in scripts)
    for path in scripts:
        assert os.access(path, os.X_OK), path
        assert path.read_text().startswith("#!/bin/sh\n"), path


# bin/test, on a machine that has next to nothing


class Machine:
    """A folder with bin/test, and a PATH that has the shell's tools and the `commands`."""

    def __init__(self, folder: Path, *commands: str) -> None:
        self.folder = folder
        shutil.copytree(ROOT / "bin", folder / "bin")
        (folder / "path").mkdir()
        for name in ("sh", "dirname", "realpath"):
            (folder / "path" / name).symlink_to(tool(name))
        for name in commands:
            self.command(f"path/{name}")

    def command(self, name: str) -> None:
        """A program that writes its arguments into a file, and succeeds."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'#!/bin/sh\necho "$@" >>{self.folder}/called\n')
        path.chmod(0o755)

    def test(self, *arguments: str, **environment: str) -> tuple[int, str]:
        """The exit status of bin/test, and what it writes to standard error."""
        done = subprocess.run(
            [self.folder / "bin/test", *arguments],
            env={"PATH": str(self.folder / "path"), **environment},
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE,
        )
        return done.returncode, done.stderr

    def called(self) -> list[str]:
        return (self.folder / "called").read_text().splitlines()


def test_bin_test_skips_missing_interpreters_and_tools(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.command(".venv/bin/python")
    assert machine.test("-e", "lint") == (0, "")
    assert machine.called()[-1] == "-m tox run -e lint"


def test_bin_test_fails_in_ci_if_an_interpreter_is_missing(
    tmp_path: Path,
) -> None:
    machine = Machine(tmp_path, "python3.10", "python3.11", "python3.13")
    machine.command(".venv/bin/python")
    assert machine.test(CI="true") == (1, "bin/test: python3.12 is missing\n")
    assert machine.test(CI="false") == (0, "")


def test_the_error_of_bin_test_without_a_python_says_what_is_needed(tmp_path: Path) -> None:
    status, line = Machine(tmp_path).test()
    assert status == 1
    assert line == (
        "bin/test: no Python 3.10 or later with the modules venv and ensurepip "
        "(Debian: apt install python3-venv)\n"
    )
