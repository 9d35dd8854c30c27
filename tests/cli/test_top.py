"""netkit top on terminals, and its plain table."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pseudoterminal import Session, session
from support import PATIENCE, ROOT, tool, wait_until

from .commands import Run
from .control_server import ControlServer, client_row, control_server, status_row

pytest.importorskip("curses")

TOP = """
import sys
from netkit.cli.main import main
sys.exit(main(["top", *sys.argv[1:]]))
"""

FRAMES = [{"file": "/srv/app.py", "line": 12, "function": "shout", "code": "for line in x:"}]


@contextlib.contextmanager
def server(path: Path, *clients: Any) -> Iterator[ControlServer]:
    """A server with these clients, or with two."""
    with control_server(path) as control:
        control.answers["json status"] = [status_row()]
        control.answers["json conns"] = clients or [client_row(1), client_row(2)]
        yield control


@pytest.fixture
def control(tmp_path: Path) -> Iterator[ControlServer]:
    with server(tmp_path / "x") as control:
        yield control


@contextlib.contextmanager
def watching(path: object, program: str = TOP, **environment: str) -> Iterator[Session]:
    """A session whose screen shows the clients. The end of the block ends the program."""
    with session(path, "--interval", "100ms", program=program, **environment) as user:
        user.resize(200, 24)
        user.until(lambda: shows(user, "q quit"))  # the last line that is drawn
        yield user
        if user.process.poll() is None:
            user.signal(signal.SIGTERM)
            user.wait()


def shows(user: Session, text: str) -> bool:
    return any(text in row for row in user.rows)


# On a terminal


def test_the_screen_shows_the_clients_and_q_ends_it(control: ControlServer) -> None:
    with watching(control.path) as user:
        user.until(lambda: shows(user, "clients 3 of 100"))
        user.until(lambda: shows(user, "192.0.2.1:50312  serving"))
        assert user.rows[-1].startswith("q quit")
        user.type("q")
        assert user.wait() == 0
        assert user.is_restored


def test_enter_shows_the_stack_and_k_and_y_kill(control: ControlServer) -> None:
    stack = {"id": "2", "peer": "::1", "state": "serving", "thread": "t", "frames": FRAMES}
    control.answers["json stacks 2"] = [stack]
    control.answers["json kill 1"] = [{"id": "1", "result": "killed"}]
    with watching(control.path) as user:
        user.type("\r")
        user.until(lambda: shows(user, "/srv/app.py:12 shout"))
        user.until(lambda: shows(user, "for line in x:"))
        user.until(lambda: control.requests.count("json stacks 2") > 1)  # it is kept up to date
        user.type("\x1b")
        user.until(lambda: shows(user, "ID  PEER"))
        user.type("\x1bOBk")
        user.until(lambda: shows(user, "kill 1? y kills"))
        assert "json kill 1" not in control.requests
        user.type("y")
        user.until(lambda: shows(user, "1 is killed"))
        assert control.requests.count("json kill 1") == 1


def test_typed_text_filters_the_clients(control: ControlServer) -> None:
    control.answers["json conns"] = [client_row(1, peer="日本é"), client_row(2)]
    with watching(control.path) as user:
        user.type("/日本é")
        user.until(lambda: not shows(user, "192.0.2.2"))
        user.type("\r")
        user.until(lambda: shows(user, "[日本é]"))
        assert shows(user, "1   日")  # the screen of the test has a cell between two wide ones


def test_no_control_sequence_of_a_peer_reaches_the_terminal(tmp_path: Path) -> None:
    hostile = client_row(1, peer="\x1b]0;title\x07\x1b[6n\x9b2J\u202e", where="\udcff\n\t")
    with server(tmp_path / "x", hostile) as control, watching(control.path) as user:
        user.until(lambda: shows(user, "\\x1b]0;title\\x07\\x1b[6n\\u009b2J\\u202e"))
        assert b"]0;title\x07" not in user.written


def test_the_screen_follows_the_size_of_the_terminal(control: ControlServer) -> None:
    with watching(control.path) as user:
        user.resize(40, 8)
        user.signal(signal.SIGWINCH)
        user.until(lambda: any(row == "ID  PEER             WHERE" for row in user.rows))
        user.resize(5, 1)
        user.signal(signal.SIGWINCH)
        user.until(lambda: user.rows == ["q qui"])


def test_a_server_that_restarts_is_waited_for(tmp_path: Path) -> None:
    with server(tmp_path / "x") as control:
        user = contextlib.ExitStack()
        screen = user.enter_context(watching(control.path))
    with user:
        screen.until(lambda: shows(screen, f"! there is no {control.path}"))
        screen.until(lambda: shows(screen, "192.0.2.1"))
        with server(tmp_path / "x") as control:
            control.answers["json status"] = [status_row(started_at=5.0)]
            screen.until(lambda: shows(screen, "the server has been restarted"))
            screen.until(lambda: not shows(screen, "trying again"))


def test_a_failure_of_a_request_is_shown(control: ControlServer) -> None:
    control.answers["json kill"] = "220 welcome\n"
    with watching(control.path) as user:
        user.type("ky")
        user.until(lambda: shows(user, "is no control socket of netkit"))


@pytest.mark.parametrize(
    "signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT], ids=str
)
def test_a_signal_restores_the_terminal(signum: int, control: ControlServer) -> None:
    with watching(control.path) as user:
        user.until(lambda: not user.is_restored)
        user.signal(signum)
        assert user.wait() == 128 + signum
        assert user.is_restored
        assert not shows(user, "Traceback")


def test_a_signal_that_is_ignored_stays_ignored(control: ControlServer) -> None:
    program = f"import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n{TOP}"
    with watching(control.path, program) as user:
        user.signal(signal.SIGHUP)
        user.type("p")
        user.until(lambda: shows(user, "by peer"))


def test_an_exception_restores_the_terminal(control: ControlServer) -> None:
    broken = f"import netkit.cli.top\nnetkit.cli.top.Top.press = None\n{TOP}"
    with session(control.path, program=broken) as user:
        user.until(lambda: shows(user, "ID  PEER"))
        user.type("x")
        assert user.wait() == 1
        user.until(lambda: shows(user, "TypeError"))
        assert user.is_restored


def test_ctrl_z_restores_the_terminal_until_it_goes_on(control: ControlServer) -> None:
    with watching(control.path) as user:
        user.type("\x1a")
        user.until(lambda: shows(user, "stopped"))
        assert user.is_restored
        user.screen.reset()
        user.type("\n")
        user.until(lambda: shows(user, "ID  PEER"))
        user.type("q")
        assert user.wait() == 0


def test_in_a_shell_of_tmux_the_screen_ends_as_it_began(control: ControlServer) -> None:
    tmux = [tool("tmux"), "-L", f"netkit-{os.getpid()}"]
    top = shlex.join([sys.executable, "-m", "netkit", "top", control.path])
    program = f"echo before; {top}; echo after $?; stty -a | grep -o -- '-*icanon'; cat"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}

    def call(*arguments: str) -> str:
        done = subprocess.run(
            [*tmux, *arguments], env=environment, capture_output=True, text=True, timeout=PATIENCE
        )
        return done.stdout

    def until(text: str) -> str:
        wait_until(lambda: text in call("capture-pane", "-p") or time.sleep(0.05), text)
        return call("capture-pane", "-p")

    call("-f", "/dev/null", "new-session", "-d", "-x", "100", "-y", "20", program)
    try:
        assert "192.0.2.1:50312" in until("ID  PEER")
        assert "before" not in call("capture-pane", "-p")
        call("resize-window", "-x", "40", "-y", "10")
        until("ID  PEER             WHERE")
        call("send-keys", "q")
        screen = until("\nicanon")
        assert "before\nafter 0\n" in screen
        assert "ID  PEER" not in screen
    finally:
        call("kill-server")


# Without a screen


def test_without_a_terminal_it_prints_one_table(control: ControlServer, run: Run) -> None:
    status, out, lines = run("top", control.path)
    assert (status, lines) == (0, [])
    *_, heading, second, first = out.decode().splitlines()
    assert heading.startswith("ID  PEER ")
    assert (second[0], first[0]) == ("2", "1")


@pytest.mark.parametrize("options", [{"TERM": "dumb"}, {"TERM": ""}, {}])
def test_a_terminal_without_a_cursor_gets_the_table(
    options: dict[str, str], control: ControlServer
) -> None:
    once = [] if options else ["--once"]
    with session(control.path, *once, program=TOP, **options) as user:
        assert user.wait() == 0
        user.until(lambda: shows(user, "192.0.2.1:50312"))
        assert b"\x1b" not in user.written


def test_a_terminal_that_curses_does_not_know_is_an_error(control: ControlServer) -> None:
    with session(control.path, program=TOP, TERM="no-such-terminal") as user:
        assert user.wait() == 1
        text = "".join(user.rows)
        assert text.startswith("netkit: error: no screen on a terminal 'no-such-terminal': ")
        assert text.endswith("use --once")
        assert user.is_restored


def test_a_python_without_curses_says_so(control: ControlServer) -> None:
    program = f"import sys\nsys.modules['curses'] = None\n{TOP}"
    with session(control.path, program=program) as user:
        assert user.wait() == 1
        assert user.rows == ["netkit: error: this Python has no module curses: use --once"]


def test_a_worker_that_does_not_answer_is_an_error_beside_the_table(
    control: ControlServer, run: Run
) -> None:
    silent = {"error": "worker 9: no answer within 1 s", "worker": 9}
    control.answers["json conns"] = [client_row(1), silent]
    status, out, lines = run("top", "--once", control.path)
    assert (status, lines) == (1, ["netkit: error: worker 9: no answer within 1 s"])
    assert b"192.0.2.1:50312" in out


def test_a_closed_pipe_ends_it_quietly(control: ControlServer) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "netkit", "top", control.path]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=environment)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_failures_are_one_line(
    control: ControlServer, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "no"
    line = f"netkit: error: there is no {path}: a server makes it with --control {path}"
    assert run("top", str(path)) == (1, b"", [line])
    monkeypatch.setenv("NETKIT_CONTROL", control.path)
    assert run("top").status == 0
    monkeypatch.setattr(sys, "stdout", None)
    assert run("top") == (1, b"", ["netkit: error: standard output is closed"])


def test_ctrl_c_before_the_first_answer_is_quiet(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr("netkit.cli.asking.ControlClient.lines", interrupted)
    assert run("top", "/x") == (130, b"", [])


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        ([], "the path of one control socket is needed, here or in NETKIT_CONTROL"),
        (["/x", "/y"], "the path of one control socket is needed, here or in NETKIT_CONTROL"),
        (["unix:"], "a Unix socket must have a path or a name"),
        (["/x", "--interval", "0.01"], "argument --interval: it must be at least 0.1 seconds"),
        (["/x", "--interval", "off"], "argument --interval: it must be at least 0.1 seconds"),
    ],
)
def test_wrong_use_is_one_line(
    argv: list[str], error: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NETKIT_CONTROL", raising=False)
    status, out, lines = run("top", *argv)
    assert (status, out, len(lines)) == (2, b"", 1)
    assert lines[0].startswith(f"netkit top: error: {error}")


def test_the_help_has_the_keys_and_examples(run: Run) -> None:
    status, out, _ = run("top", "--help")
    assert status == 0
    assert b"\nkeys:\n" in out
    assert b"\n  netkit top /run/app.ctl --once " in out
