"""The command line: ``python -m netkit`` and, once installed, ``netkit``.

The exit status is 0 after a graceful stop, 1 after a failure, 2 after wrong use, and 130 after a
second Ctrl+C. Status lines go to standard error; standard output is for data.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ..core.addresses import MAX_PORT
from ..core.errors import Failure, MissingExtraError, TlsConfigError, WorkersFailedError
from ..net.bind import candidates
from ..process.signals import StopSignals
from ..server import log
from ..server.handlers import EchoHandler, GreeterHandler
from ..server.log_config import configure_logging, is_configured
from ..server.server import Server, create_server
from .arguments import ArgumentError, complain
from .commands import COMMANDS, command, understand, with_flags
from .loading import load
from .output import CommandLogger, Output

if TYPE_CHECKING:
    from ..process.supervisor import Workers

_SAFE_PATH = "PYTHONSAFEPATH"  # as `python -P`
_SUGGESTED_PORTS = 20  # after a port in use that are tried, to suggest one


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's) and return its exit status."""
    name, rest = command(sys.argv[1:] if argv is None else argv)
    parser = COMMANDS[name].parser()
    arguments, words = parser.read(rest)
    if name == "connect":
        from .connect import run  # here because servers do without

        return run(arguments, words, parser.error)
    arguments.command = name
    try:
        options = understand(arguments, words)
        _set_up_logging(arguments)
        handler, settings = _handler_or_stand_in(arguments)
        with settings.get("output") or contextlib.nullcontext():
            try:
                server = create_server(handler, handler_args=settings, **options)
                workers = _workers(server, arguments)
            except (TypeError, ValueError) as error:
                if isinstance(error, TlsConfigError):
                    raise
                raise ArgumentError(with_flags(str(error))) from None
            return _serve(server, workers, arguments)
    except ArgumentError as error:
        parser.error(str(error))
    except (Failure, WorkersFailedError, TlsConfigError, MissingExtraError) as error:
        if arguments.log_format == "json":
            log.logger.error("%s", error)
        else:
            complain(str(error))
        return 1


def drop_unwritten() -> None:
    """Drop buffered output that cannot be written (a full disk, a closed pipe).

    To be called in the end: else Python would try to write it again, and exit with status 120.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)


# The handlers


def _handler_or_stand_in(arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """As `_handler`, without a module that workers load, so that a reload loads it anew."""
    if arguments.command != "serve" or arguments.workers == 1:
        return _handler(arguments)
    from ..process.recipe import to_be_loaded

    return to_be_loaded, {}


def _handler(arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The handler of the command, and its arguments."""
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
    """Keep a Python that is started meanwhile from importing modules of the current folder first.

    For spawned workers (from Python 3.11 on). The parent itself runs no code but netkit's.
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


def _set_up_logging(arguments: argparse.Namespace) -> None:
    configure_logging(arguments.log_level, arguments.log_format)
    log.show_listeners(len(arguments.addresses) > 1)


def _load_in_worker(arguments: argparse.Namespace, safe_path: str | None = None) -> Any:
    """The handler. `safe_path` is the value of `_SAFE_PATH` for programs that it starts."""
    _restore_safe_path(safe_path)
    if not is_configured():  # it has not been forked
        _set_up_logging(arguments)
    return _handler(arguments)[0]


def _workers(server: Server, arguments: argparse.Namespace) -> Workers | None:
    if arguments.workers == 1:
        return None
    from ..process.supervisor import Workers  # here because most programs have one process

    load = partial(_load_in_worker, arguments, os.environ.get(_SAFE_PATH))
    return Workers(server, arguments.workers, load)


def _serve(server: Server, workers: Workers | None, arguments: argparse.Namespace) -> int:
    # Once it has stopped, no later signal may change the exit status.
    with StopSignals(afterwards=signal.SIG_IGN) as signals, contextlib.closing(server):
        try:
            server.listen_on(*arguments.addresses)
        except (OSError, ValueError) as error:
            raise Failure(_why_not(error)) from None
        if workers is not None:
            with _safe_path():
                return workers.supervise(signals).exit_status
        return signals.supervise(server).exit_status


def _why_not(error: OSError | ValueError) -> str:
    port = getattr(error, "port", None)
    if getattr(error, "errno", None) == errno.EADDRINUSE and port is not None:
        return _in_use(port, getattr(error, "address", ""))
    return str(getattr(error, "strerror", None) or error)


def _in_use(port: int, host: str) -> str:
    hint = ", or leave it out"
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
