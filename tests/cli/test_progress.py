"""The progress bars of files, on a terminal."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pseudoterminal import WITHOUT_EXTRA, session
from support import serving

import netkit

pytest.importorskip("rich")


def test_each_file_that_is_sent_or_received_has_a_bar(tmp_path: Path) -> None:
    (tmp_path / "a\x1bb").write_bytes(bytes(3_000_000))
    files = ("--send", tmp_path / "a\x1bb", "--receive", tmp_path / "c")
    with serving(netkit.EchoHandler) as server, session(server.server_address[1], *files) as user:
        assert user.wait() == 0
    assert re.fullmatch(r"c +\S+ +3.0/. MB +\S+ .B/s", user.rows[0])
    assert re.fullmatch(r"a\\x1bb \S+ 100% 3.0/3.0 MB \S+ .B/s", user.rows[1])
    assert (tmp_path / "c").read_bytes() == bytes(3_000_000)
    assert b"\x1b[?25l" not in user.written  # the cursor is not hidden


def test_received_text_is_shown_above_the_bar(tmp_path: Path) -> None:
    def answer(conn: netkit.Connection) -> None:
        conn.write("one\n\x1b[2Jtw")
        conn.read()
        conn.write(b"o\nend\xc3")

    (tmp_path / "a").write_bytes(b"x" * 2048)
    with serving(answer) as server:
        with session("--send", tmp_path / "a", server.server_address[1]) as user:
            assert user.wait() == 0
    assert user.rows[:2] == ["one", "^[[2Jtwo"]
    assert user.rows[2].startswith("a ━")
    assert user.rows[3] == "end\\xc3"


def test_a_long_row_above_the_bar_is_not_held_back(tmp_path: Path) -> None:
    def answer(conn: netkit.Connection) -> None:
        conn.write("x" * 100)
        conn.read()

    fifo = tmp_path / "a"
    fifo.touch()
    with serving(answer) as server:
        with session("--send", fifo, "--no-half-close", server.server_address[1]) as user:
            user.until(lambda: "x" * 20 in user.rows)
            user.type("\x03")
            assert user.wait() == 130


def test_without_the_extra_there_is_no_bar(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"hello\n")
    with serving(netkit.EchoHandler) as server:
        arguments = ("--send", tmp_path / "a", server.server_address[1])
        with session(*arguments, program=WITHOUT_EXTRA) as user:
            assert user.wait() == 0
            assert user.written == b"hello\r\n"
