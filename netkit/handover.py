"""A connection goes on in another process, with all that has been received and not been read.

Over a Unix socket (SCM_RIGHTS, unix(7)); each end has one side of a ``socket.socketpair()``. On the
way it is the descriptor, with one byte, and then the unread bytes after their number.
"""

from __future__ import annotations

import socket
import struct
from typing import Any

from .connection import Connection
from .errors import IncompleteReadError

_SIZE = struct.Struct("!Q")


def send_connection(channel: socket.socket, conn: Connection) -> None:
    """Send `conn` to the process at the other end of `channel`, a Unix stream socket.

    It is closed here, whatever happens; its client sees nothing of it, if all goes well. Errors as
    of `Connection.detach`, and OSError of the channel. Waits while the channel is full.
    """
    sock, unread = conn.detach()
    with sock:
        socket.send_fds(channel, [b"\0"], [sock.fileno()])
        channel.sendall(_SIZE.pack(len(unread)) + unread)


def receive_connection(channel: socket.socket, **settings: Any) -> Connection | None:
    """The next connection that was sent, which the caller closes; None if there will be no more.

    `settings` are those of `Connection`. IncompleteReadError if the sender died amid sending.
    """
    _, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
    if not descriptors:
        return None
    sock = socket.socket(fileno=descriptors[0])
    try:
        sock.set_inheritable(False)
        (size,) = _SIZE.unpack(_exactly(channel, _SIZE.size))
        conn = Connection(sock, **settings)
        conn.unread(_exactly(channel, size))
    except BaseException:
        sock.close()
        raise
    return conn


def _exactly(channel: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = channel.recv(min(size - len(data), 65536))
        if not piece:
            raise IncompleteReadError(bytes(data), size)
        data += piece
    return bytes(data)
