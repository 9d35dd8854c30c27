"""``netkit serve MODULE:NAME``: a server with a handler of the user.

An exception in the user's module is logged with Python's traceback, without the frames of netkit.
Any other error is one line.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import re
import sys
from typing import Any

from ..core.errors import Failure
from ..server.log import logger
from .arguments import similar
from .serving import Command


class Serve(Command):
    name = "serve"
    words = "MODULE:NAME "

    def take(self, arguments: argparse.Namespace, words: list[str]) -> None:
        if not words:
            raise ValueError("a handler is needed: MODULE:NAME, such as app:Shout")
        arguments.handler = handler_name(words.pop(0))

    def handler(self, arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
        return load(arguments.handler), {}

    def handler_in_parent(self, arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
        if arguments.workers == 1:
            return self.handler(arguments)
        from ..process.work import to_be_loaded

        # The parent never loads the module, so that a reload, which starts workers, loads it anew.
        return to_be_loaded, {}


run = Serve().run


def handler_name(text: str) -> str:
    """Return `text` if it is ``MODULE:NAME``. ValueError."""
    file = re.fullmatch(r"(?:\./)?([\w/]+)\.py(?::([\w.]*))?", text)
    if file:  # a file, not a module `py` in a package
        name = f"{file[1].replace('/', '.')}:{file[2] or 'NAME'}"
        raise ValueError(f"a handler is named MODULE:NAME, without .py: {name}, not {text!r}")
    if text.count(":") != 1 or not all(map(str.isidentifier, re.split("[.:]", text))):
        raise ValueError(f"a handler is named MODULE:NAME, such as app:Shout, not {text!r}")
    return text


def load(name: str) -> Any:
    """Return the object ``MODULE:NAME``. Failure if it does not exist.

    The module may be in the current folder, which comes before the folders of installed modules
    but after the standard library: no file in the current folder can replace a part of that.
    """
    module, _, attribute = name.partition(":")
    try:
        folder = os.getcwd()
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise Failure(f"cannot look for the handler in the current folder: {reason}") from None
    if "" not in sys.path and folder not in sys.path:
        library = os.path.dirname(os.__file__)
        parts = (library, os.path.join(library, "lib-dynload"))
        behind = [index for index, entry in enumerate(sys.path, 1) if entry in parts]
        sys.path.insert(max(behind, default=len(sys.path)), folder)
    _import(module, folder)
    try:
        return pkgutil.resolve_name(name)
    except AttributeError as error:
        hint = similar(error.name or "", dir(error.obj))
        file = f"{module.partition('.')[0]}.py"
        if file[:-3] in sys.stdlib_module_names and os.path.exists(os.path.join(folder, file)):
            hint = f": it is Python's own module {file[:-3]}; give {file} here another name"
        raise Failure(f"{module} has no {attribute}{hint}") from None


def _import(name: str, folder: str) -> None:
    try:
        importlib.import_module(name)
        return
    except Exception as error:
        failure = error
    if isinstance(failure, ModuleNotFoundError) and f"{name}.".startswith(f"{failure.name}."):
        # This module is missing, and not one that it imports.
        text = f"no module named {failure.name!r}, neither here ({folder}) nor installed"
        raise Failure(text)
    trace = failure.__traceback__
    while trace is not None and _is_importing(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    logger.error("%s could not be imported", name, exc_info=failure.with_traceback(trace))
    raise Failure(f"{name} could not be imported, see above")


def _is_importing(filename: str) -> bool:
    return filename in (__file__, importlib.__file__) or filename.startswith("<frozen importlib")
