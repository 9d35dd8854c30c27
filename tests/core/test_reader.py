"""Reading in the units of a handler, from a stream that arrives in any pieces."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support import CountingBuffer, examples

from netkit.core.buffer import CHUNK, ReceiveBuffer
from netkit.core.decoder import IncrementalDecoder
from netkit.core.errors import (
    IncompleteReadError,
    InvalidTextError,
    LineTooLongError,
    MessageTooLongError,
    UnknownEncodingError,
)
from netkit.core.framing import Delimiter, Framing, LengthPrefix
from netkit.core.lines import AHEAD
from netkit.core.reader import Reader


class Pieces(Reader):
    """Receives these pieces one by one, and raises each exception among them once."""

    def __init__(
        self,
        *pieces: bytes | Exception,
        encoding: str = "utf-8",
        max_line: int = 65536,
        max_message: int | None = None,
    ) -> None:
        super().__init__(self, ReceiveBuffer(), encoding, max_line, max_message)
        self.pieces = list(reversed(pieces))
        self.received = 0
        self.most_held = 0

    interruption: OSError | None = None

    def failure(self, error: OSError) -> OSError:
        return error

    def receive(self) -> bytes:
        self.most_held = max(self.most_held, len(self._buffer))
        if not self.pieces:
            return b""
        piece = self.pieces.pop()
        if isinstance(piece, Exception):
            raise piece
        self.received += len(piece)
        return piece


def in_pieces(data: bytes, sizes: list[int]) -> list[bytes]:
    """`data` in pieces of these sizes, repeated."""
    pieces, at, repeated = [], 0, itertools.cycle(sizes)
    while at < len(data):
        size = next(repeated)
        pieces.append(data[at : at + size])
        at += size
    return pieces


def byte_by_byte(data: bytes, **settings: Any) -> Pieces:
    return Pieces(*in_pieces(data, [1]), **settings)


# --- Any pieces, any sequence of methods ---


NEWLINES = {
    "utf-8": (b"\n", 1),
    "latin1": (b"\n", 1),
    "shift_jis": (b"\n", 1),
    "base64": (b"\n", 1),
    "utf16le": (b"\n\0", 2),
    "utf-16-be": (b"\0\n", 2),
    "utf-32-le": (b"\n\0\0\0", 4),
}


BY_LENGTH = LengthPrefix(1)
BY_DELIMITER = Delimiter(b"ab")


class Reference:
    """The results of the methods, computed from all bytes at once, without a buffer."""

    def __init__(self, data: bytes, max_line: int, max_message: int | None) -> None:
        self.data, self.max_line = data, max_line
        self.max_message = len(data) + 1000 if max_message is None else max_message
        self.at = 0
        self.encoding = "utf-8"
        self.decoder: IncrementalDecoder | None = None
        self.origin = 0  # the beginning of a code unit
        self.skip_to: int | None = None

    def skip(self) -> None:
        if self.skip_to is not None:
            self.at, self.skip_to = self.skip_to, None
            if self.decoder:
                self.decoder, self.origin = IncrementalDecoder(self.encoding), self.at

    def take(self, size: int) -> bytes:
        taken = self.data[self.at : self.at + size]
        self.at += len(taken)
        return taken

    def text(self, data: bytes, final: bool = False) -> Any:
        return self.decoder.decode(data, final) if self.decoder else data

    def up_to(self, separator: bytes, width: int, wanted: bytes = b"\n") -> tuple[bytes, bool]:
        self.skip()
        origin = self.origin if self.decoder else self.at
        found = [
            at + len(separator)
            for at in range(self.at, len(self.data))
            if self.data.startswith(separator, at) and (at - origin) % width == 0
        ]
        end = found[0] if found else len(self.data)
        too_long = end - self.at - self.max_line - len(separator)
        if too_long > 0 or (not found and too_long == 0):
            self.skip_to = end
            raise LineTooLongError(self.max_line, wanted if width == 1 else b"\n")
        return self.take(end - self.at), bool(found)

    def read_all(self) -> Any:
        self.skip()
        if len(self.data) - self.at > self.max_message:
            raise MessageTooLongError(self.max_message)
        return self.text(self.take(len(self.data)), final=True)

    def read_byte(self) -> Any:
        self.skip()
        while True:
            byte = self.take(1)
            text = self.text(byte, final=not byte)
            if text or not byte:
                return text

    def readexactly(self, size: int) -> Any:
        if size > self.max_message:
            raise MessageTooLongError(self.max_message, size)
        self.skip()
        taken = self.take(size)
        if len(taken) < size:
            raise IncompleteReadError(self.text(taken, final=True), size)
        return self.text(taken)

    def readuntil(self, separator: str | bytes) -> Any:
        found, width = NEWLINES[self.encoding] if isinstance(separator, str) else (separator, 1)
        line, complete = self.up_to(found, width, found)
        if not complete:
            raise IncompleteReadError(self.text(line, final=True), None)
        return self.text(line)

    def readline(self) -> Any:
        while True:
            line, complete = self.up_to(*NEWLINES[self.encoding])
            text = self.text(line, final=not complete)
            if text or not line:
                return text

    def read_message(self, framing: Framing) -> bytes | None:
        self.skip()
        rest = self.data[self.at :]
        if not rest:
            return None
        size = rest[0] if framing is BY_LENGTH else None
        message, separator, _ = rest.partition(b"ab")
        if framing is BY_LENGTH:
            message, complete = rest[1 : 1 + rest[0]], len(rest) > rest[0]
            too_long = rest[0] > self.max_message
        else:
            complete = bool(separator)
            too_long = len(message) - (0 if complete else 1) > self.max_message
        if too_long:
            raise MessageTooLongError(self.max_message, size)
        if not complete:
            raise IncompleteReadError(self.take(len(rest)), None if size is None else size + 1)
        taken = self.take(len(message) + (1 if framing is BY_LENGTH else 2))
        self.origin += len(taken)  # the decoder does not get them
        return message

    def next_line(self, decoder: IncrementalDecoder | None) -> str | None:
        line, complete = self.up_to(*NEWLINES[self.encoding])
        text = (self.decoder or decoder or IncrementalDecoder(self.encoding)).decode(
            line, not complete
        )
        return text.removesuffix("\n").removesuffix("\r") if line or text else None

    def set_encoding(self, encoding: str | None) -> None:
        self.decoder = None if encoding is None else IncrementalDecoder(encoding)
        self.encoding = encoding or self.encoding
        self.origin = self.skip_to or self.at


def outcome(call: Callable[[], Any]) -> Any:
    """The result, or the class, text and attributes of the exception. Timeouts are repeated."""
    while True:
        try:
            return call()
        except TimeoutError:
            continue
        except (LineTooLongError, MessageTooLongError, IncompleteReadError) as error:
            return type(error), str(error), vars(error)


def lines_of(iterator: Iterator[str], count: int) -> Any:
    """The first lines and errors of one iterator."""
    return [outcome(lambda: next(iterator, None)) for _ in range(count)]


def compare(reader: Reader, reference: Reference, step: tuple[str, Any]) -> None:
    """Call both, and check that the results are equal."""
    method, argument = step
    if method == "some":
        if reference.decoder:
            method, argument = "byte", None  # the pieces determine where more bytes are cut
        else:
            reference.skip()
            data = outcome(lambda: reader.read(argument))
            assert data == reference.take(len(data))
            assert len(data) <= argument
            assert data or reference.at == len(reference.data)
            return
    if method == "byte":
        assert outcome(lambda: reader.read(1)) == reference.read_byte()
    elif method == "all":
        assert outcome(reader.read) == outcome(reference.read_all)
    elif method == "nothing":
        assert not reader.read(0)
    elif method == "peek":
        reference.skip()
        seen = outcome(lambda: reader.peek(argument))
        assert type(seen) is bytes
        assert len(seen) <= argument
        assert reference.data.startswith(seen, reference.at)
        assert seen or reference.at == len(reference.data)
    elif method == "encoding":
        reader.set_encoding(argument)
        reference.set_encoding(argument)
    elif method == "lines":
        decoder = IncrementalDecoder(reference.encoding)
        expected = [outcome(lambda: reference.next_line(decoder)) for _ in range(argument)]
        assert lines_of(reader.lines(), argument) == expected
    else:
        arguments = () if argument is None else (argument,)
        expected = outcome(lambda: getattr(reference, method)(*arguments))
        assert outcome(lambda: getattr(reader, method)(*arguments)) == expected


STEPS = st.one_of(
    st.tuples(st.just("some"), st.integers(1, 8)),
    st.tuples(st.just("byte"), st.none()),
    st.tuples(st.just("nothing"), st.none()),
    st.tuples(st.just("peek"), st.integers(1, 8)),
    st.tuples(st.just("readexactly"), st.integers(0, 8)),
    st.tuples(st.just("readuntil"), st.sampled_from(["\n", b"\n", b"ab", b"\r\n", b"\0\0"])),
    st.tuples(st.just("readline"), st.none()),
    st.tuples(st.just("readline"), st.none()),
    st.tuples(st.just("lines"), st.integers(1, 4)),
    st.tuples(st.just("read_message"), st.sampled_from([BY_LENGTH, BY_DELIMITER])),
)
LIMITS = st.none() | st.integers(1, 12)
TOKENS = st.one_of(
    st.sampled_from([b"\n", b"\r\n", b"a", b"ab", b"\0", b"\n\0", b"\0\n", b"a\0", b"\x0a\x0a"]),
    st.sampled_from(["é", "日本", "\U0001f600"]).flatmap(
        lambda text: st.sampled_from(["utf-8", "utf-16-le", "utf-16-be"]).map(text.encode)
    ),
    st.sampled_from(["日本\n", "ソ\n"]).map(lambda text: text.encode("shift_jis")),
    st.binary(max_size=4),
)
DATA = st.lists(TOKENS, max_size=14).map(b"".join)
SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=5)


def run(
    data: bytes,
    sizes: list[int],
    steps: list[tuple[str, Any]],
    max_line: int,
    encoding: str | None,
    max_message: int | None,
) -> None:
    pieces: list[bytes | Exception] = []
    for piece in in_pieces(data, sizes):
        pieces += [TimeoutError(), piece]  # no read may lose bytes by it
    reader = Pieces(*pieces, max_line=max_line, max_message=max_message)
    reference = Reference(data, max_line, max_message)
    if encoding:
        compare(reader, reference, ("encoding", encoding))
    for step in (*steps, ("all", None), ("all", None)):
        compare(reader, reference, step)


@pytest.mark.fuzz
@examples(150)
@given(DATA, SIZES, st.lists(STEPS, max_size=8), st.integers(1, 12), LIMITS)
@example(b"aaaa\nab\n", [1], [("readline", None), ("some", 3)], 2, None)
@example(b"aaaa\nab\n", [8], [("readline", None), ("some", 3)], 2, None)
@example(b"aaaa\nab\n", [8], [("readline", None), ("peek", 3), ("readexactly", 3)], 2, None)
@example(b"aaaa\nab\n", [8], [("readline", None), ("read_message", BY_DELIMITER)], 2, None)
@example(b"aaaa\nab\n", [1], [("readline", None), ("all", None)], 2, 3)
@example(b"aaaa\nab\n", [8], [("readline", None), ("lines", 2)], 2, None)
@example(b"aaaa\nab\n", [8], [("readline", None), ("readuntil", b"ab")], 2, None)
@example(b"aaaa", [1], [("all", None), ("some", 2), ("readexactly", 3)], 2, 3)
def test_any_sequence_of_methods_gives_the_same_bytes_for_any_pieces(
    data: bytes,
    sizes: list[int],
    steps: list[tuple[str, Any]],
    max_line: int,
    max_message: int | None,
) -> None:
    run(data, sizes, steps, max_line, None, max_message)


@pytest.mark.fuzz
@examples(200)
@given(
    DATA, SIZES, st.lists(STEPS, max_size=8), st.integers(1, 12), st.sampled_from(sorted(NEWLINES))
)
@example(
    "ab\ncd\n".encode("utf-16-le"), [2], [("readexactly", 3), ("readline", None)], 9, "utf16le"
)
@example(
    "abcd\nef\n".encode("utf-16-le"), [5], [("readexactly", 1), ("readline", None)], 2, "utf16le"
)
@example("ソ\n".encode("shift_jis") * 3, [1], [("readline", None), ("lines", 2)], 9, "shift_jis")
@example(b"ab\xc3", [1], [("readline", None), ("readline", None)], 9, "utf-8")
@example(
    "é\nü\nö\n".encode(),
    [9],
    [("readline", None), ("encoding", None), ("readline", None)],
    9,
    "utf-8",
)
@example(b"a\n" * 4, [3], [("readline", None), ("lines", 2)], 9, "base64")
@example(b"\0\n\0\n", [1], [("read_message", BY_LENGTH), ("lines", 1)], 1, "utf-16-be")
def test_any_sequence_of_methods_gives_the_same_text_for_any_pieces(
    data: bytes, sizes: list[int], steps: list[tuple[str, Any]], max_line: int, encoding: str
) -> None:
    run(data, sizes, steps, max_line, encoding, None)


@pytest.mark.fuzz
@examples(100)
@given(DATA, SIZES, st.integers(1, 9), st.sampled_from([None, *sorted(NEWLINES)]))
def test_the_chunks_are_the_whole_input(
    data: bytes, sizes: list[int], size: int, encoding: str | None
) -> None:
    reader = Pieces(*in_pieces(data, sizes))
    expected: Any = data
    if encoding:
        reader.set_encoding(encoding)
        expected = IncrementalDecoder(encoding).decode(data, final=True)
    chunks = list(reader)
    assert all(chunks)
    assert expected[:0].join(chunks) == expected
    again = Pieces(*in_pieces(data, sizes))
    again.set_encoding(encoding)
    assert expected[:0].join(iter(lambda: again.read(size), expected[:0])) == expected


# --- Each method ---


def test_bytes_are_received_only_when_they_are_needed() -> None:
    reader = Pieces(b"ab", b"cd", b"ef")
    assert reader.received == 0
    assert reader.read(0) == b""
    assert reader.received == 0
    assert reader.readexactly(2) == b"ab"
    assert reader.received == 2
    assert reader.peek(1) == b"c"
    assert reader.received == 4


def test_a_chunk_of_iteration_has_a_largest_size() -> None:
    reader = Pieces(b"x" * CHUNK, b"x" * CHUNK, b"\n")
    reader.max_line = 10 * CHUNK
    assert reader.peek(1) == b"x"
    assert [len(chunk) for chunk in reader] == [CHUNK, CHUNK, 1]


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda reader: reader.readexactly(-1), ValueError, "size must be 0 or more, not -1"),
        (lambda reader: reader.readuntil(""), ValueError, "the separator must not be empty"),
        (lambda reader: reader.readuntil(b""), ValueError, "the separator must not be empty"),
        (lambda reader: reader.readuntil(10), TypeError, "expected str or a bytes-like object"),
        (lambda reader: reader.readuntil(None), TypeError, "expected str or a bytes-like object"),
    ],
)
def test_an_invalid_argument_is_refused(call: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=f"^{text}"):
        call(Pieces(b"\0" * 20))


@pytest.mark.parametrize("separator", ["::", b"::", bytearray(b"::"), memoryview(b"::")])
def test_readuntil_returns_up_to_and_including_the_separator(separator: Any) -> None:
    reader = byte_by_byte(b"a:b::c::d:")
    assert reader.readuntil(separator) == b"a:b::"
    assert reader.readuntil(separator) == b"c::"
    for partial in (b"d:", b""):
        with pytest.raises(IncompleteReadError) as caught:
            reader.readuntil(separator)
        assert (caught.value.partial, caught.value.expected) == (partial, None)


def test_a_separator_is_not_found_across_two_code_units() -> None:
    reader = Pieces(b"\x41\x0a\x00", encoding="utf16le")
    with pytest.raises(IncompleteReadError) as caught:
        reader.readuntil("\n")
    assert caught.value.partial == b"\x41\x0a\x00"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("é\n\nb\r\n\r\nc\r\rd\n e ".encode(), ["é", "", "b", "", "c\r\rd", " e "]),
        (b"a\r\r\nb\r", ["a\r", "b"]),  # one of them belongs to the ending
        (b"a\0b\n\0\n\0", ["a\0b", "\0", "\0"]),
        ("a\x0bb\x0cc\x1cd\x85e\u2028f\rg\n".encode(), ["a\x0bb\x0cc\x1cd\x85e\u2028f\rg"]),
        (b"a\xff\nb\xc3\n\xe2\x82\nc\n\xf0\x9f", ["a\ufffd", "b\ufffd", "\ufffd", "c", "\ufffd"]),
    ],
    ids=["endings", "carriage-returns", "nul", "no-newlines", "invalid"],
)
def test_lines_are_text_without_their_endings(data: bytes, expected: list[str]) -> None:
    assert list(byte_by_byte(data).lines()) == expected
    assert list(Pieces(data).lines()) == expected


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf16le", "日本\n\u0a00\u000a0\u0a0a\r\n\U0001f600"),
        ("shift_jis", "日本\nソース\r\n表示"),
        ("gb18030", "中文\n€\r\n"),
    ],
)
def test_lines_are_found_in_any_encoding(encoding: str, text: str) -> None:
    codec = {"utf16le": "utf-16-le"}.get(encoding, encoding)
    expected = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    assert list(byte_by_byte(text.encode(codec), encoding=encoding).lines()) == expected
    reader = byte_by_byte(text.encode(codec))
    reader.set_encoding(encoding)
    assert list(reader.lines()) == expected
    reader = byte_by_byte(text.encode(codec))
    reader.set_encoding(encoding)
    assert list(iter(reader.readline, "")) == text.splitlines(keepends=True)


def test_an_interruption_of_the_source_is_raised_before_received_bytes_are_read() -> None:
    reader = Pieces(b"one\ntwo\nthree\n")
    lines = reader.lines()
    assert next(lines) == "one"
    reader.interruption = TimeoutError("lifetime")
    for read in (reader.read, reader.peek, lambda: next(lines)):
        with pytest.raises(TimeoutError, match="lifetime"):
            read()


# --- Text ---


def test_a_new_encoding_applies_to_bytes_that_were_received_before() -> None:
    reader = Pieces("é\nü\nö".encode(), b"!")
    assert reader.readline() == "é\n".encode()
    reader.set_encoding()
    assert reader.readline() == "ü\n"
    assert reader.read() == "ö!"


def test_utf_16_may_begin_after_an_odd_number_of_bytes() -> None:
    reader = byte_by_byte(b"\x01\x02\x03" + "日\nb\n".encode("utf-16-le"))
    assert reader.readexactly(3) == b"\x01\x02\x03"
    reader.set_encoding("utf16le")
    assert list(reader.lines()) == ["日", "b"]


def test_an_unknown_encoding_is_refused_and_changes_nothing() -> None:
    reader = Pieces("é".encode())
    reader.set_encoding()
    with pytest.raises(UnknownEncodingError):
        reader.set_encoding("utf-9")
    assert reader.read() == "é"
    assert reader.encoding == "utf-8"


@pytest.mark.parametrize("cut", [byte_by_byte, Pieces])
def test_lines_are_bytes_if_their_encoding_is_none(cut: Callable[..., Pieces]) -> None:
    data = b"a\xff\r\n\n\xe2\x82\r\nb\n" * 2
    expected = [b"a\xff", b"", b"\xe2\x82", b"b"] * 2
    assert list(cut(data).lines(encoding=None)) == expected
    reader = cut(data)
    reader.set_encoding("hex")
    assert list(reader.lines(encoding=None)) == expected
    wide = cut("日\r\n\u0a0a\n".encode("utf-16-le"), encoding="utf16le")
    assert list(wide.lines(None)) == ["日".encode("utf-16-le"), b"\x0a\x0a"]


def test_lines_may_have_an_encoding_of_their_own() -> None:
    reader = Pieces("é\né\n".encode() * 3)
    reader.set_encoding("ascii")
    assert next(reader.lines("utf-8")) == "é"
    assert next(reader.lines(encoding="latin-1")) == "Ã©"
    assert next(reader.lines(None)) == "é".encode()
    assert reader.readline() == "C)\n"
    with pytest.raises(UnknownEncodingError):
        reader.lines("utf-9")


@pytest.mark.parametrize("cut", [byte_by_byte, Pieces])
@pytest.mark.parametrize("encoding", ["utf-8", "us-ascii"])
def test_a_line_of_invalid_text_is_an_error_if_that_is_asked_for(
    cut: Callable[..., Pieces], encoding: str
) -> None:
    data = b"a\nb\xff\nc\n\xe2\x82\nd\n\xc3"
    set_before = cut(data)
    set_before.set_encoding(encoding, errors="strict")
    own = cut(data, encoding=encoding).lines(errors="strict")
    for lines in (own, set_before.lines(), cut(data).lines(encoding, "strict")):
        assert next(lines) == "a"
        for invalid in (b"b\xff", b"\xe2\x82"):
            with pytest.raises(InvalidTextError) as caught:
                next(lines)
            assert caught.value.object.rstrip(b"\n") == invalid
            assert next(lines) == {b"b\xff": "c"}.get(invalid, "d")
        with pytest.raises(InvalidTextError):
            next(lines)
        assert list(lines) == []


def test_invalid_bytes_of_a_line_are_treated_as_set_encoding_says_unless_told_otherwise() -> None:
    reader = Pieces(b"a\xff\n" * 4)
    reader.set_encoding("utf-8", "ignore")
    assert next(reader.lines()) == "a"
    assert next(reader.lines("ascii")) == "a"
    assert next(reader.lines(errors="backslashreplace")) == "a\\xff"
    assert reader.readline() == "a\n"


def test_a_read_of_text_goes_on_after_invalid_bytes() -> None:
    reader = Pieces(b"a", b"b\xffc", b"d")
    reader.set_encoding(errors="strict")
    assert reader.read(8) == "a"
    with pytest.raises(InvalidTextError) as caught:
        reader.read(8)
    assert caught.value.object == b"b\xffc"
    assert reader.read() == "d"


def test_a_new_encoding_applies_to_the_lines_of_a_loop_that_has_begun() -> None:
    reader = Pieces("é\né\né\n".encode())
    lines = reader.lines()
    assert next(lines) == "é"
    reader.set_encoding("latin1")
    assert next(lines) == "Ã©"
    reader.set_encoding("ascii")
    assert list(lines) == ["C)"]


# --- Many lines at once ---


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (lambda reader: reader.readline(), b"two\r\n"),
        (lambda reader: reader.readuntil(b"th"), b"two\r\nth"),
        (lambda reader: reader.readexactly(6), b"two\r\nt"),
        (lambda reader: reader.read(), b"two\r\nthree\n\nfour"),
        (lambda reader: reader.read(1), b"t"),
        (lambda reader: b"".join(reader), b"two\r\nthree\n\nfour"),
        (lambda reader: reader.peek(3), b"two"),
        (lambda reader: list(reader.lines()), ["two", "three", "", "four"]),
        (lambda reader: reader.read_message(Delimiter(b"e")), b"two\r\nthr"),
    ],
)
def test_any_read_after_a_line_returns_the_bytes_that_follow(
    read: Callable[[Reader], Any], expected: Any
) -> None:
    reader = Pieces(b"one\ntwo\r\nthree\n\nfo", b"ur")
    assert next(reader.lines()) == "one"
    assert read(reader) == expected


def test_lines_and_other_reads_may_alternate() -> None:
    reader = Pieces(b"3\nabc2\nde4\nf\ngh\nend")
    lines = reader.lines()
    assert [(size, reader.readexactly(int(size))) for size in itertools.islice(lines, 3)] == [
        ("3", b"abc"),
        ("2", b"de"),
        ("4", b"f\ngh"),
    ]
    assert list(lines) == ["", "end"]


def test_iterators_over_the_lines_may_alternate() -> None:
    reader = Pieces("é\né\né\né\n".encode())
    one, other = reader.lines(), reader.lines()
    assert [next(one), next(other), next(one)] == ["é"] * 3
    reader.set_encoding("latin1")
    assert next(reader.lines()) == "Ã©"
    assert list(one) == list(other) == []


@pytest.mark.parametrize("size", [AHEAD - 2, AHEAD - 1, AHEAD, AHEAD + 1, 2 * AHEAD])
def test_long_lines_among_many_short_ones_are_whole(size: int) -> None:
    expected = [*["short"] * 9, "x" * size, *["short"] * 1000, "", "x" * size, "end"]
    assert list(Pieces("\n".join(expected).encode()).lines()) == expected


def test_a_lower_limit_applies_to_lines_that_were_received_before() -> None:
    reader = Pieces(b"12345\n12345\n1234\n12345\n")
    lines = reader.lines()
    assert next(lines) == "12345"
    reader.max_line = 4
    with pytest.raises(LineTooLongError):
        next(lines)
    assert next(lines) == "1234"
    with pytest.raises(LineTooLongError):
        next(lines)
    assert list(lines) == []


def test_lines_are_not_split_in_advance_if_other_reads_come_between() -> None:
    times: list[bytes] = []

    class Watched(ReceiveBuffer):
        def put_back(self, data: bytes) -> None:
            times.append(data)
            super().put_back(data)

    reader = Pieces(b"1\nx" * 1000)
    reader._buffer = Watched()
    assert [reader.readexactly(int(size)) for size in reader.lines()] == [b"x"] * 1000
    assert len(times) == 1
    assert len(times[0]) <= AHEAD


# --- Lines that are too long ---


@pytest.mark.parametrize("sizes", [[1], [3], [64], [7, 1]])
def test_a_line_may_have_max_line_bytes_before_its_newline(sizes: list[int]) -> None:
    data = b"12345\n123456\n1234567\n12345\n"
    reader = Pieces(*in_pieces(data, sizes), max_line=6)
    assert reader.readline() == b"12345\n"
    assert reader.readline() == b"123456\n"
    with pytest.raises(LineTooLongError, match=r"^line longer than 6 bytes \(max_line\)$"):
        reader.readline()
    assert reader.readline() == b"12345\n"
    assert reader.readline() == b""


def test_lines_continues_after_a_line_that_was_too_long() -> None:
    lines = byte_by_byte(b"one\nmuch too long\ntwo\nagain too long\n\nthree", max_line=5).lines()
    assert next(lines) == "one"
    with pytest.raises(LineTooLongError):
        next(lines)
    assert next(lines) == "two"
    with pytest.raises(LineTooLongError):
        next(lines)
    assert list(lines) == ["", "three"]


def test_the_limit_holds_for_any_separator() -> None:
    reader = byte_by_byte(b"12345::67890--::ab::", max_line=5)
    assert reader.readuntil("::") == b"12345::"
    with pytest.raises(LineTooLongError, match=r"read_message\(Delimiter\(b'::'\)\) reads longer"):
        reader.readuntil("::")
    assert reader.readuntil("::") == b"ab::"


def test_a_skipped_line_may_end_in_bytes_that_its_codec_refuses() -> None:
    reader = byte_by_byte(b"xn--\x80 much too long\nab", max_line=8)
    reader.set_encoding("idna")
    assert reader.readexactly(5) == ""
    with pytest.raises(LineTooLongError):
        reader.readline()
    assert reader.read() == "ab"


# --- Results that are too large ---


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("encoding", ["idna", "punycode", "unicode_escape"])
def test_text_that_is_decoded_at_the_end_has_max_message_bytes_at_most(encoding: str) -> None:
    for read in (lambda reader: reader.read(5), lambda reader: next(iter(reader))):
        reader = Pieces(*[b"a" * 99 + b"\n"] * 100, max_message=5000)
        reader.set_encoding(encoding)
        with pytest.raises(MessageTooLongError):
            read(reader)


def test_a_shifted_sequence_without_an_end_is_an_error() -> None:
    reader = Pieces(b"+", *[b"A" * 1000] * 100)
    reader.set_encoding("utf-7")
    with pytest.raises(MessageTooLongError, match="utf-7"):
        list(reader)


def test_a_read_to_the_end_receives_no_more_than_its_limit_and_a_chunk() -> None:
    reader = Pieces(*[b"x" * CHUNK] * 100, max_message=CHUNK)
    with pytest.raises(MessageTooLongError):
        reader.read()
    assert reader.received == 2 * CHUNK


def test_readexactly_refuses_too_large_a_size_without_receiving() -> None:
    reader = Pieces(b"123456", max_message=5)
    text = r"^message of 6 bytes, where 5 are allowed \(max_message\)$"
    with pytest.raises(MessageTooLongError, match=text) as caught:
        reader.readexactly(6)
    assert (caught.value.limit, caught.value.size) == (5, 6)
    assert reader.received == 0
    assert reader.readexactly(5) == b"12345"


# --- The cost ---


def test_ten_megabytes_without_a_newline_are_not_stored() -> None:
    size = 10 * 1024 * 1024
    rest = [b"x" * CHUNK] * (size // CHUNK)
    reader = Pieces(*rest, b"\nok\n", max_line=65536)
    with pytest.raises(LineTooLongError):
        reader.readline()
    assert reader.received <= 65536 + CHUNK
    assert reader.readline() == b"ok\n"
    assert reader.received == size + 4
    assert reader.most_held <= 65536 + CHUNK


@pytest.mark.parametrize(
    "read",
    [
        pytest.param(lambda r: list(r.lines()), id="lines"),
        pytest.param(lambda r: list(iter(r.readline, b"")), id="readline"),
        pytest.param(lambda r: r.readuntil(b"::"), id="readuntil"),
        pytest.param(lambda r: r.readexactly(10_000), id="readexactly"),
        pytest.param(lambda r: r.read(), id="read"),
        pytest.param(lambda r: [r.peek() + r.read(1) for _ in range(10_000)], id="peek"),
    ],
)
@pytest.mark.parametrize("data", [b"x" * 10_000 + b"::", b"xy\n" * 3_334 + b"::"])
def test_each_single_byte_is_searched_and_copied_a_few_times_at_most(
    read: Callable[[Reader], Any], data: bytes
) -> None:
    reader = byte_by_byte(data)
    counting = reader._buffer = CountingBuffer()
    read(reader)
    assert counting.touched <= 6 * len(data)


def test_each_byte_of_a_skipped_line_is_searched_and_copied_a_few_times_at_most() -> None:
    data = b"x" * 10_000 + b"\n"
    reader = byte_by_byte(data, max_line=100)
    counting = reader._buffer = CountingBuffer()
    with pytest.raises(LineTooLongError):
        reader.readline()
    assert reader.readline() == b""
    assert counting.touched <= 6 * len(data)


# --- The caller's buffer, and bytes that are put back ---


def test_input_is_read_into_the_callers_buffer_until_it_ends() -> None:
    reader = Pieces(b"abcdef", b"g")
    buffer = bytearray(4)
    taken = []
    while size := reader.read_into(buffer):
        taken.append(bytes(buffer[:size]))
    assert taken == [b"abcd", b"ef", b"g"]
    assert reader.read_into(memoryview(buffer)[2:]) == 0


def test_an_empty_buffer_and_one_for_text_are_refused() -> None:
    reader = Pieces(b"text")
    with pytest.raises(ValueError, match="the buffer has no room"):
        reader.read_into(bytearray())
    reader.set_encoding()
    with pytest.raises(ValueError, match="text cannot be read into a buffer"):
        reader.read_into(bytearray(4))
    assert reader.read() == "text"


def test_bytes_that_are_put_back_are_read_first_by_any_method() -> None:
    reader = Pieces(b"one\ntwo\nthree\nfour")
    lines = reader.lines()
    assert [next(lines), next(lines)] == ["one", "two"]
    reader.unread("two\n")
    assert reader.readline() == b"two\n"
    reader.unread(b"the ")
    assert reader.read(4) == b"the "
    assert next(lines) == "three"
    assert reader.read() == b"four"
    reader.unread("again")
    assert list(reader) == [b"again"]


def test_text_is_put_back_in_its_encoding() -> None:
    reader = Pieces("äö".encode("utf-16-le"), encoding="utf-16-le")
    reader.set_encoding("utf-16-le")
    assert reader.read(2) == "ä"
    reader.unread("ü")
    assert reader.read() == "üö"
