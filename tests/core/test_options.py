"""The options of a server, as values."""

from __future__ import annotations

import ast
import inspect
import re
import resource
import threading
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from support import ROOT, in_thread

import netkit
from netkit.client.options import ConnectOptions
from netkit.core import options
from netkit.core.errors import UnknownEncodingError
from netkit.core.kinds import check_seconds
from netkit.core.options import Options
from netkit.core.table import OptionTable


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


def test_the_error_of_an_unknown_option_names_the_known_ones() -> None:
    with pytest.raises(TypeError) as caught:
        Options(max_lines=5)
    hint = "unknown option 'max_lines'; did you mean 'max_line'? The options are profile, drain_ti"
    assert str(caught.value).startswith(hint)
    assert str(caught.value).endswith(", no_delay, keep_alive, handler_args, raise_errors")


TOO_LONG = threading.TIMEOUT_MAX * 2
LONGEST = f"{threading.TIMEOUT_MAX:.0f}"
# The error begins with the name of the option.
WRONG: list[tuple[str, Any, type[Exception], str]] = [
    ("drain_timeout", -1, ValueError, "must be 0 or more seconds, not -1"),
    ("drain_timeout", float("nan"), ValueError, "must be 0 or more seconds, not nan"),
    ("drain_timeout", float("inf"), ValueError, f"must be at most {LONGEST} seconds, not inf"),
    ("drain_timeout", TOO_LONG, ValueError, f"must be at most {LONGEST} seconds"),
    ("drain_timeout", 10**400, ValueError, "must be at most"),
    ("drain_timeout", None, TypeError, "must be a number of seconds, not None"),
    ("drain_timeout", True, TypeError, "must be a number of seconds, not True"),
    ("idle_timeout", 0, ValueError, "must be more than 0 seconds, not 0"),
    ("idle_timeout", "1", TypeError, "must be a number of seconds, not '1'"),
    ("max_connections", -1, ValueError, "must be 0 or more connections"),
    ("max_connections", True, TypeError, "must be a number of connections"),
    ("max_connections_per_ip", "1", TypeError, "must be a number of connections, not '1'"),
    ("max_connection_rate", 0, ValueError, "must be more than 0 per second"),
    ("max_connection_rate", "1", TypeError, "must be a number per second, not '1'"),
    ("min_rate", float("inf"), ValueError, "must be more than 0 per second"),
    ("min_rate", 10**400, ValueError, "must be more than 0 per second"),
    ("when_full", "drop", ValueError, "must be 'wait', 'refuse' or a number of seconds"),
    ("when_full", -1, ValueError, "must be 0 or more seconds, not -1"),
    ("refusal", b"no", TypeError, "must be text, not of type bytes"),
    ("max_line", 0, ValueError, "must be at least 1 byte, not 0"),
    ("max_line", 1.0, TypeError, "must be a number of bytes, not 1.0"),
    ("max_message", 0, ValueError, "must be at least 1 byte, not 0"),
    ("no_delay", 1, TypeError, "must be True or False, not 1"),
    ("keep_alive", None, TypeError, "must be True or False, not None"),
    ("handler_args", [], TypeError, "must be a mapping, not of type list"),
]


@pytest.mark.parametrize(("name", "value", "kind", "text"), WRONG)
def test_an_invalid_value_is_refused_and_named(
    name: str, value: Any, kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind, match=f"^{name} {re.escape(text)}"):
        Options(**{name: value})


@pytest.mark.parametrize(
    ("given", "kind", "text"),
    [
        ({"deny": "@/none"}, FileNotFoundError, "deny: No such file or directory: '/none'"),
        ({"allow": "1.1.1.1/33"}, ValueError, "allow: the prefix length must be from 0 to 32"),
        ({"deny": 5}, TypeError, "deny: expected a BlockList, a path or a list of rules, not 5"),
        ({"encoding": 5}, TypeError, "an encoding is a str, not int"),
        ({"encoding": "utf9"}, UnknownEncodingError, "unknown encoding 'utf9'"),
    ],
)
def test_an_invalid_list_or_encoding_is_refused(given: Any, kind: Any, text: str) -> None:
    with pytest.raises(kind) as caught:
        Options(**given)
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
    assert without == {"handler_args", "raise_errors", "tls"}
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


# Types


def annotations(kind: type) -> dict[str, str]:
    tree = ast.parse(inspect.getsource(kind))
    rows = [node for node in ast.walk(tree) if isinstance(node, ast.AnnAssign)]
    return {ast.unparse(row.target): ast.unparse(row.annotation) for row in rows}


@pytest.mark.parametrize(
    ("table", "types", "differing"),
    [
        (Options, netkit.ServerOptions, {"allow", "deny", "proxy_from", "tls"}),
        (ConnectOptions, netkit.ClientOptions, {"block_list"}),
    ],
)
def test_every_option_has_its_type_for_type_checkers(
    table: type[OptionTable], types: type, differing: set[str]
) -> None:
    """Those of `differing` are converted: a program may give more types than the table has."""
    stored, given = annotations(table), annotations(types)
    assert list(given) == list(table.rows)
    assert {name for name in given if given[name] != stored[name]} == differing
    optional = {name for name, text in given.items() if text.endswith("| None")}
    assert optional == {name for name, row in table.rows.items() if row.optional}


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
PIECES += ["utf-8", "auto", "\u0661", "x", ":", "app", "9" * 5_000, "1.2.3.4", "/8", ",", "refuse"]
PIECES += ["ms"]
PIECES += ["h", "::", "@", "[", "]", "unix:", "?", "*", "--", ".py"]
values = st.one_of(st.lists(st.sampled_from(PIECES), max_size=4).map("".join), st.text())
WITH_TEXT = [name for name, row in Options.rows.items() if row.kind.parse]


@pytest.mark.fuzz
@hypothesis.given(st.sampled_from(sorted(WITH_TEXT)), values)
def test_any_text_is_a_value_of_an_option_or_is_refused(name: str, text: str) -> None:
    if text.startswith("@"):  # a file
        return
    try:
        value = Options.rows[name].parse(text)
    except (ValueError, LookupError):
        return
    certificate = {"tls_cert": "server.pem"}  # which some of them need
    Options(**{**certificate, name: value})


# --- The profile for the Internet ---


def test_the_page_lists_the_values_of_the_profile() -> None:
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    table = page.partition("| option | value | reason |")[2].partition("\n\n")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", table, re.MULTILINE))
    assert rows.pop("max_connections") == (
        f"half of the descriptor limit, at most {options.clients_for(float('inf'))}"
    )
    assert {name: float(value) for name, value in rows.items()} == {
        name: value for name, value in options.public().items() if name != "max_connections"
    }


def test_the_page_lists_the_limits_that_a_server_without_options_has() -> None:
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    table = page.partition("| what | limit | option |")[2].partition("\n\n")[0]
    found = dict(re.findall(r"\| ([^|]+?) \| `(\w+)`", table))
    assert (found["64 KiB"], Options().max_line) == ("max_line", 64 * 1024)
    assert (found["16 MiB"], Options().max_message) == ("max_message", 16 * 1024 * 1024)
    assert (found["10 seconds"], Options().handshake_timeout) == ("handshake_timeout", 10)
    assert not Options().limited


def test_the_limit_of_clients_depends_on_the_limit_of_descriptors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    numbers = [1024, 256, 3, 1, 10**6, float("inf")]
    assert [options.clients_for(number) for number in numbers] == [512, 128, 1, 1, 10_000, 10_000]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits = {soft: soft // 2, 300: 150, resource.RLIM_INFINITY: 10_000}
    for limit, clients in limits.items():
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, hard))
        assert Options(profile="public").max_connections == min(clients, 10_000)


def test_a_single_option_wins_against_the_profile() -> None:
    assert Options(profile="public", idle_timeout=300, min_rate=None).as_dict() == {
        **Options().as_dict(),
        **options.public(),
        "profile": "public",
        "idle_timeout": 300,
        "min_rate": None,
    }
    assert Options(profile=None) == Options()


@pytest.mark.parametrize("name", ["Public", "", 5, True, ["public"]])
def test_an_unknown_profile_is_refused(name: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(f"profile must be 'public', not {name!r}")):
        Options(profile=name)
