"""Messages in a stream: each framing, any bytes in any pieces, and real connections."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import pickle
import re
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support import (
    PATIENCE,
    ROOT,
    CountingBuffer,
    client,
    examples,
    exchange,
    in_thread,
    observed,
    receive_all,
    receive_exactly,
    serving,
    tcp_pair,
    wait_until,
)

import netkit
from core.test_reader import Pieces, byte_by_byte, in_pieces
from netkit.core import events
from netkit.core.buffer import CHUNK
from netkit.core.errors import FramingError, IncompleteReadError, MessageTooLongError
from netkit.core.framing import (
    Delimiter,
    FixedSize,
    Framing,
    LengthPrefix,
    Netstrings,
    VarintPrefix,
)

BYTE_ORDERS: list[Literal["big", "little"]] = ["big", "little"]
FRAMINGS: list[Framing] = [
    LengthPrefix(1),
    LengthPrefix(2, "little"),
    LengthPrefix(4),
    LengthPrefix(8, "little"),
    VarintPrefix(),
    Netstrings(),
    FixedSize(1),
    FixedSize(5),
    Delimiter(b"\n"),
    Delimiter(b"\r\n\r\n"),
    Delimiter(b"aba"),
]
each_framing = pytest.mark.parametrize("framing", FRAMINGS, ids=repr)
ANY_SIZE = [f for f in FRAMINGS if not isinstance(f, FixedSize)]
each_of_any_size = pytest.mark.parametrize("framing", ANY_SIZE, ids=repr)


# --- A reference, which has all bytes from the start ---


class Bad(Exception):
    """The header is invalid."""


class Short(Exception):
    """More bytes are needed: this number in all, or None if the number is not known."""


def varint(data: bytes) -> tuple[int, int]:
    last = next((at for at, byte in enumerate(data[:9]) if byte < 128), None)
    if last is None:
        if len(data) < 10:
            raise Short(len(data) + 1)
        last = 9
        if data[9] > 1:
            raise Bad("a varint of more than 64 bits")
    if last and data[last] == 0:
        raise Bad(f"a varint that is not in its shortest form: {data[: last + 1]!r}")
    bits = "".join(format(byte & 127, "07b") for byte in reversed(data[: last + 1]))
    return last + 1, int(bits, 2)


def netstring(data: bytes) -> tuple[int, int]:
    whole = re.match(rb"(0|[1-9]\d{0,19}):", data)
    if whole:
        return whole.end(), int(whole[1])
    if re.match(rb"[1-9]\d{20}", data):
        raise Bad("a netstring whose length has more than 20 digits")
    if re.fullmatch(rb"(0|[1-9]\d{0,19})?", data):
        raise Short(len(data) + 1)
    good = re.match(rb"(0|[1-9]\d*)?", data)
    assert good
    raise Bad(f"a netstring cannot begin with {data[: good.end() + 1]!r}")


def header(framing: Framing, data: bytes) -> tuple[int, int]:
    if isinstance(framing, LengthPrefix):
        if len(data) < framing.size:
            raise Short(framing.size)
        code = (">" if framing.byteorder == "big" else "<") + " BH I   Q"[framing.size]
        return framing.size, struct.unpack_from(code, data)[0]
    return netstring(data) if isinstance(framing, Netstrings) else varint(data)


def first_message(framing: Framing, data: bytes, limit: float) -> tuple[bytes, bytes]:
    """The first message, and what follows it."""
    if isinstance(framing, FixedSize):
        if len(data) < framing.size:
            raise Short(framing.size)
        return data[: framing.size], data[framing.size :]
    if isinstance(framing, Delimiter):
        message, found, rest = data.partition(framing.delimiter)
        if len(message) > limit + (0 if found else len(framing.delimiter) - 1):
            raise MessageTooLongError(int(limit))
        if not found:
            raise Short(None)
        return message, rest
    start, size = header(framing, data)
    if size > limit:
        raise MessageTooLongError(int(limit), size)
    trailer = b"," if isinstance(framing, Netstrings) else b""
    message, rest = data[start : start + size], data[start + size :]
    if rest and not rest.startswith(trailer):
        raise Bad(f"a netstring ends with a comma, not with {rest[:1]!r}")
    if len(message) < size or len(rest) < len(trailer):
        raise Short(start + size + len(trailer))
    return message, rest[len(trailer) :]


Outcome = Any  # a message, None for the end, or an error's type, text and attributes


def expected(framing: Framing, data: bytes, limit: int | None) -> Iterator[Outcome]:
    while data:
        try:
            message, data = first_message(framing, data, float("inf") if limit is None else limit)
        except Bad as error:
            yield FramingError, str(error), {}
            return
        except Short as error:
            incomplete = IncompleteReadError(data, error.args[0])
            yield IncompleteReadError, str(incomplete), vars(incomplete)
            return
        except MessageTooLongError as error:
            yield MessageTooLongError, str(error), vars(error)
            return
        yield message
    yield None


def outcomes(reader: Pieces, framing: Framing) -> Iterator[Outcome]:
    """The messages and the end. A read that times out is repeated."""
    while True:
        try:
            message = reader.read_message(framing)
        except TimeoutError:
            continue
        except (IncompleteReadError, MessageTooLongError, FramingError) as error:
            yield type(error), str(error), vars(error)
            return
        yield message
        if message is None:
            return


# --- Any bytes, any pieces ---


SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=5)
LIMITS = st.none() | st.integers(1, 12)
TOKENS = st.one_of(
    st.binary(max_size=5),
    st.sampled_from([b"\r\n", b"\r\n\r\n", b"aba", b"ab", b"5:hello,", b"0:,", b"12:", b"1"]),
    st.sampled_from([b"\0", b"\0\0\0", b"\x01", b"\x80", b"\xff" * 9, b"\x80" * 8]),
)
BYTES = st.lists(TOKENS, max_size=12).map(b"".join)


@pytest.mark.fuzz
@examples(200)
@given(st.sampled_from(FRAMINGS), BYTES, SIZES, LIMITS)
@example(VarintPrefix(), b"\xff" * 9 + b"\x01", [1], None)
@example(VarintPrefix(), b"\xff" * 9 + b"\x02", [1], None)
@example(VarintPrefix(), b"\xff" * 11, [64], None)
@example(VarintPrefix(), b"\x80" * 9 + b"\x00", [3], None)
@example(Netstrings(), b"1" * 20 + b":", [1], None)
@example(Netstrings(), b"1" * 21 + b":", [64], 9)
@example(Netstrings(), b"00:,", [1], None)
@example(Netstrings(), b"01:a,", [64], None)
@example(Netstrings(), b":,", [64], None)
@example(Netstrings(), b"3:abcd", [1], None)
@example(Netstrings(), b"10:", [1], 9)
def test_any_bytes_in_any_pieces_give_the_messages_and_the_error_of_the_reference(
    framing: Framing, data: bytes, sizes: list[int], limit: int | None
) -> None:
    pieces: list[bytes | Exception] = []
    for piece in in_pieces(data, sizes):
        pieces += [TimeoutError(), piece]  # no read may lose bytes by it
    reader = Pieces(*pieces, max_message=limit)
    assert list(outcomes(reader, framing)) == list(expected(framing, data, limit))
    if limit is not None and not isinstance(framing, FixedSize):
        most = limit + 22 + max(sizes)  # a header, or a delimiter, and one piece too many
        assert reader.most_held <= most


@pytest.mark.fuzz
@examples(100)
@given(st.sampled_from(FRAMINGS), BYTES)
def test_a_message_that_could_not_be_read_is_not_encoded(framing: Framing, data: bytes) -> None:
    try:
        frame = framing.encode(data)
    except ValueError:
        frame = b""
    assert (list(expected(framing, frame + frame, None)) == [data, data, None]) == bool(frame)


# --- Each framing by itself ---


def samples(framing: Framing) -> list[bytes]:
    if isinstance(framing, FixedSize):
        return [b"x" * framing.size, b"\0" * framing.size]
    return [b"", b"hello", b"", b"\0\xff", b"x" * 200]


@each_framing
def test_a_framing_reads_what_it_encodes(framing: Framing) -> None:
    stream = b"".join(map(framing.encode, samples(framing)))
    assert list(Pieces(stream).messages(framing)) == samples(framing)
    assert list(byte_by_byte(stream).messages(framing)) == samples(framing)
    reader = byte_by_byte(framing.encode(samples(framing)[1]))
    assert [framing.read(reader) for _ in range(3)] == [samples(framing)[1], None, None]


@each_framing
@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
def test_any_bytes_like_object_is_a_message_and_a_str_is_a_type_error(
    framing: Framing, make: Callable[[bytes], Any]
) -> None:
    message = samples(framing)[1]
    frame = framing.encode(make(message))
    assert type(frame) is bytes
    assert frame == framing.encode(message)
    with pytest.raises(TypeError):
        framing.encode("hello")  # type: ignore[arg-type]


def test_a_view_of_numbers_is_framed_as_its_bytes() -> None:
    numbers = memoryview(struct.pack("=3H", 1, 2, 3)).cast("H")
    assert LengthPrefix(1).encode(numbers) == b"\x06" + numbers.tobytes()
    every_other = memoryview(b"abcdef")[::2]
    assert Netstrings().encode(every_other) == b"3:ace,"


@pytest.mark.parametrize(
    ("framing", "frame"),
    [
        (LengthPrefix(), b"\0\0\0\x05hello"),
        (LengthPrefix(4, "little"), b"\x05\0\0\0hello"),
        (LengthPrefix(1), b"\x05hello"),
        (LengthPrefix(2), b"\0\x05hello"),
        (LengthPrefix(8, "little"), b"\x05\0\0\0\0\0\0\0hello"),
        (VarintPrefix(), b"\x05hello"),
        (Netstrings(), b"5:hello,"),
        (FixedSize(5), b"hello"),
        (Delimiter(b"\r\n"), b"hello\r\n"),
    ],
    ids=repr,
)
def test_each_framing_has_its_form_on_the_wire(framing: Framing, frame: bytes) -> None:
    assert framing.encode(b"hello") == frame


@pytest.mark.parametrize(
    ("size", "prefix"),
    [(0, "00"), (1, "01"), (127, "7f"), (128, "8001"), (300, "ac02"), (16383, "ff7f")],
)
def test_a_varint_is_that_of_protocol_buffers(size: int, prefix: str) -> None:
    message = b"x" * size
    frame = VarintPrefix().encode(message)
    assert frame == bytes.fromhex(prefix) + message
    assert list(byte_by_byte(frame).messages(VarintPrefix())) == [message]


@pytest.mark.parametrize("order", BYTE_ORDERS)
@pytest.mark.parametrize("size", [1, 2])
def test_a_length_prefix_accepts_any_length_that_fits(
    size: int, order: Literal["big", "little"]
) -> None:
    framing, most = LengthPrefix(size, order), 256**size - 1
    largest = b"x" * most
    assert list(Pieces(framing.encode(largest)).messages(framing)) == [largest]
    text = f"^a length prefix of {size} bytes can be {most} at most, not {most + 1}$"
    with pytest.raises(ValueError, match=text):
        framing.encode(b"x" * (most + 1))


def test_a_fixed_size_refuses_a_message_of_another_size() -> None:
    for wrong in (b"", b"1234", b"123456"):
        with pytest.raises(ValueError, match=f"^a message has 5 bytes, not {len(wrong)}$"):
            FixedSize(5).encode(wrong)


@pytest.mark.parametrize(
    ("delimiter", "message", "at"),
    [(b"\n", b"a\nb", 1), (b"aba", b"xxaba", 2), (b"--", b"x-", 1), (b"aba", b"ab", 0)],
)
def test_a_message_that_would_end_before_its_delimiter_is_refused(
    delimiter: bytes, message: bytes, at: int
) -> None:
    text = re.escape(f"the message contains its delimiter {delimiter!r} at {at}")
    with pytest.raises(ValueError, match=f"^{text}$"):
        Delimiter(delimiter).encode(message)


# --- Messages that are too long, and invalid ones ---


@each_of_any_size
def test_a_message_may_have_max_message_bytes_and_no_more(framing: Framing) -> None:
    longest, longer = framing.encode(b"x" * 9), framing.encode(b"x" * 10)
    reader = byte_by_byte(longest + longer, max_message=9)
    assert reader.read_message(framing) == b"x" * 9
    size, text = 10, "message of 10 bytes, where 9 are allowed (max_message)"
    if isinstance(framing, Delimiter):
        size, text = None, "message longer than 9 bytes (max_message)"
    for _ in range(3):
        with pytest.raises(MessageTooLongError) as caught:
            reader.read_message(framing)
        assert (caught.value.limit, caught.value.size) == (9, size)
        assert str(caught.value) == text
    reader.max_message = 10
    assert reader.read_message(framing) == b"x" * 10


@pytest.mark.parametrize(
    "make",
    [
        lambda limit: LengthPrefix(4, max_message=limit),
        lambda limit: VarintPrefix(max_message=limit),
        lambda limit: Netstrings(max_message=limit),
        lambda limit: Delimiter(b"\n", max_message=limit),
    ],
)
def test_the_limit_of_the_framing_overrides_that_of_the_reader(
    make: Callable[[int | None], Framing],
) -> None:
    frame = make(1).encode(b"12345")  # it bounds what is read, not what is written
    assert Pieces(frame, max_message=4).read_message(make(5)) == b"12345"
    with pytest.raises(MessageTooLongError):
        Pieces(frame, max_message=5).read_message(make(4))
    with pytest.raises(MessageTooLongError):
        Pieces(frame, max_message=4).read_message(make(None))
    assert Pieces(frame, max_message=None).read_message(make(None)) == b"12345"


def test_a_fixed_size_is_its_own_limit() -> None:
    assert Pieces(b"12345", max_message=4).read_message(FixedSize(5)) == b"12345"


@pytest.mark.parametrize(
    ("framing", "announcement"),
    [
        (LengthPrefix(4), b"\xff\xff\xff\xff"),
        (LengthPrefix(8, "little"), b"\xff" * 8),
        (VarintPrefix(), b"\xff" * 9 + b"\x01"),
        (Netstrings(), b"4294967296:"),
    ],
    ids=repr,
)
def test_a_length_above_the_limit_is_an_error_before_the_message_is_received(
    framing: Framing, announcement: bytes
) -> None:
    reader = Pieces(announcement, *[b"x" * CHUNK] * 100, max_message=16 * 1024 * 1024)
    with pytest.raises(MessageTooLongError) as caught:
        reader.read_message(framing)
    assert caught.value.size is not None
    assert caught.value.size >= 2**32 - 1
    assert reader.received == len(announcement)


def test_input_without_a_delimiter_is_an_error_at_the_limit() -> None:
    reader = Pieces(*[b"x" * CHUNK] * 100, max_message=CHUNK)
    with pytest.raises(MessageTooLongError):
        reader.read_message(Delimiter(b"\n"))
    assert reader.received == 2 * CHUNK


@pytest.mark.parametrize(
    ("framing", "data", "text"),
    [
        (VarintPrefix(), b"\x80\0", r"a varint that is not in its shortest form: b'\x80\x00'"),
        (VarintPrefix(), b"\xff" * 9 + b"\x02", "a varint of more than 64 bits"),
        (Netstrings(), b"hello", "a netstring cannot begin with b'h'"),
        (Netstrings(), b"05:hello,", "a netstring cannot begin with b'05'"),
        (Netstrings(), b"1" * 99, "a netstring whose length has more than 20 digits"),
        (Netstrings(), b"5:hello!", "a netstring ends with a comma, not with b'!'"),
    ],
)
@pytest.mark.parametrize("sizes", [[1], [64]])
def test_invalid_bytes_are_an_error_of_each_read(
    framing: Framing, data: bytes, text: str, sizes: list[int]
) -> None:
    reader = Pieces(*in_pieces(data, sizes))
    messages = reader.messages(framing)
    for _ in range(3):
        with pytest.raises(FramingError) as caught:
            next(messages)
        assert str(caught.value) == text


# --- As values ---


@each_framing
def test_a_framing_is_a_value_that_cannot_be_changed(framing: Framing) -> None:
    other = pickle.loads(pickle.dumps(framing))
    assert other == framing
    assert hash(other) == hash(framing)
    assert eval(repr(framing)) == framing
    for field in dataclasses.fields(framing):  # type: ignore[arg-type]
        with pytest.raises(AttributeError):
            setattr(framing, field.name, 1)


def test_framings_that_differ_are_not_equal() -> None:
    for one, other in itertools.combinations([*FRAMINGS, VarintPrefix(max_message=1)], 2):
        assert one != other


SIZE = "a length prefix has 1, 2, 4 or 8 bytes, not "
LIMIT = "max_message must be at least 1 byte, not "


@pytest.mark.parametrize(
    ("make", "given", "kind", "text"),
    [
        (LengthPrefix, {"size": 3}, ValueError, SIZE + "3"),
        (LengthPrefix, {"size": True}, ValueError, SIZE + "True"),
        (
            LengthPrefix,
            {"byteorder": "network"},
            ValueError,
            "byteorder must be 'big' or 'little', not 'network'",
        ),
        (LengthPrefix, {"max_message": 0}, ValueError, LIMIT + "0"),
        (
            VarintPrefix,
            {"max_message": "1"},
            TypeError,
            "max_message must be a number of bytes, not '1'",
        ),
        (Netstrings, {"max_message": -1}, ValueError, LIMIT + "-1"),
        (FixedSize, {"size": 0}, ValueError, "size must be at least 1 byte, not 0"),
        (FixedSize, {"size": 1.0}, TypeError, "size must be a number of bytes, not 1.0"),
        (Delimiter, {"delimiter": "\n"}, TypeError, r"the delimiter must be bytes, not '\n'"),
        (Delimiter, {"delimiter": b""}, ValueError, "the delimiter must not be empty"),
        (Delimiter, {"delimiter": b"\n", "max_message": 0}, ValueError, LIMIT + "0"),
    ],
)
def test_an_invalid_parameter_is_refused(
    make: Callable[..., Framing], given: dict[str, Any], kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind) as caught:
        make(**given)
    assert str(caught.value) == text


# --- Other reads between messages, and the cost ---


def test_messages_and_other_reads_may_alternate() -> None:
    framing = LengthPrefix(1)
    reader = byte_by_byte(b"one\ntwo\n\x03abcthree\n\x00\x01xrest")
    assert next(reader.lines()) == "one"
    assert reader.readline() == b"two\n"
    assert reader.read_message(framing) == b"abc"
    assert reader.readuntil("\n") == b"three\n"
    assert reader.peek(1) == b"\0"
    assert list(itertools.islice(reader.messages(framing), 2)) == [b"", b"x"]
    assert reader.read() == b"rest"


def test_messages_are_bytes_in_text_mode_too() -> None:
    reader = byte_by_byte("\x03aé\n".encode() + "é".encode())
    reader.set_encoding()
    assert reader.read_message(LengthPrefix(1)) == "aé".encode()
    assert reader.read() == "\né"


def test_a_search_for_another_separator_does_not_hide_a_delimiter() -> None:
    reader = Pieces(b"a--b", TimeoutError(), b"\n")
    with pytest.raises(TimeoutError):
        reader.readline()
    assert reader.read_message(Delimiter(b"--")) == b"a"


@pytest.mark.parametrize(
    "framing", [LengthPrefix(4), VarintPrefix(), Netstrings(), Delimiter(b"::")], ids=repr
)
def test_each_single_byte_is_searched_a_few_times_only(framing: Framing) -> None:
    stream = framing.encode(b"x" * 10_000) + framing.encode(b"y") * 1000
    reader = byte_by_byte(stream)
    counting = reader._buffer = CountingBuffer()
    assert len(list(reader.messages(framing))) == 1001
    assert counting.touched <= 12 * len(stream)


# --- Real connections ---

FRAMES = LengthPrefix(4)


def shout(framing: Framing) -> Callable[[netkit.Connection], None]:
    def handler(conn: netkit.Connection) -> None:
        for message in conn.messages(framing):
            conn.write(framing.encode(message.upper()))

    return handler


def test_a_server_and_its_clients_speak_in_messages() -> None:
    framing = Netstrings()
    messages = [b"hello", b"", b"a\nb", b"x" * 200_000]
    with serving(shout(framing)) as server:
        assert server.address
        with netkit.connect(server.address.port, "127.0.0.1") as conn:
            for message in messages:
                conn.write(framing.encode(message))
                assert conn.read_message(framing) == message.upper()
            conn.end(b"".join(framing.encode(message) for message in messages[:3]))
            assert list(conn.messages(framing)) == [b"HELLO", b"", b"A\nB"]


def test_a_client_that_announces_4_gib_costs_no_memory_and_has_failed_by_its_own_fault() -> None:
    kinds = events.ClientFailed, events.HandlerFailed
    with observed(*kinds) as failures, observed(events.ConnectionClosed) as ends:
        with serving(shout(FRAMES)) as server:
            with client(server) as sock, contextlib.suppress(OSError):
                sock.sendall(b"\xff\xff\xff\xff")
                sock.sendall(b"x" * 5_000_000)
                sock.shutdown(socket.SHUT_WR)
                assert receive_all(sock) == b""
            wait_until(lambda: ends, "the end")
            assert exchange(server, FRAMES.encode(b"hello")) == FRAMES.encode(b"HELLO")
    (failure,) = failures
    assert isinstance(failure, events.ClientFailed)
    assert isinstance(failure.error, MessageTooLongError)
    assert failure.error.limit == 16 * 1024 * 1024
    assert ends[0].bytes_read <= CHUNK  # all that could be held


def test_the_longest_message_is_that_of_the_options() -> None:
    with observed(events.ClientFailed) as failures:
        with serving(shout(FRAMES), max_message=5) as server:
            assert exchange(server, FRAMES.encode(b"12345")) == FRAMES.encode(b"12345")
            assert exchange(server, FRAMES.encode(b"123456")) == b""
            wait_until(lambda: failures, "the report")
        with serving(lambda conn: conn.write(str(conn.max_message)), max_message=None) as server:
            assert exchange(server, b"") == b"None"


def test_a_connection_without_a_server_has_the_default_limit_or_its_own() -> None:
    with tcp_pair() as (ours, _), netkit.Connection(ours) as conn:
        assert conn.max_message == 16 * 1024 * 1024
    with tcp_pair() as (ours, _), netkit.Connection(ours, max_message=9) as conn:
        assert conn.max_message == 9


@pytest.mark.parametrize("received", [1, 6])
def test_a_message_that_has_begun_when_the_server_stops_is_read_to_its_end(received: int) -> None:
    frame = FRAMES.encode(b"hello")
    with serving(shout(FRAMES)) as server:
        with client(server) as sock:
            sock.sendall(frame[:received])
            wait_until(
                lambda: [c for c in server.connections if c.bytes_read == received], "the start"
            )
            with in_thread(server.stop, PATIENCE):
                wait_until(lambda: not server.listening, "the stop")
                sock.sendall(frame[received:])
                assert receive_exactly(sock, len(frame)) == FRAMES.encode(b"HELLO")
                assert receive_all(sock) == b""


# --- The documentation ---


def test_the_examples_of_the_documentation_do_what_they_say(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = (ROOT / "docs" / "framing.md").read_text(encoding="utf-8")
    printed = []
    names: dict[str, Any] = {}
    for program in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(program, names)
        printed.append(capsys.readouterr().out)
    assert printed == [
        "b'HELLO\\nTHERE'\n",
        "b'354 end with a dot on a line of its own\\r\\n'\nb'250 700000 bytes received\\r\\n'\n",
        "b'ONE\\nTWO\\nTHREE\\n'\n",
        "",
    ]
    records = names["Records"]()
    reader = byte_by_byte(records.encode(b"Thello") + records.encode(b"E"), max_message=8)
    assert [message[:1] + message[3:] for message in reader.messages(records)] == [b"Thello", b"E"]
    with pytest.raises(MessageTooLongError):
        Pieces(records.encode(b"Thello!"), max_message=8).read_message(records)
