"""``netkit logger``: its output."""

from __future__ import annotations

import os
import re
import socket
import sys
from pathlib import Path

import pytest
from support import PATIENCE, Cli, in_thread, observed, receive_all, reset, wait_until

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


@needs_dev_full
@pytest.mark.parametrize("style", [[], ["--hex"], ["--raw"]])
def test_a_full_disk_ends_the_logger_with_one_line(style: list[str], run: Run) -> None:
    use = send_and_wait(b"hello\n")
    status, _, lines = run("logger", "--output", "/dev/full", *style, during=use, stop=False)
    line = "netkit: error: cannot write to /dev/full: no space left on device"
    assert (status, lines[-1]) == (1, line)
    assert lines[-2].startswith("stopped: ")
    assert sum("error" in line for line in lines) == 1


def test_a_reset_does_not_end_the_logger(run: Run) -> None:
    def use(port: int) -> None:
        with observed(events.ClientFailed) as seen:
            reset(socket.create_connection(("127.0.0.1", port), PATIENCE))
            wait_until(lambda: seen, "the report")
        assert ask(port, b"hello\n") == b""

    status, out, lines = run("logger", during=use)
    assert (status, out) == (0, b"hello\n")
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
            lines = process.stderr.read().splitlines()
            assert process.wait(PATIENCE) == 1
    assert lines[-1].endswith("cannot write to standard output: no space left on device")
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
