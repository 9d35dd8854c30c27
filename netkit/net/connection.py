"""One connection: what a handler gets, and what `connect` returns.

A `Connection` reads by `Reader`, writes by its `Output`, and has the socket and the states in its
`Link`. Rules:

1. A connection belongs to one thread at a time, which reads it and closes its descriptor. Other
   threads may write (writes never mix), look at it, and ask it to stop: `end_input`, `interrupt`,
   `cut`, `close`, `destroy`. Only `close` waits; the others wait for no other thread, and not for
   the thread that a signal handler has interrupted.
2. Closing never truncates, see `netkit.net.linger`.
3. Half a message never passes for a whole one: where a write has failed with a part of it sent, the
   end of our side is a reset, and TLS sends no close_notify.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from ..core.buffer import CHUNK, ReceiveBuffer
from ..core.deadline import Deadline
from ..core.errors import HandshakeError, PeerError
from ..core.options import MAX_LINE, MAX_MESSAGE
from ..core.reader import Reader
from . import ids, linger, sockopts
from .addresses import Ends, describe_peer
from .bare import Bare
from .files import Sink, write_all
from .link import Link
from .output import Output, as_bytes
from .settings import Settings
from .socket_names import no_attribute
from .states import Life
from .status import Status
from .stopping import Stoppable
from .transport import Plain, Tls, Writable

if TYPE_CHECKING:
    import ssl

    _Self = TypeVar("_Self", bound="Connection")

HANDSHAKE_SECONDS = 10.0  # several round trips over a bad network
_BY_DEFAULT: Any = object()


class Connection(Reader, Ends, Settings, Status, Stoppable):
    """A blocking, two-way stream of bytes.

    Reads return ``bytes``, or ``str`` after `set_encoding`, and an empty value at the end of input.
    They raise ConnectionResetError if the peer has reset the connection, TimeoutError if a time
    limit has passed (the connection is still good), and ConnectionClosedError after `close`.
    A ``with`` block closes the connection. If the block raises, that is `destroy`, and the peer
    sees a reset, since it may have half a message; but not after `end`, and not if the peer is to
    blame for the exception. A server closes the connections that it hands to handlers.

    Attributes that are not documented by themselves, all of them readable after `close`:

    - `id`, a number that no other connection of its server has, in any of the worker processes;
    - `peer`, the address of the other end as text: ``127.0.0.1:50312``;
    - `server`, its `Server`, or None; `opened_at`, on the monotonic clock (seconds);
    - `thread`, the identifier of the thread that serves it, or None;
    - `attempted_addresses`, which `connect` has tried, the last of them with success;
    - `encoding`, `max_line` (bytes) and `max_message` (bytes, or None), which may be set;
    - `linger_seconds`, `linger_bytes`: how long a `close` waits for its peer, and how much input it
      drops meanwhile. They may be set.
    """

    # Slots, since a dictionary of so many attributes costs each client 2 KiB. The `__dict__` among
    # them is for attributes that a program sets, and is made when it does.
    __slots__ = (
        *("id", "lifetime", "opened_at", "peer", "server", "thread", "ticket", "on_close"),
        *("_link", "_local_name", "_output", "_remote_name", "__dict__", "__weakref__"),
    )
    attempted_addresses: tuple[str, ...] = ()
    # Enough for a client that reads an early reply after its upload, too little for an attack.
    linger_seconds, linger_bytes = 5.0, 16 * 1024 * 1024

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
        """Take over `sock`, which is connected, and make it blocking.

        `client_address` and `local_name` are the names of both ends, if the caller knows them. With
        `opaque`, a handler reads and writes `sock` itself; its timeout stays as it is, and nothing
        is counted. OSError if the socket has no peer.
        """
        self.id = ids.take()
        self._remote_name = sock.getpeername() if client_address is None else client_address
        self._local_name = local_name or sockopts.local_name(sock)
        self.peer = describe_peer(self._remote_name)
        wire = Bare(sock, self._remote_name, self._local_name) if opaque else Plain(sock)
        if not opaque and sock.gettimeout() is not None:
            sock.settimeout(None)
        buffer = ReceiveBuffer()
        self._link = Link(wire, self.peer, isinstance(self._remote_name, tuple), buffer)
        self._output = Output(self._link)
        super().__init__(self._link, buffer, encoding, max_line, max_message)
        self.server = server
        self.opened_at = time.monotonic()
        self.lifetime: float | None = None  # the limit of its server (seconds)
        self.thread: int | None = None
        self.ticket: Any = None  # the share of the server's limits
        self.on_close: Callable[[Connection], object] | None = None  # called as `close` begins

    if not TYPE_CHECKING:  # pragma: no branch - type checkers would accept any name

        def __getattr__(self, name: str) -> Any:
            raise no_attribute(self, name)

    # Writing

    def write(self, data: Writable, encoding: str | None = None) -> int:
        """Send all of `data`, and return its number of bytes once the kernel has them.

        Text is encoded with `encoding`, or else with the connection's. Waits while the peer's
        window and the kernel's buffer are full. Thread-safe: what one call writes stays together.

        WriteAfterEndError after `end`; ConnectionClosedError after `close`; BrokenPipeError or
        ConnectionResetError if the peer is gone; TimeoutError once a time limit has passed. After a
        write has failed, every further one raises the same error, and the peer sees a reset in the
        end; but without TLS a time limit that passes before anything is sent breaks nothing.
        RuntimeError, and nothing is sent, in a signal handler that has interrupted a write of this
        connection, or a read that sends something for TLS.
        """
        payload = data if type(data) is bytes else as_bytes(data, encoding or self.encoding)
        self._output.write(payload)
        return len(payload)

    def corked(self) -> AbstractContextManager[None]:
        """A block that gathers what is written in it, and sends it as one at its end.

        So a reply in many small pieces costs fewer system calls, packets and TLS records. `end` and
        `close` send it, too, and so does a write as soon as it is 64 KiB; they, and the end of the
        block unless it has raised an exception, raise the errors of sending.
        """
        return self._output.corked()

    def flush(self) -> None:
        """Send what a block of `corked` has gathered so far. Errors as of `write`.

        Outside of such a block there is nothing to send. So a connection may be the file of
        ``print(..., flush=True)``.
        """
        self._output.flush()

    def sendfile(self, file: BinaryIO, offset: int = 0, count: int | None = None) -> int:
        """Send a binary file from byte `offset` on, and return how many bytes were sent.

        `count` is the most bytes to send; None for all up to the file's end. The kernel copies them
        from a regular file (sendfile(2)), without TLS. The file's own position does not count, and
        is undefined afterwards. Waits for a non-blocking file; BlockingIOError if it has no
        descriptor. ValueError for a negative number, TypeError for a file of text, the errors of
        `write`, and those of the file, which break the output if a part has been sent.
        """
        if offset < 0 or (count is not None and count < 0):
            raise ValueError(f"offset and count must be 0 or more, not {offset} and {count}")
        return self._output.sendfile(file, offset, count)

    def pipe_to(self, destination: Sink, end: bool = True) -> int:
        """Copy all input to a connection or a binary file, and return how many bytes were copied.

        Always bytes, also after `set_encoding`. If `end`, the `end` of a destination connection is
        called after the last byte; a file stays open, and is not flushed. Waits for a non-blocking
        file; BlockingIOError if it has no descriptor. Raises what reading and writing raise;
        `is_to_blame` tells whether this connection's peer has caused the error.
        """
        copied = 0
        self._settle()
        while data := self._buffer.take(CHUNK) or self._receive():
            write_all(destination, data)
            copied += len(data)
        if end and isinstance(destination, Connection):
            destination.end()
        return copied

    def end(self, data: Writable | None = None, encoding: str | None = None) -> None:
        """Write `data`, if any, and end our side: the peer sees the end of input (half-close).

        Reading goes on. Idempotent; a write after it raises WriteAfterEndError. If a write has
        failed before, its error is raised again, and our side is not ended. RuntimeError as of
        `write`; TimeoutError with TLS, which has to send something.
        """
        if data is not None:
            self.write(data, encoding)
        self._output.end()

    # Closing

    def close(self) -> None:
        """End our side, let the peer have everything, and close the descriptor. Idempotent.

        Waits at most `linger_seconds`: for writes of other threads, and for the peer to end its
        side, while there is anything that a reset could destroy. If a write has failed, or is not
        done by then, the peer sees a reset. Never raises for what the peer did. From any thread: if
        another one waits in a read, that read returns the end of input and closes the descriptor.
        """
        if self.finish():
            self._link.release()

    def finish(self) -> bool:
        """Do all that `close` does, except for closing the descriptor.

        False if nothing is left to be done: it is closed, or another thread is about to close it.
        """
        link = self._link
        with link.lock:
            if link.life is not Life.OPEN:
                return False
            link.changed = True
            link.life = Life.CLOSING
        if link.transport.handshaking and link.leave_closing():  # another thread closes it
            return False
        if self.on_close is not None:
            self.on_close(self)
        return linger.end_at_once(link, self._output) or linger.finish(
            link,
            self._output,
            Deadline(self.linger_seconds),
            self.linger_bytes,
            hurried=self.server is None,  # a client that closes has what it wanted
            forget=self._forget_received,
        )

    def destroy(self) -> None:
        """Close at once, without waiting for anything. Idempotent, from any thread.

        Unsent bytes may be lost. A thread that waits in a read or a write of this connection
        returns from it, and closes the descriptor. The peer sees the end of input, or a reset if a
        write has failed or is under way.
        """
        self._link.abort(reset=False)

    def reset(self) -> None:
        """As `destroy`, but the peer sees a reset (ECONNRESET) and no end of input.

        OSError (EOPNOTSUPP), and it stays open, for a Unix socket, which knows no reset.
        """
        if not self._link.can_reset:
            raise OSError(errno.EOPNOTSUPP, f"a Unix socket cannot be reset ({self.peer})")
        self._link.abort(reset=True)

    def detach(self) -> tuple[socket.socket, bytes]:
        """Give up the socket: returns it, blocking, and the bytes received and not read.

        For another library or process (`netkit.send_connection`). ConnectionClosedError; ValueError
        with TLS, while another thread reads, and for a socket that its handler reads itself.
        """
        with self._output.held():
            self._output.send_gathered()
            sock = self._link.detach(is_plain=not (self.is_secured() or self.opaque))
        self._link.tell_released()
        return sock, self._forget_received()

    def fail(self, error: BaseException) -> None:
        """The handler has raised `error`: `close` sends what was written, and then a reset.

        So half a reply never passes for a whole one. Does nothing if the peer is to blame, if our
        side has been ended, or if the handler reads the socket itself.
        """
        blameless = self.opaque or isinstance(error, PeerError) or self.is_to_blame(error)
        if not blameless:
            self._link.abandon()

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

    # TLS

    def start_tls(
        self,
        context: ssl.SSLContext | None = None,
        *,
        server_hostname: str | None = None,
        server_side: bool | None = None,
        timeout: float | None = _BY_DEFAULT,
    ) -> None:
        """Speak TLS from now on, after a handshake of at most `timeout` seconds (STARTTLS).

        None is no limit; by default it is the server's `handshake_timeout`, else 10 seconds. A
        connection that a server has accepted is the server in the handshake, by default with the
        `context` of the server's options; so is any other with `server_side=True`. Else it is the
        client, and checks that the certificate is for `server_hostname` if its context says so
        (``ssl.create_default_context()`` does). No other thread may write meanwhile.

        HandshakeError if it fails: close the connection then, since every write raises the same
        error. HandshakeError also if bytes have been received and not read: they were not
        encrypted, and anybody on the way may have sent them. TimeoutError (`handshake_timeout`).
        ValueError if TLS has begun already; TypeError without a context.
        """
        if self.tls is not None:
            raise ValueError("this connection speaks TLS already")
        if self._holds_input():
            raise HandshakeError(f"{self.peer} sent more, unencrypted, before TLS began")
        accepted = self.server is not None
        if context is None and accepted:
            context = self.server.tls_context()
        if context is None:
            raise TypeError("start_tls() needs an ssl.SSLContext")
        if timeout is _BY_DEFAULT:
            timeout = self.server._options.handshake_timeout if accepted else HANDSHAKE_SECONDS
        link = self._link
        server_side = accepted if server_side is None else server_side
        tls = Tls(link, link.wire, context, server_side, server_hostname)
        with self._output.held():
            if link.changed:
                link.check_output()
            link.start_tls(tls, timeout)

    @property
    def pending(self) -> int:
        """How many bytes have been received and not been read. Look at it before `select`.

        Decrypted bytes count, and 1 if there is nothing but the end of the TLS stream. A read of
        bytes does not wait while this is more than 0; a line or a message may lack its end. No
        system call. For the thread that reads.
        """
        return self._link.transport.pending(self._held())

    def free_locks(self) -> None:
        """Make all locks anew, in a forked child: threads that held them do not exist there."""
        self._link.free_locks()
        self._output.free_locks()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        return f"<{type(self).__name__} {self.id} {self.peer} {state}>"
