"""A connected socket that one thread reads, any threads write, and any thread may stop.

The part that reading, writing and closing have in common: the states (`netkit.net.states`), the
transport, and who uses the socket at present. Rules:

1. `lock` guards the states and the life of the descriptor; no thread waits while it holds it. A
   thread that shuts the socket down holds it, so the descriptor's number cannot belong to another
   connection by then. A re-entrant lock, since a signal handler may stop the connection.
2. A read takes no lock. It sets `waiting` before it calls the socket, and then looks at `changed`;
   a write does the same with `writing`. A thread that changes a state sets `changed` first, and
   then looks whether a thread uses the socket; it holds `lock` for both. So at least one of the two
   sees the other. With the GIL, each store is visible before the next step. Without it, a read and
   a write take `lock` for a moment between their two steps (`fence`), which orders them.
3. Closing a descriptor wakes no thread that waits in it. So whoever ends the connection shuts the
   socket down, and the last thread that leaves the socket closes the descriptor.
4. A read and a write call the socket directly, unless the connection is `special`: it has TLS or
   time limits.
"""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable
from typing import Any

from ..core.buffer import FIRST_CHUNK, ReceiveBuffer, next_chunk
from ..core.cores import has_gil
from ..core.errors import ConnectionClosedError, TlsError, WriteAfterEndError
from ..core.options import TimeLimits
from . import sockopts
from .states import InputState, Life, OutputState
from .transport import NO_LIMITS, Plain, Tls

# Whether threads run in parallel. Then another thread may see two stores in the other order, unless
# both threads take a lock in between.
FREE_THREADED = not has_gil()

# A write either uses the socket, or reads the file that it sends.
IN_SOCKET, IN_FILE = 1, 2


class Link:
    """The socket of one connection, and its states. See the rules above for thread safety."""

    __slots__ = (
        *("bytes_read", "bytes_written", "changed", "error", "heard", "input", "interruption"),
        *("last_word", "life", "lock", "output", "broken", "peer", "released", "sock", "special"),
        *("transport", "waiting", "was_cut", "wire", "writing", "_buffer", "_chunk", "can_reset"),
    )

    def __init__(self, wire: Plain, peer: str, can_reset: bool, buffer: ReceiveBuffer) -> None:
        """`buffer` holds what was received and not read. A Unix socket cannot be reset."""
        self.wire = wire
        self.sock: socket.socket = wire.sock
        self.transport: Plain | Tls = wire
        self.peer = peer
        self.can_reset = can_reset
        self._buffer = buffer
        self._chunk = FIRST_CHUNK
        self.bytes_read = self.bytes_written = 0
        self.heard = 0  # the value of `bytes_written` when something was last received
        self.error: BaseException | None = None  # the last failure
        self.lock = threading.RLock()
        self.special = False
        self.changed = False  # a state is no longer OPEN, or there is a reason to end
        self.input, self.output, self.life = InputState.OPEN, OutputState.OPEN, Life.OPEN
        self.waiting = False  # a thread waits for input; only this thread sets it
        self.writing = 0  # `IN_SOCKET` or `IN_FILE` during a write; only its thread sets it
        self.broken: OSError | None = None  # what each further write raises
        self.was_cut = False
        self.interruption: OSError | None = None  # the next read or write raises it
        self.last_word = True  # `interruption` is raised only once, and then a write may follow
        self.released: Callable[[], object] | None = None  # called once the socket is given up

    # Reading

    def receive(self) -> bytes:
        """One chunk of input; ``b""`` at its end, however often. For one thread at a time."""
        try:
            self.waiting = True
            if FREE_THREADED:  # pragma: no cover - free-threaded builds only
                self.fence()
            if self.changed and self.is_at_end():
                return b""
            chunk = self._chunk
            data = self._receive_specially(chunk) if self.special else self.sock.recv(chunk)
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
        wire.place = self.bytes_read - wire.held
        return self.transport.recv(size)

    def is_at_end(self) -> bool:
        """Whether reads return the end of input now; raises what ends the connection."""
        with self.lock:
            if self.life is not Life.OPEN:
                raise ConnectionClosedError
            if self.interruption is not None:
                raise self.interruption
            if self.input is InputState.DRAINING and not self._has_more():
                self.input = InputState.DRAINED
            return self.input.is_over()

    def _has_more(self) -> bool:
        """Whether a message is incomplete, or a recv would not wait."""
        return self.has_begun() or self.transport.pending() > 0 or sockopts.readable(self.sock)

    def has_begun(self) -> bool:
        """Whether a message, or a handshake, has been received in part."""
        return bool(self._buffer) or self.transport.has_begun()

    def has_ended_input(self) -> bool:
        """Whether this side has ended the input, or the connection."""
        open_to_peer = self.input in (InputState.OPEN, InputState.DRAINING)
        return not open_to_peer or self.was_cut or self.life is Life.CLOSED

    def is_input_over(self) -> bool:
        """Whether nothing more can arrive: the peer has ended its side of the TCP connection."""
        return self.transport.is_input_over(self.input is InputState.ENDED)

    # Writing

    def check_output(self) -> None:
        """Raise what a write raises in the present state, if it must not send."""
        if self.life is not Life.OPEN:
            raise ConnectionClosedError
        if self.broken is not None:
            if self.broken.__cause__ is None:  # it came from the socket
                self.error = self.broken
            raise self.broken
        if self.output is OutputState.ENDED:
            raise WriteAfterEndError
        if self.interruption is not None:
            raise self.failure(self.interruption)

    def break_off(self, error: BaseException, state: OutputState = OutputState.BROKEN) -> None:
        """No write may follow one that has met `error`: a part of it may have been sent."""
        with self.lock:
            if self.broken is not None:
                return
            if error is self.error and isinstance(error, OSError):
                self.broken = error
            else:
                text = f"a write to {self.peer} was broken off: {type(error).__name__}"
                self.broken = ConnectionAbortedError(errno.ECONNABORTED, text)
                self.broken.__cause__ = error
            self.changed = True
            self.output = state

    def abandon(self) -> None:
        """Have the close send a reset: the handler has failed, so the output is not whole."""
        with self.lock:
            if self.output is OutputState.OPEN:
                self.changed = True
                self.output = OutputState.ABANDONED

    def end_output(self) -> None:
        """End our side of the TCP connection, unless that has been done."""
        with self.lock:
            can_end = self.output in (OutputState.OPEN, OutputState.ABANDONED)
            if can_end and self.life is not Life.CLOSED:
                self.changed = True
                self.output = OutputState.ENDED
                self.wire.shut_down(socket.SHUT_WR)

    # Errors

    def failure(self, error: OSError) -> OSError:
        """The exception to raise for `error`, which is remembered as the connection's."""
        if self.was_cut:
            text = f"the connection to {self.peer} was cut, since the server stops"
            failure: OSError = ConnectionAbortedError(errno.ECONNABORTED, text)
        elif (interruption := self.interruption) is not None:
            failure = interruption
            if self.last_word:
                self.interruption = None
        elif isinstance(error, (BrokenPipeError, TlsError)) and self.life is not Life.OPEN:
            failure = ConnectionClosedError()  # by another thread, during the call
        else:
            failure = self.wire.explained(error, self.peer)
        self.error = failure
        return failure

    # The transport

    def set_limits(self, limits: TimeLimits) -> None:
        """Replace all time limits; nothing after the close."""
        with self.lock:
            if self.life is not Life.CLOSED:
                self.wire.set_limits(limits, self.peer)
                self._choose_way()

    def limit_step(self, seconds: float, name: str) -> None:
        """Replace the time limits by one for a whole step, named `name` in its TimeoutError."""
        with self.lock:
            if self.life is Life.CLOSED:
                raise ConnectionClosedError
            self.wire.limit_step(seconds, self.peer, name)
            self._choose_way()

    def _choose_way(self) -> None:
        self.special = self.transport is not self.wire or self.wire.timer is not None

    def start_tls(self, tls: Tls, seconds: float | None) -> None:
        """Do the handshake of `tls`, and use it as the transport. The output must be held.

        If it fails, no write may follow in clear text. An alert tells the peer; a reset could
        destroy it, and there is no reply to wait for.
        """
        try:
            self.waiting = True
            self.transport = tls
            if seconds is not None:
                self.limit_step(seconds, "handshake_timeout")
            tls.handshake()
            self.set_limits(self.wire.limits)
        except BaseException as error:
            self.transport = self.wire
            failure = self.failure(error) if isinstance(error, OSError) else error
            self.break_off(failure, OutputState.REFUSED)
            self.heard = self.bytes_written
            if failure is error:
                raise
            raise failure from None
        finally:
            self.waiting = False

    def free_locks(self) -> None:
        """Make all locks anew, in a forked child: threads that held them do not exist there."""
        self.lock = threading.RLock()
        self.waiting, self.writing = False, 0
        self.transport.free_locks()

    # Closing

    def must_reset(self) -> bool:
        """Whether the peer must see a reset, since it has only a part of what was to be written."""
        return self.can_reset and self.output.is_incomplete()

    def leave(self) -> None:
        """Close the descriptor if the connection is closed and no thread uses the socket."""
        with self.lock:
            closed = self.life is Life.CLOSED
            last = closed and not self.waiting and self.writing != IN_SOCKET
        if last:
            self.release()

    def release(self) -> None:
        """Close the descriptor."""
        with self.lock:
            self.changed = True
            self.life = Life.CLOSED
            sockopts.force_close(self.sock)
        if isinstance(self.transport, Tls):
            self.transport.release()
        if self.released is not None:
            self.tell_released()

    def tell_released(self) -> None:
        """Call `released`, once."""
        with self.lock:
            released, self.released = self.released, None
        if released is not None:
            released()

    def leave_closing(self) -> bool:
        """Have the thread that waits in a read close the descriptor. False if no thread does."""
        with self.lock:
            if not self.waiting:
                return False
            self.life = Life.CLOSED
            if self.must_reset():
                sockopts.reset_on_close(self.sock)
                self.wire.shut_down(socket.SHUT_RD)
            else:
                self.wire.shut_down(socket.SHUT_RDWR)
            return True

    def abort(self, reset: bool) -> None:
        """Close at once, with a `reset` or if one is due. Waits for nothing."""
        with self.lock:
            if self.life is not Life.CLOSED:
                finished = self.life is Life.FINISHED
                self.changed = True
                self.life = Life.CLOSED
                reset = reset or self.must_reset() or (self.can_reset and self.writing > 0)
                if reset:
                    sockopts.reset_on_close(self.sock)
                if reset or not finished:
                    # This wakes a thread that waits. Ending the output as well would send an end
                    # before the reset; it is needed only where a thread writes.
                    soft = reset and self.writing != IN_SOCKET
                    self.wire.shut_down(socket.SHUT_RD if soft else socket.SHUT_RDWR)
        self.leave()

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
            return sockopts.blocking(socket.socket(fileno=self.sock.detach()))

    def fence(self) -> None:
        """Order what this thread has stored before what it loads next; see rule 2."""
        with self.lock:
            pass

    def replace_socket(self, sock: Any) -> None:
        """Use `sock`, which has taken over the descriptor."""
        with self.lock:
            self.sock = sock
            self.wire.replace_socket(sock)
