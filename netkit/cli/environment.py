"""The variables of the environment in the place of flags, such as ``NETKIT_MAX_LINE=80``.

Rules:

1. Each flag of a command that serves has a variable, with the same form and the same check. A flag
   without a value is ``on`` or ``off``. A flag that may be repeated has all its values in one
   variable, in the form of words for a shell.
2. The flag wins over the variable, and the variable over the default. A flag also wins over the
   variables of flags that cannot be used with it.
3. A variable that belongs to another command that serves is ignored. An error names the variable.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from .arguments import Parser, flag_of, similar

PREFIX = "NETKIT_"
ADDRESSES = "NETKIT_ADDRESSES"
HANDLER = "NETKIT_HANDLER"
_GATE = "NETKIT_GATE"  # see netkit.net.gate

# The commands that serve, each of which is a module of this package with a `command`.
_SERVING = ("echo", "logger", "greeter", "serve")

# What Kubernetes sets in each container for a service with a name such as "netkit".
_SERVICE = r"(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"


def variable_of(name: str) -> str:
    """Return the variable of an option, or of a flag."""
    return PREFIX + name.removeprefix("--").replace("-", "_").upper()


def words_of(variable: str) -> list[str]:
    """Return the words in a variable, which may be quoted as for a shell. ValueError.

    There are none if the variable does not exist.
    """
    try:
        return shlex.split(os.environ.get(variable, ""))
    except ValueError as error:
        raise ValueError(f"{variable}: {str(error).lower()}") from None


def named(name: str, arguments: argparse.Namespace) -> str:
    """Return the variable of an option if its value is from there, else its flag."""
    return variable_of(name) if name in arguments.variables else flag_of(name)


class EnvironmentParser(Parser):
    """Parses options, and completes them by the environment and by their defaults.

    `from_variable` has the conversions of those variables that have another form than their flags.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.from_variable: dict[str, Callable[[str], Any]] = {}

    def read(self, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Return the options in `argv` and in the environment, and the other words of `argv`.

        The attribute `given` of the options is the set of those that are in `argv`; `variables` is
        the list of those whose values are from the environment. SystemExit if any is invalid.
        """
        defaults = self._without_defaults()
        namespace, words = super().read(argv)
        given = set(vars(namespace))
        self._check_unknown()
        found = self._found(given)
        for name, value in {**defaults, **found}.items():
            if name not in given:
                setattr(namespace, name, value)
        namespace.given, namespace.variables = given, list(found)
        return namespace, words

    def variables(self) -> dict[str, argparse.Action]:
        """Return the flags by their variables."""
        return {
            variable_of(flag): action
            for flag, action in self._option_string_actions.items()
            if flag.startswith("--") and action.dest != "help"
        }

    def _without_defaults(self) -> dict[str, Any]:
        """Return all defaults, and have only flags that are given become attributes."""
        defaults = {**{action.dest: action.default for action in self._actions}, **self._defaults}
        for action in self._actions:
            action.default = argparse.SUPPRESS
        self._defaults.clear()
        return {name: it for name, it in defaults.items() if it is not argparse.SUPPRESS}

    def _found(self, given: set[str]) -> dict[str, Any]:
        """Return the values of the variables, except those that flags in `given` win over."""
        groups = [group._group_actions for group in self._mutually_exclusive_groups]
        winning = [group for group in groups if any(each.dest in given for each in group)]
        found: dict[str, Any] = {}
        chosen: dict[int, str] = {}  # the variable that has set a flag of this group
        for variable, action in self.variables().items():
            text = os.environ.get(variable)
            if text is None or action.dest in given or any(action in group for group in winning):
                continue
            value = self._value(variable, action, text)
            if value is None:
                continue
            for index in (index for index, group in enumerate(groups) if action in group):
                if index in chosen:
                    self.error(f"{chosen[index]} and {variable} exclude each other")
                chosen[index] = variable
            found[action.dest] = value[0]
        return found

    def _value(self, variable: str, action: argparse.Action, text: str) -> tuple[Any] | None:
        """Return the value that a variable gives to its flag; None if it switches the flag off."""
        parse: Any = self.from_variable.get(action.dest) or action.type or str
        if action.nargs in (0, argparse.OPTIONAL) and text in ("on", "off"):
            return (action.const,) if text == "on" else None
        try:
            if action.nargs == 0:
                raise argparse.ArgumentTypeError(f"it must be on or off, not {text!r}")
            is_list = isinstance(action, argparse._AppendAction)
            return (list(map(parse, words_of(variable))) if is_list else parse(text),)
        except (argparse.ArgumentTypeError, ValueError) as error:
            self.error(f"{variable}: {str(error).removeprefix(f'{variable}: ')}")

    def _check_unknown(self) -> None:
        """SystemExit for a variable that no command knows, and for an invalid NETKIT_GATE."""
        if os.environ.get(_GATE, "").lower() not in ("", "on", "off"):
            self.error(f"{_GATE}: it must be on or off, not {os.environ[_GATE]!r}")
        known = {ADDRESSES, HANDLER, _GATE, *self.variables()}
        unknown = [name for name in os.environ if name.startswith(PREFIX) and name not in known]
        if not unknown:
            return
        known.update(_of_other_commands())
        for name in sorted({*unknown} - known):
            if not _is_of_kubernetes(name.removeprefix(PREFIX), os.environ[name]):
                self.error(f"unknown variable {name} in the environment{_hint(name, known)}")


def _is_of_kubernetes(name: str, value: str) -> bool:
    return re.fullmatch(_SERVICE, name) is not None and (name != "PORT" or "://" in value)


def _hint(name: str, known: Iterable[str]) -> str:
    if name == f"{PREFIX}PORT":
        return f"; did you mean {ADDRESSES}?"
    names = sorted(each.removeprefix(PREFIX) for each in known)  # it makes all names similar
    return similar(name.removeprefix(PREFIX), names).replace("mean ", f"mean {PREFIX}")


def _of_other_commands() -> Iterator[str]:
    for name in _SERVING:
        yield from importlib.import_module(f"{__package__}.{name}").command.parser().variables()
