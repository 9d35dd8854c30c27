"""The control socket: what its clients may send, and what they may not do."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import select
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import (
    PATIENCE,
    client,
    echo,
    exchange,
    observed,
    receive_all,
    serving,
    tool,
    wait_until,
)

import netkit
from netkit.core import events
from netkit.ops import control
from netkit.ops.control import Control

from .programs import FakeProgram, Operator


@contextlib.contextmanager
def operated(
    server: netkit.Server, folder: Path, settings: str = ""
) -> Iterator[tuple[FakeProgram, Operator]]:
    """A program with a control socket, and an operator of it."""
    path = folder / "app.ctl"
    endpoint = Control(f"{path}{settings}")
    program = FakeProgram(server)
    endpoint.open()
    with contextlib.closing(endpoint), contextlib.closing(endpoint.serve(program)):
        yield program, Operator(path)


@pytest.mark.parametrize(("settings", "mode"), [("", 0o600), ("?mode=660", 0o660)])
def test_the_file_has_the_mode_and_is_removed_in_the_end(
    tmp_path: Path, settings: str, mode: int
) -> None:
    with serving(echo) as server, operated(server, tmp_path, settings) as (_, operator):
        assert stat.S_IMODE(os.stat(operator.path).st_mode) == mode
        assert operator.ask("status").startswith("netkit ")
    assert not operator.path.exists()


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("8080", "control must be the path of a Unix socket, not '8080'"),
        ("127.0.0.1:8080", "control must be the path of a Unix socket, not '127.0.0.1:8080'"),
        ("@app", "control needs a file, whose mode says who may connect, not '@app'"),
        ("/x?tls=on", "a control socket has no settings but mode and owner: '/x?tls=on'"),
        ("", "a Unix socket must have a path or a name"),
    ],
)
def test_an_address_that_is_no_path_is_refused(address: str, text: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        Control(address)


def test_a_path_that_cannot_be_had_is_an_error_that_names_it(tmp_path: Path) -> None:
    missing = Control(tmp_path / "missing" / "app.ctl")
    with pytest.raises(OSError, match=str(tmp_path)):
        missing.open()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="is not a socket"):
        Control(tmp_path / "file").open()
    missing.close()


def test_the_file_of_a_dead_program_is_replaced_and_that_of_a_live_one_is_not(
    tmp_path: Path,
) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "app.ctl"))
    with serving(echo) as server, operated(server, tmp_path) as (_, operator):
        other = Control(operator.path)
        with pytest.raises(OSError, match="another server listens there"):
            other.open()
        other.close()
        assert operator.ask("status")


def test_netcat_is_enough(tmp_path: Path) -> None:
    import subprocess

    with serving(echo) as server, operated(server, tmp_path) as (_, operator):
        shell = f"echo get max_line | {tool('nc')} -U {operator.path}"
        done = subprocess.run(shell, shell=True, capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout == "max_line 65536\n"


def test_a_command_may_end_with_the_output_of_its_client(tmp_path: Path) -> None:
    with serving(echo) as server, operated(server, tmp_path) as (_, operator):
        with operator.connect() as sock:
            sock.sendall(b"json get max_line")
            sock.shutdown(socket.SHUT_WR)
            assert json.loads(receive_all(sock)) == {"name": "max_line", "value": "65536"}


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"\n", "error: wrong use: no command; help lists the commands\n"),
        (
            b"stats\n",
            "error: wrong use: unknown command 'stats'; did you mean 'status'? help lists the "
            "commands\n",
        ),
        (b"\x1b[2J\n", "error: wrong use: unknown command '\\x1b[2J'; help lists the commands\n"),
        (b"\xff\n", "error: a command is text in UTF-8\n"),
        (b"status now\n", "error: wrong use: unexpected 'now'; usage: status\n"),
        (b"json stats x\n", '{"error": "wrong use: unknown command \'stats\'; did you mean '),
        (bytes(1_000_000), "error: a command has at most 65536 bytes\n"),
        (b"x" * 1_000_000 + b"\n", "error: a command has at most 65536 bytes\n"),
    ],
)
def test_a_wrong_command_is_answered_with_what_to_write(
    tmp_path: Path, sent: bytes, answer: str
) -> None:
    with serving(echo) as server, operated(server, tmp_path) as (_, operator):
        with operator.connect() as sock:
            sock.sendall(sent)
            assert receive_all(sock).decode().startswith(answer)


@pytest.mark.parametrize("sent", [b"", b"stat"])
def test_a_client_that_sends_no_whole_line_is_told_so_in_the_end(
    tmp_path: Path, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "COMMAND_SECONDS", 0.05)
    with serving(echo) as server, operated(server, tmp_path) as (_, operator):
        with operator.connect() as sock:
            sock.sendall(sent)
            assert receive_all(sock) == b"error: no command within 0.05 seconds\n"


def test_clients_that_send_nothing_or_read_nothing_hinder_neither_others_nor_the_server(
    tmp_path: Path,
) -> None:
    with serving(echo) as server, operated(server, tmp_path) as (_, operator):
        with contextlib.ExitStack() as stack:
            for sent in (b"", b"stat", b"events\n", b"help\n" + bytes(100_000)):
                stack.enter_context(operator.connect()).sendall(sent)
            with client(server) as sock:
                sock.sendall(b"x")
                assert sock.recv(1) == b"x"
                assert len(operator.rows("conns")) == 1


def test_a_client_that_never_reads_is_cut_and_nothing_is_observed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "READER_SECONDS", 0.05)
    with serving(echo) as server, operated(server, tmp_path) as (_, operator), observed() as seen:
        with operator.connect() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            names = " ".join(["get"] + ["max_line"] * 7000)
            sock.sendall(names.encode() + b"\n")
            poller = select.poll()
            poller.register(sock, 0)
            assert poller.poll(PATIENCE * 1000)  # it hangs up
    assert [each for each in seen if each.server is not server] == []


def test_more_operators_than_there_may_be_are_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "MAX_CLIENTS", 1)
    with serving(echo) as server, operated(server, tmp_path) as (_, operator):
        with operator.connect() as first:
            first.sendall(b"events\n")
            wait_until(lambda: "1 operators already" in operator.ask("status"))


def test_a_command_that_changes_something_is_logged_with_who_gave_it(tmp_path: Path) -> None:
    with serving(echo) as server, operated(server, tmp_path) as (_, operator):
        with observed(events.OperatorCommand) as seen:
            operator.ask("status")
            operator.ask("kill 12345")
            operator.ask("kill x")
            operator.ask("set idle_timeout 5")
            operator.ask("workers 3")
    by = f"uid {os.getuid()}, pid {os.getpid()}"
    assert [event.message().replace(f" ({by})", "") for event in seen] == [
        "control: kill 12345: failed: no client has the id 12345",
        "control: set idle_timeout 5",
        "control: workers 3: failed: one process serves, without workers",
    ]
    assert {event.by for event in seen} == {by}


def test_a_system_that_does_not_tell_who_connects_leaves_the_user_unknown() -> None:
    with serving(echo) as served:
        program = FakeProgram(served)
        with serving(lambda conn: control.serve_operator(conn, program)) as server:
            with observed(events.OperatorCommand) as seen:
                assert exchange(server, b"reload") == b"reloading\n"
    assert [event.by for event in seen] == ["an unknown user"]


def test_another_process_can_serve_on_the_listeners(tmp_path: Path) -> None:
    opened = Control(tmp_path / "app.ctl")
    opened.open()
    copies = [each.dup() for each in opened.listeners]
    other = Control(tmp_path / "app.ctl", *copies)
    with serving(echo) as server, contextlib.closing(opened):
        for each in opened.listeners:
            each.close()
        with contextlib.closing(other.serve(FakeProgram(server))):
            assert Operator(tmp_path / "app.ctl").ask("status")
        assert (tmp_path / "app.ctl").exists()  # the process that has made it removes it
    assert not (tmp_path / "app.ctl").exists()
    assert pickle.loads(pickle.dumps(Control("/x"))).listeners == ()
