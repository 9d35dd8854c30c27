"""The commands of the control socket: one table of them.

A command is a line: its name, and its arguments. To add one, add a row to `COMMANDS`: a function
of `netkit.ops.arguments` that parses the text after the name, one of `netkit.ops.actions` that
asks the processes and yields rows, and one of `netkit.ops.layout` that shows a row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Iterator

from ..core.record import NamedTuple
from ..core.text import described, one_line, said
from ..process.program import Program
from . import actions, arguments, layout
from .actions import Action, Call
from .arguments import Arguments, quoted
from .rows import Row, Rows, problem
from .takeover import Endpoints

WRONG_USE = "wrong use: "
"""The beginning of an error that is in the command itself, for which ctl has an exit status."""


class Command(NamedTuple):
    """A row of the table. One that `changes` something is logged.

    `parse` takes the text after the name, and raises ValueError if it is wrong. `show` makes lines
    of text of a row, and `heading` is the line above the first one. If `show` is None, the rows are
    JSON in any case.
    """

    parse: Callable[[str], Arguments]
    run: Action
    show: Callable[[Row], Iterable[str]] | None = layout.result
    heading: str = ""
    changes: bool = False
    usage: str = ""
    help: str = ""


def answer(
    line: str,
    program: Program,
    is_gone: Callable[[float], bool] = lambda _: False,
    on_change: Callable[[str], object] = lambda _: None,
    endpoints: Endpoints | None = None,
) -> Generator[str, None, None]:
    """Yield the lines of the answer to a command, each with its newline.

    An empty line means that the lines before it are to be sent now. ``is_gone(seconds)`` waits, and
    returns whether the operator has gone. ``on_change(error)`` is called once for a command that
    changes something, when its first row is known: with the error in this row, or an empty text.
    """
    is_json = line.startswith("json ")
    try:
        command, given = find(line.removeprefix("json ") if is_json else line)
        rows = command.run(Call(program, given, is_gone, endpoints))
        if command.changes:
            rows = _noted(rows, on_change)
        yield from _lines(command, rows, is_json)
    except (ValueError, TypeError, LookupError) as error:
        yield _line_of_failure(problem(said(error) or described(error)), is_json)


def _noted(rows: Rows, on_change: Callable[[str], object]) -> Rows:
    """Yield `rows`, and call `on_change` before the first one. Raises what `rows` raises."""
    try:
        first = next(rows, None)
    except (ValueError, TypeError, LookupError) as error:
        on_change(said(error) or described(error))
        raise
    on_change(str((first or {}).get("error", "")))
    yield first
    yield from rows


def _lines(command: Command, rows: Rows, is_json: bool) -> Iterator[str]:
    show, heading = command.show, command.heading
    for row in rows:
        if row is None:
            yield ""
        elif "error" in row and not row.keys() - {"error", "worker"}:
            yield _line_of_failure(row, is_json)
        elif is_json or show is None:
            yield _json(row)
        else:
            if heading:
                yield heading + "\n"
                heading = ""
            yield from (one_line(line) + "\n" for line in show(row))


def _line_of_failure(row: Row, is_json: bool) -> str:
    return _json(row) if is_json else f"error: {one_line(row['error'])}\n"


def _json(row: Row) -> str:
    return json.dumps(row) + "\n"


def find(line: str) -> tuple[Command, Arguments]:
    """Return the command of a line, and its arguments. ValueError says what to write."""
    name, _, rest = line.strip().partition(" ")
    command = COMMANDS.get(name)
    if command is None:
        raise ValueError(WRONG_USE + _unknown(name))
    try:
        return command, command.parse(rest.strip())
    except ValueError as error:
        usage = f"{name} {command.usage}".rstrip()
        raise ValueError(f"{WRONG_USE}{error}; usage: {usage}") from None


def _unknown(name: str) -> str:
    if not name:
        return "no command; help lists the commands"
    import difflib  # here because only a mistake needs it

    close = difflib.get_close_matches(name, list(COMMANDS), 1)
    hint = f"did you mean {close[0]!r}? help" if close else "help"
    return f"unknown command {quoted(name)}; {hint} lists the commands"


def _names(text: str) -> Arguments:
    for name in text.split():
        if name not in COMMANDS:
            raise ValueError(_unknown(name))
    return {"commands": text.split()}


def _help(call: Call) -> Rows:
    for name in call.arguments["commands"] or COMMANDS:
        row = COMMANDS[name]
        yield {"command": name, "usage": f"{name} {row.usage}".rstrip(), "help": row.help}


COMMANDS = {
    "status": Command(
        arguments.nothing,
        actions.status,
        layout.status,
        help="what the program is, whether it is ready, and its counters",
    ),
    "conns": Command(
        arguments.filters,
        actions.conns,
        layout.client,
        heading=layout.CLIENTS,
        usage="[older=TIME] [idle=TIME] [peer=NETWORK] [worker=PID] [state=STATE]",
        help="the clients, with the line of Python that the thread of each one runs",
    ),
    "stacks": Command(
        arguments.ids,
        actions.stacks,
        layout.stack,
        usage="[ID...]",
        help="the clients with the stacks of their threads, the innermost line first",
    ),
    "kill": Command(
        arguments.ids_or_peer,
        actions.on_clients("kill", "killed"),
        layout.ended,
        changes=True,
        usage="ID... | peer=NETWORK",
        help="end clients now; a handler that computes or sleeps ends when it next reads or writes",
    ),
    "end": Command(
        arguments.some_ids,
        actions.on_clients("end", "ending"),
        layout.ended,
        changes=True,
        usage="ID...",
        help="have clients finish, as in a stop: their handlers see the end of the input",
    ),
    "suspend": Command(
        arguments.nothing,
        actions.suspend,
        changes=True,
        help="accept no new clients: they wait in the kernel's queue",
    ),
    "resume": Command(
        arguments.nothing, actions.resume, changes=True, help="accept new clients again"
    ),
    "stop": Command(
        arguments.stop_times,
        actions.ordering("stop", "stopping"),
        changes=True,
        usage="[SECONDS [PATIENCE]]",
        help="stop gracefully, within SECONDS, which begin after PATIENCE seconds",
    ),
    "reload": Command(
        arguments.nothing,
        actions.ordering("reload", "reloading"),
        changes=True,
        help="reload, as SIGHUP does; the log has the result",
    ),
    "workers": Command(
        arguments.count,
        actions.ordering("resize", "workers: {count}"),
        changes=True,
        usage="N",
        help="serve with N worker processes",
    ),
    "hand-over": Command(
        arguments.path,
        actions.hand_over,
        changes=True,
        usage="PATH",
        help="send the listeners to the program that takes them at PATH (--take-over), and stop",
    ),
    "get": Command(
        arguments.option_names,
        actions.get,
        layout.option,
        usage="[NAME...]",
        help="the options of the server",
    ),
    "set": Command(
        arguments.option,
        actions.set_option,
        changes=True,
        usage="NAME VALUE",
        help="change an option, for new clients; off disables a limit",
    ),
    "log": Command(
        arguments.level,
        actions.set_level,
        changes=True,
        usage="LEVEL",
        help="change the level of the log, until the next start",
    ),
    "events": Command(
        arguments.kinds,
        actions.live_events,
        None,
        usage="[KIND...]",
        help="the events that happen from now on, as JSON, until the connection is closed",
    ),
    "help": Command(_names, _help, layout.command, usage="[COMMAND...]", help="the commands"),
}
