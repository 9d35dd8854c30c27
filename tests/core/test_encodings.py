"""Text to bytes and back. The results of Node were measured with Node 20."""

from __future__ import annotations

import array
import codecs
import encodings
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from encodings.aliases import aliases
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netkit.core.decoder import IncrementalDecoder
from netkit.core.encodings import (
    check_encoding,
    encode_separator,
    is_utf8,
    printable_bytes,
    to_bytes,
    to_str,
)
from netkit.core.errors import InvalidTextError, LocalError, UnknownEncodingError

from .test_text import unescape

NODE = {
    "utf8": ["utf8", "utf-8", "UTF8", "Utf-8"],
    "utf16le": ["utf16le", "utf-16le", "ucs2", "ucs-2", "UTF-16LE", "UCS2"],
    "latin1": ["latin1", "binary", "Latin1", "BINARY"],
    "ascii": ["ascii", "ASCII"],
    "base64": ["base64", "BASE64"],
    "base64url": ["base64url", "Base64URL"],
    "hex": ["hex", "HEX"],
}
EVERY_NODE_NAME = [name for names in NODE.values() for name in names]


def text_codecs() -> list[str]:
    """All but "undefined", which always raises, and "ascii", which is one of Node's."""
    modules = {module.name for module in pkgutil.iter_modules(encodings.__path__)}
    found = set()
    for name in {*aliases.values(), *modules} - {"undefined", "ascii"}:
        try:
            codec = codecs.lookup(name)
        except LookupError:  # the module is not a codec, or one of another system
            continue
        if codec._is_text_encoding:
            found.add(name)
    return sorted(found)


PYTHON = text_codecs()
assert len(PYTHON) > 100

# Difficult bytes: shifts, escapes, byte order marks, halves of characters.
DIFFICULT = [
    *(b"a", b"1", b"\n", b"\\", b"-", b"+", b"~", b"&@", b"\x00", b"\x0e", b"\x0f", b"\x80"),
    *(b"\xff", b"\xe2\x82", b"\xac", b"\xf0\x9f\x98\x80", b"\xed\xa0\x80", b"\xc0", b"\xf4\x90"),
    *(b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\xff\xfe\0\0", b"\0\0\xfe\xff"),
    *(b"\x3d\xd8", b"\x00\xde", b"\xd8\x3d", b"\xde\x00", b"+AOk-", b"+2D3eAA-", b"~{", b"~}"),
    *(b"\x1b", b"\x1b(", b"\x1b$B", b"\x1b(B", b"\x1b(J", b"\x1b$)C", b"\x1b.A", b"\x1b.F"),
    *(b"\x1bN", b"\x1b$(D", b"\x1b&@", b"\x24\x22", b"\x81\x30", b"\x8f\xa2", b"\x88\x62"),
    *(b"\\1", b"\\u12", b"\\U0001f600", b"\\ud83d", b"\\x4", b"\\N{BULLET}", b"xn--", b"."),
]
streams = st.lists(st.one_of(st.sampled_from(DIFFICULT), st.binary(max_size=3)), max_size=24).map(
    b"".join
)
any_text = st.text(st.characters(codec=None))  # lone surrogates too


def text_or_error(decode: Callable[[], str]) -> str | type[Exception]:
    """idna and punycode raise UnicodeError for bytes that they do not replace."""
    try:
        return decode()
    except UnicodeError:
        return UnicodeError


def units(text: str) -> bytes:
    """The UTF-16 of a text: equal for a character and for its two surrogates."""
    return text.encode("utf-16-le", "surrogatepass")


# --- Names ---


def test_a_known_name_is_returned_as_it_was_given() -> None:
    names = [*EVERY_NODE_NAME, *PYTHON, "utf-16", "iso-8859-1", "us-ascii"]
    assert [check_encoding(name) for name in names] == names


def test_only_nodes_names_of_utf_8_are_utf_8() -> None:
    assert [name for name in EVERY_NODE_NAME if is_utf8(name)] == NODE["utf8"]
    assert not any(map(is_utf8, PYTHON))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("utf88", "unknown encoding 'utf88'; did you mean 'utf8', 'utf-8'?"),
        ("UTF88", "unknown encoding 'UTF88'; did you mean 'utf8', 'utf-8'?"),
        ("latin-l", "unknown encoding 'latin-l'; did you mean 'latin-1', 'latin1'?"),
        ("base64-url", "unknown encoding 'base64-url'; did you mean 'base64url', 'base64'?"),
        ("shift-jjs", "unknown encoding 'shift-jjs'; did you mean 'shift-jis', 'shift-jisx0213'?"),
        ("nope", "unknown encoding 'nope'"),
        ("raw", "unknown encoding 'raw'"),
        ("", "unknown encoding ''"),
    ],
)
def test_the_error_for_an_unknown_name_suggests_similar_names(name: str, message: str) -> None:
    with pytest.raises(UnknownEncodingError) as caught:
        check_encoding(name)
    assert str(caught.value) == message
    assert isinstance(caught.value, LocalError)
    assert isinstance(caught.value, LookupError)


@pytest.mark.parametrize(
    "name",
    ["buffer", "hex ", " base64", "zlib", "rot13", "hex_codec", "undefined", "a\0b", "\ud800"],
)
def test_a_name_that_is_no_text_encoding_is_unknown(name: str) -> None:
    with pytest.raises(UnknownEncodingError):
        check_encoding(name)


@pytest.mark.parametrize(
    "call",
    [
        lambda name: to_bytes("a", name),
        lambda name: to_bytes(b"", name),
        lambda name: to_str(b"", name),
        lambda name: to_str("a", name),
        lambda name: printable_bytes(b"a", name),
        lambda name: encode_separator("\n", name),
        IncrementalDecoder,
        check_encoding,
        is_utf8,
    ],
)
def test_every_function_refuses_an_unknown_encoding(call: Callable[[object], object]) -> None:
    with pytest.raises(UnknownEncodingError, match="unknown encoding 'nope'"):
        call("nope")
    with pytest.raises(TypeError, match="an encoding is a str, not NoneType"):
        call(None)


def test_the_module_for_suggestions_is_imported_only_for_an_error() -> None:
    code = "import sys, netkit.core.encodings; sys.exit('difflib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- Bytes and text in general ---


@pytest.mark.parametrize(
    "value",
    [
        b"\x00ab\xff",
        bytearray(b"\x00ab\xff"),
        memoryview(b"\x00ab\xff"),
        memoryview(b"\xff.b.a.\x00")[::-2],
        array.array("B", b"\x00ab\xff"),
        array.array("I", b"\x00ab\xff"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "hex", "cp1252"])
def test_any_bytes_like_object_is_accepted(value: bytes, encoding: str) -> None:
    result = to_bytes(value, encoding)
    assert (type(result), result) == (bytes, b"\x00ab\xff")
    assert to_str(value, "latin1") == "\x00ab\xff"
    assert IncrementalDecoder("latin1").decode(value) == "\x00ab\xff"
    assert printable_bytes(value) == r"\x00ab\xff"


@pytest.mark.parametrize("value", [None, 3, [1, 2], object()])
@pytest.mark.parametrize("function", [to_bytes, to_str, printable_bytes])
def test_any_other_object_is_a_type_error(
    function: Callable[[object], object], value: object
) -> None:
    with pytest.raises(TypeError) as caught:
        function(value)
    assert str(caught.value) == f"expected str or a bytes-like object, not {type(value).__name__}"


def test_a_str_is_returned_unchanged() -> None:
    assert to_str("h\u00e9\ud800", "hex") == "h\u00e9\ud800"


def test_utf_8_is_the_default() -> None:
    assert to_bytes("h\u00e9") == b"h\xc3\xa9"
    assert to_str(b"h\xc3\xa9\xff") == "h\u00e9\ufffd"
    assert printable_bytes(b"h\xc3\xa9\xff") == "h\u00e9\\xff"


# --- Node's encodings ---

ENCODED = [
    ("utf8", "h\u00e9\u20ac\U0001f600", "68c3a9e282acf09f9880"),
    ("utf8", "a\ud83db", "61efbfbd62"),
    ("utf8", "\ude00", "efbfbd"),
    ("utf8", "\ud83d\ude00", "f09f9880"),
    ("utf8", "\ufeffa", "efbbbf61"),
    ("utf16le", "a\u20ac\U0001f600", "6100ac203dd800de"),
    ("utf16le", "\ud83d", "3dd8"),
    ("latin1", "\u00e9\u20ac\u0141\U0001f600", "e9ac413d00"),
    ("ascii", "\u00e9\u20ac\u0141\U0001f600", "e9ac413d00"),
    ("hex", "1ag123", "1a"),
    ("hex", "1a7", "1a"),
    ("hex", "1a 2b", "1a"),
    ("hex", "0x1a", ""),
    ("hex", "xxabcd", ""),
    ("hex", "aBFf09", "abff09"),
    ("hex", "\u01301\u0161", "01"),  # only the low bytes count: "0", "1", "a"
    ("base64", "YWI", "6162"),
    ("base64", "YQ", "61"),
    ("base64", "Y", ""),
    ("base64", "YWJjZ", "616263"),
    ("base64", "YWJjZA==", "61626364"),
    ("base64", "Y W\tJ\nj", "616263"),
    ("base64", "YW*Jj", "616263"),
    ("base64", "YQ==YQ==", "61"),
    ("base64", "YQ=Jj", "61"),
    ("base64", "YWJj=ZGVm", "616263"),
    ("base64", "====", ""),
    ("base64", "!!!!", ""),
    ("base64", "-_-_", "fbffbf"),
    ("base64", "+/+/", "fbffbf"),
    ("base64", "\u0159WJj", "616263"),  # the low byte is "Y"
]


@pytest.mark.parametrize(
    ("encoding", "text", "expected"),
    [*ENCODED, *(("base64url", *rest) for name, *rest in ENCODED if name == "base64")],
)
def test_text_is_encoded_as_in_node(encoding: str, text: str, expected: str) -> None:
    for name in NODE[encoding]:
        assert to_bytes(text, name).hex() == expected


@pytest.mark.parametrize(
    ("encoding", "data", "expected"),
    [
        ("utf8", "ff", "\ufffd"),
        ("utf8", "e282", "\ufffd"),
        ("utf8", "e28241", "\ufffdA"),
        ("utf8", "f09f98", "\ufffd"),
        ("utf8", "c080", "\ufffd" * 2),
        ("utf8", "eda080", "\ufffd" * 3),
        ("utf8", "f4908080", "\ufffd" * 4),
        ("utf8", "efbbbf61", "\ufeffa"),
        ("utf16le", "6100ac203dd800de", "a\u20ac\U0001f600"),
        ("utf16le", "610062", "a"),
        ("utf16le", "3dd8", "\ud83d"),
        ("utf16le", "00de", "\ude00"),
        ("utf16le", "fffe", "\ufeff"),
        ("latin1", "41e980ff", "A\u00e9\u0080\u00ff"),
        ("ascii", "41e980ff", "Ai\0\x7f"),
        ("hex", "00abFF", "00abff"),
        ("base64", "fbffbf", "+/+/"),
        ("base64", "61", "YQ=="),
        ("base64", "6162", "YWI="),
        ("base64", "616263", "YWJj"),
        ("base64url", "fbffbf", "-_-_"),
        ("base64url", "61", "YQ"),
        ("base64url", "6162", "YWI"),
    ],
)
def test_bytes_are_decoded_as_in_node(encoding: str, data: str, expected: str) -> None:
    for name in NODE[encoding]:
        assert to_str(bytes.fromhex(data), name) == expected


@pytest.mark.fuzz
@given(st.sampled_from(["hex", "base64", "base64url", "latin1"]), st.binary())
def test_bytes_are_encoded_from_the_text_that_they_decode_to(encoding: str, data: bytes) -> None:
    assert to_bytes(to_str(data, encoding), encoding) == data


@pytest.mark.fuzz
@given(any_text)
def test_any_text_survives_utf_16(text: str) -> None:
    assert units(to_str(to_bytes(text, "utf16le"), "utf16le")) == units(text)


@pytest.mark.fuzz
@given(st.text())
def test_text_without_surrogates_survives_utf_8(text: str) -> None:
    assert to_bytes(text, "utf8") == text.encode()
    assert to_str(to_bytes(text, "utf8"), "utf8") == text


@pytest.mark.fuzz
@given(st.sampled_from(sorted(NODE)), any_text)
def test_nodes_encodings_encode_any_text(encoding: str, text: str) -> None:
    assert to_bytes(text, encoding) == to_bytes(to_str(units(text), "utf16le"), encoding)


# --- Python's codecs ---


def test_encoding_with_a_codec_of_python_is_strict() -> None:
    assert to_bytes("\u20ac", "cp1252") == b"\x80"
    with pytest.raises(UnicodeEncodeError):
        to_bytes("\u20ac", "iso-8859-1")
    with pytest.raises(UnicodeEncodeError):
        to_bytes("\ud800", "utf_8")


def test_decoding_with_a_codec_of_python_replaces() -> None:
    assert to_str(b"a\xe9", "us-ascii") == "a\ufffd"
    assert to_str(b"\x80\x81", "cp1252") == "\u20ac\ufffd"


@pytest.mark.fuzz
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # unknown escapes of unicode_escape
@given(st.sampled_from(PYTHON), streams)
def test_decoding_with_a_codec_of_python_is_what_bytes_decode_does(name: str, data: bytes) -> None:
    errors = "strict" if name == "idna" else "replace"
    expected = text_or_error(lambda: data.decode(name, errors))
    assert text_or_error(lambda: to_str(data, name)) == expected


# --- Invalid bytes ---


@pytest.mark.parametrize(
    ("encoding", "data", "errors", "expected"),
    [
        ("utf8", b"a\xffb", "ignore", "ab"),
        ("UTF-8", b"a\xffb", "surrogateescape", "a\udcffb"),
        ("utf16le", b"a\0\0\xd8", "backslashreplace", "a\\x00\\xd8"),
        ("ascii", b"a\xff", "ignore", "a"),  # by default Node's, which drops the highest bit
        ("latin1", b"a\xff", "strict", "a\xff"),
        ("hex", b"a\xff", "strict", "61ff"),
        ("shift_jis", b"a\xff", "ignore", "a"),
        ("utf-16", b"a\0b", "ignore", "a"),
    ],
)
def test_errors_says_what_becomes_of_invalid_bytes(
    encoding: str, data: bytes, errors: str, expected: str
) -> None:
    assert to_str(data, encoding, errors) == to_str(data, encoding, errors=errors) == expected
    decoder = IncrementalDecoder(encoding, errors=errors)
    assert decoder.errors == errors
    text = "".join(decoder.decode(data[i : i + 1]) for i in range(len(data)))
    assert text + decoder.decode(b"", final=True) == expected


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("utf8", b"a\xff"),
        ("utf8", b"\xe2\x82"),
        ("utf16le", b"a\0b"),
        ("ascii", b"\xe9"),
        ("cp1252", b"\x81"),
        ("utf-32", b"abc"),
        ("idna", b"\xff"),
        ("punycode", b"\xff"),
        ("iso2022_jp", b"\x1b(12345678"),
    ],
)
def test_strict_decoding_raises_an_error_of_the_peer(encoding: str, data: bytes) -> None:
    with pytest.raises(InvalidTextError) as caught:
        to_str(data, encoding, "strict")
    assert caught.value.object == data
    decoder = IncrementalDecoder(encoding, errors="strict")
    with pytest.raises(InvalidTextError) as caught:
        decoder.decode(data, final=True)
    assert caught.value.object == data
    with pytest.raises(InvalidTextError):
        for piece in (data[:-1], data[-1:], b""):
            decoder.decode(piece, final=not piece)
    good = to_bytes("a", encoding)
    assert decoder.decode(good, final=True) == "a"  # a new stream


@pytest.mark.parametrize(
    ("errors", "kind"), [("strct", LookupError), (5, TypeError), ("xmlcharrefreplace", TypeError)]
)
def test_an_unknown_treatment_of_invalid_bytes_is_refused_before_there_are_any(
    errors: Any, kind: type[Exception]
) -> None:
    for call in (to_str, lambda data, name, how: IncrementalDecoder(name, errors=how)):
        with pytest.raises(kind):
            call(b"", "utf-8", errors)


# --- Separators ---


@pytest.mark.parametrize(
    ("encoding", "text", "expected"),
    [
        ("utf-8", "\n", (b"\n", 1)),
        ("utf8", "\u20ac", (b"\xe2\x82\xac", 1)),
        ("latin1", "\u00e9", (b"\xe9", 1)),
        ("ascii", "\r\n", (b"\r\n", 1)),
        ("UTF16LE", "\n", (b"\n\0", 2)),
        ("ucs2", "\r\n", (b"\r\0\n\0", 2)),
        ("utf-16-be", "\n", (b"\0\n", 2)),
        ("utf-32-be", "\n", (b"\0\0\0\n", 4)),
        ("utf-32-le", "\n", (b"\n\0\0\0", 4)),
        ("utf-8-sig", "\n", (b"\n", 1)),
        ("utf-7", "\n", (b"\n", 1)),
        ("cp037", "\n", (b"%", 1)),
        ("iso2022_kr", "\n", (b"\n", 1)),
        ("iso2022_jp", "\u3042", (b'\x1b$B$"\x1b(B', 1)),
        ("idna", "\n", (b"\n", 1)),
        ("hex", "\n", (b"\n", 1)),
        ("BASE64", "\r\n", (b"\r\n", 1)),
        ("base64url", "\u20ac", (b"\xe2\x82\xac", 1)),
        ("utf-8", "", (b"", 1)),
    ],
)
def test_a_separator_has_its_form_within_a_stream(
    encoding: str, text: str, expected: tuple[bytes, int]
) -> None:
    assert encode_separator(text, encoding) == expected


@pytest.mark.parametrize(("encoding", "width"), [("utf-16", 2), ("utf-32", 4)])
def test_a_separator_has_no_byte_order_mark(encoding: str, width: int) -> None:
    order = "-le" if sys.byteorder == "little" else "-be"
    assert encode_separator("\n", encoding) == ("\n".encode(encoding + order), width)


# A str is data in the first three; in punycode no part of the bytes is a line.
NO_LINES = {"hex", "base64", "base64url", "punycode"}


def test_a_separator_is_found_in_text_of_every_encoding() -> None:
    for name in {*PYTHON, *NODE} - NO_LINES:
        separator, width = encode_separator("\n", name)
        whole = to_bytes("one\ntwo", name)
        at = whole.index(separator)
        assert at % width == 0, name
        assert to_str(whole[: at + len(separator)], name) == "one\n", name


# --- Printable text ---


@pytest.mark.parametrize(
    ("encoding", "data", "shown"),
    [
        ("utf8", b"h\xc3\xa9\xff\xe2\x82", r"h" + "\u00e9" + r"\xff\xe2\x82"),
        ("utf8", b"\\xff\xff", r"\\xff\xff"),
        ("utf8", b"\xc2\x85\x85", r"\u0085\x85"),
        ("utf8", b"\xed\xb2\x80", r"\xed\xb2\x80"),
        ("ascii", b"a\xe9\n", r"a\xe9\n"),  # not "ai\n": that is another line
        ("latin1", b"a\xe9\x85", "a\u00e9" + r"\u0085"),
        ("utf16le", b"a\0\n\0b", r"a\n\x62"),
        ("utf16le", b"\x3d\xd8a\0", r"\x3d\xd8a"),
        ("hex", b"\n\xff", "0aff"),
        ("base64", b"\n\xff", "Cv8="),
        ("base64url", b"\n\xff", "Cv8"),
        ("us-ascii", b"a\xe9", r"a\xe9"),
        ("cp1252", b"\x80\x81", "\u20ac" + r"\x81"),
        ("shift_jis", b"\x82\xa0\xff", "\u3042" + r"\xff"),
        ("idna", b"xn--bcher-kva\xff", r"xn--bcher-kva\xff"),
        ("punycode", b"bcher-kva\xff", r"bcher-kva\xff"),
    ],
)
def test_invalid_bytes_are_shown_as_numbers(encoding: str, data: bytes, shown: str) -> None:
    assert printable_bytes(data, encoding) == shown


@pytest.mark.fuzz
@given(streams)
def test_the_printable_form_of_utf_8_is_unambiguous(data: bytes) -> None:
    shown = printable_bytes(data)
    assert shown.isprintable()
    text = unescape(shown, of_byte=lambda byte: chr(0xDC00 + byte))
    assert text.encode("utf-8", "surrogateescape") == data


@pytest.mark.fuzz
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@given(st.sampled_from([*NODE, *PYTHON]), streams)
def test_bytes_in_any_encoding_have_a_printable_form(encoding: str, data: bytes) -> None:
    assert printable_bytes(data, encoding).isprintable()
