"""``netkit echo``: a server for trials of clients."""

from __future__ import annotations

import argparse
from typing import Any

from ..server.handlers import EchoHandler
from .serving import Command

SUMMARY = "Send every client back what it sends."


class Echo(Command):
    """The command."""

    name = "echo"
    summary = SUMMARY
    unread = ("max_line", "max_message")
    instead = "reads neither lines nor messages"

    def handler(self, arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
        return EchoHandler, {}


run = Echo().run
