"""The command line: ``python -m netkit`` and, once installed, ``netkit``.

Each command is a module of this package that has its name and a function `run`, which takes the
arguments after the name and returns the exit status. To add a command, write its module and a row
of `arguments.COMMANDS`. `serving.Command` is the base of commands that serve.

The exit status is 0 after a graceful stop, 1 after a failure, 2 after wrong use, and 130 after a
second Ctrl+C. Status lines go to standard error; standard output is for data.
"""

from __future__ import annotations

import gc
import importlib
import os
import re
import sys
from collections.abc import Sequence

from .. import __version__
from .arguments import COMMANDS, EXAMPLES, MORE, Parser, show, similar

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
    """Run the command line `argv`, or that of the process, and return its exit status.

    SystemExit after the help of a command, and after wrong use.
    """
    first, *rest = (sys.argv[1:] if argv is None else argv) or ["help"]
    if first == "help" and rest and rest[0] not in ("help", "version"):
        first, rest = rest[0], ["--help"]
    if first in COMMANDS:
        return _run(first, rest)
    if first in ("-h", "--help", "help"):
        # Of each summary its first sentence, up to a colon.
        summaries = {name: re.split("[:.]", text)[0] for name, text in COMMANDS.items()}
        show(_HELP % "\n".join(f"  {name:<9}{text}" for name, text in summaries.items()))
    elif first in ("-V", "--version", "version"):
        from ..net.gate import gate_active  # imports sockets

        show(f"netkit {__version__} (gate {'on' if gate_active() else 'off'})\n")
    elif first.startswith("-"):
        text = f"options follow a command, such as echo, and {first!r} is not a command"
        Parser("netkit").error(text)
    else:
        hint = similar(first, COMMANDS) or f"; the commands are {', '.join(COMMANDS)}"
        Parser("netkit").error(f"there is no command {first!r}{hint}")
    return 0


def _run(name: str, argv: Sequence[str]) -> int:
    """Import the module of a command, and run the command."""
    gc.disable()  # imported modules stay, so looking for garbage would only take milliseconds
    try:
        module = importlib.import_module(f"{__package__}.{name}")
    finally:
        gc.enable()
    return int(module.run(argv))


def drop_unwritten() -> None:
    """Drop buffered output that cannot be written (a full disk, a closed pipe).

    Otherwise Python, at its exit, tries to write that again, and exits with status 120.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
