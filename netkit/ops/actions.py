"""What the commands of the control socket do: they ask the processes that serve, and yield rows.

This may be a process that does not serve, so nothing here looks at a server; `netkit.ops.answers`
does, in the processes that are asked.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

from ..core.record import NamedTuple
from ..net.forks import renew_in_children
from ..process.program import Answer, Program
from . import takeover
from .arguments import Arguments
from .rows import Processes, Row, Rows, problem
from .summary import status_row

EVENTS_SECONDS = 0.25  # how often the processes are asked for live events
# Options with a limit that the workers share, which is fixed when they start.
_OF_ALL_WORKERS = ("max_connections", "profile")
_TRIES = 3  # to count while no process ends
_feed_numbers = itertools.count(1)

_handing_over = threading.RLock()  # held by the thread that carries out this command
renew_in_children(sys.modules[__name__], "_handing_over")


class Call(NamedTuple):
    """A command to run. ``is_gone(seconds)`` waits, and returns whether the operator has gone."""

    program: Program
    arguments: Arguments
    is_gone: Callable[[float], bool] = lambda _: False
    endpoints: takeover.Endpoints | None = None


Action = Callable[[Call], Rows]


def status(call: Call) -> Rows:
    """Yield one row about the whole program."""
    answers = Processes(call.program).ask("status", {})
    for _ in range(_TRIES):
        before = call.program.state()
        counted = list(_counted(call.program, answers))
        state = call.program.state()
        if state.retired == before.retired:  # else a process may be counted twice, or never
            break
    yield status_row(state, answers, counted)


def _counted(program: Program, asked: list[Answer]) -> Iterator[Answer]:
    """Yield the counters of each process. One that was silent is not waited for once more.

    Its answer has the counters that are known of it.
    """
    silent = {answer.pid for answer in asked if answer.error}
    yield from program.ask("metrics", {}, {answer.pid for answer in asked} - silent)
    if silent:
        yield from program.ask("metrics", {}, silent, 0.0)


def conns(call: Call) -> Rows:
    """Yield a row for each client."""
    filters = dict(call.arguments)
    worker = filters.pop("worker", None)
    yield from Processes(call.program).pages("conns", filters, worker and [worker])


def stacks(call: Call) -> Rows:
    """Yield a row for each thread of a client."""
    processes = Processes(call.program)
    if not call.arguments["ids"]:
        yield from processes.pages("stacks", {})
    for pids, ids in _by_process(call.arguments["ids"]):
        yield from _checked(processes.pages("stacks", {"ids": ids}, pids), pids, ids)


def _by_process(named: list[tuple[int, int]]) -> Iterator[tuple[list[int] | None, list[int]]]:
    """Yield the processes to ask (None for all), and the identifiers to ask them for."""
    for pid in dict.fromkeys(pid for pid, _ in named):
        yield [pid] if pid else None, [number for each, number in named if each == pid]


def _checked(rows: Rows, pids: list[int] | None, ids: list[int]) -> Rows:
    """Yield `rows`, and one for each of `ids` that has none, unless a process has not answered."""
    found, failed = set(), False
    for row in rows:
        members = row or {}
        failed = failed or "error" in members
        if "id" in members:
            found.add(int(members["id"].rpartition(".")[2]))
        yield row
    prefix = f"{pids[0]}." if pids else ""
    for number in ids:
        if number not in found and not failed:
            yield problem(f"no client has the id {prefix}{number}")


def on_clients(question: str, result: str) -> Action:
    """Return a command that asks `question` about some clients, and yields a row for each."""

    def run(call: Call) -> Rows:
        processes = Processes(call.program)
        if "peer" in call.arguments:
            rows = list(_rows_of(processes, question, call.arguments, None, result))
            yield from rows
            if not rows:
                yield problem(f"no client is in {call.arguments['peer']}")
            return
        for pids, ids in _by_process(call.arguments["ids"]):
            rows_of_process = _rows_of(processes, question, {"ids": ids}, pids, result)
            yield from _checked(rows_of_process, pids, ids)

    return run


def _rows_of(
    processes: Processes,
    question: str,
    arguments: Arguments,
    pids: list[int] | None,
    result: str,
) -> Iterator[Row]:
    for answer in processes.ask(question, arguments, pids):
        if answer.error:
            yield processes.failed(answer)
        for row in answer.value or ():
            yield {**processes.named(row, answer.pid), "result": result}


def suspend(call: Call) -> Rows:
    """Accept no new clients."""
    yield from _standing(call, "suspend", {}, "suspend", "suspended: new clients wait")


def resume(call: Call) -> Rows:
    """Accept clients again."""
    yield from _standing(call, "resume", {}, "suspend", "resumed")


def set_option(call: Call) -> Rows:
    """Change an option."""
    name, value = call.arguments["name"], call.arguments["value"]
    if name in _OF_ALL_WORKERS and call.program.state().workers:
        raise ValueError(
            f"{name} is for all workers together: it cannot be changed while they serve"
        )
    result = f"{name} is {value}, for new clients"
    yield from _standing(call, "set", call.arguments, f"set {name}", result)


def set_level(call: Call) -> Rows:
    """Change the level of the log."""
    result = f"the level of the log is {call.arguments['level']} until the next start"
    yield from _standing(call, "log", call.arguments, "log", result)


def _standing(call: Call, question: str, arguments: Arguments, key: str, result: str) -> Rows:
    failed = yield from _reported(Processes(call.program).standing(question, arguments, key))
    if not failed:
        yield {"result": result}


def _reported(failures: Iterable[Row]) -> Generator[Row, None, bool]:
    """Yield the failures, and return whether there were any."""
    failed = False
    for row in failures:
        failed = True
        yield row
    return failed


def ordering(order: str, result: str) -> Action:
    """Return a command that gives the program an order with the command's arguments."""

    def run(call: Call) -> Rows:
        call.program.order(order, **call.arguments)
        yield {"result": result.format_map(call.arguments)}

    return run


def get(call: Call) -> Rows:
    """Yield a row for each option, or one for each worker if their values differ."""
    processes = Processes(call.program)
    answers = processes.ask("get", {})
    good = {answer.pid: answer.value for answer in answers if not answer.error}
    for name in call.arguments["names"] or next(iter(good.values()), ()):
        values = {pid: options[name] for pid, options in good.items()}
        if len(set(values.values())) == 1:
            yield {"name": name, "value": next(iter(values.values()))}
        else:
            yield from ({"name": name, "value": it, "worker": pid} for pid, it in values.items())
    yield from processes.failures(answers)


def hand_over(call: Call) -> Rows:
    """Send the listeners to another program, and stop once that serves."""
    if not _handing_over.acquire(blocking=False):
        raise ValueError("another program is taking over already")
    try:
        if call.program.state().phase == "stopping":
            raise ValueError("this program is stopping")
        yield from _hand_over(call)
    finally:
        _handing_over.release()


def _hand_over(call: Call) -> Rows:
    path, endpoints = call.arguments["path"], call.endpoints
    own = () if endpoints is None else endpoints.listeners()
    with takeover.connected(path) as channel:
        count = takeover.send(channel, own)
        answers = Processes(call.program).ask("listeners", {"path": path})
        failed = [answer.error for answer in answers if answer.error]
        if len(failed) == len(answers):
            raise ValueError("; ".join(failed) or "no process serves")
        yield {"result": "sent", "endpoints": count, "pid": call.program.state().pid}
        yield None
        while not call.is_gone(EVENTS_SECONDS):
            pass
        if takeover.may_go(channel):
            call.program.order("release")
            patience = max(answer.value for answer in answers if not answer.error)
            call.program.order("stop", patience=patience)
            if endpoints is not None:
                endpoints.leave()


def live_events(call: Call) -> Rows:
    """Yield a row for each event that happens, until the operator has gone."""
    name = f"{os.getpid()}-{next(_feed_numbers)}"
    try:
        while True:
            yield from _news(Processes(call.program), {"name": name, **call.arguments})
            yield None
            if call.is_gone(EVENTS_SECONDS):
                return
    finally:
        call.program.ask("events", {"name": name, "end": True})


def _news(processes: Processes, question: Arguments) -> Rows:
    answers = [answer for answer in processes.ask("events", question) if not answer.error]
    rows: list[Any] = []
    for answer in answers:
        rows += ({**row, "worker": answer.pid} for row in answer.value["events"])
    yield from sorted(rows, key=lambda row: row["time"])
    lost = sum(answer.value["lost"] for answer in answers)
    if lost:
        yield {"event": "lost", "count": lost}
