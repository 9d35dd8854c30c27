"""Every example of the README runs, and every name in it exists."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import ROOT, Cli, Program, receive_all, send_and_end, tool

import netkit

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def python_block(words: str) -> str:
    (block,) = [block for block in blocks("python") if words in block]
    return block


class Example(Program):
    """A block of the README as a program. It listens on a free port instead of 8080."""

    def __init__(self, block: str, folder: Path, listening: bool = True) -> None:
        script = folder / "example.py"
        script.write_text(block.replace("8080", "0"))
        super().__init__(sys.executable, script, listening=listening)

    def exchange(self, data: bytes) -> bytes:
        with self.connect() as sock:
            send_and_end(sock, data)
            return receive_all(sock)

    def interrupt(self) -> tuple[int, str]:
        """The exit status of a program after Ctrl+C, and its output without the status lines."""
        self.send_signal()
        return self.end()

    def end(self) -> tuple[int, str]:
        status = self.wait()
        assert self.process.stdout
        return status, self.process.stdout.read().decode()


@pytest.fixture
def example(tmp_path: Path) -> Iterator[Callable[..., Example]]:
    """A function that starts an example. The example ends with the test at the latest."""
    with contextlib.ExitStack() as stack:
        yield lambda *given: stack.enter_context(Example(given[0], tmp_path, *given[1:]))


def test_the_function_handler_shouts_until_ctrl_c(example: Callable[..., Example]) -> None:
    program = example(python_block("netkit.serve(shout, port=8080, host"))
    assert program.exchange(b"hello\nthere") == b"HELLO\nTHERE\n"
    assert program.interrupt() == (0, "")


def test_the_class_handler_greets_shouts_and_says_bye(example: Callable[..., Example]) -> None:
    status, output = example(python_block("class Shout(netkit.Handler)"), False).end()
    assert "b'well?\\nHELLO\\n'" in output
    assert "bye, 127.0.0.1" in output  # printed by another thread, so the lines may mix
    assert status == 0


def test_the_socketserver_handler_runs_until_ctrl_c(example: Callable[..., Example]) -> None:
    program = example(python_block("socketserver.StreamRequestHandler"))
    assert program.exchange(b"hello\nthere\n") == b"HELLO\nTHERE\n"
    assert program.interrupt() == (0, "")


def test_run_reports_how_many_clients_finished(example: Callable[..., Example]) -> None:
    program = example(python_block("netkit.run(server, drain_timeout"))
    assert program.exchange(b"hello") == b"hello"
    status, output = program.interrupt()
    assert status == 0
    assert re.fullmatch(r"[01] 0\n", output)


def test_several_processes_shout_until_ctrl_c(example: Callable[..., Example]) -> None:
    program = example(python_block('workers="auto"'))
    for _ in range(4):
        assert program.exchange(b"hello\nthere") == b"HELLO\nTHERE\n"
    assert program.interrupt() == (0, "")


def test_each_python_block_has_a_test_here() -> None:
    assert len(blocks("python")) == 5


def test_the_session_with_nc_is_as_shown() -> None:
    nc = tool("nc")
    served, typed, stopped = blocks("console")
    assert served == "$ python3 -m netkit echo 8080\nlistening on 127.0.0.1:8080\n"
    assert typed == "$ nc localhost 8080\nhello\nhello\n"
    with Cli("echo") as server:
        with subprocess.Popen(
            [nc, "localhost", str(server.port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as client:
            assert client.stdin
            assert client.stdout
            client.stdin.write(b"hello\n")
            client.stdin.flush()
            assert client.stdout.readline() == b"hello\n"
            server.send_signal(signal.SIGINT)
            assert server.wait() == 0
        assert "\n".join(server.lines[1:]) == stopped.removeprefix("^C").rstrip("\n")


def test_the_commands_at_the_top_exist() -> None:
    assert [line.split("#")[0].strip() for line in blocks("sh")[0].splitlines()] == [
        "python3 -m netkit echo 8080",
        "bin/test",
    ]
    assert os.access(ROOT / "bin/test", os.X_OK)


def test_every_name_that_is_mentioned_exists() -> None:
    for owner, thing in (
        ("netkit", netkit),
        ("conn", netkit.Connection),
        ("server", netkit.Server),
    ):
        for name in set(re.findall(rf"\b{owner}\.(\w+)\b(?!/)", README)):
            if name in ("getConnections", "py"):  # Node's
                continue
            if owner == "conn" and name in ("remote_address", "server"):  # set when it is made
                continue
            assert hasattr(thing, name) or name in ("events",), f"{owner}.{name}"


def test_files_that_it_links_to_exist() -> None:
    for path in re.findall(r"\]\(([\w/.]+)\)", README):
        assert (ROOT / path).exists(), path
