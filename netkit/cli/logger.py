"""``netkit logger``: a server that writes what clients send to a file or to standard output.

A failure of the output (a closed pipe, a full disk) stops the server.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from typing import Any

from ..core.errors import Failure
from ..core.text import said
from ..server.handlers import LoggerHandler
from .arguments import ArgumentError
from .serving import Command
from .stdio import Output, OutputError


class Logger(Command):
    name = "logger"
    without = ("workers",)  # since its output is one stream of lines
    unread = ("max_message",)
    instead = "reads no messages"

    def add_flags(self, group: Any) -> None:
        group.set_defaults(style="text")
        styles = group.add_mutually_exclusive_group().add_argument
        style: dict[str, Any] = {"dest": "style", "action": "store_const"}
        styles("--hex", const="hex", help="write a hex dump instead of lines", **style)
        styles("--raw", const="raw", help="write the bytes as they come, unescaped", **style)
        help = "append to FILE, not to standard output"
        group.add_argument("--output", metavar="FILE", help=help)

    def handler(self, arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
        given = "max_line" in arguments and "max_line" not in arguments.variables
        if given and arguments.style != "text":
            text = f"--max-line has no effect with --{arguments.style}, which reads no lines"
            raise ArgumentError(text)
        return CommandLogger, {"style": arguments.style, "output": LogFile(arguments.output)}


run = Logger().run


class LogFile(Output):
    """The output of the logger, in a ``with`` block, which closes it. Failure if it is invalid.

    `error` is the error of a failed write (a closed pipe, a full disk). The ``with`` block raises
    it at its end, as a Failure.
    """

    def __init__(self, path: str | None) -> None:
        self.error: OutputError | None = None
        self._path = path
        if path is None and sys.stdout is None:
            raise Failure("standard output is closed: name a file with --output")
        # Standard output is opened once more, without a buffer: Python flushes its own at the exit,
        # and would report there once more that the output has failed.
        try:
            super().__init__(sys.stdout.fileno() if path is None else path, "ab")
        except OSError as error:
            raise Failure(said(error)) from None
        self.reopen = None if path is None else self._reopen
        """Opens the file again, which may have been renamed (logrotate(8)).

        None for standard output. Thread-safe: each write goes to one of the two files. If the file
        cannot be opened, OSError is raised, and the former one stays in use.
        """

    def _reopen(self) -> None:
        with open(self._path or "", "ab") as file:
            os.dup2(file.fileno(), self._file.fileno(), inheritable=False)

    def flush(self) -> None:
        """Do nothing: there is no buffer."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with contextlib.suppress(OSError):
            self.close()
        if kind is None and self.error is not None:
            raise Failure(said(self.error))


class CommandLogger(LoggerHandler):
    """Stops the server when its output fails, since no more input could be recorded."""

    output: Any

    def handle(self) -> None:
        try:
            super().handle()
        except OutputError as error:
            self.output.error = error
            self.server.request_stop()
