"""Connects to a server, and returns the same `Connection` that a handler gets.

Rules:

1. One deadline (``connect_timeout``) covers every step: the lookup of the name, all attempts, the
   pauses between rounds of attempts, the PROXY header, and the TLS handshake.
2. Whatever is invalid is an error before the first attempt: options, certificates, the name that a
   certificate must have.
3. The block list is asked twice about each address: before the attempt, and about the address that
   was really reached.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import random
import socket
from typing import TYPE_CHECKING, Any

from ..core import events
from ..core.addresses import format_address, format_unix, is_ip
from ..core.backoff import BackOff
from ..core.deadline import Deadline
from ..core.endpoint import Endpoint
from ..core.errors import CancelledError, ConnectError
from ..core.options import TimeLimits
from ..net import sockopts
from ..net.bind import Candidate, explain, look_up, scoped
from ..net.connection import Connection
from .happy_eyeballs import Cancel, Race, Waiter, interleaved
from .introduction import header_of
from .options import FAMILIES, ConnectOptions

if TYPE_CHECKING:
    import ssl

    from typing_extensions import Unpack

    from .signatures import ClientOptions

# The pauses between rounds of attempts (seconds). Up to a half of each is left out at random, so
# that the clients of a server that restarts do not all come at once.
FIRST_PAUSE = 0.25
LONGEST_PAUSE = 10.0


def connect(
    port: int | str | None = None,
    host: str = "localhost",
    *,
    path: str | os.PathLike[str] | None = None,
    **options: Unpack[ClientOptions],
) -> Connection:
    """Connect to a server, and return the `Connection`, which the caller closes.

    `path` names a Unix socket instead of a port; ``"\\0name"`` is an abstract one (Linux).
    `options` are those of `ClientOptions`, such as ``connect_timeout=5`` (for everything together,
    30 seconds by default) and ``tls=True``.

    Raises ConnectError, an OSError that contains the error of each address that was tried. If all
    of these are of one kind, it is also a ConnectionRefusedError, TimeoutError or PermissionError.
    Raises socket.gaierror if the name does not resolve, CancelledError, and with TLS HandshakeError
    and TlsConfigError.
    """
    chosen = ConnectOptions(**options)
    target = _target(port, host, path)
    context = _context(chosen, target)
    deadline = Deadline(chosen.connect_timeout)
    with Waiter(deadline, chosen.cancel) as waiter:
        conn = _attempt(target, chosen, waiter)
    try:
        if chosen.proxy is not None:
            _introduce(conn, chosen, target, deadline)
        if context is not None:
            _start_tls(conn, context, chosen, target, deadline)
        conn._link.set_limits(TimeLimits.of(chosen))
    except BaseException:
        conn.destroy()
        raise
    return conn


def _target(port: int | str | None, host: str, path: Any) -> Endpoint:
    if (port is None) == (path is None):
        raise TypeError("connect() takes a port or a path")
    if port is None:
        return Endpoint.of(path=path)
    endpoint = Endpoint.of(port, host)
    if not isinstance(host, str):
        raise TypeError(f"host must be a name or an address, not {host!r}")
    if not host:
        raise ValueError("host must be a name or an address, not empty")
    return endpoint


def _introduce(
    conn: Connection, options: ConnectOptions, target: Endpoint, deadline: Deadline
) -> None:
    """Send the PROXY header of the options. ValueError if it is too long."""
    header = header_of(options.proxy, conn)
    left = deadline.remaining()
    try:
        with contextlib.nullcontext() if left is None else conn.deadline(left):
            conn.write(header)
    except TimeoutError:
        late = TimeoutError(errno.ETIMEDOUT, "the PROXY header could not be sent in time")
        raise _failure(target, [(conn.peer, late)], timed_out=True) from None


# TLS


def _context(options: ConnectOptions, target: Endpoint) -> ssl.SSLContext | None:
    """Return the context for TLS, or None without TLS. ValueError, TlsConfigError."""
    if options.tls is False:
        return None
    if options.tls is not True:
        context = options.tls
    else:
        from ..tls.context import client_context  # here because most programs do without TLS

        context = client_context(
            options.tls_ca,
            options.tls_cert,
            options.tls_key,
            options.tls_key_password,
            options.tls_alpn,
            options.tls_verify,
        )
    if context.check_hostname and target.host is None and options.server_hostname is None:
        raise ValueError("TLS through a Unix socket needs server_hostname")
    return context


def _start_tls(
    conn: Connection,
    context: ssl.SSLContext,
    options: ConnectOptions,
    target: Endpoint,
    deadline: Deadline,
) -> None:
    def interrupt() -> None:
        conn.interrupt(CancelledError(), hard=True)

    cancel = options.cancel or Cancel()
    cancel.attach(interrupt)
    try:
        # A certificate names no zone, since the same link has another one on another machine.
        hostname = options.server_hostname or (target.host and target.host.partition("%")[0])
        conn.start_tls(context, server_hostname=hostname, timeout=deadline.remaining())
    except TimeoutError:
        late = TimeoutError(errno.ETIMEDOUT, "no TLS handshake in time")
        raise _failure(target, [(conn.peer, late)], timed_out=True) from None
    finally:
        cancel.detach(interrupt)
    if cancel.cancelled:
        raise CancelledError


# Attempts


def _attempt(target: Endpoint, options: ConnectOptions, waiter: Waiter) -> Connection:
    """Return a connection, without TLS, after as many rounds of attempts as needed.

    Raises the errors of `connect`.
    """

    def is_blocked(address: Any) -> bool:
        return blocked is not None and target.host is not None and blocked.check(address[0])

    blocked, back_off = options.block_list, BackOff(FIRST_PAUSE, LONGEST_PAUSE)
    race = Race(functools.partial(_prepare, options), options.attempt_delay, waiter, is_blocked)
    for round_ in range(options.retry + 1):
        try:
            if round_:
                _pause(waiter, back_off.failed())
            waiter.wait(0)  # raises if the call has been cancelled before
            sock = race.run(_candidates(target, options, waiter))
        except TimeoutError:
            raise _failure(target, race.errors, timed_out=True) from None
        except socket.gaierror:
            if round_ == options.retry:
                raise
            continue
        if sock is not None:
            return _connection(sock, target, options, race.attempted)
    raise _failure(target, race.errors)


def _pause(waiter: Waiter, seconds: float) -> None:
    pause = Deadline(seconds * random.uniform(0.5, 1))
    while left := pause.remaining():
        waiter.wait(left)


def _connection(
    sock: socket.socket, target: Endpoint, options: ConnectOptions, attempted: list[str]
) -> Connection:
    try:
        sock.setblocking(True)
        conn = Connection(
            sock,
            None if target.host is not None else target.path,
            encoding=options.encoding,
            max_line=options.max_line,
            max_message=options.max_message,
        )
    except BaseException:  # without an address, if the server has reset it already
        sock.close()
        raise
    conn.attempted_addresses = tuple(attempted)
    return conn


def _failure(
    target: Endpoint, errors: list[tuple[str, OSError]], timed_out: bool = False
) -> ConnectError:
    host, port, path = target.host, target.port, target.path
    where = format_unix(path) if host is None else format_address(host, port)
    failure = ConnectError.of(where, errors, timed_out)
    failure.address, failure.port = (path, None) if host is None else (host, port)
    return failure


def _prepare(options: ConnectOptions, sock: socket.socket) -> None:
    """Set the options that must be set before a socket connects, and bind it to its source."""
    for option, size in (
        (socket.SO_RCVBUF, options.receive_buffer),
        (socket.SO_SNDBUF, options.send_buffer),
    ):
        if size is not None:
            sock.setsockopt(socket.SOL_SOCKET, option, size)
    sockopts.set_no_delay(sock, options.no_delay)
    alive = options.keep_alive
    sockopts.set_keep_alive(sock, bool(alive), *(() if isinstance(alive, bool) else alive))
    if options.tos is not None:
        sockopts.set_tos(sock, options.tos)
    if options.source_address is not None and sock.family != getattr(socket, "AF_UNIX", None):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(scoped(options.source_address))
        except OSError as error:
            raise explain(error, options.source_address, "bind") from None


# Addresses


def _candidates(target: Endpoint, options: ConnectOptions, waiter: Waiter) -> list[Candidate]:
    """Return the addresses of `target`, in the order in which they are to be tried."""
    host, port = target.host, target.port
    if host is None:
        return [Candidate(socket.AF_UNIX, target.path)]
    source = options.source_address
    family = FAMILIES[options.family if source is None else is_ip(source[0])]
    try:
        found = _resolve(host, port, family, options, waiter)
    except (CancelledError, TimeoutError):
        raise
    except (OSError, UnicodeError) as error:  # UnicodeError: no name of RFC 5890
        raise explain(error, (host, port), "connect") from None
    candidates = interleaved(found)
    if not is_ip(host):
        events.emit(events.Resolved(host, tuple(map(str, candidates))))
    return candidates


def _resolve(
    host: str, port: int, family: int, options: ConnectOptions, waiter: Waiter
) -> list[Candidate]:
    numeric = socket.AI_NUMERICHOST
    if is_ip(host.partition("%")[0]):
        return look_up(host, port, family, numeric)
    resolver = options.resolver
    if resolver is None:
        found: list[Candidate] = waiter.call(lambda: look_up(host, port, family))
        return found
    addresses = waiter.call(lambda: list(resolver(host, port)))
    for address in addresses:
        if not isinstance(address, str) or not is_ip(address):
            raise ValueError(f"the resolver must return IP addresses, not {address!r}")
    fitting = [each for each in addresses if family in (0, FAMILIES[is_ip(each)])]
    if not fitting:
        raise socket.gaierror(socket.EAI_NONAME, "the resolver has no address")
    return [each for text in fitting for each in look_up(text, port, family, numeric)]
