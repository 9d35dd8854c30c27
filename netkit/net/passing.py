"""Passes a connection to another process, with all bytes that were received and not read.

Rules:

1. A connection is one message on the channel, a Unix stream socket: one byte, the descriptor of the
   connection (SCM_RIGHTS, unix(7)), and, if there are unread bytes, that of a file without a name
   which contains them. The kernel sends and receives such a message as a whole, so any number of
   threads and processes may use one channel.
2. The file is complete before the message is sent, so neither end waits for the other, and the
   receiver need not believe a size that the sender names.
3. A message is checked before it is used. A message that is no connection raises an error, its
   descriptors are closed, and the next message is not affected.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import socket
import stat
import time
from tempfile import TemporaryFile
from typing import Any

from ..core.deadline import Deadline
from ..core.errors import MessageTooLongError
from . import sockopts
from .connection import Connection

MAX_UNREAD = 32 * 1024 * 1024  # bytes: twice the longest message that a server reads by default

# Linux limits how many descriptors a user may have in flight, on all channels together, and has no
# event for a free one. So the sender tries again after this time (seconds).
PAUSE = 0.005

_INT = array.array("i").itemsize
# The size of the control data that is read with a message: with room for surplus descriptors, which
# are closed, and for credentials (SO_PASSCRED).
_CONTROL = 256


def send_connection(channel: socket.socket, conn: Connection[Any]) -> None:
    """Send `conn` to the process at the other end of `channel`, a Unix stream socket. Thread-safe.

    This closes `conn`, which its client does not notice unless sending fails. Waits while the
    channel is full, or while this user has too many descriptors in flight, at most for the timeout
    of the channel.

    Raises the errors of `Connection.detach`, which leave `conn` as it was; MessageTooLongError if
    more than 32 MiB are unread; OSError if the channel fails, or if there is no descriptor or no
    memory for the unread bytes.
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
        deadline = Deadline(channel.gettimeout())
        while not _has_sent(channel, descriptors, deadline):
            time.sleep(PAUSE)


def receive_connection(channel: socket.socket, **settings: Any) -> Connection | None:
    """Return the next connection, which the caller closes, or None at the end of the channel.

    Thread-safe. `settings` are those of `Connection`. OSError with EMFILE if this process has no
    descriptor left, with EPROTO if the message is no connection, and any OSError of `recv` and
    `getpeername`. After each of them, the next connection can be received.
    """
    _check(channel)
    with contextlib.ExitStack() as stack:
        descriptors = _next_descriptors(channel, stack)
        if descriptors is None:
            return None
        sock = _stream(descriptors[0])
        stack.callback(sock.detach)  # without it, the descriptor would be closed twice
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


def _nameless_file() -> Any:
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("netkit"), "w+b")
    return TemporaryFile()


def _has_sent(channel: socket.socket, descriptors: list[int], deadline: Deadline) -> bool:
    try:
        socket.send_fds(channel, [b"\0"], descriptors)
    except OSError as error:
        if error.errno != errno.ETOOMANYREFS or deadline.expired():
            raise
        return False
    return True


def _next_descriptors(channel: socket.socket, stack: contextlib.ExitStack) -> list[int] | None:
    """Receive the descriptors of a message, which `stack` closes. None at the end of input."""
    flags = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
    data, control, flags, _ = channel.recvmsg(1, _CONTROL, flags)
    descriptors: list[int] = []
    for level, kind, content in control:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors += array.array("i", content[: len(content) - len(content) % _INT])
    for descriptor in descriptors:
        stack.callback(os.close, descriptor)
        os.set_inheritable(descriptor, False)  # where there is no MSG_CMSG_CLOEXEC
    if not data:
        return None
    if len(descriptors) > 2:
        raise _refused(f"{len(descriptors)} descriptors came")
    if flags & socket.MSG_CTRUNC:  # the kernel drops a descriptor that it cannot open here
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
    sock.setblocking(True)  # the sender may have changed it, and the timeouts
    sockopts.limit_wait(sock, socket.SO_RCVTIMEO, None)
    sockopts.limit_wait(sock, socket.SO_SNDTIMEO, None)
    return sock


def _contents(descriptor: int) -> bytes:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):  # reading anything else might never end
        raise _refused("its unread bytes are in no regular file")
    if status.st_size > MAX_UNREAD:
        raise _refused(f"it has more than {MAX_UNREAD} unread bytes")
    data = bytearray()
    while len(data) < status.st_size:
        piece = os.pread(descriptor, status.st_size - len(data), len(data))
        if not piece:
            raise _refused("its unread bytes have been cut off")
        data += piece
    return bytes(data)


def _refused(why: str) -> OSError:
    return OSError(errno.EPROTO, f"the message is no connection: {why}")
