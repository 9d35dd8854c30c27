"""A connected socket that one thread reads, any threads write, and any thread may stop.

The part that reading, writing and closing have in common: the states (`netkit.net.states`), the
transport, and whether a thread uses the socket at present. Rules:

1. `lock` guards the states and the life of the descriptor; no thread waits while it holds it. A
   thread that shuts the socket down holds it, so the descriptor's number cannot belong to another
   connection by then. A re-entrant lock, since a signal handler may stop the connection amid it.
2. A read takes no lock. It sets `waiting` before it calls the socket, and then looks at `changed`;
   a write does the same with `writing`. A thread that changes a state sets `changed` first, and
   then looks whether a thread uses the socket; it holds `lock` for both. So at least one of the two
   sees the other. With the GIL, each store is visible before the next step. Without it, a read and
   a write take `lock` for a moment between their two steps (`fence`), which orders them.
3. Closing a descriptor wakes no thread that waits in it. So a thread that ends the connection shuts
   the socket down, and the last thread that leaves the socket closes the descriptor.
4. A read and a write call the socket's own methods, `recv` and `send`. With TLS or time limits
   both are None, and the transport is called.
"""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable
from typing import Any

from ..core.buffer import FIRST_CHUNK, ReceiveBuffer, next_chunk
from ..core.cores import has_gil
from ..core.errors import ConnectionClosedError, TlsError
from ..core.options import TimeLimits
from . import deadlines, endings, sockopts
from .bare import Bare
from .states import InputState, Life, OutputState
from .transport import NO_LIMITS, Bytes, Plain, Tls

# Whether threads run in parallel. Then another thread may see two stores in the other order, unless
# both threads take a lock in between.
FREE_THREADED = not has_gil()

# A write either uses the socket, or reads the file that it sends.
IN_SOCKET, IN_FILE = 1, 2

# How often a stop asks whether the peer's kernel has the rest of a reply (seconds). Ending the wait
# for it earlier would let a byte from the peer reset the connection, which would destroy the rest.
# The kernel has no event for it (see `netkit.net.linger`).
UNSENT_SECONDS = 0.05


class Link:
    """The socket of one connection, and its states. See the rules above for thread safety."""

    __slots__ = (
        *("bytes_read", "bytes_written", "changed", "ending", "error", "heard", "input"),
        *("interruption", "life", "lock", "output", "broken", "peer", "recv", "released", "send"),
        *("shut_both", "stalled", "transport", "waiting", "was_cut", "wire", "writing", "_buffer"),
        *("_chunk", "can_reset"),
    )

    within, note = deadlines.within, endings.note

    def __init__(self, wire: Plain, peer: str, can_reset: bool, buffer: ReceiveBuffer) -> None:
        """`buffer` holds what was received and not read. A Unix socket cannot be reset."""
        self.wire = wire
        self.transport: Plain | Tls = wire
        self.recv: Callable[[int], bytes] | None = wire.sock_recv
        self.send: Callable[[Bytes], int] | None = wire.sock_send
        self.peer, self.can_reset = peer, can_reset
        self._buffer = buffer
        self._chunk = FIRST_CHUNK
        self.bytes_read = self.bytes_written = 0
        self.heard = 0  # the value of `bytes_written` when something was last received
        self.error: BaseException | None = None  # the last failure
        self.ending, self.stalled = "", -1  # as `endings` says
        self.lock = threading.RLock()
        self.changed = False  # a state is no longer OPEN, or there is a reason to end
        self.input, self.output, self.life = InputState.OPEN, OutputState.OPEN, Life.OPEN
        self.waiting = False  # a thread waits for input; only this thread sets it
        self.writing = 0  # `IN_SOCKET` or `IN_FILE` during a write; only its thread sets it
        self.broken: OSError | None = None  # the error that each further write raises
        self.was_cut = False
        self.interruption: OSError | None = None  # the next read or write raises it
        self.shut_both = False  # by a stop: no write can follow, so `interruption` stays
        self.released: Callable[[], object] | None = None  # called once the socket is given up

    # Reading

    def receive(self) -> bytes:
        """Return one chunk of input, or ``b""`` at its end, however often. For one thread."""
        try:
            self.waiting = True
            if FREE_THREADED:  # pragma: no cover - free-threaded builds only
                self.fence()
            if self.changed and self.is_at_end():
                return b""
            chunk = self._chunk
            recv = self.recv
            data = self._receive_specially(chunk) if recv is None else recv(chunk)
        except OSError as error:
            if isinstance(error, BlockingIOError) and self.wire.timer is not None:
                return self.receive()  # the first limit was set during the wait
            raise self.failure(error) from None
        finally:
            self.waiting = False
            if self.changed or FREE_THREADED:
                self.leave()
        if not data:  # half a message must not pass for a whole one
            if self.interruption is not None or (self.was_cut and self._buffer):
                raise self.failure(OSError())
            with self.lock:
                self.changed = True
                self.input = self.input.ended()
            return b""
        size = len(data)
        self.bytes_read += size
        self.heard = self.bytes_written
        if size == chunk or chunk > FIRST_CHUNK:
            self._chunk = next_chunk(chunk, size)
        return data

    def _receive_specially(self, size: int) -> bytes:
        wire = self.wire
        wire.held = self._buffer.skipped + len(self._buffer)
        wire.start = self.bytes_read - wire.held
        return self.transport.recv(size)

    def is_at_end(self) -> bool:
        """Whether reads return the end of input now; raises the error that ends the connection."""
        with self.lock:
            if self.life is not Life.OPEN:
                raise ConnectionClosedError
            if self.interruption is not None:
                raise self.interruption
            if self.input is InputState.DRAINING and not self._has_more():
                self.input = InputState.DRAINED
                self.note("drained")
            return self.input.is_over()

    def _has_more(self) -> bool:
        begun = self.has_begun() or self.transport.pending() > 0
        return begun or sockopts.readable(self.wire.sock)

    def has_begun(self) -> bool:
        """Whether a message, or a handshake, has been received in part."""
        return bool(self._buffer) or self.transport.has_begun()

    def has_ended_input(self) -> bool:
        """Whether this side has ended the input, or the connection."""
        open_to_peer = self.input in (InputState.OPEN, InputState.DRAINING)
        return not open_to_peer or self.was_cut or self.life is Life.CLOSED

    # Errors

    def failure(self, error: OSError) -> OSError:
        """Return the exception to raise for `error`, and remember it as the connection's."""
        if self.was_cut or endings.ended_handshake(self, error):
            text = f"the connection to {self.peer} was cut, since the server stops"
            failure: OSError = ConnectionAbortedError(errno.ECONNABORTED, text)
        elif (interruption := self.interruption) is not None:
            failure = interruption
            if not self.shut_both:
                self.interruption = None
        elif isinstance(error, (BrokenPipeError, TlsError)) and self.life is not Life.OPEN:
            failure = ConnectionClosedError()  # by another thread, during the call
        else:
            failure = self.wire.explained(error, self.peer)
        self.error = failure
        endings.note_failure(self, failure)
        return failure

    def is_to_blame(self, error: BaseException) -> bool:
        """As of `Connection.is_to_blame`."""
        if error is self.error:
            return True
        return isinstance(self.wire, Bare) and self.wire.is_to_blame(error)

    # The socket

    def open_socket(self) -> socket.socket:
        """Return the socket. ConnectionClosedError after the close."""
        if self.life is Life.CLOSED:
            raise ConnectionClosedError
        return self.wire.sock

    def replace_socket(self, sock: Any) -> None:
        """Use `sock`, which has taken over the descriptor."""
        with self.lock:
            self.wire.replace_socket(sock)
            self.choose_way_locked()

    def set_option(self, setter: Callable[..., None], *values: Any) -> None:
        """Call `setter` with the socket and the values; nothing after the close."""
        with self.lock:
            if self.life is not Life.CLOSED:
                setter(self.wire.sock, *values)

    def set_limits(self, limits: TimeLimits) -> None:
        """Replace all time limits; nothing after the close."""
        with self.lock:
            if self.life is not Life.CLOSED:
                self.wire.set_limits(limits, self.peer)
                self.choose_way_locked()

    def limit_step(self, seconds: float, name: str) -> None:
        """Replace the time limits by one for a whole step, named `name` in its TimeoutError."""
        with self.lock:
            self.open_socket()
            self.wire.set_limits(self.wire.limits, self.peer, (name, seconds))
            self.choose_way_locked()

    def choose_way_locked(self) -> None:
        """Let reads and writes call the socket itself, or the transport; see rule 4."""
        wire = self.wire
        is_direct = self.transport is wire and wire.timer is None
        self.recv, self.send = (wire.sock_recv, wire.sock_send) if is_direct else (None, None)

    def free_locks(self) -> None:
        """Make all locks anew, in a forked child."""
        self.lock = threading.RLock()
        self.waiting, self.writing = False, 0
        if isinstance(self.transport, Tls):
            self.transport.free_locks()

    # Stopping, by another thread or a signal handler. Nothing here waits.

    def end_input(self, quiet: float) -> float | None:
        """As of `Connection.end_input`; `quiet` is its `quiet_seconds`."""
        with self.lock:
            self.changed = True
            self.input = self.input.drained()
            if self.life is Life.CLOSED:
                return None
            if self.life is not Life.OPEN and sockopts.unsent(self.wire.sock):
                return UNSENT_SECONDS
            if isinstance(self.wire, Bare):
                wait = self.wire.seconds_until_quiet(quiet)
                if wait:
                    return wait
            elif not self.waiting or self.has_begun():
                return None
            endings.note_drained(self)
            self.input = self.input.shut()
            self.wire.shut_down(socket.SHUT_RD)
            return None

    def stop(self, reason: OSError | None, hard: bool) -> bool:
        """End the input now; if `hard`, or if a thread writes or closes, the output as well.

        `reason` is the error that the thread of the connection raises; None for a cut. False if the
        connection is closed.
        """
        with self.lock:
            if self.life is Life.CLOSED:
                return False
            self.changed = True
            endings.note_interruption(self, reason)
            if reason is None:
                self.was_cut = True
                self.input = self.input.drained()
            else:
                self.interruption = reason
                self.input = self.input.shut()
            if hard or self.wire.opaque or self.life is not Life.OPEN or self.writing == IN_SOCKET:
                self.shut_both = True
            self.wire.shut_down(socket.SHUT_RDWR if self.shut_both else socket.SHUT_RD)
            return True

    # Closing

    def must_reset(self) -> bool:
        """Whether the peer must see a reset, since it has only a part of the output."""
        return self.can_reset and self.output.is_incomplete()

    def leave(self) -> None:
        """Close the descriptor if the connection is closed and no thread uses the socket."""
        with self.lock:
            in_use = self.waiting or self.writing == IN_SOCKET
            if in_use or self.life is not Life.CLOSED:
                return
        self.release()

    def release(self) -> None:
        """Close the descriptor."""
        with self.lock:
            self.changed = True
            self.life = Life.CLOSED
            sockopts.force_close(self.wire.sock)
        if isinstance(self.transport, Tls):
            self.transport.release()
        if self.released is not None:
            self.call_released()

    def call_released(self) -> None:
        """Call `released`, once, without the lock."""
        with self.lock:
            released, self.released = self.released, None
        if released is not None:
            released()

    def leave_closing(self) -> bool:
        """Have the thread that waits in a read close the descriptor. False if no thread does."""
        with self.lock:
            if not self.waiting:
                return False
            self._close_locked(self.must_reset())
            return True

    def abort(self, reset: bool) -> None:
        """Close at once, with a `reset` or if one is due. Waits for nothing."""
        with self.lock:
            if self.life is not Life.CLOSED:
                is_due = self.must_reset() or (self.can_reset and self.writing > 0)
                self._close_locked(reset or is_due)
        self.leave()

    def _close_locked(self, reset: bool) -> None:
        finished = self.life is Life.FINISHED
        endings.count_locked(self)
        self.changed = True
        self.life = Life.CLOSED
        if reset:
            sockopts.reset_on_close(self.wire.sock)
        if reset or not finished:
            # This wakes a thread that waits. Ending the output as well would send an end before the
            # reset; it is needed only where a thread writes.
            soft = reset and self.writing != IN_SOCKET
            self.wire.shut_down(socket.SHUT_RD if soft else socket.SHUT_RDWR)

    def detach(self, is_plain: bool) -> socket.socket:
        """Give up the socket, which the peer does not notice. The output must be held.

        ConnectionClosedError; the error that has broken the output; ValueError unless `is_plain`,
        or if a thread reads.
        """
        with self.lock:
            self.changed = True
            if self.life is not Life.OPEN:
                raise ConnectionClosedError
            if self.broken is not None:
                raise self.broken
            if self.waiting or not is_plain:
                raise ValueError("only a connection without TLS that nobody reads is detached")
            self.set_limits(NO_LIMITS)
            self.life = Life.CLOSED
            return sockopts.blocking(socket.socket(fileno=self.wire.sock.detach()))

    def fence(self) -> None:
        """Order what this thread has stored before what it loads next; see rule 2."""
        with self.lock:
            return
