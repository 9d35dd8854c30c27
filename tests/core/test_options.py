"""The options of a server, as values."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import ROOT, in_thread

from netkit.client.options import ConnectOptions
from netkit.core.errors import UnknownEncodingError
from netkit.core.kinds import check_seconds
from netkit.core.options import Options
from netkit.core.table import OptionTable


def test_the_defaults_are_these() -> None:
    assert Options().as_dict() == {
        "profile": None,
        "drain_timeout": 7.0,
        "idle_timeout": None,
        "read_timeout": None,
        "write_timeout": None,
        "handshake_timeout": 10.0,
        "lifetime": None,
        "min_rate": None,
        "max_connections": None,
        "when_full": "wait",
        "refusal": None,
        "max_connections_per_ip": None,
        "max_connection_rate": None,
        "allow": None,
        "deny": None,
        "tls": None,
        "tls_cert": None,
        "tls_key": None,
        "tls_key_password": None,
        "tls_client_ca": None,
        "tls_sni": None,
        "tls_alpn": (),
        "starttls": False,
        "encoding": "utf-8",
        "max_line": 65536,
        "max_message": 16 * 1024 * 1024,
        "no_delay": True,
        "keep_alive": True,
        "handler_args": {},
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("drain_timeout", 0),
        ("drain_timeout", 1.5),
        ("idle_timeout", None),
        ("idle_timeout", 0.001),
        ("encoding", "shift_jis"),
        ("max_line", 1),
        ("max_connections", 0),
        ("when_full", "refuse"),
        ("when_full", 2.5),
        ("refusal", "full"),
        ("max_connection_rate", 0.5),
        ("max_message", 1),
        ("max_message", None),
        ("no_delay", False),
        ("keep_alive", False),
        ("handler_args", {"greeting": "hello"}),
        ("handler_args", MappingProxyType({})),
    ],
)
def test_an_option_that_is_given_keeps_its_value_and_the_others_have_defaults(
    name: str, value: Any
) -> None:
    options = Options(**{name: value})
    assert getattr(options, name) == value
    assert {**options.as_dict(), name: None} == {**Options().as_dict(), name: None}


def test_options_cannot_be_changed() -> None:
    options = Options()
    with pytest.raises(AttributeError):
        options.max_line = 5  # type: ignore[misc]
    with pytest.raises(AttributeError):
        options.other = 5  # type: ignore[attr-defined]


def test_options_are_taken_by_name_only() -> None:
    with pytest.raises(TypeError):
        Options(10.0)  # type: ignore[call-arg]


def test_the_error_of_an_unknown_option_names_the_known_ones() -> None:
    with pytest.raises(TypeError) as caught:
        Options(max_lines=5)
    assert str(caught.value) == (
        "unknown option 'max_lines'; did you mean 'max_line'? The options are profile, "
        "drain_timeout, idle_timeout, "
        "read_timeout, write_timeout, handshake_timeout, lifetime, min_rate, max_connections, "
        "when_full, refusal, max_connections_per_ip, max_connection_rate, allow, deny, tls, "
        "tls_cert, tls_key, tls_key_password, tls_client_ca, tls_sni, tls_alpn, starttls, "
        "encoding, max_line, max_message, no_delay, keep_alive, handler_args"
    )


TOO_LONG = threading.TIMEOUT_MAX * 2
LONGEST = f"{threading.TIMEOUT_MAX:.0f}"


@pytest.mark.parametrize(
    ("name", "value", "kind", "text"),
    [
        ("drain_timeout", -1, ValueError, "drain_timeout must be 0 or more seconds, not -1"),
        ("drain_timeout", float("nan"), ValueError, "must be 0 or more seconds, not nan"),
        ("drain_timeout", float("inf"), ValueError, "seconds, not inf"),
        ("drain_timeout", TOO_LONG, ValueError, f"drain_timeout must be at most {LONGEST} seconds"),
        ("drain_timeout", None, TypeError, "drain_timeout must be a number of seconds, not None"),
        ("drain_timeout", "1", TypeError, "drain_timeout must be a number of seconds, not '1'"),
        ("drain_timeout", True, TypeError, "drain_timeout must be a number of seconds, not True"),
        ("max_connections", -1, ValueError, "max_connections must be 0 or more connections"),
        ("max_connections", True, TypeError, "max_connections must be a number of connections"),
        ("max_connections_per_ip", "1", TypeError, "must be a number of connections, not '1'"),
        (
            "max_connection_rate",
            0,
            ValueError,
            "max_connection_rate must be more than 0 per second",
        ),
        ("max_connection_rate", "1", TypeError, "must be a number per second, not '1'"),
        ("min_rate", float("inf"), ValueError, "min_rate must be more than 0 per second"),
        (
            "when_full",
            "drop",
            ValueError,
            "when_full must be 'wait', 'refuse' or a number of seconds",
        ),
        ("when_full", -1, ValueError, "when_full must be 0 or more seconds, not -1"),
        ("drain_timeout", 10**400, ValueError, "drain_timeout must be at most"),
        ("min_rate", 10**400, ValueError, "min_rate must be more than 0 per second"),
        ("deny", "@/nowhere", FileNotFoundError, "deny: No such file or directory: '/nowhere'"),
        ("refusal", b"no", TypeError, "refusal must be text, not of type bytes"),
        (
            "allow",
            "10.0.0.0/33",
            ValueError,
            "allow: the prefix length must be from 0 to 32, not '33': 10.0.0.0/33",
        ),
        ("deny", 5, TypeError, "deny: expected a BlockList, a path or a list of rules, not 5"),
        ("idle_timeout", 0, ValueError, "idle_timeout must be more than 0 seconds, not 0"),
        ("idle_timeout", "1", TypeError, "idle_timeout must be a number of seconds, not '1'"),
        ("encoding", 5, TypeError, "an encoding is a str, not int"),
        ("encoding", "utf9", UnknownEncodingError, "unknown encoding 'utf9'"),
        ("max_line", 0, ValueError, "max_line must be at least 1 byte, not 0"),
        ("max_line", 1.0, TypeError, "max_line must be a number of bytes, not 1.0"),
        ("max_line", True, TypeError, "max_line must be a number of bytes, not True"),
        ("max_message", 0, ValueError, "max_message must be at least 1 byte, not 0"),
        ("max_message", "1", TypeError, "max_message must be a number of bytes, not '1'"),
        ("no_delay", 1, TypeError, "no_delay must be True or False, not 1"),
        ("keep_alive", None, TypeError, "keep_alive must be True or False, not None"),
        ("handler_args", [], TypeError, "handler_args must be a mapping, not of type list"),
    ],
)
def test_an_invalid_value_is_refused_and_named(
    name: str, value: Any, kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind) as caught:
        Options(**{name: value})
    assert text in str(caught.value)


def test_the_encoding_must_have_the_characters_of_a_refusal() -> None:
    assert Options(refusal="\xfc", encoding="ascii").refusal == "\xfc"  # as Node writes it
    with pytest.raises(ValueError, match="refusal cannot be written in us-ascii: '\xfc'"):
        Options(refusal="\xfc", encoding="us-ascii")


def test_every_wait_accepts_the_longest_time() -> None:
    check_seconds("time", threading.TIMEOUT_MAX)
    condition = threading.Condition()

    def notify() -> None:
        with condition:
            condition.notify()

    with condition, in_thread(notify):
        assert condition.wait(threading.TIMEOUT_MAX)


def test_every_option_has_a_form_on_the_command_line_but_two() -> None:
    without = {name for name, row in Options.rows.items() if row.kind.parse is None}
    assert without == {"handler_args", "tls"}
    assert all(
        row.help and row.kind.metavar for name, row in Options.rows.items() if name not in without
    )


@pytest.mark.parametrize("table", [Options, ConnectOptions])
def test_the_defaults_pass_their_own_checks(table: type[OptionTable]) -> None:
    for name, row in table.rows.items():
        assert row.check(name, row.default) == row.default


def test_no_error_and_no_representation_shows_the_arguments_of_the_handler() -> None:
    assert "hunter2" not in repr(Options(handler_args={"password": "hunter2"}))
    with pytest.raises(TypeError) as caught:
        Options(handler_args="password=hunter2")
    assert "hunter2" not in str(caught.value)


# The page of the documentation


def table_of(table: type[OptionTable], flags: bool = False) -> str:
    """The rows of docs/options.md for a table of options."""
    lines = []
    for name, row in table.rows.items():
        flag = f"`--{name.replace('_', '-')} {row.kind.metavar}`" if row.kind.parse else ""
        default = dict(row.default) if isinstance(row.default, Mapping) else row.default
        noun = row.kind.noun + (" or None" if row.optional else "")
        shown = f'"{default}"' if isinstance(default, str) else repr(default)
        cells = [f"`{name}`", *([flag.replace("|", "\\|")] if flags else []), noun, f"`{shown}`"]
        lines.append(f"| {' | '.join([*cells, row.help])} |".replace("|  |", "| |"))
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("heading", "table", "flags"),
    [("Servers", Options, True), ("Clients", ConnectOptions, False)],
)
def test_the_page_of_options_has_every_option_with_its_type_default_and_meaning(
    heading: str, table: type[OptionTable], flags: bool
) -> None:
    page = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    found = page.partition(f"## {heading}\n")[2].partition("|---|\n")[2].partition("\n\n")[0]
    assert found.rstrip("\n").splitlines() == table_of(table, flags).splitlines()


# Values as text, on the command line or in the environment


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
    assert Options.rows["idle_timeout"].parse(text) == seconds
    if seconds is not None:
        assert Options.rows["when_full"].parse(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "s", "nan", "inf", "9" * 500, "5 m", "5d", "5M", "1h30m", "-5s", "٣s", "on", "1e3s"],
)
def test_any_other_text_is_not_a_time(text: str) -> None:
    error = "it must be a time such as 30, 500ms, 5m or 2h or 'off', not "
    with pytest.raises(ValueError, match=error):
        Options.rows["idle_timeout"].parse(text)


@pytest.mark.parametrize("text", ["0", "-1", "0ms"])
def test_a_time_limit_is_more_than_zero(text: str) -> None:
    with pytest.raises(ValueError, match="it must be more than 0 seconds"):
        Options.rows["idle_timeout"].parse(text)


def test_every_number_that_may_be_none_can_be_switched_off() -> None:
    numbers = {name for name, row in Options.rows.items() if row.kind.number and row.optional}
    assert {"handshake_timeout", "lifetime", "max_connections", "max_message"} <= numbers
    for name in numbers:
        assert Options.rows[name].parse("off") is None


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("max_message", "on", "it must be a number of bytes or 'off', not 'on'"),
        ("max_line", "off", "it must be a number of bytes, not 'off'"),
        ("max_connections", "many", "it must be a number or 'off', not 'many'"),
        ("no_delay", "1", "it must be on or off, not '1'"),
        ("profile", "private", "it must be 'public', not 'private'"),
        ("when_full", "inf", "it must be 'wait', 'refuse' or a number of seconds, not 'inf'"),
    ],
)
def test_the_error_of_an_invalid_text_describes_valid_ones(
    name: str, text: str, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Options.rows[name].parse(text)


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
WITH_TEXT = [name for name, row in Options.rows.items() if row.kind.parse]


@pytest.mark.fuzz
@given(st.sampled_from(sorted(WITH_TEXT)), values)
def test_any_text_is_a_value_of_an_option_or_is_refused(name: str, text: str) -> None:
    if text.startswith("@"):  # a file
        return
    try:
        value = Options.rows[name].parse(text)
    except (ValueError, LookupError):
        return
    certificate = {"tls_cert": "server.pem"}  # which some of them need
    Options(**{**certificate, name: value})
