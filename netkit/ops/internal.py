"""The servers that netkit runs for operators, beside those of the program."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ..core.endpoint import Endpoint, Layers
from ..process.channel import SentSocket
from ..server import log
from ..server.server import Server

Placing = Callable[[Endpoint], Endpoint]
"""Returns where to listen instead of at an address; see `netkit.ops.takeover`."""


def unchanged(endpoint: Endpoint) -> Endpoint:
    """Listen at the address itself."""
    return endpoint


class InternalServer(Server):
    """A server of netkit's own, such as the status endpoint.

    Its events are neither logged nor counted, and a program's observers do not see them. What ends
    a handler is logged at the level debug only.
    """

    unobserved = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log the exception being handled, at the level debug."""
        log.logger.debug("a client of an endpoint for operators: %r", sys.exc_info()[1])


class InternalEndpoint:
    """The listeners of an endpoint. One process opens them, and the same or another one serves.

    For one thread at a time. With a process that is spawned, it can be sent with its listeners: the
    constructor of a subclass takes `address` and the listeners.
    """

    def __init__(
        self, address: Any, endpoint: Endpoint, listeners: Sequence[socket.socket]
    ) -> None:
        """Nothing is opened yet. `listeners` are those that another process has opened."""
        self._address = address
        self.endpoint = endpoint
        """What `address` stands for."""
        self._opened: Server | None = None  # has the listeners, and never serves
        self.listeners = listeners
        """Those that `listen`, or the other process, has opened."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._address, *map(SentSocket, self.listeners))

    def listen(self, place: Placing) -> str:
        """Listen where `place` says, and return that for the log. OSError if it cannot be had."""
        opened = InternalServer(None, lambda _: None)
        opened.listen_on(place(self.endpoint))
        self._opened, self.listeners = opened, opened._listeners.sockets
        return opened._listeners.describe()

    def start(self, server: Server, suspended: bool) -> Server:
        """Have `server` serve in the background, and return it. The caller closes it.

        If it is `suspended`, it accepts no client yet. RuntimeError if no thread can be started.
        """
        server.take_over(*self.listeners, layers=(Layers(),) * len(self.listeners))
        if suspended:
            server.suspend()
        return server.start(daemon=True)

    def release(self) -> None:
        """Leave the file of a Unix socket to another program."""
        if self._opened is not None:
            self._opened._listeners.leave_files()

    def claim(self) -> None:
        """Have `close` remove the file of a Unix socket, though another program has made it."""
        assert self._opened is not None  # `listen` has been called
        self._opened._listeners.claim_files()

    def forget(self) -> None:
        """Close this process's copies of the listeners. Idempotent."""
        for listener in self.listeners:
            listener.close()

    def close(self) -> None:
        """Close the listeners, and remove the file of a Unix socket that `listen` has made.

        Idempotent.
        """
        if self._opened is not None:
            self._opened.close()
        self.forget()
