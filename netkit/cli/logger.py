"""``netkit logger``: a server that writes what clients send to files or to standard output."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Container
from typing import Any

from ..core.endpoint import Endpoint
from ..net.files import OutputError
from ..server.handlers import LoggerHandler
from ..server.log_files import PEER, LogFile, LogFiles
from ..server.rotation import Rotation
from .arguments import ArgumentError, checked, count
from .environment import named
from .serving import Command

# The words of logrotate(8), as `TimedRotatingFileHandler` has them. W6 is the end of a Sunday.
_TIMES = {"hourly": "H", "daily": "midnight", "weekly": "W6"}
_UNITS = ("", "K", "M", "G")


class Logger(Command):
    name = "logger"
    unread = ("max_message",)
    instead = "reads no messages"

    def add_flags(self, group: Any) -> None:
        group.set_defaults(style="text")
        styles = group.add_mutually_exclusive_group().add_argument
        style: dict[str, Any] = {"dest": "style", "action": "store_const"}
        styles("--hex", const="hex", help="write a hex dump instead of lines", **style)
        styles("--raw", const="raw", help="write the bytes as they come, unescaped", **style)
        text = "begin each line with the time (UTC) and the client"
        group.add_argument("--prefix", action="store_true", help=text)
        text = f"append to FILE, not to standard output; {PEER} in its name: a file for each client"
        group.add_argument("--output", metavar="FILE", help=text)
        rotations = group.add_mutually_exclusive_group().add_argument
        text = "begin a new FILE before it has more than SIZE bytes, such as 500K, 10M or 1G"
        rotations("--rotate-size", type=checked(_size), metavar="SIZE", help=text)
        text = "begin a new FILE each hour, day or week (UTC)"
        rotations("--rotate-time", type=checked(_when), metavar="|".join(_TIMES), help=text)
        text = f"how many former files to keep (default: {Rotation().keep})"
        group.add_argument("--keep", type=checked(_keep), metavar="N", help=text)

    def check(
        self, given: Container[str], arguments: argparse.Namespace, addresses: list[Endpoint]
    ) -> None:
        super().check(given, arguments, addresses)
        _check_style(given, arguments.style)
        _check_output(given, arguments)
        if arguments.workers > 1:
            _check_workers(given, arguments)

    def handler(self, arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
        style = arguments.style
        keep = {} if arguments.keep is None else {"keep": arguments.keep}
        rotation = Rotation(arguments.rotate_size, arguments.rotate_time, **keep)
        files = LogFiles(arguments.output, rotation, style != "raw")
        settings = {"style": style, "prefix": arguments.prefix, "output": files}
        return CommandLogger, settings


command = Logger()
run = command.run


def _size(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,12})([KMG]?)", text)
    if match is None or not int(match[1]):
        raise ValueError(f"it must be a size such as 500K, 10M or 1G, not {text!r}")
    return int(match[1]) << 10 * _UNITS.index(match[2])


def _when(text: str) -> str:
    if text not in _TIMES:
        *others, last = _TIMES
        raise ValueError(f"it must be {', '.join(others)} or {last}, not {text!r}")
    return _TIMES[text]


def _keep(text: str) -> int:
    number = count(text)
    if not number:
        raise ValueError("it must be at least 1: the file before the present one")
    return number


_ROTATIONS = {"rotate_size": "--rotate-size", "rotate_time": "--rotate-time"}


def _check_style(given: Container[str], style: str) -> None:
    if "max_line" in given and style != "text":
        text = f"--max-line has no effect with --{style}, which reads no lines"
        raise ArgumentError(text)
    if "prefix" in given and style == "raw":
        raise ArgumentError("--prefix has no effect with --raw, which writes no lines")


def _check_output(given: Container[str], arguments: argparse.Namespace) -> None:
    rotations = [flag for name, flag in _ROTATIONS.items() if name in given]
    if rotations and arguments.output is None:
        raise ArgumentError(f"{rotations[0]} has no effect without --output")
    if "keep" in given and not _rotations(arguments):
        raise ArgumentError("--keep has no effect without --rotate-size or --rotate-time")
    if arguments.output is None and arguments.access_log == "-":
        name = named("access_log", arguments)
        raise ArgumentError(
            f"{name} - needs --output: standard output has the lines of the clients"
        )
    if PEER in os.path.dirname(arguments.output or ""):
        name = named("output", arguments)
        raise ArgumentError(f"{name} may have {PEER} in the name of the file, not of its folder")


def _rotations(arguments: argparse.Namespace) -> list[str]:
    return [name for name in _ROTATIONS if getattr(arguments, name) is not None]


def _check_workers(given: Container[str], arguments: argparse.Namespace) -> None:
    """ArgumentError if several processes cannot write; one, if a variable asks for several."""
    if arguments.output is None:
        problem = "--workers needs --output: lines of several processes would mix in a pipe"
    elif _rotations(arguments):
        problem = "files of several --workers cannot be rotated here: leave that to logrotate(8)"
    else:
        return
    if "workers" in given:
        raise ArgumentError(problem)
    arguments.workers = 1


class CommandLogger(LoggerHandler):
    """Writes to the files of `output`. Stops the server when nobody reads its output any more."""

    output: Any  # `LogFiles`
    _file: LogFile

    def connected(self) -> None:
        self._file = self.output.file_of(self.conn)
        super().connected()

    def handle(self) -> None:
        try:
            super().handle()
        except OutputError:
            self.server.request_stop()

    def _write(self, data: bytes) -> None:
        self.output.append(self._file, data)

    def closed(self) -> None:
        super().closed()
        self.output.release(self._file)
