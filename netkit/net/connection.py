"""One connection: what a handler gets, and what `connect` returns.

A `Connection` is a `Reader`, since a reader of its own would cost a call for each read. It has a
`Link` (the socket, the states, stopping) and an `Output`. Rules:

1. A connection belongs to one thread at a time, which reads it and closes its descriptor. Other
   threads may write (writes never mix), look at it, and ask it to stop. Only `close` waits; the
   others wait for no other thread, and not for the thread that a signal handler has interrupted.
2. Closing never truncates, see `netkit.net.linger`.
3. Half a message never passes for a whole one: where a write has failed with a part of it sent, the
   end of our side is a reset, and TLS sends no close_notify.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from ..core.buffer import ReceiveBuffer
from ..core.errors import PeerError
from ..core.generic import DataT_co
from ..core.options import MAX_LINE, MAX_MESSAGE
from ..core.reader import Reader
from . import deadlines, endings, files, ids, linger, posting, settings, sockopts, starttls
from .addresses import describe_peer, described, part_of
from .bare import Bare
from .link import Link
from .output import Output, as_bytes
from .socket_names import no_attribute
from .states import Life
from .transport import Plain, Writable

if TYPE_CHECKING:
    import socket as sockets

    from typing_extensions import Self

    from ..core.proxyheader import ProxyHeader
    from ..tls.stream import TlsStream
    from .outbox import Outbox
    from .unix import PeerCredentials

_property: Any = property  # type checkers have the type from the attribute's annotation


def _attribute(path: str, doc: str) -> Any:
    return property(attrgetter(path), doc=doc)


def _end(name: str, part: str, doc: str) -> Any:
    return property(lambda conn: part_of(getattr(conn, name), part), doc=doc)


class Connection(Reader[DataT_co]):
    """A blocking, two-way stream of bytes.

    Reads return ``bytes``, or ``str`` after `set_encoding`, and an empty value at the end of input.
    They raise ConnectionResetError if the peer has reset the connection, TimeoutError if a time
    limit has passed (the connection is still good), and ConnectionClosedError after `close`.
    A ``with`` block closes the connection. If the block raises, that is `destroy`, and the peer
    sees a reset, since it may have half a message; but not after `end`, and not if the peer is to
    blame for the exception. A server closes the connections of its handlers.

    Attributes, readable also after `close`: `id`, unique among the connections of a server and its
    worker processes; `peer`, the address of the other end as text (``127.0.0.1:50312``); `server`,
    its `Server` or None; `opened_at`, on the monotonic clock (seconds); `thread`, the identifier of
    the thread that serves it, or None; `attempted_addresses`, which `connect` has tried, the last
    of them with success; `proxy`, the `ProxyHeader` with which a proxy has introduced the client,
    or None. May be set: `encoding`, `max_line` (bytes), `max_message` (bytes or None),
    and `linger_seconds` and `linger_bytes`, how long a `close` waits for its peer, and how much
    input it drops meanwhile.
    """

    # A dictionary of so many attributes would cost each client 2 KiB. `__dict__` is for attributes
    # that a program sets, and is made when it does.
    __slots__ = (
        *("id", "lifetime", "accepted_at", "began_at", "opened_at", "peer", "server", "thread"),
        *("ticket", "on_close", "_link", "_local_name", "_output", "_remote_name"),
        *("__dict__", "__weakref__"),
    )
    attempted_addresses: tuple[str, ...] = ()
    begins_tls: bool | None = None  # of its listener; None leaves that to the server's options
    expects_proxy = False  # whether a PROXY header is still to be read
    proxy: ProxyHeader | None = None
    # Enough for a client that reads an early reply after its upload, too little for an attack.
    linger_seconds, linger_bytes = 5.0, 16 * 1024 * 1024
    # After so much silence an opaque connection is idle: longer than a gap within a message.
    quiet_seconds = 0.5

    # Methods and properties whose code and docstring are in the module of their subject.
    sendfile, start_tls, finish = files.sendfile, starttls.start_tls, linger.finish
    post, deadline, reset = posting.post, deadlines.deadline, linger.reset
    set_timeout, set_no_delay = settings.set_timeout, settings.set_no_delay
    set_encoding, set_keep_alive = settings.set_encoding, settings.set_keep_alive
    tos: int = _property(settings.tos, settings.set_tos)
    peer_credentials: PeerCredentials = _property(settings.peer_credentials)
    outbox: Outbox = _property(posting.outbox)
    end_reason: str = _property(endings.end_reason)
    waited: float = _property(endings.waited)

    # The state, which any thread may read without a lock. A Unix socket has no addresses.
    remote_address: str | None = _end("_remote_name", "address", "The numeric remote address.")
    remote_port: int | None = _end("_remote_name", "port", "The port of the other end.")
    remote_family: str | None = _end("_remote_name", "family", '``"IPv4"`` or ``"IPv6"``.')
    local_address: str | None = _end("_local_name", "address", "The numeric local address.")
    local_port: int | None = _end("_local_name", "port", "The port of this end.")
    local_family: str | None = _end("_local_name", "family", '``"IPv4"`` or ``"IPv6"``.')
    tls: TlsStream | None = _attribute("_link.transport.tls", "The result of a handshake, if any.")
    opaque: bool = _attribute("_link.wire.opaque", "Whether the handler uses the socket itself.")
    was_cut: bool = _attribute("_link.was_cut", "Whether a stopping server has ended it early.")
    bytes_read: int = _attribute("_link.bytes_read", "How many bytes have been received.")
    bytes_written: int = _attribute("_link.bytes_written", "How many bytes have been sent.")
    error: BaseException | None = _attribute("_link.error", "The last error of a read or write.")

    def __init__(
        self,
        sock: sockets.socket,
        client_address: Any = None,
        local_name: Any = None,
        server: Any = None,
        encoding: str = "utf-8",
        max_line: int = MAX_LINE,
        max_message: int | None = MAX_MESSAGE,
        opaque: bool = False,
    ) -> None:
        """Take over `sock`, which is connected, and make it blocking. OSError if it has no peer.

        `client_address` and `local_name` are the names of both ends, if the caller knows them. With
        `opaque`, a handler uses `sock` itself: its timeout stays, and nothing is counted.
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
        self.opened_at = self.accepted_at = time.monotonic()
        self.began_at: float | None = None  # when its handler was called
        self.lifetime: float | None = None  # the limit of its server (seconds)
        self.thread: int | None = None
        self.ticket: Any = None  # the share of the server's limits
        self.on_close: Callable[[Connection], object] | None = None  # called as `close` begins

    if not TYPE_CHECKING:  # pragma: no branch - type checkers would accept any name
        __getattr__ = no_attribute

    @property
    def local(self) -> str:
        """This end as text for messages: ``127.0.0.1:8080``, or ``unix:/path``."""
        return described(self._local_name)

    @property
    def closed(self) -> bool:
        """Whether this side has closed the connection."""
        return self._link.life is Life.CLOSED

    @property
    def socket(self) -> sockets.socket:
        """The socket, for options that have no method here."""
        return self._link.wire.sock

    @socket.setter
    def socket(self, sock: Any) -> None:
        self._link.replace_socket(sock)

    def fileno(self) -> int:
        """The descriptor, -1 after the close; `select` does not see what is `pending`."""
        return self._link.wire.sock.fileno()

    @property
    def pending(self) -> int:
        """How many bytes have been received and not read. Look at it before `select`.

        Decrypted bytes count, and 1 if there is nothing but the end of the TLS stream. A read of
        bytes does not wait while it is more than 0. No system call. For the thread that reads.
        """
        return self._link.transport.pending(self._held())

    def is_secured(self) -> bool:
        """Whether the connection speaks TLS, also if the handler reads a TLS socket itself."""
        return self.tls is not None or hasattr(self.socket, "do_handshake")

    def is_to_blame(self, error: BaseException) -> bool:
        """Whether the peer has caused `error`, which a handler has raised."""
        return self._link.is_to_blame(error)

    def forget_frames(self) -> None:
        """Drop the tracebacks of its errors, once they are logged: their frames refer to it."""
        link = self._link
        for error in (link.error, link.broken, link.interruption):
            for each in (error, error and error.__cause__):
                if each is not None:
                    each.__traceback__ = each.__context__ = None

    # Writing

    def write(self, data: Writable, encoding: str | None = None) -> int:
        """Send all of `data`, and return its number of bytes once the kernel has them.

        `encoding` (or the connection's) encodes text. Waits while the peer's window and the
        kernel's buffer are full. Thread-safe: what one call writes stays together.

        WriteAfterEndError after `end`; ConnectionClosedError after `close`; BrokenPipeError or
        ConnectionResetError if the peer is gone; TimeoutError once a time limit has passed. After a
        failed write, every further one raises the same error, and the peer sees a reset in the end;
        but without TLS a time limit that passes before anything is sent breaks nothing.
        RuntimeError, and nothing is sent, in a signal handler that has interrupted a write of this
        connection, or a read that sends something for TLS.
        """
        payload = data if type(data) is bytes else as_bytes(data, encoding or self.encoding)
        self._output.write(payload)
        return len(payload)

    def corked(self) -> AbstractContextManager[None]:
        """Return a context manager that gathers what its block writes, and sends it at the end.

        So small pieces cost fewer packets and TLS records. `end`, `close`, and a write that makes
        them 64 KiB send them, too. The end of a block without an exception raises their errors.
        """
        return self._output.corked()

    def flush(self) -> None:
        """Send what a block of `corked` has gathered. Errors as of `write`."""
        self._output.flush()

    def pipe_to(self, destination: files.Sink, end: bool = True) -> int:
        """Copy all input to a connection or a binary file, and return how many bytes were copied.

        Always bytes, also after `set_encoding`. If `end`, ends the output of a connection after the
        last byte; a file stays open, and is not flushed. Waits for a non-blocking file;
        BlockingIOError if the file has no descriptor. Raises what reading and writing raise;
        `is_to_blame` tells whether this connection's peer has caused the error.
        """
        copied = files.copy_input(self, destination)
        if end and isinstance(destination, Connection):
            destination.end()
        return copied

    def end(self, data: Writable | None = None, encoding: str | None = None) -> None:
        """Write `data`, if any, and end our side: the peer sees the end of input (half-close).

        Reading goes on. Idempotent. If a write has failed before, its error is raised again, and
        our side is not ended. RuntimeError as of `write`; TimeoutError with TLS, which sends.
        """
        if data is not None:
            self.write(data, encoding)
        self._output.end()

    # Closing

    def close(self) -> None:
        """End our side, let the peer have everything, and close the descriptor. Idempotent.

        Waits at most `linger_seconds`: for writes of other threads, and for the peer to end its
        side, while there is anything that a reset could destroy. If a write has failed, or is not
        done by then, the peer sees a reset. Never raises for what the peer did. From any thread: a
        read of another one returns the end of input, and that thread closes the descriptor.
        """
        if self.finish():
            self._link.release()

    def destroy(self) -> None:
        """Close at once, without waiting for anything. Idempotent, from any thread.

        Unsent bytes may be lost. A read or write of another thread returns, and that thread closes
        the descriptor. The peer sees a reset if a write has failed or is under way, else the end.
        """
        self._link.abort(reset=False)

    def detach(self) -> tuple[sockets.socket, bytes]:
        """Give up the socket: return it, blocking, and the bytes received and not read.

        The peer does not notice. ConnectionClosedError; ValueError with TLS, while another thread
        reads, and for a socket that its handler reads itself.
        """
        with self._output.held():
            self._output.send_gathered()
            sock = self._link.detach(is_plain=not (self.is_secured() or self.opaque))
        self._link.call_released()
        return sock, self._forget_received()

    def fail(self, error: BaseException) -> None:
        """Have `close` send a reset after what was written: the handler has raised `error`.

        Does nothing if the peer is to blame, if our side has been ended, or if the handler reads
        the socket itself.
        """
        by_peer = isinstance(error, PeerError) or self.is_to_blame(error)
        endings.note_error(self._link, error, by_peer)
        if not (by_peer or self.opaque):
            self._output.abandon()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is None:
            self.close()
        else:
            self.fail(error)
            self.destroy()

    # Stopping, from any thread and from a signal handler. Nothing of it waits.

    def end_input(self) -> float | None:
        """End the input once the message under way has been read, or at once if there is none.

        Returns None, or the seconds after which to ask again: for an opaque connection that is busy
        or about to speak TLS, and while a `close` waits until the peer has the rest.
        """
        return self._link.end_input(self.quiet_seconds)

    def interrupt(self, reason: OSError, hard: bool = False) -> bool:
        """Raise `reason` in the read or write that is under way, or else in the next one.

        A handler that catches it can still read what has been received, and write; but every
        further read and write raises it if `hard`, or if a write was interrupted. If the handler
        does not catch it, the client gets what has been written, and `reason` is logged. A handler
        that reads the socket itself sees the end of both directions. False if the connection was
        closed already. TypeError unless `reason` is an OSError.
        """
        if not isinstance(reason, OSError):
            raise TypeError(f"reason must be an OSError, not {reason!r}")
        return self._link.stop(reason, hard)

    def cut(self) -> bool:
        """End both directions now; the connection's thread wakes and closes it. False if closed.

        Without TLS the peer sees the end of input, also between two writes of one reply.
        """
        return self._link.stop(None, True)

    def free_locks(self) -> None:
        """Make all locks anew, in a forked child, where the threads that held them do not exist."""
        self._link.free_locks()
        self._output.lock = threading.RLock()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        return f"<{type(self).__name__} {self.id} {self.peer} {state}>"
