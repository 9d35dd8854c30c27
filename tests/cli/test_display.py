"""Received data as text that is safe on a terminal."""

from __future__ import annotations

import pytest

from netkit.cli.display import Rows, Visible


def test_control_characters_are_made_visible() -> None:
    visible = Visible()
    assert visible.text(b"\x1b[2J\x07\x7f\ta\\b\n") == "^[[2J^G^?\ta\\b\n"
    assert visible.text("\u202eevil\u0085\U000e0001ü".encode()) == "\\u202eevil\\u0085\\U000e0001ü"


def test_invalid_bytes_are_shown_as_numbers() -> None:
    assert Visible().text(b"a\xff\xfeb") == "a\\xff\\xfeb"


def test_a_character_or_a_line_end_that_comes_in_pieces_is_shown_as_one() -> None:
    visible = Visible()
    assert [visible.text(bytes([byte])) for byte in "ü\r\nx".encode()] == [
        *("", "ü", "", "\n", "x"),
    ]
    assert visible.text(b"\r") == ""
    assert visible.text(b"y\r\r\n") == "^My^M\n"
    assert visible.text(b"\xc3\r", final=False) == "\\xc3"
    assert visible.text(b"", final=True) == "^M"
    assert Visible().text(b"\xc3", final=True) == "\\xc3"


@pytest.mark.parametrize(
    ("pieces", "shown", "unfinished"),
    [
        (["one\ntwo\n"], ["one\ntwo\n"], ""),
        (["log", "in: ", "\nme"], ["", "", "login: \n"], "me"),
        (["123456789", "0"], ["", "1234567890\n"], ""),
        (["日本語x", "日", "x"], ["", "", "日本語x日x\n"], ""),
        (["a\tb"], ["a\tb\n"], ""),
    ],
)
def test_an_unfinished_row_is_held_back_until_it_fills_the_terminal(
    pieces: list[str], shown: list[str], unfinished: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "10" if "\t" not in pieces[0] else "9")
    rows = Rows()
    assert [rows.add(piece) for piece in pieces] == shown
    assert rows.rest() == unfinished
    assert rows.rest() == ""
