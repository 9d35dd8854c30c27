"""``netkit connect``, which replaces ``nc`` and ``socat``: its options and its exit status.

After a failure, one line on standard error gives the reason. See docs/connect.md.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from ..core.addresses import SocketAddress, is_ip
from ..core.endpoint import Endpoint
from ..core.errors import MissingExtraError, TlsConfigError
from ..core.options import Options
from ..core.text import in_bytes, said
from ..net.files import OutputError
from .arguments import COMMANDS, Parser, checked, complain, count, endpoints, flag_of, say
from .conversation import transfer
from .opening import accept, dial
from .stdio import is_interactive

# The time after which a wait is interrupted, if no handler of a signal has ended it (seconds).
_MOMENT = 0.05

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

# Options of nc, ncat, socat and openssl s_client, by their replacements.
_REPLACED = {
    "use --listen": "-l",
    "use --probe": "-z",
    "use --crlf": "-C",
    "a Unix socket is written unix:PATH": "-U",
    "use --source ADDRESS": "-s",
    "use --source ADDRESS:PORT, or --listen PORT": "-p",
    "use --receive FILE, with --hex for a dump": "-o",
    "use --hex": "-x",
    "it ends when the server has ended its side; see --idle-timeout": "-q",
    "use --idle-timeout": "-i",
    "--listen takes one client; netkit serve takes any number": "-k",
    "only TCP and Unix sockets are supported": "-u",
    "the name of an address is never looked up": "-n",
    "the end of input is passed on anyway; see --no-half-close": "-N",
    "netkit serve runs a handler for each client": "-c -e",
    "use --tls": "--ssl",
    "use --tls, which verifies the certificate": "--ssl-verify",
    "use --tls-cert": "--ssl-cert -cert",
    "use --tls-key": "--ssl-key -key",
    "use --tls-ca": "--ssl-trustfile -CAfile",
    "use --server-name": "--ssl-servername --servername -servername",
    "the address is no option: netkit connect --tls HOST:PORT": "-connect",
    "only data of the server is shown": "-quiet",
    "use -w": "--wait",
}
_HINTS = {option: advice for advice, options in _REPLACED.items() for option in options.split()}

# Each option, the name of its value if it has one, and its help, by the headings of the help.
_OPTIONS = {
    "what it does": [
        ("--listen", "", "wait for one client there (default host: 127.0.0.1)"),
        ("--probe", "", "connect and leave: is the port open?"),
        ("--send", "FILE", "send FILE instead of standard input"),
        ("--receive", "FILE", "write received data to FILE, not to standard output"),
        ("--crlf", "", "end each line that is sent with \\r\\n"),
        ("--hex", "", "write received data as a hex dump"),
        ("--no-half-close", "", "keep back the end of input; some servers do not reply after it"),
        ("-v --verbose", "", "report each attempt, and the number of bytes"),
    ],
    "addresses": [
        ("-4", "", "use only IPv4 addresses"),
        ("-6", "", "use only IPv6 addresses"),
        ("--source", "ADDRESS[:PORT]", "connect from this address"),
        ("--proxy", "v1|v2|local", "begin with a PROXY header, as proxies and their checks do"),
        ("--proxy-client", "ADDRESS[:PORT]", "pretend to be a proxy of this client (--proxy v2)"),
        ("--retry", "N", "how often to try again within --timeout (default: 0)"),
    ],
    "time (30, 500ms, 5m, 2h, or off)": [
        ("--timeout", "TIME", "longest wait for a connection (default: 30s, with --listen: off)"),
        ("--idle-timeout", "TIME", "longest silence of the other end (default: off)"),
        ("-w", "TIME", "both, as with nc"),
    ],
    "TLS (each option implies --tls)": [
        ("--tls", "", "use TLS, and verify the server's certificate"),
        ("--insecure", "", "use TLS with any server, verified or not"),
        ("--tls-ca", "FILE", "authorities to trust, instead of the system's"),
        ("--server-name", "NAME", "name in the certificate (default: HOST)"),
        ("--tls-cert", "FILE", "certificate of this end, and its chain"),
        ("--tls-key", "FILE", "key of --tls-cert, if it is not in the same file"),
        ("--tls-self-signed", "", "--listen with a trial certificate (needs cryptography)"),
    ],
}


def parser() -> Parser:
    """Make the parser of the command's options. Times become attributes only if they are given."""
    summary = COMMANDS["connect"]
    parser = Parser("netkit connect", _HINTS, usage=_USAGE, description=summary, epilog=_EXAMPLES)
    time = checked(Options.rows["idle_timeout"].parse)
    family = {"dest": "family", "action": "store_const", "default": 0}
    kinds: dict[str, dict[str, Any]] = {
        "-4": {**family, "const": 4},
        "-6": {**family, "const": 6},
        "TIME": {"metavar": "TIME", "type": time, "default": argparse.SUPPRESS},
        "N": {"metavar": "N", "type": checked(count), "default": 0},
        "ADDRESS[:PORT]": {"metavar": "ADDRESS[:PORT]", "type": checked(_source)},
        "v1|v2|local": {"metavar": "v1|v2|local", "type": checked(_header)},
        "": {"action": "store_true"},
    }
    for title, options in _OPTIONS.items():
        group = parser.add_argument_group(title)
        families = group.add_mutually_exclusive_group()
        for names, value, help in options:
            kind = kinds.get(names) or kinds.get(value, {"metavar": value})
            add = families.add_argument if names in kinds else group.add_argument
            add(*names.split(), help=help, **kind)
    return parser


def _header(text: str) -> str:
    if text not in ("v1", "v2", "local"):
        raise ValueError(f"it must be v1, v2 or local, not {text!r}")
    return text


def _source(text: str) -> tuple[str, int]:
    if is_ip(text):
        return text, 0
    parsed = SocketAddress.parse(text)
    if parsed is None:
        raise ValueError(f"it must be an address such as 10.0.0.1 or 10.0.0.1:4000, not {text!r}")
    return parsed.address, parsed.port


def run(argv: Sequence[str]) -> int:
    """Run the command and return its exit status. SystemExit with status 2 for wrong use."""
    reader = parser()
    arguments, words = reader.read(argv)
    try:
        arguments.endpoint = _endpoint(words, arguments.listen)
        _check(arguments)
    except ValueError as error:
        reader.error(str(error))
    _settle(arguments)
    _set_signal_handlers(shows_bars=(arguments.send, arguments.receive) != (None, None))
    try:
        with _interruptible():
            if arguments.probe:
                dial(arguments).destroy()
                return 0
            opened = accept if arguments.listen else dial
            conn = transfer(lambda: opened(arguments), arguments)
        if arguments.verbose:
            say(f"{in_bytes(conn.bytes_written)} sent, {in_bytes(conn.bytes_read)} received")
        return 0
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except (OSError, TlsConfigError, MissingExtraError) as error:
        if isinstance(error, OutputError) and error.errno == errno.EPIPE:
            return 128 + signal.SIGPIPE
        complain(said(error))
        return 1
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # too late to change the exit status


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Have each signal interrupt the main thread while the ``with`` block runs, also before a wait.

    If a signal comes just before a wait, Python runs its handler only after the wait. But Python
    writes the number of the signal to a descriptor at once. A thread reads that, and interrupts the
    wait by another signal, which has no other effect.
    """
    main = threading.get_ident()
    reading, writing = socket.socketpair()
    writing.setblocking(False)

    def interrupt() -> None:
        while signals := reading.recv(100):
            if {*signals} - {signal.SIGURG} and not select.select([reading], [], [], _MOMENT)[0]:
                signal.pthread_kill(main, signal.SIGURG)

    signal.signal(signal.SIGURG, lambda *_: None)
    thread = threading.Thread(target=interrupt, name="netkit-interrupter", daemon=True)
    thread.start()
    former = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(former)
        writing.close()
        thread.join()
        reading.close()


def _set_signal_handlers(shows_bars: bool) -> None:
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in a shell's background jobs
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # SIGTERM must not leave the cursor in the row of a bar. And the first process of a container
    # gets no signal for which it has no handler (kill(2)). Elsewhere SIGTERM ends the process.
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
    "listen": (
        *("probe", "insecure", "tls_ca", "server_name", "retry", "source"),
        *("proxy", "proxy_client"),
    ),
    "probe": ("send", "receive", "crlf", "hex", "no_half_close", "idle_timeout"),
    "insecure": ("tls_ca",),
    "tls_self_signed": ("tls_cert",),
}


def _check(arguments: argparse.Namespace) -> None:
    given = {name for name, value in vars(arguments).items() if value not in (None, False, 0)}
    for name in filter(given.__contains__, _EXCLUDES):
        for other in filter(given.__contains__, _EXCLUDES[name]):
            raise ValueError(f"{flag_of(name)} cannot be used with {flag_of(other)}")
    if "tls_key" in given and "tls_cert" not in given:
        raise ValueError("--tls-key needs --tls-cert")
    if "tls_self_signed" in given and "listen" not in given:
        raise ValueError("--tls-self-signed needs --listen")
    if "proxy_client" in given and arguments.proxy == "local":
        raise ValueError("--proxy-client cannot be used with --proxy local")
    if {"tls", "listen"} <= given and not {"tls_cert", "tls_self_signed"} & given:
        raise ValueError("--listen --tls needs --tls-cert or --tls-self-signed")
    files = (arguments.send, arguments.receive)
    if None not in files and all(map(os.path.isfile, files)) and os.path.samefile(*files):
        raise ValueError("--receive would overwrite the file of --send")
    _check_family(arguments)
    named = {"listen", "insecure", "server_name"} & given
    if arguments.endpoint.kind == "unix" and set(_TLS) & given and not named:
        raise ValueError("TLS through a Unix socket needs --server-name, or --insecure")


def _check_family(arguments: argparse.Namespace) -> None:
    """Set `arguments.family` to the family of all addresses. ValueError if they have several."""
    host, (source, _) = arguments.endpoint.host, arguments.source or ("", 0)
    options = {f"-{arguments.family}": arguments.family, f"--source {source}": is_ip(source)}
    for option, family in options.items():
        if family and arguments.endpoint.kind == "unix":
            raise ValueError(f"a Unix socket has no IP address: {option} cannot be used with it")
        for address in (source, host):
            version = is_ip(address)
            if family and version not in (0, family):
                raise ValueError(f"{option} cannot be used with the IPv{version} address {address}")
        arguments.family = arguments.family or family


def _settle(arguments: argparse.Namespace) -> None:
    """Set the options that were not given to their defaults."""
    # An empty value implies TLS, too: a shell variable that is not set must not switch it off.
    arguments.tls = any(getattr(arguments, name) not in (None, False) for name in _TLS)
    defaults = {"timeout": None if arguments.listen else 30.0, "idle_timeout": None}
    for name, default in defaults.items():
        if name not in arguments:
            setattr(arguments, name, getattr(arguments, "w", default))
