"""Text to bytes and back: Node's encodings with Node's rules, and every text codec of Python.

Rules:

1. The 12 names of Node (in any case, without spaces) never fail. Invalid input is replaced, cut or
   left out, exactly as in Node.
2. All other names are those of Python's codecs. Encoding is strict, as by ``str.encode``. Decoding
   is ``bytes.decode(name, errors="replace")``. Only idna and punycode raise UnicodeError, for
   invalid bytes that they do not replace.
3. What decodes takes `errors`, as ``bytes.decode`` does. The default is ``"replace"``, since one
   byte of a client must not be able to end a handler that shows text to people. With any other
   value a name of Node is that of Python's codec; hex, base64 and latin1 have no invalid bytes.
   ``"strict"`` raises InvalidTextError.
4. An unknown name raises UnknownEncodingError in every function, also if there is no data.
"""

from __future__ import annotations

import binascii
import codecs
import contextlib
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from .errors import InvalidTextError, UnknownEncodingError
from .record import NamedTuple
from .text import ESCAPES, Escapes

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# Takes bytes, and whether they are the last of a stream. Returns the text of the complete
# characters and the number of their bytes. The next call begins with the other bytes.
Decode = Callable[[bytes | bytearray, bool], tuple[str, int]]

REPLACE = "replace"  # the default of `errors`


def to_bytes(value: str | ReadableBuffer, encoding: str = "utf-8") -> bytes:
    """Return the str `value` in `encoding`, or the bytes of a bytes-like `value` unchanged.

    UnicodeEncodeError if a codec of Python cannot encode the text; UnknownEncodingError.
    """
    if encoding == "utf-8":  # nearly every write of a program: no look-up
        if isinstance(value, str):
            return _encode_utf8(value)
        if type(value) is bytes:
            return value
    node = lookup(encoding)
    if isinstance(value, str):
        return node.encode(value) if node else value.encode(encoding)
    return raw_bytes(value)


def to_str(data: str | ReadableBuffer, encoding: str = "utf-8", errors: str = REPLACE) -> str:
    """Return the text of the bytes-like `data` in `encoding`, or a str unchanged.

    `errors` says what becomes of invalid bytes, as in ``bytes.decode``: ``"replace"`` makes each of
    them U+FFFD, ``"strict"`` raises InvalidTextError. UnknownEncodingError; LookupError if `errors`
    is unknown.
    """
    check_errors(errors)
    node = lookup(encoding)
    if isinstance(data, str):
        return data
    raw = raw_bytes(data)
    if node and (errors == REPLACE or node.text_codec is None):
        return node.decode(raw, True)[0]
    try:
        return decode_whole(raw, (node and node.text_codec) or encoding, errors)
    except UnicodeError as error:
        if errors != "strict":
            raise
        raise InvalidTextError.of(error, encoding, raw) from None


def is_utf8(name: str) -> bool:
    """Whether `name` is one of Node's names of UTF-8, in which the byte 10 is always a newline."""
    return lookup(name) is _UTF8


def check_encoding(name: str) -> str:
    """Return `name`, or raise UnknownEncodingError."""
    lookup(name)
    return name


def check_errors(errors: str) -> str:
    """Return `errors`, or raise LookupError or TypeError unless ``bytes.decode`` takes it."""
    if errors != REPLACE:
        with contextlib.suppress(UnicodeError):
            b"\xff".decode("ascii", errors)
    return errors


@functools.lru_cache(maxsize=32)  # each line that is read asks for the same one
def encode_separator(text: str, encoding: str) -> tuple[bytes, int]:
    """Return the bytes of `text` within a stream in `encoding`, and the size of a code unit.

    "utf-16" and "utf-32" have the byte order of this machine, and no mark. In hex and base64 a str
    is data, so the bytes are the UTF-8 of `text`.
    """
    node = lookup(encoding)
    if node and node.text_codec is None:
        return _encode_utf8(text), 1
    # A codec that begins a stream with a mark puts it before the first "a".
    start = len(to_bytes("a", encoding))
    return to_bytes("a" + text, encoding)[start:], len(to_bytes("aa", encoding)) - start


def printable_bytes(data: ReadableBuffer, encoding: str = "utf-8") -> str:
    r"""Return `data` in `encoding` as one line, escaped as by `netkit.core.text.printable`.

    Bytes that are invalid in `encoding` become ``\xNN``. From 80 up, ``\xNN`` is always such a byte
    and never a character (which is ``\u0085``). In hex and base64 the result is the digits.
    """
    node, raw = lookup(encoding), raw_bytes(data)
    codec = node.text_codec if node else encoding
    if node and codec is None:
        return node.decode(raw, True)[0]
    try:
        text = raw.decode(codec or encoding, "netkit.mark")
    except UnicodeError:  # idna and punycode have no error handlers; they encode to ASCII
        text = raw.decode("ascii", "netkit.mark")
    return text.translate(_MARKED_ESCAPES)


def decode_whole(data: bytes | bytearray, encoding: str, errors: str = REPLACE) -> str:
    """Return the text of all of `data` in a text codec of Python."""
    strict = codecs.lookup(encoding).name == "idna"  # it has no error handlers
    return data.decode(encoding, "strict" if strict else errors)


# --- Names ---


class _Node(NamedTuple):
    encode: Callable[[str], bytes]
    decode: Decode
    text_codec: str | None  # the codec of Python that finds invalid bytes; None if all are valid


def lookup(name: str) -> _Node | None:
    """Return Node's encoding of this name, or None for a text codec of Python.

    UnknownEncodingError for any other name, TypeError if `name` is no str.
    """
    if not isinstance(name, str):
        raise TypeError(f"an encoding is a str, not {type(name).__name__}")
    node = _NODE.get(name.lower())
    if node is None and not _is_python(name):
        raise UnknownEncodingError(name, _similar(name))
    return node


def _is_python(name: str) -> bool:
    if not name.isascii():  # Python 3.15 warns of such a name
        return False
    try:
        "".encode(name)
    except (LookupError, ValueError):  # ValueError for a null character, or for "undefined"
        return False
    return True


def _similar(name: str) -> list[str]:
    import difflib  # here because only an error needs it
    from encodings.aliases import aliases

    names = {*_NODE, *(codec.replace("_", "-") for codec in aliases.values())}
    close = difflib.get_close_matches(name.lower(), names, n=4)
    return [each for each in close if each in _NODE or _is_python(each)][:2]


def raw_bytes(data: ReadableBuffer) -> bytes:
    """Return the bytes of a bytes-like object. TypeError for any other object."""
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
    except UnicodeEncodeError:  # a pair of surrogates is a character; a lone one becomes U+FFFD
        return _encode_utf16le(text).decode("utf-16-le", "replace").encode()


def _encode_utf16le(text: str) -> bytes:
    return text.encode("utf-16-le", "surrogatepass")


# Node also reads digits from the low bytes only: "İ" (U+0130) is a "0".
def _encode_latin1(text: str) -> bytes:
    return _encode_utf16le(text)[::2]  # the low byte of every UTF-16 code unit


def _encode_hex(text: str) -> bytes:
    raw = _encode_latin1(text)
    digits = raw[: len(raw) - len(raw.lstrip(_HEX_DIGITS))]  # up to the first other byte
    return binascii.unhexlify(digits[: len(digits) & ~1])


def _encode_base64(text: str) -> bytes:
    digits = _encode_latin1(text).partition(b"=")[0].translate(_FROM_URL, _NOT_BASE64)
    if len(digits) % 4 == 1:  # six bits are no byte
        digits = digits[:-1]
    return binascii.a2b_base64(digits + b"=" * (-len(digits) % 4))


def _decode_utf16le(data: bytes | bytearray, final: bool) -> tuple[str, int]:
    text, used = codecs.utf_16_le_decode(data[: len(data) & ~1], "surrogatepass", final)
    return text, len(data) if final else used  # half a code unit at the end is dropped


def _by_byte(decode: Callable[[bytes | bytearray], str]) -> Decode:
    return lambda data, _final: (decode(data), len(data))


def _decode_base64(data: bytes | bytearray, final: bool) -> tuple[str, int]:
    used = len(data) if final else len(data) - len(data) % 3
    return binascii.b2a_base64(data[:used], newline=False).decode("ascii"), used


def _decode_base64url(data: bytes | bytearray, final: bool) -> tuple[str, int]:
    text, used = _decode_base64(data, final)
    return text.rstrip("=").translate(_TO_URL), used


_SEVEN_BITS = bytes(byte & 0x7F for byte in range(256))
_HEX_DIGITS = b"0123456789ABCDEFabcdef"
_FROM_URL, _TO_URL = bytes.maketrans(b"-_", b"+/"), str.maketrans("+/", "-_")
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_"
_NOT_BASE64 = bytes({*range(256)}.difference(_BASE64))

_UTF8 = _Node(_encode_utf8, lambda data, end: codecs.utf_8_decode(data, "replace", end), "utf-8")
_UTF16LE = _Node(_encode_utf16le, _decode_utf16le, "utf-16-le")
_LATIN1 = _Node(_encode_latin1, _by_byte(lambda data: data.decode("latin-1")), "latin-1")
_ASCII = _by_byte(lambda data: data.translate(_SEVEN_BITS).decode("ascii"))
_NODE = {
    **dict.fromkeys(("utf8", "utf-8"), _UTF8),
    **dict.fromkeys(("utf16le", "utf-16le", "ucs2", "ucs-2"), _UTF16LE),
    **dict.fromkeys(("latin1", "binary"), _LATIN1),
    "ascii": _Node(_encode_latin1, _ASCII, "ascii"),
    "hex": _Node(_encode_hex, _by_byte(lambda data: data.hex()), None),
    "base64": _Node(_encode_base64, _decode_base64, None),
    "base64url": _Node(_encode_base64, _decode_base64url, None),
}

# --- Printable text ---

_MARK = 0xDC00  # the lone surrogates from here on stand for invalid bytes


class _MarkedEscapes(Escapes):
    def __missing__(self, code: int) -> str:
        is_byte = _MARK <= code < _MARK + 256
        return f"\\x{code - _MARK:02x}" if is_byte else super().__missing__(code)


_MARKED_ESCAPES = _MarkedEscapes(ESCAPES)


def _mark(error: UnicodeError) -> tuple[str, int]:
    # Only utf-7 and the codecs of Python's escapes decode valid bytes to lone surrogates.
    assert isinstance(error, UnicodeDecodeError)
    wrong = error.object[error.start : error.end]
    return "".join(chr(_MARK + byte) for byte in wrong), error.end


codecs.register_error("netkit.mark", _mark)
