"""Writes the status of a program, and a line about each of its clients, into the log."""

from __future__ import annotations

from ..core import events
from ..process.program import Program
from .commands import answer

COMMANDS = ("status", "conns")


def write(program: Program) -> None:
    """Log the answers of the commands `COMMANDS`, a record for each line.

    May take as long as the processes need to answer.
    """
    for command in COMMANDS:
        for line in filter(None, answer(command, program)):
            events.emit(events.StatusReported(line.removesuffix("\n")))
