"""``netkit connect``: what ``nc`` and ``socat`` are used for; see docs/connect.md.

The exit status says what happened, and standard error in one line why.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from . import binding, events, unixsocket
from .addresses import SocketAddress, check_port, describe_peer, is_ip
from .connection import Connection
from .errors import TlsConfigError
from .options import check_seconds
from .stdio import OutputClosedError
from .unixsocket import SocketFile

EXAMPLES = """\
examples:
  netkit connect 8080                          talk to a server of this machine
  netkit connect --tls example.org 443         the same through TLS
  netkit connect --probe example.org 22        is the port open? The exit status tells
  netkit connect unix:/run/app.sock            a Unix socket
  netkit connect --listen '*' 9000 --receive f and, elsewhere: netkit connect HOST 9000 --send f

exit status: 0 done (--probe: open), 1 failed (--probe: not open), 2 wrong use, 130 Ctrl+C,
141 nobody reads the output any more.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.set_defaults(fail=parser.error)
    add = parser.add_argument
    add("host", metavar="HOST", nargs="?", help="default: localhost, with --listen 127.0.0.1")
    add("port", metavar="PORT", type=_checked(_port), help="from 1 to 65535, or unix:PATH")
    add("--listen", action="store_true", help="wait for one client there instead")
    add("--probe", action="store_true", help="only see whether somebody listens there")
    add("--tls", action="store_true", help="through TLS, if the server's certificate is good")
    add("--insecure", action="store_true", help="through TLS, whoever the server is")
    add("--tls-ca", metavar="FILE", help="whom to trust, instead of those whom the system does")
    add("--send", metavar="FILE", help="send FILE instead of standard input")
    add("--receive", metavar="FILE", help="write what comes to FILE, not to standard output")
    add("--crlf", action="store_true", help="end the lines that are sent with \\r\\n")
    add("--hex", action="store_true", help="write what comes as a hex dump")
    add(
        "--no-half-close",
        action="store_true",
        help="do not tell the server of the end of input: it may take it for the end of all",
    )
    seconds = _checked(_seconds)
    add(
        "--timeout",
        metavar="SECONDS",
        type=seconds,
        default=30.0,
        help="how long connecting may take (default: %(default)g)",
    )
    add("--idle-timeout", metavar="SECONDS", type=seconds, help="give up after so much silence")
    add(
        "--retry",
        metavar="N",
        type=_checked(_count),
        default=0,
        help="if it fails, try to connect so often again, within --timeout",
    )
    add("--source", metavar="ADDRESS[:PORT]", type=_checked(_source), help="connect from there")
    add("-v", "--verbose", action="store_true", help="tell what is tried, and how much came")


def _checked(check: Callable[[str], Any]) -> Callable[[str], Any]:
    def argument(text: str) -> Any:
        try:
            return check(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return argument


def _port(text: str) -> int | str:
    return text.removeprefix("unix:") if text.startswith("unix:") else check_port(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise ValueError(f"it must be a number of seconds, not {text!r}") from None
    check_seconds("it", seconds, zero=False)
    return seconds


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"it must be 0 or more, not {text!r}")
    return int(text)


def _source(text: str) -> tuple[str, int]:
    if is_ip(text):
        return text, 0
    parsed = SocketAddress.parse(text)
    if parsed is None:
        raise ValueError(f"an address such as 10.0.0.1 or 10.0.0.1:4000, not {text!r}")
    return parsed.address, parsed.port


def run(arguments: argparse.Namespace) -> int:
    """Do what `arguments` say, and return the exit status; SystemExit for a wrong use."""
    from .conversing import transfer  # here because servers do without

    _check(arguments, arguments.fail)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as shells have it in background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if arguments.probe:
            _dial(arguments).destroy()
        else:
            opened = _accept if arguments.listen else _dial
            conn = transfer(lambda: opened(arguments), arguments)
            if arguments.verbose:
                _say(f"{conn.bytes_written} bytes sent, {conn.bytes_read} bytes received")
        return 0
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except OutputClosedError:
        return 128 + signal.SIGPIPE
    except (OSError, TlsConfigError) as error:
        _say(f"netkit: error: {getattr(error, 'strerror', None) or error}")
        return 1
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the exit status is known


def _check(arguments: argparse.Namespace, fail: Callable[[str], NoReturn]) -> None:
    given = [name for name, value in vars(arguments).items() if value not in (None, False, 0)]
    for name, others in {
        "listen": ("probe", "tls", "insecure", "tls_ca", "retry", "source"),
        "probe": ("send", "receive", "crlf", "hex", "no_half_close", "idle_timeout"),
    }.items():
        for other in others:
            if name in given and other in given:
                fail(f"--{name} does not go with --{other.replace('_', '-')}")
    for name in ("insecure", "tls_ca"):
        if name in given and not arguments.tls:
            fail(f"--{name.replace('_', '-')} needs --tls")
    if isinstance(arguments.port, str) and arguments.host is not None:
        fail("a Unix socket has no host")
    if arguments.port == 0 and not arguments.listen:
        fail("port 0 is only for --listen: the system chooses then")


def _say(text: str) -> None:
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(text, file=sys.stderr, flush=True)


# To the other end


def _dial(arguments: argparse.Namespace) -> Connection:
    from .client import connect

    if arguments.insecure:
        _say("netkit: warning: --insecure: anybody can pass for the server")
    path = isinstance(arguments.port, str)
    with _telling(arguments.verbose):
        conn = connect(
            None if path else arguments.port,
            arguments.host or "localhost",
            path=arguments.port if path else None,
            connect_timeout=arguments.timeout,
            source_address=arguments.source,
            retry=arguments.retry,
            tls=arguments.tls,
            tls_ca=arguments.tls_ca,
            tls_verify=not arguments.insecure,
        )
    if arguments.verbose:
        secured = f" with {conn.tls.version}" if conn.tls is not None else ""
        _say(f"connected to {conn.peer}{secured}")
    return conn


@contextlib.contextmanager
def _telling(wanted: bool) -> Iterator[None]:
    """Tell of each attempt meanwhile."""
    unsubscribe = events.subscribe(_tell) if wanted else bool
    try:
        yield
    finally:
        unsubscribe()


def _tell(event: events.Event) -> None:
    if isinstance(event, events.AttemptStarted):
        _say(f"trying {event.address}")
    elif isinstance(event, events.AttemptFailed):
        _say(f"{event.address}: {event.error.strerror}")


def _accept(arguments: argparse.Namespace) -> Connection:
    listener, file = _listener(arguments.port, arguments.host)
    with listener:
        _say(f"listening on {describe_peer(listener.getsockname())}")
        try:
            sock, address = listener.accept()
        finally:
            if file is not None:
                file.remove()
    conn = Connection(sock, address)
    if arguments.verbose:
        _say(f"{conn.peer} connected")
    return conn


def _listener(port: int | str, host: str | None) -> tuple[socket.socket, SocketFile | None]:
    """One that listens, and the file to remove in the end."""
    if isinstance(port, str):
        return _bound(unixsocket.family(), port)
    *others, last = binding.candidates("127.0.0.1" if host is None else host, port)
    for family, address in others:
        try:
            return _bound(family, address)
        except OSError as error:
            if not binding.worth_another(error):
                raise
    return _bound(*last)


def _bound(family: int, address: Any) -> tuple[socket.socket, SocketFile | None]:
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.socket(family))
        file = None
        if isinstance(address, str):
            file = unixsocket.bind(sock, address, backlog=1)
        else:
            _bind(sock, address)
        stack.pop_all()
    return sock, file


def _bind(sock: socket.socket, address: Any) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        binding.prepare(sock, reuse_port=False)
        sock.bind(address)
        sock.listen(1)
    except OSError as error:
        raise binding.explain(error, address) from None
