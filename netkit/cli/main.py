"""The command line: ``python -m netkit`` and, once installed, ``netkit``.

Each command is a module of this package that has its name, a `SUMMARY` and a function `run`, which
takes the arguments after the name and returns the exit status. To add a command, write its module
and add its name to `COMMANDS`. `serving.Command` is the base of commands that serve.

The exit status is 0 after a graceful stop, 1 after a failure, 2 after wrong use, and 130 after a
second Ctrl+C. Status lines go to standard error; standard output is for data.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from .. import __version__
from .arguments import EXAMPLES, MORE, Parser, show, similar

COMMANDS = ("echo", "logger", "greeter", "serve", "connect")

_HELP = f"""\
usage: netkit COMMAND [OPTIONS]

TCP servers with one thread for each client, and a client to talk to them.

commands:
%s
  help     Show this help, or that of a COMMAND
  version  Show the version, as -V and --version do

{EXAMPLES}
{MORE}.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's) and return its exit status.

    SystemExit after the help of a command, and after wrong use.
    """
    first, *rest = (sys.argv[1:] if argv is None else argv) or ["help"]
    if first == "help" and rest and rest[0] not in ("help", "version"):
        first, rest = rest[0], ["--help"]
    if first in COMMANDS:
        return int(_module(first).run(rest))
    if first in ("-h", "--help", "help"):
        show(_HELP % "\n".join(f"  {name:<9}{_summary(name)}" for name in COMMANDS))
    elif first in ("-V", "--version", "version"):
        show(f"netkit {__version__}\n")
    elif first.startswith("-"):
        text = f"options follow a command, such as echo, and {first!r} is not a command"
        Parser("netkit").error(text)
    else:
        hint = similar(first, COMMANDS) or f"; the commands are {', '.join(COMMANDS)}"
        Parser("netkit").error(f"there is no command {first!r}{hint}")
    return 0


def _module(name: str) -> Any:
    """Import the module of a command; the others would only take time.

    Meanwhile nothing looks for garbage, which takes some milliseconds too: imported modules stay.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(f"{__package__}.{name}")
    finally:
        if was_enabled:
            gc.enable()


def _summary(name: str) -> str:
    """Return the first sentence of a command's summary, up to a colon."""
    line: str = _module(name).SUMMARY.splitlines()[0]
    return line.partition(":")[0].rstrip(".")


def drop_unwritten() -> None:
    """Drop buffered output that cannot be written (a full disk, a closed pipe).

    To be called at the end: otherwise Python tries to write it again, and exits with status 120.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
