"""Tables of options: keyword arguments that are described, and checked, in one place.

A subclass of `OptionTable` is a table: its body has a row ``name: type = option(...)`` for each
option. The keyword arguments of the library, the flags of the command line, the variables of the
environment and the tables of docs/options.md come from the rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeVar

from .kinds import Kind
from .record import NamedTuple

if TYPE_CHECKING:
    _Self = TypeVar("_Self", bound="OptionTable")


class Option(NamedTuple):
    """The row of an option.

    If `optional`, None is a valid value, which disables the option. `help` describes the option in
    a few words, and `group` is the heading of its flag in the help of a command.
    """

    default: Any
    kind: Kind
    help: str
    group: str
    optional: bool

    def check(self, name: str, value: Any) -> Any:
        """Return the value to store. TypeError or ValueError, with `name`, if `value` is invalid.

        LookupError if an encoding is unknown; OSError if a file with a list cannot be read.
        """
        return None if value is None and self.optional else self.kind.check(name, value)

    def parse(self, text: str) -> Any:
        """Convert `text` to a value. For a number, ``off`` is None.

        Errors as for `check`, with "it" as the name.
        """
        parse, number = self.kind.parse, self.kind.number
        assert parse, "this kind of value has no text"
        if number and self.optional and text == "off":
            return None
        try:
            value = parse(text)
        except ValueError:
            if not number:
                raise
            or_off = " or 'off'" if self.optional else ""
            raise ValueError(f"it must be {number}{or_off}, not {text!r}") from None
        return self.check("it", value)


def option(
    default: Any, kind: Kind, help: str, *, group: str | None = None, optional: bool = False
) -> Any:
    """Make the row of an option. A default of None makes it `optional`.

    The default of `group` is that of the kind.
    """
    return Option(default, kind, help, group or kind.group, optional or default is None)


class OptionTable:
    """Options and their values. Immutable.

    The constructor takes them by name. TypeError for an option that does not exist; errors as for
    `Option.check` for an invalid value.
    """

    rows: ClassVar[dict[str, Option]]

    def __init_subclass__(cls) -> None:
        cls.rows = {name: row for name, row in vars(cls).items() if isinstance(row, Option)}

    def __init__(self, **given: Any) -> None:
        for name in given:
            if name not in self.rows:
                _refuse(name, list(self.rows))
        for name, row in self.rows.items():
            value = row.check(name, given[name]) if name in given else row.default
            vars(self)[name] = value

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"options cannot be changed; {name} belongs to a new set of them")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    def __repr__(self) -> str:
        """Shows neither TLS options nor the arguments of the handler, which may be secrets."""
        private = ("tls_", "handler_args")
        shown = (
            f"{name}={'...' if value and name.startswith(private) else repr(value)}"
            for name, value in vars(self).items()
        )
        return f"{type(self).__name__}({', '.join(shown)})"

    def as_dict(self) -> dict[str, Any]:
        """Return the values of all options by their names."""
        return dict(vars(self))

    def changed(self: _Self, **given: Any) -> _Self:
        """Return a copy with the values of `given`. Raises as the constructor."""
        return type(self)(**{**vars(self), **given})


def _refuse(name: str, names: list[str]) -> NoReturn:
    import difflib  # here because only a mistake needs it

    close = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean {close[0]!r}? The" if close else "the"
    raise TypeError(f"unknown option {name!r}; {hint} options are {', '.join(names)}")
