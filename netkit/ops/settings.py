"""The options of a server as text that an operator reads and writes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..core.blocklist import BlockList
from ..core.options import Options
from ..core.text import printable, said
from ..server.server import Server

HIDDEN = "..."  # stands for a secret, or for a value that has no text


def shown(name: str, value: Any) -> str:
    """Return the value of the option `name` as `change` takes it; for None, see `without_value`.

    A password and the arguments of the handler are hidden, as is what is not from a file.
    """
    if value is None:
        return without_value(name)
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    if name == "tls_key_password":
        return HIDDEN
    if isinstance(value, BlockList):
        return _of_list(value)
    if isinstance(value, (str, int)):
        return printable(str(value))
    if isinstance(value, os.PathLike):
        return printable(str(os.fspath(value)))
    if isinstance(value, Sequence) and not isinstance(value, (bytes, Mapping)):
        return ",".join(map(str, value)) or "-"
    return HIDDEN if value else "-"


def without_value(name: str) -> str:
    """Return the text for a setting without a value: what holds then, ``off`` for a limit, ``-``.

    `name` need not be that of an option.
    """
    if name == "proxy_from":
        return "127.0.0.0/8,::1"
    return "off" if name in Options.rows and Options.rows[name].kind.number else "-"


def _of_list(rules: BlockList) -> str:
    if rules.path is not None:
        return "@" + printable(rules.path)
    return ",".join(rule.rpartition(" ")[2] for rule in reversed(rules.rules))


def every(options: Options) -> dict[str, str]:
    """Return all options by name, as `shown`."""
    return {name: shown(name, value) for name, value in options.as_dict().items()}


def parse(name: str, text: str) -> Any:
    """Return the value that `text` stands for. ValueError, which says what to write instead.

    ``off`` is None for each option that may be None, and so is ``-`` unless it is a number.
    """
    check_name(name)
    row = Options.rows[name]
    if row.optional and (text == "off" or text == without_value(name) == "-"):
        return None
    if row.kind.parse is None:
        raise ValueError(f"{name} cannot be written as text")
    try:
        return row.parse(text)
    except (ValueError, TypeError, LookupError, OSError) as error:
        raise ValueError(f"{name}: {said(error).removeprefix('it: ')}") from None


def check_name(name: str) -> None:
    """ValueError, with the most similar name, unless an option has this name."""
    if name in Options.rows:
        return
    import difflib  # here because only a mistake needs it

    close = difflib.get_close_matches(name, list(Options.rows), 1)
    hint = f"; did you mean {close[0]!r}?" if close else "; get lists the options"
    raise ValueError(f"unknown option '{printable(name[:100])}'{hint}")


def change(servers: Sequence[Server], name: str, text: str) -> None:
    """Give the option `name` of each server the value `text`, for new clients. ValueError."""
    value = parse(name, text)
    for server in servers:
        try:
            Server.configure(server, **{name: value})
        except (ValueError, TypeError, LookupError, OSError) as error:
            raise ValueError(said(error)) from None
