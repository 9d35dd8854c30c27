"""Warnings and uncaught exceptions as log records."""

from __future__ import annotations

import gc
import io
import json
import sys
import threading
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from netkit.server import log_hooks


class Fails:
    """Raises where nothing can catch it, with a name that would forge a record."""

    def __del__(self) -> None:
        raise ValueError("\x1b[31m\nforged")

    def __repr__(self) -> str:
        return "<a\nforged \x1b thing>"


class Mute:
    def __repr__(self) -> str:
        raise RuntimeError


def drop(kind: type[Fails]) -> None:
    kind()
    gc.collect()


def raise_in_thread(error: BaseException) -> None:
    def target() -> None:
        raise error

    thread = threading.Thread(target=target, name="netkit-1 a\nforged")
    thread.start()
    thread.join()


def raise_uncaught(error: BaseException) -> None:
    try:
        raise error
    except BaseException as caught:
        sys.excepthook(type(caught), caught, caught.__traceback__)


HOOKED = [
    (lambda: drop(Fails), "error", "ignored in "),
    (
        lambda: raise_in_thread(ValueError("a\nforged")),
        "error",
        r"uncaught in thread netkit-1 a\nforged: ValueError: a\nforged",
    ),
    (
        lambda: raise_in_thread(KeyboardInterrupt()),
        "error",
        r"uncaught in thread netkit-1 a\nforged: KeyboardInterrupt",
    ),
    (
        lambda: raise_uncaught(OSError(5, "no\x1b")),
        "error",
        r"uncaught OSError: no\x1b",
    ),
    (
        lambda: warnings.warn_explicit("a\nforged", UserWarning, "app.py", 5),
        "warning",
        r"app.py:5: UserWarning: a\nforged",
    ),
]


@pytest.mark.parametrize("style", ["text", "json"])
@pytest.mark.parametrize(("act", "level", "text"), HOOKED)
def test_a_warning_or_an_uncaught_exception_is_one_record(
    act: Any, level: str, text: str, style: str, configured: Any, capfd: Any
) -> None:
    stream = configured(style=style)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = log_hooks._showwarning  # which the block puts back
        act()
    lines = stream.getvalue().splitlines()
    assert all(line.isprintable() for line in lines)
    if style == "text":
        assert lines[0].startswith(f"{level}: {text}")
        assert not any(line.startswith("forged") for line in lines)
    else:
        (data,) = map(json.loads, lines)
        assert (data["level"], data["message"].startswith(text)) == (level, True)
        assert level == "warning" or data["traceback"].startswith("Traceback")
    assert capfd.readouterr().err == ""


def test_the_object_of_an_ignored_exception_is_shown(
    configured: Callable[..., io.StringIO],
) -> None:
    stream = configured()
    args: Any = SimpleNamespace(exc_type=ValueError, exc_value=ValueError("x"), object=Fails)
    args.exc_traceback = None
    sys.unraisablehook(args)
    args.object, args.exc_value = 5, None
    sys.unraisablehook(args)
    args.object = Mute()
    sys.unraisablehook(args)
    first, _, second, third = stream.getvalue().splitlines()
    assert third == "error: ignored in Mute: ValueError"
    assert first == f"error: ignored in {Fails!r}: ValueError: x"
    assert second == "error: ignored in 5: ValueError"


def test_sys_exit_in_a_thread_is_not_logged_and_a_thread_without_a_name_is(
    configured: Callable[..., io.StringIO],
) -> None:
    stream = configured()
    raise_in_thread(SystemExit(1))
    threading.excepthook(threading.ExceptHookArgs((ValueError, None, None, None)))
    assert stream.getvalue() == "error: uncaught in thread that has ended: ValueError\n"


def test_a_warning_for_a_file_goes_there(configured: Callable[..., io.StringIO]) -> None:
    stream, file = configured(), io.StringIO()
    warnings.showwarning("odd", UserWarning, "app.py", 5, file)
    assert (stream.getvalue(), file.getvalue()) == ("", "app.py:5: UserWarning: odd\n")


# --- Episodes ---


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_first_of_a_kind_is_written_and_the_others_of_five_seconds_are_counted() -> None:
    clock = Clock()
    episodes = log_hooks.Episodes(clock)
    assert [episodes.note("a"), episodes.note("b")] == [0, 0]
    assert [episodes.note("a") for _ in range(9)] == [None] * 9
    clock.now += log_hooks.EPISODE_SECONDS
    assert [episodes.note("a"), episodes.note("a"), episodes.note("b")] == [9, None, 0]
    assert (episodes.take_rest(), episodes.take_rest()) == (1, 0)


def test_the_number_of_kinds_is_bounded() -> None:
    clock = Clock()
    episodes = log_hooks.Episodes(clock)
    kinds = range(log_hooks.MOST_KINDS)
    assert [episodes.note(kind) for kind in kinds] == [0] * len(kinds)
    assert episodes.note(0) is None
    assert [episodes.note(-1), episodes.note(-2), episodes.note(-1)] == [0, None, None]
    clock.now += log_hooks.EPISODE_SECONDS
    assert episodes.note(-1) == 0  # there is room again
    assert episodes.note(0) == 1
    assert len(episodes._kinds) <= log_hooks.MOST_KINDS


def test_a_flood_is_two_records(configured: Callable[..., io.StringIO]) -> None:
    stream = configured()
    for number in range(1000):
        try:
            raise ValueError(number)
        except ValueError as error:
            sys.excepthook(type(error), error, error.__traceback__)
    assert stream.getvalue().count("uncaught ValueError") == 1
    log_hooks.report_rest()
    log_hooks.report_rest()
    assert stream.getvalue().splitlines()[-1] == (
        "warning: 999 more records like those above were not written"
    )


def test_a_record_that_follows_a_flood_says_how_many_were_not_written(
    configured: Callable[..., io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(log_hooks, "_episodes", log_hooks.Episodes(clock))
    stream = configured()
    for later in (0.0, 0.0, 0.0, log_hooks.EPISODE_SECONDS):
        clock.now += later
        warnings.showwarning("odd", UserWarning, "app.py", 5)
    assert stream.getvalue().splitlines()[-1] == (
        "warning: app.py:5: UserWarning: odd (2 more like it since the last one)"
    )
