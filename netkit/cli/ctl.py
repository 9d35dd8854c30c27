"""``netkit ctl PATH COMMAND``: gives a command to a running server, and prints the answer."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from ..core.errors import Failure
from .arguments import COMMANDS, Parser, checked, complain
from .asking import PATIENCE, VARIABLE, ControlClient, Row, exit_status, split, time_of
from .display import VISIBLE, encoded
from .stdio import Output

_USAGE = "netkit ctl [PATH] COMMAND [ARGUMENT ...] [OPTIONS]"

_ABOUT = f"""\
{COMMANDS["ctl"]}

PATH is that of --control of the server. It may be left out if {VARIABLE} has it; a PATH without
a slash is then written ./PATH.
"""

_EXAMPLES = """\
examples:
  netkit ctl /run/app.ctl help            the commands that the server has
  netkit ctl /run/app.ctl conns older=60  each client that came more than a minute ago
  netkit ctl /run/app.ctl stacks 17       the lines of Python at which this client's thread is
  netkit ctl /run/app.ctl kill 17         end this client now
  netkit ctl /run/app.ctl set max_connections 100
  netkit ctl /run/app.ctl events --json   what happens, one JSON object for each event

exit status: 0 done, 1 failed or nothing matched, 2 wrong use, 130 Ctrl+C, 141 the reader of the
output is gone.

Documentation: docs/operations.md in the source.
"""

# The commands whose answers may pause for any time.
_ENDLESS = ("events",)


def parser() -> Parser:
    """Make the parser of the command's options."""
    parser = Parser("netkit ctl", usage=_USAGE, description=_ABOUT, epilog=_EXAMPLES)
    add = parser.add_argument
    add("--json", action="store_true", help="one JSON object on each line of the answer")
    add_timeout(parser)
    return parser


def add_timeout(parser: Parser) -> None:
    """Add the flag for the patience of `ControlClient`."""
    text = f"longest wait for an answer (default: {PATIENCE:g}s)"
    parser.add_argument(
        "--timeout", metavar="TIME", type=checked(time_of), default=PATIENCE, help=text
    )


def run(argv: Sequence[str]) -> int:
    """Run the command and return its exit status. SystemExit with status 2 for wrong use."""
    reader = parser()
    arguments, words = reader.read(argv)
    try:
        _check_path(words)
        path, command = split(words)
        request, is_json = _request(command, arguments.json)
        patience = None if request.partition(" ")[0] in _ENDLESS else arguments.timeout
        control = ControlClient(path, patience)
    except ValueError as error:
        reader.error(str(error))
    return exit_status(lambda: _print(control, request, is_json))


def _request(command: Sequence[str], is_json: bool) -> tuple[str, bool]:
    """Return the request for the server, and whether it asks for JSON. ValueError if it is none."""
    request = " ".join(command).strip(" ")
    first, _, rest = request.partition(" ")
    if first == "json":
        request, is_json = rest.strip(" "), True
    if not request:
        raise ValueError("a command for the server is needed, such as status or help")
    if "\n" in request or "\r" in request:
        raise ValueError("a command for the server is one line")
    return request, is_json


def _check_path(words: list[str]) -> None:
    """ValueError if the first of `words` is a command, and there is no path of a control socket."""
    if words and not os.environ.get(VARIABLE) and not os.path.exists(words[0]):
        from ..ops.commands import COMMANDS as known  # here because only a mistake needs it

        if words[0] in known:
            raise ValueError(
                f"no control socket: netkit ctl PATH {words[0]}, or set {VARIABLE}=PATH"
            )


def _print(control: ControlClient, request: str, is_json: bool) -> int:
    """Print the answer, its errors to standard error unless it is JSON. Return the exit status."""
    if sys.stdout is None:
        raise Failure("standard output is closed")
    output = Output(sys.stdout.fileno())
    status = 0
    for line in control.lines(f"json {request}" if is_json else request):
        error = _error_of(control.row(line)) if is_json else _error_in(line)
        if error is not None:
            status = max(status, _status_of(error))
        if error is None or is_json:
            output.write(encoded(line.translate(VISIBLE) + "\n"))
        else:
            complain(error)
    return status


def _status_of(error: str) -> int:
    """Return the exit status for an error: 2 if it is in the command itself, else 1."""
    from ..ops.commands import WRONG_USE  # here because only a mistake needs it

    return 2 if error.startswith(WRONG_USE) else 1


def _error_in(line: str) -> str | None:
    """Return the error in a line of an answer, or None if it has none."""
    return line.removeprefix("error: ") if line.startswith("error: ") else None


def _error_of(row: Row) -> str | None:
    """Return the error in an object of an answer, or None. An event may have such a field, too."""
    return str(row["error"]) if "error" in row and "event" not in row else None
