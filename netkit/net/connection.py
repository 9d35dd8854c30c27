"""One TCP connection: what a handler gets, and what `connect` returns.

Rules:

1. A connection belongs to one thread at a time, which reads it and closes its descriptor. Other
   threads may write (writes never mix), look at it, and ask it to stop: `end_input`, `interrupt`,
   `cut`, `close`, `destroy`. Closing a descriptor wakes no thread that waits in it, so these shut
   the socket down and leave the closing to the thread that is in it. But for `close`, which may
   wait for `LINGER_SECONDS`, none of them waits for another thread, or for the one that a signal
   handler has interrupted.
2. `_lock` guards the flags and the life of the descriptor. A thread that shuts the socket down
   holds it, so the number cannot belong to another client by then. (Its reads and writes, and what
   they lock, are in `netkit.net.stream`, `netkit.net.writing` and `netkit.net.securing`.)
3. Closing never truncates: the end of our side is sent first, and what the peer still sends is
   swallowed for a while, since closing with unread input makes the kernel reset the connection and
   throw away what the peer has not read yet (RFC 2525 section 2.17).
4. Half a message never passes for a whole one: where a write has failed with a part of it sent, the
   end of our side is a reset, and TLS sends no close_notify.
"""

from __future__ import annotations

import errno
import socket
import time
from types import TracebackType
from typing import Any, TypeVar

from ..core.deadline import Deadline
from ..core.errors import ConnectionClosedError
from ..core.options import MAX_LINE, MAX_MESSAGE
from ..core.reader import CHUNK
from . import bare, sockopts
from .securing import SecurableStream
from .stream import IN_SOCKET, NO_LIMITS
from .timeouts import HandshakeTimer
from .writing import Sink, Writable, write_all

_Self = TypeVar("_Self", bound="Connection")

# How long, and for how much, a close waits for the peer to end its side: enough for a client that
# reads an early reply only after its upload, too little to be worth an attack.
LINGER_SECONDS = 5.0
LINGER_BYTES = 16 * 1024 * 1024

# A client of a handler that reads the bare socket is taken for idle after this much silence
# (seconds): the gaps within a message are shorter, and a stop may well wait that long.
QUIET_SECONDS = 0.5

# How often a stop looks whether a slow peer's kernel has got the rest of a reply (seconds). Ending
# the wait for it earlier would let a byte from the peer reset the connection, and destroy the rest.
# The kernel has no event for it (see `sockets.ACKNOWLEDGEMENT`); it is asked only while one
# that is being closed has unacknowledged bytes.
UNSENT_SECONDS = 0.05


class Connection(SecurableStream):
    """A blocking, two-way stream of bytes.

    Reads return ``bytes``, or ``str`` once `set_encoding` was called; at the end of input they
    return an empty one. All of them raise ConnectionResetError if the peer reset the connection,
    TimeoutError if `set_timeout` was called and nothing came in that time (the connection is still
    good), and ConnectionClosedError after `close`. Use it in a ``with`` block, which closes it. If
    the block raises, that is at once (`destroy`), and the peer sees a reset, since it may have half
    a message; not after `end`, and not if the peer is to blame for what is raised. A server closes
    the connections that it hands to handlers.

    Attributes, all of them readable after `close`:

    - `id`, a number that no other connection of its server has, in any of the worker processes;
    - `server`, its `Server`, or None;
    - `remote_address`, `remote_port`, `remote_family` and `local_address`, `local_port`,
      `local_family`: numeric address, port, ``"IPv4"`` or ``"IPv6"``; None for a Unix socket;
    - `peer` and `local`, the other end and ours for people: ``127.0.0.1:50312``;
    - `bytes_read`, `bytes_written`; `error`, the failure that reading or writing met, or None;
    - `attempted_addresses`, those that `connect` has tried, the last of them with success;
    - `opened_at` on the monotonic clock; `socket`, for options that have no method here;
    - `thread`, the identifier of the thread that serves it, or None;
    - `was_cut`: whether a stopping server has ended it before its handler was done;
    - `tls`, the `TlsStream` that says what was agreed on, None without TLS;
    - `opaque`: whether a handler reads the socket itself (then nothing is counted);
    - `encoding`, `max_line` and `max_message`, which may be set.
    """

    __slots__ = ("_bare", "lifetime", "opened_at", "server", "thread", "ticket")
    attempted_addresses: tuple[str, ...] = ()

    def __init__(
        self,
        sock: socket.socket,
        client_address: Any = None,
        local_name: Any = None,
        server: Any = None,
        encoding: str = "utf-8",
        max_line: int = MAX_LINE,
        max_message: int | None = MAX_MESSAGE,
        opaque: bool = False,
    ) -> None:
        """Take over `sock`, connected; it blocks from now on, unless it is `opaque`.

        `opaque`: others read it, we only watch it.

        `client_address` and `local_name`: its peer's name and its own, where they are known.
        """
        if not opaque:
            sockopts.waiting(sock)
        super().__init__(sock, client_address, local_name, opaque, encoding, max_line, max_message)
        self._bare = bare.BareSocket(sock, self._remote_name, self._local_name) if opaque else None
        self.server = server
        self.opened_at = time.monotonic()
        self.lifetime: float | None = None  # its server's limit when it came (seconds)
        self.thread: int | None = None
        self.ticket: Any = None  # what its server has to give back when it is over

    # Passing on

    def pipe_to(self, destination: Sink, end: bool = True) -> int:
        """Copy what comes to a connection or a binary file, until it ends.

        Returns the number of bytes that `destination` has taken. Always bytes, also after
        `set_encoding`. In the end a connection's own side is ended, with `end`; a file stays open,
        and is not flushed. A non-blocking file is waited for, if it has a descriptor;
        BlockingIOError if it has none. Raises what reading and writing raise: `is_to_blame` tells
        whose fault it was.
        """
        copied = 0
        self._settle()
        while data := self._read_some(CHUNK):
            write_all(destination, data)
            copied += len(data)
        if end and isinstance(destination, Connection):
            destination.end()
        return copied

    # Ending

    def end(self, data: Writable | None = None, encoding: str | None = None) -> None:
        """Write `data`, if any, and end our side: the peer sees the end of input (half-close).

        Reading goes on. Ending twice is fine, writing after it is WriteAfterEndError. If a write
        has failed, and so what was written is not whole, its error is raised again and our side is
        not ended; RuntimeError as for `write`. With TLS, whose end is something to be sent, it may
        raise TimeoutError as a write does.
        """
        if data is not None:
            self.write(data, encoding)
        with self._output():
            if self._broken is not None and not (self._closed or self._closing):
                self._check_writable()
            self._send_corked()
            try:
                self._say_goodbye()
            except TimeoutError as error:
                self._end_output()
                raise self._failure(error) from None
            self._end_output()

    def _end_output(self) -> None:
        with self._lock:
            if not self._closed and not self._ended:
                self._changed = self._ended = True
                sockopts.shut_down(self.socket, socket.SHUT_WR)

    # Closing

    def close(self) -> None:
        """End our side, let the peer have everything, and give the descriptor back. Idempotent.

        Waits up to `LINGER_SECONDS`, for writes of other threads that are under way, and for the
        peer to end its side, while there is anything that a reset could destroy. If a write has
        failed, or is not done by then, the peer sees a reset. Never raises for what the peer did.
        From any thread: if another one is waiting in a read, that read returns the end of input and
        closes the descriptor.
        """
        if self.finish():
            self._release()

    def finish(self) -> bool:
        """The first part of `close`, all but giving back the descriptor.

        False if there is nothing left to do: it is closed, or another thread is about to close it.
        """
        with self._lock:
            if self._closed or self._closing:
                return False
            self._changed = self._closing = True
        if self._handshaking is not None and self._leave_closing():
            return False
        if self.ticket is not None:  # what follows may wait for the peer
            self.server._admission.linger(self)
        deadline = Deadline(LINGER_SECONDS)
        if not self._send_the_end(deadline):
            self._abort(reset=self._can_reset())
            return False
        if self._leave_closing():
            return False
        if self._failed and self._can_reset():
            self._linger(deadline, to_reset=True)
        elif self._is_input_over() and not self._input_shut:  # most clients leave first
            with self._lock:
                sockopts.shut_down(self.socket, socket.SHUT_WR)
        else:
            self._linger(deadline)
        self._finished = True
        return True

    def _send_the_end(self, deadline: Deadline) -> bool:
        """What is still to be sent. False if a write is under way, of which only a part is sent."""
        if not self._write_lock.acquire(timeout=deadline.remaining() or 0):
            return False
        try:
            with self._output():
                if self.tls is not None or self._corked:
                    self._timer = HandshakeTimer(
                        self.socket, deadline.remaining() or 0, self.peer, self._timer, name="close"
                    )
                if self._corked:
                    self._send_corked()
                if (self.tls is not None or self.opaque) and not self._failed:
                    self._say_goodbye()
        except OSError:  # it takes nothing any more
            pass
        except RuntimeError:  # a signal handler has interrupted this thread's own write
            return False
        finally:
            self._write_lock.release()
        return True

    def _leave_closing(self) -> bool:
        """Leave it to the thread that is waiting in a read, if it still is."""
        with self._lock:
            if not self._waiting:
                return False
            self._closed = True
            if self._failed and self._can_reset():
                sockopts.reset_on_close(self.socket)
                sockopts.shut_down(self.socket, socket.SHUT_RD)
            else:
                sockopts.shut_down(self.socket, socket.SHUT_RDWR)
            return True

    def destroy(self) -> None:
        """Close at once, without waiting for anything. Idempotent, from any thread.

        What was written and not sent yet may be lost; a thread that waits in a read or a write of
        this connection returns from it, and gives the descriptor back. The peer sees the end of
        input, or a reset if a write has failed or is under way.
        """
        self._abort(reset=False)

    def reset(self) -> None:
        """As `destroy`, and the peer sees a reset (ECONNRESET), not an end of input.

        OSError (EOPNOTSUPP), and it stays open, for a Unix socket: it knows no such thing.
        """
        if not self._can_reset():
            raise OSError(errno.EOPNOTSUPP, f"a Unix socket cannot be reset ({self.peer})")
        self._abort(reset=True)

    def detach(self) -> tuple[socket.socket, bytes]:
        """Give up the socket: it, blocking, and what has been received and not been read.

        This connection is closed, and its peer sees nothing of it: for another library, or another
        process (`netkit.send_connection`). ConnectionClosedError; ValueError with TLS, while
        another thread reads, and for a socket that its handler reads itself.
        """
        self._changed = True
        with self._output():
            self._send_corked()
            with self._lock:
                if self._closed or self._closing:
                    raise ConnectionClosedError
                if self._broken is not None:
                    raise self._broken
                if self.is_secured() or self.opaque or self._waiting:
                    raise ValueError("only a connection without TLS that nobody reads is detached")
                self.set_limits(NO_LIMITS)
                self._closed = True
                sock = sockopts.waiting(socket.socket(fileno=self.socket.detach()))
        return sock, self._forget_received()

    def _can_reset(self) -> bool:
        return isinstance(self._remote_name, tuple)

    def _abort(self, reset: bool) -> None:
        with self._lock:
            if not self._closed:
                self._changed = self._closed = True
                if (self._failed or self._writing) and self._can_reset():
                    reset = True
                if reset:
                    sockopts.reset_on_close(self.socket)
                if reset or not self._finished:
                    # It wakes a thread that waits. It also ends our side, which a reset should not
                    # do first: where no thread writes, ending the input is enough.
                    soft = reset and self._writing != IN_SOCKET
                    sockopts.shut_down(self.socket, socket.SHUT_RD if soft else socket.SHUT_RDWR)
        self._leave_socket()

    def _is_input_over(self) -> bool:
        """Whether nothing can come any more: the peer has ended its side, of the TCP connection."""
        if self.tls is not None:
            return self.tls.eof
        return self._eof and not (self._draining or self._input_shut)

    def _linger(self, deadline: Deadline, to_reset: bool = False) -> None:
        """Half-close, and swallow what still comes, where closing at once could do harm.

        `to_reset`: the peer gets what was written, as far as it takes it, and then a reset.
        """
        self._forget_received()
        sock, seconds = self.socket, deadline.remaining() or 0
        ended, shut = self._is_input_over(), self._input_shut
        # A client has what it wanted; and one that has sent more after our last word has read it.
        answered = not self.opaque and self._heard == self.bytes_written
        hurried = self._draining or self.server is None or answered
        with self._lock:
            if self._closed:
                return
            self._waiting = True  # so that `end_input`, `cut` and `destroy` can end it
        try:
            if not to_reset:
                sockopts.linger(
                    sock, seconds, LINGER_BYTES, ended=ended, input_shut=shut, hurried=hurried
                )
            else:
                if not isinstance(self._broken, TimeoutError):  # it has had its time
                    sockopts.deliver(sock, seconds, LINGER_BYTES)
                sockopts.reset_on_close(sock)
        finally:
            self._waiting = False
        self._leave_socket()

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.fail(error)
            self.destroy()

    # Being stopped, by another thread

    def end_input(self) -> float | None:
        """Ask it to finish: what is under way goes on, and then its input ends.

        An idle connection (its thread waits in a read, with nothing of a message received) sees
        the end of input at once; a busy one when it has read the message under way. Returns None,
        or the seconds after which to ask again: for an opaque one that is busy, or about to speak
        TLS, and for one that waits in `close` for the peer to get the rest.
        """
        with self._lock:
            self._changed = self._draining = True
            if self._closed:
                return None
            if self._closing and sockopts.unsent(self.socket):
                return UNSENT_SECONDS
            with bare.reached(self.socket, self._bare) as sock:
                if self.opaque:
                    if sock.fileno() < 0:  # it is about to be closed, or out of our sight
                        return UNSENT_SECONDS
                    wait = sockopts.seconds_until_quiet(sock, QUIET_SECONDS)
                    if wait:
                        return wait
                elif not self._waiting or self._has_begun():
                    return None
                self._input_shut = True
                sockopts.shut_down(sock, socket.SHUT_RD)
                return None

    def interrupt(self, reason: OSError, hard: bool = False) -> bool:
        """Wake its thread from a read or a write, and raise `reason` there; from any thread.

        If it does neither, the next read or write raises it. If the handler lets it pass, the
        client gets what has been written, and the log has the reason. A handler that catches it
        finds its input ended, but for what has been received already, and may write a last word;
        if it was a write that was ended, or this is `hard`, all it tries raises `reason`. One that
        reads the socket itself sees the end of both. False if the connection was over. TypeError.
        """
        if not isinstance(reason, OSError):
            raise TypeError(f"reason must be an OSError, not {reason!r}")
        return self._end_now(reason, hard)

    def cut(self) -> bool:
        """End it now, in both directions; its thread wakes and closes it. False if it was over.

        Without TLS the peer sees the end of input, also between two writes of one reply.
        """
        return self._end_now(None, True)

    def _end_now(self, reason: OSError | None, hard: bool) -> bool:
        with self._lock:
            if self._closed:
                return False
            self._changed = True
            if reason is None:
                self._draining = self.was_cut = True
            else:
                self._interruption = reason
                self._input_shut = True
            hard = hard or self.opaque or self._closing or self._writing == IN_SOCKET
            self._last_word = not hard
            with bare.reached(self.socket, self._bare) as sock:
                sockopts.shut_down(sock, socket.SHUT_RDWR if hard else socket.SHUT_RD)
            return True

    # Settings and state

    @property
    def closed(self) -> bool:
        """Whether this side has closed it."""
        return self._closed

    def fileno(self) -> int:
        """The descriptor, -1 once closed: for `selectors` and for socket options.

        What has been received already (`pending`) is not seen by `select`: look there first.
        """
        return self.socket.fileno()

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self.id} {self.peer} {'closed' if self._closed else 'open'}>"
        )
