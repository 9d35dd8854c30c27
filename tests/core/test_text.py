"""Text for people: what is escaped, and how an exception is described."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netkit.core.text import cut, described, in_bytes, one_line, printable, said

any_text = st.text(st.characters(codec=None))

ESCAPE = re.compile(r"\\(?:([nrt\\])|x(..)|u(....)|U(.{8}))")


def unescape(shown: str, of_byte: Callable[[int], str] = chr) -> str:
    """The text of a printable form. `of_byte` converts a byte from 80 up."""

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
def test_unprintable_characters_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.fuzz
@given(any_text)
def test_the_printable_form_is_one_line_and_unambiguous(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown.splitlines()) <= 1
    assert unescape(shown) == text


def test_one_line_escapes_and_leaves_backslashes_alone() -> None:
    assert one_line("C:\\new\nline\x1b") == "C:\\new\\nline\\x1b"
    assert one_line("C:\\new") == "C:\\new"


def test_a_long_text_is_cut_and_its_length_named() -> None:
    assert cut("x" * 10, 10) == "x" * 10
    assert cut("x" * 11, 10) == "xxxxxxxxxx... (11 characters)"
    assert len(one_line("\x1b" * 10**6)) < 26_000


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("a\nb"), r"ValueError: a\nb"),
        (EOFError(), "EOFError"),
        (ConnectionResetError(104, "Connection reset"), "ConnectionResetError: Connection reset"),
        (FileNotFoundError(2, "No such file", "x\n"), r"FileNotFoundError: No such file: 'x\\n'"),
        (OSError("just text"), "OSError: just text"),
        (OSError(5, ""), "OSError: [Errno 5] "),
        (ValueError("x" * 3000), f"ValueError: {'x' * 2000}... (3000 characters)"),
    ],
)
def test_an_exception_is_described_by_its_class_and_text_without_a_number(
    error: Exception, text: str
) -> None:
    assert described(error) == text


class Odd(Exception):
    """An exception whose text cannot be made."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __str__(self) -> str:
        raise self.error


@pytest.mark.parametrize("error", [ValueError(), SystemExit()])
def test_an_exception_whose_text_cannot_be_made_is_described_by_its_class(
    error: BaseException,
) -> None:
    assert described(Odd(error)) == "Odd"


def test_a_ctrl_c_while_the_text_of_an_exception_is_made_is_not_lost() -> None:
    with pytest.raises(KeyboardInterrupt):
        said(Odd(KeyboardInterrupt()))


def test_a_number_of_bytes_has_a_unit() -> None:
    assert [in_bytes(0), in_bytes(1), in_bytes(2)] == ["0 bytes", "1 byte", "2 bytes"]
