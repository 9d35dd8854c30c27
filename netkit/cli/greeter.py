"""``netkit greeter``: a server that only writes."""

from __future__ import annotations

import argparse
from typing import Any

from ..core.encodings import to_bytes
from ..core.options import Options
from ..server.handlers import GreeterHandler
from .arguments import ArgumentError
from .environment import named
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

    def handler(self, arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
        encoding = getattr(arguments, "encoding", Options.rows["encoding"].default)
        greeting = arguments.greeting
        try:
            to_bytes(greeting, encoding)
        except UnicodeError:
            name = named("greeting", arguments)
            text = f"{name} cannot be written in {encoding}: {greeting!r}"
            raise ArgumentError(text) from None
        return GreeterHandler, {"greeting": greeting.removesuffix("\n") + "\n"}


command = Greeter()
run = command.run
