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
import sys
import threading
from enum import Enum
from typing import TYPE_CHECKING, Any

from ..core import events
from ..core.encodings import to_bytes
from ..net import sockopts
from .accept_loop import LONGEST_PAUSE, AcceptLoop
from .admission import NO_SHARE, Ticket
from .listeners import INHERITS_OPTIONS
from .selector import ListenerSelector

if TYPE_CHECKING:
    from .server import Server


class Answer(Enum):
    """The next step of the loop after an accept that has given no client."""

    EMPTY = "wait for a client, since none is queued"
    FULL = "wait for a place, since none is free"
    SKIP = "accept the next client, since this one has failed"
    BACK_OFF = "try again after a pause, since this machine has failed"
    STOP = "end, since the listener is gone"


# accept(2) reports errors that were pending on the new connection; the listener is as good as
# before.
_OF_CLIENT = (
    "EINTR ECONNABORTED ECONNRESET EPROTO EPERM ETIMEDOUT "
    "ENETDOWN ENOPROTOOPT EHOSTDOWN ENONET EHOSTUNREACH ENETUNREACH"
)
_QUEUE_EMPTY = "EAGAIN EWOULDBLOCK"  # another process was faster
_LISTENER_GONE = "EBADF EINVAL ENOTSOCK"
_ANSWERS = {
    getattr(errno, name): answer
    for names, answer in (
        (_QUEUE_EMPTY, Answer.EMPTY),
        (_OF_CLIENT, Answer.SKIP),
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
        return Answer.SKIP
    if isinstance(error, OSError) and error.errno is not None:
        return _ANSWERS.get(error.errno, Answer.BACK_OFF)
    return Answer.BACK_OFF


def is_lost_race(error: BaseException) -> bool:
    """Whether the client has gone away, or to another process, which is not worth a log record."""
    return isinstance(error, (BlockingIOError, ConnectionAbortedError, InterruptedError))


class Acceptor:
    """Accepts the clients of one server."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._next_listener = 0  # the one that is asked first
        self._has_warned = False  # of handshakes in the accepting thread

    def step(
        self, loop: AcceptLoop, selector: ListenerSelector, seconds: float | None
    ) -> Answer | None:
        """Wait for a client for at most `seconds`, and accept it. None if there was one.

        STOP if a stop is requested, EMPTY if the wait has ended without a client.
        """
        if loop.stop_requested:
            return Answer.STOP
        server = self._server
        admission, overflow = server._admission, server._overflow
        if overflow.held or overflow.refused or server._refusals.episodes:
            seconds = sooner(seconds, self._tidy_up())
        is_ready = False
        if admission.unlimited or not admission.must_wait():
            places = admission.places_fileno() if overflow.held else None
            is_ready = selector.wait(seconds, places)
        elif admission.suspended:
            selector.pause(seconds)
        else:
            server._refusals.waiting("max_connections")
            selector.pause(seconds, admission.places_fileno())
        if loop.stop_requested:
            return Answer.STOP
        return self.accept() if is_ready else Answer.EMPTY

    def accept_queued(self) -> bool:
        """Accept the clients that connected before a stop, at most as many as queues can hold.

        Not where the program iterates over the server, which ends with the stop. This needs no
        descriptor of its own. False, and some clients may be left, if the patience of the stop has
        passed meanwhile: idle clients, which have the places, are to be asked to finish first.
        """
        server = self._server
        has_begun = server._accept_loop.has_begun and server.socket.fileno() >= 0
        if not has_begun or server._clients.iterated is not None:
            return True
        listeners, connections = server._listeners.sockets, server._connections
        for listener in listeners:
            with contextlib.suppress(OSError):  # it is closed, as the accept will say
                listener.settimeout(0)
        left, is_patient = (server.request_queue_size + 1) * len(listeners), connections.patient
        while left and connections.time_left() != 0:
            if is_patient and not connections.patient:
                return False
            self._tidy_up()  # clients that are held come first
            answer = self.accept()
            if answer is None or answer is Answer.SKIP:
                left -= 1
            elif self._is_queue_empty(answer):
                break
            else:
                connections.wait_for_one(LONGEST_PAUSE)  # which frees what is short
        return True

    def _is_queue_empty(self, answer: Answer) -> bool:
        if answer is Answer.EMPTY:
            return not self._server._overflow.held
        return answer is Answer.STOP or self._server._admission.suspended

    def _tidy_up(self) -> float | None:
        """Admit or refuse the clients that are held, and close those that were refused.

        Returns the seconds until this is worth another call; None if nothing is left to do.
        """
        server = self._server
        admission, overflow = server._admission, server._overflow
        while overflow.held and admission.enter():
            held = overflow.take_held()
            if held is None:  # the server has been closed in between
                admission.leave(NO_SHARE)
                break
            server._clients.admit(held.request, held.client_address, held.ticket)
        while overdue := overflow.take_overdue():
            admission.forgo(overdue.ticket)
            self._refuse(overdue.request, overdue.client_address, "max_connections")
        return sooner(overflow.close_refused(), server._refusals.end_episodes())

    # One client

    def take(self) -> tuple[socket.socket, Any]:
        """Accept one client: its socket, blocking, and its address.

        If there are several listeners, another one is the first to be asked each time.
        BlockingIOError if no client waits.
        """
        server = self._server
        listeners = [server.socket, *server._listeners.more]
        first = self._next_listener = (self._next_listener + 1) % len(listeners)
        listeners = listeners[first:] + listeners[:first]
        request: Any = None
        while request is None:
            listener = listeners.pop(0)
            try:
                if type(listener) is not socket.socket:  # TLS, say
                    request, client_address = listener.accept()
                else:  # as its `accept`, without the enums that it makes
                    descriptor, client_address = listener._accept()  # type: ignore[attr-defined]
                    is_first = listener is server.socket
                    family = server.address_family if is_first else listener.family
                    request = socket.socket(family, server.socket_type, 0, descriptor)
            except BlockingIOError:
                if not listeners:
                    raise
        if request.gettimeout() is not None:  # of `socket.setdefaulttimeout`
            request.settimeout(None)
        if not INHERITS_OPTIONS:  # pragma: no cover - there it inherits that it does not block, too
            request.setblocking(True)
        return request, client_address

    def accept(self) -> Answer | None:
        """Accept one client, and admit, hold or refuse it. None if there was one."""
        server = self._server
        admission, when_full = server._admission, server._options.when_full
        has_place = not server._overflow.held and admission.enter()
        if not has_place and (when_full == "wait" or admission.suspended):
            return Answer.FULL  # though one may be free by now
        try:
            request, client_address = server.get_request()
        except BaseException as error:
            if has_place:
                admission.leave(NO_SHARE)
            if self.is_for_caller(error):
                raise
            return self._failed(error)
        if type(request) is not socket.socket:
            self._look_for_handshake(request)
        ticket = admission.judge(client_address) if admission.judges else NO_SHARE
        if isinstance(ticket, str):
            if has_place:
                admission.leave(NO_SHARE)
            self._refuse(request, client_address, ticket)
        elif has_place:
            server._clients.admit(request, client_address, ticket)
        else:
            self._keep_out(request, client_address, ticket, when_full)
        return None

    def _look_for_handshake(self, request: Any) -> None:
        """Warn, once, if the accepting thread has waited for the handshake of this client."""
        ssl = sys.modules.get("ssl")
        is_done = ssl and isinstance(request, ssl.SSLSocket) and request.version() is not None
        if is_done and not self._has_warned:
            self._has_warned = True
            events.emit(events.HandshakeInAccept("get_request"), self._server)

    def is_for_caller(self, error: BaseException) -> bool:
        """Whether `error` is meant to end the program (Ctrl+C), and has a caller to be raised in.

        The thread that `Server.start` has made has none.
        """
        return not isinstance(error, Exception) and (
            threading.current_thread() is not self._server._drain.background
        )

    def _failed(self, error: BaseException) -> Answer:
        answer, loop = answer_to(error), self._server._accept_loop
        if answer is Answer.BACK_OFF:
            loop.failed(error)
        elif answer is Answer.STOP:
            if not loop.stop_requested:
                events.emit(events.ListenerLost(error), self._server)
        elif not is_lost_race(error):
            events.emit(events.AcceptFailed(error), self._server)
        return answer

    # Clients that are not admitted

    def _keep_out(
        self, request: Any, client_address: Any, ticket: Ticket, when_full: str | float
    ) -> None:
        """Hold a client that has no place for a while, if the options say so, or refuse it."""
        server = self._server
        if isinstance(when_full, str) or not server._overflow.hold(
            request, client_address, ticket, when_full
        ):
            server._admission.forgo(ticket)
            self._refuse(request, client_address, "max_connections")

    def _refuse(self, request: Any, client_address: Any, reason: str) -> None:
        server = self._server
        server._refusals.refused(reason, client_address, sockopts.local_name(request))
        if reason in ("allow", "deny"):  # it gets nothing from us
            sockopts.force_close(request)
        else:
            server._overflow.refuse(request, self._refusal())

    def _refusal(self) -> bytes:
        server = self._server
        text = server._options.refusal
        # A client that expects TLS could not read it.
        if text is None or server._clients.speaks_tls():
            return b""
        return to_bytes(text, server._options.encoding)

    def close(self) -> None:
        """Close the clients that are held or were refused, since the server is closed."""
        server = self._server
        for held in server._overflow.close():
            server._admission.forgo(held.ticket)
            sockopts.force_close(held.request)
        server._refusals.end_episodes(quiet=0)


def sooner(a: float | None, b: float | None) -> float | None:
    """Return the shorter of two times; None stands for no limit."""
    return b if a is None else a if b is None else min(a, b)
