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
