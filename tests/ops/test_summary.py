"""The status of a program that has several processes."""

from __future__ import annotations

import netkit
from netkit.ops.summary import status_row
from netkit.process.program import Answer
from ops.programs import FakeProgram


def test_a_program_without_an_answer_says_so() -> None:
    with netkit.create_server(netkit.EchoHandler) as server:
        silent = [Answer(1, None, "no answer within 1 s")]
        row = status_row(FakeProgram(server).state(), silent, silent)
    assert (row["phase"], row["reason"]) == ("ready", "no process answers")


def test_a_program_is_suspended_if_all_its_processes_are() -> None:
    def phase_of(*suspended: bool) -> tuple[str, str]:
        facts = {"limit": None, "connected": 0, "held": 0, "threads": 1}
        answers = [Answer(1, {**facts, "suspended": it}) for it in suspended]
        row = status_row(FakeProgram(server).state(), answers, [])
        return row["phase"], row["reason"]

    with netkit.create_server(netkit.EchoHandler) as server:
        assert phase_of(True, True) == ("suspended", "an operator has suspended it")
        assert phase_of(True, False) == ("ready", "")
