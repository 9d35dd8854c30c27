"""``netkit echo``: a server for trials of clients."""

from __future__ import annotations

import argparse
from typing import Any

from ..server.handlers import EchoHandler
from .serving import Command


class Echo(Command):
    name = "echo"
    unread = ("max_line", "max_message")
    instead = "reads neither lines nor messages"

    def handler(self, arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
        return EchoHandler, {}


command = Echo()
run = command.run
