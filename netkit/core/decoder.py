"""Incremental decoding: the text of a stream that arrives in pieces.

Rules:

1. However a stream is cut into pieces, its text is that of `netkit.core.encodings.to_str`.
2. A stream keeps at most `MAX_KEPT` bytes of an incomplete character. Codecs that cannot decode
   piece by piece keep everything, up to a limit of the caller's.
"""

from __future__ import annotations

import codecs
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from .encodings import REPLACE, Decode, check_errors, decode_whole, lookup, raw_bytes
from .errors import InvalidTextError, MessageTooLongError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# How many bytes a stream may need for its next character, shifts and escapes included. Most codecs
# need a few, but utf-7 needs all of a shifted sequence, and decodes it anew with each piece.
MAX_KEPT = 4096

# Codecs that decode at the end of the stream. In idna and punycode no bytes stand for one
# character. unicode_escape gives another result if the octal escape "\12" is cut after the "1".
_AT_THE_END = ("idna", "punycode", "unicode-escape")


class IncrementalDecoder:
    """Decodes a stream that arrives in pieces. Not thread-safe.

    The decoder keeps an incomplete character for the next call: at most 4096 bytes. A few codecs
    cannot decode piece by piece (idna, punycode, unicode_escape, and any registered codec without
    an incremental decoder). They keep everything and return it at the end: at most `max_message`
    bytes (None for any number), and 4096 bytes for idna and punycode. `errors` is as in `to_str`.
    UnknownEncodingError if `encoding` is unknown; LookupError if `errors` is.
    """

    def __init__(
        self, encoding: str, max_message: int | None = None, errors: str = REPLACE
    ) -> None:
        self.encoding = encoding
        self.max_message = max_message
        self.errors = check_errors(errors)
        self._restart()

    def _restart(self) -> None:
        self._decode = _decode_of(self.encoding, self.max_message, self.errors)
        self._kept = bytearray()

    @property
    def pending(self) -> bool:
        """Whether the decoder keeps a part of a character."""
        return bool(self._kept)

    def decode(self, data: ReadableBuffer, final: bool = False) -> str:
        """Return the text that `data` completes.

        `final` says that the stream ends after `data`, which may be empty. The next call begins
        another stream. MessageTooLongError if the decoder would have to keep too much, and
        InvalidTextError if `errors` is ``"strict"``. The next call begins another stream then, too.
        """
        raw = data if type(data) is bytes else raw_bytes(data)
        decode, kept = self._decode, self._kept
        if final:  # first, because a codec may raise
            self._restart()
        try:
            if kept:
                kept += raw
                text, used = decode(kept, final)
                del kept[:used]
            else:
                text, used = decode(raw, final)
                if used < len(raw):
                    kept += raw[used:]
        except MessageTooLongError:
            self._restart()
            raise
        except UnicodeError as error:
            if self.errors != "strict":
                raise
            self._restart()
            raise InvalidTextError.of(error, self.encoding, bytes(kept or raw)) from None
        return text


def _decode_of(encoding: str, max_message: int | None, errors: str) -> Decode:
    node = lookup(encoding)
    if node and (errors == REPLACE or node.text_codec is None):
        return node.decode
    codec = codecs.lookup((node and node.text_codec) or encoding)
    if codec.name in ("utf-16", "utf-32"):
        wide = codec.name == "utf-32"
        return _byte_order(codecs.utf_32_ex_decode if wide else codecs.utf_16_ex_decode, errors)
    if codec.incrementaldecoder is None or codec.name in _AT_THE_END:
        return _whole(encoding, max_message, errors)
    return _counted(codec.incrementaldecoder(errors), encoding, errors)


def _whole(encoding: str, max_message: int | None, errors: str) -> Decode:
    # The time that these two take grows with the square of the size: 64 KiB take a second. (idna
    # decodes labels of punycode, which were of any length before Python 3.13.)
    quadratic = codecs.lookup(encoding).name in ("idna", "punycode")

    def decode(data: bytes | bytearray, final: bool) -> tuple[str, int]:
        if quadratic and len(data) > MAX_KEPT:
            raise MessageTooLongError(MAX_KEPT, option=None, what=f"text in {encoding}")
        if max_message is not None and len(data) > max_message:
            raise MessageTooLongError(max_message)
        return (decode_whole(data, encoding, errors), len(data)) if final else ("", 0)

    return decode


def _byte_order(ex_decode: Callable[..., tuple[str, int, int]], errors: str) -> Decode:
    # Without a byte order mark Python's incremental decoders raise. This takes the machine's order.
    order = 0  # not known yet; -1 for little-endian, 1 for big-endian

    def decode(data: bytes | bytearray, final: bool) -> tuple[str, int]:
        nonlocal order
        text, used, order = ex_decode(data, errors, order, final)
        if used and not order:
            order = -1 if sys.byteorder == "little" else 1
        return text, used

    return decode


def _counted(decoder: codecs.IncrementalDecoder, encoding: str, errors: str) -> Decode:
    """Return a function that decodes by `decoder`, and takes back the bytes that are incomplete."""
    # The iso2022 decoders raise after 9 bytes that may become an escape sequence. No text has such
    # bytes, so the rest of the stream is decoded at its end.
    stuck = False

    def decode(data: bytes | bytearray, final: bool) -> tuple[str, int]:
        nonlocal stuck
        if final:
            return decoder.decode(bytes(data), True), len(data)
        text, used = "", 0
        state = decoder.getstate()
        try:
            text = "" if stuck else decoder.decode(bytes(data))
        except UnicodeError:
            if errors == "strict":
                raise
            decoder.setstate(state)
            stuck = True
        if not stuck:
            incomplete, flags = decoder.getstate()
            if incomplete:
                decoder.setstate((b"", flags))
            used = len(data) - len(incomplete)
        if len(data) - used > MAX_KEPT:
            raise MessageTooLongError(MAX_KEPT, option=None, what=f"character of {encoding}")
        return text, used

    return decode
