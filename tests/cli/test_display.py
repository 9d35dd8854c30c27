"""Received data as text that is safe on a terminal."""

from __future__ import annotations

import pytest

from netkit.cli.display import Rows, Text


def texts_of(*pieces: bytes) -> list[str]:
    """What is shown of each piece."""
    texts: list[str] = []
    sink = Text(texts.append)
    for piece in pieces:
        sink.write(piece)
    return texts


def test_control_characters_are_made_visible() -> None:
    assert texts_of(b"\x1b[2J\x07\x7f\ta\\b\n", "\u202eevil\u0085\U000e0001ü".encode()) == [
        "^[[2J^G^?\ta\\b\n",
        "\\u202eevil\\u0085\\U000e0001ü",
    ]


def test_invalid_bytes_are_shown_as_numbers() -> None:
    assert texts_of(b"a\xff\xfeb") == ["a\\xff\\xfeb"]


def test_a_character_or_a_line_end_that_comes_in_pieces_is_shown_as_one() -> None:
    assert texts_of(*(bytes([byte]) for byte in "ü\r\nx".encode())) == ["", "ü", "", "\n", "x"]
    assert texts_of(b"\r", b"y\r\r\n", b"\xc3\r", b"") == ["", "^My^M\n", "\\xc3", "^M"]
    assert texts_of(b"\xc3", b"") == ["", "\\xc3"]


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
