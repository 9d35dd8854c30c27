"""Reports the errors of handlers as events: whether the client or the program is to blame."""

from __future__ import annotations

import builtins
import errno
import sys
from collections import deque
from typing import Any

from ..core import events
from ..core.deadline import wait_time
from ..core.errors import PeerError
from ..core.options import Options
from ..net import endings
from ..net.addresses import describe_peer
from ..net.connection import Connection
from ..net.explain import in_seconds, unacknowledged
from .adapting import error_of_handle
from .setup import Configuration

# How many errors of handlers are kept for the end of a `with` block. Each of them keeps the frames
# of its handler alive.
MOST_ERRORS = 100

_Group: Any = getattr(builtins, "BaseExceptionGroup", None)  # from Python 3.11 on


class Reports:
    """Emits the events about the errors of one server's handlers. They name `server`."""

    def __init__(self, configuration: Configuration, server: Any) -> None:
        self._configuration = configuration
        self._server = server
        self._errors: deque[BaseException] = deque()  # thread-safe, and without a lock

    def report(self, connection: Connection | None, client_address: Any) -> None:
        """Emit an event about the exception being handled: whether the client is to blame or not.

        `connection` is None if it is not known whose error it is.
        """
        error = sys.exc_info()[1]
        assert error is not None, "to be called while an exception is being handled"
        cause, is_clients = self.cause_of(error, connection)
        if connection is not None:
            endings.note_error(connection._link, cause, is_clients)
        if not is_clients:
            self.fault(connection, client_address, cause)
        elif connection is None or not _is_probe(connection):
            event = events.ClientFailed(*_ends(connection, client_address, cause))
            events.emit(event, self._server)

    def cause_of(
        self, error: BaseException, connection: Connection | None
    ) -> tuple[BaseException, bool]:
        """Return the error to report for `error` of a handler, and whether the client caused it."""
        # If the client is gone, the error of `finish` must not hide that of `handle`.
        for each in (error, error_of_handle(error)):
            if not _is_clients(each, connection):
                return each, False
        return self._explained(error, connection), True

    def fault(
        self, connection: Connection | None, client_address: Any, error: BaseException
    ) -> None:
        """Emit an event about an error that is not the client's. Keep it for `raise_errors`."""
        if self._configuration.setup.options.raise_errors and len(self._errors) < MOST_ERRORS:
            self._errors.append(error)
        events.emit(events.HandlerFailed(*_ends(connection, client_address, error)), self._server)

    def raise_errors(self) -> None:
        """Raise the errors that have been kept, if any, and forget them."""
        errors = [self._errors.popleft() for _ in range(len(self._errors))]
        if len(errors) > 1 and _Group is not None:
            raise _Group(f"{len(errors)} errors of handlers", errors)
        if errors:
            raise errors[0]

    def forget(self) -> None:
        """Forget the errors that have been kept."""
        self._errors.clear()

    def of_hook(self, name: str, error: BaseException) -> None:
        """Emit an event about an error of an overridden hook."""
        events.emit(events.HookFailed(name, error), self._server)

    def _explained(self, error: BaseException, connection: Connection | None) -> BaseException:
        """Return `error`, or one that names the limit, where Python only says "timed out"."""
        options = self._configuration.setup.options
        if connection and isinstance(error, TimeoutError) and error.errno is None:
            name, limit = limit_of_calls(options)
            if limit is not None and limit == connection.socket.gettimeout():
                text = f"{connection.peer} kept a read or a write waiting for {in_seconds(limit)}"
                return TimeoutError(errno.ETIMEDOUT, f"{name}: {text}")
        if connection and options.write_timeout is not None and isinstance(error, OSError):
            return unacknowledged(error, options.write_timeout, connection.peer)
        return error


def limit_of_calls(options: Options) -> tuple[str, float | None]:
    """The option that limits each call of a socket that its handler reads, and its seconds."""
    for name in ("idle_timeout", "read_timeout", "write_timeout"):
        if getattr(options, name) is not None:
            return name, wait_time(getattr(options, name))
    return "", None


def _ends(
    connection: Connection | None, client_address: Any, error: BaseException
) -> tuple[int, str, BaseException, str]:
    """The attributes of an event about `error`: id, peer, error and local address."""
    number, local = (connection.id, connection.local) if connection else (0, "")
    return number, describe_peer(client_address), error, local


def _is_probe(connection: Connection) -> bool:
    """Whether the client has only looked whether the server is there, as health checks do."""
    header, reason = connection.proxy, connection.end_reason
    is_check = header is not None and header.command == "LOCAL"
    return reason == "probe" or (is_check and reason == "reset")


def _is_clients(error: BaseException, connection: Connection | None) -> bool:
    """Whether the client is to blame for an error of its handler."""
    return isinstance(error, PeerError) or bool(connection and connection.is_to_blame(error))
