"""Applications in worker processes: new code with one worker, options that are loaded, hooks."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from pathlib import Path

import pytest
from support import (
    PATIENCE,
    Cli,
    Program,
    observed,
    receive_all,
    receive_exactly,
    send_and_end,
    wait_until,
)

import netkit
from netkit.core import events
from netkit.process.application import news_of
from netkit.process.channel import Loaded

APP = """
import os
import netkit

def say(conn, word="one"):
    for line in conn.lines():
        conn.write(f"{word} {os.getpid()}\\n")

server = netkit.create_server(say, drain_timeout=5)
NETKIT_OPTIONS = {"max_connections": 2}
"""
HOOKS = """
def start(server):
    if os.path.exists("bad"):
        raise OSError("no database")
    with open("log", "a") as log:
        log.write(f"start {os.getpid()} {server.listening}\\n")

def stop(server):
    with open("log", "a") as log:
        log.write(f"stop {os.getpid()}\\n")

NETKIT_OPTIONS = {"on_start": start, "on_stop": stop}
"""


class Client:
    """A client of `say`."""

    def __init__(self, program: Program) -> None:
        self.sock = program.connect()

    def ask(self) -> str:
        """The word and the process that answer."""
        self.sock.sendall(b"x\n")
        return self.read()

    def read(self) -> str:
        answer = b""
        while not answer.endswith(b"\n"):
            answer += receive_exactly(self.sock, 1)
        return answer.decode().rstrip()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


def word_of_a_client(program: Program) -> str:
    with Client(program) as client:
        return client.ask().split()[0]


def ends(program: Program, status: int = 0) -> list[str]:
    assert program.wait() == status, program.lines
    wait_until(lambda: not program.left_behind(), "the end of all its processes")
    return program.lines


def stop(program: Program) -> list[str]:
    program.send_signal(signal.SIGTERM)
    return ends(program)


@pytest.mark.parametrize("word", ["say", "make()"])
def test_one_worker_is_reloaded_and_no_client_notices(word: str, tmp_path: Path) -> None:
    code = APP + "make = lambda: server\n"
    (tmp_path / "app.py").write_text(code)
    with Cli("serve", f"app:{word}", "--workers", "1", cwd=tmp_path) as program:
        program.wait_for_line("1 worker ready")
        with Client(program) as old:
            first = old.ask()
            assert first.startswith("one ")
            (tmp_path / "app.py").write_text(code.replace("one", "two"))
            program.send_signal(signal.SIGHUP)
            program.wait_for_line("reloaded: 1 worker")
            # The old worker may accept one more client before it reads the order to leave.
            wait_until(lambda: word_of_a_client(program) == "two", "the new code")
            assert old.ask() == first
        (tmp_path / "app.py").write_text("1 / 0")
        program.send_signal(signal.SIGHUP)
        program.wait_for_line("not reloaded, the old workers continue: app could not be imported")
        assert word_of_a_client(program) == "two"
        stop(program)


def test_without_workers_one_process_serves(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    with Cli("serve", "app:say", cwd=tmp_path) as program, Client(program) as client:
        assert client.ask() == f"one {program.process.pid}"
        program.send_signal(signal.SIGHUP)
        program.wait_for_line("there is nothing to reload")
        stop(program)


def test_workers_share_the_limit_of_their_module_and_have_the_options_of_its_server(
    tmp_path: Path,
) -> None:
    (tmp_path / "app.py").write_text(APP)
    words = ("serve", "app:server", "*:0", "--workers", "2", "--set", "word=three")
    with Cli(*words, cwd=tmp_path) as program:
        program.wait_for_line("2 workers ready")
        with Client(program) as one, Client(program) as two:
            assert one.ask().startswith("three ")
            assert two.ask().startswith("three ")
            with Client(program) as third:
                third.sock.sendall(b"x\n")
                third.sock.settimeout(0.2)
                with pytest.raises(TimeoutError):  # both places are taken
                    third.sock.recv(1)
                third.sock.settimeout(PATIENCE)
                one.sock.close()
                assert third.read().startswith("three ")
        lines = stop(program)
    assert "stopping: 2 workers, up to 5 s to finish" in lines
    assert not any("no limit is set" in line for line in lines)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (
            ["app:say", "--set", "wrd=x"],
            "netkit serve: error: --set wrd: .* did you mean word[?] .*",
        ),
        (["app:say()"], "netkit serve: error: say is no factory, .*"),
        (["app:say", "--set", "word=x", "--max-connections", "70000"], ".*at most 65536.*"),
    ],
)
def test_wrong_use_is_wrong_use_in_a_worker_too(
    words: list[str], error: str, tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text(APP)
    with Cli("serve", *words, "--workers", "1", cwd=tmp_path, listening=False) as program:
        (line,) = ends(program, 2)
    assert re.fullmatch(error, line)


def log_of(folder: Path) -> list[str]:
    path = folder / "log"
    return path.read_text().splitlines() if path.exists() else []


def test_each_worker_calls_the_hooks(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP + HOOKS)
    with Cli("serve", "app:say", "--workers", "2", cwd=tmp_path) as program:
        program.wait_for_line("2 workers ready")
        workers = sorted(program.children())
        stop(program)
    log = log_of(tmp_path)
    assert sorted(log[:2]) == [f"start {pid} True" for pid in workers]
    assert sorted(log[2:]) == [f"stop {pid}" for pid in workers]


def test_workers_whose_on_start_raises_are_the_end_at_first_and_later_no_storm(
    tmp_path: Path,
) -> None:
    (tmp_path / "app.py").write_text(APP + HOOKS)
    (tmp_path / "bad").touch()
    words = ("serve", "app:say", "--workers", "1")
    with Cli(*words, cwd=tmp_path, listening=False) as program:
        lines = ends(program, 1)
    assert lines[-1] == "netkit: error: on_start failed: OSError: no database"
    assert sum("Traceback" in line for line in lines) == 1
    (tmp_path / "bad").unlink()
    with Cli(*words, cwd=tmp_path) as program:
        program.wait_for_line("1 worker ready")
        (tmp_path / "bad").touch()
        os.kill(program.children()[0], signal.SIGKILL)
        program.wait_for_line("a worker failed: on_start failed: OSError: no database; starting")
        program.wait_for_line("starting another in 0.2 s")
        (tmp_path / "bad").unlink()
        with Client(program) as client:  # which waits in the queue
            assert client.ask().startswith("one ")
        stop(program)
    assert [line.split()[0] for line in log_of(tmp_path)] == ["start", "start", "stop"]


SCRIPT = """
if __name__ == "__main__":
    import multiprocessing
    multiprocessing.set_start_method({method!r})
    netkit.serve(say, 0, "127.0.0.1", workers=2, on_start=start, on_stop=stop)
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_workers_of_a_program_call_its_hooks(method: str, tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(APP + HOOKS + SCRIPT.format(method=method))
    with Program(sys.executable, path, cwd=tmp_path) as program:
        program.wait_for_line("2 workers ready")
        with program.connect() as sock:
            send_and_end(sock, b"x\n")
            assert receive_all(sock).startswith(b"one ")
        stop(program)
    assert sorted(line.split()[0] for line in log_of(tmp_path)) == ["start"] * 2 + ["stop"] * 2


# What a parent says about its listeners


@pytest.mark.parametrize(("is_limited", "speaks_tls"), [(True, False), (False, True)])
def test_the_options_of_the_workers_decide_what_a_parent_says_about_its_listeners(
    is_limited: bool, speaks_tls: bool, tmp_path: Path
) -> None:
    (tmp_path / "list").write_text("10.0.0.0/8\n")
    server = netkit.create_server(netkit.EchoHandler, deny=f"@{tmp_path / 'list'}")
    netkit.Workers(server, 1, load=lambda: netkit.EchoHandler)
    with observed(events.Event) as seen:
        server.listen_on("0.0.0.0:0?tls=on", "0.0.0.0:0", f"unix:{tmp_path / 's'}", "127.0.0.1:0")
    assert seen == []
    with contextlib.closing(server):
        first, second, unix, local = map(str, server.addresses)
        news = list(news_of(server, Loaded(1.0, 0.0, is_limited, speaks_tls, 0.0)))
    assert [event for event in news if isinstance(event, events.Listening)] == [
        events.Listening(first, True),
        events.Listening(second, speaks_tls),
        events.Listening(f"unix:{unix}", speaks_tls),
        events.Listening(local, speaks_tls),
    ]
    unlimited = [event.address for event in news if isinstance(event, events.Unlimited)]
    assert unlimited == ([] if is_limited else [first])
    assert isinstance(news[-1], events.ListLoaded)
