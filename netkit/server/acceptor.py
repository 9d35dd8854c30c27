"""Accepts clients, and admits, holds or refuses each of them.

All of this happens in the thread that runs the accept loop (`AcceptLoop`). Rules:

1. Nothing ends the loop but a stop, the loss of a listener, and an exception that is meant to end
   the program (KeyboardInterrupt, SystemExit), if `serve_forever` has a caller to raise it in.
2. Nothing here waits for what a client sends, and a client that is refused costs no thread.
3. Nothing polls: the loop wakes up for a client, for a stop, and for a hook that asks for it.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import socketserver
import sys
from enum import Enum
from typing import Any

from ..core import events
from ..core.endpoint import Layers
from ..net import sockopts
from ..net.gate import PLAIN, Socket
from .accept_loop import LONGEST_PAUSE, AcceptLoop
from .admission import NO_SHARE, Admission
from .clients import Clients
from .listeners import Listeners
from .overflow import Overflow
from .refusals import Refusals
from .registry import Registry
from .selector import ListenerSelector
from .setup import Configuration


class Answer(Enum):
    """The outcome of an accept, which determines the next step of the loop."""

    NEXT = "accept the next client: this one is served, held or refused, or has failed"
    EMPTY = "wait for a client: none is there, or another process has taken it"
    BACK_OFF = "try again after a pause: this machine has failed"
    STOP = "end the loop: a stop is requested, or the listener is gone"


# accept(2) reports errors that were pending on the new connection; the listener is as good as
# before.
_OF_CLIENT = (
    "EINTR ECONNABORTED ECONNRESET EPROTO EPERM ETIMEDOUT "
    "ENETDOWN ENOPROTOOPT EHOSTDOWN ENONET EHOSTUNREACH ENETUNREACH"
)
_QUEUE_EMPTY = "EAGAIN EWOULDBLOCK"
_LISTENER_GONE = "EBADF EINVAL ENOTSOCK"
_ANSWERS = {
    getattr(errno, name): answer
    for names, answer in (
        (_OF_CLIENT, Answer.NEXT),
        (_QUEUE_EMPTY, Answer.EMPTY),
        (_LISTENER_GONE, Answer.STOP),
    )
    for name in names.split()
    if hasattr(errno, name)
}


def answer_to(error: BaseException) -> Answer:
    """Return what to do after an accept has raised `error`.

    An unknown error calls for a pause, so that the loop cannot spin.
    """
    ssl = sys.modules.get("ssl")  # an overridden get_request may do a handshake in accept
    if isinstance(error, TimeoutError):  # of the listener's own time limit
        return Answer.EMPTY
    if ssl and isinstance(error, ssl.SSLError):
        return Answer.NEXT
    if isinstance(error, OSError) and error.errno is not None:
        return _ANSWERS.get(error.errno, Answer.BACK_OFF)
    return Answer.BACK_OFF


def is_lost_race(error: BaseException) -> bool:
    """Whether the client has gone away, or to another process, which is not worth a log record."""
    return isinstance(error, (BlockingIOError, ConnectionAbortedError, InterruptedError))


class Acceptor:
    """Accepts the clients of one server."""

    def __init__(
        self,
        server: socketserver.ThreadingTCPServer,
        configuration: Configuration,
        loop: AcceptLoop,
        listeners: Listeners,
        admission: Admission,
        overflow: Overflow,
        refusals: Refusals,
        registry: Registry,
        clients: Clients,
    ) -> None:
        """The hook `get_request` of `server` is called for each client."""
        self._server = server
        self._configuration = configuration
        self._loop = loop
        self._listeners = listeners
        self._admission = admission
        self._overflow = overflow
        self._refusals = refusals
        self._registry = registry
        self._clients = clients
        self._next_listener = 0  # the one that is asked first
        self._listener = 0  # the one of the last client
        self._has_warned = False  # of handshakes in the accepting thread

    def step(self, selector: ListenerSelector, seconds: float | None) -> Answer:
        """Wait for a client for at most `seconds`, and accept it.

        STOP if a stop is requested, EMPTY if the wait has ended without a client.
        """
        if selector.stopped:
            return Answer.STOP
        admission, overflow, loop = self._admission, self._overflow, self._loop
        if overflow.held or overflow.refused or self._refusals.episodes or loop.is_short:
            seconds = sooner(seconds, self._tidy_up())
        is_ready = False
        if admission.unlimited or not admission.must_wait():
            places = admission.places_fileno() if overflow.held else None
            is_ready = selector.wait(seconds, places)
        elif admission.suspended:
            selector.pause(seconds)
        else:
            self._refusals.waiting("max_connections")
            selector.pause(seconds, admission.places_fileno())
        if selector.stopped:
            return Answer.STOP
        return self.accept() if is_ready else Answer.EMPTY

    def accept_queued(self) -> bool:
        """Accept the clients that connected before a stop, at most as many as queues can hold.

        If the program iterates over the server, none is accepted, since the iteration ends with the
        stop. False, and some clients may be left, if the present phase of the stop is over: idle
        clients, which have the places, are to be asked to finish first. Until the accept itself,
        this needs no free descriptor.
        """
        has_begun = self._loop.has_begun and self._server.socket.fileno() >= 0
        if not has_begun or self._clients.deliver is not None:
            return True
        admission, listeners, registry = self._admission, self._listeners.sockets, self._registry
        for listener in listeners:
            with contextlib.suppress(OSError):  # it is closed, as the accept will say
                listener.settimeout(0)
        left = (self._server.request_queue_size + 1) * len(listeners)
        while left and not registry.is_phase_over():
            self._tidy_up()  # clients that are held come first
            is_queued = any(map(sockopts.readable, listeners))
            if admission.suspended or not (is_queued or self._overflow.held):
                return True
            answer = Answer.BACK_OFF
            if is_queued and not admission.must_wait():
                answer = self.accept()
            if answer is Answer.STOP:
                return True
            if answer is Answer.BACK_OFF:
                registry.wait_for_one(LONGEST_PAUSE)  # which frees what is short
            else:
                left -= 1
        return not left

    def _tidy_up(self) -> float | None:
        """Admit or refuse the clients that are held, close those that were refused, end episodes.

        Returns the seconds until this is worth another call; None if nothing is left to do.
        """
        admission, overflow = self._admission, self._overflow
        while overflow.held and admission.enter():
            held = overflow.take_held()
            if held is None:  # the server has been closed in between
                admission.leave(NO_SHARE)
                break
            request, address = held.request, held.client_address
            self._clients.admit(request, address, held.ticket, held.layers, held.accepted_at)
        while overdue := overflow.take_overdue():
            admission.give_share_back(overdue.ticket)
            request, address = overdue.request, overdue.client_address
            self._refuse(request, address, "max_connections", overdue.layers)
        seconds = sooner(overflow.close_refused(), self._refusals.end_episodes())
        return sooner(seconds, self._loop.end_shortage())

    # One client

    def take(self) -> tuple[socket.socket, Any]:
        """Accept one client: its socket, blocking, and its address.

        If there are several listeners, another one is the first to be asked each time.
        BlockingIOError if no client waits.
        """
        server = self._server
        listeners = [server.socket, *self._listeners.more]
        first = self._next_listener = (self._next_listener + 1) % len(listeners)
        number, request = first, None
        while request is None:
            listener = listeners[number]
            try:
                if type(listener) is not socket.socket:  # TLS, say
                    request, client_address = listener.accept()
                else:  # as its `accept`, without the enums that it makes
                    descriptor, client_address = listener._accept()  # type: ignore[attr-defined]
                    is_first = listener is server.socket
                    family = server.address_family if is_first else listener.family
                    request = Socket(family, server.socket_type, 0, descriptor)
            except BlockingIOError:
                number = (number + 1) % len(listeners)
                if number == first:
                    raise
        self._listener = number
        if request.gettimeout() is not None:  # of `socket.setdefaulttimeout`
            request.settimeout(None)
        if not sockopts.INHERITS_OPTIONS:  # pragma: no cover - it inherits that it does not block
            request.setblocking(True)
        return request, client_address

    def accept(self) -> Answer:
        """Accept one client, and admit, hold or refuse it."""
        admission, when_full = self._admission, self._configuration.setup.options.when_full
        has_place = not self._overflow.held and admission.enter()
        if not has_place and (when_full == "wait" or admission.suspended):
            return Answer.EMPTY  # another process has taken the place since
        self._listener = 0  # a `get_request` that does not call `take` knows no other
        try:
            request, client_address = self._server.get_request()
        except BaseException as error:
            if has_place:
                admission.leave(NO_SHARE)
            if self._loop.is_for_caller(error):
                raise
            return self._failed(error)
        if type(request) not in PLAIN:
            self._look_for_handshake(request)
        layers = self._listeners.layers[self._listener]
        if layers.proxy:  # its header says later who the client is
            ticket = admission.judge_proxy(client_address)
        else:
            ticket = admission.judge(client_address) if admission.judges else NO_SHARE
        if isinstance(ticket, str):
            if has_place:
                admission.leave(NO_SHARE)
            self._refuse(request, client_address, ticket, layers)
        elif has_place:
            self._clients.admit(request, client_address, ticket, layers)
        elif isinstance(when_full, str) or not self._overflow.hold(
            request, client_address, ticket, when_full, layers
        ):
            admission.give_share_back(ticket)
            self._refuse(request, client_address, "max_connections", layers)
        return Answer.NEXT

    def _look_for_handshake(self, request: Any) -> None:
        """Warn, once, if the accepting thread has waited for the handshake of this client."""
        ssl = sys.modules.get("ssl")
        is_done = ssl and isinstance(request, ssl.SSLSocket) and request.version() is not None
        if is_done and not self._has_warned:
            self._has_warned = True
            events.emit(events.HandshakeInAccept("get_request"), self._server)

    def _failed(self, error: BaseException) -> Answer:
        answer = answer_to(error)
        if answer is Answer.BACK_OFF:
            self._loop.failed(error)
        elif answer is Answer.STOP:
            if not self._loop.stop_requested:
                self._loop.lost = error
                events.emit(events.ListenerLost(error), self._server)
        elif not is_lost_race(error):
            events.emit(events.AcceptFailed(error), self._server)
        return answer

    # Clients that are not admitted

    def _refuse(self, request: Any, client_address: Any, reason: str, layers: Layers) -> None:
        self._refusals.refused(reason, client_address, sockopts.local_name(request))
        message = self._configuration.setup.refusal(reason, layers.tls)
        if message is None:
            sockopts.force_close(request)
        else:
            self._overflow.refuse(request, message)

    def close(self) -> None:
        """Close the clients that are held or were refused, since the server is closed."""
        for held in self._overflow.close():
            self._admission.give_share_back(held.ticket)
            sockopts.force_close(held.request)
        self.end_episodes()

    def end_episodes(self) -> None:
        """Report the refusals so far, since the server stops."""
        self._refusals.end_episodes(quiet=0)


def sooner(a: float | None, b: float | None) -> float | None:
    """Return the shorter of two times; None stands for no limit."""
    return b if a is None else a if b is None else min(a, b)
