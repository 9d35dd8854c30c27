"""Opens, names and closes the listeners of a server.

One listener is `socket`, as in `socketserver`; if there are more of them, it is the first. The
hooks `server_bind` and `server_activate` are called for each, which is `socket` meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any, TypeVar

from ..core import events
from ..core.addresses import format_unix, is_loopback
from ..core.endpoint import Endpoint
from ..core.errors import ServerStateError
from ..net import bind, sockopts, unix
from ..net.addresses import SocketAddress
from ..net.bound import BoundSocket
from ..net.unix import SocketFile
from .accepting import Accepting
from .doorway import INHERITS_OPTIONS
from .overflow import Anteroom
from .reload import lists_in_files
from .serving import ClientServer, Shown
from .watchdog import Lifetimes

_STOPPED_EARLY = "the server was stopped before it listened everywhere"

_Self = TypeVar("_Self", bound="ListeningServer")


class State(Enum):
    """Where a server is in its life. `Server.listen` leads from CLOSED back to LISTENING."""

    NEW = "not bound"
    LISTENING = "listening"  # clients are accepted while it serves, else queued by the kernel
    DRAINING = "stopping"  # no new clients; the others finish
    CLOSED = "closed"


class ListeningServer(ClientServer):
    """The part of `Server` that binds and listens. Not used by itself."""

    server_close: Callable[[], None]

    def _prepare(self) -> None:
        super()._prepare()
        # Guards the state; notified when it changes. Re-entrant, for signal handlers.
        self._changed = threading.Condition()
        self._state = State.NEW
        self._stop_order: tuple[float | None, float] = (None, 0.0)
        self._serve_in_with = False
        self._endpoint = Endpoint()  # what `socket` is for, as far as its address does not say
        self._backlog: int | None = None  # if it was given
        self._file: SocketFile | None = None  # of `socket`
        self._more_files: tuple[SocketFile | None, ...] = ()  # of `_more_sockets`
        self._exclusive = False  # not for worker processes
        self._opener: int | None = None  # the thread that is in `listen`
        self._announced: list[events.Event] = []  # of `listen`, also for a log that begins later
        # The events of listeners that are open, while others may still fail; None outside `listen`.
        self._untold: list[events.Event] | None = None

    def _make_socket(self, family: int, address: Any) -> None:
        if hasattr(self, "socket"):  # of an earlier life, or never bound
            self.socket.close()
        self.address_family = family
        self.server_address = address
        self.socket = sockopts.waiting(socket.socket(family, self.socket_type))

    def _bind_and_activate(self) -> None:
        try:
            self.server_bind()
            self.server_activate()
        except BaseException:
            self.server_close()
            self._close_listeners()  # if another thread has stopped the server before
            raise

    def server_bind(self) -> None:
        """Bind the socket to `server_address`, which becomes the address that it got.

        TypeError if the address, or the kind of socket, is none for a server of connections.
        """
        bind.check_type(self.socket_type)
        bind.check_address(self.server_address, self.socket.family)
        family = bind.family_of(self.server_address, self.address_family)
        if family != self.address_family:  # it was made by a constructor of `socketserver`
            self._make_socket(family, self.server_address)
        sock = self.socket
        if self._opened_by is None:
            self._opened_by = os.getpid()
        endpoint, reuse_port = self._endpoint, self.allow_reuse_port
        if endpoint.kind == "unix":
            path, mode, owner = endpoint.path, endpoint.mode, endpoint.owner
            backlog = self.request_queue_size
            self._file = unix.bind(sock, path, mode, owner, backlog=backlog)
            self.server_address = sock.getsockname()
            return
        try:
            bind.prepare(sock, reuse_port or endpoint.reuse_port, endpoint.ipv6_only)
            self.server_address = bind.scoped(self.server_address)
            self.allow_reuse_port = False  # done; `socketserver` would try Unix sockets, too
            super().server_bind()
        except OSError as error:
            raise bind.explain(error, self.server_address) from None
        finally:
            self.allow_reuse_port = reuse_port

    def server_activate(self) -> None:
        """Make it a listener, with room for `request_queue_size` clients not accepted yet."""
        if self._backlog is not None or not bind.is_listening(self.socket):
            super().server_activate()
        if self._file is not None:
            self._file.check()
        self._local_name = bind.name_of_all(self.socket)
        if INHERITS_OPTIONS:  # pragma: no branch - Linux has it so
            self._configure(self.socket)
        with self._changed:
            if self._state in (State.DRAINING, State.CLOSED):
                raise ServerStateError(_STOPPED_EARLY)
            is_first = self._state is State.NEW
            self._enter(State.LISTENING)
        where = SocketAddress.from_sockname(self.socket.getsockname())
        self._tell(events.Listening(self._place()))  # an observer may close it
        self._tell_if_unlimited(where)
        if is_first:
            self._tell_of_lists()

    def _tell_if_unlimited(self, where: SocketAddress | None) -> None:
        if where is None or is_loopback(where.address) or self._options.limited:
            return
        if not any(isinstance(event, events.Unlimited) for event in self._announced):
            self._tell(events.Unlimited(str(where)))

    def _tell_of_lists(self) -> None:
        for name, addresses in lists_in_files(self._options).items():
            self._tell(events.ListLoaded(name, len(addresses), addresses.path or ""))

    def _tell(self, event: events.Event) -> None:
        """Emit an event of a listener; once all are open, if there are several."""
        self._announced.append(event)
        if self._untold is None:
            events.emit(event, self)
        else:
            self._untold.append(event)

    def listen(
        self: _Self,
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
    ) -> _Self:
        """Bind and listen; returns the server itself.

        `port` 0: the system chooses, see `address`. `host` None: every address, IPv6 and IPv4; a
        name: the first of its addresses that can be bound. `reuse_port`: others that say so may
        listen there, too. Or instead of a port:

        - `path`, of a Unix socket, or an abstract name on Linux (``"\\0name"``). Its file gets
          `mode` (0o660) and `owner` (``"user:group"``) before anybody can connect. One that a dead
          server has left is removed first, and ours when the server stops;
        - `fd`, an inherited descriptor; `sock`, a bound socket or `BoundSocket`. They are closed
          when the server stops.

        `backlog`: how many may wait to be accepted (511; the system may allow fewer). `exclusive`:
        not for worker processes. Allowed again after the server was closed.

        ServerStateError if it listens already; TypeError or ValueError for invalid arguments;
        OSError (with `address`, `port` and `syscall`) if the address cannot be bound, and
        socket.gaierror, which is one, if the name does not resolve.
        """
        given = (port, host, path, mode, owner, fd, ipv6_only, reuse_port)
        if sock is not None and given != (0, None, None, None, None, None, False, False):
            raise TypeError("sock is bound already: only backlog and exclusive may go with it")
        flags = {"ipv6_only": ipv6_only, "reuse_port": reuse_port}
        endpoint = Endpoint.of(port, host, path=path, fd=fd, mode=mode, owner=owner, **flags)
        self._open([endpoint], backlog, exclusive, sock)
        return self

    def listen_on(
        self: _Self,
        *addresses: str | int | Endpoint,
        backlog: int | None = None,
        exclusive: bool = False,
    ) -> _Self:
        """As `listen`, on each of `addresses`; returns the server itself.

        An address is a port, or text: ``8080``, ``*:8080``, ``localhost:8080``, ``[::1]:8080``,
        ``unix:/run/app.sock``, ``@name`` (Linux) or ``fd:3``. After a ``?`` it may have settings,
        with ``&`` between them: ``ipv6_only=on`` and ``reuse_port=on`` for TCP, ``mode=660`` and
        ``owner=user:group`` for a Unix socket. If one of them cannot be bound, none is listened on.
        """
        if not addresses:
            raise TypeError("listen_on() needs at least one address")
        self._open([_endpoint(address) for address in addresses], backlog, exclusive)
        return self

    def _open(
        self,
        endpoints: list[Endpoint],
        backlog: int | None,
        exclusive: bool,
        sock: socket.socket | BoundSocket | None = None,
    ) -> None:
        with self._changed:
            if self._opener is not None:
                raise ServerStateError("another call of listen() has not returned yet")
            if self._state in (State.LISTENING, State.DRAINING):
                raise ServerStateError(f"the server is {self._state.value} on {self._place()}")
            self._begin_new_life()
            self._opener = threading.get_ident()
            untold: list[events.Event] = []
            self._untold = untold
        self._announced = []
        self._backlog = backlog
        if backlog is not None:
            self.request_queue_size = backlog
        self._more_sockets, self._more_files, self._file = (), (), None
        try:
            if sock is not None:
                self._endpoint = Endpoint("fd")
                self._take(*sock.adopt() if isinstance(sock, BoundSocket) else (sock, None))
            else:
                self._open_each(endpoints)
        finally:
            with self._changed:
                self._opener = self._untold = None
                self._changed.notify_all()
        self._exclusive = exclusive
        self._serve_in_with = True
        for event in untold:
            events.emit(event, self)

    def _open_each(self, endpoints: list[Endpoint]) -> None:
        opened: list[tuple[socket.socket, SocketFile | None, int, Any]] = []
        try:
            for endpoint in endpoints:
                if endpoint.kind == "fd" and endpoint.fd in [each[0].fileno() for each in opened]:
                    raise ValueError(f"fd:{endpoint.fd} cannot be listened on twice")
                self._open_one(endpoint)
                if self._state is State.CLOSED:  # by a hook, or by another thread
                    raise ServerStateError(_STOPPED_EARLY)
                opened.append((self.socket, self._file, self.address_family, self.server_address))
                del self.socket  # so that the next one neither closes it, nor fails with it
                self._file = None
        except BaseException:
            for sock, file, _, _ in opened:
                _close(sock, file)
                self.socket = sock
                self._enter(State.CLOSED)
            raise
        self.socket, self._file, self.address_family, self.server_address = opened[0]
        self._more_sockets = tuple(sock for sock, *_ in opened[1:])
        self._more_files = tuple(file for _, file, *_ in opened[1:])
        if self._more_sockets:
            self._local_name = None

    def _open_one(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        if endpoint.kind == "fd":
            self._take(bind.adopted(endpoint.fd), None)
        elif endpoint.kind == "unix":
            self._make_socket(unix.family(), endpoint.path)
            self._bind_and_activate()
        else:
            self._open_first(bind.candidates(endpoint.host, endpoint.port, endpoint.ipv6_only))

    def _open_first(self, candidates: list[bind.Candidate]) -> None:
        *others, last = candidates
        for family, address in others:
            try:
                self._make_socket(family, address)
                return self._bind_and_activate()
            except OSError as error:
                if not bind.worth_another(error):
                    raise
                self._begin_new_life()  # the failed attempt has closed it
        self._make_socket(*last)
        return self._bind_and_activate()

    def _take(self, sock: socket.socket, file: SocketFile | None) -> None:
        """Listen on a socket that is bound, which programs that are started do not inherit."""
        sock.set_inheritable(False)
        self._opened_by = 0
        self.socket, self.address_family, self._file = sock, sock.family, file
        self.server_address = sock.getsockname()
        try:
            if self._backlog is None and bind.is_listening(sock):  # with a queue of unknown size
                self.request_queue_size = max(self.request_queue_size, socket.SOMAXCONN)
            self.server_activate()
        except BaseException as error:
            self.server_close()
            self._close_listeners()  # as above
            if isinstance(error, OSError):
                raise bind.explain(error, self.server_address) from None
            raise

    def take_over(self, *listeners: socket.socket) -> None:
        """Serve on listeners that another process has made; nothing of its life counts here.

        For worker processes. The hooks of binding are not called again.
        """
        self._begin_new_life()
        self._opened_by = 0
        self.socket, *more = listeners
        self._more_sockets = tuple(more)
        self._file, self._more_files = None, ()  # which its maker removes
        self.address_family = self.socket.family
        self.server_address = self.socket.getsockname()
        self._local_name = None if more else bind.name_of_all(self.socket)
        self._enter(State.LISTENING)

    def _begin_new_life(self) -> None:
        """Not bound, and whatever was stopped before is forgotten."""
        with self._changed:
            self._state = State.NEW
            self._stop_order = (None, 0.0)
            self._opened_by = None
            self._accepting = Accepting(self._connections.notify, self)
            self._anteroom = Anteroom(self._wake_acceptor)
            self._connections.reopen()
            self._client_threads = self._make_threads()
            self._lifetimes = Lifetimes(self._connections.live)

    def _end_in_child(self) -> None:
        """In a forked child: it is closed, and has no connection but those of the calling thread.

        The threads of the parent are not here, and may have left any lock held. Nothing is written
        to the descriptors that are shared with the parent. A server that does not accept is left.
        """
        if not self._accepting.end_in_child():
            return
        self._changed, self._configuring = threading.Condition(), threading.RLock()
        self._anteroom.close_descriptors()
        self._connections.end_in_child()
        self._client_threads.end_in_child()
        self._begin_new_life()
        self._begin_admitting()
        self._file, self._more_files = None, ()
        self._close_listeners()
        self._state = State.CLOSED

    def _remove_files(self) -> None:
        """The names of Unix sockets, so that a successor may have them."""
        for file in (self._file, *self._more_files):
            if file is not None:
                file.remove()
        self._file, self._more_files = None, ()

    def _close_listeners(self) -> None:
        self._remove_files()
        for listener in self._listeners:
            with contextlib.suppress(OSError):  # another part of the program has closed it
                listener.close()

    @Shown
    def listening(self) -> bool:
        """Whether it is bound and has not been stopped."""
        return self._state is State.LISTENING

    @Shown
    def address(self) -> SocketAddress | str | None:
        """Where it listens: a `SocketAddress`, or a Unix socket's path; None if it does not.

        Of several, the first.
        """
        return self._where() if self._state is State.LISTENING else None

    @Shown
    def addresses(self) -> tuple[SocketAddress | str, ...]:
        """Where it listens, all of it; empty if it does not."""
        return tuple(self._everywhere()) if self._state is State.LISTENING else ()

    def _where(self) -> SocketAddress | str:
        return _address(self.server_address)

    def _place(self) -> str:
        """As `_where`, for people."""
        return _shown(self._where())

    def _everywhere(self) -> Iterator[SocketAddress | str]:
        yield self._where()
        for listener in self._more_sockets:
            yield _address(listener.getsockname())

    def _enter(self, state: State) -> None:
        with self._changed:
            self._state = state
            self._changed.notify_all()


def _endpoint(address: str | int | Endpoint) -> Endpoint:
    if isinstance(address, Endpoint):
        return address
    return Endpoint.parse(address) if isinstance(address, str) else Endpoint.of(address)


def _shown(where: SocketAddress | str) -> str:
    return format_unix(where) if isinstance(where, str) else str(where)


def _address(name: Any) -> SocketAddress | str:
    return SocketAddress.from_sockname(name) or (
        os.fsdecode(name) if isinstance(name, bytes) else str(name)
    )


def _close(sock: socket.socket, file: SocketFile | None) -> None:
    if file is not None:
        file.remove()
    sock.close()
