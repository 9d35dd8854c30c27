"""What is switched on for the operators of a program."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from netkit.ops.attachment import Operations


def test_an_unknown_question_is_the_fault_of_its_asker(tmp_path: Path) -> None:
    operations = Operations(control=str(tmp_path / "control"))
    answer = operations.attach([])
    with contextlib.ExitStack() as stack:
        stack.callback(operations.detach)
        with pytest.raises(ValueError, match="unknown question: fly"):
            answer("fly", {})


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("status", "x:y", ValueError),
        ("status", -1, ValueError),
        ("control", "", ValueError),
        ("control", 5, TypeError),
        ("access_log", 5, TypeError),
    ],
)
def test_an_error_names_the_parameter(name: str, value: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=f"^{name}={value!r}: "):
        Operations(**{name: value})


def test_a_program_with_a_status_endpoint_alone_leaves_its_file(tmp_path: Path) -> None:
    path = tmp_path / "status"
    operations = Operations(status=f"unix:{path}")
    operations.open([])
    operations.release()
    operations.close()
    assert path.exists()
