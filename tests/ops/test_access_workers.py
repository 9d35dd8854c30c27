"""The access log of a whole program: the command line, worker processes, SIGHUP."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import sys
from pathlib import Path

import pytest
from support import Cli, Program, in_threads, receive_all, wait_until

posix_only = pytest.mark.skipif(os.name != "posix", reason="workers need POSIX")
LINE = re.compile(
    r"\S+ \S+ 127\.0\.0\.1:\d+ -> 127\.0\.0\.1:\d+ \d+\.\d{3}s "
    r"in 5 out 5 (?:done|drained) \[(\d+)\]"
)


def use(program: Program) -> None:
    with program.connect() as sock:
        sock.sendall(b"hello")
        sock.shutdown(socket.SHUT_WR)
        assert receive_all(sock) == b"hello"


def numbers_in(*files: Path) -> list[int]:
    """The numbers of the connections in the lines of `files`, each of which is whole."""
    found = []
    for file in files:
        for line in file.read_text().splitlines():
            match = LINE.fullmatch(line)
            assert match, line
            found.append(int(match[1]))
    return found


@posix_only
@pytest.mark.parametrize("workers", ["1", "3"])
def test_rotation_by_sighup_loses_no_line_and_tears_none(workers: str, tmp_path: Path) -> None:
    file, old = tmp_path / "a.log", tmp_path / "a.log.1"
    with Cli("echo", "0", "--access-log", str(file), "--workers", workers) as program:
        if workers != "1":
            program.wait_for_line("3 workers ready")
        kept = program.connect()  # served by a worker that will be an old one
        kept.sendall(b"hello")
        assert kept.recv(10) == b"hello"
        in_threads(use, [(program,)] * 20)
        wait_until(lambda: len(numbers_in(file)) == 20, "the lines")
        file.rename(old)
        program.send_signal(signal.SIGHUP)
        program.wait_for_line("reloaded")
        wait_until(file.exists, "the new file")
        in_threads(use, [(program,)] * 20)
        with contextlib.suppress(OSError):  # its worker drains, and may have closed it
            kept.shutdown(socket.SHUT_WR)
            assert receive_all(kept) == b""
        kept.close()
        wait_until(lambda: len(numbers_in(old, file)) == 41, "the lines")
        program.send_signal(signal.SIGTERM)
        assert program.wait() == 0
    assert len(numbers_in(old)) >= 20  # a worker may write a line before it gets the signal
    assert len(numbers_in(file)) >= 1
    assert len(set(numbers_in(old, file))) == 41


def test_a_hyphen_is_standard_output_and_json_goes_with_the_log_format() -> None:
    with Cli("echo", "0", "--access-log", "-", "--log-format", "json") as program:
        use(program)
        assert program.process.stdout
        members = json.loads(program.process.stdout.readline())
        assert (members["end"], members["bytes_read"]) == ("done", 5)
        program.send_signal(signal.SIGTERM)
        assert program.wait() == 0
        assert program.process.stdout.read() == b""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_file_that_cannot_be_opened_is_one_error(workers: str, tmp_path: Path) -> None:
    arguments = ("--access-log", str(tmp_path), "--workers", workers, "--log-level", "warning")
    with Cli("echo", "0", *arguments, listening=False) as program:
        assert program.wait() == 1
    text = f"netkit: error: the access log: cannot open {tmp_path}: is a directory"
    assert program.lines == [text]


@posix_only
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_program_with_workers_has_one_file(method: str, tmp_path: Path) -> None:
    file, script = tmp_path / "a.log", tmp_path / "app.py"
    script.write_text(
        "import multiprocessing, netkit\n"
        "if __name__ == '__main__':\n"
        f"    multiprocessing.set_start_method({method!r})\n"
        "    server = netkit.create_server(netkit.EchoHandler).listen(0, '127.0.0.1')\n"
        f"    netkit.run(server, workers=2, access_log={str(file)!r})\n"
    )
    with Program(sys.executable, str(script)) as program:
        program.wait_for_line("2 workers ready")
        in_threads(use, [(program,)] * 10)
        wait_until(lambda: len(numbers_in(file)) == 10, "the lines")
        program.send_signal(signal.SIGTERM)
        assert program.wait() == 0
    assert len(set(numbers_in(file))) == 10


@posix_only
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_harms_no_client() -> None:
    with Cli("echo", "0", "--access-log", "/dev/full") as program:
        for _ in range(5):
            use(program)
        program.wait_for_line("data is lost until that succeeds")
        program.send_signal(signal.SIGTERM)
        assert program.wait() == 0
    assert sum("no space left on device; data" in line for line in program.lines) == 1


@posix_only
@pytest.mark.parametrize(("method", "workers"), [("fork", 1), ("fork", 2), ("spawn", 2)])
def test_a_client_whose_handler_is_left_behind_has_one_line(
    method: str, workers: int, tmp_path: Path
) -> None:
    file, script = tmp_path / "a.log", tmp_path / "app.py"
    script.write_text(
        "import multiprocessing, time, netkit\n"
        "def handler(conn):\n"
        "    conn.write(conn.read(5))\n"
        "    time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        f"    multiprocessing.set_start_method({method!r})\n"
        "    server = netkit.create_server(handler, drain_timeout=0.1)\n"
        "    server.listen(0, '127.0.0.1')\n"
        f"    netkit.run(server, workers={workers}, access_log={str(file)!r})\n"
    )
    with Program(sys.executable, str(script)) as program, program.connect() as sock:
        sock.sendall(b"hello")
        assert sock.recv(5, socket.MSG_WAITALL) == b"hello"
        program.send_signal(signal.SIGTERM)
        program.wait()
    (line,) = file.read_text().splitlines()
    assert " in 5 out 5 cut [" in line


@posix_only
@pytest.mark.parametrize("flag", ["--access-log", "--control", "--status"])
def test_a_program_that_cannot_be_watched_does_not_say_that_it_listens(
    flag: str, tmp_path: Path
) -> None:
    place = f"unix:{tmp_path}/none/x" if flag == "--status" else f"{tmp_path}/none/x"
    with Cli("echo", "0", flag, place, listening=False) as program:
        assert program.wait() == 1
    (line,) = program.lines
    assert line.startswith("netkit: error: ")


@posix_only
def test_serve_does_not_say_that_it_listens_before_the_access_log_is_open(tmp_path: Path) -> None:
    code = f"import netkit; netkit.serve(netkit.EchoHandler, access_log={str(tmp_path)!r})"
    with Program(sys.executable, "-c", code, listening=False) as program:
        assert program.wait() == 1
    assert "is a directory" in program.lines[-1]
    assert not any("listening on" in line for line in program.lines)
