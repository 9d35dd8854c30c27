"""The flags of the commands that serve: one for each option of a server, and a few more.

A flag that would have no effect is an error. The variable of such a flag is not, since several
commands may share it (`netkit.cli.environment`).
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Container, Sequence
from functools import partial
from typing import Any

from ..core.cores import check_workers
from ..core.endpoint import Endpoint, control_endpoint, status_endpoint
from ..core.kinds import TEXT, TIMEOUT, Kind
from ..core.options import Options
from ..core.table import OptionTable, option
from ..core.tls_options import PASSWORD
from ..net.service_manager import service_manager
from .arguments import ArgumentError, checked, flag_of
from .environment import EnvironmentParser, variable_of

# The options by which a client is refused with a message. `allow` and `deny` send none.
_REFUSING = ("max_connections", "max_connections_per_ip", "max_connection_rate")


def _one_of(*words: str) -> Kind:
    def check(name: str, value: Any) -> str:
        if value not in words:
            raise ValueError(f"{name} must be one of {', '.join(words)}, not {value!r}")
        return str(value)

    return Kind("word", check, str, "|".join(words), group="logging")


WORKERS = Kind(
    "number",
    check=lambda _, value: check_workers(value),
    parse=lambda text: int(text) if text.removeprefix("-").isdecimal() else text,
    metavar="N|auto",
    group="what it does",
)


def _check_status(_: str, address: str) -> str:
    status_endpoint(address)
    return address


def _check_control(_: str, path: str) -> str:
    control_endpoint(path)
    return path


def _check_access_log(_: str, path: str) -> str:
    if not path:
        raise ValueError("it must be the name of a file, or '-', not ''")
    return path


class Flags(OptionTable):
    """The flags of all commands that serve, beside the options of the server."""

    workers: int = option(
        1, WORKERS, "number of processes, or 'auto' for as many as suit this machine"
    )
    host: str = option(
        "127.0.0.1",
        TEXT._replace(metavar="HOST", group="where"),
        "host of every ADDRESS that is only a port; '*' for all addresses",
    )
    status: str | None = option(
        None,
        Kind("address", _check_status, str, "ADDRESS", group="for operators"),
        "address of the status endpoint: metrics, and whether the server is ready",
    )
    control: str | None = option(
        None,
        Kind("path", _check_control, str, "PATH", group="for operators"),
        "path of the control socket, for 'netkit ctl' and 'netkit top'",
    )
    access_log: str | None = option(
        None,
        TEXT._replace(check=_check_access_log, metavar="FILE|-", group="for operators"),
        "file that gets a line for each connection at its end; '-' for standard output",
    )
    stuck: float | None = option(
        None,
        TIMEOUT._replace(group="for operators"),
        "log a handler that has neither read nor written for so long",
    )
    log_level: str = option(
        "info",
        _one_of("debug", "info", "warning", "error"),
        "least severe level that is logged to standard error; 'debug' logs each client",
    )
    log_format: str = option(
        "text", _one_of("text", "json"), "text, or one JSON object on each line"
    )


ROWS = {**Flags.rows, **Options.rows}


def add_flags(parser: EnvironmentParser, without: Container[str]) -> dict[str, Any]:
    """Add all flags but those in `without` to `parser`, and return its groups by their titles.

    An option of the server that is not given becomes no attribute of the parsed arguments. The
    variable of a password is the password itself: other users cannot see the environment.
    """
    parser.set_defaults(**Flags().as_dict())
    titles = ("what it does", "where", "time", "limits", "TLS", "for operators", "logging", "data")
    groups: dict[str, Any] = {title: parser.add_argument_group(title) for title in titles}
    certificate = groups["TLS"].add_mutually_exclusive_group()
    text = "use TLS with a certificate made at the start, for trials (needs cryptography)"
    certificate.add_argument("--tls-self-signed", action="store_true", help=text)
    for name, row in ROWS.items():
        if row.kind.parse is not None and name not in without:
            group = certificate if name == "tls_cert" else groups[row.group]
            group.add_argument(
                flag_of(name),
                default=row.default if name in Flags.rows else argparse.SUPPRESS,
                type=checked(row.parse),
                metavar=row.kind.metavar,
                help=row.help + _shown(row.default, row.kind),
            )
            if row.kind is PASSWORD:
                parser.from_variable[name] = checked(partial(row.check, "it"))
    parser.from_variable["host"] = _host_of_variable
    return groups


def _host_of_variable(host: str) -> str:
    """Return the value of a variable. ValueError if it is empty.

    An empty flag stands for all addresses. A variable may be empty by mistake.
    """
    if not host:
        raise ValueError("it must not be empty; '*' is for all addresses")
    return host


def _shown(default: Any, kind: Kind) -> str:
    """Return a default for the help. Empty if a text or a file has none."""
    if default is None or default == ():
        return " (default: off)" if kind.number else ""
    if isinstance(default, bool):
        default = "on" if default else "off"
    return f" (default: {default:g}s)" if isinstance(default, float) else f" (default: {default})"


def check_effects(given: Container[str], arguments: argparse.Namespace | Options) -> None:
    """ArgumentError if one of the flags that are `given` has no effect with `arguments`."""

    def has(*names: str) -> bool:
        return any(getattr(arguments, name, None) is not None for name in names)

    if "when_full" in given and not has("max_connections", "profile"):
        raise ArgumentError("--when-full has no effect without --max-connections")
    if "refusal" in given and not has(*_REFUSING, "profile"):
        *others, last = map(flag_of, _REFUSING)
        raise ArgumentError(f"--refusal has no effect without {', '.join(others)} or {last}")


def _has_certificate(arguments: argparse.Namespace | Options) -> bool:
    names = ("tls_self_signed", "tls_cert", "tls")
    return any(getattr(arguments, name, None) for name in names)


def check_layers(
    given: Container[str], arguments: argparse.Namespace | Options, addresses: list[Endpoint]
) -> None:
    """ArgumentError for a ``?tls=`` that contradicts the flags, or one of both without effect.

    Also for proxies that are trusted, if no address has ``?proxy=on``.
    """
    is_proxied = any(each.proxy for each in addresses)
    if "proxy_from" in given and not is_proxied:
        raise ArgumentError("--proxy-from has no effect: no address has ?proxy=on")
    if "handshake_timeout" in given and not (is_proxied or _has_certificate(arguments)):
        raise ArgumentError("--handshake-timeout has no effect without --tls-cert or ?proxy=on")
    _check_tls(given, arguments, addresses)


def _check_tls(
    given: Container[str], arguments: argparse.Namespace | Options, addresses: list[Endpoint]
) -> None:
    wanted = {each.tls for each in addresses}
    is_self_signed = getattr(arguments, "tls_self_signed", False)
    certificate = "--tls-self-signed" if is_self_signed else "--tls-cert"
    if not _has_certificate(arguments):
        if True in wanted:
            raise ArgumentError("?tls=on needs --tls-cert or --tls-self-signed")
        if False in wanted:
            raise ArgumentError("?tls=off has no effect without --tls-cert")
    elif wanted == {False} and (is_self_signed or "tls_cert" in given):
        raise ArgumentError(f"{certificate} has no effect: each address has ?tls=off")
    elif False in wanted and getattr(arguments, "starttls", False):
        raise ArgumentError("?tls=off has no effect with --starttls")
    elif wanted == {True} and "starttls" in given:
        raise ArgumentError("--starttls has no effect: each address has ?tls=on")


def check_addresses(given: Container[str], addresses: list[Endpoint]) -> None:
    """ArgumentError for a host without a port, or for sockets of systemd without an address."""
    if "host" in given and addresses and all(each.kind != "tcp" or each.host for each in addresses):
        raise ArgumentError("--host has no effect: each address names its own")
    passed = len(service_manager().sockets)
    if passed and not any(address.kind in ("fd", "systemd") for address in addresses):
        raise ArgumentError(
            f"systemd has passed sockets (LISTEN_FDS={passed}): name them, as systemd:"
        )


def as_given(message: str, variables: Sequence[str]) -> str:
    """Replace each option in a message of the library by its flag, if it has one.

    The options in `variables` are replaced by their environment variables.
    """

    def named(match: re.Match[str]) -> str:
        name = match[0]
        if name not in Options.rows or Options.rows[name].kind.parse is None:
            return name
        return variable_of(name) if name in variables else flag_of(name)

    return re.sub(r"^[a-z]+\b|\b[a-z]+(_[a-z]+)+\b", named, message)
