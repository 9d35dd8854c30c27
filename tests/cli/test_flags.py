"""Flags of the commands that serve, and variables of the environment in their place."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import pytest
from support import Cli, logging_put_back

from netkit.cli import flags, main
from netkit.cli.arguments import ArgumentError
from netkit.cli.echo import Echo
from netkit.cli.flags import ROWS, from_environment
from netkit.cli.logger import Logger
from netkit.cli.serve import Serve
from netkit.cli.serving import Command


def understood(command: Command, *argv: str) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The arguments, and the options of the server."""
    arguments, words = command.parser().read(argv)
    return arguments, command.understand(arguments, words)


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
        ("ENCODING", "nope", "NETKIT_ENCODING: unknown encoding 'nope'"),
        ("DENY", "@/nowhere", "NETKIT_DENY: No such file or directory: '/nowhere'"),
        ("TLS_KEY", "key.pem", "NETKIT_TLS_KEY needs --tls-cert"),
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


def test_every_flag_has_a_variable_with_the_same_check(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, row in ROWS.items():
        if row.kind.number:
            with monkeypatch.context() as patch:
                patch.setenv(f"NETKIT_{name.upper()}", "x")
                with pytest.raises(ArgumentError, match=f"NETKIT_{name.upper()}: it must be"):
                    from_environment()
    for name in ("NETKIT_MAX_LINES", "MAX_LINE", "NETKIT_TLS"):
        monkeypatch.setenv(name, "x")
    assert from_environment() == {}


def test_a_variable_without_effect_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETKIT_MAX_LINE", "80")  # for `netkit serve`, perhaps
    monkeypatch.setenv("NETKIT_REFUSAL", "no")
    monkeypatch.setenv("NETKIT_HOST", "::1")
    monkeypatch.setenv("NETKIT_WORKERS", "3")
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
    flags = ("--tls-cert", "server.pem", "--tls-key-password", f"@{tmp_path / 'password'}")
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


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("80?tls=on", "?tls=on needs --tls-cert or --tls-self-signed"),
        ("80 81?tls=off", "?tls=off has no effect without --tls-cert"),
        ("80?tls=off --tls-cert x", "--tls-cert has no effect: each address has ?tls=off"),
        ("80?tls=off --tls-self-signed", "--tls-self-signed has no effect: each address has"),
        ("80?tls=off 81 --tls-cert x --starttls on", "?tls=off has no effect with --starttls"),
        ("80?tls=on --tls-cert x --starttls on", "--starttls has no effect: each address has"),
    ],
)
def test_a_setting_of_tls_without_effect_is_an_error(argv: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{re.escape(message)}"):
        understood(Echo(), *argv.split())


def test_a_certificate_may_be_for_some_addresses() -> None:
    argv = ["80?tls=off", "81", "82?tls=on", "--tls-cert", "x", "--starttls", "off"]
    assert [each.tls for each in understood(Echo(), *argv)[0].addresses] == [False, None, True]


def test_an_error_of_the_library_names_flags_and_variables_where_there_are_any() -> None:
    message = "max_line and min_rate and handler_args and no_such"
    named = flags.as_given(message, ["min_rate"])
    assert named == "--max-line and NETKIT_MIN_RATE and handler_args and no_such"
