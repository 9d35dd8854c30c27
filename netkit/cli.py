"""The command line: ``python -m netkit`` and, once installed, ``netkit``.

Exit status: 0 after a graceful stop, 1 for what failed, 2 for a wrong use, 130 after a second
Ctrl+C. Status lines go to standard error; standard output is for data.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from . import __version__, connecting, logs
from .addresses import MAX_PORT
from .binding import candidates
from .endpoints import Endpoint
from .errors import Failure, MissingExtraError, TlsConfigError, WorkersFailedError
from .handlers import EchoHandler, GreeterHandler
from .loading import handler_name, load
from .options import FLAGS, Flag, Options, check_switch, check_workers
from .output import CommandLogger, Output
from .server import Server, create_server
from .signals import StopSignals

if TYPE_CHECKING:
    from .workers import Workers

_EXAMPLES = """\
examples:
  python -m netkit echo 8080             then, in another window: nc localhost 8080
  python -m netkit logger 8080 --hex     what clients send, as a hex dump
  python -m netkit greeter --host '*'    on every address, at a port that the system chooses
  python -m netkit echo 8080 unix:/tmp/x on a port and a Unix socket
  python -m netkit serve app:Shout 8080  with the handler Shout, class or function, of app.py
  python -m netkit connect 8080          talk to a server, as with nc; see connect --help

Ctrl+C stops a server gracefully: clients get --drain-timeout seconds to finish what is under way.
A second Ctrl+C ends it at once.
"""

_SAFE_PATH = "PYTHONSAFEPATH"  # as `python -P`
_SUGGESTED_PORTS = 20  # how many ports after one in use are looked at for a free one


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's) and return its exit status."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.command == "connect":
        return connecting.run(arguments)
    logs.configure(sys.stderr, arguments.log_level, arguments.log_format)
    try:
        handler, settings = _handler_or_stand_in(arguments)
        with settings.get("output") or contextlib.nullcontext():
            try:
                server = create_server(handler, handler_args=settings, **_options(arguments))
                workers = _workers(server, arguments)
            except (TlsConfigError, MissingExtraError) as error:
                raise Failure(str(error)) from None
            except (TypeError, ValueError) as error:
                parser.error(str(error))
            return _serve(server, workers, arguments)
    except (Failure, WorkersFailedError) as failure:
        with contextlib.suppress(OSError):
            print(f"netkit: error: {failure}", file=sys.stderr)
        return 1


def drop_unwritten() -> None:
    """Forget what standard error does not take (its disk is full, its reader is gone).

    To be called in the end: else Python would try again, and end with a status of its own, 120.
    """
    if sys.stderr is None:
        return
    try:
        sys.stderr.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stderr.fileno())
        os.close(null)


# The arguments


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, instead of two with the whole usage first."""

    def _print_message(self, message: str, file: Any = None) -> None:
        with contextlib.suppress(OSError):  # the status says it, too
            super()._print_message(message, file)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _parser() -> _Parser:
    parser = _Parser(
        prog="netkit",
        description="TCP servers with one thread for each client, and a client to talk to them.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"netkit {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    shared = _shared_arguments()

    def add(name: str, text: str, *parents: _Parser) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=_EXAMPLES,
            parents=[*parents, shared],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    workers = _workers_argument()
    add("echo", "Send every client back what it sends.", workers)
    _add_logger_arguments(
        add("logger", "Report who comes and goes, and write what they send to the output.")
    )
    greeter = add("greeter", "Greet every client and hang up.", workers)
    greeter.add_argument(
        "--greeting",
        metavar="TEXT",
        default=GreeterHandler.greeting,
        help="{address} and {port} in it stand for the client's",
    )
    name = _Parser(add_help=False)
    name.add_argument(
        "handler",
        metavar="MODULE:NAME",
        type=_checked(handler_name),
        help="a function or class in a module of the current directory, or an installed one",
    )
    add("serve", "Serve with a handler of your own.", name, workers)
    _add_connect(commands)
    return parser


def _add_connect(commands: Any) -> None:
    text = "Talk to a server: standard input goes to it, and what it sends to standard output."
    connecting.add_arguments(
        commands.add_parser(
            "connect",
            help=text,
            description=text,
            epilog=connecting.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )


def _add_logger_arguments(logger: argparse.ArgumentParser) -> None:
    style = logger.add_mutually_exclusive_group()
    style.add_argument("--hex", action="store_true", help="write a hex dump instead of lines")
    style.add_argument("--raw", action="store_true", help="write the bytes as they come, unescaped")
    logger.add_argument("--output", metavar="FILE", help="append to FILE, not to standard output")
    # One process: its output is one stream of lines, and once that is gone, nobody serves.
    logger.set_defaults(workers=1)


def _workers_argument() -> _Parser:
    parser = _Parser(add_help=False)
    parser.add_argument(
        "--workers",
        metavar="N|auto",
        default=1,
        type=_checked(_worker_count),
        help="how many processes serve: 'auto' for as many as suit this machine, "
        "if many clients are busy at once (default: %(default)s)",
    )
    return parser


def _shared_arguments() -> _Parser:
    parser = _Parser(add_help=False)
    parser.add_argument(
        "addresses",
        metavar="ADDRESS",
        nargs="*",
        default=(),
        type=_checked(Endpoint.parse),
        help="a port, HOST:PORT, [IPV6]:PORT, unix:PATH, unix:PATH?mode=660, @NAME or fd:N, or "
        "several of them; without one the system chooses a port, and a line tells",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="the name or address to listen on, where there is only a port, '*' for every one "
        "(default: %(default)s)",
    )
    defaults = Options()
    for name, flag in FLAGS.items():
        default = getattr(defaults, name)
        parser.add_argument(
            "--" + name.replace("_", "-"),
            default=argparse.SUPPRESS,  # what is not given is left to `Options`
            type=_on_or_off if flag.check is check_switch else _flag_value(flag),
            metavar=flag.metavar,
            help=f"{flag.help} (default: {_shown(default)})",
        )
    parser.add_argument(
        "--tls-self-signed",
        action="store_true",
        help="speak TLS with a certificate made now, for trying it out (needs netkit-tcp[tls])",
    )
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="the least that is reported on standard error (default: %(default)s)",
    )
    parser.add_argument(
        "--log-format",
        choices=("text", "json"),
        default="text",
        help="how it is reported (default: %(default)s)",
    )
    return parser


def _checked(check: Callable[[str], Any]) -> Callable[[str], Any]:
    def argument(text: str) -> Any:
        try:
            return check(text)
        except (TypeError, ValueError, LookupError, OSError) as error:
            text = str(error)
            if isinstance(error, OSError):
                text = f"{error.strerror}: {error.filename!r}"
            raise argparse.ArgumentTypeError(text.removeprefix("it: ")) from None

    return argument


def _flag_value(flag: Flag) -> Callable[[str], Any]:
    def value(text: str) -> Any:
        try:
            found = flag.type(text)
        except ValueError:
            if flag.type not in (int, float):
                raise
            kind = {"N": "a number"}.get(flag.metavar, f"a number of {flag.metavar.lower()}")
            raise ValueError(f"it must be {kind}, not {text!r}") from None
        flag.check("it", found)
        return found

    return _checked(value)


def _worker_count(text: str) -> int:
    return check_workers(int(text) if text.removeprefix("-").isdecimal() else text)


@_checked
def _on_or_off(text: str) -> bool:
    if text not in ("on", "off"):
        raise ValueError(f"on or off, not {text!r}")
    return text == "on"


def _shown(default: object) -> object:
    if default is True:
        return "on"
    return default or "off"


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    options = {name: value for name, value in vars(arguments).items() if name in FLAGS}
    if "refusal" in options:
        options["refusal"] = options["refusal"].removesuffix("\n") + "\n"
    if arguments.tls_self_signed:
        if "tls_cert" in options:
            raise ValueError("--tls-self-signed and --tls-cert cannot both be given")
        options["tls_cert"] = _self_signed(arguments.host)
    return options


def _self_signed(host: str) -> bytes:
    from .certificates import self_signed

    names = dict.fromkeys(["localhost", "127.0.0.1", "::1", host])
    return b"".join(self_signed([name for name in names if name not in ("", "*")]))


# The handlers


def _handler_or_stand_in(arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """As `_handler`; but what workers load, so that a reload gets it anew, is not loaded here."""
    if arguments.command != "serve" or arguments.workers == 1:
        return _handler(arguments)
    from .worker import to_be_loaded

    return to_be_loaded, {}


def _handler(arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The handler that the command names, and its arguments."""
    if arguments.command == "echo":
        return EchoHandler, {}
    if arguments.command == "greeter":
        return GreeterHandler, {"greeting": arguments.greeting.removesuffix("\n") + "\n"}
    if arguments.command == "logger":
        style = "hex" if arguments.hex else "raw" if arguments.raw else "text"
        return CommandLogger, {"style": style, "output": Output(arguments.output)}
    return load(arguments.handler), {}


# Serving


@contextlib.contextmanager
def _safe_path() -> Iterator[None]:
    """Meanwhile, a Python that is started does not import from the current folder first.

    That is for spawned workers (from Python 3.11 on): the parent itself runs no code but netkit's.
    """
    before = os.environ.get(_SAFE_PATH)
    os.environ[_SAFE_PATH] = "1"
    try:
        yield
    finally:
        _restore_safe_path(before)


def _restore_safe_path(value: str | None) -> None:
    if value is None:
        os.environ.pop(_SAFE_PATH, None)
    else:
        os.environ[_SAFE_PATH] = value


def _load_in_worker(arguments: argparse.Namespace, safe_path: str | None = None) -> Any:
    """The handler. `safe_path`: what the environment of its programs has for `_SAFE_PATH`."""
    _restore_safe_path(safe_path)
    if not logs.logger.handlers:  # it has not been forked
        logs.configure(sys.stderr, arguments.log_level, arguments.log_format)
    return _handler(arguments)[0]


def _workers(server: Server, arguments: argparse.Namespace) -> Workers | None:
    if arguments.workers == 1:
        return None
    from .workers import Workers  # here because most programs have one process

    load = partial(_load_in_worker, arguments, os.environ.get(_SAFE_PATH))
    return Workers(server, arguments.workers, load)


def _serve(server: Server, workers: Workers | None, arguments: argparse.Namespace) -> int:
    # Once it has stopped, the exit status is the report: no later signal may change it.
    with StopSignals(afterwards=signal.SIG_IGN) as signals:
        try:
            server.listen_on(*_endpoints(arguments))
        except (OSError, ValueError) as error:
            raise Failure(_why_not(error)) from None
        if workers is not None:
            with _safe_path():
                return workers.supervise(signals).exit_status
        return signals.supervise(server).exit_status


def _endpoints(arguments: argparse.Namespace) -> list[Endpoint]:
    return [
        address._replace(host=arguments.host) if address.host is None else address
        for address in arguments.addresses or [Endpoint()]
    ]


def _why_not(error: OSError | ValueError) -> str:
    port = getattr(error, "port", None)
    if not isinstance(error, OSError) or error.errno != errno.EADDRINUSE or port is None:
        return str(getattr(error, "strerror", None) or error)
    host = getattr(error, "address", "")
    hint = ", or none, and the system chooses"
    free = _free_port_after(port, host)
    if free:
        hint = f", such as {free}{hint}"
    where = "" if host in ("0.0.0.0", "::") else f" of {host}"
    return f"port {port}{where} is in use: try another one{hint}"


def _free_port_after(port: int, host: str) -> int | None:
    for candidate in range(port + 1, min(port + _SUGGESTED_PORTS, MAX_PORT) + 1):
        family, address = candidates(host, candidate)[0]
        with contextlib.suppress(OSError), socket.socket(family) as probe:
            probe.bind(address)
            return candidate
    return None
