"""The parts of a server, and the hooks and attributes that it shares with `socketserver`.

A program may override each hook, and may call it. The hooks lead to the parts, which do the work.
"""

from __future__ import annotations

import operator
import os
import socket
import socketserver
from typing import TYPE_CHECKING, Any, TypeVar

from ..core.errors import ServerStateError
from ..core.options import Options
from .accept_loop import AcceptLoop
from .acceptor import Acceptor
from .adapting import Serve, adapt, problem_of_result
from .admission import Admission
from .clients import Clients
from .compat import Compat
from .drain import Drain
from .life import Life, State
from .listeners import Listeners
from .overflow import Overflow
from .proxying import Proxying
from .refusals import Refusals
from .registrar import Registrar
from .registry import Registry
from .reports import Reports
from .serving import Serving
from .setup import Configuration, Setup
from .subclassing import CalledByName, ServerType, Threads
from .threads import ClientThreads
from .watchdog import Watchdog

if TYPE_CHECKING:
    _Self = TypeVar("_Self", bound="HookedServer")


# The hooks that a client passes after it has been accepted, in the order of their calls.
_OF_CLIENT = (
    *("process_request", "verify_request", "process_request_thread", "finish_request"),
    *("shutdown_request", "close_request"),
)
# The methods that netkit calls and a subclass may override.
HOOKS = (
    *("server_bind", "server_activate", "get_request", *_OF_CLIENT, "handle_error"),
    *("handle_timeout", "service_actions"),
)
_hooks_of_client = operator.attrgetter(*_OF_CLIENT)


class _NotBoundError(ServerStateError, AttributeError):
    """So that ``hasattr(server, "socket")`` is False."""


class _NoSocketYet:
    """The attribute `socket` of a server that has no socket yet."""

    def __get__(self, server: object, _: type) -> Any:
        if server is None:
            return self
        raise _NotBoundError("the server is not bound; call listen() first")


class HookedServer(CalledByName, socketserver.ThreadingTCPServer, metaclass=ServerType):
    """A `socketserver.ThreadingTCPServer` whose hooks lead to the parts of a netkit server.

    `Server` adds the methods that `socketserver` does not have.
    """

    socket: Any = _NoSocketYet()
    server_address: Any

    allow_reuse_address = os.name == "posix"  # elsewhere it lets two servers share a port
    allow_reuse_port = False
    request_queue_size = 511  # with 5, the sixth client of a burst waits for a second
    # A closed server waits for its threads, and so does the interpreter's exit, but not forever: a
    # handler that never ends cannot keep the process from ending.
    daemon_threads = True
    block_on_close = True

    _handler_class: Any = None  # a subclass may name one, see `__init_subclass__`

    def __new__(cls: type[_Self], *_: Any, **__: Any) -> _Self:
        self = super().__new__(cls)
        self._make_parts()  # here, since a constructor of a subclass may not call ours
        return self

    def _make_parts(self) -> None:
        setup = Setup(Options(), self._handler_class)
        config = self._configuration = Configuration(setup, self._adapted, self._pass_on)
        life = self._life = Life()
        loop = self._accept_loop = AcceptLoop(self._loop_has_ended, self)
        admission = self._admission = Admission(setup.options, loop.wake)
        refusals = self._refusals = Refusals(server=self)
        overflow = self._overflow = Overflow()
        registry = self._connections = Registry(admission.over, self)
        watchdog = self._watchdog = Watchdog(registry.live)
        threads = self._client_threads = ClientThreads(lambda: self.daemon_threads, loop.may_retry)
        listeners = self._listeners = Listeners(self, life, config, self._begin_new_life)
        reports = self._reports = Reports(config, self)
        registrar = Registrar(self, admission, listeners, registry, watchdog)
        compat = self._compat = Compat(
            self, self._overrides, config, loop, registrar, registry, threads, reports
        )
        proxying = Proxying(admission, refusals, registry, compat)
        clients = Clients(
            *(config, loop, registrar, registry, threads, compat, reports, proxying),
            self._overrides_hooks_of_client,
        )
        acceptor = self._acceptor = Acceptor(
            self, config, loop, listeners, admission, overflow, refusals, registry, clients
        )
        self._drain = Drain(
            self, config, life, listeners, loop, acceptor, registry, threads, watchdog
        )
        self._serving = Serving(
            self, self._overrides, config, life, listeners, loop, acceptor, clients, compat
        )

    def _pass_on(self, options: Options) -> None:
        self._admission.configure(options)
        self._listeners.set_options(options)

    def _loop_has_ended(self) -> None:
        self._connections.notify()
        if not self._accept_loop.under_way:  # else it is suspended
            self._drain.carry_out()

    def _begin_new_life(self) -> None:
        """Forget the stop of the server, which is going to listen again."""
        with self._life.changed:
            self._life.state = State.NEW
            self._drain.reopen()
            self._listeners.opened_by = None
            self._connections.reopen()
            self._accept_loop.reopen()
            self._overflow.reopen()
            self._client_threads.reopen()
            self._watchdog.reopen()

    def _end_in_child(self) -> None:
        """Close the server in a forked child, which keeps the connection of the calling thread.

        The parent's other threads are not here, and may have held any lock. Nothing is written to
        the descriptors that the parent shares. A server that accepts no clients stays as it is.
        """
        if not self._accept_loop.end_in_child():
            return
        self._life.end_in_child()
        self._configuration.free_lock()
        self._overflow.end_in_child()
        self._reports.forget()
        self._refusals.reset()
        self._admission.reset()
        self._watchdog.reset()
        self._connections.end_in_child()
        self._client_threads.end_in_child()
        self._begin_new_life()
        self._listeners.end_in_child()
        self._life.state = State.CLOSED

    def __init_subclass__(cls, **more: Any) -> None:
        """Raise TypeError for a hook that is a coroutine function, whose call would run nothing.

        If the class has a `RequestHandlerClass`, it is the default handler of its servers.
        """
        super().__init_subclass__(**more)
        if "RequestHandlerClass" in vars(cls) and not hasattr(cls.RequestHandlerClass, "__set__"):
            cls._handler_class = cls.RequestHandlerClass
            del cls.RequestHandlerClass
        for name in HOOKS:
            problem = problem_of_result(getattr(cls, name))
            if problem:
                raise TypeError(f"{cls.__name__}.{name}: {problem}")

    def _overrides(self, name: str) -> bool:
        """Whether the program has replaced the hook `name`, in a subclass or of this server."""
        return getattr(getattr(self, name), "__func__", None) is not getattr(HookedServer, name)

    def _overrides_hooks_of_client(self) -> bool:
        """Whether `_overrides` is true for a hook that a client passes. Called for each client."""
        names = vars(self).keys()
        return _hooks_of_client(type(self)) != _OWN or not names.isdisjoint(_OF_CLIENT)

    @property
    def _threads(self) -> Threads:  # `socketserver` has this name, and programs use it
        return Threads(self._client_threads.threads(), self._drain.close)

    # Options and handler

    @property
    def _options(self) -> Options:
        return self._configuration.setup.options

    @property
    def RequestHandlerClass(self) -> Any:
        """The handler, of any kind. It may be set; TypeError if it cannot serve a client."""
        return self._configuration.setup.handler

    @RequestHandlerClass.setter
    def RequestHandlerClass(self, handler: Any) -> None:
        self._configuration.set_handler(handler)

    def _adapted(self, handler: Any, options: Options) -> Serve | None:
        calls_it_itself = self._overrides("finish_request")
        if handler is None and calls_it_itself:  # it needs none
            return None
        return adapt(handler, options.handler_args, check=not calls_it_itself)

    # Listeners

    def server_bind(self) -> None:
        """Bind the socket to `server_address`, which becomes the address that it got.

        TypeError if the address, or the kind of socket, is not that of a server of connections.
        """
        self._listeners.bind_socket(super().server_bind)

    def server_activate(self) -> None:
        """Listen on the socket; the kernel queues up to `request_queue_size` clients."""
        self._listeners.activate(super().server_activate)

    def __exit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        self.server_close()
        if kind is None:
            self._reports.raise_errors()

    # Clients

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept one client: its socket, blocking, and its address. BlockingIOError if none waits.

        If there are several listeners, each of them is the first to be asked once in a while.
        """
        return self._acceptor.take()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Run `process_request_thread` in a thread of the client's own."""
        self._compat.process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one client in the calling thread, and close its connection."""
        self._compat.process_request_thread(request, client_address)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Run the handler. `request` may be a socket that wraps the accepted one (TLS)."""
        self._compat.finish_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """End a connection such that its client gets everything that was written to it."""
        self._compat.shutdown_request(request)

    def close_request(self, request: Any) -> None:
        """Close a connection's descriptor, even if a file made of the socket is still open."""
        self._compat.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log the exception being handled: in one line if the client is to blame for it."""
        self._compat.handle_error(request, client_address)


_OWN = _hooks_of_client(HookedServer)
