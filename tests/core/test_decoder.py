"""Incremental decoding: any codec, any pieces, and the limits of what is kept."""

from __future__ import annotations

import codecs
import contextlib
import functools
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support import examples

from netkit.core.decoder import MAX_KEPT, IncrementalDecoder
from netkit.core.encodings import (
    to_bytes,
    to_str,
)
from netkit.core.errors import MessageTooLongError

from .test_encodings import DIFFICULT, NODE, PYTHON, streams, text_or_error


def cut(data: bytes, at: list[int]) -> list[bytes]:
    ends = sorted(place % (len(data) + 1) for place in at)
    return [data[i:j] for i, j in zip([0, *ends], [*ends, len(data)], strict=True)]


def decode_in_pieces(decoder: IncrementalDecoder, pieces: list[bytes]) -> str:
    return "".join([*map(decoder.decode, pieces), decoder.decode(b"", final=True)])


@pytest.mark.parametrize(
    ("encoding", "pieces", "expected"),
    [
        ("utf8", ["e2", "82", "ac"], ["", "", "\u20ac", ""]),
        ("utf8", ["e282"], ["", "\ufffd"]),
        ("utf8", ["e2", "41"], ["", "\ufffdA", ""]),
        ("utf8", ["c0", "80"], ["\ufffd", "\ufffd", ""]),  # Node: "", then both
        ("utf8", ["ff", "61"], ["\ufffd", "a", ""]),
        ("utf16le", ["3dd8", "00de"], ["", "\U0001f600", ""]),
        ("utf16le", ["3d", "d8", "00", "de"], ["", "", "", "\U0001f600", ""]),
        ("utf16le", ["3dd8"], ["", "\ud83d"]),
        ("utf16le", ["610062"], ["a", ""]),
        ("utf16le", ["3dd800"], ["", "\ud83d"]),
        ("base64", ["61", "62", "63"], ["", "", "YWJj", ""]),
        ("base64", ["61626364"], ["YWJj", "ZA=="]),
        ("base64url", ["61626364"], ["YWJj", "ZA"]),
        ("hex", ["0a", "ff"], ["0a", "ff", ""]),
        ("latin1", ["e9", "80"], ["\u00e9", "\u0080", ""]),
        ("ascii", ["e9", "80"], ["i", "\0", ""]),
    ],
)
def test_a_piece_gives_the_characters_that_it_completes(
    encoding: str, pieces: list[str], expected: list[str]
) -> None:
    for name in NODE[encoding]:
        decoder = IncrementalDecoder(name)
        assert decoder.encoding == name
        for _ in range(2):  # the end of a stream is the start of another
            texts = [decoder.decode(bytes.fromhex(piece)) for piece in pieces]
            assert [*texts, decoder.decode(b"", final=True)] == expected


@pytest.mark.fuzz
@given(st.sampled_from(sorted(NODE)), streams, st.lists(st.integers(min_value=0)))
def test_in_nodes_encodings_any_split_gives_the_same_text(
    encoding: str, data: bytes, at: list[int]
) -> None:
    decoder = IncrementalDecoder(encoding)
    expected = to_str(data, encoding)
    assert decode_in_pieces(decoder, cut(data, at)) == expected
    assert decode_in_pieces(decoder, [data[i : i + 1] for i in range(len(data))]) == expected
    assert decoder.decode(data, final=True) == expected


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("data", [b"".join(DIFFICULT), b"".join(DIFFICULT[::-1])])
def test_each_codec_decodes_a_stream_byte_by_byte(data: bytes) -> None:
    pieces = [data[i : i + 1] for i in range(len(data))]
    for name in PYTHON:
        expected = text_or_error(functools.partial(to_str, data, name))
        decoder = IncrementalDecoder(name)
        for _ in range(2):
            text = text_or_error(functools.partial(decode_in_pieces, decoder, pieces))
            assert text == expected, name


@pytest.mark.fuzz
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@given(st.sampled_from(PYTHON), streams, st.lists(st.integers(min_value=0)))
@examples(250)
@example("unicode_escape", b"\\12", [2])
@example("punycode", b"bcher-kva", [6])
@example("idna", b"xn--bcher-kva.example", [3, 9])
@example("utf_16", b"a\0b\0", [1, 2])
@example("utf_16", b"\xfe\xff\0a\0b", [1, 3])
@example("utf_32", b"a\0\0\0b\0\0\0", [1, 4])
@example("iso2022_jp", b'\x1b$B$"\x1b(B\n\x1b(\x1b(\x1b(\x1b(\x1b(\x1b(', [17])
def test_in_pythons_codecs_any_split_gives_the_same_text(
    name: str, data: bytes, at: list[int]
) -> None:
    decoder = IncrementalDecoder(name)
    expected = text_or_error(lambda: to_str(data, name))
    assert text_or_error(lambda: decode_in_pieces(decoder, cut(data, at))) == expected
    assert text_or_error(lambda: decoder.decode(data, final=True)) == expected
    assert text_or_error(lambda: decode_in_pieces(decoder, cut(data, at))) == expected


@pytest.mark.parametrize(
    ("encoding", "line"),
    [
        ("iso2022_jp", b'\x1b$B$"\x1b(B\n'),
        ("utf-7", b"+MEI-\n"),
        ("utf-16", "\u3042\n".encode("utf-16")),
        ("utf-16", "\u3042\n".encode("utf-16")[2:]),
        ("utf-32", "\u3042\n".encode("utf-32")[4:]),
        ("shift_jis", b"\x82\xa0\n"),
        ("gb18030", b"\xa4\xa2\n"),
    ],
)
def test_a_line_is_decoded_as_soon_as_it_is_complete(encoding: str, line: bytes) -> None:
    decoder = IncrementalDecoder(encoding)
    assert decoder.decode(line) == "\u3042\n"
    assert decoder.decode(b"", final=True) == ""


def test_a_stream_with_too_long_an_escape_sequence_is_decoded_at_its_end() -> None:
    decoder = IncrementalDecoder("iso2022_jp")
    assert decoder.decode(b"a\n") == "a\n"
    assert decoder.decode(b"b\x1b(12345678") == ""
    assert decoder.decode(b"B\n") == ""
    assert decoder.decode(b"c", final=True) == to_str(b"b\x1b(12345678B\nc", "iso2022_jp")
    assert decoder.decode(b"d\n") == "d\n"


def test_a_decoder_is_ready_for_a_new_stream_after_an_error() -> None:
    decoder = IncrementalDecoder("idna")
    assert decoder.decode(b"\xff") == ""
    with pytest.raises(UnicodeError):
        decoder.decode(b"", final=True)
    assert decoder.decode(b"xn--bcher-kva", final=True) == "b\u00fccher"


@pytest.fixture
def _registered() -> Iterator[None]:
    def find(name: str) -> codecs.CodecInfo | None:
        if name != "netkit_test":
            return None
        return codecs.CodecInfo(codecs.utf_8_encode, codecs.utf_8_decode, name="netkit_test")

    codecs.register(find)
    yield
    codecs.unregister(find)


@pytest.mark.usefixtures("_registered")
def test_a_codec_that_cannot_decode_in_pieces_decodes_at_the_end() -> None:
    decoder = IncrementalDecoder("netkit_test")
    assert decoder.decode(b"\xe2\x82") == ""
    assert decoder.decode(b"\xac", final=True) == "\u20ac"


# --- The number of bytes that a decoder keeps ---


def kept_of(encoding: str, pieces: Iterator[bytes], most: int) -> int:
    """The size of the text at the end of a stream, after all of `pieces` have been decoded."""
    decoder = IncrementalDecoder(encoding, most)
    for piece in pieces:
        with contextlib.suppress(MessageTooLongError):
            decoder.decode(piece)
    with contextlib.suppress(UnicodeError):
        return len(decoder.decode(b"", final=True))
    return 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "block", [b"A", b"+AAAA", b"\x1b(", b"\x1b$B\x1b(12345678", b"xn--", b"\\"]
)
def test_no_stream_makes_a_decoder_keep_more_than_its_limit(block: bytes) -> None:
    start = b"+" if block == b"A" else b""
    for encoding in (*NODE, *PYTHON):
        pieces = [start + block, *[block * 100] * (3 * MAX_KEPT // len(block) // 100)]
        assert kept_of(encoding, iter(pieces), MAX_KEPT) <= MAX_KEPT + len(pieces[0]), encoding


@pytest.mark.parametrize("encoding", ["idna", "punycode"])
@pytest.mark.parametrize("final", [False, True])
def test_a_text_in_punycode_is_short_because_its_time_grows_with_the_square(
    encoding: str, final: bool
) -> None:
    decoder = IncrementalDecoder(encoding)
    assert decoder.decode(bytes(MAX_KEPT)) == ""
    with pytest.raises(MessageTooLongError, match=f"^text in {encoding} longer than 4096 bytes$"):
        decoder.decode(b"a", final)
    assert not decoder.pending
    assert decoder.decode(b"a-b", True) == to_str(b"a-b", encoding)


def test_a_sequence_of_utf_7_has_a_largest_size() -> None:
    decoder = IncrementalDecoder("utf-7")
    assert decoder.decode(b"+" + b"MEI" * 1365) == ""
    assert decoder.pending
    with pytest.raises(MessageTooLongError, match="^character of utf-7 longer than 4096 bytes$"):
        decoder.decode(b"M")
    assert not decoder.pending
    assert decoder.decode(b"a") == "a"
    assert len(decoder.decode(b"+" + b"MEIwQjBD" * 2000 + b"-")) == 6000


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_codec_that_decodes_at_the_end_keeps_no_more_than_a_message() -> None:
    decoder = IncrementalDecoder("unicode_escape", 10_000)
    assert decoder.decode(b"a" * 10_000) == ""
    with pytest.raises(MessageTooLongError, match=r"longer than 10000 bytes \(max_message\)"):
        decoder.decode(b"a")
    unlimited = IncrementalDecoder("unicode_escape")
    for _ in range(3):
        assert unlimited.decode(b"a" * 10_000) == ""


@pytest.mark.parametrize("encoding", ["shift_jis", "utf-7", "gb18030", "utf-8-sig", "hz", "utf8"])
def test_pending_says_whether_a_part_of_a_character_is_kept(encoding: str) -> None:
    decoder = IncrementalDecoder(encoding)
    assert not decoder.pending
    first, *rest = to_bytes("\u3042", encoding)
    decoder.decode(bytes([first]))
    assert decoder.pending
    assert decoder.decode(bytes(rest), final=True) == "\u3042"
    assert not decoder.pending
