"""netkit ctl: what it prints, its errors, and its exit status."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from support import PATIENCE, ROOT, Cli, in_thread, wait_until

from netkit.ops.commands import COMMANDS

from .commands import Run
from .control_server import NESTED, client_row, control_server


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


def ctl(*arguments: object, **more: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "netkit", "ctl", *map(str, arguments)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        **more,  # type: ignore[call-overload]
    )


# What it prints


def test_it_sends_the_command_and_prints_the_answer(path: Path, run: Run) -> None:
    with control_server(path, conns="ID PEER\n7 ::1\n") as server:
        assert run("ctl", str(path), "conns", "older=60") == (0, b"ID PEER\n7 ::1\n", [])
        assert server.requests == ["conns older=60"]
        assert run("ctl", f"unix:{path}?mode=660", "conns") == (0, b"ID PEER\n7 ::1\n", [])


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_without_clients_or_events_an_answer_is_empty(
    options: list[str], path: Path, run: Run
) -> None:
    with Cli("echo", "0", "--control", str(path)):
        for command in ("conns", "stacks", " conns "):
            assert run("ctl", str(path), *options, command) == (0, b"", [])
    with control_server(path, help="", **{"json events": "", "events": ""}):
        assert run("ctl", str(path), *options, "events") == (0, b"", [])


@pytest.mark.parametrize("argv", [["--json", "conns"], ["conns", "--json"]])
def test_with_json_it_asks_for_objects_and_prints_their_lines(
    argv: list[str], path: Path, run: Run
) -> None:
    with control_server(path) as server:
        server.answers["json conns"] = [client_row(7)]
        status, out, lines = run("ctl", str(path), *argv)
        assert (status, lines) == (0, [])
        assert out.startswith(b'{"id": "7", ')
        assert out.count(b"\n") == 1


def test_control_characters_of_another_program_are_shown_as_text(path: Path, run: Run) -> None:
    with control_server(path, x="\x1b[2J \u202e é\n"):
        assert run("ctl", str(path), "x").out == "^[[2J \\u202e é\n".encode()


def test_events_are_printed_as_they_come_and_the_end_of_the_reader_ends_it_quietly(
    path: Path,
) -> None:
    def endless() -> object:
        while True:
            yield {"event": "ConnectionOpened"}

    with control_server(path, events=endless), ctl(path, "events") as process:
        assert process.stdout
        assert process.stdout.readline() == b'{"event": "ConnectionOpened"}\n'
        process.stdout.close()
        assert process.wait(PATIENCE) == 128 + signal.SIGPIPE
        assert process.stderr
        assert process.stderr.read() == b""


def test_ctrl_c_ends_it_quietly(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        with ctl(path, "events") as process:
            conn, _ = silent.accept()
            with conn:
                process.send_signal(signal.SIGINT)
                assert process.wait(PATIENCE) == -signal.SIGINT  # a shell shows 130
                assert process.stderr
                assert process.stderr.read() == b""


def test_ctrl_c_in_a_program_of_python_is_an_exit_status(
    path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr("netkit.cli.asking.ControlClient.lines", interrupted)
    assert run("ctl", str(path), "events") == (130, b"", [])


# Failures


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_server_that_closes_at_once_has_not_answered(
    options: list[str], path: Path, run: Run
) -> None:
    line = f"netkit: error: the server of {path} has closed the connection without an answer"
    with socket.socket(socket.AF_UNIX) as closing:
        closing.bind(str(path))
        closing.listen()
        closing.settimeout(PATIENCE)
        for command in sorted(COMMANDS.keys() - {"events"}):
            with in_thread(close_after_request, closing, command in ("conns", "stacks")):
                assert run("ctl", str(path), *options, command) == (1, b"", [line])


def close_after_request(listener: socket.socket, twice: bool) -> None:
    """Accept a client, or two, and close each as soon as its request is there."""
    for _ in range(1 + twice):
        conn, _ = listener.accept()
        with conn, conn.makefile() as lines:
            lines.readline()


def test_errors_go_to_standard_error_and_make_the_exit_status_1(path: Path, run: Run) -> None:
    with control_server(path, conns="ID\n7\nerror: worker 9: no answer within 1 s\n"):
        assert run("ctl", str(path), "conns") == (
            1,
            b"ID\n7\n",
            ["netkit: error: worker 9: no answer within 1 s"],
        )


@pytest.mark.parametrize("word", ["--json", "json", "json  "])
def test_errors_stay_in_json(word: str, path: Path, run: Run) -> None:
    with control_server(path) as server:
        server.answers["json kill"] = [{"id": "7"}, {"error": "no client has the id 8"}]
        status, out, lines = run("ctl", str(path), word, "kill", "7", "8")
        assert (status, lines) == (1, [])
        assert out == b'{"id": "7"}\n{"error": "no client has the id 8"}\n'


def test_an_event_that_has_an_error_is_no_failure_of_the_command(path: Path, run: Run) -> None:
    with control_server(path) as server:
        server.answers["json events"] = [{"event": "ReloadEnded", "error": "no such file"}]
        assert run("ctl", str(path), "--json", "events").status == 0


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_the_exit_status_tells_wrong_use_from_a_failure(
    options: list[str], path: Path, run: Run
) -> None:
    with Cli("echo", "0", "--control", str(path)) as program, program.connect():
        wait_until(lambda: b"127.0.0.1" in run("ctl", str(path), "conns").out)
        client = json.loads(run("ctl", str(path), "conns", "--json").out)["id"]

        def status(*command: str) -> object:
            return run("ctl", str(path), *options, *command).status

        assert [status("status"), status("conns", "older=1h")] == [0, 0]
        assert [status("kill", "99"), status("kill", client)] == [1, 0]
        assert [status("kil"), status("kill"), status("conns", "older=x")] == [2, 2, 2]
        assert [status(""), status("hand-over", "/no/x; usage: x")] == [2, 1]
        assert run("top", str(path)).status == 0


@pytest.mark.parametrize("answer", ["220 ready\n", "[]\n", NESTED], ids=["text", "array", "nested"])
@pytest.mark.parametrize("argv", [["ctl", "--json", "events"], ["top"]], ids=["ctl", "top"])
def test_an_answer_that_is_no_object_is_a_failure(
    argv: list[str], answer: str, path: Path, run: Run
) -> None:
    with control_server(path) as server:
        server.answers["json"] = answer
        status, out, (line,) = run(argv[0], str(path), *argv[1:])
        assert (status, out) == (1, b"")
        start = f"netkit: error: {path} is no control socket of netkit: it answers {answer[:2]!r}"
        assert line.startswith(start[:-1])
        assert len(line) < 3000


def test_an_endless_line_of_another_program_is_a_failure(
    path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netkit.cli.asking._LONGEST_LINE", 10)
    with control_server(path, x="12345678901\n"):
        status, out, (line,) = run("ctl", str(path), "x")
        assert (status, out) == (1, b"")
        assert line.startswith(f"netkit: error: {path} is no control socket of netkit: line longer")


def test_each_reason_why_nobody_answers_is_one_line(path: Path, run: Run, tmp_path: Path) -> None:
    def error(target: object, *options: str) -> str:
        status, out, lines = run("ctl", str(target), "status", *options)
        assert (status, out, len(lines)) == (1, b"", 1)
        return lines[0].removeprefix("netkit: error: ")

    there = f"there is no {path}: a server makes it with --control {path}"
    assert error(path) == there
    assert error(path / "x").startswith("there is no")
    (tmp_path / "file").touch()
    assert error(tmp_path / "file") == f"{tmp_path}/file is not a socket"
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        assert error(path) == f"no server listens on {path}"
        silent.listen()
        within = f"the server of {path} has not answered within 0.05 seconds"
        assert error(path, "--timeout", "50ms") == within
    assert error(f"/{'x' * 200}").endswith("AF_UNIX path too long")


@pytest.mark.skipif(os.geteuid() != 0, reason="root may become another user")
def test_a_user_without_permission_is_told_so(run: Run) -> None:
    with tempfile.TemporaryDirectory() as folder, control_server(Path(folder) / "x") as server:
        os.chmod(folder, 0o711)
        os.chmod(server.path, 0o600)
        server.answers["status"] = "ready\n"
        assert run("ctl", server.path, "status").out == b"ready\n"
        os.seteuid(65534)
        try:
            result = run("ctl", server.path, "status")
        finally:
            os.seteuid(0)
        line = f"no permission to use {server.path}: run this as the user of the server"
        assert result == (1, b"", [f"netkit: error: {line}"])


def test_without_standard_output_it_says_so(
    path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert run("ctl", str(path), "status") == (
        1,
        b"",
        ["netkit: error: standard output is closed"],
    )


# Use


def test_the_path_may_be_in_the_environment(
    path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETKIT_CONTROL", str(path))
    monkeypatch.chdir(path.parent)
    with (
        control_server(path, conns="here\n"),
        control_server(path.parent / "other", conns="other\n"),
    ):
        assert run("ctl", "conns").out == b"here\n"
        assert run("ctl", "./other", "conns").out == b"other\n"
        assert run("ctl", "unix:other", "conns").out == b"other\n"


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        ([], "the path of a control socket is needed, here or in NETKIT_CONTROL"),
        (["kill", "17"], "no control socket: netkit ctl PATH kill, or set NETKIT_CONTROL=PATH"),
        (["/x"], "a command for the server is needed, such as status or help"),
        (["/x", "log\ninfo"], "a command for the server is one line"),
        (["unix:", "status"], "a Unix socket must have a path or a name"),
        (["/x?mode=abc", "status"], "mode must be three octal digits, such as 660, not 'abc'"),
        (["/x", "status", "--jsn"], "unknown option --jsn; did you mean --json?"),
        (["/x", "status", "--timeout", "x"], "argument --timeout: it must be a time"),
    ],
)
def test_wrong_use_is_one_line(
    argv: list[str], error: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NETKIT_CONTROL", raising=False)
    status, out, lines = run("ctl", *argv)
    assert (status, out, len(lines)) == (2, b"", 1)
    assert lines[0].startswith(f"netkit ctl: error: {error}")
    assert lines[0].endswith("(see netkit ctl --help)")


def test_the_help_has_examples(run: Run) -> None:
    status, out, _ = run("ctl", "--help")
    assert status == 0
    assert b"\n  netkit ctl /run/app.ctl conns older=60 " in out
    assert b"NETKIT_CONTROL" in out
