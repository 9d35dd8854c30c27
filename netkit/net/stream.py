"""Bytes from one connected socket, through TLS if it has begun, within time limits.

The reading half of a `Connection`, and the state that its parts share; `netkit.net.writing` has the
other half, `netkit.net.connection` its life: closing it, and being stopped. Rules:

1. `_write_lock` is held for the whole of a write, and comes before `_lock`, which guards the flags
   and is never held while waiting. A read takes no lock: there is one at a time. A read sets
   `_waiting`, and a write `_writing`, before its call of the socket, and then looks at `_changed`,
   which is set with every flag that matters to it. Another thread sets `_changed` and the flag, and
   then looks whether a thread is in the socket, all that holding `_lock`. So at least one of the
   two sees the other. (With the GIL each of these steps is seen before the next one begins. Without
   it, a read and a write take `_lock` for a moment between the two steps, see `_fence`.)
2. A thread that closes the connection waits for neither of them, and takes no lock that is held
   during a wait: the last thread that leaves the socket gives the descriptor back.
3. Input ends (`b""`) when the peer has ended its side, or when the server has stopped and nothing
   more of a message is under way. A reset is an error, not an end; so is the end of the TCP input
   where TLS's own word for it is due.
4. Once a write has failed with a part of it sent, the output is over: what came after it would pass
   for the rest. Every further write raises the same error, and the peer sees a reset in the end.
5. In the common case nothing lies between a read, or a write, and its system call: a connection
   with TLS or with time limits is a `_special` one.
"""

from __future__ import annotations

import errno
import itertools
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..core.cores import has_gil
from ..core.errors import ConnectionClosedError, PeerError, TlsError, TruncatedError
from ..core.options import TimeLimits
from ..core.reader import FIRST_CHUNK, Reader, next_chunk
from . import sockopts
from .addresses import Ends, describe_peer
from .forks import free_in_children
from .timeouts import Timer, unacknowledged

if TYPE_CHECKING:
    from ..tls.stream import TlsStream

NO_LIMITS = TimeLimits()

_next_id = itertools.count(1).__next__
# Held while an identifier is made: without the GIL, two threads could be given the same one.
_ids_lock = free_in_children(threading.RLock())
# Whether threads run at once: then the order in which one stores two values is not the order in
# which another one sees them, unless both take a lock in between.
FREE_THREADED = not has_gil()

# Where a write is: in a call of the socket, or in one of the file that it sends.
IN_SOCKET, IN_FILE = 1, 2


def _new_id() -> int:  # pragma: no cover - free-threaded builds only
    with _ids_lock:
        return _next_id()


_take_id: Callable[[], int] = _new_id if FREE_THREADED else _next_id


def number_by(take: Callable[[], int]) -> None:
    """Have `take` give each connection from now on its `id`. For worker processes."""
    global _take_id
    _take_id = take


class Stream(Reader, Ends):
    """What `Connection` derives from; not used by itself."""

    # Slots, since a dictionary of so many attributes costs each client 2 KiB. The one among them is
    # for those that a program sets, and made when it does.
    __slots__ = (
        *("id", "peer", "socket", "opaque", "tls"),
        *("bytes_read", "bytes_written", "error", "was_cut"),
        *("_remote_name", "_local_name", "_limits", "_timer", "_chunk"),
        *("_special", "_handshaking", "_corked", "_corks", "_write_began", "_write_sent"),
        *("_lock", "_waiting", "_write_lock", "_writing", "_untouched"),
        *("_broken", "_failed", "_heard"),
        *("_changed", "_eof", "_ended", "_draining", "_input_shut"),
        *("_last_word", "_closing", "_finished", "_closed"),
        *("__dict__", "__weakref__"),
    )

    def __init__(
        self,
        sock: socket.socket,
        client_address: Any,
        local_name: Any,
        opaque: bool,
        encoding: str,
        max_line: int,
        max_message: int | None,
    ) -> None:
        super().__init__(encoding, max_line, max_message)
        self.id = _take_id()
        if client_address is None:
            client_address = sock.getpeername()
        self.peer = describe_peer(client_address)
        self._remote_name = client_address
        self._local_name = local_name or sockopts.local_name(sock)
        self.bytes_read = self.bytes_written = 0
        self.error: BaseException | None = None
        self.socket = sock
        self.opaque = opaque
        self._limits = NO_LIMITS
        self._timer: Timer | None = None
        self._chunk = FIRST_CHUNK
        self.tls: TlsStream | None = None
        self._special = False
        self._handshaking: TlsStream | None = None
        self._lock = threading.RLock()  # a signal handler may stop the server from within
        self._changed = False  # one of the flags below is set that says more than "open"
        self._eof = self._ended = False
        self._waiting = False  # a thread is in a wait for input; it alone sets it
        self._draining = False  # no message is to be begun any more
        self._input_shut = False  # by `end_input` or `interrupt`
        self._last_word = True  # `_interruption` is raised once, and then a write may follow
        self.was_cut = self._closing = self._finished = self._closed = False
        self._begin_output()

    def _begin_output(self) -> None:
        # Held while one writes. Re-entrant so that a signal handler that writes does not wait for
        # the thread that it has interrupted; `_writing` tells it that it may not.
        self._write_lock = threading.RLock()
        self._writing = 0  # or where a write is, `IN_SOCKET` or `IN_FILE`; its thread alone sets it
        self._write_began = 0.0  # of the present write, and how many bytes of it are sent
        self._write_sent = 0
        self._untouched = False  # a time limit has passed before anything of it was sent
        self._broken: OSError | None = None  # what every further write raises
        self._heard = 0  # how many bytes had been written when something was last received
        self._failed = False  # what has been written is not whole: a reset has to say so
        self._corks = 0  # blocks of `corked` that have been entered
        self._corked = bytearray()  # what has been written in them

    def free_locks(self) -> None:
        """In a forked child, which has none of the threads that may have held them."""
        self._write_lock, self._lock = threading.RLock(), threading.RLock()
        self._waiting, self._writing = False, 0
        for tls in (self.tls, self._handshaking):
            if tls is not None:
                tls.free_locks()

    # Receiving

    @property
    def pending(self) -> int:
        """How many bytes have been received and not been read: to be looked at before `select`.

        What TLS has decrypted counts, and 1 if there is nothing but the end of its stream. More
        than 0 means that a read of bytes does not wait; a line or a message may lack its end. No
        system call. For the thread that reads.
        """
        ahead = self._ahead or ()
        count = len(self._buffer) + sum(map(len, ahead)) + len(ahead)
        if self.tls is None:
            return count
        at_once = self.tls.pending()
        return count + len(self.tls._decrypted) or int(at_once)

    def _receive(self) -> bytes:
        """One chunk from the kernel; ``b""`` at the end of input."""
        try:
            self._waiting = True
            if FREE_THREADED:  # pragma: no cover - free-threaded builds only
                self._fence()
            if self._changed and self._is_at_end():
                return b""
            chunk = self._chunk
            data = self._receive_specially(chunk) if self._special else self.socket.recv(chunk)
        except OSError as error:
            raise self._failure(error) from None
        finally:
            self._waiting = False
            if self._changed or FREE_THREADED:
                self._leave_socket()
        if not data:
            return self._note_end()
        size = len(data)
        self.bytes_read += size
        self._heard = self.bytes_written
        if size == chunk or chunk > FIRST_CHUNK:
            self._chunk = next_chunk(chunk, size)
        return data

    def _receive_specially(self, size: int) -> bytes:
        if self.tls is None:
            return self._receive_raw(size)
        try:
            return self.tls.recv(size)
        except TruncatedError:
            if self._input_shut or self._eof or self._closed or self.was_cut:
                return b""  # that was us
            raise

    def _receive_raw(self, size: int) -> bytes:
        """From the socket, within the time limits."""
        if self._changed and (self.tls or self._handshaking) is not None and self._is_at_end():
            return b""
        timer = self._timer
        if timer is None:
            return self.socket.recv(size)
        held = self._skipped + len(self._buffer)
        place = self.bytes_read - held
        if not held and self.tls is not None and self.tls.within_record():
            held = 1  # of a message that cannot be decrypted yet
        timer.before_receive(place, held)
        while True:
            try:
                timer.outlast_signals(writing=False)
                return self.socket.recv(size)
            except BlockingIOError:
                timer.after_wait()

    def _is_at_end(self) -> bool:
        with self._lock:  # `detach` looks at `_waiting` before it closes
            if self._closed or self._closing:
                raise ConnectionClosedError
            if self._interruption is not None:
                raise self._interruption
            if self._draining and not self._has_more():
                self._eof = True
            return self._eof

    def _has_more(self) -> bool:
        """Whether there is a part of a message, or something to receive, without a wait."""
        return (
            self._has_begun()
            or (self.tls is not None and self.tls.pending())
            or sockopts.readable(self.socket)
        )

    def _has_begun(self) -> bool:
        """Whether a part of a message, or of a handshake, has come."""
        shaking, tls = self._handshaking, self.tls
        return (
            bool(self._buffer)
            or (shaking is not None and shaking.fed > 0)
            or (tls is not None and tls.within_record())
        )

    def _note_end(self) -> bytes:
        if self._interruption is not None or (self.was_cut and self._buffer):
            # Half a message is not to pass for a whole one.
            raise self._failure(OSError())
        self._eof = self._changed = True
        return b""

    def _leave_socket(self) -> None:
        """Give the descriptor back if it is closed, and this thread was the last in the socket."""
        with self._lock:
            last = self._closed and not self._waiting and self._writing != IN_SOCKET
        if last:
            self._release()

    def _release(self) -> None:
        """Called without a lock: a subclass tells others of it."""
        with self._lock:
            self._changed = self._closed = True
            sockopts.force_close(self.socket)
        if self.tls is not None:
            self.tls.let_go()

    def _fence(self) -> None:
        """Order what this thread has stored and what it is going to load; see rule 1."""
        with self._lock:
            pass

    def _failure(self, error: OSError) -> OSError:
        """The exception for a failed system call, which is remembered as this connection's."""
        failure = error
        if self.was_cut:
            text = f"the connection to {self.peer} was cut, since the server stops"
            failure = ConnectionAbortedError(errno.ECONNABORTED, text)
        elif self._interruption is not None:
            failure = self._interruption
            if self._last_word:
                self._interruption = None
        elif isinstance(error, (BrokenPipeError, TlsError)) and (self._closed or self._closing):
            failure = ConnectionClosedError()  # by another thread, during the call
        else:
            limit = self._limits.write_timeout
            if limit is not None and sockopts.unsent(self.socket):
                error = unacknowledged(error, limit, self.peer)
            failure = sockopts.explain(error, self.peer)
        self.error = failure
        return failure

    def forget_frames(self) -> None:
        """Drop the tracebacks of the errors that are kept, once they have been logged.

        They hold the frames of the handler, with all that it has read, and the frames hold this
        connection: so nothing of it would be freed before the garbage collector finds the cycle,
        which may be much later.
        """
        for error in (self.error, self._broken, self._interruption):
            for each in (error, error and error.__cause__):
                if each is not None:
                    each.__traceback__ = each.__context__ = None

    def is_to_blame(self, error: BaseException) -> bool:
        """Whether `error`, which a handler has raised, comes from this connection's peer."""
        if self.opaque and error is not self.error:
            if isinstance(error, TimeoutError) and self.socket.gettimeout() is not None:
                return True  # of a read with the time limit of its socket
            if sockopts.is_hang_up(error):
                return sockopts.hung_up(self.socket)
            return sockopts.is_broken_tls(error, self.socket)
        return error is self.error

    def fail(self, error: BaseException) -> None:
        """Its handler has raised `error`: `close` ends it with a reset, once the peer has the rest.

        So half a reply never passes for a whole one. Not if the peer is to blame for `error`, if
        our side has been ended already, or for a handler that reads the socket itself.
        """
        if not (self.opaque or self._ended or isinstance(error, PeerError)):
            self._failed = self._failed or not self.is_to_blame(error)
