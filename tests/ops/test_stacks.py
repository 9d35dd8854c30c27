"""Where threads stand."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from support import PATIENCE

from netkit.core.cores import has_gil
from netkit.ops.stacks import NOWHERE, Line, Stack, stacks_of

pytestmark = pytest.mark.skipif(not has_gil(), reason="no stacks without the GIL")


def stack_in(function: Any) -> Stack:
    """The stack of a thread that waits in `function`, which gets a function that waits."""
    ready, done = threading.Event(), threading.Event()

    def wait() -> None:
        ready.set()
        done.wait(PATIENCE)

    thread = threading.Thread(target=function, args=(wait,))
    thread.start()
    try:
        assert ready.wait(PATIENCE)
        return stacks_of([thread.ident])[thread.ident]
    finally:
        done.set()
        thread.join()


def outer(wait: Any) -> None:
    wait()  # here


def test_the_innermost_line_is_the_first_and_what_has_started_the_thread_is_left_out() -> None:
    stack = stack_in(outer)
    names = [line.function for line in stack.lines]
    assert names[-1] == "outer"
    assert names[-2] == "wait"
    assert stack.lines[-1].code() == "wait()  # here"
    assert stack.inside is None


def test_the_place_is_the_line_of_the_program_and_not_that_of_a_module_it_waits_in() -> None:
    where = stack_in(outer).where()
    assert where.startswith("test_stacks.py:")
    assert where.endswith(" wait")
    plumbing = Stack((Line(threading.__file__, 5, "wait"),))
    assert plumbing.where() == "threading.py:5 wait"
    assert NOWHERE.where() == ""


def test_a_deep_recursion_is_cut() -> None:
    def deep(wait: Any, depth: int = 300) -> None:
        deep(wait, depth - 1) if depth else wait()

    assert len(stack_in(deep).lines) == 100


def test_a_line_whose_file_cannot_be_read_has_no_code() -> None:
    line = Line("<string>", 3, "f")
    assert (line.code(), line.text()) == ("", "<string>:3 f")
    assert line.as_dict() == {"file": "<string>", "line": 3, "function": "f", "code": ""}


def test_a_thread_that_has_ended_has_no_stack() -> None:
    assert stacks_of([None, 0]) == {}
