"""The lines of a `Reader`, as text or bytes: found one by one, or split many at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, overload

from .decoder import IncrementalDecoder
from .encodings import encode_separator, is_utf8
from .errors import InvalidTextError

if TYPE_CHECKING:
    from .reader import Reader

# The bytes that are split at once: enough for many short lines, and little memory even if each line
# is empty.
AHEAD = 2048

_AS_SET: Any = object()  # the encoding is that of the reader


@overload
def lines(
    reader: Reader[Any], encoding: None, *, timeout: float | None = None
) -> Iterator[bytes]: ...


@overload
def lines(
    reader: Reader[Any],
    encoding: str = _AS_SET,
    errors: str | None = None,
    *,
    timeout: float | None = None,
) -> Iterator[str]: ...


def lines(
    reader: Reader[Any],
    encoding: str | None = _AS_SET,
    errors: str | None = None,
    *,
    timeout: float | None = None,
) -> Iterator[Any]:
    r"""Yield the lines without ``\n`` or ``\r\n``, until the end of input.

    Lines are text in `encoding`; by default that of `set_encoding`, or else of the connection
    (UTF-8). They are bytes if `encoding` is None.

    `errors` is as in ``bytes.decode``; by default it is that of `set_encoding`, or else
    ``"replace"``: invalid bytes become U+FFFD. With ``"strict"`` a line that has invalid bytes
    raises InvalidTextError. After that error, and after LineTooLongError (as by `readuntil`), the
    iterator goes on with the next line. `timeout` bounds each line. UnknownEncodingError;
    LookupError for unknown `errors`.
    """
    source = reader._source
    seen, decoder, newline, width, ending, can_split = _form(reader, encoding, errors)

    def next_line() -> Any:
        nonlocal seen, decoder, newline, width, ending, can_split
        if reader._decoder is not seen:  # `set_encoding` applies to the lines that follow
            seen, decoder, newline, width, ending, can_split = _form(reader, encoding, errors)
        ahead = reader._ahead if can_split else None
        if ahead and len(ahead[-1]) <= reader.max_line and source.interruption is None:
            line = ahead.pop()
            if decoder is None:
                return line.removesuffix(ending)
            try:
                return line.decode("utf-8", decoder.errors).removesuffix(ending)
            except UnicodeDecodeError as error:
                raise InvalidTextError.of(error) from None
        line, complete = reader._read_until(newline, width)
        if can_split and reader._buffer and not reader._mixed:
            _split_ahead(reader)
        if decoder is None:
            return line.removesuffix(newline).removesuffix(ending) if line else None
        if decoder is seen:
            reader._decoded_size += len(line)
        text = decoder.decode(line, final=not complete)
        return text.removesuffix("\n").removesuffix(ending) if line or text else None

    timed = next_line if timeout is None else lambda: reader._within(timeout, next_line)
    return iter(timed, None)


def _split_ahead(reader: Reader[Any]) -> None:
    end = reader._buffer.rfind(b"\n", 0, AHEAD)
    if end >= 0:
        reader._ahead = reader._buffer.take(end + 1)[:end].split(b"\n")[::-1]


def _form(reader: Reader[Any], encoding: str | None, errors: str | None) -> tuple[Any, ...]:
    """Return how lines are found and decoded.

    The decoder of `set_encoding` and that of the lines (None if there is none); the newline, and
    the size of its code unit in bytes; the carriage return to drop before it, of the type of a
    line; whether lines can be split in advance.
    """
    decoder = _decoder_of(reader, encoding, errors)
    name = reader.encoding if decoder is None else decoder.encoding
    newline, width = encode_separator("\n", name)
    ending = encode_separator("\r", name)[0] if decoder is None else "\r"
    # In UTF-8 the decoder keeps nothing after a line.
    can_split = newline == b"\n" and (decoder is None or is_utf8(name))
    return reader._decoder, decoder, newline, width, ending, can_split


def _decoder_of(
    reader: Reader[Any], encoding: str | None, errors: str | None
) -> IncrementalDecoder | None:
    if encoding is None:
        return None
    decoder = reader._decoder
    if encoding is _AS_SET:
        if decoder is not None and errors is None:
            return decoder
        encoding = reader.encoding if decoder is None else decoder.encoding
    if errors is None:
        errors = "replace" if decoder is None else decoder.errors
    return IncrementalDecoder(encoding, reader.max_message, errors)
