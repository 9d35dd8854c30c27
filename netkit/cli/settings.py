"""The settings of a handler, which ``--set NAME=VALUE`` changes.

The settings of a `Handler` class are its class attributes. Those of another handler are its
parameters after the connection (or after the three arguments of a `socketserver` class). The type
of a setting is that of its annotation, else that of its default, else `str`:

| type                         | text                        |
|------------------------------|-----------------------------|
| `str`                        | itself                      |
| `bytes`                      | itself, encoded as UTF-8    |
| `bool`                       | ``on`` or ``off``           |
| `int`                        | a whole number              |
| `float`                      | a number                    |
| `int` or `float`, or None    | a number, or ``off``        |
| `Literal`                    | one of its words            |
| `pathlib.Path`               | a path                      |
"""

from __future__ import annotations

import inspect
import math
import pathlib
import re
import socketserver
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from ..server.adapting import signature_of
from ..server.handlers import Handler
from .arguments import ArgumentError, similar

_Known = dict[str, Any]  # the type of each setting, or its annotation
_EMPTY = inspect.Parameter.empty
_SIMPLE = {kind.__name__: kind for kind in (str, bytes, bool, int, float)}


def parse(text: str) -> tuple[str, str]:
    """Return the name and the value of ``NAME=VALUE``. ValueError."""
    name, equals, value = text.partition("=")
    if not (equals and name.isidentifier()):
        raise ValueError(f"it must be NAME=VALUE, not {text!r}")
    return name, value


def converted(settings: Mapping[str, str], handler: Any, set_by: str = "--set") -> dict[str, Any]:
    """Return the values of the texts in `settings`, for `handler`.

    ArgumentError, which names `set_by`, for a setting that does not exist, or an invalid value.
    """
    known, takes_any = _settings_of(handler) if settings else ({}, False)
    try:
        return {name: _value(name, settings[name], known, takes_any, handler) for name in settings}
    except ValueError as error:
        raise ArgumentError(f"{set_by} {error}") from None


def _value(name: str, text: str, known: _Known, takes_any: bool, handler: Any) -> Any:
    """Return the value of a setting. ValueError begins with its name."""
    if name not in known and not takes_any:
        of = getattr(handler, "__name__", None) or repr(handler)
        there_are = f"; the settings are {', '.join(known)}" if known else "; it has none"
        hint = similar(name, known) or there_are
        raise ValueError(f"{name}: {of} has no setting {name}{hint}")
    try:
        return _converter(known.get(name, str))(text)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


# The settings of a handler


def _settings_of(handler: Any) -> tuple[_Known, bool]:
    """Return the settings with their types, and whether the handler takes any other one, too."""
    is_ours = isinstance(handler, type) and issubclass(handler, Handler)
    if is_ours and handler.__init__ is Handler.__init__:
        return _attributes(handler), False
    signature = signature_of(handler)
    if signature is None:
        return {}, False
    parameters = list(signature.parameters.values())
    function: Any = handler
    if isinstance(handler, type):
        function = handler.__init__  # type: ignore[misc] # of this very class
    hints = _hints(function)
    known = {
        each.name: _type(hints.get(each.name, each.annotation), each.default)
        for each in _behind_the_client(handler, parameters)
    }
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters)
    if is_ours and takes_any:  # it passes them to the constructor of `Handler`
        return {**_attributes(handler), **known}, False
    return known, takes_any


def _attributes(kind: type[Handler]) -> _Known:
    hints = _hints(kind)
    names = [name for name in dir(kind) if not (name.startswith("_") or hasattr(Handler, name))]
    values = {name: getattr(kind, name) for name in names}
    return {
        name: _type(hints.get(name, _EMPTY), value)
        for name, value in values.items()
        if name in hints or not (callable(value) or isinstance(value, property))
    }


def _behind_the_client(
    handler: Any, parameters: list[inspect.Parameter]
) -> list[inspect.Parameter]:
    """Leave out the parameters for the connection, or for socket, address and server."""
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    of_socketserver = isinstance(handler, type) and issubclass(
        handler, socketserver.BaseRequestHandler
    )
    required = [parameter for parameter in positional if parameter.default is _EMPTY]
    count = 3 if of_socketserver or len(required) >= 3 else 1
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p for p in parameters if p not in positional[:count] and p.kind not in variadic]


def _hints(annotated: Any) -> dict[str, Any]:
    """Return the annotations by their names, as far as they can be evaluated."""
    try:
        return typing.get_type_hints(annotated)
    except Exception:  # a name that only type checkers import
        try:
            found = getattr(annotated, "__annotations__", {})
        except NameError:  # pragma: no cover - the same, from 3.14 on
            lenient: Any = {"format": inspect.Format.FORWARDREF}  # type: ignore[attr-defined]
            found = inspect.get_annotations(annotated, **lenient)
        return {name: _SIMPLE.get(hint, hint) for name, hint in found.items()}


def _type(hint: Any, default: Any) -> Any:
    if hint in (_EMPTY, Any) or isinstance(hint, (str, typing.ForwardRef)):
        return str if default is _EMPTY or default is None else type(default)
    return hint


# The types of settings


def _whole_number(text: str) -> int:
    if not re.fullmatch(r"[+-]?\d+", text, re.ASCII):
        raise ValueError(f"it must be a whole number, not {text!r}")
    return int(text)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"it must be a number, not {text!r}")
    return value


def _switch(text: str) -> bool:
    if text not in ("on", "off"):
        raise ValueError(f"it must be on or off, not {text!r}")
    return text == "on"


_CONVERTERS: dict[Any, Callable[[str], Any]] = {
    str: str,
    bytes: str.encode,
    bool: _switch,
    int: _whole_number,
    float: _number,
    pathlib.Path: pathlib.Path,
    pathlib.PosixPath: pathlib.Path,
}


def _converter(kind: Any) -> Callable[[str], Any]:
    """Return a function that converts text to a value of the type. ValueError if there is none."""
    if kind in _CONVERTERS:
        return _CONVERTERS[kind]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return lambda text: _word(text, arguments)
    shown = getattr(kind, "__name__", None) or kind
    if origin in (typing.Union, types.UnionType):
        shown = kind  # since the name of each union is Union, from Python 3.14 on
        chosen = next((each for each in arguments if each in _CONVERTERS), None)
        if chosen in (int, float) and type(None) in arguments:
            return lambda text: None if text == "off" else _CONVERTERS[chosen](text)
        if chosen is not None:
            return _CONVERTERS[chosen]
    raise ValueError(f"a value of type {shown} cannot be given as text")


def _word(text: str, words: tuple[Any, ...]) -> str:
    if text not in words:
        raise ValueError(f"it must be one of {', '.join(map(str, words))}, not {text!r}")
    return text
