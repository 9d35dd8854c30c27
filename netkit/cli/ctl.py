"""``netkit ctl PATH COMMAND``: gives a command to a running server, and prints the answer."""

from __future__ import annotations

import errno
import json
import signal
import sys
from collections.abc import Sequence

from ..core.errors import Failure
from ..net.files import OutputError
from .arguments import COMMANDS, Parser, checked, complain
from .asking import PATIENCE, VARIABLE, Control, split, time_of
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
  netkit ctl /run/app.sock help           the commands that the server has
  netkit ctl /run/app.sock conns older=60 each client that came more than a minute ago
  netkit ctl /run/app.sock stacks 17      the lines of Python at which this client's thread is
  netkit ctl /run/app.sock kill 17        end this client now
  netkit ctl /run/app.sock set max_connections 100
  netkit ctl /run/app.sock events --json  what happens, one JSON object for each event

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
    """Add the flag for the patience of `Control`."""
    text = f"longest wait for an answer (default: {PATIENCE:g}s)"
    parser.add_argument(
        "--timeout", metavar="TIME", type=checked(time_of), default=PATIENCE, help=text
    )


def run(argv: Sequence[str]) -> int:
    """Run the command and return its exit status. SystemExit with status 2 for wrong use."""
    reader = parser()
    arguments, words = reader.read(argv)
    try:
        path, command = split(words)
        if not command:
            raise ValueError("a command for the server is needed, such as status or help")
        patience = None if command[0] in _ENDLESS else arguments.timeout
        control = Control(path, patience)
    except ValueError as error:
        reader.error(str(error))
    request = " ".join(["json", *command] if arguments.json else command)
    if "\n" in request or "\r" in request:
        reader.error("a command for the server is one line")
    try:
        return _print(control, request, arguments.json)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except (OSError, Failure) as error:
        if isinstance(error, OutputError) and error.errno == errno.EPIPE:
            return 128 + signal.SIGPIPE
        complain(str(error))
        return 1


def _print(control: Control, request: str, is_json: bool) -> int:
    """Print the answer, its errors to standard error unless it is JSON. Return the exit status."""
    if sys.stdout is None:
        raise Failure("standard output is closed")
    output = Output(sys.stdout.fileno())
    status = 0
    for line in control.lines(request):
        status = max(status, _status_of(line, status, is_json))
        if line.startswith("error: ") and not is_json:
            complain(line.removeprefix("error: "))
        else:
            output.write(encoded(line.translate(VISIBLE) + "\n"))
    return status


def _status_of(line: str, status: int, is_json: bool) -> int:
    """Return the exit status for a line: 1 for a failure, 2 if it is about the use of a command.

    The line about the use follows the error, whose `status` is 1.
    """
    if not is_json:
        return 2 if status and line.startswith("usage: ") else int(line.startswith("error: "))
    try:
        row = json.loads(line)
    except ValueError:
        return 1
    is_error = isinstance(row, dict) and "error" in row
    return 0 if not is_error else 2 if "usage" in row else 1
