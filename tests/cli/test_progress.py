"""The row that tells how far a transfer is."""

from __future__ import annotations

import io

import pytest

from netkit.cli.progress import Progress, amount, row


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (1_600_000, "1.5 MiB"),
        (2**40, "1.0 TiB"),
        (2**60, "1048576.0 TiB"),
    ],
)
def test_amounts_are_for_people(count: int, text: str) -> None:
    assert amount(count) == text


def test_a_row_has_the_share_if_the_size_is_known() -> None:
    assert row("f", 512, None, 2.0) == "f  512 bytes  256 bytes/s"
    assert row("f", 512, 0, 2.0) == "f  512 bytes  256 bytes/s"
    assert row("f", 512, 2048, 0.5) == (
        "f   25% [#####...............]  512 bytes of 2.0 KiB  1.0 KiB/s"
    )
    assert row("f", 3, 2, 0).startswith("f  100% [####################]  3 bytes of 2 bytes")


def test_it_is_drawn_so_often_that_eyes_can_follow_and_in_the_end() -> None:
    stream, now = io.StringIO(), [0.0]
    progress = Progress(stream, "a\x1bb", 100, lambda: now[0])
    progress.add(10)
    assert stream.getvalue() == ""
    now[0] = 0.2
    progress.add(40)
    assert stream.getvalue() == (
        "\ra\\x1bb   50% [##########..........]  50 bytes of 100 bytes  250 bytes/s\x1b[K"
    )
    now[0] = 1.0
    progress.add(50)
    progress.finish()
    assert stream.getvalue().endswith("100 bytes of 100 bytes  100 bytes/s\x1b[K\n")


def test_it_is_cut_to_the_width_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "12")
    stream = io.StringIO()
    Progress(stream, "a long name indeed").finish()
    assert stream.getvalue() == "\ra long name\x1b[K\n"
