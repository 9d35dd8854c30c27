"""What netkit asks of a socket beyond Python's own methods: one small function each.

All of them take a connected or listening ``socket.socket`` and touch nothing else. What a platform
cannot tell is answered on the careful side, as each function says.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import select
import socket
import struct
import sys
import threading
import time
import traceback
from typing import Any

from ..core.deadline import LONGEST_WAIT, Deadline

try:
    import fcntl
    import termios
except ImportError:  # pragma: no cover - Windows
    _SIOCOUTQ = None
else:
    _SIOCOUTQ = termios.TIOCOUTQ if sys.platform == "linux" else None

# A peer that has died is found after 60 + 6 * 10 seconds: late enough not to wake a phone that
# sleeps, and soon enough that its thread is not kept for the kernel's two hours.
KEEP_ALIVE_IDLE = 60  # seconds of silence before the first probe
KEEP_ALIVE_INTERVAL = 10  # seconds between probes
KEEP_ALIVE_COUNT = 6  # unanswered probes that make a dead peer

# Peers acknowledge what they have received after up to 40 ms (Linux), or 500 (RFC 9293 section
# 3.8.6.3). The kernel wakes no thread when they have, but in a close(2) with SO_LINGER, which
# cannot be ended by another thread, and does not swallow what still comes. So a close asks in this
# interval (seconds), while bytes are unacknowledged: most often not once.
ACKNOWLEDGEMENT = 0.005

# Offsets, in bytes, of 32-bit counters of milliseconds in Linux's struct tcp_info (linux/tcp.h).
_LAST_DATA_SENT = 44
_LAST_DATA_RECEIVED = 52


def waiting(sock: socket.socket) -> socket.socket:
    """`sock`, which waits as long as it takes: ``socket.setdefaulttimeout`` is for others.

    For every socket that netkit makes or accepts; no system call where there is no such default.
    """
    if sock.gettimeout() is not None:
        sock.settimeout(None)
    return sock


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """``socket.socketpair()``, of two that are `waiting`."""
    one, other = socket.socketpair()
    return waiting(one), waiting(other)


def set_no_delay(sock: socket.socket, on: bool) -> None:
    """TCP_NODELAY (tcp(7)); nothing on a socket that is not TCP."""
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, on)


def check_keep_alive(idle: object, interval: object, count: object) -> None:
    """TypeError or ValueError unless `set_keep_alive` takes these; None stands for its default."""
    for name, value, most in (
        ("idle", idle, 32767),  # tcp(7), as the next ones
        ("interval", interval, 32767),
        ("count", count, 127),
    ):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name} must be a number, not {value!r}")
        if not 1 <= value <= most:
            raise ValueError(f"{name} must be from 1 to {most}, not {value}")


def set_keep_alive(
    sock: socket.socket,
    on: bool,
    idle: float | None = None,
    interval: float | None = None,
    count: int | None = None,
) -> None:
    """Keep-alive probes (RFC 9293 section 3.8.4); nothing on a socket that is not TCP.

    `idle` and `interval` are whole seconds for the kernel: what is between is cut off.
    """
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, on)
    if on:
        # macOS calls TCP_KEEPIDLE by another name, and Python knows it there from 3.10 on.
        name = getattr(socket, "TCP_KEEPIDLE", None) or getattr(socket, "TCP_KEEPALIVE", None)
        for option, value in (
            (name, idle or KEEP_ALIVE_IDLE),
            (getattr(socket, "TCP_KEEPINTVL", None), interval or KEEP_ALIVE_INTERVAL),
            (getattr(socket, "TCP_KEEPCNT", None), count or KEEP_ALIVE_COUNT),
        ):
            if option is not None:  # pragma: no branch - every Linux has the three
                sock.setsockopt(socket.IPPROTO_TCP, option, int(value))


def check_tos(value: object) -> None:
    """TypeError or ValueError unless it is a byte."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"tos must be a whole number, not {value!r}")
    if not 0 <= value <= 255:
        raise ValueError(f"tos must be from 0 to 255, not {value}")


def set_tos(sock: socket.socket, value: int) -> None:
    """The type of service (IP_TOS), or traffic class (IPV6_TCLASS); nothing on other sockets."""
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, value)
    elif sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, value)


def tos(sock: socket.socket) -> int:
    """What `set_tos` has set, as far as the kernel lets (it may keep the lowest two bits); or 0."""
    if sock.family == socket.AF_INET:
        return sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS)
    if sock.family == socket.AF_INET6:
        return sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS)
    return 0


def set_acknowledgement_timeout(sock: socket.socket, seconds: float | None) -> None:
    """Bound how long what was sent may stay unacknowledged (TCP_USER_TIMEOUT, RFC 5482, tcp(7)).

    Then, and also if the peer's window stays shut so long, the kernel gives the connection up
    (ETIMEDOUT). With None the kernel's own limit counts, some 15 minutes. Does nothing where there
    is no such option.
    """
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if option is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        milliseconds = 0 if seconds is None else min(max(int(seconds * 1000), 1), 2**31 - 1)
        sock.setsockopt(socket.IPPROTO_TCP, option, milliseconds)


def set_receive_timeout(sock: socket.socket, seconds: float | None) -> None:
    """Bound each wait of a blocking socket for input: recv then raises BlockingIOError.

    Done by the kernel (SO_RCVTIMEO, socket(7)), since ``settimeout`` costs a ``poll()`` for each
    call.
    """
    _set_kernel_timeout(sock, socket.SO_RCVTIMEO, seconds)


def set_send_timeout(sock: socket.socket, seconds: float | None) -> None:
    """As `set_receive_timeout`, for a send (SO_SNDTIMEO) that can send nothing."""
    _set_kernel_timeout(sock, socket.SO_SNDTIMEO, seconds)


def _set_kernel_timeout(sock: socket.socket, option: int, seconds: float | None) -> None:
    if sys.platform == "win32":  # pragma: no cover - another layout of the option
        sock.settimeout(seconds)
        return
    sock.setsockopt(socket.SOL_SOCKET, option, _timeval(seconds))


@functools.lru_cache(maxsize=64)  # a server has the same limits for all its clients
def _timeval(seconds: float | None) -> bytes:
    whole, fraction = divmod(min(seconds or 0.0, threading.TIMEOUT_MAX), 1)
    # A timeval of zero means no limit, so the smallest limit is a microsecond.
    microseconds = max(int(fraction * 1_000_000), 1 if seconds and not whole else 0)
    return struct.pack("@ll", int(whole), microseconds)


def local_name(sock: socket.socket) -> Any:
    """``getsockname()``; None where the system has none for a peer that has reset already."""
    try:
        return sock.getsockname()
    except OSError:
        return None


def readable(sock: socket.socket) -> bool:
    """Whether a recv would return at once, with data or with the end of input."""
    return bool(_poll(sock, select.POLLIN, 0))


def wait_until_ready(sock: socket.socket, writing: bool, seconds: float | None) -> bool:
    """Until a send, or a recv, would not wait; False after so many `seconds`, signals or not.

    Or after `LONGEST_WAIT`.
    """
    seconds = LONGEST_WAIT if seconds is None else seconds
    return bool(_poll(sock, select.POLLOUT if writing else select.POLLIN, seconds))


def hung_up(sock: socket.socket) -> bool:
    """Whether the connection is over in both directions: reset, or closed by both ends."""
    return sock.fileno() < 0 or bool(_poll(sock, 0, 0) & (select.POLLHUP | select.POLLERR))


def _poll(sock: socket.socket, events: int, seconds: float) -> int:
    poll = select.poll()
    poll.register(sock, events)
    ready = poll.poll(min(seconds, LONGEST_WAIT) * 1000)  # milliseconds
    return ready[0][1] if ready else 0


def unsent(sock: socket.socket) -> bool:
    """Whether bytes that were written still wait for the peer's kernel to have them.

    True where the platform cannot tell (it can on Linux: SIOCOUTQ, tcp(7)).
    """
    if _SIOCOUTQ is None:  # pragma: no cover - not Linux
        return True
    return sock.fileno() >= 0 and any(fcntl.ioctl(sock, _SIOCOUTQ, bytes(4)))


def seconds_until_quiet(sock: socket.socket, quiet: float) -> float:
    """How long until the peer can be taken for idle, as the kernel sees it; 0.0 if it is idle.

    For connections that are read by code we do not see. A peer is idle if we have sent something
    since it last did (a reply: the request is over), or if it has sent nothing for `quiet` seconds.
    Where the kernel does not say (it does on Linux: TCP_INFO, tcp(7)), 0.0.
    """
    if sys.platform != "linux" or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return 0.0
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_DATA_RECEIVED + 4)
    except OSError:  # it is closed
        return 0.0
    since_sent: int = struct.unpack_from("=I", info, _LAST_DATA_SENT)[0]
    since_received: int = struct.unpack_from("=I", info, _LAST_DATA_RECEIVED)[0]
    if since_sent < since_received:
        return 0.0
    return max(0.0, quiet - since_received / 1000)


def end_tls(sock: Any) -> None:
    """Have an ``ssl.SSLSocket`` tell its peer that this is all; nothing for any other socket."""
    if hasattr(sock, "unwrap"):
        with contextlib.suppress(OSError, ValueError):  # ValueError: there was no handshake
            sock.settimeout(0.0)  # it would wait for the peer to do the same
            sock.unwrap()


def _below_tls(sock: Any, method: str) -> Any:
    """The method of the plain socket that an ``ssl.SSLSocket`` is, too."""
    if isinstance(sock, socket.socket) and hasattr(sock, "do_handshake"):
        return functools.partial(getattr(socket.socket, method), sock)
    return getattr(sock, method)


def shut_down(sock: socket.socket, how: int) -> None:
    """``sock.shutdown(how)``, and nothing if there is no longer a connection to shut down.

    Of an ``ssl.SSLSocket`` only what is below TLS: its own shutdown gives TLS up, and what another
    thread writes after that would go out unencrypted.
    """
    try:  # each connection comes by here, and contextlib.suppress costs three calls
        if type(sock) is socket.socket:
            sock.shutdown(how)
        else:
            _below_tls(sock, "shutdown")(how)
    except OSError:
        return


def swallow(sock: socket.socket, seconds: float, size: int) -> bool:
    """Read and drop what the peer still sends, until it ends its side.

    For at most `seconds` in all and about `size` bytes. True if the end of input was seen.
    """
    until = time.monotonic() + seconds
    receive = _below_tls(sock, "recv")
    chunk = 4 * 1024  # most often there is nothing
    with contextlib.suppress(OSError):  # a reset, or the time is up
        while size > 0:
            sock.settimeout(max(0.0, until - time.monotonic()))
            received = len(receive(chunk))  # of TLS, too, without decrypting it
            if not received:
                return True
            size -= received
            chunk = 64 * 1024
    return False


def swallow_until_sent(sock: socket.socket, seconds: float, size: int) -> bool:
    """As `swallow`, but only while bytes that were written, or our end, are `unsent`."""
    until = time.monotonic() + seconds
    while unsent(sock) and not hung_up(sock) and time.monotonic() < until:
        if swallow(sock, ACKNOWLEDGEMENT, size):
            return True
    return False


def wait_until_sent(sock: socket.socket, seconds: float) -> None:
    """While bytes that were written are `unsent`, at most `seconds`; our side is not ended yet.

    Where the platform cannot tell, not at all.
    """
    if _SIOCOUTQ is None:  # pragma: no cover - not Linux
        return
    until = time.monotonic() + seconds
    while unsent(sock) and not hung_up(sock) and time.monotonic() < until:
        time.sleep(ACKNOWLEDGEMENT)


def deliver(sock: socket.socket, seconds: float, size: int) -> None:
    """Wait until the peer's kernel has all that was written, and do not end our side.

    At most `seconds`. What comes meanwhile is swallowed, about `size` bytes of it, since the peer
    may read nothing before it has sent all. Where the platform cannot tell, until the peer ends its
    side.
    """
    deadline = Deadline(seconds)
    if swallow_until_sent(sock, seconds, size):
        wait_until_sent(sock, deadline.remaining() or 0)


def linger(
    sock: socket.socket,
    seconds: float,
    size: int,
    *,
    ended: bool,
    input_shut: bool,
    hurried: bool,
) -> None:
    """End our side, and swallow what still comes, for at most `seconds` and about `size` bytes.

    `ended`: the peer has ended its side, and nothing more comes. `input_shut`: we have shut down
    our input. `hurried`: wait only for what the peer's kernel has not got yet.
    """
    if input_shut:  # what comes after both have been shut down makes the kernel reset it
        wait_until_sent(sock, seconds)
    done = ended or swallow(sock, 0, size) or (hurried and not unsent(sock))
    shut_down(sock, socket.SHUT_WR)
    if not done:
        (swallow_until_sent if hurried else swallow)(sock, seconds, size)


def force_close(sock: socket.socket) -> None:
    """Close the descriptor, even if a ``makefile`` of the socket is still open somewhere.

    ``socket.close`` leaves it open until the last such file is gone, which may be never.
    """
    try:
        if type(sock) is not socket.socket:  # TLS has more to give back
            sock.close()
        descriptor = sock.detach()
        if descriptor >= 0:
            os.close(descriptor)
    except OSError:
        return


def reset_on_close(sock: socket.socket) -> None:
    """Make the coming close send a reset, and drop what is unsent (SO_LINGER, socket(7))."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0))


def explain(error: OSError, peer: str) -> OSError:
    """The same error, in words that name the peer, where it tells that the peer is gone."""
    if isinstance(error, BrokenPipeError):
        return BrokenPipeError(
            errno.EPIPE, f"This socket has been ended by the other party ({peer})"
        )
    if isinstance(error, ConnectionResetError):
        return ConnectionResetError(errno.ECONNRESET, f"connection reset by {peer}")
    return error


def is_broken_tls(error: BaseException, sock: Any) -> bool:
    """Whether `error` comes from the ``ssl.SSLSocket`` `sock`, whose peer has broken TLS.

    A handler may have met it elsewhere, as a client of another server: so its frames are looked at.
    """
    ssl = sys.modules.get("ssl")  # code that has met such an error has imported it
    if ssl is None or not isinstance(error, ssl.SSLError):
        return False
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_locals.get("self") is sock for frame, _ in frames)


def is_hang_up(error: BaseException) -> bool:
    """Whether `error` is what a socket says once its peer is gone."""
    return isinstance(error, ConnectionError) or (
        isinstance(error, OSError)
        and error.errno in (errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)
    )
