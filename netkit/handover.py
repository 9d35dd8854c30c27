"""A connection goes on in another process, with all that has been received and not been read.

Rules:

1. A connection is one message on the channel, a Unix stream socket: one byte, and with it the
   descriptor of the connection (SCM_RIGHTS, unix(7)). If there are unread bytes, the descriptor of
   a file without a name, which has them, comes with it. The kernel sends and receives such a
   message as a whole, so any number of threads and processes may use one channel.
2. The file is complete before the message is sent, so neither end waits for the other one's pace,
   and no size is told that could be false.
3. What came is checked before it is used. A message that is no connection is an error, its
   descriptors are closed, and the next message is not affected.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import socket
import stat
import tempfile
import time
from typing import Any

from . import sockets
from .connection import Connection
from .deadline import Deadline
from .errors import MessageTooLongError

MAX_UNREAD = 32 * 1024 * 1024  # bytes: twice the longest message that a server reads by default

# Linux lets a user have only so many descriptors on their way, on all channels together, and has no
# event for when there are fewer: it is asked again after so many seconds.
PAUSE = 0.005

_INT = array.array("i").itemsize
# The control data that is taken of one message. It has room for more descriptors than belong there,
# so that those that came beside credentials (SO_PASSCRED) or in excess are seen, and closed.
_CONTROL = 256


def send_connection(channel: socket.socket, conn: Connection) -> None:
    """Send `conn` to the process at the other end of `channel`, a Unix stream socket.

    From any number of threads and processes at once. `conn` is closed here; its client does not
    notice, unless sending fails. Errors as of `Connection.detach`, which leave it as it is; OSError
    of the channel, or if there is no descriptor or memory for the unread bytes;
    MessageTooLongError if these are more than 32 MiB. Waits while the channel is full, or too many
    descriptors of this user are on their way, as long as the timeout of the channel lets it.
    """
    _check(channel)
    sock, unread = conn.detach()
    with contextlib.ExitStack() as stack:
        descriptors = [stack.enter_context(sock).fileno()]
        if len(unread) > MAX_UNREAD:
            raise MessageTooLongError(MAX_UNREAD, len(unread), option=None)
        if unread:
            file = stack.enter_context(_nameless_file())
            file.write(unread)
            file.flush()
            descriptors.append(file.fileno())
        _send(channel, descriptors)


def receive_connection(channel: socket.socket, **settings: Any) -> Connection | None:
    """The next connection that was sent, which the caller closes; None if there will be no more.

    From any number of threads and processes at once. `settings` are those of `Connection`. OSError
    with EMFILE if this process has no descriptor left, with EPROTO if what came is no connection,
    and as of `recv` and `getpeername`. After each of them, the next connection can be received.
    """
    _check(channel)
    with contextlib.ExitStack() as stack:
        descriptors = _next_descriptors(channel, stack)
        if descriptors is None:
            return None
        sock = _stream(descriptors[0])
        stack.callback(sock.detach)  # else the descriptor would be closed twice
        unread = _contents(descriptors[1]) if len(descriptors) > 1 else b""
        conn = Connection(sock, **settings)
        conn.unread(unread)
        stack.pop_all()
        for descriptor in descriptors[1:]:
            os.close(descriptor)
    return conn


def _check(channel: socket.socket) -> None:
    kind = (channel.family, channel.type)
    if kind != (getattr(socket, "AF_UNIX", None), socket.SOCK_STREAM):
        raise ValueError("the channel must be a Unix stream socket")


def _send(channel: socket.socket, descriptors: list[int]) -> None:
    deadline = Deadline(channel.gettimeout())
    while True:
        try:
            socket.send_fds(channel, [b"\0"], descriptors)
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS or deadline.expired():
                raise
            time.sleep(PAUSE)
        else:
            return


def _nameless_file() -> Any:
    """A new file that is gone as soon as no process has it open."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("netkit"), "w+b")
    return tempfile.TemporaryFile()


def _next_descriptors(channel: socket.socket, stack: contextlib.ExitStack) -> list[int] | None:
    """The descriptors of the next message, which `stack` closes; None at the end of input."""
    flags = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
    data, control, flags, _ = channel.recvmsg(1, _CONTROL, flags)
    descriptors: list[int] = []
    for level, kind, content in control:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found = array.array("i", content[: len(content) - len(content) % _INT])
            descriptors += found
    for descriptor in descriptors:
        stack.callback(os.close, descriptor)
        os.set_inheritable(descriptor, False)  # where there is no MSG_CMSG_CLOEXEC
    if not data:
        return None
    if len(descriptors) > 2:
        raise _refused(f"{len(descriptors)} descriptors came")
    if flags & socket.MSG_CTRUNC:  # the kernel has dropped those that it could not open here
        raise OSError(
            errno.EMFILE, "no descriptor is left for the connection that came; it is lost"
        )
    if not descriptors:
        raise _refused("a byte without a descriptor came")
    return descriptors


def _stream(descriptor: int) -> socket.socket:
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError:
        raise _refused("its descriptor is no socket") from None
    if sock.type != socket.SOCK_STREAM:
        sock.detach()  # the caller closes it
        raise _refused("its socket is no stream")
    sock.setblocking(True)  # whatever the sender has used it for
    sockets.set_receive_timeout(sock, None)
    sockets.set_send_timeout(sock, None)
    return sock


def _contents(descriptor: int) -> bytes:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):  # reading anything else might never end
        raise _refused("its unread bytes are in no regular file")
    if status.st_size > MAX_UNREAD:
        raise _refused(f"it has more than {MAX_UNREAD} unread bytes")
    return _read_all(descriptor, status.st_size)


def _read_all(descriptor: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = os.pread(descriptor, size - len(data), len(data))
        if not piece:
            raise _refused("its unread bytes have been cut off")
        data += piece
    return bytes(data)


def _refused(why: str) -> OSError:
    return OSError(errno.EPROTO, f"what was sent is no connection: {why}")
