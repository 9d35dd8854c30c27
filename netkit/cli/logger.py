"""``netkit logger``: a server that writes what clients send to a file or to standard output.

A failure of the output (a closed pipe, a full disk) stops the server.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Container
from types import TracebackType
from typing import Any

from ..core.errors import Failure
from ..net.files import write_all
from ..server.handlers import LoggerHandler
from .arguments import ArgumentError
from .serving import Command

SUMMARY = "Report each client that comes and goes, and write the data of clients."


class Logger(Command):
    """The command. It has one process: its output is one stream of lines."""

    name = "logger"
    summary = SUMMARY
    without = ("workers",)
    unread = ("max_message",)
    instead = "reads no messages"

    def add_flags(self, group: Any) -> None:
        style = group.add_mutually_exclusive_group()
        style.add_argument(
            "--hex",
            dest="style",
            action="store_const",
            const="hex",
            default="text",
            help="write a hex dump instead of lines",
        )
        style.add_argument(
            "--raw",
            dest="style",
            action="store_const",
            const="raw",
            help="write the bytes as they come, unescaped",
        )
        group.add_argument(
            "--output", metavar="FILE", help="append to FILE, not to standard output"
        )

    def check(self, arguments: argparse.Namespace, given: Container[str]) -> None:
        if arguments.style != "text" and "max_line" in given:
            raise ArgumentError(
                f"--max-line has no effect with --{arguments.style}, which reads no lines"
            )

    def handler(self, arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
        return CommandLogger, {"style": arguments.style, "output": Output(arguments.output)}


run = Logger().run


class Output:
    """The file that the logger writes to.

    `error` is the error of a failed write (a closed pipe, a full disk). When the server has
    stopped, the ``with`` block raises it as a Failure.
    """

    def __init__(self, path: str | None) -> None:
        self.error: OSError | None = None
        self._path = path
        self._name = "standard output" if path is None else path or repr(path)
        if path is None and sys.stdout is None:
            raise Failure("standard output is closed: name a file with --output")
        # Standard output is opened once more, without a buffer: Python flushes its own at the exit,
        # and would report there once more that the output has failed.
        target = sys.stdout.fileno() if path is None else path
        try:
            self._file = open(target, "ab", 0, closefd=path is not None)  # noqa: SIM115 - by __exit__
        except OSError as error:
            raise self._failure(error) from None
        self.reopen = None if path is None else self._reopen
        """Opens the file again, which may have been renamed (logrotate(8)).

        None for standard output. Thread-safe: each write goes to one of the two files. If the file
        cannot be opened, OSError is raised, and the former one stays in use.
        """

    def _reopen(self) -> None:
        with open(self._path or "", "ab") as file:
            os.dup2(file.fileno(), self._file.fileno(), inheritable=False)

    def write(self, data: bytes) -> int:
        """Write all of `data`; waits if another process has made the file non-blocking."""
        write_all(self._file, data)
        return len(data)

    def flush(self) -> None:
        """Do nothing: there is no buffer."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        if kind is None and self.error is not None:
            raise self._failure(self.error)

    def _failure(self, error: OSError) -> Failure:
        return Failure(f"cannot write to {self._name}: {os.strerror(error.errno or 0).lower()}")


class CommandLogger(LoggerHandler):
    """Stops the server when its output fails, since no more input could be recorded."""

    output: Any

    def handle(self) -> None:
        try:
            super().handle()
        except OSError as error:
            if self.conn.is_to_blame(error):
                raise
            self.output.error = error
            self.server.request_stop()
