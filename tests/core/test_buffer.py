"""The receive buffer: a queue of bytes that can be searched, at a cost linear in its input."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import CountingBuffer

from netkit.core.buffer import CHUNK, FIRST_CHUNK, ReceiveBuffer, next_chunk


def filled(*pieces: bytes) -> ReceiveBuffer:
    buffer = ReceiveBuffer()
    for piece in pieces:
        buffer.feed(piece)
    return buffer


def test_a_new_buffer_is_empty() -> None:
    buffer = ReceiveBuffer()
    assert len(buffer) == 0
    assert not buffer
    assert buffer.take(10) == b""
    assert buffer.peek(10) == b""
    assert buffer.search(b"\n") == -1


def test_take_removes_from_the_front_and_peek_does_not() -> None:
    buffer = filled(b"ab", b"cd")
    assert buffer.peek(3) == b"abc"
    assert buffer.peek(9) == b"abcd"
    assert buffer.take(3) == b"abc"
    assert len(buffer) == 1
    assert buffer.take(9) == b"d"
    assert len(buffer) == 0


def test_data_that_is_put_back_comes_first_and_is_searched_again() -> None:
    buffer = filled(b"ab;cd")
    taken = buffer.take(3)
    assert buffer.search(b";") == -1
    buffer.put_back(taken)
    assert buffer.search(b";") == 3
    assert buffer.take(9) == b"ab;cd"


def test_the_results_are_bytes_that_later_input_does_not_change() -> None:
    buffer = filled(b"ab")
    peeked, taken = buffer.peek(1), buffer.take(1)
    buffer.feed(b"xy")
    assert type(peeked) is type(taken) is bytes
    assert (peeked, taken) == (b"a", b"a")


def test_search_returns_the_end_of_the_separator() -> None:
    buffer = filled(b"ab\r\ncd\r\n")
    assert buffer.search(b"\r\n") == 4
    assert buffer.search(b"\r\n") == 4
    buffer.take(4)
    assert buffer.search(b"\r\n") == 4


def test_a_separator_that_arrives_in_pieces_is_found() -> None:
    buffer = filled(b"ab-")
    assert buffer.search(b"--|") == -1
    buffer.feed(b"-")
    assert buffer.search(b"--|") == -1
    buffer.feed(b"|")
    assert buffer.search(b"--|") == 5


def test_another_separator_is_found_after_the_search_was_restarted() -> None:
    buffer = filled(b"a;b")
    assert buffer.search(b"\n") == -1
    buffer.restart_search()
    assert buffer.search(b";") == 2


@pytest.mark.parametrize(
    ("data", "width", "phase", "found"),
    [
        (b"\n\x00", 2, 0, 2),
        (b"\x0a\x0a\x00\x00", 2, 0, -1),  # U+0A0A, U+0000: no newline
        (b"\x0a\x0a\x00\x00", 2, 1, 3),
        (b"\x41\x0a\x00\x0a\x0a\x00\x0a\x00", 2, 0, 6),
        (b"\x00\x00\x00\x0a\x00\x00\x00\x0a\x00", 4, 3, 5),
    ],
)
def test_a_separator_is_found_only_at_the_beginning_of_a_code_unit(
    data: bytes, width: int, phase: int, found: int
) -> None:
    assert filled(data).search(b"\n\x00", width, phase) == found
    in_pieces = ReceiveBuffer()
    for at in range(len(data)):
        in_pieces.feed(data[at : at + 1])
        end = in_pieces.search(b"\n\x00", width, phase)
        assert end == (found if at + 1 >= found > 0 else -1)


@pytest.mark.fuzz
@given(st.lists(st.one_of(st.binary(max_size=6), st.integers(0, 6), st.none()), max_size=30))
def test_a_buffer_behaves_as_bytes_do(steps: list[bytes | int | None]) -> None:
    """In `steps`, bytes are fed, an int is a number of bytes to take, and None is a search."""
    buffer, model = ReceiveBuffer(), b""
    for step in steps:
        if isinstance(step, bytes):
            buffer.feed(step)
            model += step
        elif step is None:
            at = model.find(b"\0\0")
            assert buffer.search(b"\0\0") == (at + 2 if at >= 0 else -1)
        else:
            assert buffer.peek(step) == model[:step]
            assert buffer.take(step) == model[:step]
            model = model[step:]
        assert len(buffer) == len(model)


@pytest.mark.parametrize("separator", [b"\n", b"--|"])
@pytest.mark.parametrize("lines", [1, 100])
def test_each_byte_is_searched_and_copied_a_few_times_at_most(separator: bytes, lines: int) -> None:
    """Each byte arrives by itself and is followed by a search, a quadratic cost if done badly."""
    buffer = CountingBuffer()
    size, taken = 20_000, 0
    stream = (b"-" * (size // lines) + separator) * lines
    for byte in stream:
        buffer.feed(bytes([byte]))
        end = buffer.search(separator)
        if end > 0:
            taken += len(buffer.take(end))
    assert taken == len(stream)
    assert buffer.touched <= 6 * len(stream)


# --- The number of bytes to receive at once ---


@pytest.mark.parametrize(
    ("asked", "arrived", "next_asked"),
    [
        (FIRST_CHUNK, 1, FIRST_CHUNK),
        (FIRST_CHUNK, FIRST_CHUNK - 1, FIRST_CHUNK),
        (FIRST_CHUNK, FIRST_CHUNK, 8 * FIRST_CHUNK),
        (CHUNK // 2, CHUNK // 2, CHUNK),
        (CHUNK, CHUNK, CHUNK),
        (CHUNK, CHUNK // 8, CHUNK),
        (CHUNK, CHUNK // 8 - 1, CHUNK // 2),
        (2 * FIRST_CHUNK, FIRST_CHUNK, 2 * FIRST_CHUNK),
        (2 * FIRST_CHUNK, FIRST_CHUNK - 1, FIRST_CHUNK),
        (2 * FIRST_CHUNK - 1, 1, FIRST_CHUNK),
    ],
)
def test_chunks_grow_while_they_are_full_and_shrink_while_they_are_not(
    asked: int, arrived: int, next_asked: int
) -> None:
    assert next_chunk(asked, arrived) == next_asked


@pytest.mark.parametrize("size", [1, 200, FIRST_CHUNK, 2000, 4096, 50_000, CHUNK])
def test_messages_of_one_size_soon_arrive_in_one_piece(size: int) -> None:
    chunk, receives = FIRST_CHUNK, 0
    for message in range(20):
        left = size
        while left:
            arrived = min(left, chunk)
            left -= arrived
            receives += message >= 10
            chunk = next_chunk(chunk, arrived)
    assert receives == 10
