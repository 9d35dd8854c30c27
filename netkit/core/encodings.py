"""Text to bytes and back: Node's encodings with Node's rules, and every text codec of Python.

Node's 12 names (any case, no trimming) never fail: what a str or some bytes cannot mean in them is
replaced, cut to fit or left out, exactly as in Node. Any other name is Python's: encoding is
strict, as in ``str.encode``; decoding is ``bytes.decode(name, errors="replace")``, but idna and
punycode have invalid bytes that they refuse to replace, and raise UnicodeError. A name that nobody
knows raises UnknownEncodingError everywhere, also where there is nothing to convert.
"""

from __future__ import annotations

import binascii
import codecs
import functools
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from .errors import MessageTooLongError, UnknownEncodingError
from .text import ESCAPES, Escapes

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# Takes bytes, and whether they are the last. Gives the text of the complete characters and how many
# bytes those were: the others must be passed again, in front of what comes next.
_Decode = Callable[[bytes | bytearray, bool], tuple[str, int]]

# How many bytes a stream may need for its next character, shifts and escapes included. Most codecs
# need a few, but utf-7 needs all of a shifted sequence, and decodes it anew with each piece.
MAX_KEPT = 4096


def to_bytes(value: str | ReadableBuffer, encoding: str = "utf-8") -> bytes:
    """The str `value` in `encoding`, or the bytes of any bytes-like `value` as they are.

    UnicodeEncodeError if a codec of Python's cannot carry the text.
    """
    if encoding == "utf-8":  # nearly every write of a program: no look-up
        if isinstance(value, str):
            return _encode_utf8(value)
        if type(value) is bytes:
            return value
    node = _lookup(encoding)
    if isinstance(value, str):
        return node.encode(value) if node else value.encode(encoding)
    return _raw(value)


def to_str(data: str | ReadableBuffer, encoding: str = "utf-8") -> str:
    """The text of `data` in `encoding`; a str as it is."""
    node = _lookup(encoding)
    if isinstance(data, str):
        return data
    return node.decode(_raw(data), True)[0] if node else _decode_whole(_raw(data), encoding)


def is_utf8(name: str) -> bool:
    """Whether it is one of Node's names of UTF-8, in which each newline is a byte of its own."""
    return _lookup(name) is _UTF8


def check_encoding(name: str) -> str:
    """`name`, if it is an encoding."""
    _lookup(name)
    return name


@functools.lru_cache(maxsize=32)  # every line that is read asks for one, and always for the same
def encode_separator(text: str, encoding: str) -> tuple[bytes, int]:
    """What `text` looks like within a stream in `encoding`, and the size of the code unit.

    It has no byte order mark; "utf-16" and "utf-32" are in this machine's byte order. In hex and
    base64 a str is data, so there it is the UTF-8 of `text`.
    """
    node = _lookup(encoding)
    if node and node.text_codec is None:
        return _encode_utf8(text), 1
    # Whatever a codec puts at the start of a stream, it has put there before the first "a".
    start = len(to_bytes("a", encoding))
    return to_bytes("a" + text, encoding)[start:], len(to_bytes("aa", encoding)) - start


def printable_bytes(data: ReadableBuffer, encoding: str = "utf-8") -> str:
    r"""The text of `data` in `encoding` as one line, escaped as by `netkit.core.text.printable`.

    Bytes that are no text in `encoding` become ``\xNN``. From 80 up, ``\xNN`` is always such a byte
    and never a character (the character is ``\u0085``). Encodings of bytes as digits (hex, base64)
    give the digits.
    """
    node, raw = _lookup(encoding), _raw(data)
    if node and node.text_codec is None:
        return node.decode(raw, True)[0]
    try:
        text = raw.decode(node.text_codec if node and node.text_codec else encoding, "netkit.mark")
    except UnicodeError:  # idna and punycode know no such handler; what they encode to is ASCII
        text = raw.decode("ascii", "netkit.mark")
    return text.translate(_MARKED_ESCAPES)


class IncrementalDecoder:
    """Decodes a stream that comes in pieces: however it is cut, the text is that of `to_str`.

    A character that has not come whole is kept for the next call: at most `MAX_KEPT` bytes. With
    the few codecs that cannot be decoded piece by piece (idna, punycode, unicode_escape, and any
    that has been registered without an incremental decoder) everything is kept, and comes at the
    end: at most `max_message` bytes, None for any number; with idna and punycode, `MAX_KEPT`.
    """

    def __init__(self, encoding: str, max_message: int | None = None) -> None:
        self.encoding = encoding
        self.max_message = max_message
        self._restart()

    def _restart(self) -> None:
        self._decode = _incremental(self.encoding, self.max_message)
        self._kept = bytearray()

    @property
    def pending(self) -> bool:
        """Whether a part of a character is kept."""
        return bool(self._kept)

    def decode(self, data: ReadableBuffer, final: bool = False) -> str:
        """The text that `data` completes.

        `final`: the stream ends after `data`, which may be empty; the next call starts another.
        MessageTooLongError if more has to be kept than may be; the next call starts another stream.
        """
        raw = data if type(data) is bytes else _raw(data)
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
        return text


# --- Names ---


class _Node(NamedTuple):
    encode: Callable[[str], bytes]
    decode: _Decode
    text_codec: str | None  # Python's, which tells text from errors; None: all bytes, as digits


def _lookup(name: str) -> _Node | None:
    """Node's encoding of this name; None if it is a text codec of Python's."""
    if not isinstance(name, str):
        raise TypeError(f"an encoding is a str, not {type(name).__name__}")
    node = _NODE.get(name.lower())
    if node is None and not _is_python(name):
        raise _unknown(name)
    return node


def _is_python(name: str) -> bool:
    if not name.isascii():  # from 3.15 on, Python warns of it
        return False
    try:
        "".encode(name)
    except (LookupError, ValueError):  # ValueError: a NUL in it, or the codec "undefined"
        return False
    return True


def _unknown(name: str) -> UnknownEncodingError:
    import difflib  # here because only a mistake needs it
    from encodings.aliases import aliases

    names = {*_NODE, *(codec.replace("_", "-") for codec in aliases.values())}
    close = difflib.get_close_matches(name.lower(), names, n=4)
    return UnknownEncodingError(name, [n for n in close if n in _NODE or _is_python(n)][:2])


def _raw(data: ReadableBuffer) -> bytes:
    if type(data) is bytes:
        return data
    try:
        return bytes(memoryview(data))
    except TypeError:
        kind = type(data).__name__
        raise TypeError(f"expected str or a bytes-like object, not {kind}") from None


# --- Node's encodings ---


def _encode_utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:  # surrogates: a pair is one character, a lone one becomes U+FFFD
        return _encode_utf16le(text).decode("utf-16-le", "replace").encode()


def _encode_utf16le(text: str) -> bytes:
    return text.encode("utf-16-le", "surrogatepass")


def _encode_latin1(text: str) -> bytes:
    return _encode_utf16le(text)[::2]  # the low byte of every UTF-16 code unit


# Node sees only the low byte when it reads digits, too: "İ" (U+0130) is a "0".


def _encode_hex(text: str) -> bytes:
    digits = _NOT_HEX.split(_encode_latin1(text), maxsplit=1)[0]
    return binascii.unhexlify(digits[: len(digits) & ~1])


def _encode_base64(text: str) -> bytes:
    digits = _encode_latin1(text).partition(b"=")[0].translate(_FROM_URL, _NOT_BASE64)
    if len(digits) % 4 == 1:  # six bits make no byte
        digits = digits[:-1]
    return binascii.a2b_base64(digits + b"=" * (-len(digits) % 4))


def _decode_utf8(data: bytes | bytearray, final: bool) -> tuple[str, int]:
    return codecs.utf_8_decode(data, "replace", final)


def _decode_utf16le(data: bytes | bytearray, final: bool) -> tuple[str, int]:
    text, used = codecs.utf_16_le_decode(data[: len(data) & ~1], "surrogatepass", final)
    return text, len(data) if final else used  # at the end, half a code unit is dropped


def _decode_latin1(data: bytes | bytearray, _final: bool) -> tuple[str, int]:
    return data.decode("latin-1"), len(data)


def _decode_ascii(data: bytes | bytearray, _final: bool) -> tuple[str, int]:
    return data.translate(_SEVEN_BITS).decode("ascii"), len(data)


def _decode_hex(data: bytes | bytearray, _final: bool) -> tuple[str, int]:
    return data.hex(), len(data)


def _decode_base64(data: bytes | bytearray, final: bool) -> tuple[str, int]:
    used = len(data) if final else len(data) - len(data) % 3
    return binascii.b2a_base64(data[:used], newline=False).decode("ascii"), used


def _decode_base64url(data: bytes | bytearray, final: bool) -> tuple[str, int]:
    text, used = _decode_base64(data, final)
    return text.rstrip("=").translate(_TO_URL), used


_SEVEN_BITS = bytes(byte & 0x7F for byte in range(256))
_NOT_HEX = re.compile(rb"[^0-9A-Fa-f]")
_FROM_URL, _TO_URL = bytes.maketrans(b"-_", b"+/"), str.maketrans("+/", "-_")
_NOT_BASE64 = re.sub(rb"[A-Za-z0-9+/_-]", b"", bytes(range(256)))

_UTF8 = _Node(_encode_utf8, _decode_utf8, "utf-8")
_UTF16LE = _Node(_encode_utf16le, _decode_utf16le, "utf-16-le")
_LATIN1 = _Node(_encode_latin1, _decode_latin1, "latin-1")
_NODE = {
    **dict.fromkeys(("utf8", "utf-8"), _UTF8),
    **dict.fromkeys(("utf16le", "utf-16le", "ucs2", "ucs-2"), _UTF16LE),
    **dict.fromkeys(("latin1", "binary"), _LATIN1),
    "ascii": _Node(_encode_latin1, _decode_ascii, "ascii"),
    "hex": _Node(_encode_hex, _decode_hex, None),
    "base64": _Node(_encode_base64, _decode_base64, None),
    "base64url": _Node(_encode_base64, _decode_base64url, None),
}

# --- Python's codecs ---

# idna and punycode have no bytes that stand for one character; unicode_escape decodes the octal
# escape "\12" to something else if it is cut after the "1".
_AT_THE_END = ("idna", "punycode", "unicode-escape")


def _decode_whole(data: bytes | bytearray, encoding: str) -> str:
    strict = codecs.lookup(encoding).name == "idna"  # which knows no other way
    return data.decode(encoding, "strict" if strict else "replace")


def _incremental(encoding: str, max_message: int | None) -> _Decode:
    """Decodes one stream: with Python's incremental decoder if it gives what ``decode`` gives."""
    node = _lookup(encoding)
    if node:
        return node.decode
    codec = codecs.lookup(encoding)
    if codec.name == "utf-16":
        return _byte_order(codecs.utf_16_ex_decode)
    if codec.name == "utf-32":
        return _byte_order(codecs.utf_32_ex_decode)
    if codec.incrementaldecoder is None or codec.name in _AT_THE_END:
        return _whole(encoding, max_message)
    return _patient(codec.incrementaldecoder("replace"), encoding)


def _whole(encoding: str, max_message: int | None) -> _Decode:
    """Decodes nothing before the end."""
    # The time that these two take grows with the square of the size: 64 KiB take a second. (idna
    # decodes labels of punycode, which were of any length before Python 3.13.)
    quadratic = codecs.lookup(encoding).name in ("idna", "punycode")

    def decode(data: bytes | bytearray, final: bool) -> tuple[str, int]:
        if quadratic and len(data) > MAX_KEPT:
            raise MessageTooLongError(MAX_KEPT, option=None, what=f"text in {encoding}")
        if max_message is not None and len(data) > max_message:
            raise MessageTooLongError(max_message)
        return (_decode_whole(data, encoding), len(data)) if final else ("", 0)

    return decode


def _byte_order(ex_decode: Callable[..., tuple[str, int, int]]) -> _Decode:
    """No byte order mark: this machine's order, where Python's incremental decoders raise."""
    order = 0  # not known yet; -1: little-endian, 1: big-endian

    def decode(data: bytes | bytearray, final: bool) -> tuple[str, int]:
        nonlocal order
        text, used, order = ex_decode(data, "replace", order, final)
        if used and not order:
            order = -1 if sys.byteorder == "little" else 1
        return text, used

    return decode


def _patient(decoder: codecs.IncrementalDecoder, encoding: str) -> _Decode:
    """Decodes with `decoder`, whose incomplete bytes are given back, so that they are counted here.

    The iso2022 decoders raise after 9 bytes of what may yet become an escape sequence. No text has
    that, so the rest of such a stream can wait for its end.
    """
    waiting = False

    def decode(data: bytes | bytearray, final: bool) -> tuple[str, int]:
        nonlocal waiting
        if final:
            return decoder.decode(bytes(data), True), len(data)
        text, used = "", 0
        if not waiting:
            state = decoder.getstate()
            try:
                text = decoder.decode(bytes(data))
            except UnicodeError:
                decoder.setstate(state)
                waiting = True
            else:
                incomplete, flags = decoder.getstate()
                if incomplete:
                    decoder.setstate((b"", flags))
                used = len(data) - len(incomplete)
        if len(data) - used > MAX_KEPT:
            raise MessageTooLongError(MAX_KEPT, option=None, what=f"character of {encoding}")
        return text, used

    return decode


# --- Printable text ---

_MARKED_ESCAPES = Escapes(ESCAPES | {0xDC00 + byte: f"\\x{byte:02x}" for byte in range(256)})


def _mark(error: UnicodeError) -> tuple[str, int]:
    """Undecodable bytes become the lone surrogates from U+DC00 up.

    No codec decodes to those of its own accord, but for utf-7 and those of Python's escapes.
    """
    assert isinstance(error, UnicodeDecodeError)
    wrong = error.object[error.start : error.end]
    return "".join(chr(0xDC00 + byte) for byte in wrong), error.end


codecs.register_error("netkit.mark", _mark)
