"""How a client comes in: accepted, judged, registered, and seen on its way to a thread.

All of this runs in the accepting thread. Nothing here waits for a client, and a client that is
refused costs no thread.
"""

from __future__ import annotations

import contextlib
import os
import socket
import socketserver
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from ..core import events
from ..core.encodings import to_bytes
from ..core.errors import ServerStateError
from ..core.options import Options
from ..net import sockopts
from ..net.connection import Connection
from .accepting import Accepting
from .adapting import Serve, check_result
from .admission import NO_SHARE, Admission, Refusals, Ticket
from .drain import Drain
from .listener import Acceptor, Verdict, is_lost_race, judge
from .listeners import INHERITS_OPTIONS, Listeners
from .overflow import Anteroom
from .registry import Registry
from .subclassing import CalledByName, ServerType
from .threads import ClientThreads, Job

_Self = TypeVar("_Self", bound="Doorway")


class _NotBoundError(ServerStateError, AttributeError):
    """So that ``hasattr(server, "socket")`` is False."""


class _NoSocketYet:
    """What a server has for a `socket` before it has one."""

    def __get__(self, server: object, _: type) -> Any:
        if server is None:
            return self
        raise _NotBoundError("the server is not bound; call listen() first")


class Doorway(CalledByName, socketserver.ThreadingTCPServer, metaclass=ServerType):
    """The part of `Server` that lets clients in. Not used by itself."""

    socket: Any = _NoSocketYet()

    allow_reuse_address = os.name == "posix"  # elsewhere it lets two servers share a port
    allow_reuse_port = False
    request_queue_size = 511  # with 5, the sixth client of a burst waits for a second
    # A closed server waits for its threads, and so does the interpreter's exit, but not for ever: a
    # handler that never ends cannot keep the process from ending.
    daemon_threads = True
    block_on_close = True

    def __new__(cls: type[_Self], *_: Any, **__: Any) -> _Self:
        self = super().__new__(cls)
        self._prepare()  # here, since a constructor of a subclass may call `TCPServer.__init__`
        return self

    def _prepare(self) -> None:
        """Make what a server has from the start, whichever constructor is called."""
        self._options = Options()
        self._begin_admitting()
        self._connections = Registry(self._admission.over, self)
        self._accepting = Accepting(self._connections.notify, self)
        self._client_threads = self._make_threads()
        self._schedules = self._verifies = False  # it overrides the method that does
        self._has_warned = False  # of handshakes in the accepting thread
        self._next_listener = 0  # asked first; races do no harm, since it is for fairness only
        # The connections that `for connection in server` has accepted and not yielded yet. None if
        # the turn is not that of such a loop.
        self._taken: deque[Connection] | None = None

    # What `ClientServer` does with those who are in.
    _drain: Drain
    _listeners: Listeners
    _handler_class: Any
    _adapted: Callable[[Any, Options], Serve | None]
    _announce: Callable[[Connection], None]
    _forget: Callable[[Any], None]
    _note: Callable[[Any, Any, Ticket | None], Connection]
    _job: Callable[..., Job]
    _overrides: Callable[[str], bool]
    _speaks_tls: Callable[[], bool]
    _start_client: Callable[[Any, Any, bool], None]
    _tell_error: Callable[[Any, Any], None]

    def _begin_admitting(self) -> None:
        self._admission = Admission(self._options, self._wake_acceptor)
        self._anteroom = Anteroom(self._wake_acceptor)
        self._refusals = Refusals(server=self)

    def _make_threads(self) -> ClientThreads:
        return ClientThreads(self.daemon_threads)

    def _wake_acceptor(self) -> None:
        self._accepting.wake()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept one client: its socket, blocking, and its address.

        If there are several listeners, of the first one that has a client; each comes first in
        turn.
        """
        if not self._listeners.more:
            return self._accept_from(self.socket, self.address_family)
        listeners = self._listeners.sockets
        first = self._next_listener = (self._next_listener + 1) % len(listeners)
        *others, last = listeners[first:] + listeners[:first]
        for listener in others:
            with contextlib.suppress(BlockingIOError):
                return self._accept_from(listener, listener.family)
        return self._accept_from(last, last.family)

    def _accept_from(self, listener: socket.socket, family: int) -> tuple[socket.socket, Any]:
        request: socket.socket
        if type(listener) is socket.socket:  # as its `accept`, without the enums that it makes
            descriptor, client_address = listener._accept()  # type: ignore[attr-defined]
            request = sockopts.waiting(socket.socket(family, self.socket_type, 0, descriptor))
        else:  # TLS, say
            request, client_address = listener.accept()
            sockopts.waiting(request)
        if not INHERITS_OPTIONS:  # pragma: no cover - there it inherits that it does not block, too
            request.setblocking(True)
        return request, client_address

    # Waiting for a client

    def _wait_for_client(self, acceptor: Acceptor, seconds: float | None) -> bool:
        """Until a client may be there (True), for at most `seconds`, or until there is news."""
        for wait in self._tidy_up():
            if wait is not None:
                seconds = wait if seconds is None else min(seconds, wait)
        if self._admission.must_wait():
            places = None
            if not self._admission.suspended:
                self._refusals.waiting("max_connections")
                places = self._admission.places_fileno()
            acceptor.pause(seconds, places)
            return False
        also = self._admission.places_fileno() if self._anteroom.held else None
        return acceptor.wait(seconds, also)

    def _tidy_up(self) -> tuple[float | None, ...]:
        """Admit or refuse held clients, close those that had time to leave.

        Returns the seconds until this is worth another call.
        """
        if not (self._anteroom.held or self._anteroom.leaving or self._refusals.episodes):
            return ()
        while self._anteroom.held and self._admission.enter(wanted=True):
            guest = self._anteroom.next_held()
            if guest is None:  # a signal handler has stopped the server in between
                self._admission.leave(NO_SHARE)
                break
            self._let_in(guest.request, guest.client_address, guest.ticket)
        while overdue := self._anteroom.next_overdue():
            self._admission.forgo(overdue.ticket)
            self._refuse(overdue.request, overdue.client_address, "max_connections")
        return self._anteroom.close_those_who_left(), self._refusals.end_episodes()

    # In the accepting thread

    def _accept_one(self) -> Verdict | None:
        """Accept a client and see it on its way. None if that worked, or else what went wrong."""
        when_full = self._options.when_full
        has_place = not self._anteroom.held and self._admission.enter(wanted=True)
        if not has_place and (when_full == "wait" or self._admission.suspended):
            return Verdict.FULL  # though one may be free by now
        try:
            request, client_address = self.get_request()
        except BaseException as error:
            if has_place:
                self._admission.leave(NO_SHARE)
            if self._is_for_caller(error):
                raise
            return self._cannot_accept(error)
        if type(request) is not socket.socket:
            self._look_for_handshake(request)
        ticket = self._judge_client(request, client_address, has_place)
        if ticket is not None:
            if has_place:
                self._let_in(request, client_address, ticket)
            else:
                self._keep_out(request, client_address, ticket, when_full)
        return None

    def _look_for_handshake(self, request: Any) -> None:
        """Warn, once, if this client has been waited for in the accepting thread."""
        ssl = sys.modules.get("ssl")
        shaken = ssl and isinstance(request, ssl.SSLSocket) and request.version() is not None
        if shaken and not self._has_warned:
            self._has_warned = True
            events.emit(events.HandshakeInAccept("get_request"), self)

    def _is_for_caller(self, error: BaseException) -> bool:
        """Whether it is meant to end more than a client (Ctrl+C), and a caller is there to get it.

        There is none for the thread that `start` has made.
        """
        return not isinstance(error, Exception) and (
            threading.current_thread() is not self._drain.background
        )

    def _cannot_accept(self, error: BaseException) -> Verdict:
        verdict = self._judge(error)
        if verdict is Verdict.BACK_OFF:
            self._accepting.failed(error)
        elif verdict is Verdict.STOP and not self._accepting.stop_requested:
            events.emit(events.ListenerLost(error), self)
        return verdict

    def _judge(self, error: BaseException) -> Verdict:
        verdict = judge(error)
        if verdict in (Verdict.SKIP, Verdict.NOBODY) and not is_lost_race(error):
            events.emit(events.AcceptFailed(error), self)
        return verdict

    def _let_in(self, request: Any, client_address: Any, ticket: Ticket) -> None:
        """Pass a client that has a place on to its thread; a failure harms no other client."""
        try:
            self._admit(request, client_address, ticket)
        except BaseException as error:
            if self._is_for_caller(error):  # its thread may be running already
                connection = self._connections.get(request)
                if connection is None or self._connections.claim(connection):
                    self._forget(request)
                raise
            if isinstance(error, Exception):
                self._tell_error(request, client_address)
            else:
                events.emit(events.HookFailed("process_request", error), self)
            self._forget(request)
        else:
            self._accepting.succeeded()

    def _verified(self, request: Any, client_address: Any) -> bool:
        verdict = self.verify_request(request, client_address)
        check_result(verdict, "verify_request")  # a coroutine would let everybody in
        return bool(verdict)

    def _admit(self, request: Any, client_address: Any, ticket: Ticket) -> None:
        connection = self._note(request, client_address, ticket)
        self._announce(connection)
        connection.thread = None  # it may be served now
        if self._taken is not None:
            if self._verified(request, client_address):
                self._taken.append(connection)
            else:
                self.shutdown_request(request)
        elif not self._schedules:
            self._start_client(request, client_address, not self._verifies)
        elif self._verified(request, client_address):
            self.process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def _note_overrides(self) -> None:
        self._schedules = self._overrides("process_request")
        self._verifies = self._overrides("verify_request")

    def _accept_queued(self) -> None:
        """Accept the clients that connected before the stop, at most as many as queues can hold.

        Not where a program takes connections itself: it does not take these any more. This needs
        no descriptor of its own.
        """
        if not self._accepting.has_begun or self.socket.fileno() < 0 or self._taken is not None:
            return
        for listener in self._listeners.sockets:
            with contextlib.suppress(OSError):  # it is closed, as the accept will say
                listener.settimeout(0)
        left = (self.request_queue_size + 1) * len(self._listeners.sockets)
        while left and self._connections.time_left() != 0:
            self._tidy_up()  # those that are held come first
            verdict = self._accept_one()
            if verdict is None or verdict is Verdict.SKIP:
                left -= 1
            elif self._is_queue_empty(verdict):
                return
            else:
                self._connections.wait_for_one(
                    self._accepting.back_off.longest
                )  # it frees what is short

    def _is_queue_empty(self, verdict: Verdict) -> bool:
        if verdict is Verdict.NOBODY:
            return not self._anteroom.held
        return verdict is Verdict.STOP or self._admission.suspended

    # Clients that are not admitted

    def _judge_client(self, request: Any, client_address: Any, has_place: bool) -> Ticket | None:
        """What the client takes if it is admitted; None if it is refused, which this does."""
        if not self._admission.judges:
            return NO_SHARE
        ticket = self._admission.judge(client_address)
        if isinstance(ticket, Ticket):
            return ticket
        if has_place:
            self._admission.leave(NO_SHARE)
        self._refuse(request, client_address, ticket)
        return None

    def _keep_out(
        self, request: Any, client_address: Any, ticket: Ticket, when_full: str | float
    ) -> None:
        """Hold a client that has no place for a while, if the options say so, or refuse it."""
        if isinstance(when_full, str) or not self._anteroom.hold(
            request, client_address, ticket, when_full
        ):
            self._admission.forgo(ticket)
            self._refuse(request, client_address, "max_connections")

    def _refuse(self, request: Any, client_address: Any, reason: str) -> None:
        if self._refusals.refused(reason, client_address, sockopts.local_name(request)):
            self._wake_acceptor()  # which tells of the end of the episode
        if reason in ("allow", "deny"):  # it gets nothing from us
            sockopts.force_close(request)
        else:
            self._anteroom.turn_away(request, self._refusal())

    def _shut_doors(self) -> None:
        """Close the clients that are held or about to be closed: the server is closed."""
        for guest in self._anteroom.close():
            self._admission.forgo(guest.ticket)
            sockopts.force_close(guest.request)
        self._refusals.end_episodes(quiet=0)

    def _refusal(self) -> bytes:
        text = self._options.refusal
        # A client that expects TLS could not read it.
        return b"" if text is None or self._speaks_tls() else to_bytes(text, self._options.encoding)
