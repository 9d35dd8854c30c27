"""What a front process leaves to the next one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing

import pytest

from netkit.process import memory
from netkit.process.memory import Memory


@pytest.fixture
def made() -> Iterator[Memory]:
    with closing(Memory()) as made:
        yield made


def test_the_value_that_was_saved_last_is_loaded_by_any_process(made: Memory) -> None:
    assert made.load() is None
    for number in range(3):
        made.save({"number": number})
        other = Memory(os.dup(made._file))
        with closing(other):
            assert other.load() == {"number": number}
            other.save({"other": number})
        assert made.load() == {"other": number}


@pytest.mark.parametrize("damaged", [b"", b"half", b"x" * 40])
def test_a_write_that_was_not_finished_leaves_the_value_from_before(
    made: Memory, damaged: bytes
) -> None:
    made.save([1])
    made.save([2])
    place = made._count % 2 * memory._PLACE
    os.pwrite(made._file, damaged.ljust(memory._HEADER.size + 3, b"\0"), place)
    assert made.load() == [1]


def test_a_value_that_is_too_large_is_refused(
    made: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_PLACE", 100)
    made.save([1])
    with pytest.raises(ValueError, match="too much memory"):
        made.save("x" * 100)
    assert made.load() == [1]


def test_it_can_be_sent_to_a_process_that_is_being_started(
    made: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Sent:
        def __init__(self, descriptor: int) -> None:
            self.descriptor = descriptor

        def detach(self) -> int:
            return os.dup(self.descriptor)

    monkeypatch.setattr(memory, "duplicates", lambda *given: tuple(map(Sent, given)))
    make, arguments = made.__reduce__()
    with closing(make(*arguments)) as copy:
        copy.save("here")
    assert made.load() == "here"
    made.close()
