"""Finds the handler that a command line names, ``MODULE:NAME``, in the user's own code.

Errors in that code are shown as Python shows them, without the frames of netkit; all others are one
line.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
import traceback
from types import ModuleType
from typing import Any

from .errors import Failure


def handler_name(text: str) -> str:
    """Return `text` if it is such a name. ValueError."""
    file = re.fullmatch(r"(?:\./)?([\w/]+)\.py(?::([\w.]*))?", text)
    if file:  # a file, not a module `py` in a package
        name = f"{file[1].replace('/', '.')}:{file[2] or 'NAME'}"
        raise ValueError(f"a handler is named MODULE:NAME, without .py: {name}, not {text!r}")
    if not re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", text):
        raise ValueError(f"a handler is named MODULE:NAME, such as app:Shout, not {text!r}")
    return text


def load(name: str) -> Any:
    """Return the object that `name` names. Failure if there is none.

    The module is looked for in the current folder, too, before those that are installed, but after
    the standard library, which nothing in that folder can replace.
    """
    module_name, _, attribute = name.partition(":")
    folder = _current_folder()
    module = _import(module_name, folder)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            hint = _hidden(module_name, folder) or _similar(part, dir(found))
            raise Failure(f"{module_name} has no {attribute}{hint}")
        found = getattr(found, part)
    return found


def _similar(name: str, known: list[str]) -> str:
    import difflib  # here because only a mistake needs it

    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]}?" if close else ""


def _hidden(name: str, folder: str) -> str:
    """A hint, if a module of the standard library has the name of one in `folder`."""
    top = name.partition(".")[0]
    if top not in sys.stdlib_module_names or not os.path.exists(os.path.join(folder, f"{top}.py")):
        return ""
    return f": it is Python's own module {top}; give {top}.py here another name"


def _current_folder() -> str:
    """Add the current folder to the places of modules, and return it. Failure if it is gone."""
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
    return folder


def _import(name: str, folder: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Only if it is this module that is missing, not one that it imports.
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise Failure(
                f"no module named {error.name!r}, neither here ({folder}) nor installed"
            ) from None
        _print_users_traceback(error)
    except Exception as error:
        _print_users_traceback(error)
    raise Failure(f"{name} could not be imported, see above")


def _print_users_traceback(error: Exception) -> None:
    """The traceback from the user's module on, without the frames that led to its import."""
    trace = error.__traceback__
    while trace is not None and _is_importing(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    try:
        text = "".join(traceback.format_exception(type(error), error, trace))
    except Exception:  # Python 3.15 imports the module once more, to see why another is missing
        text = "".join([*traceback.format_tb(trace), f"{type(error).__name__}: {error}\n"])
    with contextlib.suppress(AttributeError, OSError):  # there is no standard error, or it is full
        sys.stderr.write(text)


def _is_importing(filename: str) -> bool:
    return filename in (__file__, importlib.__file__) or filename.startswith("<frozen importlib")
