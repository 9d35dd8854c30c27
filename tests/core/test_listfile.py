"""The file of a list is read as a whole, or is an error."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support import in_thread

from netkit import BlockList
from netkit.core import listfile
from netkit.core.listfile import read_entries


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deny"


def refused(path: Path) -> str:
    """The message of the error."""
    with pytest.raises(ValueError, match="^") as caught:
        BlockList.load(path)
    return str(caught.value)


def test_each_line_is_an_entry_or_a_comment(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf# first\n\n one # 1\r\n\xff\rtwo \n#last\n")
    assert read_entries(str(path)) == [(3, "one"), (4, "\\xff"), (5, "two")]


@pytest.mark.parametrize(
    ("text", "number"),
    [("1.2.3.4", 1), ("10.0.0.0/8\n192.168.17.0/2", 2), ("1.2.3.4\n# a comm", 2), (" ", 1)],
)
def test_a_last_line_that_may_be_cut_off_is_refused(path: Path, text: str, number: int) -> None:
    path.write_text(text)
    why = "it has no newline, so the file may be cut off"
    assert refused(path) == f"{path}, line {number}: {why}"


def test_a_network_whose_prefix_may_be_cut_off_is_refused(path: Path) -> None:
    path.write_text("10.0.0.0/8\n192.168.17.0/2\n")
    assert refused(path) == (
        f"{path}, line 2: host bits behind the prefix, so it may be cut off: '192.168.17.0/2'"
    )
    path.write_text("::1/64\n")
    assert "'::1/64'" in refused(path)
    path.write_text("192.168.17.0/24\n2001:db8::/32\n0.0.0.0/0\n::/0\n1.2.3.4/32\n")
    assert len(BlockList.load(path)) == 5


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "\n\n  # not empty\n"])
def test_a_list_without_rules_is_refused_unless_a_comment_says_that_it_is_empty(
    path: Path, text: str
) -> None:
    path.write_text("1.2.3.4\n")
    found = BlockList.load(path)
    path.write_text(text)
    with pytest.raises(ValueError, match="^") as caught:
        found.reload()
    assert str(caught.value) == (
        f"{path}: it has no entries; an empty list must have a line '# empty'"
    )
    assert found.rules == ["Address: IPv4 1.2.3.4"]
    path.write_text(text + "# empty\n")
    assert found.reload()
    assert found.rules == []


def before_each_fstat(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """`fstat` is called before and after each reading."""
    look = os.fstat

    def fstat(descriptor: int) -> os.stat_result:
        act()
        return look(descriptor)

    monkeypatch.setattr(listfile.os, "fstat", fstat)


def append(path: Path, text: str | None) -> None:
    with open(path, "a") as file:
        file.write(text or "")


def test_a_file_that_changes_while_it_is_read_is_read_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_text("1.2.3.4\n")
    changes = iter([None, "5.6.7.8\n", None, "9.9.9.9\n"])  # after the first two readings
    before_each_fstat(monkeypatch, lambda: append(path, next(changes, None)))
    assert [text for _, text in read_entries(str(path))] == ["1.2.3.4", "5.6.7.8", "9.9.9.9"]


def test_a_file_that_is_renamed_over_while_it_is_read_is_read_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_text("1.2.3.4\n")
    new = path.with_name("new")
    new.write_text("5.6.7.8\n")
    before_each_fstat(monkeypatch, lambda: new.exists() and new.rename(path))
    assert read_entries(str(path)) == [(1, "5.6.7.8")]


def test_a_file_that_changes_during_each_reading_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_text("1.2.3.4\n")
    before_each_fstat(monkeypatch, lambda: append(path, "5.6.7.8\n"))
    assert refused(path) == (
        f"{path}: it changes while it is read; write the list to another file, and rename that"
    )


def test_a_list_that_is_replaced_again_and_again_is_never_read_in_part(path: Path) -> None:
    lists = ["".join(f"10.{n}.{last}.0/24\n" for last in range(256)) for n in range(2)]
    path.write_text(lists[0])
    done = threading.Event()

    def replace() -> None:
        turn = 0
        while not done.is_set():
            turn += 1
            if turn % 2:  # as `sort > file` does
                path.write_text(lists[turn % 3 % 2])
            else:
                path.with_name("new").write_text(lists[turn % 3 % 2])
                path.with_name("new").replace(path)

    found = BlockList.load(path)
    with in_thread(replace):
        try:
            for _ in range(300):
                with contextlib.suppress(ValueError):
                    found.reload()
                assert "10.0.255.1" in found or "10.1.255.1" in found
        finally:
            done.set()


def test_a_file_without_end_is_refused() -> None:
    with pytest.raises(
        ValueError, match="^/dev/zero: it has more than .* bytes, so it is no list$"
    ):
        BlockList.load("/dev/zero")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name")
def test_a_list_may_come_through_a_pipe(path: Path) -> None:
    os.mkfifo(path)
    with in_thread(path.write_text, "1.2.3.4\n"):
        assert read_entries(str(path)) == [(1, "1.2.3.4")]
