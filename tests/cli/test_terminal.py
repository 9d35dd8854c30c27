"""A conversation on a terminal: what is shown, and where; with a pseudo-terminal, too."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator

import pytest
from support import PATIENCE, ROOT, in_thread, serving, wait_until

import netkit
from netkit.cli.terminal import Above, Terminal, Visible, is_interactive, rows

# What is safe to show


def test_control_characters_are_made_visible() -> None:
    visible = Visible()
    assert visible.text(b"\x1b[2J\x07\x7f\ta\\b\n") == "^[[2J^G^?\ta\\b\n"
    assert visible.text("\u202eevil\u0085\U000e0001ü".encode()) == "\\u202eevil\\u0085\\U000e0001ü"


def test_invalid_bytes_are_shown_as_numbers() -> None:
    assert Visible().text(b"a\xff\xfeb") == "a\\xff\\xfeb"


def test_a_character_or_a_line_end_that_comes_in_pieces_is_shown_as_one() -> None:
    visible = Visible()
    assert [visible.text(bytes([byte])) for byte in "ü\r\nx".encode()] == [
        *("", "ü", "", "\n", "x"),
    ]
    assert visible.text(b"\r") == ""
    assert visible.text(b"y\r\r\n") == "^My^M\n"
    assert visible.text(b"\xc3\r", final=False) == "\\xc3"
    assert visible.text(b"", final=True) == "^M"
    assert Visible().text(b"\xc3", final=True) == "\\xc3"


# Where it is shown


def test_long_lines_are_cut_into_rows() -> None:
    assert rows("", 5) == [""]
    assert rows("abcdefg", 3) == ["abc", "def", "g"]
    assert rows("日本語x", 5) == ["日本", "語x"]
    assert rows("a\tb", 8) == ["a       ", "b"]


class Screen:
    """A terminal that knows no more than what `Above` needs."""

    def __init__(self, columns: int, lines: int) -> None:
        self.columns = columns
        self.rows = [""] * lines
        self.row = self.column = 0
        self.saved = (0, 0)

    def feed(self, text: str) -> None:
        for command, char in re.findall(r"(\x1b(?:\[[A-Z]|[0-9D])|\r|\n)|(.)", text):
            if char:
                self._put(char)
            else:
                self._do(command)

    def _put(self, char: str) -> None:
        row = self.rows[self.row].ljust(self.column)
        self.rows[self.row] = row[: self.column] + char + row[self.column + 1 :]
        self.column += 1
        assert self.column < self.columns

    def _do(self, command: str) -> None:
        if command in ("\x1bD", "\n"):
            if self.row == len(self.rows) - 1:
                self.rows = [*self.rows[1:], ""]
            else:
                self.row += 1
            self.column = 0 if command == "\n" else self.column
        elif command == "\x1b[A":
            self.row = max(0, self.row - 1)
        elif command == "\x1b[B":
            self.row = min(len(self.rows) - 1, self.row + 1)
        elif command == "\x1b7":
            self.saved = (self.row, self.column)
        elif command == "\x1b8":
            self.row, self.column = self.saved
        elif command == "\x1b[L":
            self.rows.insert(self.row, "")
            self.rows.pop()
        elif command == "\x1b[K":
            self.rows[self.row] = self.rows[self.row][: self.column]
        else:
            assert command == "\r", command
            self.column = 0


@pytest.mark.parametrize("lines", [3, 9])
def test_text_appears_above_the_line_being_typed_and_the_cursor_stays_in_it(lines: int) -> None:
    screen, above = Screen(10, lines), Above()
    screen.feed("typed\r\x1b[B\x1b[A")
    screen.column = 3  # amid what has been typed
    screen.feed(above.show("one\nand a longer line\n", 10))
    expected = ["one", "and a lon", "ger line", "typed"]
    assert [row for row in screen.rows if row] == expected[-lines:]
    assert screen.rows[screen.row] == "typed"
    assert screen.column == 3


def test_the_rest_of_a_line_is_put_behind_its_begin() -> None:
    screen, above = Screen(10, 9), Above()
    screen.feed("me")
    for text in ("log", "in: ", "", "a name that is long\nnext", "\n\nend\n"):
        screen.feed(above.show(text, 10))
    assert screen.rows[:7] == ["login: a ", "name that", " is long", "next", "", "end", "me"]
    assert (screen.row, screen.column) == (6, 2)


def test_after_enter_the_rest_of_a_line_stands_below() -> None:
    screen, above = Screen(20, 9), Above()
    screen.feed(above.show("login: ", 20))
    screen.feed("me\n")
    above.entered()
    screen.feed(above.show("welcome\n", 20))
    assert screen.rows[:3] == ["login: ", "me", "welcome"]
    assert screen.row == 3


# Without a terminal


def test_a_pipe_is_not_interactive() -> None:
    assert not is_interactive()


def test_a_python_without_readline_is_not_interactive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "readline", None)
    assert not is_interactive()


def test_after_the_end_no_line_is_read_and_the_signals_are_restored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("readline")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"not read\n"), "utf-8"))
    before = [signal.getsignal(signum) for signum in (signal.SIGUSR1, signal.SIGTERM)]
    with Terminal() as terminal:
        signal.raise_signal(signal.SIGUSR1)
        with in_thread(terminal.end):
            wait_until(lambda: terminal._over)
            assert list(terminal.lines()) == []
    assert before == [signal.getsignal(signum) for signum in (signal.SIGUSR1, signal.SIGTERM)]


# With a pseudo-terminal


class Session:
    """A `netkit connect` on a terminal of the test."""

    def __init__(self, *arguments: str) -> None:
        self.seen = ""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
        environment |= {"INPUTRC": "/dev/null", "COLUMNS": "80", "PYTHONUTF8": "1"}
        self.terminal, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "netkit", "connect", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            start_new_session=True,
        )
        os.close(theirs)

    def look_for(self, text: str) -> None:
        """Read on until `text` is there, and forget what was before it."""
        while text not in self.seen:
            data = self._read()
            assert data, self.seen
            self.seen += data.decode()
        self.seen = self.seen.partition(text)[2]

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def echoes(self) -> bool:
        return bool(termios.tcgetattr(self.terminal)[3] & termios.ECHO)

    def wait_for_readline(self) -> None:
        """Until it reads the next line: what is typed before that is not edited."""
        wait_until(lambda: not self.echoes(), "readline")

    def wait(self) -> int:
        """The exit status, or what it was killed by; all that was written is in `seen` then."""
        while data := self._read():
            self.seen += data.decode()
        return self.process.wait(PATIENCE)

    def _read(self) -> bytes:
        assert select.select([self.terminal], [], [], PATIENCE)[0], self.seen
        try:
            return os.read(self.terminal, 65536)
        except OSError:  # EIO: nobody has it open any more
            return b""


@contextlib.contextmanager
def session(*arguments: str) -> Iterator[Session]:
    running = Session(*arguments)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait()
        os.close(running.terminal)


def wait_until_some(server: netkit.Server) -> list[netkit.Connection]:
    wait_until(lambda: server.connections, "a client")
    return list(server.connections)


def prompt(conn: netkit.Connection) -> None:
    """Shows each line that comes in capitals, after a prompt that it ends later."""
    conn.write("name? ")
    for line in conn.lines():
        conn.write(f"\x1b[2J{line.upper()}\r\n")
        if line == "bye":
            return


def test_lines_are_edited_and_recalled_and_incoming_text_stands_above() -> None:
    with serving(prompt) as server, session(str(server.server_address[1])) as user:
        user.look_for("name? \x1b8")
        user.wait_for_readline()
        user.type("helo")
        user.look_for("helo")
        user.type("\x1b[Dl\r")  # one to the left, and what is missing there
        user.look_for("^[[2JHELLO\x1b8")
        user.type("\x1b[A\r")  # the line before
        user.look_for("^[[2JHELLO\x1b8")
        user.type("bye\r")
        assert user.wait() == 0
        assert "^[[2JBYE" in user.seen


def test_a_server_that_ends_ends_the_line_that_is_being_typed() -> None:
    with serving(netkit.EchoHandler) as server:
        with session("-v", str(server.server_address[1])) as user:
            user.look_for("connected to")
            user.wait_for_readline()
            user.type("half a li")
            user.look_for("half a li")
            server.stop(0)
            assert user.wait() == 0
            assert user.seen.endswith("\r\n0 bytes sent, 0 bytes received\r\n")


def test_a_reset_is_reported_below_the_line_that_is_being_typed() -> None:
    with serving(netkit.EchoHandler) as server:
        port = server.server_address[1]
        with session(str(port)) as user:
            (conn,) = wait_until_some(server)
            user.wait_for_readline()
            user.type("half a li")
            user.look_for("half a li")
            conn.reset()
            assert user.wait() == 1
            assert user.seen == f"\r\nnetkit: error: connection reset by 127.0.0.1:{port}\r\n"


def test_ctrl_d_ends_our_side_and_the_rest_is_shown() -> None:
    def late(conn: netkit.Connection) -> None:
        conn.write(f"{conn.read()!r}")

    with serving(late) as server, session("--hex", str(server.server_address[1])) as user:
        user.type("hi\r")
        (conn,) = wait_until_some(server)
        wait_until(lambda: conn.bytes_read == 3, "the line")
        user.wait_for_readline()
        user.type("\x04")
        assert user.wait() == 0
        assert "62 27 68 69 5c 6e 27" in user.seen  # b'hi\n'


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=str
)
def test_the_terminal_is_restored(signum: int, status: int) -> None:
    with serving(netkit.EchoHandler) as server:
        with session(str(server.server_address[1])) as user:
            assert user.echoes()
            user.type("hello\r")
            user.look_for("\x1b[Lhello\x1b8")
            user.wait_for_readline()
            for _ in range(3):  # readline sees one that comes as it begins to wait with the next
                user.process.send_signal(signum)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    user.process.wait(3)
                    break
            wait_until(user.echoes, "the end")
            assert user.wait() == status
            assert "Traceback" not in user.seen


def test_after_ctrl_z_the_line_that_was_being_typed_is_there_again() -> None:
    with serving(prompt) as server, session(str(server.server_address[1])) as user:
        user.look_for("name? \x1b8")
        user.wait_for_readline()
        user.type("helo")
        user.look_for("helo")
        # Nothing stops a process that no shell looks after (POSIX, orphaned process groups).
        while True:  # readline sees a signal that comes as it begins to wait with the next one
            user.process.send_signal(signal.SIGTSTP)
            if select.select([user.terminal], [], [], 1)[0]:
                break
        user.look_for("helo")
        user.wait_for_readline()
        user.type("\x1b[Dl\r")
        user.look_for("^[[2JHELLO\x1b8")
        user.type("bye\r")
        assert user.wait() == 0


def test_ctrl_z_while_nothing_is_being_typed_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("readline")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b""), "utf-8"))
    stopped = []

    def stop(pid: int, signum: int) -> None:
        stopped.append((pid, signum, signal.getsignal(signum)))

    monkeypatch.setattr("os.kill", stop)
    with Terminal() as terminal:
        signal.raise_signal(signal.SIGTSTP)
        assert signal.getsignal(signal.SIGTSTP) == terminal._on_stop
    assert stopped == [(os.getpid(), signal.SIGTSTP, signal.SIG_DFL)]


def test_ctrl_z_stays_without_effect_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("readline")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b""), "utf-8"))
    before = signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    try:
        with Terminal():
            assert signal.getsignal(signal.SIGTSTP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTSTP, before)


@pytest.mark.parametrize("over", [True, False])
def test_an_interruption_after_the_end_is_ignored(
    over: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupted)
    terminal = Terminal()
    terminal._interrupted = over
    if over:
        assert list(terminal.lines()) == []
    else:
        with pytest.raises(KeyboardInterrupt):
            list(terminal.lines())
