"""What the kernel knows of a TCP connection: TCP_INFO (Linux, tcp(7)). No cost until it is asked.

The layout is that of `struct tcp_info` in linux/tcp.h. A kernel before 4.2 returns fewer fields.
"""

from __future__ import annotations

import socket
import struct
import sys

from ..core.record import NamedTuple
from . import sockopts

_IN_MILLISECONDS = 1000
_IN_MICROSECONDS = 1_000_000
# Skipped: 8 flags of a byte each, and 9 numbers. Then last_data_sent, last_ack_sent and
# last_data_recv; after 3 more numbers, rtt; after 7 more, total_retrans; after two rates,
# bytes_acked and bytes_received.
_LAYOUT = struct.Struct("=8x36xI4xI12xI28xI16xQQ")
# Of those: the state, bytes_received, notsent_bytes, data_segs_in, bytes_sent and bytes_retrans.
_TRAFFIC = struct.Struct("=B127xQ8xI4xI44xQQ")
# Of those: the state, and rcv_wnd, which is zero while the peer may send nothing more.
_WINDOW = struct.Struct("=B231xI")
# The states after the end of the peer's side (include/net/tcp_states.h in the kernel's source):
# TIME_WAIT, CLOSE_WAIT, LAST_ACK and CLOSING.
_PEER_HAS_ENDED = (6, 8, 9, 11)
# Those after the end of our side while the peer has not ended its own: FIN_WAIT1 and FIN_WAIT2.
_FIN_WAIT = (4, 5)
_CLOSED = 7  # after a reset by the peer, which may have followed the end of the peer's side


class TcpInfo(NamedTuple):
    """Counters of one TCP connection."""

    idle: float
    """Seconds since the last byte of data was sent or received."""
    rtt: float
    """The smoothed round-trip time (seconds)."""
    retransmits: int
    """How many segments have been sent again, since the connection began."""
    acknowledged: int
    """How many bytes the peer's kernel has acknowledged. The end of our side counts as one byte.

    So does the beginning of a connection that this side has opened.
    """
    received: int
    """How many bytes this kernel has received. The end of the peer's side counts as one byte."""


def tcp_info(sock: socket.socket) -> TcpInfo | None:
    """Return the counters of `sock`, also of one that TLS wraps.

    None if it is closed or not TCP, or if the platform has no TCP_INFO with these fields. From any
    thread.
    """
    if sys.platform != "linux" or not sockopts.is_ip(sock):
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAYOUT.size)
        sent, received, rtt, retransmits, acknowledged, bytes_received = _LAYOUT.unpack(info)
    except (OSError, struct.error):  # it is closed; an older kernel
        return None
    idle = min(sent, received) / _IN_MILLISECONDS
    return TcpInfo(idle, rtt / _IN_MICROSECONDS, retransmits, acknowledged, bytes_received)


class Traffic(NamedTuple):
    """How many bytes of data a TCP connection has carried, without those that only mark an end."""

    received: int
    sent: int
    """Those that the kernel has taken from this side, as the result of a write has it."""
    ended: bool
    """Whether the peer has ended its side."""


def traffic(sock: socket.socket) -> Traffic | None:
    """Return how many bytes `sock` has carried. Call it before this side is ended.

    With TLS these are the encrypted bytes. None where `tcp_info` returns None, and on Linux before
    4.19. From any thread.
    """
    if sys.platform != "linux" or not sockopts.is_ip(sock):
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TRAFFIC.size)
        state, received, unsent, segments, sent, again = _TRAFFIC.unpack(info)
    except (OSError, struct.error):
        return None
    is_end = received == 1 and not segments
    ended = state in _PEER_HAS_ENDED or (state == _CLOSED and is_end)
    return Traffic(received - ended, sent - again + unsent, ended)


def waits_for_window(sock: socket.socket) -> bool:
    """Whether the peer has the end of our side, and cannot send since our receive window is full.

    False where `tcp_info` returns None, and on Linux before 6.2. From any thread.
    """
    try:
        if sys.platform != "linux" or not sockopts.is_ip(sock):
            return False
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _WINDOW.size)
        state, window = _WINDOW.unpack(info)
    except (AttributeError, OSError, struct.error):  # an object of the program's own; it is closed
        return False
    return not window and state in _FIN_WAIT and send_queue(sock) in (0, 1)  # the end counts as 1


def send_queue(sock: socket.socket) -> int | None:
    """Return how many written bytes the peer's kernel has not acknowledged (SIOCOUTQ, tcp(7)).

    None where `tcp_info` returns None.
    """
    return _queued(sock, "TIOCOUTQ")


def unread(sock: socket.socket) -> int | None:
    """Return how many received bytes this side has not read (SIOCINQ, tcp(7)).

    With TLS these are encrypted. None where `tcp_info` returns None.
    """
    return _queued(sock, "FIONREAD")


def _queued(sock: socket.socket, question: str) -> int | None:
    if sys.platform != "linux" or not sockopts.is_ip(sock):
        return None
    import fcntl  # here because other platforms have no such module
    import termios

    try:
        queued = fcntl.ioctl(sock, getattr(termios, question), bytes(4))
    except (OSError, ValueError):  # it is closed
        return None
    return int.from_bytes(queued, sys.byteorder)
