"""Text for people: what is escaped, and how an exception is described."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netkit.core.text import printable

any_text = st.text(st.characters(codec=None))

ESCAPE = re.compile(r"\\(?:([nrt\\])|x(..)|u(....)|U(.{8}))")


def unescape(shown: str, of_byte: Callable[[int], str] = chr) -> str:
    """The text that `printable` has shown; `of_byte` makes something of a byte from 80 up."""

    def original(match: re.Match[str]) -> str:
        letter, *digits = match.groups()
        if letter:
            return {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}[letter]
        code = int(next(filter(None, digits)), 16)
        return of_byte(code) if digits[0] and code >= 0x80 else chr(code)

    return ESCAPE.sub(original, shown)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("h\u00e9 \u65e5\u672c \U0001f600", "h\u00e9 \u65e5\u672c \U0001f600"),
        ("a\nb\rc\td", r"a\nb\rc\td"),
        ("\\n", r"\\n"),
        ("\x1b[31m\0\x7f", r"\x1b[31m\x00\x7f"),
        ("\x85\xa0\xad", r"\u0085\u00a0\u00ad"),
        ("\u202e\u2028\u2066\ufeff", r"\u202e\u2028\u2066\ufeff"),
        ("\ud83d\udc80", r"\ud83d\udc80"),
        ("\U000e0001", r"\U000e0001"),
        ("'\"", "'\""),
    ],
)
def test_what_would_not_show_is_shown_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.fuzz
@given(any_text)
def test_what_is_shown_is_one_printable_line_and_tells_the_text(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown.splitlines()) <= 1
    assert unescape(shown) == text
