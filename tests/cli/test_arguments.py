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

from netkit.cli import arguments, connect, flags, loading, serve
from netkit.cli.arguments import Parser, checked, endpoints
from netkit.core.endpoint import Endpoint

# Order


@pytest.mark.parametrize(
    "line",
    [
        "localhost 80 --retry 3 -v",
        "-v localhost --retry=3 80",
        "-v --retry 3 -- localhost 80",
        "--retry 3 -v localhost -- 80",
    ],
)
def test_options_stand_anywhere_between_the_words(line: str) -> None:
    found, words = connect.parser().read(line.split())
    assert (found.retry, found.verbose, words) == (3, True, ["localhost", "80"])


def test_options_stand_between_the_handler_and_the_addresses() -> None:
    parser = serve.Serve().parser()
    found, words = parser.read(
        ["app:Shout", "--idle-timeout", "5", "8080", "--workers", "2", "8081"]
    )
    assert serve.Serve().understand(found, words) == {"idle_timeout": 5}
    assert (str(found.target), found.workers) == ("app:Shout", 2)
    assert [address.port for address in found.addresses] == [8080, 8081]


def test_a_word_after_two_dashes_is_not_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser("netkit test")
    assert parser.read(["-", "--", "-x", "--", "--help"])[1] == ["-", "-x", "--", "--help"]
    with pytest.raises(SystemExit):
        parser.read(["-x", "--"])
    error = "netkit test: error: unknown option -x (see netkit test --help)\n"
    assert capsys.readouterr() == ("", error)


# Addresses

TEN = "10.0.0.1"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", []),
        ("80 81", [(None, 80), (None, 81)]),
        ("localhost:80 localhost 81", [("localhost", 80), ("localhost", 81)]),
        ("*:80 81 * 82", [("*", 80), (None, 81), ("*", 82)]),
        (f"{TEN} 80 81 example.org 82", [(TEN, 80), (None, 81), ("example.org", 82)]),
        ("::1 80 [::1] 81 [::1]:82", [("::1", 80), ("::1", 81), ("::1", 82)]),
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
    assert len(endpoints(["80?reuse_port=on"] * 2)) == len(endpoints(["0", "0"])) == 2


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
        ("80 80", "80 is given twice"),
    ],
)
def test_a_wrong_address_is_explained(words: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        endpoints(words.split())


# Errors


def test_an_error_is_one_short_line_without_control_characters(
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


def test_without_standard_error_no_message_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    arguments.complain("nobody sees this")
    with pytest.raises(SystemExit):
        Parser("netkit test").error("nor this")


# Pieces of values in any order, or any text at all.
PIECES = "0 1 64 1e3 . - + _ inf nan off on wait utf-8 auto \u0661 x : app 1.2.3.4 /8 , refuse ms h"
PIECES += " :: @ [ ] unix: ? * -- .py " + "9" * 5_000
values = st.one_of(
    st.lists(st.sampled_from([" ", *PIECES.split()]), max_size=4).map("".join), st.text()
)


@pytest.mark.fuzz
@given(values)
def test_any_text_is_a_value_of_another_flag_or_is_refused(text: str) -> None:
    kinds: list[Any] = [flags.WORKERS.parse, loading.target_of, arguments.count]
    for kind in kinds:
        with contextlib.suppress(argparse.ArgumentTypeError):
            checked(kind)(text)


@pytest.mark.fuzz
@given(st.lists(values, max_size=4))
def test_any_words_are_addresses_or_are_refused(words: list[str]) -> None:
    with contextlib.suppress(ValueError):
        assert all(isinstance(found, Endpoint) for found in endpoints(words))
