"""The end of a connection: its peer gets everything that was written, or sees a reset.

A close with unread input makes the kernel reset the connection, and a reset discards what the peer
has not read yet (RFC 2525 section 2.17). So our side is ended first, and then netkit reads and
drops what the peer still sends, for a bounded time and up to a bounded size.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import time
from typing import TYPE_CHECKING, Any

from ..core.deadline import Deadline
from ..core.errors import OutboxFullError
from . import endings, sockopts, tcpinfo
from .link import Link
from .output import Output
from .states import InputState, Life, OutputState

if TYPE_CHECKING:
    from .connection import Connection

# A peer acknowledges what it has received within 40 ms (Linux) to 500 ms (RFC 9293 section
# 3.8.6.3). The kernel has no event for it, except in a close(2) with SO_LINGER, which no other
# thread can end, and which does not read what the peer still sends. So a close with unacknowledged
# bytes looks again after this interval (seconds); most closes have none.
ACKNOWLEDGEMENT = 0.005

# Linux does not open the receive window again once our receiving side is shut down. If the rest is
# read and dropped then, a peer that has filled the window waits for about a minute. So after a cut
# a close drops only so many bytes (a request, but not a full window), and the rest makes it a
# reset. A handler may have read the rest before. So a close is a reset, too, if the kernel reports
# that the window is full.
CUT_BYTES = 16 * 1024


def swallow(sock: socket.socket, deadline: Deadline, size: int) -> bool:
    """Read and drop input until the peer ends its side. Return whether the peer has done so.

    Until `deadline`, and about `size` bytes at most. TLS records are not decrypted.
    """
    receive = sockopts.below_tls(sock, "recv")
    chunk = 4 * 1024  # there is rarely anything
    with contextlib.suppress(OSError):  # a reset, or the time is up
        while size > 0:
            sock.settimeout(deadline.remaining() or 0)
            received = len(receive(min(chunk, size)))
            if not received:
                return True
            size -= received
            chunk = 64 * 1024
    return False


def swallow_until_sent(sock: socket.socket, deadline: Deadline, size: int) -> bool:
    """As `swallow`, but only while our bytes, or the end of our side, are unacknowledged."""
    while _is_waited_for(sock, deadline):
        if swallow(sock, Deadline(ACKNOWLEDGEMENT), size):
            return True
    return False


def wait_until_sent(sock: socket.socket, deadline: Deadline) -> None:
    """Wait while written bytes are unacknowledged, until `deadline`; our side is not ended yet.

    Returns at once where the platform cannot tell.
    """
    while sockopts.KNOWS_UNSENT and _is_waited_for(sock, deadline):
        time.sleep(ACKNOWLEDGEMENT)


def _is_waited_for(sock: socket.socket, deadline: Deadline) -> bool:
    return sockopts.unsent(sock) and not sockopts.hung_up(sock) and not deadline.expired()


def deliver(sock: socket.socket, deadline: Deadline, size: int) -> None:
    """Wait until the peer's kernel has all written bytes, without ending our side.

    Until `deadline`. Input is dropped meanwhile, about `size` bytes of it, since the peer may read
    nothing before it has sent everything. Where the platform cannot tell, waits until the peer ends
    its side.
    """
    if swallow_until_sent(sock, deadline, size):
        wait_until_sent(sock, deadline)


def linger(
    sock: socket.socket,
    deadline: Deadline,
    size: int,
    *,
    ended: bool,
    input_shut: bool,
    hurried: bool,
) -> None:
    """End our side, and drop what the peer still sends, until `deadline`, about `size` bytes of it.

    `ended`: the peer has ended its side, so nothing more arrives. `input_shut`: our receiving side
    is shut down. `hurried`: wait only until the peer's kernel has everything.
    """
    if input_shut:  # the kernel resets the connection if bytes arrive after both shutdowns
        wait_until_sent(sock, deadline)
    done = ended or swallow(sock, Deadline(0), size) or (hurried and not sockopts.unsent(sock))
    sockopts.shut_down(sock, socket.SHUT_WR)
    if not done:
        (swallow_until_sent if hurried else swallow)(sock, deadline, size)


def finish(conn: Connection[Any]) -> bool:
    """Do all that `close` does, except for closing the descriptor.

    False if nothing is left to be done: it is closed, or another thread is about to close it. If a
    signal handler raises an exception, the connection is closed at once.
    """
    link, output = conn._link, conn._output
    with link.lock:
        if link.life is not Life.OPEN:
            return False
        link.changed = True
        link.life = Life.CLOSING
        if link.wire.opaque:
            endings.count_locked(link)
    if link.transport.handshaking and link.leave_closing():  # another thread closes it
        return False
    if conn.on_close is not None:
        conn.on_close(conn)
    with link.lock:  # the usual close of a server, without a wait
        if (
            link.life is Life.CLOSING
            and link.input is InputState.ENDED
            and link.output in (OutputState.OPEN, OutputState.ENDED)
            and link.transport is link.wire
            and not (output.gathered or output.outbox or link.writing)
            and not (link.waiting or link.wire.opaque)
        ):
            sockopts.shut_down(link.wire.sock, socket.SHUT_WR)
            link.life = Life.FINISHED
            return True
    return _finish_slowly(conn, link, output)


def reset(conn: Connection[Any]) -> None:
    """As `destroy`, but the peer sees a reset (ECONNRESET) instead of an end.

    OSError (EOPNOTSUPP), and it stays open, for a Unix socket, which knows no reset.
    """
    if not conn._link.can_reset:
        raise OSError(errno.EOPNOTSUPP, f"a Unix socket cannot be reset ({conn.peer})")
    conn._link.abort(reset=True)


def _finish_slowly(conn: Connection, link: Link, output: Output) -> bool:
    deadline = Deadline(conn.linger_seconds)
    try:
        if not output.finish(deadline):
            link.abort(reset=link.can_reset)
            return False
        if link.leave_closing():
            return False
        conn._forget_received()
        _linger(conn, link, deadline)
    except BaseException:
        link.abort(reset=link.can_reset and bool(output.gathered))
        raise
    with link.lock:
        if link.life is Life.CLOSING:
            link.life = Life.FINISHED
    return True


def _linger(conn: Connection, link: Link, deadline: Deadline) -> None:
    with link.lock:
        if link.life is Life.CLOSED:
            return
        link.waiting = True  # so that `end_input`, `cut` and `destroy` can end the wait
        ended = link.transport.is_input_over(link.input is InputState.ENDED)
        shut = link.input.is_shut()
        # A client that closes has what it wanted, and a server that stops waits no longer than it
        # must. If the peer has sent more after our last byte, it has read that byte.
        hurried = (
            conn.server is None
            or link.input not in (InputState.OPEN, InputState.ENDED)
            or (not link.wire.opaque and link.heard == link.bytes_written)
        )
    size = min(conn.linger_bytes, CUT_BYTES) if link.shut_both else conn.linger_bytes
    sock = link.wire.sock
    try:
        if not link.must_reset():
            linger(sock, deadline, size, ended=ended, input_shut=shut, hurried=hurried)
            if (shut or link.shut_both) and tcpinfo.waits_for_window(sock):
                sockopts.reset_on_close(sock)
        else:
            # Without these errors: the peer has had its time.
            if not isinstance(link.broken, (TimeoutError, OutboxFullError)):
                deliver(sock, deadline, size)
            sockopts.reset_on_close(sock)
    finally:
        link.waiting = False
    link.leave()
