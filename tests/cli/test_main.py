"""The command line as a whole: help, errors, the entry point and the start."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from support import ROOT

import netkit
from netkit import __main__ as entry
from netkit.cli import main
from netkit.cli.arguments import EXAMPLES
from netkit.core.options import Options

from .commands import COMMANDS, Run

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
    for option, row in Options.rows.items():
        assert (f"--{option.replace('_', '-')} " in text) == (row.kind.parse is not None)
    for flag in ("--host HOST", "--log-level debug|info|", "--log-format text|json", "PORT"):
        assert flag in text
    assert "examples:\n  netkit" in text
    for title in ("where", "time", "limits", "TLS", "logging"):
        assert f"\n{title}:\n" in text
    assert "Documentation: README.md and docs/" in text
    assert "--workers N|auto " in text
    assert "None" not in text
    assert "True" not in text


def test_the_examples_of_the_help_are_commands_that_it_understands() -> None:
    examples = re.findall(r"^  netkit (.*?)  ", EXAMPLES, re.MULTILINE)
    assert len(examples) == 8
    for example in examples:
        name, *rest = shlex.split(example)
        if name in ("connect", "ctl", "top"):
            importlib.import_module(f"netkit.cli.{name}").parser().read(rest)
        else:
            command = COMMANDS[name]
            arguments, words = command.parser().read(rest)
            command.understand(arguments, words)
            assert arguments.addresses


@pytest.mark.parametrize("argv", ["--version", "-V", "version"])
def test_the_version_is_that_of_the_package(argv: str, run: Run) -> None:
    version = f"netkit {netkit.__version__} (gate {'on' if netkit.gate_active() else 'off'})\n"
    assert run(argv) == (0, version.encode(), [])


@pytest.mark.parametrize(
    ("argv", "same"),
    [
        *(("", "--help"), ("help", "--help"), ("-h", "--help"), ("help help", "--help")),
        *(("help serve", "serve --help"), ("help connect", "connect -h")),
    ],
)
def test_the_help_is_shown_in_several_ways(argv: str, same: str, run: Run) -> None:
    assert run(*argv.split()) == run(*same.split())


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

TIME = "it must be a time such as 30, 500ms, 5m or 2h"
NAME = "a handler is named MODULE:NAME"
WRONG = {
    "echo -1": "port must be a number from 0 to 65535, not '-1'",
    "echo x:abc": "port must be a number from 0 to 65535, not 'abc'",
    "echo abc": "'abc' has no port: write HOST:PORT, HOST PORT, or PORT alone",
    "echo --port 80": "there is no option --port: write the port alone, as in netkit echo 8080",
    "echo 1 ::1:80": "an IPv6 address needs brackets: '[::1]:8080', not '::1:80'",
    "echo --drain-timeout -1": "argument --drain-timeout: it must be 0 or more seconds, not -1.0",
    "echo --drain-timeout off": f"argument --drain-timeout: {TIME}, not 'off'",
    "echo --lifetime inf": f"argument --lifetime: {TIME} or 'off', not 'inf'",
    "echo --lifetime 5d": f"argument --lifetime: {TIME} or 'off', not '5d'",
    "echo --idle-timeout 0": "argument --idle-timeout: it must be more than 0 seconds, not 0.0",
    "echo --profile private": "argument --profile: it must be 'public', not 'private'",
    "echo --max-line 0": "argument --max-line: it must be at least 1 byte, not 0",
    "echo --max-line 1.5": "argument --max-line: it must be a number of bytes, not '1.5'",
    "echo --max-message on": (
        "argument --max-message: it must be a number of bytes or 'off', not 'on'"
    ),
    "echo --encoding utf9": (
        "argument --encoding: unknown encoding 'utf9'; did you mean 'utf8', 'utf-8'?"
    ),
    "echo --no-delay maybe": "argument --no-delay: it must be on or off, not 'maybe'",
    "echo --log-level loud": (
        "argument --log-level: it must be one of debug, info, warning, error, not 'loud'"
    ),
    "echo --workers": "argument --workers: expected one argument",
    **{
        f"echo --workers {n}": f"argument --workers: workers must be from 1 to 1024, not {n}"
        for n in (0, -1, 5000)
    },
    **{
        f"echo --workers {text}": (
            f"argument --workers: workers must be a number of processes, or 'auto', not '{text}'"
        )
        for text in ("1.5", "+4", "²", "Auto")
    },
    "logger --hex --raw": "argument --raw: not allowed with argument --hex",
    "logger --prefix --raw": "--prefix has no effect with --raw, which writes no lines",
    "logger --rotate-size 1M": "--rotate-size has no effect without --output",
    "logger --rotate-time daily": "--rotate-time has no effect without --output",
    "logger --access-log -": (
        "--access-log - needs --output: standard output has the lines of the clients"
    ),
    "logger --output x --keep 3": "--keep has no effect without --rotate-size or --rotate-time",
    "logger --rotate-size 1T": (
        "argument --rotate-size: it must be a size such as 500K, 10M or 1G, not '1T'"
    ),
    "logger --rotate-size 0": (
        "argument --rotate-size: it must be a size such as 500K, 10M or 1G, not '0'"
    ),
    "logger --keep 0": "argument --keep: it must be at least 1: the file before the present one",
    "logger --rotate-time noon": (
        "argument --rotate-time: it must be hourly, daily or weekly, not 'noon'"
    ),
    "logger --rotate-time daily --rotate-size 1": (
        "argument --rotate-size: not allowed with argument --rotate-time"
    ),
    "logger --output {peer}/log": (
        "--output may have {peer} in the name of the file, not of its folder"
    ),
    "logger 0 --workers 2": (
        "--workers needs --output: lines of several processes would mix in a pipe"
    ),
    "logger --output x --rotate-size 1 --workers 2": (
        "files of several --workers cannot be rotated here: leave that to logrotate(8)"
    ),
    "echo --idle 5": "unknown option --idle; did you mean --idle-timeout?",
    "echo --tls=x": (
        "unknown option --tls; did you mean --tls-alpn or --tls-cert or --tls-client-ca?"
    ),
    "echo --tls-key x": "--tls-key needs --tls-cert",
    "echo --starttls on": "--starttls needs --tls-cert",
    "echo --tls-self-signed --tls-cert x": (
        "argument --tls-cert: not allowed with argument --tls-self-signed"
    ),
    "echo --host '*' unix:/tmp/x localhost:80": (
        "--host has no effect: each address names its own"
    ),
    "echo --when-full refuse": "--when-full has no effect without --max-connections",
    "logger --max-line 80 --hex": "--max-line has no effect with --hex, which reads no lines",
    "logger --max-line 80 --raw": "--max-line has no effect with --raw, which reads no lines",
    "echo --max-line 80": "--max-line has no effect: echo reads neither lines nor messages",
    "greeter --read-timeout 80": "--read-timeout has no effect: greeter reads nothing",
    "logger --max-message 80": "--max-message has no effect: logger reads no messages",
    "echo --refusal busy --max-connections off": (
        "--refusal has no effect without --max-connections, --max-connections-per-ip "
        "or --max-connection-rate"
    ),
    "greeter --greeting é --encoding koi8-r": "--greeting cannot be written in koi8-r: 'é'",
    "echo --handshake-timeout 5": (
        "--handshake-timeout has no effect without --tls-cert or ?proxy=on"
    ),
    "echo 80 --proxy-from ::1": "--proxy-from has no effect: no address has ?proxy=on",
    "serve": "a handler is needed: MODULE:NAME, such as app:Shout",
    "serve ./app.py:Shout.x": f"{NAME}, without .py: app:Shout.x, not './app.py:Shout.x'",
    "serve pack/app.py": f"{NAME}, without .py: pack.app:NAME, not 'pack/app.py'",
    **{
        f"serve {name}": f"{NAME}, such as app:Shout, or MODULE:NAME() for a factory, not '{name}'"
        for name in ("app", "app:", ":Shout", "app:Shout:x", "../app:Shout", "app.:x", "app:1")
    },
    "serve app:make(1)": "a factory is called without arguments: app:make()",
    "serve app.py:make()": f"{NAME}, without .py: app:make(), not 'app.py:make()'",
    "serve json:dumps --set x": "argument --set: it must be NAME=VALUE, not 'x'",
    "serve json:__name__()": "__name__ is no factory: 'json' cannot be called",
    "serve json:dumps()": "dumps is no factory, since it needs arguments: write json:dumps",
    "serve json:__name__": "a handler must be a class or a function, not 'json'",
}
NO_COMMAND = {
    "frob": (
        "there is no command 'frob'; "
        "the commands are echo, logger, greeter, serve, connect, ctl, top"
    ),
    "help sevre": "there is no command 'sevre'; did you mean serve?",
    "--log-level debug echo": (
        "options follow a command, such as echo, and '--log-level' is not a command"
    ),
}


@pytest.mark.parametrize("argv", [*WRONG, *NO_COMMAND])
def test_wrong_use_is_an_error_of_one_line(argv: str, run: Run) -> None:
    program = "netkit" if argv in NO_COMMAND else f"netkit {argv.split()[0]}"
    line = f"{program}: error: {({**WRONG, **NO_COMMAND})[argv]} (see {program} --help)"
    assert run(*shlex.split(argv)) == (2, b"", [line])


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
