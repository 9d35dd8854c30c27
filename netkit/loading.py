"""The handler that a command line names, ``MODULE:NAME``, found in the user's own code.

What is wrong with that code is told as Python would, without the frames that led to it; all else is
told in one line.
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
    """`text`, if it is such a name; ValueError."""
    if not re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", text):
        raise ValueError(f"a handler is named MODULE:NAME, such as app:Shout, not {text!r}")
    return text


def load(name: str) -> Any:
    """The object that it names, imported from the current folder, too. Failure."""
    module_name, _, attribute = name.partition(":")
    module = _import(module_name)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            import difflib  # here because only a mistake needs it

            close = difflib.get_close_matches(part, dir(found), 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise Failure(f"{module_name} has no {attribute}{hint}")
        found = getattr(found, part)
    return found


def _import(name: str) -> ModuleType:
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # where it is installed, as for `python -m`
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Only if it is this module that is missing, not one that it imports.
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise Failure(
                f"no module named {error.name!r}, neither here ({os.getcwd()}) nor installed"
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
