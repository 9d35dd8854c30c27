"""The methods of a server that a program calls. They lead to the parts of the server.

The hooks of `socketserver`, which a program overrides, are in `netkit.server.hooks`.
"""

from __future__ import annotations

import os
import socket
import socketserver
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..core import events
from ..core.addresses import SocketAddress
from ..core.endpoint import DIRECT, Endpoint, Layers
from ..core.kinds import check_count, check_seconds
from ..core.options import Options
from ..net import bind
from ..net.bound import BoundSocket
from ..net.connection import Connection
from . import log, reload
from .admission import Places
from .hooks import HookedServer
from .life import State
from .registry import StopReport
from .serving import no_handler
from .subclassing import Shown

if TYPE_CHECKING:
    import ssl

    from typing_extensions import Self, Unpack

    from .signatures import AnyHandler, ServerOptions

events.subscribe(log.write, log.logger.isEnabledFor)  # the level of the logger decides


class Server(HookedServer):
    """A TCP server with a thread for each client. Replaces `socketserver.ThreadingTCPServer`.

    ``Server(server_address, handler)`` binds at once, as in `socketserver`;
    ``create_server(handler)`` makes a server that binds when `listen` is called. `handler` is a
    request handler class, a `Handler` class or a function that takes a `Connection`. `options` are
    those of `ServerOptions`.

    A ``with`` block closes the server at its end. If `listen` has bound the server, it also serves
    in the background. With the option `raise_errors`, the block raises the error of a handler, or
    an exception group of several (before Python 3.11, the first), unless it raises one itself.

    All methods may be called from any thread; `shutdown`, `server_close`, `stop` and `close` also
    from handlers and signal handlers.
    """

    def __init__(
        self,
        server_address: Any,
        RequestHandlerClass: AnyHandler | None,
        bind_and_activate: bool = True,
        **options: Unpack[ServerOptions],
    ) -> None:
        """As in `socketserver`. The server is not bound if `server_address` is None, see `listen`.

        TypeError or ValueError for an invalid address, handler or option; OSError, with `address`
        and `port`, if the address cannot be bound.
        """
        server_address = bind.checked(server_address)
        given = Options(**options)
        tls = reload.make_tls_context(given)
        self._configuration.change(lambda setup: setup.with_options(given, tls))
        socketserver.BaseServer.__init__(self, server_address, RequestHandlerClass)  # type: ignore[arg-type]
        if server_address is not None:
            family = bind.family_of(server_address, self.address_family)
            self._listeners.make_socket(family, server_address)
            if bind_and_activate:
                self._listeners.bind_and_activate()

    # Listening

    def listen(
        self,
        port: int | str = 0,
        host: str | None = None,
        *,
        backlog: int | None = None,
        path: str | os.PathLike[str] | None = None,
        mode: int | None = None,
        owner: str | None = None,
        fd: int | None = None,
        sock: socket.socket | BoundSocket | None = None,
        ipv6_only: bool = False,
        reuse_port: bool = False,
        exclusive: bool = False,
        tls: bool | None = None,
        proxy: bool = False,
    ) -> Self:
        """Bind and listen; returns the server itself.

        With `port` 0 the system chooses the port, see `address`. Without a `host` the server
        listens on every address, IPv6 and IPv4; if `host` is a name, on the first of its addresses
        that can be bound. With `reuse_port`, other servers that use it may listen there, too. Or
        instead of a port:

        - `path`, of a Unix socket, or an abstract name on Linux (``"\\0name"``). Its file gets
          `mode` (0o660) and `owner` (``"user:group"``) before anybody can connect. The file of a
          dead server is removed first, and the server's own when it stops;
        - `fd`, an inherited descriptor, or `sock`, a bound socket or `BoundSocket`. The server
          closes it when it stops.

        `backlog` is how many clients the kernel queues until they are accepted (511; the system may
        allow fewer). An `exclusive` listener is not for worker processes. `tls` tells whether
        clients speak TLS from the first byte on; by default they do if the options ask for it and
        `starttls` is off. With `proxy`, a PROXY header comes first on each connection, from one of
        the proxies in the option `proxy_from`. A server that was closed may listen again.

        ServerStateError if it listens already, or is stopped meanwhile; TypeError or ValueError for
        invalid arguments; OSError (with `address`, `port` and `syscall`) if the address cannot be
        bound, and socket.gaierror, which is one, if the name does not resolve.
        """
        given = (port, host, path, mode, owner, fd, ipv6_only, reuse_port)
        if sock is not None and given != (0, None, None, None, None, None, False, False):
            raise TypeError("sock is bound: only backlog, exclusive, proxy and tls may go with it")
        flags = {"ipv6_only": ipv6_only, "reuse_port": reuse_port, "tls": tls, "proxy": proxy}
        place = Endpoint.of(port, host, path=path, fd=fd, mode=mode, owner=owner, **flags)
        self._listeners.open([place if sock is None else sock], backlog, exclusive, place.layers)
        return self

    def listen_on(
        self,
        *addresses: str | int | Endpoint,
        backlog: int | None = None,
        exclusive: bool = False,
    ) -> Self:
        """As `listen`, on each of `addresses`; returns the server itself.

        An address is a port, or text: ``8080``, ``*:8080``, ``localhost:8080``, ``[::1]:8080``,
        ``unix:/run/app.sock``, ``@name`` (Linux), ``fd:3``, or ``systemd:NAME`` and ``systemd:``
        for sockets that systemd has passed. After a ``?`` it may have settings, with ``&`` between
        them: ``ipv6_only=on`` and ``reuse_port=on`` for TCP, ``mode=660`` and ``owner=user:group``
        for a Unix socket, ``tls=on`` (or off) and ``proxy=on`` for each. If the server cannot
        listen on one of them, it listens on none.
        """
        if not addresses:
            raise TypeError("listen_on() needs at least one address")
        self._listeners.open([*map(Endpoint.from_any, addresses)], backlog, exclusive, DIRECT)
        return self

    def take_over(self, *listeners: socket.socket, layers: tuple[Layers, ...]) -> None:
        """In a worker process, serve on the listeners of its parent. No hook is called."""
        self._drain.workers = None  # a forked process has those of its parent
        self._listeners.take_over(*listeners, layers=layers)

    @Shown
    def listening(self) -> bool:
        """Whether the server is bound and has not been stopped."""
        return self._life.state is State.LISTENING

    @Shown
    def address(self) -> SocketAddress | Any:  # so that a program may ask for `address.port`
        """The first of `addresses`: a `SocketAddress`, or a Unix socket's path. None if empty."""
        return next(self._listeners.addresses(), None)

    @Shown
    def addresses(self) -> tuple[SocketAddress | str, ...]:
        """All addresses on which the server listens; empty unless `listening`."""
        return tuple(self._listeners.addresses())

    # Options

    def suspend(self) -> None:
        """Accept no client until `resume`: new clients wait in the kernel's queue."""
        self._admission.suspend()

    def resume(self) -> None:
        """Accept clients again."""
        self._admission.suspend(False)

    def configure(self, **options: Unpack[ServerOptions]) -> None:
        """Change options of the constructor. They hold for new clients, not for connected ones.

        A `profile` changes all options that it sets, except those given beside it. Errors as of the
        constructor; nothing is changed then. A worker process changes its own options alone, and
        not the number of connections that all processes may have together.
        """
        reload.configure(self._configuration, options, self._listeners.check_layers)

    def reload(self) -> bool:
        """Read again what the options name by file: certificates, and lists of addresses.

        A handler's setting (`handler_args`) that has a method `reopen`, such as a log file, is
        reopened. A file that cannot be read, or is invalid, leaves its option as it is, and is
        logged; then the result is False. SIGHUP does this in a program that calls `run` or `serve`.
        """
        return reload.reload(self._configuration, self)

    def reload_tls(self) -> bool:
        """As `reload`, for certificates and keys only. New connections have the new ones."""
        return reload.reload_tls(self._configuration, self)

    @property
    def can_reload(self) -> bool:
        """Whether there is something to `reload`."""
        return reload.can_reload(self._options)

    def tls_context(self) -> ssl.SSLContext | None:
        """The context for the TLS of new clients; None if the server has no TLS."""
        return self._configuration.setup.tls

    def share_places(self, places: Places) -> None:
        """Have `max_connections` hold for all worker processes together. For worker processes."""
        self._admission.share(places)

    # Serving

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Accept clients until `shutdown`, `stop` or `close` is called.

        It does not poll. An overridden `service_actions` is called every `poll_interval` seconds
        and after each client; `handle_timeout` is called whenever no client comes for `timeout`
        seconds. If another thread is serving already, waits until it has ended. Returns at once if
        `shutdown` was called before the server ever served. ServerStateError if the server is not
        bound, or closed.
        """
        self._serving.forever(poll_interval)

    def start(self, daemon: bool = False) -> Self:
        """Serve in the background, in a thread of its own; returns the server itself.

        The thread keeps the process alive until the server is stopped. After the main thread has
        ended, Ctrl+C stops the server gracefully. (CPython 3.12 starts no thread after that, so its
        main thread should wait, in `run` for instance.) With `daemon`, the server is stopped when
        the program ends, as by `server_close`. ServerStateError if the server is serving already,
        is not bound, or closed.
        """
        self._serving.in_background(daemon)
        return self

    def handle_request(self) -> None:
        """Accept one client, which is served in a thread of its own.

        Calls `handle_timeout` if no client comes for `timeout` seconds. Returns at once while the
        server stops. ServerStateError if the server is not bound, or closed.
        """
        self._serving.once()

    def __iter__(self) -> Iterator[Connection]:
        """Accept clients in the calling thread, and yield their connections, until it is stopped.

        The program closes each `Connection`, in any thread. The handler is not called. All limits
        hold. Clients that the kernel has queued when the server is stopped are not served;
        connected ones have the usual time to finish. ServerStateError as for `start`.
        """
        return self._serving.iterate()

    @Shown
    def connections(self) -> tuple[Connection, ...]:
        """The open connections, the oldest first."""
        return self._connections.live()

    @Shown
    def connection_count(self) -> int:
        """The number of open connections."""
        return len(self._connections.live())

    @Shown
    def refused_count(self) -> int:
        """How many clients a limit or a list has refused so far."""
        return self._refusals.count

    def wait_for_connections(self, count: int, timeout: float | None = None) -> bool:
        """Wait until at least `count` connections are open, or, if it is 0, until none is.

        Returns False after `timeout` seconds. TypeError or ValueError for an invalid number.
        """
        check_count("count", count)
        if timeout is not None:
            check_seconds("timeout", timeout)
        return self._connections.wait_for(count, timeout)

    def request_stop(
        self, timeout: float | None = None, patience: float = 0.0, delay: float = 0.0
    ) -> None:
        """Have `serve_forever` end after `delay` seconds. For signal handlers, too: it never waits.

        `timeout` and `patience` hold for the next `stop` that is called without a `timeout`. All
        times (seconds) are as for `stop`.
        """
        self._drain.request(timeout, patience, delay)

    def shutdown(self) -> None:
        """End `serve_forever`, and wait until it has ended, which takes milliseconds.

        Clients stay connected, and new ones are queued until the server serves again or is closed.
        In the serving thread (in a signal handler or a hook) it does not wait. If the server has
        never served, the next `serve_forever` returns at once.
        """
        self._accept_loop.request_stop()
        self._accept_loop.wait_for_end()

    def stop(
        self, timeout: float | None = None, patience: float = 0.0, delay: float = 0.0
    ) -> StopReport:
        """Stop gracefully, and report how many clients finished and how many were cut.

        For `delay` seconds the server still serves, but is not ready. Then it accepts clients that
        the kernel has queued, and no others. For `patience` seconds clients are served as before.
        Then idle clients see the end of their input, and busy ones get `timeout` seconds (by
        default the option `drain_timeout`) before they are cut. Idempotent. A second call, from
        another thread, waits for the first, and the shorter times count. A handler that calls this
        does not wait for its own connection; a later call of another thread, and the interpreter's
        exit, do. In the serving thread (in a signal handler or a hook) this only requests the stop
        and returns an empty report. The thread stops the server before `serve_forever` returns.
        """
        return self._drain.stop(timeout, patience, delay)

    def close(self) -> StopReport:
        """Stop now: as ``stop(0)``, with no time for busy clients."""
        return self.stop(0)

    def server_close(self) -> None:
        """As `stop`, without a report and within `drain_timeout`. Idempotent.

        If `block_on_close` is False, it closes the listeners and leaves the clients connected.
        """
        self._drain.close()

    def __repr__(self) -> str:
        """Show the state, the addresses and the number of open connections."""
        text = self._life.state.value
        if self._life.state in (State.LISTENING, State.DRAINING):
            more = len(self._listeners.more)
            where = self._listeners.describe() + (f" and {more} more" if more else "")
            text += f" on {where}, {len(self._connections.live())} connected"
        return f"<{type(self).__name__} {text}>"

    def __enter__(self) -> Self:
        has_handler = self._configuration.setup.handler is not no_handler
        if self._listeners.by_listen and has_handler and not self._accept_loop.under_way:
            self.start()
        return self


def create_server(handler: AnyHandler = no_handler, **options: Unpack[ServerOptions]) -> Server:
    """Return a server that is not bound yet: ``create_server(handler).listen(8080)``.

    `handler` and `options` as for `Server`; TypeError or ValueError if they are invalid. A server
    without a handler is for ``for connection in server``.
    """
    return Server(None, handler, **options)
