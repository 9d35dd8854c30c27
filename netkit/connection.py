"""One TCP connection: what a handler gets, and what `connect` returns.

Rules:

1. A connection belongs to one thread at a time, which reads it and closes its descriptor. Other
   threads may write (writes never mix), look at it, and ask it to stop: `end_input`, `cut`,
   `close`, `destroy`. Closing a descriptor wakes nobody who waits in it, so these shut the socket
   down and leave the closing to the thread that waits.
2. `_lock` guards the flags and the life of the descriptor: whoever shuts the socket down holds it,
   so the number cannot belong to another client by then. Nobody waits while holding it.
3. `_reading` is held during a wait for input, `_write_lock` for the whole of a write; both come
   before `_lock`. A read and a write take one lock each, and look at one flag, `_changed`, for all
   that may have happened: locks are most of what they cost.
4. Input ends (`b""`) when the peer has ended its side, or when the server has stopped and nothing
   more of a message is under way. A reset is an error, not an end.
5. Closing never truncates: the end of our side is sent first, and what the peer still sends is
   swallowed for a while, since closing with unread input makes the kernel reset the connection and
   throw away what the peer has not read yet (RFC 2525 section 2.17).
"""

from __future__ import annotations

import errno
import itertools
import socket
import threading
import time
from types import TracebackType
from typing import Any, TypeVar

from . import sockets
from .addresses import Ends, describe_peer
from .encodings import to_bytes
from .errors import ConnectionClosedError, WriteAfterEndError
from .options import check_seconds
from .reading import FIRST_CHUNK, Reader, next_chunk

Writable = str | bytes | bytearray | memoryview
_Bytes = bytes | bytearray | memoryview
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
UNSENT_SECONDS = 0.05

_ids = itertools.count(1)
_ids_lock = threading.RLock()  # `next` on a shared count is not atomic without the GIL


class Connection(Reader, Ends):
    """A blocking, two-way stream of bytes.

    Reads return ``bytes``, or ``str`` once `set_encoding` was called; at the end of input they
    return an empty one. All of them raise ConnectionResetError if the peer reset the connection,
    TimeoutError if `set_timeout` was called and nothing came in that time (the connection is still
    good), and ConnectionClosedError after `close`.

    Use it in a ``with`` block, which closes it: politely (`close`), or at once (`destroy`) if the
    block raises. A server closes the connections that it hands to handlers.

    Attributes, all of them readable after `close`:

    - `id`, a number that no other connection of this process has;
    - `server`, the `Server` that accepted it, or None;
    - `remote_address`, `remote_port`, `remote_family` and `local_address`, `local_port`,
      `local_family`: numeric address, port, ``"IPv4"`` or ``"IPv6"``; None for a Unix socket;
    - `peer`, the other end for people: ``127.0.0.1:50312``;
    - `bytes_read` and `bytes_written`;
    - `error`, the failure that reading or writing met, or None;
    - `opened_at` on the monotonic clock;
    - `thread`, the identifier of the thread that serves it, or None;
    - `socket`, for options that have no method here;
    - `was_cut`: whether a stopping server has ended it before its handler was done;
    - `opaque`: whether a handler reads the socket itself (then nothing is counted);
    - `encoding`, `max_line` and `max_message`, which may be set.
    """

    # Slots, since a dictionary of so many attributes costs each client 2 KiB. The one among them is
    # for those that a program sets, and made when it does.
    __slots__ = (
        *("id", "server", "peer", "socket", "thread", "opaque", "opened_at"),
        *("bytes_read", "bytes_written", "error", "was_cut"),
        *("_remote_name", "_local_name", "_timeout", "_chunk"),
        *("_lock", "_reading", "_write_lock"),
        *("_changed", "_eof", "_peer_ended", "_ended", "_draining", "_input_shut"),
        *("_closing", "_finished", "_closed", "__dict__", "__weakref__"),
    )

    def __init__(
        self,
        sock: socket.socket,
        client_address: Any = None,
        local_name: Any = None,
        *,
        server: Any = None,
        encoding: str = "utf-8",
        max_line: int = 64 * 1024,
        max_message: int | None = None,
        opaque: bool = False,
    ) -> None:
        """Take over `sock`, connected and blocking. `opaque`: others read it, we only watch it.

        `client_address` and `local_name`: its peer's name and its own, where they are known.
        """
        super().__init__(encoding, max_line, max_message)
        with _ids_lock:
            self.id = next(_ids)
        if client_address is None:
            client_address = sock.getpeername()
        self.server = server
        self.peer = describe_peer(client_address)
        self._remote_name = client_address
        self._local_name = local_name or sockets.local_name(sock)
        self.bytes_read = 0
        self.bytes_written = 0
        self.error: BaseException | None = None
        self.opened_at = time.monotonic()
        self.thread: int | None = None
        self.socket = sock
        self.opaque = opaque
        self._timeout: float | None = None
        self._chunk = FIRST_CHUNK
        self._changed = False  # one of the flags below is set that says more than "open"
        self._eof = False
        self._peer_ended = False
        self._ended = False
        self._reading = threading.Lock()
        self._write_lock = threading.Lock()
        self._lock = threading.RLock()  # a signal handler may stop the server from within
        self._draining = False  # no message is to be begun any more
        self._input_shut = False  # by `end_input`
        self.was_cut = False
        self._closing = self._finished = self._closed = False

    # Receiving and sending

    def _receive(self) -> bytes:
        """One chunk from the kernel; ``b""`` at the end of input."""
        try:
            with self._reading:
                if self._changed and self._is_at_end():
                    return b""
                chunk = self._chunk
                data = self.socket.recv(chunk)
        except OSError as error:
            raise self._failure(error, "received from") from None
        finally:
            if self._changed:
                self._stop_waiting()
        if not data:
            return self._note_end()
        size = len(data)
        self.bytes_read += size
        if size == chunk or chunk > FIRST_CHUNK:
            self._chunk = next_chunk(chunk, size)
        return data

    def _is_at_end(self) -> bool:
        if self._closed or self._closing:
            raise ConnectionClosedError
        if self._draining and not self._buffer and not sockets.readable(self.socket):
            self._eof = True
        return self._eof

    def _note_end(self) -> bytes:
        if self.was_cut and self._buffer:  # half a message is not to pass for a whole one
            raise self._failure(OSError(), "received from")
        self._eof = self._changed = True
        self._peer_ended = not self._draining
        return b""

    def _is_waiting(self) -> bool:
        """Whether a thread is in a recv. Ask only once `_changed` has been set, see there."""
        if self._reading.acquire(blocking=False):
            self._reading.release()
            return False
        return True

    def _stop_waiting(self) -> None:
        with self._lock:
            closed = self._closed
        if closed:  # another thread has closed it meanwhile and left this to us
            self._release()

    def _note_change(self) -> None:
        """Have every thread that comes to a wait, or leaves one, look at the flags.

        In a step of its own, and before the question who is waiting: then either we find a thread
        in its wait, or it finds the flags. (Taking and giving back the lock keeps this order also
        where processors do not.)
        """
        with self._lock:
            self._changed = True

    def _failure(self, error: OSError, what: str) -> OSError:
        """The exception for a failed system call, which is remembered as this connection's."""
        failure = error
        if self.was_cut:
            text = f"the connection to {self.peer} was cut, since the server stops"
            failure = ConnectionAbortedError(errno.ECONNABORTED, text)
        elif isinstance(error, BlockingIOError):
            text = f"nothing {what} {self.peer} for {self._timeout or 0:g} seconds"
            failure = TimeoutError(errno.ETIMEDOUT, text)
        elif isinstance(error, BrokenPipeError) and (self._closed or self._closing):
            failure = ConnectionClosedError()  # by another thread, during the call
        else:
            failure = sockets.explain(error, self.peer)
        self.error = failure
        return failure

    # Writing

    def write(self, data: Writable, encoding: str | None = None) -> int:
        """Send all of `data` and return its number of bytes once the kernel has them.

        Text is encoded with `encoding`, or else with this connection's. Waits while the peer's
        window and the kernel's buffer are full: a slow peer slows this thread and no other.
        Thread-safe: what one call writes stays together.

        WriteAfterEndError after `end`, ConnectionClosedError after `close`, BrokenPipeError or
        ConnectionResetError if the peer is gone, TimeoutError if `set_timeout` was called and the
        peer took nothing in that time.
        """
        payload = data if type(data) is bytes else self._encoded(data, encoding)
        with self._write_lock:
            if self._changed:
                self._check_writable()
            if not payload:
                return 0
            try:
                sent = self.socket.send(payload)
                self.bytes_written += sent
                if sent < len(payload):
                    self._send_rest(payload, sent)
            except OSError as error:
                raise self._failure(error, "could be sent to") from None
        return len(payload)

    def _encoded(self, data: Writable, encoding: str | None) -> _Bytes:
        if isinstance(data, (bytes, bytearray)):
            return data
        if isinstance(data, memoryview) and data.c_contiguous:
            return data.cast("B")
        return to_bytes(data, encoding or self.encoding)

    def _check_writable(self) -> None:
        if self._closed or self._closing:
            raise ConnectionClosedError
        if self._ended:
            raise WriteAfterEndError

    def _send_rest(self, payload: _Bytes, sent: int) -> None:
        with memoryview(payload) as whole:  # given up even if `self.error` keeps this frame
            while sent < len(whole):
                more = self.socket.send(whole[sent:])
                self.bytes_written += more
                sent += more

    def end(self, data: Writable | None = None, encoding: str | None = None) -> None:
        """Write `data`, if any, and end our side: the peer sees the end of input (half-close).

        Reading goes on. Ending twice is fine, writing after it is WriteAfterEndError.
        """
        if data is not None:
            self.write(data, encoding)
        self._note_change()
        with self._write_lock, self._lock:
            if not self._closed and not self._ended:
                self._ended = True
                sockets.shut_down(self.socket, socket.SHUT_WR)

    # Closing

    def close(self) -> None:
        """End our side, let the peer have everything, and give the descriptor back. Idempotent.

        Waits up to `LINGER_SECONDS` for the peer to end its side, while there is anything that a
        reset could destroy. Never raises for what the peer did. From any thread: if another one is
        waiting in a read, that read returns the end of input and closes the descriptor.
        """
        if self.finish():
            self._release()

    def finish(self) -> bool:
        """The first part of `close`, all but giving back the descriptor.

        False if there is nothing left to do: it is closed, or another thread is about to close it.
        """
        if self._closed:
            return False
        self._note_change()
        with self._lock:
            if self._closed or self._closing:
                return False
            self._closing = True
            if self._is_waiting():
                self._closed = True
                sockets.shut_down(self.socket, socket.SHUT_RDWR)
                return False
        if not self._write_lock.acquire(timeout=LINGER_SECONDS):  # another thread is writing
            with self._lock:
                sockets.shut_down(self.socket, socket.SHUT_RDWR)
            return True
        self._write_lock.release()
        if self._peer_ended and not self._input_shut:  # most clients are the first to leave
            with self._lock:
                sockets.shut_down(self.socket, socket.SHUT_WR)
        else:
            self._linger()
        self._finished = True
        return True

    def destroy(self) -> None:
        """Close at once, without waiting for anything. Idempotent, from any thread.

        What was written and not sent yet may be lost; a thread that waits in a read or a write of
        this connection returns from it.
        """
        self._abort(reset=False)

    def reset(self) -> None:
        """As `destroy`, and the peer sees a reset (ECONNRESET), not an end of input."""
        self._abort(reset=True)

    def _abort(self, reset: bool) -> None:
        if self._closed:
            return None
        if self._finished and not reset:
            return self._release()
        self._note_change()
        with self._lock:
            if self._closed:
                return None
            self._closed = True
            if reset:
                sockets.reset_on_close(self.socket)
            # A shutdown wakes who waits. It also ends our side, which a reset should not do first:
            # where nobody writes, ending the input is enough.
            waiting = self._is_waiting()
            writing = self._write_lock.locked()
            how = socket.SHUT_RD if reset and not writing else socket.SHUT_RDWR
            sockets.shut_down(self.socket, how)
            if waiting:
                return None
        return self._release()

    def _linger(self) -> None:
        """Half-close, and swallow what still comes, where closing at once could do harm."""
        self._forget_received()
        with self._reading:  # so that `end_input`, `cut` and `destroy` can end it
            sockets.linger(
                self.socket,
                LINGER_SECONDS,
                LINGER_BYTES,
                ended=self._peer_ended,
                input_shut=self._input_shut,
                # A client has what it wanted, and a stopping server has no time.
                hurried=self._draining or self.server is None,
            )
        self._stop_waiting()

    def _release(self) -> None:
        with self._write_lock, self._lock:
            self._closed = True
            sockets.force_close(self.socket)

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.destroy()

    # Being stopped, by another thread

    def end_input(self) -> float | None:
        """Ask it to finish: what is under way goes on, and then its input ends.

        An idle connection (its thread waits in a read, with nothing of a message received) sees
        the end of input at once; a busy one when it has read the message under way. Returns None,
        or the seconds after which to ask again: for an opaque one that is busy, and for one that
        waits in `close` for the peer to get the rest.
        """
        self._note_change()
        with self._lock:
            self._draining = True
            if self._closed:
                return None
            if self._closing and sockets.unsent(self.socket):
                return UNSENT_SECONDS
            if self.opaque:
                wait = sockets.seconds_until_quiet(self.socket, QUIET_SECONDS)
                if wait:
                    return wait
            elif not self._is_waiting() or self._buffer:
                return None
            self._input_shut = True
            sockets.shut_down(self.socket, socket.SHUT_RD)
            return None

    def cut(self) -> bool:
        """End it now, in both directions; its thread wakes and closes it. False if it was over."""
        self._note_change()
        with self._lock:
            if self._closed:
                return False
            self._draining = self.was_cut = True
            sockets.shut_down(self.socket, socket.SHUT_RDWR)
            return True

    # Settings and state

    def set_timeout(self, seconds: float | None) -> None:
        """How long each read may wait for input, and each write for progress; None: for ever.

        TypeError or ValueError unless it is more than 0.
        """
        if seconds is not None:
            check_seconds("timeout", seconds, zero=False)
        sockets.set_timeout(self.socket, seconds)
        self._timeout = seconds

    def set_no_delay(self, on: bool = True) -> None:
        """Send small writes at once (TCP_NODELAY), instead of waiting to fill a packet."""
        sockets.set_no_delay(self.socket, on)

    def set_keep_alive(self, on: bool = True) -> None:
        """Let the kernel probe a silent peer, and reset the connection once it does not answer."""
        sockets.set_keep_alive(self.socket, on)

    def is_to_blame(self, error: BaseException) -> bool:
        """Whether `error`, which a handler has raised, comes from this connection's peer."""
        if self.opaque:
            if isinstance(error, TimeoutError):  # of a read with the time limit of its socket
                return self.socket.gettimeout() is not None
            return sockets.is_hang_up(error) and sockets.hung_up(self.socket)
        return error is self.error

    @property
    def closed(self) -> bool:
        """Whether this side has closed it."""
        return self._closed

    def fileno(self) -> int:
        """The descriptor, -1 once closed: for `selectors` and for socket options."""
        return self.socket.fileno()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<{type(self).__name__} {self.id} {self.peer} {state}>"
