"""Carries out, in a worker process, what the parent orders."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial

from ..core.record import NamedTuple
from ..server.server import Server
from .channel import Alive, Ask, Channel, Questions, Stop, Tell
from .errand import Errand
from .local import LocalProgram
from .program import Attachment
from .questions import Responder

REOPEN = "reopen"  # the command to open the files anew that the process writes


class Attached(NamedTuple):
    """What a worker has beside its server."""

    attachment: Attachment | None = None
    standing: tuple[tuple[str, str], ...] = ()
    """Commands and arguments: what the worker is asked before its first client."""
    forget: Callable[[], object] | None = None
    """Closes what a forked process has of its parent and does not need; else None."""

    def forget_others(self) -> None:
        """Close what is not for a worker."""
        if self.forget is not None:
            self.forget()
        if self.attachment is not None:
            self.attachment.forget()


class Orders:
    """Carries out the orders of the parent, in a thread of its own."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._lock = threading.Lock()  # guards what follows
        self._server: Server | None = None
        self._commands: deque[Tell] = deque()  # thread-safe
        self._errand: Errand | None = None
        self._responder: Responder | None = None

    @contextlib.contextmanager
    def carried_out(self, server: Server, attached: Attached) -> Iterator[None]:
        """While the block runs, carry out orders about `server`.

        Before it, the standing questions are asked; after it, the last figures are sent.
        """
        attachment = attached.attachment
        self.made(server)
        if attachment is None:
            yield
            return
        program = LocalProgram([server], attachment, lambda: None, {})
        responder = Responder(program)
        try:
            if attachment.attaches:
                program.attach()
            self._commands.extendleft(Tell(*order) for order in reversed(attached.standing))
            self._carry_out_all(program, attachment)
            with self._lock:
                self._responder = responder
                action = partial(self._carry_out_all, program, attachment)
                self._errand = Errand("orders", action, server)
            if self._commands:  # an order that has come just now
                self._errand.ask()
            yield
        finally:
            responder.finish()
            program.detach()

    def _carry_out_all(self, program: LocalProgram, attachment: Attachment) -> None:
        while self._commands:
            command, arguments = self._commands.popleft()
            if command == REOPEN:
                attachment.reopen()
            else:
                program.ask(command, json.loads(arguments))

    def made(self, server: Server) -> None:
        """Carry out the orders to stop, which may have come already, on `server`."""
        with self._lock:
            self._server = server

    def obey(self) -> None:
        """Carry out orders, and stop gracefully once the parent is gone. Returns then."""
        with contextlib.suppress(EOFError, OSError, ValueError):
            while True:
                for order in self._channel.receive(Stop, Ask, Tell, Questions):
                    self._take(order)
        self._stop()

    def _take(self, order: Stop | Ask | Tell | Questions) -> None:
        if isinstance(order, Stop):
            self._stop(*order)
        elif isinstance(order, Ask):
            self._answer()
        elif isinstance(order, Questions):
            self._serve(self._channel.take_socket())
        else:
            self._commands.append(order)
            with self._lock:
                errand = self._errand
            if errand is not None:
                errand.ask()

    def _serve(self, sock: socket.socket) -> None:
        with self._lock:
            responder = self._responder
        assert responder is not None, "the parent sends it to a worker that accepts clients"
        responder.serve(sock)

    def _answer(self) -> None:
        self._channel.allow()
        with self._lock:
            server = self._server
        if server is not None:  # else the parent asks too early
            server._accept_loop.call_soon(lambda: self._tell_alive(server))

    def _tell_alive(self, server: Server) -> None:
        with contextlib.suppress(OSError):  # the parent is gone
            self._channel.send(Alive(server.connection_count))

    def _stop(self, *order: float) -> None:
        with self._lock:
            server = self._server
            if server is None:  # it is being made, which may hang
                os._exit(1)
        server.request_stop(*order)
