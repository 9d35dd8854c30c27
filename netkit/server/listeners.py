"""Opens, names and closes the listeners of a server.

The first listener is the server's `socket`, as in `socketserver`. The hooks `server_bind` and
`server_activate` are called for each listener, which is the server's `socket` meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..core import events
from ..core.addresses import SocketAddress, format_unix, is_loopback
from ..core.endpoint import DIRECT, Endpoint, Layers
from ..core.errors import ServerStateError
from ..core.options import Options
from ..net import bind, service_manager, sockopts, unix
from ..net.addresses import address_of
from ..net.bound import BoundSocket
from ..net.unix import SocketFile
from .life import Life, State
from .reload import lists_in_files
from .setup import Configuration, Setup

Place = Endpoint | socket.socket | BoundSocket
"""Where to listen: at an address, or with a socket that is bound."""

_STOPPED_EARLY = "the server was stopped before it listened everywhere"


class Listeners:
    """The listeners of one server, which may be opened again once they are closed.

    The thread that opens the listeners (`Life.opener`) changes the attributes; other threads read
    them while the server is listening. At any moment, `close` closes all that have been opened.
    """

    def __init__(
        self,
        server: socketserver.ThreadingTCPServer,
        life: Life,
        configuration: Configuration,
        begin_new_life: Callable[[], object],
    ) -> None:
        """`begin_new_life` is called before the server listens again."""
        self._server: Any = server
        self._life = life
        self._configuration = configuration
        self._begin_new_life = begin_new_life
        self._endpoint = Endpoint()  # of `socket`: the settings that its address does not show
        self._backlog: int | None = None  # None if the caller of `open` has not given one
        self._files: tuple[SocketFile | None, ...] = ()  # None for a socket without a file
        self._lent: tuple[SocketFile, ...] = ()  # those that still belong to another program
        self.more: tuple[socket.socket, ...] = ()
        """The listeners besides the server's `socket`."""
        self.layers: tuple[Layers, ...] = (DIRECT,)
        """What the clients of each of `sockets` send first."""
        self.local_name: Any = None
        """The local address of every connection; None if connections have different ones."""
        self.opened_by: int | None = None
        """The process that has opened the listeners, and alone accepts from them. 0 if unknown."""
        self.exclusive = False
        """Whether worker processes must not share them."""
        self.by_listen = False
        """Whether `open` has opened them, and not the constructor of the server."""
        self.is_silent = False  # whether others emit the events, and check layers
        self.announced: list[events.Event] = []
        """The events about the present listeners, for a log that begins later."""
        self.when_open: Callable[[], object] = lambda: None  # before these events are emitted

    @property
    def sockets(self) -> tuple[Any, ...]:
        """All listeners. ServerStateError if the server was never bound."""
        return (self._server.socket, *self.more)

    def _sockets_so_far(self) -> tuple[Any, ...]:
        return self.sockets if hasattr(self._server, "socket") else ()

    # The steps of opening one

    def make_socket(self, family: int, address: Any) -> None:
        """Give the server a new `socket`, to be bound to `address`."""
        server = self._server
        if hasattr(server, "socket") and server.socket not in self.more:
            server.socket.close()
        server.address_family = family
        server.server_address = address
        server.socket = sockopts.blocking(socket.socket(family, server.socket_type))

    def bind_and_activate(self) -> None:
        """Call the hooks that bind `socket` and make it a listener; it is closed if one fails."""
        with self._closing_after_failure():
            self._configuration.setup.check_layers(self.layers)
            self._call_hooks()

    def _call_hooks(self) -> None:
        self._server.server_bind()
        self._server.server_activate()

    @contextlib.contextmanager
    def _closing_after_failure(self) -> Iterator[None]:
        """Close all listeners if the block fails. ServerStateError if a stop is the cause."""
        try:
            yield
        except BaseException as error:
            # A stop has closed the socket, and a system call failed for that.
            is_of_stop = isinstance(error, OSError) and self._is_stopped()
            self._server.server_close()
            self.close()  # `server_close` does nothing if another thread has stopped the server
            self._life.enter(State.CLOSED)
            if is_of_stop:
                raise ServerStateError(_STOPPED_EARLY) from None
            raise

    def bind_socket(self, bind_tcp: Callable[[], None]) -> None:
        """Bind as `server_bind` does; `bind_tcp` is that of `socketserver`."""
        server, endpoint = self._server, self._endpoint
        bind.check_type(server.socket_type)
        bind.check_address(server.server_address, server.socket.family)
        family = bind.family_of(server.server_address, server.address_family)
        if family != server.address_family:  # a constructor of `socketserver` has made the socket
            self.make_socket(family, server.server_address)
        if self.opened_by is None:
            self.opened_by = os.getpid()
        if endpoint.kind == "unix":
            settings = endpoint.path, endpoint.mode, endpoint.owner
            file = unix.bind(server.socket, *settings, backlog=server.request_queue_size)
            self._files += (file,)
            server.server_address = server.socket.getsockname()
            return
        reuse_port = server.allow_reuse_port
        try:
            bind.prepare(server.socket, reuse_port or endpoint.reuse_port, endpoint.ipv6_only)
            server.server_address = bind.scoped(server.server_address)
            server.allow_reuse_port = False  # `socketserver` would set it on Unix sockets, too
            bind_tcp()
        except OSError as error:
            raise bind.explain(error, server.server_address) from None
        finally:
            server.allow_reuse_port = reuse_port

    def activate(self, listen: Callable[[], None]) -> None:
        """Listen as `server_activate` does; `listen` is that of `socketserver`.

        ServerStateError if the server has been stopped meanwhile.
        """
        sock = self._server.socket
        if self._backlog is not None or not bind.is_listening(sock):
            listen()
        for file in filter(None, self._files):
            file.check()
        self.local_name = bind.name_of_all(sock)
        if sockopts.INHERITS_OPTIONS:  # pragma: no branch - Linux has it so
            sockopts.set_options(sock, self._configuration.setup.options)
        with self._life.changed:
            self._check_not_stopped()
            is_first = self._life.state is State.NEW
            self._life.enter(State.LISTENING)
        self._check_not_stopped()  # by a signal handler, just before `enter`
        for event in () if self.is_silent else self._news(sock, is_first):
            self.announced.append(event)
            if self._life.opener is None:  # else `open` does it once all are open
                events.emit(event, self._server)

    def _check_not_stopped(self) -> None:
        if self._is_stopped():
            raise ServerStateError(_STOPPED_EARLY)

    def _is_stopped(self) -> bool:
        is_closed = any(sock.fileno() < 0 for sock in self._sockets_so_far())
        return is_closed or self._life.state in (State.DRAINING, State.CLOSED)

    def _news(self, sock: socket.socket, is_first: bool) -> Iterator[events.Event]:
        """The events about a listener that has been opened."""
        options = self._configuration.setup.options
        where = SocketAddress.from_sockname(sock.getsockname())
        is_reachable = where is not None and not is_loopback(where.address)
        layers = self.layers[len(self.more)]
        tls = self._configuration.setup.begins_tls(layers.tls)
        # An observer may close the listener.
        yield events.Listening(self.describe(), tls, layers.proxy)
        is_announced = any(isinstance(event, events.Unlimited) for event in self.announced)
        if is_reachable and not (options.limited or is_announced):
            yield events.Unlimited(str(where))
        if is_first:
            for name, addresses in lists_in_files(options).items():
                yield events.ListLoaded(name, len(addresses), addresses.path or "")

    # Opening all

    def open(
        self, places: Sequence[Place], backlog: int | None, exclusive: bool, layers: Layers
    ) -> None:
        """Listen at each of `places`. Errors as of `listen`.

        If one of them fails, all are closed. `layers` are for sockets, as those of an `Endpoint`.
        """
        places = service_manager.expanded(places)
        self._begin(backlog)
        self.layers = tuple(it.layers if isinstance(it, Endpoint) else layers for it in places)
        try:
            with self._closing_after_failure():
                self.check_layers(self._configuration.setup)
                self._open_each(places)
                self.when_open()
        finally:
            with self._life.changed:
                self._life.opener = None
                self._life.changed.notify_all()
        self.exclusive, self.by_listen = exclusive, True
        for event in tuple(self.announced):
            events.emit(event, self._server)

    def _begin(self, backlog: int | None) -> None:
        life = self._life
        with life.changed:
            if life.opener is not None:
                raise ServerStateError("another call of listen() has not returned yet")
            if life.state in (State.LISTENING, State.DRAINING):
                raise ServerStateError(f"the server is {life.state.value} on {self.describe()}")
            self._begin_new_life()
            life.opener = threading.get_ident()
        self.announced, self._backlog, self.more, self._files, self._lent = [], backlog, (), (), ()
        if backlog is not None:
            self._server.request_queue_size = backlog
        if any(sock.fileno() < 0 for sock in self._sockets_so_far()):
            del self._server.socket  # closed in an earlier life: from now on that means a stop

    def _open_each(self, places: Sequence[Place]) -> None:
        server = self._server
        names = []
        for place in places:
            self._open_one(place)
            self.more += (server.socket,)
            names.append(server.server_address)
            self._check_not_stopped()  # by a hook, a signal handler or another thread
        server.socket, self.more = self.more[0], self.more[1:]
        server.address_family, server.server_address = server.socket.family, names[0]
        if self.more:
            self.local_name = None

    def _open_one(self, endpoint: Place) -> None:
        self._endpoint = endpoint if isinstance(endpoint, Endpoint) else Endpoint("fd")
        if isinstance(endpoint, BoundSocket):
            sock, file = endpoint.adopt()
            self._files += (file,)
            self._adopt(sock)
        elif isinstance(endpoint, socket.socket):
            self._adopt(endpoint)
        elif endpoint.kind == "fd":
            if endpoint.fd in [sock.fileno() for sock in self.more]:
                raise ValueError(f"fd:{endpoint.fd} cannot be listened on twice")
            self._adopt(bind.adopted(endpoint.fd))
            self._lent += unix.left_behind(endpoint.path)
        elif endpoint.kind == "unix":
            self.make_socket(unix.family(), endpoint.path)
            self._call_hooks()
        else:
            self._open_first(bind.candidates(endpoint.host, endpoint.port, endpoint.ipv6_only))

    def _open_first(self, candidates: list[bind.Candidate]) -> None:
        for candidate in candidates:  # pragma: no branch - the last one opens or raises
            try:
                self.make_socket(*candidate)
                self._call_hooks()
                break
            except OSError as error:
                if candidate is candidates[-1] or not bind.worth_another(error):
                    raise

    def _adopt(self, sock: socket.socket) -> None:
        """Listen on a socket that is bound. Programs that are started do not inherit it."""
        server = self._server
        server.socket, server.address_family = sock, sock.family
        self.opened_by = 0
        sock.set_inheritable(False)
        server.server_address = sock.getsockname()
        try:
            if self._backlog is None and bind.is_listening(sock):  # its queue's size is unknown
                server.request_queue_size = max(server.request_queue_size, socket.SOMAXCONN)
            server.server_activate()
        except OSError as error:
            raise bind.explain(error, server.server_address) from None

    def check_layers(self, setup: Setup) -> None:
        """ValueError if `setup` and what the clients of the listeners send do not fit together."""
        if not self.is_silent and (self._life.opener or self._life.state is State.LISTENING):
            setup.check_layers(self.layers)

    def set_options(self, options: Options) -> None:
        """Set the socket options that accepted sockets inherit."""
        for listener in self._sockets_so_far():
            with contextlib.suppress(OSError):  # it is closed
                sockopts.set_options(listener, options)

    def take_over(self, *listeners: socket.socket, layers: tuple[Layers, ...]) -> None:
        """Accept from `listeners`, which another process has opened. No hook is called."""
        server = self._server
        self._begin_new_life()
        self.opened_by = 0
        server.socket, *more = listeners
        self.more, self.layers = tuple(more), layers
        self.leave_files()
        server.address_family = server.socket.family
        server.server_address = server.socket.getsockname()
        self.local_name = None if more else bind.name_of_all(server.socket)
        self._life.enter(State.LISTENING)

    def remove_files(self) -> None:
        """Remove the files of Unix sockets, so that a successor may have their names."""
        for file in filter(None, self._files):
            file.remove()
        self._files = ()

    def close(self) -> None:
        """Close all listeners. Idempotent."""
        self.remove_files()
        for listener in self._sockets_so_far():
            with contextlib.suppress(OSError):  # another part of the program has closed it
                listener.close()

    def leave_files(self) -> None:
        """Leave the files of Unix sockets to another process, which removes them."""
        self._files = self._lent = ()

    def claim_files(self) -> None:
        """Note that the program whose listeners were taken over leaves its files to this one."""
        self._files, self._lent = self._files + self._lent, ()

    def end_in_child(self) -> None:
        """In a forked child: close the listeners, and leave their files to the parent."""
        self.leave_files()
        self.close()

    def addresses(self) -> Iterator[SocketAddress | str]:
        """The address of each listener: a `SocketAddress`, or the path of a Unix socket."""
        if self._life.state is State.LISTENING:
            yield address_of(self._server.server_address)
            for listener in self.more:
                yield address_of(listener.getsockname())

    def describe(self) -> str:
        """The address of the first listener, for people."""
        where = address_of(self._server.server_address)
        return format_unix(where) if isinstance(where, str) else str(where)
