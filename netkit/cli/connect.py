"""``netkit connect``, which replaces ``nc`` and ``socat``: its options and its exit status.

After a failure, one line on standard error gives the reason. See docs/connect.md.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ..core.addresses import is_ip
from ..core.endpoint import Endpoint
from ..core.errors import MissingExtraError, TlsConfigError
from ..core.options import Options
from ..core.text import in_bytes, said
from ..net.addresses import SocketAddress
from .arguments import Parser, checked, complain, count, endpoints, flag_of, say
from .conversation import transfer
from .opening import accept, dial
from .stdio import OutputClosedError, is_interactive

_UNSET: Any = object()  # the value of an option that is not given; None is that of ``off``

_EXAMPLES = """\
examples:
  netkit connect 8080                            talk to a server of this machine
  netkit connect --tls example.org:443           the same through TLS
  netkit connect --probe example.org:22          is the port open? See the exit status
  netkit connect unix:/run/app.sock              a Unix socket
  netkit connect --listen '*:9000' --receive f   and, elsewhere: netkit connect HOST:9000 --send f

exit status: 0 done (--probe: open), 1 failed (--probe: not open), 2 wrong use, 130 Ctrl+C,
141 the reader of the output is gone.

Documentation: docs/connect.md in the source, also for the options of nc.
"""

_USAGE = """\
netkit connect [HOST] PORT [OPTIONS]
       netkit connect HOST:PORT | [IPV6]:PORT | unix:PATH | @NAME [OPTIONS]"""

# Options of nc, ncat, socat and openssl s_client, and their replacements.
_HINTS = {
    "-l": "use --listen",
    "-z": "use --probe",
    "-C": "use --crlf",
    "-U": "a Unix socket is written unix:PATH",
    "-s": "use --source ADDRESS",
    "-p": "use --source ADDRESS:PORT, or --listen PORT",
    "-o": "use --receive FILE, with --hex for a dump",
    "-x": "use --hex",
    "-q": "it ends when the server has ended its side; see --idle-timeout",
    "-i": "use --idle-timeout",
    "-k": "--listen takes one client; netkit serve takes any number",
    "-u": "only TCP and Unix sockets are supported",
    "-n": "the name of an address is never looked up",
    "-N": "the end of input is passed on anyway; see --no-half-close",
    "-e": "netkit serve runs a handler for each client",
    "-c": "netkit serve runs a handler for each client",
    "--ssl": "use --tls",
    "--ssl-verify": "use --tls, which verifies the certificate",
    "--ssl-cert": "use --tls-cert",
    "--ssl-key": "use --tls-key",
    "--ssl-trustfile": "use --tls-ca",
    "--ssl-servername": "use --server-name",
    "--servername": "use --server-name",
    "-servername": "use --server-name",
    "-connect": "the address is no option: netkit connect --tls HOST:PORT",
    "-CAfile": "use --tls-ca",
    "-cert": "use --tls-cert",
    "-key": "use --tls-key",
    "-quiet": "only data of the server is shown",
    "--wait": "use -w",
}


SUMMARY = "Talk to a server: send standard input, and write the data that comes back."


def parser() -> Parser:
    """Make the parser of the command's options."""
    parser = Parser("netkit connect", _HINTS, usage=_USAGE, description=SUMMARY, epilog=_EXAMPLES)
    add = parser.add_argument_group("what it does").add_argument
    add("--listen", action="store_true", help="wait for one client there (default host: 127.0.0.1)")
    add("--probe", action="store_true", help="connect and leave: is the port open?")
    add("--send", metavar="FILE", help="send FILE instead of standard input")
    add("--receive", metavar="FILE", help="write received data to FILE, not to standard output")
    add("--crlf", action="store_true", help="end each line that is sent with \\r\\n")
    add("--hex", action="store_true", help="write received data as a hex dump")
    add(
        "--no-half-close",
        action="store_true",
        help="do not pass on the end of input, after which some servers do not reply",
    )
    add("-v", "--verbose", action="store_true", help="report each attempt, and the number of bytes")
    _add_where(parser.add_argument_group("addresses"))
    _add_time(parser.add_argument_group("time (30, 500ms, 5m, 2h, or off)").add_argument)
    _add_tls(parser.add_argument_group("TLS (each option implies --tls)").add_argument)
    return parser


def _add_where(group: Any) -> None:
    add, family = group.add_argument, group.add_mutually_exclusive_group()
    for number in (4, 6):
        family.add_argument(
            f"-{number}",
            dest="family",
            action="store_const",
            const=number,
            default=0,
            help=f"use only IPv{number} addresses",
        )
    add(
        "--source",
        metavar="ADDRESS[:PORT]",
        type=checked(_source),
        help="connect from this address",
    )
    add(
        "--retry",
        metavar="N",
        type=checked(count),
        default=0,
        help="how often to try again if connecting fails, within --timeout (default: 0)",
    )


def _add_time(add: Callable[..., object]) -> None:
    time = checked(Options.rows["idle_timeout"].parse)
    add(
        "--timeout",
        metavar="TIME",
        type=time,
        default=_UNSET,
        help="longest time for connecting (default: 30s), or with --listen until a client connects "
        "(default: off)",
    )
    add(
        "--idle-timeout",
        metavar="TIME",
        type=time,
        default=_UNSET,
        help="longest silence of the other end (default: off)",
    )
    add("-w", metavar="TIME", dest="wait", type=time, default=_UNSET, help="both, as with nc")


def _add_tls(add: Callable[..., object]) -> None:
    add("--tls", action="store_true", help="use TLS, and verify the server's certificate")
    add("--insecure", action="store_true", help="use TLS with any server, verified or not")
    add("--tls-ca", metavar="FILE", help="authorities to trust, instead of the system's")
    add("--server-name", metavar="NAME", help="name in the certificate (default: HOST)")
    add("--tls-cert", metavar="FILE", help="certificate of this end, and its chain")
    add("--tls-key", metavar="FILE", help="key of --tls-cert, if it is not in the same file")
    add(
        "--tls-self-signed",
        action="store_true",
        help="with --listen: a certificate made now, for trials (needs cryptography)",
    )


def _source(text: str) -> tuple[str, int]:
    if is_ip(text):
        return text, 0
    parsed = SocketAddress.parse(text)
    if parsed is None:
        raise ValueError(f"it must be an address such as 10.0.0.1 or 10.0.0.1:4000, not {text!r}")
    return parsed.address, parsed.port


def run(argv: Sequence[str]) -> int:
    """Run the command and return its exit status. SystemExit with status 2 for wrong use."""
    arguments = _read(argv)
    _set_signal_handlers(shows_bars=(arguments.send, arguments.receive) != (None, None))
    try:
        if arguments.probe:
            dial(arguments).destroy()
        else:
            opened = accept if arguments.listen else dial
            conn = transfer(lambda: opened(arguments), arguments)
            if arguments.verbose:
                say(f"{in_bytes(conn.bytes_written)} sent, {in_bytes(conn.bytes_read)} received")
        return 0
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except OutputClosedError:
        return 128 + signal.SIGPIPE
    except (OSError, TlsConfigError, MissingExtraError) as error:
        complain(said(error))
        return 1
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # too late to change the exit status


def _read(argv: Sequence[str]) -> argparse.Namespace:
    reader = parser()
    arguments, words = reader.read(argv)
    try:
        arguments.endpoint = _endpoint(words, arguments.listen)
        _check(arguments)
    except ValueError as error:
        reader.error(str(error))
    _settle(arguments)
    return arguments


def _set_signal_handlers(shows_bars: bool) -> None:
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in a shell's background jobs
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # SIGTERM must not leave a terminal without its cursor, which a bar hides. And the first process
    # of a container gets no signal for which it has no handler (kill(2)). Elsewhere SIGTERM ends
    # the process at once, since Python runs a handler only after a call that is about to block.
    if (shows_bars and is_interactive()) or os.getpid() == 1:
        signal.signal(signal.SIGTERM, lambda signum, _: sys.exit(128 + signum))


def _endpoint(words: list[str], listen: bool) -> Endpoint:
    """Return the address to connect to, or to listen on. ValueError."""
    found = endpoints(words)
    if len(found) != 1:
        wanted = "to listen at" if listen else "to connect to"
        raise ValueError(f"one address {wanted} is needed, such as 8080 or localhost:8080")
    (endpoint,) = found
    plain = Endpoint(endpoint.kind, endpoint.host, endpoint.port, path=endpoint.path)
    if endpoint.kind == "fd" or endpoint != plain:
        raise ValueError("only servers take descriptors, and settings after a '?'")
    if endpoint.kind == "tcp" and endpoint.port == 0 and not listen:
        raise ValueError("port 0, for which the system chooses a port, needs --listen")
    return endpoint


_TLS = ("tls", "insecure", "tls_ca", "server_name", "tls_cert", "tls_key", "tls_self_signed")
_EXCLUDES = {
    "listen": ("probe", "insecure", "tls_ca", "server_name", "retry", "source"),
    "probe": ("send", "receive", "crlf", "hex", "no_half_close", "idle_timeout"),
    "insecure": ("tls_ca",),
    "tls_self_signed": ("tls_cert",),
}


def _check(arguments: argparse.Namespace) -> None:
    given = {
        name for name, value in vars(arguments).items() if value not in (None, False, 0, _UNSET)
    }
    for name, others in _EXCLUDES.items():
        for other in others:
            if name in given and other in given:
                raise ValueError(f"{flag_of(name)} cannot be used with {flag_of(other)}")
    if "tls_key" in given and "tls_cert" not in given:
        raise ValueError("--tls-key needs --tls-cert")
    if "tls_self_signed" in given and "listen" not in given:
        raise ValueError("--tls-self-signed needs --listen")
    if {"tls", "listen"} <= given and not {"tls_cert", "tls_self_signed"} & given:
        raise ValueError("--listen --tls needs --tls-cert or --tls-self-signed")
    if {"send", "receive"} <= given and _is_same_file(arguments.send, arguments.receive):
        raise ValueError("--receive would overwrite the file of --send")
    _check_family(arguments)
    named = {"listen", "insecure", "server_name"} & given
    if arguments.endpoint.kind == "unix" and set(_TLS) & given and not named:
        raise ValueError("TLS through a Unix socket needs --server-name, or --insecure")


def _is_same_file(first: str, second: str) -> bool:
    return all(map(os.path.isfile, (first, second))) and os.path.samefile(first, second)


def _check_family(arguments: argparse.Namespace) -> None:
    """Set `arguments.family` to the family of all addresses. ValueError if they have several."""
    host, (source, _) = arguments.endpoint.host, arguments.source or ("", 0)
    options = [(f"-{arguments.family}", arguments.family), (f"--source {source}", is_ip(source))]
    for option, family in options:
        if family and arguments.endpoint.kind == "unix":
            raise ValueError(f"a Unix socket has no IP address: {option} cannot be used with it")
        for address in (source, host):
            if family and is_ip(address) not in (0, family):
                version = is_ip(address)
                raise ValueError(f"{option} cannot be used with the IPv{version} address {address}")
        arguments.family = arguments.family or family


def _settle(arguments: argparse.Namespace) -> None:
    """Set the options that were not given to their defaults."""
    # An empty value implies TLS, too: a shell variable that is not set must not switch it off.
    arguments.tls = any(getattr(arguments, name) not in (None, False) for name in _TLS)
    wait = arguments.wait
    if arguments.timeout is _UNSET:
        default = None if arguments.listen else 30.0
        arguments.timeout = default if wait is _UNSET else wait
    if arguments.idle_timeout is _UNSET:
        arguments.idle_timeout = None if wait is _UNSET else wait
