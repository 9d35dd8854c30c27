"""Text for people. Text from outside is escaped and cut: safe for a log and for a terminal."""

from __future__ import annotations

MOST_TEXT = 2000  # characters of the text of one exception, before they are escaped
MOST_LINE = 25_000  # characters of a log record, and of each line of a traceback


class Escapes(dict[int, str]):
    """A table for ``str.translate`` that escapes each character that is not printable."""

    def __missing__(self, code: int) -> str:
        if chr(code).isprintable():
            return chr(code)
        return ("\\x%02x" if code < 0x80 else "\\u%04x" if code < 0x10000 else "\\U%08x") % code


ESCAPES = Escapes({ord(char): repr(char)[1:-1] for char in "\n\r\t\\"})


def printable(text: str) -> str:
    r"""Return `text` as one line that is safe in a log or on a terminal, and unambiguous.

    Backslashes and characters that are not printable are escaped: ``\n``, ``\x1b``, ``\\``,
    ``\u0085``, ``\u202e``.
    """
    return text if text.isprintable() and "\\" not in text else text.translate(ESCAPES)


def cut(text: str, most: int = MOST_LINE) -> str:
    """Return `text`, or its beginning and its length if it has more than `most` characters."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def one_line(text: str) -> str:
    """Return `text` as one line that is safe on a terminal, cut. Backslashes are not escaped."""
    if not text.isprintable():
        text = printable(cut(text)).replace(r"\\", "\\")
    return cut(text)


def said(thing: object) -> str:
    """Return the text of an exception (without an error number) or of another object, cut.

    The text is not escaped. It is empty if ``__str__`` raises anything but KeyboardInterrupt.
    """
    if isinstance(thing, OSError) and thing.strerror and type(thing).__str__ is OSError.__str__:
        where = "" if thing.filename is None else f": {_str(thing.filename)!r}"
        return cut(f"{_str(thing.strerror)}{where}", MOST_TEXT)
    return cut(_str(thing), MOST_TEXT)


def _str(thing: object) -> str:
    try:
        return str(thing)
    except KeyboardInterrupt:  # Ctrl+C, which is not a fault of the object's `__str__`
        raise
    except BaseException:
        return ""


def described(error: BaseException) -> str:
    """Return the class and text of an exception as a printable line: ``ValueError: no number``."""
    text = printable(said(error))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def several(number: int, noun: str) -> str:
    """Return a number with its noun: ``1 worker``, ``2 workers``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def in_bytes(number: int) -> str:
    """Return a number of bytes with the noun: ``1 byte``, ``2 bytes``."""
    return several(number, "byte")
