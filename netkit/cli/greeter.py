"""``netkit greeter``: a server that only writes."""

from __future__ import annotations

import argparse
from collections.abc import Container
from typing import Any

from ..core.encodings import to_bytes
from ..core.options import Options
from ..server.handlers import GreeterHandler
from .arguments import ArgumentError
from .serving import Command


class Greeter(Command):
    name = "greeter"
    unread = ("max_line", "max_message", "read_timeout")
    instead = "reads nothing"

    def add_flags(self, group: Any) -> None:
        group.add_argument(
            "--greeting",
            metavar="TEXT",
            default=GreeterHandler.greeting,
            help="text that clients get; {address} and {port} are the client's",
        )

    def check(self, arguments: argparse.Namespace, given: Container[str]) -> None:
        encoding = getattr(arguments, "encoding", Options.rows["encoding"].default)
        try:
            to_bytes(arguments.greeting, encoding)
        except UnicodeError:
            text = f"--greeting cannot be written in {encoding}: {arguments.greeting!r}"
            raise ArgumentError(text) from None

    def handler(self, arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
        return GreeterHandler, {"greeting": arguments.greeting.removesuffix("\n") + "\n"}


run = Greeter().run
