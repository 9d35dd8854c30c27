"""The programs in examples/ do what they say."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import ROOT, Cli, receive_all, receive_exactly, reset

import netkit


@contextlib.contextmanager
def member(program: Cli, name: str) -> Iterator[netkit.Connection]:
    """A client of the chat that has joined."""
    with netkit.connect(program.port, "127.0.0.1") as conn:
        assert conn.readline() == b"your name?\n"
        conn.write(f"{name}\n")
        yield conn


def test_the_chat_sends_each_line_to_the_others_and_says_who_comes_and_leaves() -> None:
    with Cli("serve", "examples.chat:chat", "0") as program:
        with member(program, "ann") as ann:
            assert ann.readline() == b"* ann joins: 1 here\n"
            with member(program, "bob") as bob:
                assert ann.readline() == bob.readline() == b"* bob joins: 2 here\n"
                ann.write("hello\n")
                bob.write("hi\n")
                assert (ann.readline(), bob.readline()) == (b"bob: hi\n", b"ann: hello\n")
            assert ann.readline() == b"* bob leaves\n"
            with program.connect() as rude:
                receive_exactly(rude, len(b"your name?\n"))
                rude.sendall(b"rude\n")
                assert ann.readline() == b"* rude joins: 2 here\n"
                reset(rude)
            assert ann.readline() == b"* rude leaves\n"
        program.send_signal()
        assert program.wait() == 0


@pytest.mark.parametrize("options", [[], ["--workers", "2"]])
def test_the_visitors_are_counted_in_a_database(options: list[str], tmp_path: Path) -> None:
    command = ("serve", "examples.visits:visit", "0", "--set", "greeting=Welcome", *options)
    for start in (1, 4):  # the file outlives the server
        with Cli(*command, cwd=tmp_path) as program:
            answers = set()
            for _ in range(3):
                with program.connect() as sock:
                    answers.add(receive_all(sock).decode())
            assert answers == {f"Welcome, visitor {n}\n" for n in range(start, start + 3)}
            program.send_signal()
            assert program.wait() == 0


def test_the_chat_is_short() -> None:
    assert (ROOT / "examples" / "chat.py").read_text().count("\n") <= 30
