"""``netkit serve MODULE:NAME``: a server with a handler of the user, or a server of the user."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..process.application import Application, to_be_loaded
from ..process.hooks import Hooks
from ..server.server import Server
from .arguments import checked
from .environment import HANDLER, named
from .serving import Command

if TYPE_CHECKING:
    from ..process.supervisor import Workers
    from .checking import Module


_RELOAD = "--reload"


class Serve(Command):
    name = "serve"
    words = "MODULE:NAME "

    def add_flags(self, group: Any) -> None:
        group.add_argument(
            "--set",
            action="append",
            default=[],
            type=checked(_setting),
            metavar="NAME=VALUE",
            help="setting of the handler: a class attribute, or a keyword argument of a function",
        )
        text = "for development: start new workers when a loaded module changes, or one in DIR"
        group.add_argument(
            _RELOAD, nargs="?", const="", type=checked(_folder), metavar="DIR", help=text
        )

    def take(self, arguments: argparse.Namespace, words: list[str]) -> None:
        from .loading import target_of

        variable = os.environ.get(HANDLER)
        arguments.handler_from = "command line"
        if variable is not None and not (words and _names_a_handler(words[0])):
            try:
                arguments.target = target_of(variable)
            except ValueError as error:
                raise ValueError(f"{HANDLER}: {error}") from None
            arguments.handler_from = HANDLER
            return
        if not words:
            raise ValueError("a handler is needed: MODULE:NAME, such as app:Shout")
        arguments.target = target_of(words.pop(0))

    def run(self, argv: Sequence[str]) -> int:
        return super().run(_with_folder(argv))

    def check(self, *_: object) -> None:
        """Check nothing yet: the flags may belong to options of the module."""

    def has_parent(self, arguments: argparse.Namespace) -> bool:
        # A parent starts workers with new code. One worker needs no parent unless it is asked for.
        given = {*arguments.given, *arguments.variables}
        return os.name == "posix" and bool(given & {"workers", "reload"})

    def handler(self, arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
        # The parent never loads the module, so that a reload, which starts workers, loads it anew.
        if arguments.reload is not None and not arguments.check:
            from .autoreload import announce, new_lock

            announce(arguments.reload)
            arguments.reload_lock = new_lock()
        return to_be_loaded, {}

    def load(self, arguments: argparse.Namespace) -> Application:
        from .loading import Given, load

        options = frozenset(arguments.options)
        flags = options & arguments.given
        given = Given(
            dict(arguments.set), named("set", arguments), options, flags, arguments.addresses
        )
        if arguments.reload is None or arguments.check:
            return load(arguments.target, given)
        from .autoreload import Watch

        watch = Watch(arguments.reload, arguments.reload_lock)  # the files before they are loaded
        return watch.watching(load(arguments.target, given))

    def kind_of_workers(self, arguments: argparse.Namespace) -> type[Workers]:
        if arguments.reload is None:
            return super().kind_of_workers(arguments)
        from .autoreload import ReloadedWorkers

        return ReloadedWorkers

    def complete(self, server: Server, arguments: argparse.Namespace) -> tuple[Server, Hooks]:
        application = self.load(arguments)
        return application.complete(server), application.hooks

    def module(self, arguments: argparse.Namespace) -> Module:
        from .checking import Module
        from .loading import options_of

        return Module(str(arguments.target), options_of(arguments.target.module)[0])


command = Serve()
run = command.run


def _with_folder(argv: Sequence[str]) -> list[str]:
    """Return `argv`, with the folder after each ``--reload``, if any, as the value of this flag.

    The next word is a folder only if there is one of this name, and not a port.
    """
    words, rest = [], list(argv)
    while rest and rest[0] != "--":
        word = rest.pop(0)
        if word == _RELOAD:
            is_folder = bool(rest) and os.path.isdir(rest[0]) and not rest[0].isdigit()
            word = f"{_RELOAD}={rest.pop(0) if is_folder else ''}"
        words.append(word)
    return words + rest


def _folder(text: str) -> str:
    """Return the path of a folder; an empty text stands for no folder. ValueError."""
    if text and not os.path.isdir(text):
        raise ValueError(f"there is no folder {text!r}")
    return text and os.path.abspath(text)


def _names_a_handler(word: str) -> bool:
    """Whether `word` is MODULE:NAME, and not an address: for a command that may do without one."""
    from .loading import target_of

    try:
        return target_of(word).module not in ("unix", "fd", "systemd")
    except ValueError:
        return False


def _setting(text: str) -> tuple[str, str]:
    from .settings import parse

    return parse(text)
