"""The command line: its output, its errors, and its servers."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support import (
    PATIENCE,
    ROOT,
    Cli,
    Hostile,
    in_thread,
    logging_put_back,
    needs_ipv6,
    observed,
    receive_all,
    send_and_end,
    wait_until,
    without_time,
)

import netkit
from netkit import __main__ as entry
from netkit.cli import connect, main, serving
from netkit.cli.arguments import EXAMPLES
from netkit.cli.echo import Echo
from netkit.cli.greeter import Greeter
from netkit.cli.logger import Logger
from netkit.cli.serve import Serve
from netkit.core import events
from netkit.core.cores import check_workers
from netkit.core.options import Options
from netkit.process.signals import StopSignals
from netkit.server import log

COMMANDS: dict[str, serving.Command] = {
    command.name: command for command in (Echo(), Greeter(), Logger(), Serve())
}


class Result(NamedTuple):
    status: int | str | None
    out: bytes
    lines: list[str]  # of standard error


Run = Callable[..., Result]
During = Callable[[int], object]


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes]) -> Iterator[Run]:
    """Runs a command in this process. With `during`, which gets the port, and then Ctrl+C.

    The lines are as on a terminal, where they have no time.
    """
    handlers = {signum: signal.getsignal(signum) for signum in StopSignals.SIGNALS}

    def call(*argv: str, during: During | None = None, stop: bool = True) -> Result:
        def act() -> None:
            wait_until(lambda: seen, "listening")
            try:
                if during:
                    during(int(seen[0].address.rpartition(":")[2]))
            finally:
                if stop:
                    os.kill(os.getpid(), signal.SIGINT)

        status: int | str | None
        with contextlib.ExitStack() as stack:
            stack.enter_context(logging_put_back())
            seen = stack.enter_context(observed(events.Listening))
            if during:
                stack.enter_context(in_thread(act))
            try:
                status = main.main(argv)
            except SystemExit as end:
                status = end.code
        out, err = capfdbinary.readouterr()
        return Result(status, out, [without_time(line) for line in err.decode().splitlines()])

    yield call
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


def ask(port: int, data: bytes, host: str = "127.0.0.1") -> bytes:
    with socket.create_connection((host, port), PATIENCE) as sock:
        send_and_end(sock, data)
        return receive_all(sock)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Writes a module into the current directory, and has it forgotten in the end."""
    names: list[str] = []
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.chdir(tmp_path)

    def write(source: str, name: str = "app") -> Path:
        path = tmp_path / f"{name}.py"
        path.write_text(source)
        names.append(name)
        return path

    yield write
    for name in names:
        sys.modules.pop(name, None)


# Help


def test_the_help_lists_the_commands_and_shows_examples(run: Run) -> None:
    status, out, lines = run("--help")
    assert (status, lines) == (0, [])
    text = out.decode()
    for command in ("echo", "logger", "greeter", "serve"):
        assert re.search(rf"^ +{command} +\w", text, re.MULTILINE)
        assert f"\n  netkit {command} " in text
    assert "Ctrl+C stops a server gracefully" in text


@pytest.mark.parametrize("command", ["echo", "logger", "greeter", "serve"])
def test_the_help_of_a_command_has_every_option_and_examples(command: str, run: Run) -> None:
    status, out, _ = run(command, "--help")
    assert status == 0
    text = out.decode()
    for option in Options.rows:
        assert (f"--{option.replace('_', '-')} " in text) == (option not in ("handler_args", "tls"))
    for flag in ("--host HOST", "--log-level debug|info|", "--log-format text|json", "PORT"):
        assert flag in text
    assert "examples:\n  netkit" in text
    for title in ("where", "time", "limits", "TLS", "logging"):
        assert f"\n{title}:\n" in text
    assert "Documentation: README.md and docs/" in text
    assert ("--workers N|auto " in text) == (command != "logger")
    assert "None" not in text
    assert "True" not in text


def test_the_examples_of_the_help_are_commands_that_it_understands() -> None:
    examples = re.findall(r"^  netkit (.*?)  ", EXAMPLES, re.MULTILINE)
    assert len(examples) == 6
    for example in examples:
        name, *rest = shlex.split(example)
        if name == "connect":
            connect.parser().read(rest)
        else:
            command = COMMANDS[name]
            arguments, words = command.parser().read(rest)
            command.understand(arguments, words)
            assert arguments.addresses


@pytest.mark.parametrize("argv", ["--version", "-V", "version"])
def test_the_version_is_that_of_the_package(argv: str, run: Run) -> None:
    assert run(argv) == (0, f"netkit {netkit.__version__}\n".encode(), [])


@pytest.mark.parametrize("argv", ["", "help", "-h", "help help"])
def test_without_a_command_the_help_is_shown(argv: str, run: Run) -> None:
    assert run(*argv.split()) == run("--help")


def test_help_with_a_command_is_the_help_of_the_command(run: Run) -> None:
    assert run("help", "serve") == run("serve", "--help")
    assert run("help", "connect") == run("connect", "-h")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_help_that_cannot_be_written_is_a_failure(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert run("--help") == (
            1,
            b"",
            ["netkit: error: cannot write to standard output: no space left on device"],
        )
        main.drop_unwritten()
    monkeypatch.setattr(sys, "stdout", None)
    assert run("-V") == (1, b"", ["netkit: error: standard output is closed"])


def test_a_help_into_a_closed_pipe_ends_quietly(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert run("echo", "--help") == (128 + signal.SIGPIPE, b"", [])
        main.drop_unwritten()


# Errors: one line each


def taken() -> contextlib.AbstractContextManager[socket.socket]:
    return socket.create_server(("127.0.0.1", 0))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            "frob",
            "netkit: error: there is no command 'frob'; "
            "the commands are echo, logger, greeter, serve, connect",
        ),
        ("help sevre", "netkit: error: there is no command 'sevre'; did you mean serve[?]"),
        ("sevre", "netkit: error: there is no command 'sevre'; did you mean serve[?]"),
        (
            "--log-level debug echo",
            "netkit: error: options follow a command, such as echo, "
            "and '--log-level' is not a command",
        ),
        *(
            (
                f"echo {port}",
                f"netkit echo: error: port must be a number from 0 to 65535, not {shown}",
            )
            for port, shown in (("-1", "'-1'"), ("65536", "65536"), ("x:abc", "'abc'"))
        ),
        (
            "echo abc",
            "netkit echo: error: 'abc' has no port: write HOST:PORT, HOST PORT, or PORT alone",
        ),
        (
            "echo --port 80",
            "netkit echo: error: there is no option --port: "
            "write the port alone, as in netkit echo 8080",
        ),
        (
            "echo 1 ::1:80",
            "netkit echo: error: an IPv6 address needs brackets: "
            r"'\[::1\]:8080', not '::1:80'",
        ),
        *(
            (f"echo {argv}", f"netkit echo: error: argument {message}")
            for argv, message in (
                ("--drain-timeout -1", "--drain-timeout: it must be 0 or more seconds, not -1.0"),
                (
                    "--drain-timeout inf",
                    "--drain-timeout: it must be a time such as 30, 500ms, 5m or 2h, not 'inf'",
                ),
                (
                    "--drain-timeout x",
                    "--drain-timeout: it must be a time such as 30, 500ms, 5m or 2h, not 'x'",
                ),
                (
                    "--lifetime 5d",
                    "--lifetime: it must be a time such as 30, 500ms, 5m or 2h or 'off', not '5d'",
                ),
                (
                    "--drain-timeout off",
                    "--drain-timeout: it must be a time such as 30, 500ms, 5m or 2h, not 'off'",
                ),
                ("--idle-timeout 0", "--idle-timeout: it must be more than 0 seconds, not 0.0"),
                ("--profile private", "--profile: it must be 'public', not 'private'"),
                ("--max-line 0", "--max-line: it must be at least 1 byte, not 0"),
                ("--max-line 1.5", "--max-line: it must be a number of bytes, not '1.5'"),
                ("--max-message 0", "--max-message: it must be at least 1 byte, not 0"),
                (
                    "--max-message on",
                    "--max-message: it must be a number of bytes or 'off', not 'on'",
                ),
                ("--encoding nope", "--encoding: unknown encoding 'nope'"),
                (
                    "--encoding utf9",
                    "--encoding: unknown encoding 'utf9'; did you mean 'utf8', 'utf-8'[?]",
                ),
                ("--no-delay maybe", "--no-delay: it must be on or off, not 'maybe'"),
                (
                    "--log-level loud",
                    "--log-level: it must be debug, info, warning, error, not 'loud'",
                ),
                *(
                    (f"--workers {n}", f"--workers: workers must be from 1 to 1024, not {n}")
                    for n in (0, -1, 5000)
                ),
                *(
                    (
                        f"--workers {word}",
                        "--workers: workers must be a number of processes, or 'auto', "
                        f"not '{re.escape(word)}'",
                    )
                    for word in ("many", "1.5", "True", "+4", "²", "Auto")
                ),
                ("--workers", "--workers: expected one argument"),
            )
        ),
        (
            "logger --hex --raw",
            "netkit logger: error: argument --raw: not allowed with argument --hex",
        ),
        ("logger 0 --workers 2", "netkit logger: error: unknown option --workers"),
        (
            "echo --idle 5",
            "netkit echo: error: unknown option --idle; did you mean --idle-timeout[?]",
        ),
        (
            "echo --tls=x",
            "netkit echo: error: unknown option --tls; did you mean --tls-alpn or --tls-cert "
            "or --tls-client-ca[?]",
        ),
        ("echo --tls-key x", "netkit echo: error: --tls-key needs --tls-cert"),
        ("echo --starttls on", "netkit echo: error: --starttls needs --tls-cert"),
        (
            "echo --tls-self-signed --tls-cert x",
            "netkit echo: error: argument --tls-cert: not allowed with argument --tls-self-signed",
        ),
        (
            "echo --host '*' unix:/tmp/x localhost:80",
            "netkit echo: error: --host has no effect: each address names its own",
        ),
        (
            "echo --when-full refuse",
            "netkit echo: error: --when-full has no effect without --max-connections",
        ),
        *(
            (
                f"logger --max-line 80 {style}",
                f"netkit logger: error: --max-line has no effect with {style}, "
                "which reads no lines",
            )
            for style in ("--hex", "--raw")
        ),
        *(
            (
                f"{words} 80",
                f"netkit {words.split()[0]}: error: {words.split()[1]} has no effect: {why}",
            )
            for words, why in (
                ("echo --max-line", "echo reads neither lines nor messages"),
                ("echo --max-message", "echo reads neither lines nor messages"),
                ("greeter --read-timeout", "greeter reads nothing"),
                ("logger --max-message", "logger reads no messages"),
            )
        ),
        (
            "echo --refusal busy --max-connections off",
            "netkit echo: error: --refusal has no effect without --max-connections, "
            "--max-connections-per-ip, --max-connection-rate, --allow or --deny",
        ),
        (
            "greeter --greeting é --encoding koi8-r",
            "netkit greeter: error: --greeting cannot be written in koi8-r: 'é'",
        ),
        (
            "echo --handshake-timeout 5",
            "netkit echo: error: --handshake-timeout has no effect without --tls-cert",
        ),
        (
            "serve",
            "netkit serve: error: a handler is needed: MODULE:NAME, such as app:Shout",
        ),
        *(
            (
                f"serve {name}",
                "netkit serve: error: a handler is named MODULE:NAME, without .py: "
                f"{better}, not '{name}'",
            )
            for name, better in (
                ("app.py:Shout", "app:Shout"),
                ("./app.py:Shout.x", "app:Shout.x"),
                ("pack/app.py", "pack.app:NAME"),
            )
        ),
        *(
            (
                f"serve {name}",
                "netkit serve: error: a handler is named MODULE:NAME, such as app:Shout, "
                f"not '{name}'",
            )
            for name in ("app", "app:", ":Shout", "app:Shout:x", "../app:Shout", "app.:x")
        ),
        (
            "serve json:__name__",
            "netkit serve: error: a handler must be a class or a function, not 'json'",
        ),
    ],
)
def test_wrong_use_is_an_error_of_one_line(argv: str, message: str, run: Run) -> None:
    status, out, lines = run(*shlex.split(argv))
    assert (status, out, len(lines)) == (2, b"", 1)
    assert re.fullmatch(message + r" \(see netkit( \w+)? --help\)", lines[0])


@pytest.mark.parametrize("pid", [None, "ours"])
def test_sockets_from_systemd_must_be_named(
    pid: str | None, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LISTEN_FDS", "1")
    if pid:
        monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    line = "systemd has passed sockets (LISTEN_FDS=1): name them, as fd:3"
    assert run("echo", "0").lines == [f"netkit echo: error: {line} (see netkit echo --help)"]
    status, _, lines = run("echo", "fd:99")
    assert status == 1
    assert "EBADF" in lines[0]
    monkeypatch.setenv("LISTEN_PID", str(os.getppid()))  # they were passed to another process
    assert run("echo", during=lambda port: ask(port, b"")).status == 0


def test_a_handler_that_cannot_be_called_is_refused(module: Any, run: Run) -> None:
    module("def handler(*, key): pass")
    status, _, lines = run("serve", "app:handler")
    assert (status, len(lines)) == (2, 1)
    assert lines[0].startswith("netkit serve: error: handler(key) cannot serve a client: ")


def test_a_host_that_does_not_resolve_is_named(run: Run) -> None:
    status, out, lines = run("echo", "8080", "--host", "no.such.host.invalid")
    assert (status, out, len(lines)) == (1, b"", 1)
    assert re.fullmatch(
        r"netkit: error: cannot listen on no\.such\.host\.invalid:8080: .* \(ENOTFOUND\)", lines[0]
    )


def test_an_address_of_another_machine_is_named(run: Run) -> None:
    assert run("echo", "8080", "--host", "192.0.2.1") == (
        1,
        b"",
        [
            "netkit: error: cannot listen on 192.0.2.1:8080: this machine does not have this "
            "address (EADDRNOTAVAIL)"
        ],
    )


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


def test_no_port_is_suggested_where_there_is_none(run: Run, monkeypatch: Any) -> None:
    monkeypatch.setattr(serving, "_SUGGESTED_PORTS", 0)
    with taken() as sock:
        port = sock.getsockname()[1]
        assert run("echo", str(port)).lines == [
            f"netkit: error: port {port} of 127.0.0.1 is in use: try another one, or leave it out"
        ]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (".", "is a directory"),
        ("no/such", "no such file or directory"),
        ("", "no such file or directory"),
    ],
)
def test_an_output_that_cannot_be_opened_is_named(
    path: str, reason: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("logger", "--output", path) == (
        1,
        b"",
        [f"netkit: error: cannot write to {path or repr(path)}: {reason}"],
    )


def test_a_closed_standard_output_is_an_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert run("logger").lines == [
        "netkit: error: standard output is closed: name a file with --output"
    ]


# Handlers of the user


def test_a_missing_module_is_named_in_one_line(module: Any, run: Run) -> None:
    status, _, lines = run("serve", "nosuch:Shout")
    assert (status, lines) == (
        1,
        [f"netkit: error: no module named 'nosuch', neither here ({os.getcwd()}) nor installed"],
    )
    assert (
        run("serve", "json.nosuch:Shout")
        .lines[0]
        .startswith("netkit: error: no module named 'json.nosuch', ")
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("app:shuot", "app has no shuot; did you mean shout?"),
        ("app:frobnicate", "app has no frobnicate"),
        ("app:Group.innner", "app has no Group.innner; did you mean inner?"),
    ],
)
def test_the_error_of_a_missing_name_suggests_a_similar_one(
    name: str, message: str, module: Any, run: Run
) -> None:
    module("def shout(conn): pass\nclass Group:\n    def inner(conn): pass\n")
    assert run("serve", name) == (1, b"", [f"netkit: error: {message}"])


def test_a_missing_module_is_named_where_python_fails_to_explain_it(
    module: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> list[str]:
        raise ModuleNotFoundError("No module named 'app.parts'")

    monkeypatch.setattr(traceback, "TracebackException", fail)
    path = module("import app.parts\n")
    status, out, lines = run("serve", "app:Shout")
    assert (status, out) == (1, b"")
    assert lines[:2] == [
        "error: app could not be imported",
        f'  File "{path}", line 1, in <module>',
    ]
    assert lines[-2].startswith("ModuleNotFoundError: No module named 'app.parts'")
    assert lines[-1] == "netkit: error: app could not be imported, see above"


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("def work():\n    1 / 0\n\nwork()\n", "ZeroDivisionError: division by zero"),
        ("import no_such_thing\n", "ModuleNotFoundError: No module named 'no_such_thing'"),
        ("import app.parts\n", "ModuleNotFoundError: No module named 'app.parts'; .*"),
        ("from json import nothing\n", "ImportError: cannot import name 'nothing' .*"),
        ("def (:\n", "SyntaxError: .*"),
    ],
)
def test_a_module_that_fails_shows_its_own_traceback_and_none_of_ours(
    source: str, error: str, module: Any, run: Run
) -> None:
    path = module(source)
    status, out, lines = run("serve", "app:Shout")
    assert (status, out) == (1, b"")
    frames = [line for line in lines if line.startswith("  File ")]
    assert frames[0].startswith(f'  File "{path}", line ')
    assert not any("netkit" in frame or "importlib" in frame for frame in frames)
    assert re.fullmatch(error, lines[-2])
    assert lines[-1] == "netkit: error: app could not be imported, see above"


def test_the_failure_of_a_module_is_json_where_that_is_asked_for(module: Any, run: Run) -> None:
    module("1 / 0")
    status, _, lines = run("serve", "app:Shout", "--log-format", "json")
    first, last = map(json.loads, lines)
    assert (status, first["error_type"]) == (1, "ZeroDivisionError")
    assert first["traceback"].startswith("Traceback")
    assert last["message"] == "app could not be imported, see above"


def test_a_module_may_end_the_program(module: Any, run: Run) -> None:
    module("raise SystemExit('not today')")
    assert run("serve", "app:Shout").status == "not today"


HANDLERS = """
import socketserver
import netkit

def function(conn):
    conn.end(conn.read().upper())

class Class(netkit.Handler):
    def received(self, data):
        self.conn.write(data.upper())

class Old(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.read().upper())

class Group:
    inner = function
"""


@pytest.mark.parametrize("name", ["function", "Class", "Old", "Group.inner"])
def test_serve_runs_a_handler_of_the_current_directory(name: str, module: Any, run: Run) -> None:
    module(HANDLERS)
    replies: list[bytes] = []
    result = run("serve", f"app:{name}", during=lambda port: replies.append(ask(port, b"hello")))
    assert (result.status, replies) == (0, [b"HELLO"])


def test_an_installed_command_finds_the_module_in_the_current_directory(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "netkit"
    script.write_text("import sys\nfrom netkit.__main__ import run\nsys.exit(run())\n")
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "app.py").write_text(HANDLERS)
    with subprocess.Popen(
        [sys.executable, str(script), "serve", "app:function"],
        stderr=subprocess.PIPE,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
    ) as process:
        try:
            assert process.stderr
            line = process.stderr.readline()
            assert "listening on 127.0.0.1:" in line, line
            assert ask(int(line.rpartition(":")[2]), b"hello") == b"HELLO"
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()


INSTALLED = """
import multiprocessing, sys
from netkit.__main__ import run
if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    sys.exit(run())
"""
needs_safe_path = pytest.mark.skipif(sys.version_info < (3, 11), reason="no -P before Python 3.11")


@needs_safe_path
@pytest.mark.parametrize("safe_path", [None, "yes"])
def test_spawned_workers_import_the_handler_alone_from_the_current_directory(
    safe_path: str | None, tmp_path: Path
) -> None:
    """And the programs that a handler starts have the environment that netkit was started with."""
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "netkit"
    command.write_text(INSTALLED)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    hostile = Hostile(folder)
    (folder / "app.py").write_text(
        "import os\ndef show(conn): conn.end(os.environ.get('PYTHONSAFEPATH', 'unset'))\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    if safe_path is not None:
        environment["PYTHONSAFEPATH"] = safe_path
    arguments = ["serve", "app:show", "--workers", "2", "--log-format", "json"]
    with subprocess.Popen(
        [sys.executable, str(command), *arguments],
        stderr=subprocess.PIPE,
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT)},
        text=True,
    ) as process:
        try:
            assert process.stderr
            line = process.stderr.readline()
            port = int(json.loads(line)["address"].rpartition(":")[2])
            assert ask(port, b"") == (safe_path or "unset").encode()
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
            process.stderr.read()
        finally:
            process.kill()
    assert hostile.imported() == []


def test_a_module_with_the_name_of_one_of_pythons_is_explained(module: Any, run: Run) -> None:
    module(HANDLERS, "queue")
    assert run("serve", "queue:function").lines == [
        "netkit: error: queue has no function: it is Python's own module queue; "
        "give queue.py here another name"
    ]


def test_an_installed_module_does_not_hide_one_of_the_current_directory(
    module: Any, run: Run, tmp_path: Path
) -> None:
    installed = tmp_path / "site-packages"
    installed.mkdir()
    (installed / "app.py").write_text("raise AssertionError('the installed one')")
    sys.path.append(str(installed))
    module(HANDLERS)
    assert run("serve", "app:function", during=lambda port: ask(port, b"")).status == 0


def test_a_current_directory_that_is_gone_is_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert run("serve", "app:Shout") == (
        1,
        b"",
        [
            "netkit: error: cannot look for the handler in the current folder: "
            "no such file or directory"
        ],
    )


def test_the_entry_point_leaves_a_ctrl_c_handler_alone_that_is_not_pythons(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as that of a program which runs netkit as a part of itself, or of `nohup`."""
    monkeypatch.setattr(sys, "argv", ["netkit", "--version"])
    for handler, expected in (
        (signal.SIG_IGN, signal.SIG_IGN),
        (signal.default_int_handler, signal.SIG_DFL),
    ):
        signal.signal(signal.SIGINT, handler)
        assert entry.run() == 0
        assert signal.getsignal(signal.SIGINT) is expected


# Servers


def test_echo_listens_on_loopback_says_where_and_sends_everything_back(run: Run) -> None:
    def use(port: int) -> None:
        ports.append(port)
        assert ask(port, bytes(range(256))) == bytes(range(256))

    ports: list[int] = []
    status, out, lines = run("echo", during=use)
    assert (status, out) == (0, b"")
    assert lines[0] == f"listening on 127.0.0.1:{ports[0]}"
    assert re.fullmatch(r"stopped: [01] finished, 0 cut", lines[-1])


def test_a_port_that_is_named_is_the_one(run: Run) -> None:
    with taken() as sock:
        port = sock.getsockname()[1]
    assert run("echo", str(port), during=lambda used: None).lines[0].endswith(f":{port}")


@needs_ipv6
def test_the_host_star_is_reached_by_ipv4_and_ipv6(run: Run) -> None:
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


def send_and_wait(*pieces: bytes) -> During:
    """Sends each piece as a client of its own, which is gone when this returns."""

    def use(port: int) -> None:
        with observed(events.ConnectionClosed) as seen:
            for piece in pieces:
                assert ask(port, piece) == b""
            wait_until(lambda: len(seen) == len(pieces), "the end of the clients")

    return use


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


def test_logger_raw_writes_the_bytes_as_they_are(run: Run) -> None:
    assert run("logger", "--raw", during=send_and_wait(HOSTILE)).out == HOSTILE


def test_logger_hex_writes_a_dump(run: Run) -> None:
    assert run("logger", "--hex", during=send_and_wait(b"GET / HTTP/1.1\r\nx\x1b\n")).out == (
        b"00000000  47 45 54 20 2f 20 48 54 54 50 2f 31 2e 31 0d 0a  |GET / HTTP/1.1..|\n"
        b"00000010  78 1b 0a                                         |x..|\n"
    )


def test_options_set_the_encoding_and_the_longest_line_of_the_logger(run: Run) -> None:
    status, out, lines = run(
        "logger", "--encoding", "latin-1", "--max-line", "5",
        during=send_and_wait(b"caf\xe9\nmuch too long\nend\n"),
    )  # fmt: skip
    assert (status, out) == (0, "café\nend\n".encode())
    assert any(
        line.endswith(": line longer than 5 bytes (max_line); it is skipped") for line in lines
    )


def test_logger_appends_to_a_file(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"before\n")
    status, out, _ = run("logger", "--output", str(path), during=send_and_wait(b"after\n"))
    assert (status, out, path.read_bytes()) == (0, b"", b"before\nafter\n")


needs_dev_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")


@needs_dev_full
@pytest.mark.parametrize("style", [[], ["--hex"], ["--raw"]])
def test_a_full_disk_ends_the_logger_with_one_line(style: list[str], run: Run) -> None:
    status, _, lines = run(
        "logger", "--output", "/dev/full", *style, during=send_and_wait(b"hello\n"), stop=False
    )
    assert (status, lines[-1]) == (
        1,
        "netkit: error: cannot write to /dev/full: no space left on device",
    )
    assert lines[-2].startswith("stopped: ")
    assert sum("error" in line for line in lines) == 1


def test_a_reset_does_not_end_the_logger(run: Run) -> None:
    def reset(port: int) -> None:
        with observed(events.ClientFailed) as seen:
            sock = socket.create_connection(("127.0.0.1", port), PATIENCE)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            sock.close()
            wait_until(lambda: seen, "the report")
        assert ask(port, b"hello\n") == b""

    status, out, lines = run("logger", during=reset)
    assert (status, out) == (0, b"hello\n")
    failures = [line for line in lines if "ConnectionResetError" in line]
    assert len(failures) == 1
    assert re.fullmatch(r"\[\d+\] \S+: .*connection reset by 127\.0\.0\.1:\d+", failures[0])


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
    with (
        open("/dev/full", "wb") as full,
        subprocess.Popen(
            [sys.executable, "-m", "netkit", "logger"],
            stdout=full,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        ) as process,
    ):
        assert process.stderr
        port = int(process.stderr.readline().rpartition(":")[2])
        assert ask(port, b"hello\n") == b""
        lines = process.stderr.read().splitlines()
        assert process.wait(PATIENCE) == 1
    assert lines[-1].endswith("cannot write to standard output: no space left on device")
    assert not any("Exception" in line or "Traceback" in line for line in lines)


def test_a_server_goes_on_without_a_reader_of_its_reports() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "netkit", "echo", "--log-level", "debug"],
        stderr=subprocess.PIPE,
        cwd=ROOT,
    ) as process:
        assert process.stderr
        port = int(process.stderr.readline().rpartition(b":")[2])
        process.stderr.close()
        for _ in range(3):
            assert ask(port, b"hello") == b"hello"
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) in (0, 120)  # 120: Python could not flush the reports


# Workers (what they do: test_workers)


def handler_in_a_worker(*argv: str) -> tuple[int, Any]:
    """How many workers there are, and what one of them would load."""
    name, *rest = argv
    command = COMMANDS[name]
    arguments, words = command.parser().read(rest)
    command.understand(arguments, words)
    return arguments.workers, serving.load_in_worker(command, arguments)


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
    count, handler = handler_in_a_worker("serve", "app:Class", "--workers", "auto")
    assert count == check_workers("auto")
    assert handler is sys.modules["app"].Class


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


def test_json_reports_are_one_object_a_line(run: Run) -> None:
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
    status, _, lines = run("echo", "--tls-cert", "/none", "--log-format", "json")
    (record,) = map(json.loads, lines)
    assert (status, record["level"]) == (1, "error")
    assert record["message"] == "the certificate file '/none': No such file or directory"


def test_the_log_level_is_the_least_that_is_reported(run: Run) -> None:
    assert run("echo", "--log-level", "warning", during=send_and_wait()).lines == []
    lines = run("echo", "--log-level", "debug", during=lambda port: ask(port, b"x")).lines
    assert any(line.endswith("1 byte received, 1 byte sent") for line in lines)


@pytest.mark.parametrize("value", ["on", "off"])
def test_switches_reach_the_connections(value: str, module: Any, run: Run) -> None:
    module(
        "import socket\n"
        "def show(conn):\n"
        "    on = conn.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)\n"
        "    conn.write('on' if on else 'off')\n"
    )
    replies: list[bytes] = []
    run(
        "serve", "app:show", "--no-delay", value,
        during=lambda port: replies.append(ask(port, b"")),
    )  # fmt: skip
    assert replies == [value.encode()]


# Start-up


def seconds_until_a_line(*command: str) -> float:
    quick = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COVERAGE"))}
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-u", "-m", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=ROOT,
        env=quick,
    ) as process:
        assert process.stdout
        line = process.stdout.readline()
        seconds = time.perf_counter() - start
        process.kill()
    assert b" on " in line, line
    return seconds


def test_it_listens_nearly_as_soon_as_the_http_server_of_python(
    record_property: Callable[[str, object], None],
) -> None:
    pairs = [
        (
            seconds_until_a_line("netkit", "echo"),
            seconds_until_a_line("http.server", "0", "--bind", "127.0.0.1"),
        )
        for _ in range(7)
    ]
    ours, theirs = (statistics.median(times) for times in zip(*pairs, strict=True))
    record_property("ratio", round(ours / theirs, 2))
    print(f"start to listening: {ours:.3f} s, http.server {theirs:.3f} s: {ours / theirs:.2f}")
    assert ours < 5 * theirs


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize(("arguments", "status"), [(["--nonsense"], 2), (["echo", "fd:99"], 1)])
def test_a_standard_error_that_takes_nothing_does_not_change_the_exit_status(
    arguments: list[str], status: int
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONUNBUFFERED", None)
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "netkit", *arguments]
        assert subprocess.run(command, stderr=full, env=environment).returncode == status


def test_the_logger_waits_where_its_output_takes_no_more_at_present() -> None:
    """Another process may have made the pipe non-blocking."""
    line = b"x" * 1000 + b"\n"
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    command = [sys.executable, "-m", "netkit", "logger", "0"]
    with (
        open(reading, "rb") as pipe,
        subprocess.Popen(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE) as process,
    ):
        os.close(writing)
        try:
            assert process.stderr
            port = int(process.stderr.readline().rsplit(b":", 1)[1])
            with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as sock:
                with in_thread(sock.sendall, line * 200):
                    assert b"".join(pipe.readline() for _ in range(200)) == line * 200
        finally:
            process.terminate()
            process.stderr.close()
        assert process.wait(PATIENCE) == 0
