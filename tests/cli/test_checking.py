"""``--check``: what a command would serve with, and where each value is from."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from secure import files
from support import observed

from netkit.core import events

from .commands import HANDLERS, Run, taken


def rows(out: bytes) -> dict[str, list[str]]:
    """The values by their names: each value, and where it is from."""
    found: dict[str, list[str]] = {}
    for line in out.decode().splitlines():
        name, value, source = re.split(r"  +", line)
        found.setdefault(name, []).append(f"{value} < {source}")
    return found


def test_each_value_is_shown_with_its_source(
    run: Run, module: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = "{'max_line': 100, 'lifetime': 7, 'handler_args': {'ending': 'secret'}}"
    module(f"def shout(conn, ending, times=1): pass\nNETKIT_OPTIONS = {options}")
    monkeypatch.setenv("NETKIT_IDLE_TIMEOUT", "500ms")
    monkeypatch.setenv("NETKIT_LIFETIME", "8")
    monkeypatch.setenv("NETKIT_DENY", "10.0.0.1,10.0.0.2")
    with taken() as listener:
        port = str(listener.getsockname()[1])  # in use: nothing is bound
        flags = ("--profile", "public", "--allow", "10.0.0.0/8", "--set", "times=2", "--check")
        status, out, lines = run("serve", "app:shout", port, "localhost", "80", *flags)
    assert (status, lines) == (0, [])
    found = rows(out)
    local = next(it for it in found["address"] if "localhost" in it)
    assert re.fullmatch(r"localhost:80 \(\S+(, \S+)?\) < command line", local)
    expected = {
        "handler": "app:shout < command line",
        "handler_args": "ending, times < --set",
        "max_line": "100 < NETKIT_OPTIONS of app",
        "idle_timeout": "0.5 < NETKIT_IDLE_TIMEOUT",
        "lifetime": "8 < NETKIT_LIFETIME",
        "profile": "public < --profile",
        "write_timeout": "30 < profile public",
        "allow": "1 rule < --allow",
        "deny": "2 rules < NETKIT_DENY",
        "refusal": "- < default",
        "keep_alive": "on < default",
    }
    assert {name: found[name] for name in expected} == {k: [it] for k, it in expected.items()}
    assert "secret" not in out.decode()


def test_a_setting_of_the_environment_names_its_variable(
    run: Run, module: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    module("def shout(conn, times=1): pass")
    monkeypatch.setenv("NETKIT_SET", "times=2")
    assert rows(run("serve", "app:shout", "--check").out)["handler_args"] == ["times < NETKIT_SET"]
    for text, error in (("times=x", "times: it must be"), ("x=1", "x: shout has no setting x")):
        monkeypatch.setenv("NETKIT_SET", text)
        status, _, lines = run("serve", "app:shout", "--check")
        assert status == 2
        assert f"NETKIT_SET {error}" in lines[-1]


def test_the_options_of_a_server_are_its_own(run: Run, module: Callable[..., Path]) -> None:
    module(f"{HANDLERS}\nserver = netkit.create_server(function, max_line=9, lifetime=8)")
    found = rows(
        run("serve", "app:server", "unix:/tmp/x", "systemd:web", "--lifetime", "7", "--check").out
    )
    assert found["max_line"] == ["9 < app:server"]
    assert found["lifetime"] == ["7 < --lifetime"]
    assert found["address"] == ["unix:/tmp/x < command line", "systemd:web < command line"]


def test_addresses_with_tls_are_marked_and_no_password_is_shown(run: Run, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret\n")
    flags = ("--tls-cert", files().server, "--tls-key-password", f"@{tmp_path / 'password'}")
    sni = ("--tls-sni", f"example.org={files().server}")
    addresses = ("fd:0?tls=off", "*:80", "systemd:web?tls=off&proxy=on", "81?proxy=on")
    status, out, _ = run("logger", *flags, *sni, *addresses, "--check", "--raw")
    found = rows(out)
    assert found["tls_key_password"] == ["... < --tls-key-password"]
    assert (status, found["style"]) == (0, ["raw < --raw"])
    assert [each.partition(" <")[0] for each in found["address"]] == [
        "fd:0",
        "*:80 (TLS)",
        "systemd:web (PROXY)",
        "127.0.0.1:81 (PROXY, TLS)",
    ]
    first, second = found["certificate"]
    assert re.fullmatch(r"tls_cert < valid until \d{4}-\d\d-\d\d", first)
    assert second.startswith("example.org < valid until ")


def test_the_addresses_may_be_from_the_environment(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETKIT_ADDRESSES", "127.0.0.1:80")
    monkeypatch.setenv("NETKIT_HEX", "on")
    found = rows(run("logger", "--check").out)
    assert found["address"] == ["127.0.0.1:80 < NETKIT_ADDRESSES"]
    assert found["style"] == ["hex < NETKIT_HEX"]
    assert rows(run("logger", "81", "--check").out)["address"] == ["127.0.0.1:81 < command line"]


def test_a_flag_without_its_optional_value_is_on(
    run: Run, module: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    module(HANDLERS)
    found = rows(run("serve", "app:function", "--reload", "--check").out)
    assert found["proxy_from"] == ["127.0.0.0/8,::1 < default"]
    assert found["reload"] == ["on < --reload"]
    monkeypatch.setenv("NETKIT_RELOAD", "on")
    assert rows(run("serve", "app:function", "--check").out)["reload"] == ["on < NETKIT_RELOAD"]


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        ("echo nope.invalid:80", 1, "nope.invalid:80: "),
        ("echo --tls-cert /nowhere", 1, "/nowhere"),
        ("echo --deny @/nowhere", 2, "/nowhere"),
        ("serve app:nothing", 1, "app has no nothing"),
        ("serve app:function --set x=1", 2, "has no setting x"),
        ("serve app:function --workers 2 --max-line x", 2, "it must be a number of bytes"),
    ],
)
def test_what_would_fail_is_an_error(
    argv: str, status: int, message: str, run: Run, module: Callable[..., Path]
) -> None:
    module(HANDLERS)
    with observed(events.Listening) as seen:
        result = run(*argv.split(), "--check")
    assert (result.status, result.out, seen) == (status, b"", [])
    assert message in result.lines[-1]


def test_hooks_are_not_called(run: Run, module: Callable[..., Path]) -> None:
    module(HANDLERS + "NETKIT_OPTIONS = {'on_start': lambda server: 1 / 0}")
    assert run("serve", "app:function", "--workers", "2", "--check").status == 0
