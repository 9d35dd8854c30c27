"""Input and output by descriptor: what is read and written whole, and what ends a wait."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import in_thread

from netkit.cli.stdio import Input, Output, OutputError


@contextlib.contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    try:
        yield reading, writing
    finally:
        for descriptor in (reading, writing):
            with contextlib.suppress(OSError):
                os.close(descriptor)


def an_input(file: str | int | None) -> contextlib.closing[Input]:
    return contextlib.closing(Input(file))


def test_input_comes_in_pieces_until_it_ends() -> None:
    with pipe() as (reading, writing), an_input(reading) as source:
        os.write(writing, b"one")
        pieces = iter(source)
        assert next(pieces) == b"one"
        os.write(writing, b"two")
        os.close(writing)
        assert list(pieces) == [b"two"]


def test_a_closed_input_has_ended() -> None:
    with an_input(None) as source:
        assert list(source) == []


def test_a_wait_is_ended_from_another_thread() -> None:
    with pipe() as (reading, _), an_input(reading) as source:
        got: list[list[bytes]] = []
        with in_thread(lambda: got.append(list(source))):
            source.end_after(0.01)
        assert got == [[]]


def test_input_that_has_come_is_read_although_the_time_is_up(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(1_000_000))
    with an_input(str(file)) as source:
        source.end_after(0)
        assert sum(map(len, source)) == 1_000_000


def test_an_input_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(IsADirectoryError) as caught:
            Input(folder)
    finally:
        os.close(folder)
    assert caught.value.strerror == "cannot open standard input: is a directory"


def test_a_non_blocking_input_that_another_process_has_read_is_waited_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pipe() as (reading, writing), an_input(reading) as source:
        os.write(writing, b"x")
        os.close(writing)
        real, times = os.read, iter([True])

        def read(descriptor: int, size: int) -> bytes:
            if next(times, False):
                raise BlockingIOError
            return real(descriptor, size)

        monkeypatch.setattr(os, "read", read)
        assert list(source) == [b"x"]


def test_output_is_written_whole_to_a_non_blocking_pipe() -> None:
    data = os.urandom(300_000)  # more than the pipe holds
    got = bytearray()
    with pipe() as (reading, writing):
        os.set_blocking(writing, False)

        with in_thread(lambda: Output(writing).write(data)):
            while len(got) < len(data):
                got.extend(os.read(reading, 10_000))
    assert got == data


def test_an_output_without_a_reader_raises_its_error() -> None:
    with pipe() as (reading, writing):
        os.close(reading)
        with pytest.raises(OutputError, match="cannot write to standard output") as caught:
            Output(writing).write(b"x")
    assert caught.value.errno == errno.EPIPE


def test_an_output_that_cannot_be_written_is_named() -> None:
    with contextlib.closing(Output("/dev/full")) as full, pytest.raises(OutputError) as caught:
        full.write(b"x")
    assert caught.value.strerror == "cannot write to /dev/full: no space left on device"
