"""netkit under systemd: sockets from systemd-socket-activate(1), and the units of the examples."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import PATIENCE, ROOT, Program, receive_all, send_and_end, tool

linux = pytest.mark.skipif(sys.platform != "linux", reason="systemd is for Linux")
pytestmark = linux

EXAMPLES = ROOT / "examples"
NETKIT = (sys.executable, "-m", "netkit")


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [sock.getsockname()[1] for sock in socks]


def exchange(port: int, data: bytes = b"hello\n") -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as sock:
        send_and_end(sock, data)
        return receive_all(sock)


@contextlib.contextmanager
def activated(
    ports: list[int], *command: Any, names: str = "", kind: str = ""
) -> Iterator[Program]:
    """Runs a command as systemd does on the first client, which is gone then."""
    options = [f"--listen=127.0.0.1:{port}" for port in ports]
    options += [f"--fdname={names}"] * bool(names) + [kind] * bool(kind)
    options += [f"--setenv={name}" for name in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")]
    activate = tool("systemd-socket-activate")
    with Program(activate, *options, *command, listening=False) as program:
        program.wait_for_line("Listening on")
        protocol = socket.SOCK_DGRAM if kind else socket.SOCK_STREAM
        with socket.socket(type=protocol) as first:
            first.connect(("127.0.0.1", ports[0]))
            first.send(b"first\n")
            yield program


def ends_with(program: Program, text: str) -> None:
    assert program.wait() == 1
    *_, line = program.lines
    assert re.fullmatch(f"netkit: error: {text}", line), line


@pytest.fixture
def app(tmp_path: Path) -> list[str]:
    """A command whose handler answers with what it, and a program of its own, see of systemd."""
    source = """
import os, subprocess

SEES = "env | grep -cE '^(LISTEN|NOTIFY|WATCHDOG)_'; ls -l /dev/fd/ | grep -c socket:"

def app(conn):
    with subprocess.Popen(["sh", "-c", SEES], stdout=-1) as program:
        variables = [name for name in os.environ if name.startswith("LISTEN_")]
        conn.write(f"{variables} {program.stdout.read()}")
"""
    (tmp_path / "app.py").write_text(source)
    return ["sh", "-c", f'cd {tmp_path}; exec "$@"', "sh", *NETKIT, "serve", "app:app"]


SEES_NOTHING = "[] b'0\\n0\\n'"


@pytest.mark.parametrize("workers", [[], ["--workers", "2"]])
def test_a_server_takes_all_sockets_and_its_programs_see_none(
    workers: list[str], app: list[str]
) -> None:
    ports = free_ports(2)
    with activated(ports, *app, "systemd:", *workers) as program:
        assert [exchange(port).decode() for port in ports] == [SEES_NOTHING] * 2
        program.send_signal(signal.SIGTERM)
        assert program.wait() == 0


def test_names_tell_the_sockets_apart(app: list[str]) -> None:
    ports = free_ports(3)
    with activated(ports, *app, "systemd:web", names="other:web:web") as program:
        assert exchange(ports[1]) == exchange(ports[2]) == SEES_NOTHING.encode()
        program.wait_for_line(f"listening on 127.0.0.1:{ports[1]}")
        assert not any(f":{ports[0]}" in line for line in program.lines[-3:])


SCRIPT = """
import multiprocessing, os, sys
import netkit

def left(conn):
    conn.write(f"left {[name for name in os.environ if name.startswith('LISTEN_')]}")

def right(conn):
    conn.write("right")

if __name__ == "__main__":
    if sys.argv[1] == "spawn":
        multiprocessing.set_start_method("spawn")
        server = netkit.create_server(left).listen_on("systemd:left", "systemd:right")
        netkit.run(server, workers=2)
    else:
        server = netkit.create_server(left).listen_on("systemd:left")
        netkit.run(server, netkit.create_server(right).listen_on("systemd:right"))
"""


@pytest.mark.parametrize(
    ("kind", "answers"), [("spawn", [b"left []", b"left []"]), ("two", [b"left []", b"right"])]
)
def test_spawned_workers_and_several_servers_have_the_sockets(
    kind: str, answers: list[bytes], tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    ports = free_ports(2)
    with activated(ports, sys.executable, script, kind, names="left:right") as program:
        assert [exchange(port) for port in ports] == answers
        program.send_signal(signal.SIGTERM)
        assert program.wait() == 0


def test_an_unknown_name_is_an_error_that_lists_the_known_ones(app: list[str]) -> None:
    with activated(free_ports(2), *app, "systemd:web", names="http:admin") as program:
        ends_with(program, "systemd:web: LISTEN_FDNAMES has only 'http', 'admin'")


def test_a_script_must_begin_its_last_line_with_exec() -> None:
    script = f"{' '.join(NETKIT)} echo systemd:; exit $?"
    with activated(free_ports(1), "sh", "-c", script) as program:
        text = r"LISTEN_PID is \d+ and this is \d+: "
        ends_with(program, text + "begin the last line of the script that starts netkit with exec")


def test_a_socket_for_datagrams_is_refused() -> None:
    with activated(free_ports(1), *NETKIT, "echo", "systemd:", kind="--datagram") as program:
        ends_with(program, "descriptor 3 is a datagram socket")


def test_without_systemd_the_error_says_that_nothing_was_passed() -> None:
    with Program(*NETKIT, "echo", "systemd:", listening=False) as program:
        ends_with(program, "systemd has passed no sockets: LISTEN_FDS is not set")


# The units of the examples


def units(folder: Path) -> tuple[Path, Path]:
    """The units in `examples/`, as they are installed with the systemd of this machine."""
    analyze = tool("systemd-analyze")
    version = int(subprocess.check_output([analyze, "--version"], text=True).split()[1])
    service = (EXAMPLES / "netkit.service").read_text()
    service = service.replace("/opt/shout/bin/python", sys.executable)
    if version < 253:  # as the comment in the unit says
        service = service.replace("Type=notify-reload", "#").replace("\n#Type", "\nType")
        service = service.replace("\n#ExecReload", "\nExecReload")
    (folder / "netkit.service").write_text(service)
    (folder / "netkit.socket").write_text((EXAMPLES / "netkit.socket").read_text())
    return folder / "netkit.service", folder / "netkit.socket"


def values(unit: Path, key: str) -> list[str]:
    """The values of a setting of a unit."""
    return re.findall(f"^{key}=(.*)$", unit.read_text(), re.MULTILINE)


@pytest.mark.parametrize("number", [0, 1])
def test_systemd_finds_no_fault_in_the_units(number: int, tmp_path: Path) -> None:
    verify = [tool("systemd-analyze"), "verify", str(units(tmp_path)[number])]
    done = subprocess.run(verify, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_the_units_start_a_server(tmp_path: Path) -> None:
    service, sockets = units(tmp_path)
    source = "import netkit\nclass Shout(netkit.EchoHandler):\n    pass\n"
    (tmp_path / "app.py").write_text(source)
    (command,) = values(service, "ExecStart")
    (name,) = values(sockets, "FileDescriptorName")
    variables = " ".join(values(service, "Environment"))
    command = command.replace("/run/netkit", str(tmp_path))
    script = f"cd {tmp_path}; {variables} exec {command}"
    ports = free_ports(1)
    with activated(ports, "sh", "-c", script, names=name) as program:
        program.wait_for_line("workers? ready")
        assert exchange(ports[0]) == b"hello\n"
        program.send_signal(signal.SIGTERM)
        assert program.wait() == 0
