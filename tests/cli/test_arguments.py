"""How a command line is read: the order of options and words, times, addresses, and errors."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netkit.cli import arguments, commands, connect, loading
from netkit.cli.arguments import Parser, checked, endpoints, flag_value
from netkit.core.endpoint import Endpoint
from netkit.core.options import FLAGS, Options

# Order


@pytest.mark.parametrize(
    "line",
    [
        "localhost 80 --retry 3 -v",
        "--retry 3 localhost 80 -v",
        "-v localhost --retry 3 80",
        "localhost --retry=3 80 -v",
        "localhost 80 -v --retry 3",
        "-v --retry 3 -- localhost 80",
        "--retry 3 -v localhost -- 80",
    ],
)
def test_options_stand_anywhere_between_the_words(line: str) -> None:
    found, words = connect.parser("text").read(line.split())
    assert (found.retry, found.verbose, words) == (3, True, ["localhost", "80"])


def test_options_stand_between_the_handler_and_the_addresses() -> None:
    parser = commands.COMMANDS["serve"].parser()
    found, words = parser.read(
        ["app:Shout", "--idle-timeout", "5", "8080", "--workers", "2", "8081"]
    )
    found.command = "serve"
    assert commands.understand(found, words) == {"idle_timeout": 5}
    assert (found.handler, found.workers) == ("app:Shout", 2)
    assert [address.port for address in found.addresses] == [8080, 8081]


def test_a_word_after_two_dashes_is_not_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser("netkit test")
    assert parser.read(["-", "--", "-x", "--", "--help"])[1] == ["-", "-x", "--", "--help"]
    with pytest.raises(SystemExit):
        parser.read(["-x", "--"])
    error = "netkit test: error: unknown option -x (see netkit test --help)\n"
    assert capsys.readouterr() == ("", error)


# Values


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30),
        ("1.5", 1.5),
        ("500ms", 0.5),
        ("700ms", 0.7),
        ("30s", 30),
        (".5s", 0.5),
        ("5m", 300),
        ("1.5m", 90),
        ("2h", 7200),
        ("off", None),
    ],
)
def test_a_time_has_a_unit_or_is_in_seconds(text: str, seconds: float | None) -> None:
    assert flag_value(FLAGS["idle_timeout"])(text) == seconds
    if seconds is not None:
        assert flag_value(FLAGS["when_full"])(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "s", "nan", "inf", "9" * 500, "5 m", "5d", "5M", "1h30m", "-5s", "٣s", "on", "1e3s"],
)
def test_any_other_text_is_not_a_time(text: str) -> None:
    error = "it must be a time such as 30, 500ms, 5m or 2h or 'off', not "
    with pytest.raises(argparse.ArgumentTypeError, match=error):
        flag_value(FLAGS["idle_timeout"])(text)


@pytest.mark.parametrize("text", ["0", "-1", "0ms"])
def test_a_time_limit_is_more_than_zero(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="it must be more than 0 seconds"):
        flag_value(FLAGS["idle_timeout"])(text)


def test_every_limit_that_can_be_off_can_be_switched_off() -> None:
    off = {}
    for name, flag in FLAGS.items():
        if flag.type in (int, float):
            with contextlib.suppress(argparse.ArgumentTypeError):
                off[name] = flag_value(flag)("off")
    assert {"handshake_timeout", "lifetime", "max_connections", "max_message", "min_rate"} <= {*off}
    assert set(off.values()) == {None}
    assert {name for name, value in Options()._asdict().items() if value is None} & {*FLAGS} <= {
        *off,
        *(name for name, flag in FLAGS.items() if flag.type not in (int, float)),
    }
    Options(**off)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("max_message", "on", "it must be a number of bytes or 'off', not 'on'"),
        ("max_line", "off", "it must be a number of bytes, not 'off'"),
        ("max_connections", "many", "it must be a number or 'off', not 'many'"),
        ("no_delay", "1", "it must be on or off, not '1'"),
        ("allow", "@/nowhere", "No such file or directory: '/nowhere'"),
    ],
)
def test_the_error_of_a_wrong_value_names_a_right_one(name: str, text: str, message: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        flag_value(FLAGS[name])(text)
    assert str(caught.value).endswith(message)


# Addresses


TEN = "10.0.0.1"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", []),
        ("80", [(None, 80)]),
        ("80 81", [(None, 80), (None, 81)]),
        ("localhost:80", [("localhost", 80)]),
        ("localhost 80", [("localhost", 80)]),
        ("* 80", [("*", 80)]),
        ("*:80 81", [("*", 80), (None, 81)]),
        (f"{TEN} 80 81 example.org 82", [(TEN, 80), (None, 81), ("example.org", 82)]),
        ("::1 80", [("::1", 80)]),
        ("[::1] 80", [("::1", 80)]),
        ("[::1]:80 ::1 81", [("::1", 80), ("::1", 81)]),
        ("fe80::1%eth0 80", [("fe80::1%eth0", 80)]),
    ],
)
def test_addresses_are_one_word_or_a_host_and_a_port(
    words: str, expected: list[tuple[str | None, int]]
) -> None:
    found = endpoints(words.split())
    assert [(endpoint.host, endpoint.port) for endpoint in found] == expected


def test_the_port_of_a_host_may_have_settings() -> None:
    assert endpoints(["localhost", "80?reuse_port=on"]) == [
        Endpoint("tcp", "localhost", 80, reuse_port=True)
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("localhost", "'localhost' has no port: write HOST:PORT, HOST PORT, or PORT alone"),
        ("localhost localhost", "'localhost' has no port"),
        ("a b 80", "'a' has no port"),
        ("::1", "an IPv6 address needs brackets"),
        ("[::1]", "'[::1]' has no port"),
        ("localhost 99999", "port must be a number from 0 to 65535, not 99999"),
        ("-1", "port must be a number from 0 to 65535, not '-1'"),
        ("80 x/y", "a path needs unix: before it"),
    ],
)
def test_a_wrong_address_is_explained(words: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        endpoints(words.split())


# Errors


def test_an_error_is_one_line_without_control_characters_and_of_a_length_to_be_read(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        Parser("netkit test").read(["--x\n\x1b[2J\u202e" + "y" * 100_000])
    assert caught.value.code == 2
    _, err = capsys.readouterr()
    assert err.startswith("netkit test: error: unknown option --x\\n\\x1b[2J\\u202eyyy")
    assert err.endswith("y (see netkit test --help)\n")
    assert err.count("\n") == 1
    assert len(err) < 500


def test_without_standard_error_there_is_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    arguments.complain("nobody sees this")
    with pytest.raises(SystemExit):
        Parser("netkit test").error("nor this")


# Pieces of values in any order, or any text at all.
PIECES = ["0", "1", "64", "1e3", ".", "-", "+", "_", " ", "inf", "nan", "off", "on", "wait"]
PIECES += [
    "utf-8",
    "auto",
    "\u0661",
    "x",
    ":",
    "app",
    "9" * 5_000,
    "1.2.3.4",
    "/8",
    ",",
    "refuse",
    "ms",
]
PIECES += ["h", "::", "@", "[", "]", "unix:", "?", "*", "--", ".py"]
values = st.one_of(st.lists(st.sampled_from(PIECES), max_size=4).map("".join), st.text())


@pytest.mark.fuzz
@given(st.sampled_from(sorted(FLAGS)), values)
def test_any_value_of_a_flag_is_one_of_its_option_or_is_refused(name: str, text: str) -> None:
    if text.startswith("@"):  # a file
        return
    try:
        value = flag_value(FLAGS[name])(text)
    except argparse.ArgumentTypeError:
        return
    certificate = {"tls_cert": "server.pem"}  # which some of them need
    Options(**{**certificate, name: value})


@pytest.mark.fuzz
@given(values)
def test_any_value_of_the_other_arguments_is_one_or_is_refused(text: str) -> None:
    kinds: list[Any] = [commands._worker_count, loading.handler_name, arguments.count]
    for kind in kinds:
        with contextlib.suppress(argparse.ArgumentTypeError):
            checked(kind)(text)


@pytest.mark.fuzz
@given(st.lists(values, max_size=4))
def test_any_words_are_addresses_or_are_refused(words: list[str]) -> None:
    with contextlib.suppress(ValueError):
        assert all(isinstance(found, Endpoint) for found in endpoints(words))
