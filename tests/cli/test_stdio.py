"""Standard input by its descriptor: what is read, and what ends a wait."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import in_thread

from netkit.cli.stdio import Input


@pytest.fixture
def pipe() -> Iterator[tuple[Input, int]]:
    """An input, and the descriptor to write to, which the test may close."""
    reading, writing = os.pipe()
    with contextlib.closing(Input(reading)) as source:
        yield source, writing
    for descriptor in (reading, writing):
        with contextlib.suppress(OSError):
            os.close(descriptor)


def test_input_comes_in_pieces_until_it_ends(pipe: tuple[Input, int]) -> None:
    source, writing = pipe
    os.write(writing, b"one")
    pieces = iter(source)
    assert next(pieces) == b"one"
    os.write(writing, b"two")
    os.close(writing)
    assert list(pieces) == [b"two"]


def test_a_wait_is_ended_from_another_thread(pipe: tuple[Input, int]) -> None:
    source, _ = pipe
    got: list[list[bytes]] = []
    with in_thread(lambda: got.append(list(source))):
        source.end_after(0.01)
    assert got == [[]]


def test_an_input_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="cannot open standard input: is a directory"):
            Input(folder)
    finally:
        os.close(folder)


def test_a_non_blocking_input_that_another_process_has_read_is_waited_for_again(
    pipe: tuple[Input, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, writing = pipe
    os.write(writing, b"x")
    os.close(writing)
    real, times = os.read, iter([True])

    def read(descriptor: int, size: int) -> bytes:
        if next(times, False):
            raise BlockingIOError
        return real(descriptor, size)

    monkeypatch.setattr(os, "read", read)
    assert list(source) == [b"x"]
