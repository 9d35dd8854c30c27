"""``netkit logger``: its output."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
from pathlib import Path

import pytest
from support import (
    PATIENCE,
    Cli,
    Program,
    in_thread,
    in_threads,
    observed,
    receive_all,
    reset,
    wait_until,
)

from netkit.core import events

from .commands import Run, ask, send_and_wait, started


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (".", ".: is a directory"),
        ("no/such", "no/such: no such file or directory"),
        ("", "'': no such file or directory"),
    ],
)
def test_an_output_that_cannot_be_opened_is_named(path: str, message: str, run: Run) -> None:
    line = f"netkit: error: cannot open {message}"
    assert run("logger", "--output", path) == (1, b"", [line])


def test_a_closed_standard_output_is_an_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert run("logger").lines == [
        "netkit: error: standard output is closed: name a file with --output"
    ]


HOSTILE = (
    b"plain\n"
    b"crlf\r\n"
    b"[7] got connection from 1.2.3.4:5\rforged\n"
    b"\x1b[2J\x1b]0;title\x07 \x00 \x7f \xc2\x9b\n"
    b"\xff\xfe caf\xc3\xa9 \\n\n"
    b"\xe2\x80\xae\xe2\x80\xa8\n"
    b"no newline"
)
ESCAPED = (
    "plain\n"
    "crlf\n"
    "[7] got connection from 1.2.3.4:5\\rforged\n"
    "\\x1b[2J\\x1b]0;title\\x07 \\x00 \\x7f \\u009b\n"
    "\\xff\\xfe café \\\\n\n"
    "\\u202e\\u2028\n"
    "no newline\n"
).encode()
needs_dev_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")


def test_logger_escapes_characters_that_could_deceive(run: Run) -> None:
    status, out, lines = run("logger", during=send_and_wait(HOSTILE))
    assert (status, out) == (0, ESCAPED)
    assert re.fullmatch(r"\[(\d+)\] got connection from 127\.0\.0\.1:\d+", lines[1])
    assert re.fullmatch(
        rf"\[\d+\] 127\.0\.0\.1:\d+ closed: {len(HOSTILE)} bytes received, 0 sent, \d+\.\d s",
        lines[2],
    )
    assert len(lines) == 4  # the first and the last are the server's
    assert not any("forged" in line for line in lines)


def test_logger_writes_the_bytes_as_they_are_or_as_a_hex_dump(run: Run) -> None:
    assert run("logger", "--raw", during=send_and_wait(HOSTILE)).out == HOSTILE
    assert run("logger", "--hex", during=send_and_wait(b"GET / HTTP/1.1\r\nx\x1b\n")).out == (
        b"00000000  47 45 54 20 2f 20 48 54 54 50 2f 31 2e 31 0d 0a  |GET / HTTP/1.1..|\n"
        b"00000010  78 1b 0a                                         |x..|\n"
    )


def test_options_set_the_encoding_and_the_longest_line_of_the_logger(run: Run) -> None:
    use = send_and_wait(b"caf\xe9\nmuch too long\nend\n")
    status, out, lines = run("logger", "--encoding", "latin-1", "--max-line", "5", during=use)
    assert (status, out) == (0, "café\nend\n".encode())
    skipped = ": line longer than 5 bytes (max_line); it is skipped"
    assert any(line.endswith(skipped) for line in lines)


def test_logger_appends_to_a_file(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"before\n")
    status, out, _ = run("logger", "--output", str(path), during=send_and_wait(b"after\n"))
    assert (status, out, path.read_bytes()) == (0, b"", b"before\nafter\n")


def test_a_full_disk_loses_no_client(run: Run, tmp_path: Path) -> None:
    """There is one line when it begins, and one when it ends."""
    path = tmp_path / "log"
    path.symlink_to("/dev/full")

    def use(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
            assert ask(port, b"lost\nlost\n") == ask(port, b"lost, too\n") == b""
            path.unlink()
            sock.sendall(b"kept\n")
            wait_until(path.exists)
            wait_until(path.read_bytes)

    status, _, lines = run("logger", "--output", str(path), during=use)
    assert (status, path.read_bytes()) == (0, b"kept\n")
    first, last = [line for line in lines if "lost" in line]
    begin = f"error: cannot write to {path}: no space left on device; data is lost until that succ"
    assert first.startswith(begin)
    assert last == "warning: the output takes data again; 20 bytes were lost"


@needs_dev_full
@pytest.mark.parametrize("style", [[], ["--hex"], ["--raw"]])
def test_a_disk_that_is_full_at_the_end_is_a_failure(style: list[str], run: Run) -> None:
    use = send_and_wait(b"hello\n")
    status, _, lines = run("logger", "--output", "/dev/full", *style, during=use)
    last = r"netkit: error: cannot write to /dev/full: no space left on device; \d+ bytes were lost"
    assert (status, bool(re.fullmatch(last, lines[-1]))) == (1, True)
    assert lines[-2].startswith("stopped: ")


def test_lines_have_a_prefix_and_files_are_rotated(run: Run, tmp_path: Path) -> None:
    flags = ("--prefix", "--output", str(tmp_path / "log"), "--rotate-size", "100", "--keep", "2")
    assert run("logger", *flags, during=send_and_wait(b"hello\n" * 10)).status == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1", "log.2"]
    line = rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z 127\.0\.0\.1:\d+ hello\n"
    assert re.fullmatch(line * 2, (tmp_path / "log.1").read_bytes())


def test_each_client_may_have_a_file(run: Run, tmp_path: Path) -> None:
    use = send_and_wait(b"one\n", b"two\n")
    assert run("logger", "--raw", "--output", str(tmp_path / "{peer}.raw"), during=use).status == 0
    files = list(tmp_path.iterdir())
    assert all(re.fullmatch(r"127\.0\.0\.1_\d+\.raw", path.name) for path in files)
    assert sorted(path.read_bytes() for path in files) == [b"one\n", b"two\n"]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_lines_of_workers_stay_whole_and_the_file_is_reopened(method: str, tmp_path: Path) -> None:
    program = f"""if __name__ == "__main__":
    import multiprocessing, sys
    multiprocessing.set_start_method({method!r})
    from netkit.cli.main import main
    sys.exit(main(sys.argv[1:]))
"""
    script, path = tmp_path / "program.py", tmp_path / "log"
    script.write_text(program)
    flags = ("--workers", "2", "--prefix", "--output", path)
    with Program(sys.executable, script, "logger", *flags) as server:
        server.wait_for_line("2 workers ready")
        data = [letter * 9999 + b"\n" for letter in (b"a", b"b", b"c", b"d")]
        in_threads(lambda line: ask(server.port, line * 50), [(line,) for line in data])
        lines = [line.split(b" ")[2] for line in path.read_bytes().splitlines(keepends=True)]
        assert sorted(lines) == [line for line in data for _ in range(50)]
        path.rename(tmp_path / "old")
        server.send_signal(signal.SIGHUP)
        server.wait_for_line("reloaded: 2 workers")
        assert path.read_bytes() == b""
        ask(server.port, b"after\n")
        wait_until(lambda: path.read_bytes().endswith(b" after\n"))
        server.send_signal()
        assert server.wait() == 0


def test_a_variable_for_several_workers_does_not_concern_standard_output(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETKIT_WORKERS", "3")
    assert run("logger", during=send_and_wait(b"hello\n")).out == b"hello\n"


def test_a_reset_does_not_end_the_logger(run: Run) -> None:
    def use(port: int) -> None:
        with observed(events.ClientFailed) as seen:
            sock = socket.create_connection(("127.0.0.1", port), PATIENCE)
            sock.sendall(b"half a line")
            reset(sock)
            wait_until(lambda: seen, "the report")
        assert ask(port, b"hello\n") == b""

    status, out, lines = run("logger", during=use)
    assert status == 0
    assert out.endswith(b"hello\n")
    (failure,) = [line for line in lines if "ConnectionResetError" in line]
    assert re.fullmatch(r"\[\d+\] \S+: .*connection reset by 127\.0\.0\.1:\d+", failure)


def test_a_closed_pipe_ends_the_logger_with_one_line() -> None:
    with Cli("logger") as server, server.connect() as idle:
        assert server.process.stdout
        with server.connect() as sock:
            sock.sendall(b"one\n")
            assert server.process.stdout.readline() == b"one\n"
            server.process.stdout.close()
            sock.sendall(b"two\nthree\n")
            assert receive_all(sock) == b""
        assert receive_all(idle) == b""
        assert server.wait() == 1
        assert server.lines[-1] == "netkit: error: cannot write to standard output: broken pipe"
        assert sum("rror" in line for line in server.lines) == 1


@needs_dev_full
def test_a_standard_output_that_is_full_is_not_tried_again_at_the_exit() -> None:
    with open("/dev/full", "wb") as full:
        with started("-m", "netkit", "logger", stdout=full) as (process, port):
            assert ask(port, b"hello\n") == b""
            process.terminate()
            lines = process.stderr.read().splitlines()
            assert process.wait(PATIENCE) == 1
    failure = "cannot write to standard output: no space left on device; 6 bytes were lost"
    assert lines[-1].endswith(failure)
    assert not any("Exception" in line or "Traceback" in line for line in lines)


def test_the_logger_waits_where_its_output_takes_no_more_at_present() -> None:
    """Another process may have made the pipe non-blocking."""
    line = b"x" * 1000 + b"\n"
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with open(reading, "rb") as pipe:
        with started("-m", "netkit", "logger", stdout=writing) as (process, port):
            os.close(writing)
            with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as sock:
                with in_thread(sock.sendall, line * 200):
                    assert b"".join(pipe.readline() for _ in range(200)) == line * 200
            process.terminate()
            assert process.wait(PATIENCE) == 0
