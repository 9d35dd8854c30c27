"""``--check``: says what a command would serve with, and where each value is from.

The handler, the certificates and the lists have been loaded by then. Nothing is bound, and no hook
of the program is called.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from ..core.addresses import format_address, format_unix
from ..core.blocklist import BlockList
from ..core.endpoint import Endpoint
from ..core.options import Options, public
from ..core.record import NamedTuple
from ..core.text import printable
from ..net.bind import candidates
from ..ops.settings import without_value
from ..server.server import Server
from ..tls.expiry import day_of
from .environment import named, variable_of

_NOT_SHOWN = ("check", "set")  # the settings are among the arguments of the handler


class Row(NamedTuple):
    """A value that holds, as text, and where it is from."""

    name: str
    value: str
    source: str


class Module(NamedTuple):
    """A module that was loaded: what the user calls it, and the names of its options."""

    name: str
    options: Collection[str] = ()


class Check:
    """What holds for `server`, which does not listen.

    `flags` are those of the command, and `arguments` what `Command.understand` has completed.
    `module` has the handler, if it is not netkit's own.
    """

    def __init__(
        self,
        server: Server,
        arguments: argparse.Namespace,
        flags: Iterable[argparse.Action],
        module: Module | None = None,
    ) -> None:
        self._server = server
        self._options = server._options
        self._arguments = arguments
        self._module = module
        self._flags: dict[str, list[argparse.Action]] = {}  # several flags may set one value
        for flag in flags:
            self._flags.setdefault(flag.dest, []).append(flag)

    def __str__(self) -> str:
        """The table of all values. OSError or ValueError if a name does not resolve."""
        rows = [*self._handler(), *self._addresses(), *self._values(), *self._certificates()]
        names, values = (max(len(row[column]) for row in rows) for column in (0, 1))
        return "".join(f"{row[0]:<{names}}  {row[1]:<{values}}  {row[2]}\n" for row in rows)

    def _handler(self) -> Iterator[Row]:
        if self._module is not None:
            yield Row("handler", self._module.name, self._arguments.handler_from)
            names = ", ".join(self._options.handler_args)
            if names:
                given = bool(self._arguments.set)
                source = named("set", self._arguments) if given else self._module.name
                yield Row("handler_args", names, source)

    def _addresses(self) -> Iterator[Row]:
        for endpoint in self._arguments.addresses:
            has_tls = self._server._configuration.setup.context(endpoint.tls) is not None
            layers = ", ".join(["PROXY"] * endpoint.proxy + ["TLS"] * has_tls)
            text = _address(endpoint) + (f" ({layers})" if layers else "")
            yield Row("address", text, self._arguments.addresses_from)

    def _certificates(self) -> Iterator[Row]:
        """When each certificate ends, if netkit has loaded it."""
        context: Any = self._server.tls_context()
        named = {"tls_cert": context, **getattr(context, "named", {})}
        for name, each in named.items():
            expiry = getattr(each, "expiry", None)
            if expiry is not None:
                yield Row("certificate", name, f"valid until {day_of(expiry)}")

    def _values(self) -> Iterator[Row]:
        for name, flags in self._flags.items():
            if name not in _NOT_SHOWN:
                is_option = name in Options.rows
                value = getattr(self._options if is_option else self._arguments, name)
                flag = next((each for each in flags if each.const == value), flags[0])
                is_on = value == "" == flag.const  # of a flag that needs no value
                text = "on" if is_on else _shown(name, value)
                yield Row(name, text, self._source(name, value, flag))

    def _source(self, name: str, value: Any, flag: argparse.Action) -> str:
        *_, word = flag.option_strings
        if name in self._arguments.given:
            return word
        if name in self._arguments.variables:
            return variable_of(word)
        if self._module is not None and name in self._module.options:
            return f"NETKIT_OPTIONS of {self._module.name.partition(':')[0]}"
        default = Options.rows[name].default if name in Options.rows else value
        if self._options.profile is not None and value == public().get(name) != default:
            return f"profile {self._options.profile}"
        return "default" if value == default or self._module is None else self._module.name


def _address(endpoint: Endpoint) -> str:
    """Return the address as text, and what its name resolves to. OSError, ValueError."""
    if endpoint.kind == "unix":
        return format_unix(endpoint.path)
    if endpoint.kind != "tcp":
        return f"{endpoint.kind}:{endpoint.fd if endpoint.kind == 'fd' else endpoint.name}"
    host = endpoint.host or "*"
    found = candidates(host, endpoint.port, endpoint.ipv6_only)
    hosts = dict.fromkeys(str(each.address[0]) for each in found)
    text = format_address(host, endpoint.port)
    return text if host == "*" or host in hosts else f"{text} ({', '.join(hosts)})"


def _shown(name: str, value: Any) -> str:
    """Return a value as text, without what may be a secret."""
    if value is None or value == ():
        return without_value(name)
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, BlockList):
        where = f" of {value.path}" if value.path else ""
        return printable(f"{len(value)} {'rule' if len(value) == 1 else 'rules'}{where}")
    if isinstance(value, bytes) or name == "tls_key_password":
        return "..."
    if isinstance(value, float):
        return f"{value:g}"
    return printable(", ".join(map(str, value)) if isinstance(value, (tuple, dict)) else str(value))
