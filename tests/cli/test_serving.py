"""The commands that serve: where they listen, their workers and their logs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from support import PATIENCE, logging_put_back, needs_ipv6, receive_all, without_time

import netkit
from netkit.cli import serving
from netkit.core import events
from netkit.core.cores import check_workers
from netkit.process.application import to_be_loaded
from netkit.server import log

from .commands import COMMANDS, HANDLERS, Run, ask, send_and_wait, started, taken


@pytest.mark.parametrize("pid", [None, "ours"])
def test_sockets_from_systemd_must_be_named(
    pid: str | None, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LISTEN_FDS", "1")
    if pid:
        monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    line = "systemd has passed sockets (LISTEN_FDS=1): name them, as systemd:"
    assert run("echo", "0").lines == [f"netkit echo: error: {line} (see netkit echo --help)"]
    status, _, lines = run("echo", "fd:99")
    assert status == 1
    assert "EBADF" in lines[0]
    monkeypatch.setenv("LISTEN_PID", str(os.getppid()))  # they were passed to another process
    assert run("echo", during=lambda port: ask(port, b"")).status == 0


@pytest.mark.parametrize(
    ("host", "error"),
    [
        ("no.such.host.invalid", ".* [(]ENOTFOUND[)]"),
        ("192.0.2.1", "this machine does not have this address [(]EADDRNOTAVAIL[)]"),
    ],
)
def test_a_host_on_which_it_cannot_listen_is_named(host: str, error: str, run: Run) -> None:
    status, out, (line,) = run("echo", "8080", "--host", host)
    assert (status, out) == (1, b"")
    assert re.fullmatch(f"netkit: error: cannot listen on {host}:8080: {error}", line)


def test_no_address_is_reported_as_listening_before_all_are_bound(run: Run) -> None:
    with taken() as sock:
        port = sock.getsockname()[1]
        status, _, lines = run("echo", "0", str(port))
    assert (status, len(lines)) == (1, 1)
    assert re.fullmatch(IN_USE, lines[0])


IN_USE = r"netkit: error: port (\d+)(.*) is in use: try another one, such as (\d+), or leave it out"


@pytest.mark.parametrize("host", ["127.0.0.1", "*", ""])
def test_a_port_in_use_is_named_and_another_one_suggested(host: str, run: Run) -> None:
    with taken() as sock:
        port = sock.getsockname()[1]
        status, _, lines = run("echo", str(port), "--host", host)
    assert (status, len(lines)) == (1, 1)
    match = re.fullmatch(IN_USE, lines[0])
    assert match
    assert (int(match[1]), match[2]) == (port, " of 127.0.0.1" if host == "127.0.0.1" else "")
    with socket.create_server(("127.0.0.1", int(match[3]))):
        pass


def test_a_port_that_is_suggested_is_free_on_the_very_host(run: Run) -> None:
    while True:
        with taken() as sock, contextlib.suppress(OSError):
            port = sock.getsockname()[1]
            with socket.create_server(("127.0.0.1", port + 1)):
                match = re.fullmatch(IN_USE, run("echo", str(port)).lines[0])
                break
    assert match
    assert int(match[3]) > port + 1


def test_no_port_is_suggested_after_the_last_one(run: Run) -> None:
    with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", 65535)):
        assert run("echo", "65535").lines == [
            "netkit: error: port 65535 of 127.0.0.1 is in use: try another one, or leave it out"
        ]


def test_echo_listens_on_loopback_logs_the_address_and_sends_everything_back(run: Run) -> None:
    def use(port: int) -> None:
        ports.append(port)
        assert ask(port, bytes(range(256))) == bytes(range(256))

    with taken() as sock:
        named = sock.getsockname()[1]
    for words in ([], [str(named)]):
        ports: list[int] = []
        status, out, lines = run("echo", *words, during=use)
        assert (status, out) == (0, b"")
        assert lines[0] == f"listening on 127.0.0.1:{ports[0]}"
        assert re.fullmatch(r"stopped: [01] finished, 0 cut", lines[-1])
    assert ports == [named]


@needs_ipv6
def test_a_server_on_the_host_star_is_reached_by_ipv4_and_ipv6(run: Run) -> None:
    def use(port: int) -> None:
        assert ask(port, b"four", "127.0.0.1") == b"four"
        assert ask(port, b"six", "::1") == b"six"

    result = run("echo", "--host", "*", during=use)
    assert result.lines[0].startswith("listening on [::]:")


@pytest.mark.parametrize(
    ("options", "greeting"),
    [
        ([], "Hello, {address}:{port}!\nThis is netkit.\nGoodbye.\n"),
        (["--greeting", "hi"], "hi\n"),
        (["--greeting", "one\ntwo\n"], "one\ntwo\n"),
        (["--greeting", "{port} {} {x} {address}"], "{port} {} {x} {address}\n"),
        (["--greeting", "grüß dich", "--encoding", "latin-1"], "grüß dich\n"),
    ],
)
def test_greeter_greets_and_ends(options: list[str], greeting: str, run: Run) -> None:
    def use(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
            address, own = sock.getsockname()
            expected = greeting.replace("{address}", address).replace("{port}", str(own))
            encoding = options[3] if len(options) > 2 else "utf-8"
            assert receive_all(sock) == expected.encode(encoding)

    assert run("greeter", *options, during=use).status == 0


def test_a_server_goes_on_without_a_reader_of_its_reports() -> None:
    with started("-m", "netkit", "echo", "--log-level", "debug") as (process, port):
        process.stderr.close()
        for _ in range(3):
            assert ask(port, b"hello") == b"hello"
        process.terminate()
        assert process.wait(PATIENCE) in (0, 120)  # 120: Python could not flush the reports


# Workers


def handler_in_a_worker(*argv: str) -> tuple[int, Any]:
    """How many workers there are, and what one of them would load."""
    name, *rest = argv
    command = COMMANDS[name]
    arguments, words = command.parser().read(rest)
    command.understand(arguments, words)
    return arguments.workers, serving.load_in_worker(command, arguments, None)


def test_one_process_serves_unless_more_are_asked_for(run: Run) -> None:
    pids: list[bytes] = []
    lines = run("echo", "--workers", "1", during=lambda port: pids.append(ask(port, b"x"))).lines
    assert pids == [b"x"]
    assert not any("workers" in line for line in lines)


@pytest.fixture
def unconfigured() -> Iterator[None]:
    """As in a process that has not been forked from one that writes reports."""
    with logging_put_back():
        yield


@pytest.mark.usefixtures("unconfigured")
def test_workers_load_the_handler_of_the_command(module: Any) -> None:
    module(HANDLERS)
    assert handler_in_a_worker("echo", "--workers", "3") == (3, netkit.EchoHandler)
    assert handler_in_a_worker("greeter", "--workers", "1") == (1, netkit.GreeterHandler)
    count, application = handler_in_a_worker("serve", "app:Class", "--workers", "auto")
    assert count == check_workers("auto")
    server = application.complete(netkit.create_server(to_be_loaded))
    assert server.RequestHandlerClass is sys.modules["app"].Class


@pytest.mark.usefixtures("unconfigured")
@pytest.mark.parametrize("style", ["text", "json"])
def test_a_worker_that_was_not_forked_writes_reports_in_the_chosen_form(
    style: str, capfd: pytest.CaptureFixture[str]
) -> None:
    handler_in_a_worker("echo", "--log-level", "warning", "--log-format", style)
    handler_in_a_worker("echo", "--log-level", "warning", "--log-format", style)
    log.write(events.Stopped(1, 0))
    log.write(events.AcceptResumed(1.0))
    (line,) = capfd.readouterr().err.splitlines()
    good = "{" if style == "json" else "warning: accepting clients again"
    assert without_time(line).startswith(good)


# Logs


def test_each_json_record_is_one_line(run: Run) -> None:
    _, _, lines = run("logger", "--log-format", "json", during=send_and_wait(b"hello\n"))
    records = [json.loads(line) for line in lines]
    assert [record["event"] for record in records][:3] == ["Listening", "Report", "Report"]
    assert records[-1]["event"] == "Stopped"
    for record in records:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", record["time"])
        assert record["level"] == "info"
    assert records[0]["message"] == f"listening on {records[0]['address']}"
    assert records[1]["peer"] in records[1]["message"]
    assert records[-1]["cut"] == 0


def test_a_failure_of_a_command_is_json_too(run: Run) -> None:
    status, _, (line,) = run("echo", "--tls-cert", "/none", "--log-format", "json")
    record = json.loads(line)
    text = "the certificate file '/none': No such file or directory"
    assert (status, record["level"], record["message"]) == (1, "error", text)


def test_records_below_the_log_level_are_not_written(run: Run) -> None:
    assert run("echo", "--log-level", "warning", during=send_and_wait()).lines == []
    lines = run("echo", "--log-level", "debug", during=lambda port: ask(port, b"x")).lines
    assert any(line.endswith("1 byte received, 1 byte sent (done)") for line in lines)


@pytest.mark.parametrize("value", ["on", "off"])
def test_switches_reach_the_connections(value: str, module: Any, run: Run) -> None:
    module(
        "import socket\n"
        "def show(conn):\n"
        "    on = conn.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)\n"
        "    conn.write('on' if on else 'off')\n"
    )
    replies: list[bytes] = []
    words = ("serve", "app:show", "--no-delay", value)
    run(*words, during=lambda port: replies.append(ask(port, b"")))
    assert replies == [value.encode()]
