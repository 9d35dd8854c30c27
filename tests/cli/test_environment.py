"""Variables of the environment in the place of flags."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from support import Cli, logging_put_back

from netkit.cli import main
from netkit.cli.arguments import ArgumentError
from netkit.cli.echo import Echo
from netkit.cli.environment import variable_of
from netkit.cli.flags import ROWS
from netkit.cli.logger import Logger
from netkit.cli.serve import Serve

from .commands import COMMANDS, Run, understood

Environment = Callable[..., None]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Environment:
    """Sets variables, each given as ``NAME=VALUE`` without the prefix of all names."""

    def add(*variables: str) -> None:
        for each in variables:
            name, _, value = each.partition("=")
            monkeypatch.setenv(f"NETKIT_{name}", value)

    return add


def test_a_variable_is_the_default_of_a_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETKIT_IDLE_TIMEOUT", "500ms")
    monkeypatch.setenv("NETKIT_HANDSHAKE_TIMEOUT", "off")
    monkeypatch.setenv("NETKIT_KEEP_ALIVE", "off")
    monkeypatch.setenv("NETKIT_HOST", "::1")
    monkeypatch.setenv("NETKIT_LOG_FORMAT", "json")
    arguments, options = understood(Echo(), "--keep-alive", "on", "8080")
    assert options == {"idle_timeout": 0.5, "handshake_timeout": None, "keep_alive": True}
    assert (arguments.log_format, arguments.addresses[0].host) == ("json", "::1")
    assert understood(Echo(), "--idle-timeout", "off")[1]["idle_timeout"] is None


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("MAX_LINE", "x", "NETKIT_MAX_LINE: it must be a number of bytes, not 'x'"),
        ("MAX_LINE", "", "NETKIT_MAX_LINE: it must be a number of bytes, not ''"),
        ("MAX_LINE", "0", "NETKIT_MAX_LINE: it must be at least 1 byte, not 0"),
        ("WORKERS", "x", "NETKIT_WORKERS: workers must be a number of processes, or 'auto', not"),
        ("HOST", "", "NETKIT_HOST: it must not be empty; '*' is for all addresses"),
        ("STATUS", "x", "NETKIT_STATUS: the address of the status endpoint must be PORT, "),
        ("ACCESS_LOG", "", "NETKIT_ACCESS_LOG: it must be the name of a file, or '-', not ''"),
        ("ENCODING", "nope", "NETKIT_ENCODING: unknown encoding 'nope'"),
        ("DENY", "@/nowhere", "NETKIT_DENY: No such file or directory: '/nowhere'"),
        ("TLS_KEY", "key.pem", "NETKIT_TLS_KEY needs --tls-cert"),
        ("TLS_SELF_SIGNED", "yes", "NETKIT_TLS_SELF_SIGNED: it must be on or off, not 'yes'"),
        ("ADDRESSES", "8080 localhost", "NETKIT_ADDRESSES: 'localhost' has no port: write"),
        ("ADDRESSES", "'8080", "NETKIT_ADDRESSES: no closing quotation"),
        ("GATE", "maybe", "NETKIT_GATE: it must be on or off, not 'maybe'"),
        (
            "MAX_LINES",
            "80",
            "unknown variable NETKIT_MAX_LINES in the environment; did you mean NE",
        ),
        ("X", "secret", "unknown variable NETKIT_X in the environment (see netkit echo --help)"),
        ("PORT", "80", "unknown variable NETKIT_PORT in the environment; did you mean NETKIT_ADDR"),
    ],
)
def test_the_error_of_a_variable_names_it(
    variable: str,
    text: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(f"NETKIT_{variable}", text)
    with logging_put_back(), pytest.raises(SystemExit) as caught:
        main.main(["echo"])
    (line,) = capsys.readouterr().err.splitlines()
    assert (caught.value.code, line.startswith(f"netkit echo: error: {message}")) == (2, True)


@pytest.mark.parametrize(
    ("argv", "variables", "message"),
    [
        ("serve", "HANDLER=app.py", "NETKIT_HANDLER: a handler is named MODULE:NAME, without .py"),
        ("serve app:f", "SET=max_line", "NETKIT_SET: it must be NAME=VALUE, not 'max_line'"),
        ("serve app:f", "SET='a=1", "NETKIT_SET: no closing quotation"),
        ("logger", "HEX=on RAW=on", "NETKIT_HEX and NETKIT_RAW exclude each other"),
        ("logger", "KEEP=0", "NETKIT_KEEP: it must be at least 1"),
        ("logger", "OUTPUT={peer}/log", "NETKIT_OUTPUT may have {peer} in the name of the file"),
        ("greeter --encoding koi8-r", "GREETING=é", "NETKIT_GREETING cannot be written in koi8-r"),
    ],
)
def test_the_variable_of_a_flag_of_one_command_is_checked_like_the_flag(
    argv: str, variables: str, message: str, environment: Environment, run: Run
) -> None:
    environment(*variables.split())
    result = run(*argv.split())
    (line,) = result.lines
    assert (result.status, line.partition(": error: ")[2].startswith(message)) == (2, True), line


def test_every_flag_has_a_variable_with_the_same_check(environment: Environment) -> None:
    for name, row in ROWS.items():
        if row.kind.number:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv(variable_of(name), "x")
                with pytest.raises(SystemExit):
                    Echo().parser().read([])
    for command in COMMANDS.values():
        text = command.parser().format_help()
        flags = {*re.findall(r"^  (--[a-z-]+)", text, re.MULTILINE)}
        assert {*map(variable_of, flags)} == {*command.parser().variables()}


def test_flags_without_a_value_and_repeated_flags_have_variables(environment: Environment) -> None:
    environment("HEX=on", "PREFIX=on", "OUTPUT=log", "ROTATE_SIZE=1M", "SET=a=1 'b=2 3'")
    arguments, _ = understood(Logger())
    assert (arguments.style, arguments.prefix, arguments.output) == ("hex", True, "log")
    assert arguments.rotate_size == 1 << 20
    assert understood(Serve(), "app:f")[0].set == [("a", "1"), ("b", "2 3")]
    assert understood(Serve(), "app:f", "--set", "c=4")[0].set == [("c", "4")]


def test_a_flag_wins_over_the_variables_that_it_excludes(environment: Environment) -> None:
    environment("HEX=on", "TLS_SELF_SIGNED=on", "PREFIX=off")
    arguments, options = understood(Logger(), "--raw", "--tls-cert", "x")
    assert (arguments.style, arguments.prefix) == ("raw", False)
    assert (arguments.tls_self_signed, options) == (False, {"tls_cert": "x"})


def test_addresses_and_the_handler_may_be_variables(environment: Environment) -> None:
    environment("ADDRESSES=8080 ::1 81 'unix:/tmp/a b'", "HANDLER=app:Shout")
    at = ["tcp 127.0.0.1 8080 ", "tcp ::1 81 ", "unix None 0 /tmp/a b"]

    def addresses(*argv: str) -> list[str]:
        found = understood(Serve(), *argv)[0]
        assert found.target.name == ("f" if "app:f" in argv else "Shout")
        return [f"{each.kind} {each.host} {each.port} {each.path}" for each in found.addresses]

    assert addresses() == addresses("app:f") == at
    assert addresses("82") == addresses("app:f", "82") == ["tcp 127.0.0.1 82 "]
    assert addresses("unix:x") == ["unix None 0 x"]  # an address, though of the form of a handler
    assert len(understood(Echo())[0].addresses) == 3


def test_variables_of_other_commands_and_of_kubernetes_are_ignored(
    environment: Environment,
) -> None:
    service = [
        "PORT",
        "PORT_8080_TCP",
        "PORT_8080_TCP_ADDR",
        "SERVICE_HOST",
        "SERVICE_PORT_METRICS",
    ]
    environment("GREETING=hello", "SET=a=1", "HANDLER=x", "GATE=off")
    environment(*(f"{name}=tcp://10.0.0.1:80" for name in service))
    environment("ADMIN_SERVICE_HOST=10.0.0.1")
    assert understood(Echo(), "8080")[1] == {}


def test_a_variable_without_effect_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETKIT_MAX_LINE", "80")  # for `netkit serve`, perhaps
    monkeypatch.setenv("NETKIT_REFUSAL", "no")
    monkeypatch.setenv("NETKIT_HOST", "::1")
    monkeypatch.setenv("NETKIT_WORKERS", "3")
    monkeypatch.setenv("NETKIT_PROXY_FROM", "10.0.0.0/8")
    assert "proxy_from" in understood(Echo(), "localhost:80?proxy=on")[1]
    assert understood(Echo(), "localhost:80")[1] == {"max_line": 80, "refusal": "no\n"}
    assert understood(Logger(), "--hex")[0].workers == 1
    assert understood(Serve(), "app:f", "--workers", "2")[0].workers == 2


@pytest.mark.parametrize(
    ("variable", "flag"),
    [
        ("PROFILE=public", "when-full"),
        ("MAX_CONNECTIONS=1", "refusal"),
        ("TLS_CERT=x", "handshake-timeout"),
    ],
)
def test_a_flag_may_have_its_effect_because_of_a_variable(
    variable: str, flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, _, value = variable.partition("=")
    monkeypatch.setenv(f"NETKIT_{name}", value)
    assert flag.replace("-", "_") in understood(Echo(), f"--{flag}", "5")[1]
    monkeypatch.delenv(f"NETKIT_{name}")
    with pytest.raises(ArgumentError, match=f"--{flag} has no effect"):
        understood(Echo(), f"--{flag}", "5")


def test_the_variable_of_a_password_is_the_password_and_a_flag_wins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NETKIT_TLS_KEY_PASSWORD", "@hunter2")
    _, options = understood(Echo(), "--tls-cert", "server.pem")
    assert options == {"tls_cert": "server.pem", "tls_key_password": "@hunter2"}
    (tmp_path / "password").write_text("other\n")
    flags = ["--tls-cert", "server.pem", "--tls-key-password", f"@{tmp_path / 'password'}"]
    assert understood(Echo(), *flags)[1]["tls_key_password"] == "other"


def test_a_self_signed_certificate_has_its_own_key(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cryptography")
    for name in ("TLS_CERT", "TLS_KEY", "TLS_KEY_PASSWORD"):
        monkeypatch.setenv(f"NETKIT_{name}", "x")
    _, options = understood(Echo(), "--tls-self-signed")
    assert list(options) == ["tls_cert"]
    assert options["tls_cert"].startswith(b"-----BEGIN")


def test_a_server_is_configured_by_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETKIT_MAX_CONNECTIONS", "0")
    monkeypatch.setenv("NETKIT_WHEN_FULL", "refuse")
    monkeypatch.setenv("NETKIT_REFUSAL", "closed")
    with Cli("echo") as server, server.connect() as sock:
        assert sock.recv(100) == b"closed\n"
