"""The common part of the commands that serve: options, addresses, the life of the server."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import socket
from collections.abc import Container, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..core import events
from ..core.addresses import MAX_PORT
from ..core.endpoint import Endpoint
from ..core.errors import Failure, MissingExtraError, TlsConfigError, WorkersFailedError
from ..core.options import Options
from ..core.record import NamedTuple
from ..core.text import said
from ..net.bind import candidates
from ..net.gate import gate_active
from ..net.service_manager import service_manager
from ..ops.attachment import Operations
from ..process.hooks import Hooks
from ..process.service import supervise
from ..process.signals import StopSignals
from ..server import log
from ..server.log_config import configure_logging, is_configured
from ..server.server import Server, create_server
from .arguments import (
    COMMANDS,
    EXAMPLES,
    MORE,
    ArgumentError,
    complain,
    endpoints,
    flag_of,
    self_signed,
    show,
)
from .environment import ADDRESSES, EnvironmentParser, named, words_of
from .flags import add_flags, as_given, check_addresses, check_effects, check_layers

if TYPE_CHECKING:
    from ..process.supervisor import Workers
    from .checking import Module

_ADDRESSES = """\
ADDRESS is PORT, HOST:PORT, [IPV6]:PORT, HOST PORT, unix:PATH, unix:PATH?mode=660, @NAME (an
abstract Unix socket), systemd: (the sockets that systemd has passed), systemd:NAME (those with this
FileDescriptorName) or fd:N (a descriptor). There may be several. Without an address the system
chooses a port of 127.0.0.1. With --tls-cert, an address that ends in ?tls=off is without TLS. With
?proxy=on, each connection begins with a PROXY header, from one of the proxies of --proxy-from.

Each option may also be a variable of the environment: NETKIT_MAX_LINE=80 for --max-line 80,
NETKIT_PREFIX=on for an option without a value, and NETKIT_ADDRESSES for the addresses. An option or
an address on the command line wins.
"""

# Options that some other servers have, and what to write instead.
_HINTS = {
    **dict.fromkeys(("--port", "-p"), "write the port alone, as in netkit echo 8080"),
    **dict.fromkeys(("-v", "--verbose"), "use --log-level debug"),
    "-l": "a server listens without it",
}

_SAFE_PATH = "PYTHONSAFEPATH"  # as `python -P`
_SUGGESTED_PORTS = 20  # the number of ports after one in use of which a free one is suggested


class Served(NamedTuple):
    """A server that does not listen yet, and what serves with it."""

    server: Server
    attachment: Operations
    hooks: Hooks | None = None
    workers: Workers | None = None


class Command:
    """A command that serves. A subclass has the handler, and the flags that only it has.

    `words` come in its usage before the addresses. The flags of `without` do not exist for it, and
    those of `unread` are errors, since its handler does not read such input; `instead` is the
    reason in these errors.
    """

    name: str
    words = ""
    without: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    instead = ""

    def add_flags(self, group: Any) -> None:
        """Add the flags of this command alone to a group of `argparse`."""

    def take(self, arguments: argparse.Namespace, words: list[str]) -> None:
        """Move the words before the addresses from `words` to `arguments`. ValueError."""

    def handler(self, arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
        """Return the handler and its arguments. Failure; ArgumentError for an invalid flag."""
        raise NotImplementedError  # pragma: no cover - each subclass has its own

    def load(self, arguments: argparse.Namespace) -> Any:
        """Return the handler or the `Application` of a worker process, in this process."""
        return self.handler(arguments)[0]

    def complete(
        self, server: Server, arguments: argparse.Namespace
    ) -> tuple[Server, Hooks | None]:
        """Return the server that is to serve in this process, and its hooks, if any.

        `server` has `handler`. Failure, ArgumentError.
        """
        return server, None

    def module(self, arguments: argparse.Namespace) -> Module | None:
        """Return the module that `complete` has loaded, for ``--check``; None if there is none."""
        return None

    def kind_of_workers(self, arguments: argparse.Namespace) -> type[Workers]:
        """Return the class of what starts worker processes."""
        from ..process.supervisor import Workers  # here because most have one process

        return Workers

    def has_parent(self, arguments: argparse.Namespace) -> bool:
        """Whether a parent starts worker processes; otherwise this process serves itself."""
        return bool(arguments.workers != 1)

    def check(
        self, given: Container[str], arguments: argparse.Namespace, addresses: list[Endpoint]
    ) -> None:
        """ArgumentError if a flag that is `given`, or a setting of an address, has no effect."""
        check_effects(given, arguments)
        check_layers(given, arguments, addresses)

    def parser(self) -> EnvironmentParser:
        """Make the parser of the command's flags and variables."""
        parser = EnvironmentParser(
            f"netkit {self.name}",
            _HINTS,
            usage=f"netkit {self.name} {self.words}[ADDRESS ...] [OPTIONS]",
            description=f"{COMMANDS[self.name]}\n\n{_ADDRESSES}",
            epilog=f"{EXAMPLES}\n{MORE}.",
        )
        groups = add_flags(parser, self.without)
        text = "show what holds and where each value is from, and end: nothing is bound"
        groups["what it does"].add_argument("--check", action="store_true", help=text)
        text = "take the listeners of the program at --control over, which then stops"
        groups["for operators"].add_argument("--take-over", action="store_true", help=text)
        self.add_flags(groups["what it does"])
        return parser

    def understand(self, arguments: argparse.Namespace, words: list[str]) -> dict[str, Any]:
        """Complete `arguments`, and return the options of the server.

        ArgumentError. MissingExtraError or TlsConfigError if a certificate cannot be made.
        """
        try:
            self.take(arguments, words)
            addresses = endpoints(words) or _from_environment()
            source = "command line" if words else ADDRESSES if addresses else "default"
            arguments.addresses_from = source
        except ValueError as error:
            raise ArgumentError(str(error)) from None
        given = arguments.given
        check_addresses(given, addresses)
        for name in filter(given.__contains__, self.unread):
            raise ArgumentError(f"{flag_of(name)} has no effect: {self.name} {self.instead}")
        for name in _without_effect(arguments, addresses) & {*arguments.variables}:
            delattr(arguments, name)
        self.check(given, arguments, addresses)
        if arguments.take_over and arguments.control is None:
            raise ArgumentError(f"{named('take_over', arguments)} has no effect without --control")
        arguments.addresses = [
            each._replace(host=arguments.host) if each.kind == "tcp" and each.host is None else each
            for each in addresses or [Endpoint()]
        ]
        options = {name: value for name, value in vars(arguments).items() if name in Options.rows}
        if options.get("refusal") is not None:
            options["refusal"] = options["refusal"].removesuffix("\n") + "\n"
        if arguments.tls_self_signed:
            options["tls_cert"] = self_signed(*(each.host for each in arguments.addresses))
        arguments.options = tuple(options)
        return options

    def run(self, argv: Sequence[str]) -> int:
        """Serve until a signal ends it, and return the exit status. SystemExit for wrong use."""
        parser = self.parser()
        service_manager()  # removes its variables before any process is started
        arguments, words = parser.read(argv)
        try:
            options = self.understand(arguments, words)
            set_up_logging(arguments)
            handler, settings = self.handler(arguments)
            with settings.get("output") or contextlib.nullcontext():
                server = self._made(arguments, options, handler, settings)
                if arguments.check:
                    return self._check(server, arguments, parser)
                return self._serve(server, arguments)
        except ArgumentError as error:
            parser.error(str(error))
        except (Failure, WorkersFailedError, TlsConfigError, MissingExtraError) as error:
            if getattr(error, "exit_status", 1) == 2:  # of a worker
                parser.error(str(error))
            if arguments.log_format == "json":
                log.logger.error("%s", error)
            else:
                complain(str(error))
            return 1

    def _made(
        self, arguments: argparse.Namespace, options: dict[str, Any], handler: Any, settings: Any
    ) -> Served:
        try:
            attachment = operations_of(arguments)
            server = create_server(handler, handler_args=settings, **options)
            if arguments.check or not self.has_parent(arguments):
                server, hooks = self.complete(server, arguments)
                return Served(server, attachment, hooks)
            load = partial(load_in_worker, self, arguments, os.environ.get(_SAFE_PATH))
            kind = self.kind_of_workers(arguments)
            workers = kind(server, arguments.workers, load, attachment=attachment)
            return Served(server, attachment, workers=workers)
        except (TlsConfigError, Failure):
            raise
        except (TypeError, ValueError) as error:
            raise ArgumentError(as_given(str(error), arguments.variables)) from None

    def _check(
        self, served: Served, arguments: argparse.Namespace, parser: EnvironmentParser
    ) -> int:
        from .checking import Check

        flags = parser.variables().values()
        try:
            show(str(Check(served.server, arguments, flags, self.module(arguments))))
        except (OSError, ValueError) as error:
            raise Failure(_why_not(error)) from None
        return 0

    def _serve(self, served: Served, arguments: argparse.Namespace) -> int:
        server, attachment, hooks, workers = served
        # Once it has stopped, no later signal may change the exit status.
        with contextlib.ExitStack() as stack:
            survives = attachment.survives_terminal
            signals = stack.enter_context(StopSignals(signal.SIG_IGN, survives))
            stack.callback(server.close)
            stack.callback(attachment.close)
            try:
                place = attachment.placing(stack)
                server._listeners.when_open = partial(attachment.open, (server,))
                server.listen_on(*map(place, arguments.addresses))
            except (OSError, ValueError) as error:
                raise Failure(_why_not(error)) from None
            if workers is None:
                return supervise((server,), signals, None, hooks, attachment).exit_status
            _set_safe_path("1")
            return workers.supervise(signals).exit_status


def _from_environment() -> list[Endpoint]:
    """Return the addresses in NETKIT_ADDRESSES. ValueError, which names the variable."""
    try:
        return endpoints(words_of(ADDRESSES))
    except ValueError as error:
        text = str(error).removeprefix(f"{ADDRESSES}: ")
        raise ValueError(f"{ADDRESSES}: {text}") from None


def _without_effect(arguments: argparse.Namespace, addresses: list[Endpoint]) -> set[str]:
    """Return the options whose variables are ignored."""
    of_key = {"tls_key", "tls_key_password"} if arguments.tls_self_signed else set()
    return of_key if any(each.proxy for each in addresses) else of_key | {"proxy_from"}


def set_up_logging(arguments: argparse.Namespace) -> None:
    """Log to standard error, as the flags say."""
    configure_logging(arguments.log_level, arguments.log_format)
    log.logger.debug("netkit %s, gate %s", __version__, "on" if gate_active() else "off")
    events.show_listeners(len(arguments.addresses) > 1)


def operations_of(arguments: argparse.Namespace) -> Operations:
    """Return what the flags switch on for operators. ValueError for an invalid address."""
    return Operations(
        arguments.status,
        arguments.control,
        arguments.access_log,
        arguments.stuck,
        partial(_prepare_front, arguments),
        takes_over=arguments.take_over,
    )


def _prepare_front(arguments: argparse.Namespace) -> None:  # pragma: no cover - when spawned
    """Set up the log of the process that answers operators."""
    if not is_configured():  # the process has not been forked
        set_up_logging(arguments)


# Worker processes


def load_in_worker(command: Command, arguments: argparse.Namespace, safe_path: str | None) -> Any:
    """Return what `Command.load` returns, in a worker process.

    `safe_path` is the value of PYTHONSAFEPATH for programs that the handler starts.
    """
    _set_safe_path(safe_path)
    if not is_configured():  # the process has not been forked
        set_up_logging(arguments)
    return command.load(arguments)


def _set_safe_path(value: str | None) -> None:
    """Set PYTHONSAFEPATH, by which new processes do not import from the current folder first.

    It is for spawned workers, from Python 3.11 on. The parent itself runs no code but netkit's.
    """
    if value is None:
        os.environ.pop(_SAFE_PATH, None)
    else:
        os.environ[_SAFE_PATH] = value


# Failures to listen


def _why_not(error: OSError | ValueError) -> str:
    port, host = getattr(error, "port", None), getattr(error, "address", "")
    if port is None or getattr(error, "errno", None) != errno.EADDRINUSE:
        return said(error)
    where = "" if host in ("0.0.0.0", "::") else f" of {host}"
    free = _free_port_after(port, host)
    such = f", such as {free}" if free else ""
    return f"port {port}{where} is in use: try another one{such}, or leave it out"


def _free_port_after(port: int, host: str) -> int | None:
    for candidate in range(port + 1, min(port + _SUGGESTED_PORTS, MAX_PORT) + 1):
        family, address = candidates(host, candidate)[0]
        with contextlib.suppress(OSError), socket.socket(family) as probe:
            probe.bind(address)
            return candidate
    return None
