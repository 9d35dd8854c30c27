"""netkit connect on a terminal, with the packages of the extra `cli`, and without them."""

from __future__ import annotations

import contextlib
import io
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pseudoterminal import CONNECT, WITHOUT_EXTRA, Session, session
from support import PATIENCE, ROOT, serving, wait_until

import netkit

pytest.importorskip("prompt_toolkit")


def the_client(server: netkit.Server) -> netkit.Connection:
    wait_until(lambda: server.connections, "a client")
    return next(iter(server.connections))


def shout(conn: netkit.Connection) -> None:
    """Ask for a name, and send each line back in capitals, until the line is "bye"."""
    conn.write("name? ")
    for line in conn.lines():
        conn.write(f"\x1b[2J{line.upper()}\r\n")
        if line == "bye":
            return


@contextlib.contextmanager
def session_with(handler: Any, *options: str, **more: str) -> Iterator[Session]:
    """A session with a server of this handler."""
    with serving(handler) as server:
        with session(*options, server.server_address[1], **more) as user:
            yield user


@pytest.fixture
def user() -> Iterator[Session]:
    """A session with `shout`, whose question is on the screen."""
    with session_with(shout) as user:
        user.until_rows("name?")
        user.until_prompt()
        yield user


def silent(conn: netkit.Connection) -> None:
    """Read to the end, and send nothing."""
    conn.read()


# Editing


def test_lines_are_edited_and_recalled(user: Session) -> None:
    user.type("helo\x1b[Dl\r")  # one to the left, and the missing letter
    user.until_rows("name?", "hello", "^[[2JHELLO")
    user.type("x\x15\x1b[A\r")  # kill the line; the line before
    user.until_rows("^[[2JHELLO", "hello", "^[[2JHELLO")
    user.type("bye\r")
    assert user.wait() == 0
    assert user.rows[-2:] == ["bye", "^[[2JBYE"]
    assert user.is_restored


def test_keys_that_are_typed_ahead_are_for_the_next_lines(user: Session) -> None:
    user.type("one\rtwo\rbye\r")
    assert user.wait() == 0
    assert [row for row in user.rows if row.isupper()] == ["^[[2JONE", "^[[2JTWO", "^[[2JBYE"]


def test_pasted_lines_are_sent_as_they_are(user: Session) -> None:
    user.type("\x1b[200~one\ntwo\n\x1b[201~")
    user.until_rows("one", "two")
    user.type("\r")
    user.until_rows("^[[2JONE", "^[[2JTWO")


def test_bytes_that_are_not_text_are_sent_unchanged() -> None:
    got = []
    with session_with(lambda conn: got.append(conn.readline())) as user:
        user.until_prompt()
        user.type(b"\xff\r")
        assert user.wait() == 0
    assert got == [b"\xff\n"]


# What the peer sends


def test_received_text_appears_above_the_typed_line_which_does_not_move() -> None:
    with serving(silent) as server, session(server.server_address[1]) as user:
        conn = the_client(server)
        user.until_prompt()
        user.type("ab日本\x1b[D")
        user.until(lambda: user.typed_row.startswith("ab") and user.screen.cursor.x == 4)
        for text in ("one\ntwo\n", "log", "in: ", "\ttab", "\nwide 日本\nlast"):
            conn.write(text)
        user.until(lambda: len(user.rows) == 6)
        assert user.rows[0:3] == ["one", "two", "login:  tab"]
        assert user.rows[4] == "last"
        assert (user.typed_row[:2], user.screen.cursor.x) == ("ab", 4)
        user.type("\r")  # ends the row above, too
        user.until(lambda: conn.bytes_read)
        conn.write(" words\n")
        user.until_rows(" words")
        assert (user.rows[4], user.rows[5][:2]) == ("last", "ab")


def test_a_long_row_without_an_end_is_shown_whole() -> None:
    with serving(silent) as server, session(server.server_address[1]) as user:
        conn = the_client(server)
        user.until_prompt()
        user.type("typed")
        user.until_rows("typed")
        conn.write("x" * 100)
        user.until_rows("x" * 80, "x" * 20, "typed")
        conn.write("rest\n")
        user.until_rows("x" * 80, "x" * 20, "rest", "typed")


def test_after_the_end_of_input_the_rest_is_shown() -> None:
    def late(conn: netkit.Connection) -> None:
        line = conn.readline()
        conn.write("wait")
        conn.write(f"ed for {conn.read() + line!r}")

    with session_with(late) as user:
        user.until_prompt()
        user.type("hi\r")
        user.until_rows("hi", "wait")
        user.type("\x04")
        assert user.wait() == 0
        assert user.rows == ["hi", "wait", "ed for b'hi\\n'"]


@pytest.mark.parametrize("program", [CONNECT, WITHOUT_EXTRA], ids=["with", "without the extra"])
def test_no_control_sequence_of_the_server_reaches_the_terminal(program: str) -> None:
    hostile = "\x1b]0;title\x07 \x1b[6n \x9b2J \u202e \u2028 \b\x7f"

    def handler(conn: netkit.Connection) -> None:
        conn.write(f"{hostile}\n{hostile}")
        conn.write(bytes(range(256)))
        conn.read()

    with session_with(handler, program=program) as user:
        visible = "^[]0;title^G ^[[6n \\u009b2J \\u202e \\u2028 ^H^?"
        user.until(lambda: len([row for row in user.rows if row.startswith(visible)]) == 2)
        user.until(lambda: any(row.endswith("\\xfe\\xff") for row in user.rows))
        user.type("\x03")
        assert user.wait() == 130
    shown = user.written.decode()
    assert not [text for text in ("\x1b]", "\x1b[6n", "\x9b", "\u202e", "\u2028") if text in shown]
    assert "\x07" not in shown


def test_a_dump_in_hex_is_shown_above_the_line() -> None:
    with session_with(netkit.EchoHandler, "--hex") as user:
        user.until_prompt()
        user.type("hi\r")
        user.until(lambda: any(row.endswith("|hi.|") for row in user.rows))


def test_much_text_is_shown_while_a_line_is_typed() -> None:
    def flood(conn: netkit.Connection) -> None:
        for number in range(3000):
            conn.write(f"line {number}\n")
        conn.read()

    with session_with(flood) as user:
        user.until_prompt()
        for char in "typed":
            user.type(char)
            user.until(lambda: b"line" in user.written)
        user.until_rows("line 2998", "line 2999", "typed")


def test_a_narrower_window_cuts_the_typed_line_into_rows(user: Session) -> None:
    user.type("0123456789" * 4)
    user.until_rows("0123456789" * 4)
    user.resize(25, 10)
    user.until_rows("0123456789012345678901234", "567890123456789")
    user.type("\x15bye\r")
    assert user.wait() == 0


# The end


def test_a_server_that_ends_ends_the_line_that_is_being_typed() -> None:
    with serving(netkit.EchoHandler) as server, session("-v", server.server_address[1]) as user:
        user.until(lambda: user.rows and user.rows[-1].startswith("connected to"))
        user.until_prompt()
        user.type("half a li")
        user.until_rows("half a li")
        server.stop(0)
        assert user.wait() == 0
        assert user.rows[-2:] == ["half a li", "0 bytes sent, 0 bytes received"]
        assert user.is_restored


def test_a_reset_is_reported_below_the_line_that_is_being_typed() -> None:
    with serving(netkit.EchoHandler) as server, session(server.server_address[1]) as user:
        conn = the_client(server)
        user.until_prompt()
        user.type("half a li")
        user.until_rows("half a li")
        conn.reset()
        assert user.wait() == 1
        line = f"netkit: error: connection reset by 127.0.0.1:{server.server_address[1]}"
        assert user.rows == ["half a li", line]


def test_no_line_is_asked_for_once_the_server_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    from netkit.cli.terminal import Terminal

    class Ending(Terminal):
        """A terminal whose server ends when a line is typed."""

        def __init__(self) -> None:
            self._lock, self._ended = threading.Lock(), False

        def _line(self) -> str:
            self._ended = True
            return "the last"

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(), "utf-8"))
    assert list(Ending()) == [b"the last\n"]


ENDS = [("\x03", 130), (signal.SIGINT, 130), (signal.SIGTERM, 143)]


def end_by(user: Session, end: str | int) -> None:
    """Press a key, or send a signal."""
    if isinstance(end, str):
        user.type(end)
    else:
        user.signal(end)


@pytest.mark.parametrize(("end", "status"), ENDS)
def test_ctrl_c_and_signals_end_it_and_the_terminal_is_restored(
    user: Session, end: str | int, status: int
) -> None:
    user.type("half a li")
    user.until_rows("name?", "half a li")
    end_by(user, end)
    assert user.wait() == status
    assert user.is_restored
    assert user.rows == ["name?", "half a li"]


def test_signals_that_were_ignored_stay_ignored() -> None:
    program = f"""
import signal
import subprocess
for signum in (signal.SIGINT, signal.SIGTSTP):
    signal.signal(signum, signal.SIG_IGN)
{CONNECT}
"""
    with session_with(shout, program=program) as user:
        user.until_rows("name?")
        user.until_prompt()
        user.signal(signal.SIGINT)
        user.signal(signal.SIGTSTP)
        user.type("\x1abye\r")
        assert user.wait() == 0


def test_ctrl_z_stops_it_and_ctrl_c_ends_it_while_the_server_does_not_read(tmp_path: Path) -> None:
    program = f"""
import netkit.client.connect
real = netkit.client.connect.connect
netkit.client.connect.connect = lambda **options: real(**options, send_buffer=4096)
{CONNECT}
"""
    over = threading.Event()
    server = netkit.create_server(lambda _: over.wait(PATIENCE) and None)
    with server.listen(path=tmp_path / "s"):
        with session(f"unix:{tmp_path}/s", program=program) as user:
            user.until_prompt()
            user.type("\x1b[200~" + "x" * 20_000 + "\x1b[201~\r")
            user.until(lambda: user.has(termios.ISIG))
            user.type("\x1a")
            user.until_rows("stopped")
            user.type("fg\n")
            user.until(lambda: not user.has(termios.ECHO))
            user.type("\x03")
            assert user.wait() == 130
            assert user.is_restored
        over.set()


@pytest.mark.parametrize("end", ["\x1a", signal.SIGTSTP])
def test_after_ctrl_z_the_line_that_was_being_typed_is_shown_again(
    user: Session, end: str | int
) -> None:
    user.type("helo")
    user.until_rows("name?", "helo")
    end_by(user, end)
    user.until_rows("stopped")
    assert user.is_restored
    user.type("fg\n")
    user.until(lambda: user.typed_row == "helo")
    user.type("\x1b[Dl\r")
    user.until_rows("hello", "^[[2JHELLO")
    user.type("bye\r")
    assert user.wait() == 0


def test_no_thread_and_no_descriptor_is_left() -> None:
    program = """
import os, sys, threading
from netkit.cli.main import main
before = os.listdir("/dev/fd")
status = main(["connect", sys.argv[1]])
print(status, threading.enumerate() == [threading.main_thread()], os.listdir("/dev/fd") == before)
"""
    with session_with(shout, program=program) as user:
        user.until_prompt()
        user.type("bye\r")
        user.wait()
        assert user.rows[-1] == "0 True True"


# Without the extra


def test_without_the_extra_the_terminal_edits_lines_and_a_hint_says_what_to_install() -> None:
    with session_with(shout, program=WITHOUT_EXTRA) as user:
        hint = "netkit: hint: install prompt_toolkit (the extra netkit-tcp[cli]) to edit lines"
        user.until(lambda: "name? " in user.written.decode())
        assert user.is_restored
        assert user.written.decode().startswith(f"{hint}\r\n")
        user.type("hello\n")
        user.until_rows("^[[2JHELLO")
        user.type("\x04")
        assert user.wait() == 0


@pytest.mark.parametrize(("end", "status"), [ENDS[0], (signal.SIGTERM, -signal.SIGTERM % 256)])
def test_without_the_extra_it_ends_by_ctrl_c_and_by_a_signal(end: str | int, status: int) -> None:
    with session_with(netkit.EchoHandler, program=WITHOUT_EXTRA) as user:
        user.until(lambda: b"\n" in user.written)  # after the hint
        user.type("hello\n")
        user.until_rows("hello", "hello")
        end_by(user, end)
        assert user.wait() == status


@pytest.mark.parametrize(
    ("program", "term"), [(CONNECT, "dumb"), (CONNECT, "unknown"), (WITHOUT_EXTRA, "dumb")]
)
def test_a_dumb_terminal_edits_lines_itself_and_gets_no_hint(program: str, term: str) -> None:
    with session_with(netkit.EchoHandler, program=program, TERM=term) as user:
        user.type("hello\n")
        user.until_rows("hello", "hello")
        user.type("\x04")
        assert user.wait() == 0
        assert user.written.count(b"\n") == 2
        assert b"\x1b" not in user.written


def test_the_packages_of_the_extra_are_imported_only_for_a_terminal() -> None:
    program = f"""
import atexit, sys
packages = {{"asyncio", "prompt_toolkit", "rich"}}
atexit.register(lambda: print(*packages.intersection(sys.modules)))
{CONNECT}
"""
    with serving(netkit.EchoHandler) as server:
        command = [sys.executable, "-c", program, str(server.server_address[1])]
        done = subprocess.run(command, input=b"", capture_output=True, cwd=ROOT, timeout=PATIENCE)
    assert (done.stdout, done.stderr) == (b"\n", b"")
