"""The number of bytes to receive at once."""

from __future__ import annotations

import pytest

from netkit.core.buffer import CHUNK, FIRST_CHUNK, next_chunk


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
