"""Asks all processes that serve, and gathers what they answer as rows.

A row is a JSON object. The row of a process that could not answer has the key ``error``. A row that
is None means that the rows before it are to be sent now.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator
from typing import Any

from ..process.program import MAX_ORDER, Answer, Program

Row = dict[str, Any]
Rows = Iterator["Row | None"]

# Seconds between two pages of a long answer, so that this process serves other operators, too.
PAUSE = 0.002


def problem(text: str, worker: int | None = None) -> Row:
    """Return the row of a failure, of one worker or of the whole command."""
    if worker is None:
        return {"error": text}
    return {"error": f"worker {worker}: {text}", "worker": worker}


class Processes:
    """The processes of a program that serve, as an operator names them."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.state = program.state()
        self.has_workers = self.state.workers > 0

    def ask(
        self, question: str, arguments: dict[str, Any], pids: Collection[int] | None = None
    ) -> list[Answer]:
        """Return the answers, in the order of the processes' numbers.

        A process of `pids` that has ended gives an answer with an error.
        """
        answers = self.program.ask(question, arguments, pids)
        missing = set(pids or ()) - {answer.pid for answer in answers}
        answers += [Answer(pid, None, "no such worker") for pid in missing]
        return sorted(answers, key=lambda answer: answer.pid)

    def failed(self, answer: Answer) -> Row:
        """Return the row of a process that could not answer."""
        return problem(answer.error, answer.pid if self.has_workers else None)

    def failures(self, answers: Collection[Answer]) -> Iterator[Row]:
        """Yield a row for each process that could not answer, or one if all say the same."""
        failed = [answer for answer in answers if answer.error]
        if len(failed) == len(answers) and len({answer.error for answer in failed}) == 1:
            yield problem(failed[0].error)
        else:
            yield from map(self.failed, failed)

    def named(self, row: Row, pid: int) -> Row:
        """Return the row of a client with the identifier that an operator uses."""
        number = row["id"]
        name = f"{pid}.{number}" if self.has_workers and number else str(number)
        return {**row, "id": name, "worker": pid}

    def pages(
        self, question: str, arguments: dict[str, Any], pids: Collection[int] | None = None
    ) -> Rows:
        """Yield the rows of a question that is answered in pages.

        All processes are asked for the first page at once, so those that do not answer cost one
        deadline together.
        """
        for answer in self.ask(question, arguments, pids):
            yield from self._pages_of(answer, question, arguments)

    def _pages_of(self, answer: Answer, question: str, arguments: dict[str, Any]) -> Rows:
        while not answer.error:
            for row in answer.value["rows"]:
                yield self.named(row, answer.pid)
            after = answer.value["next"]
            if after is None:
                return
            yield None
            time.sleep(PAUSE)
            (answer,) = self.ask(question, {**arguments, "after": after}, [answer.pid])
        yield self.failed(answer)

    def standing(self, question: str, arguments: dict[str, Any], key: str) -> Iterator[Row]:
        """Ask all processes that serve, and those to come. Yield a row for each failure.

        A later call with the same `key` replaces this one for the processes to come. ValueError,
        before any is asked, if the arguments are too long for those to come.
        """
        order = {"command": question, "arguments": arguments, "key": key}
        if self.has_workers and len(json.dumps(order)) > MAX_ORDER:
            raise ValueError(f"the value is too long: with workers, about {MAX_ORDER} characters")
        answers = self.ask(question, arguments)
        yield from self.failures(answers)
        if all(answer.error for answer in answers) or not self.has_workers:
            return
        self.program.order("standing", **order)
        asked = {answer.pid for answer in answers}
        late = self.ask(question, arguments)  # a worker may have started in between
        yield from map(self.failed, (it for it in late if it.error and it.pid not in asked))
