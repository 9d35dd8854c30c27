"""``--set``: the settings that handlers have, and their types."""

from __future__ import annotations

import functools
import socketserver
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

import netkit
from netkit.cli.arguments import ArgumentError
from netkit.cli.settings import converted, parse

if TYPE_CHECKING:
    from nowhere import Missing  # type: ignore[import-not-found]


class Typed(netkit.Handler):
    text = "x"
    raw: bytes = b""
    count = 1
    share: float = 1
    loud = True
    rate: int | None = None
    delay: float | str = 1.0
    word: Literal["one", "two"] = "one"
    file: Path = Path("x")
    here = Path("x")
    anything: Any = None
    nothing = None
    maybe: dict | None = None
    table: dict[str, int] = {}  # noqa: RUF012
    unset: int

    def method(self) -> None:
        pass

    @property
    def computed(self) -> int:
        return 1


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("text=a=b", "a=b"),
        ("raw=é", "é".encode()),
        ("count=-5", -5),
        ("share=0.5", 0.5),
        ("loud=off", False),
        ("rate=off", None),
        ("rate=7", 7),
        ("delay=2", 2.0),
        ("word=two", "two"),
        ("file=/a b", Path("/a b")),
        ("here=", Path()),
        ("anything=1", "1"),
        ("nothing=1", "1"),
    ],
)
def test_the_annotation_or_else_the_default_says_the_type(setting: str, value: Any) -> None:
    name, text = parse(setting)
    found = converted({name: text}, Typed)[name]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ("count=1.5", "--set count: it must be a whole number, not '1.5'"),
        ("share=nan", "--set share: it must be a number, not 'nan'"),
        ("share=x", "--set share: it must be a number, not 'x'"),
        ("loud=yes", "--set loud: it must be on or off, not 'yes'"),
        ("word=three", "--set word: it must be one of one, two, not 'three'"),
        ("table={}", "--set table: a value of type dict cannot be given as text"),
        ("maybe=x", "--set maybe: a value of type dict | None cannot be given as text"),
        ("tetx=x", "--set tetx: Typed has no setting tetx; did you mean text?"),
        (
            "method=1",
            "--set method: Typed has no setting method; the settings are anything, count, "
            "delay, file, here, loud, maybe, nothing, rate, raw, share, table, text, word",
        ),
    ],
)
def test_an_invalid_setting_is_one_line_that_names_it(setting: str, error: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        converted(dict([parse(setting)]), Typed)
    assert str(caught.value) == error


@pytest.mark.parametrize("name", ["conn", "computed", "unset", "__doc__"])
def test_what_is_no_attribute_with_a_value_of_its_own_is_no_setting(name: str) -> None:
    with pytest.raises(ArgumentError, match=f"Typed has no setting {name}"):
        converted({name: "1"}, Typed)


def function(conn: Any, count: int = 1, *, name: Missing = None, ready: bool) -> None:
    pass


def three(request: Any, client_address: Any, server: Any, count: int = 1) -> None:
    pass


def anything(conn: Any, **settings: Any) -> None:
    pass


class Own(netkit.Handler):
    size = 1

    def __init__(self, conn: Any, depth: int, **settings: Any) -> None:
        super().__init__(conn, **settings)


class Closed(netkit.Handler):
    size = 1

    def __init__(self, conn: Any, depth: int = 1) -> None:
        super().__init__(conn)


class Old(socketserver.BaseRequestHandler):
    def __init__(self, *args: Any, depth: int = 1) -> None:
        super().__init__(*args)


@pytest.mark.parametrize(
    ("handler", "given", "values"),
    [
        (function, {"ready": "on", "name": "n"}, {"ready": True, "name": "n"}),
        (three, {"count": "3"}, {"count": 3}),
        (anything, {"x": "3"}, {"x": "3"}),
        (functools.partial(function, ready=True), {"ready": "off"}, {"ready": False}),
        (Own, {"size": "2", "depth": "3"}, {"size": 2, "depth": 3}),
        (Closed, {"depth": "3"}, {"depth": 3}),
        (Old, {"depth": "3"}, {"depth": 3}),
        (42, {}, {}),
    ],
)
def test_the_settings_of_each_kind_of_handler(handler: Any, given: Any, values: Any) -> None:
    assert converted(given, handler) == values


@pytest.mark.parametrize(
    ("handler", "name", "error"),
    [
        (Closed, "size", "Closed has no setting size; the settings are depth"),
        (function, "conn", "function has no setting conn"),
        (Old, "server", "Old has no setting server; the settings are depth"),
        (42, "x", "42 has no setting x; it has none"),
    ],
)
def test_what_is_no_setting_is_refused(handler: Any, name: str, error: str) -> None:
    with pytest.raises(ArgumentError, match=error):
        converted({name: "1"}, handler)
