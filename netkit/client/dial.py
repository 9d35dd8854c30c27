"""Connects to a host or a Unix socket, in several rounds of attempts if necessary."""

from __future__ import annotations

import errno
import functools
import random
import socket
from typing import Any

from ..core import events
from ..core.addresses import format_address, format_unix, is_ip
from ..core.backoff import BackOff
from ..core.deadline import Deadline
from ..core.endpoint import Endpoint
from ..core.errors import CancelledError, ConnectError
from ..net import sockopts
from ..net.bind import Candidate, explain, look_up, scoped
from ..net.connection import Connection
from .happy_eyeballs import Race, Waiter, interleaved
from .options import FAMILIES, ConnectOptions

# The pauses between rounds of attempts (seconds). Each is twice as long as the one before, less up
# to a half at random, so that the clients of a server that restarts do not come all at once.
FIRST_PAUSE = 0.25
LONGEST_PAUSE = 10.0


def target(port: int | str | None, host: str, path: Any) -> Endpoint:
    """Make the endpoint of parameters of `connect`. TypeError, ValueError if they are invalid."""
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


class Dialler:
    """One call of `connect`."""

    def __init__(self, target: Endpoint, options: ConnectOptions, waiter: Waiter) -> None:
        self._target = target
        self._options = options
        self._waiter = waiter
        self._attempted: list[Candidate] = []
        self._errors: list[tuple[str, OSError]] = []

    def connect(self) -> Connection:
        """Return the connection, without TLS. Errors as of `netkit.connect`."""
        back_off = BackOff(FIRST_PAUSE, LONGEST_PAUSE)
        for round_ in range(self._options.retry + 1):
            try:
                if round_:
                    self._wait(back_off.failed() * random.uniform(0.5, 1))
                sock = self._try_all()
            except TimeoutError:
                raise self._failure(timed_out=True) from None
            except socket.gaierror:
                if round_ == self._options.retry:
                    raise
                continue
            if sock is not None:
                return self._connection(sock)
        raise self._failure()

    def _wait(self, seconds: float) -> None:
        pause = Deadline(seconds)
        while left := pause.remaining():
            self._waiter.wait(left)

    def _try_all(self) -> socket.socket | None:
        self._errors = []
        self._waiter.wait(0)  # it may be cancelled before it begins
        race = Race(
            self._permitted(self._candidates()),
            functools.partial(_prepare, self._options),
            self._options.attempt_delay,
            self._waiter,
            self._verify,
        )
        try:
            return race.run()
        finally:
            self._attempted += race.attempted
            self._errors += [(str(candidate), error) for candidate, error in race.errors]

    def _candidates(self) -> list[Candidate]:
        host, port = self._target.host, self._target.port
        if host is None:
            return [Candidate(socket.AF_UNIX, self._target.path)]
        source = self._options.source_address
        family = FAMILIES[self._options.family if source is None else is_ip(source[0])]
        try:
            found = self._resolve(host, port, family)
        except (OSError, UnicodeError) as error:
            if isinstance(error, (CancelledError, TimeoutError)):
                raise
            raise explain(error, (host, port), "connect") from None
        candidates = interleaved(found)
        if not is_ip(host):
            events.emit(events.Resolved(host, tuple(map(str, candidates))))
        return candidates

    def _resolve(self, host: str, port: int, family: int) -> list[Candidate]:
        if is_ip(host.partition("%")[0]):
            return look_up(host, port, family, socket.AI_NUMERICHOST)
        resolver = self._options.resolver
        if resolver is None:
            return self._waiter.call(lambda: look_up(host, port, family))
        addresses = self._waiter.call(lambda: list(resolver(host, port)))
        for address in addresses:
            if not isinstance(address, str) or not is_ip(address):
                raise ValueError(f"the resolver must return IP addresses, not {address!r}")
        fitting = [each for each in addresses if family in (0, FAMILIES[is_ip(each)])]
        if not fitting:
            raise socket.gaierror(socket.EAI_NONAME, "the resolver has no address")
        numeric = socket.AI_NUMERICHOST
        return [each for text in fitting for each in look_up(text, port, family, numeric)]

    def _permitted(self, candidates: list[Candidate]) -> list[Candidate]:
        permitted = []
        for candidate in candidates:
            error = self._blocked(candidate.address)
            if error is None:
                permitted.append(candidate)
            else:
                self._errors.append((str(candidate), error))
                events.emit(events.AttemptFailed(str(candidate), error))
        return permitted

    def _blocked(self, address: Any) -> OSError | None:
        blocked = self._options.block_list
        if blocked is None or self._target.host is None or not blocked.check(address[0]):
            return None
        return PermissionError(errno.EACCES, "the address is blocked")

    def _verify(self, sock: socket.socket) -> OSError | None:
        """Return an error if a socket has reached a blocked address, or None.

        The system may connect to another address than it was given: Linux connects to 127.0.0.1
        instead of 0.0.0.0.
        """
        if self._options.block_list is None:
            return None
        try:
            return self._blocked(sock.getpeername())
        except OSError as error:  # it has been reset already, so its address is unknown
            return error

    def _connection(self, sock: socket.socket) -> Connection:
        options = self._options
        try:
            sock.setblocking(True)
            conn = Connection(
                sock,
                None if self._target.host is not None else self._target.path,
                encoding=options.encoding,
                max_line=options.max_line,
                max_message=options.max_message,
            )
        except BaseException:  # without an address, if the server has reset it already
            sock.close()
            raise
        conn.attempted_addresses = tuple(map(str, self._attempted))
        return conn

    def _failure(self, timed_out: bool = False) -> ConnectError:
        host, port, path = self._target.host, self._target.port, self._target.path
        where = format_unix(path) if host is None else format_address(host, port)
        failure = ConnectError.of(where, self._errors, timed_out)
        failure.address, failure.port = (path, None) if host is None else (host, port)
        return failure


def _prepare(options: ConnectOptions, sock: socket.socket) -> None:
    """Set the options that must be set before a socket connects, such as its buffers."""
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
