"""The commands, their options and words, and their help."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

from .. import __version__
from ..core.encodings import to_bytes
from ..core.endpoint import Endpoint
from ..core.options import FLAGS, Flag, Options, check_workers
from ..server.handlers import GreeterHandler
from .arguments import (
    ArgumentError,
    Parser,
    checked,
    endpoints,
    flag_value,
    self_signed,
    show,
    similar,
)
from .loading import handler_name

_EXAMPLES = """\
examples:
  netkit echo 8080               then, in another window: netkit connect 8080
  netkit logger 8080 --hex       write the data of clients as a hex dump
  netkit greeter '*:8080'        on every address of this machine
  netkit echo 8080 unix:/tmp/x   on a port and a Unix socket
  netkit serve app:Shout 8080    with the handler Shout, a function or class, of app.py
  netkit connect 8080            talk to a server, as with nc

Ctrl+C stops a server gracefully: clients have --drain-timeout to finish what they have begun.
A second Ctrl+C stops it at once.
"""

_MORE = """\
Where the command netkit is not installed, it is python3 -m netkit, or bin/netkit in the source.
Documentation: README.md and docs/ in the source\
"""

_ADDRESSES = """\
ADDRESS is PORT, HOST:PORT, [IPV6]:PORT, HOST PORT, unix:PATH, unix:PATH?mode=660, @NAME (an
abstract Unix socket) or fd:N (a descriptor, as from systemd). There may be several. Without an
address the system chooses a port of 127.0.0.1.
"""

_LIMITS = ("profile", "when_full", "refusal", "min_rate", "allow", "deny")
_ADMITTING = ("max_connections", "max_connections_per_ip", "max_connection_rate", "allow", "deny")


# Options that some other servers have, and what to write instead.
_PORT_ALONE = "write the port alone, as in netkit echo 8080"
_HINTS = {
    "--port": _PORT_ALONE,
    "-p": _PORT_ALONE,
    "-l": "a server listens without it",
    "-v": "use --log-level debug",
    "--verbose": "use --log-level debug",
}

# By command, the options for what its handler does not read, and what it does instead.
_UNREAD = {
    "echo": (("max_line", "max_message"), "reads neither lines nor messages"),
    "greeter": (("max_line", "max_message", "read_timeout"), "reads nothing"),
    "logger": (("max_message",), "reads no messages"),
}


class Command(NamedTuple):
    """The description of a command, and the parser of its arguments."""

    text: str
    parser: Callable[[], Parser]


def _serving(name: str, text: str, add: Callable[[Any], object], words: str = "") -> Command:
    def parser() -> Parser:
        parser = Parser(
            f"netkit {name}",
            _HINTS,
            usage=f"netkit {name} {words}[ADDRESS ...] [OPTIONS]",
            description=f"{text}\n\n{_ADDRESSES}",
            epilog=f"{_EXAMPLES}\n{_MORE}.",
        )
        add(parser.add_argument_group("what it does"))
        _add_shared(parser)
        return parser

    return Command(text, parser)


def _add_logger(group: Any) -> None:
    style = group.add_mutually_exclusive_group()
    style.add_argument("--hex", action="store_true", help="write a hex dump instead of lines")
    style.add_argument("--raw", action="store_true", help="write the bytes as they come, unescaped")
    group.add_argument("--output", metavar="FILE", help="append to FILE, not to standard output")
    # One process: its output is one stream of lines, and the command ends with it.
    group.set_defaults(workers=1)


def _add_greeter(group: Any) -> None:
    group.add_argument(
        "--greeting",
        metavar="TEXT",
        default=GreeterHandler.greeting,
        help="text that clients get; {address} and {port} are the client's",
    )
    _add_workers(group)


def _add_workers(group: Any) -> None:
    group.add_argument(
        "--workers",
        metavar="N|auto",
        default=1,
        type=checked(_worker_count),
        help="number of processes, or 'auto' for as many as suit this machine "
        "(default: %(default)s)",
    )


_LOGGER = "Report each client that comes and goes, and write the data of clients."
_SERVE = """\
Serve with a handler of your own: a function or class NAME of MODULE, which is a module in the
current directory or an installed one."""
_CONNECT = "Talk to a server: send standard input, and write the data that comes back."


def _connect_parser() -> Parser:
    from .connect import parser  # here because servers do without

    return parser(_CONNECT)


COMMANDS = {
    "echo": _serving("echo", "Send every client back what it sends.", _add_workers),
    "logger": _serving("logger", _LOGGER, _add_logger),
    "greeter": _serving("greeter", "Greet every client and hang up.", _add_greeter),
    "serve": _serving("serve", _SERVE, _add_workers, "MODULE:NAME "),
    "connect": Command(_CONNECT, _connect_parser),
}


def command(argv: Sequence[str]) -> tuple[str, Sequence[str]]:
    """The name of the command and its arguments. SystemExit after help, a version or an error."""
    first, *rest = argv or ["help"]
    if first in ("-V", "--version", "version"):
        show(f"netkit {__version__}\n")
        raise SystemExit(0)
    if first == "help" and rest and rest[0] not in ("help", "version"):
        return (rest[0], ["--help"]) if rest[0] in COMMANDS else _unknown(rest[0])
    if first in ("-h", "--help", "help"):
        show(_help())
        raise SystemExit(0)
    if first in COMMANDS:
        return first, rest
    return _unknown(first)


def _unknown(first: str) -> NoReturn:
    parser = Parser("netkit")
    if first.startswith("-"):
        parser.error(f"options follow a command, such as echo, and {first!r} is not a command")
    hint = similar(first, COMMANDS) or f"; the commands are {', '.join(COMMANDS)}"
    parser.error(f"there is no command {first!r}{hint}")


def _help() -> str:
    commands = "\n".join(
        f"  {name:<9}{command.text.splitlines()[0].partition(':')[0].rstrip('.')}"
        for name, command in COMMANDS.items()
    )
    return (
        "usage: netkit COMMAND [OPTIONS]\n\n"
        "TCP servers with one thread for each client, and a client to talk to them.\n\n"
        f"commands:\n{commands}\n"
        "  help     Show this help, or that of a COMMAND\n"
        "  version  Show the version, as -V and --version do\n\n"
        f"{_EXAMPLES}\n{_MORE}.\n"
    )


def _add_shared(parser: Parser) -> None:
    parser.add_argument_group("where").add_argument(
        "--host",
        help="host of every ADDRESS that is only a port; '*' for all addresses "
        "(default: 127.0.0.1)",
    )
    groups: dict[str, Any] = {}
    for title in ("time", "limits", "TLS", "logging", "data"):
        groups[title] = parser.add_argument_group(title)
    defaults = Options()
    for name, flag in FLAGS.items():
        groups[_group(name)].add_argument(
            _flag(name),
            default=argparse.SUPPRESS,
            type=flag_value(flag),
            metavar=flag.metavar.replace("SECONDS", "TIME"),
            help=flag.help + _shown(getattr(defaults, name), flag),
        )
    groups["TLS"].add_argument(
        "--tls-self-signed",
        action="store_true",
        help="use TLS with a certificate made at the start, for trials (needs cryptography)",
    )
    groups["logging"].add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="least severe level that is logged to standard error; 'debug' logs each client "
        "(default: %(default)s)",
    )
    groups["logging"].add_argument(
        "--log-format",
        choices=("text", "json"),
        default="text",
        help="text, or one JSON object on each line (default: %(default)s)",
    )


def _group(name: str) -> str:
    if name.startswith(("tls_", "starttls", "handshake_")):
        return "TLS"
    if name.endswith("_timeout") or name == "lifetime":
        return "time"
    return "limits" if name.startswith("max_") or name in _LIMITS else "data"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _shown(default: object, flag: Flag) -> str:
    """The default, for the help. Empty if a text or a file has none."""
    if default is None or default == ():
        return " (default: off)" if flag.type in (int, float) else ""
    if isinstance(default, bool):
        default = "on" if default else "off"
    unit = "s" if flag.metavar == "SECONDS" else ""
    return f" (default: {default:g}{unit})" if unit else f" (default: {default})"


def _worker_count(text: str) -> int:
    return check_workers(int(text) if text.removeprefix("-").isdecimal() else text)


def understand(arguments: argparse.Namespace, words: list[str]) -> dict[str, Any]:
    """Add the handler's name and the addresses to `arguments`, and return the server's options.

    ArgumentError. MissingExtraError or TlsConfigError if a certificate cannot be made.
    """
    try:
        if arguments.command == "serve":
            if not words:
                raise ValueError("a handler is needed: MODULE:NAME, such as app:Shout")
            arguments.handler = handler_name(words.pop(0))
        addresses = endpoints(words)
    except ValueError as error:
        raise ArgumentError(str(error)) from None
    given = {name: value for name, value in vars(arguments).items() if name in FLAGS}
    _check_effects(arguments, addresses, given)
    host = "127.0.0.1" if arguments.host is None else arguments.host
    arguments.addresses = [
        address._replace(host=host) if address.kind == "tcp" and address.host is None else address
        for address in addresses or [Endpoint()]
    ]
    if arguments.command == "greeter":
        _check_greeting(arguments.greeting, given.get("encoding", Options().encoding))
    if given.get("refusal") is not None:
        given["refusal"] = given["refusal"].removesuffix("\n") + "\n"
    if arguments.tls_self_signed:
        given["tls_cert"] = self_signed(*(address.host for address in arguments.addresses))
    return given


def _check_effects(
    arguments: argparse.Namespace, addresses: list[Endpoint], given: dict[str, Any]
) -> None:
    """ArgumentError for an option that would have no effect."""
    alone = [address for address in addresses if address.kind == "tcp" and address.host is None]
    if arguments.host is not None and addresses and not alone:
        raise ArgumentError("--host has no effect: each address names its own")
    on = [name for name, value in given.items() if value is not None]
    if "when_full" in on and not {"max_connections", "profile"} & set(on):
        raise ArgumentError("--when-full has no effect without --max-connections")
    if "refusal" in on and not {*_ADMITTING, "profile"} & set(on):
        raise ArgumentError(f"--refusal has no effect without {_either(_ADMITTING)}")
    style = "--hex" if vars(arguments).get("hex") else "--raw" if vars(arguments).get("raw") else ""
    if style and "max_line" in on:
        raise ArgumentError(f"--max-line has no effect with {style}, which reads no lines")
    unread, reason = _UNREAD.get(arguments.command, ((), ""))
    for name in on:
        if name in unread:
            raise ArgumentError(f"{_flag(name)} has no effect: {arguments.command} {reason}")
    if arguments.tls_self_signed and "tls_cert" in on:
        raise ArgumentError("--tls-self-signed and --tls-cert cannot both be given")
    if "handshake_timeout" in on and not (arguments.tls_self_signed or "tls_cert" in on):
        raise ArgumentError("--handshake-timeout has no effect without --tls-cert")
    passed = os.environ.get("LISTEN_FDS", "0")
    ours = os.environ.get("LISTEN_PID") in (None, str(os.getpid()))
    if passed != "0" and ours and not any(address.kind == "fd" for address in addresses):
        raise ArgumentError(f"systemd has passed sockets (LISTEN_FDS={passed}): name them, as fd:3")


def _check_greeting(text: str, encoding: str) -> None:
    try:
        to_bytes(text, encoding)
    except UnicodeError:
        raise ArgumentError(f"--greeting cannot be written in {encoding}: {text!r}") from None


def _either(names: Sequence[str]) -> str:
    *others, last = map(_flag, names)
    return f"{', '.join(others)} or {last}"


def with_flags(message: str) -> str:
    """A message of the library with flags in the place of the names of options."""

    def named(match: re.Match[str]) -> str:
        return _flag(match[0]) if match[0] in FLAGS else match[0]

    message = re.sub(r"^[a-z]+\b", named, message)
    return re.sub(r"\b[a-z]+(_[a-z]+)+\b", named, message)
