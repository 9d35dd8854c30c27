"""Socket options, and questions to the kernel about a socket: one small function each.

Where a platform cannot answer, a function returns the careful answer, which its docstring names.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import socket
import struct
import sys
import threading
from typing import TYPE_CHECKING, Any

from ..core.deadline import LONGEST_WAIT
from ..core.kinds import number
from .gate import PLAIN

if TYPE_CHECKING:
    from ..core.options import Options

try:
    import fcntl
    import termios
except ImportError:  # pragma: no cover - Windows
    _SIOCOUTQ = None
else:
    _SIOCOUTQ = termios.TIOCOUTQ if sys.platform == "linux" else None

KNOWS_UNSENT = _SIOCOUTQ is not None  # whether the platform can answer `unsent`

# On Linux an accepted socket has the options of its listener: nothing need be set for each client.
INHERITS_OPTIONS = sys.platform == "linux"

# A dead peer is detected after 60 + 6 * 10 seconds: late enough not to wake a sleeping phone, and
# early enough that a thread is not held for the kernel's default of two hours. The name, option,
# default and check (tcp(7)) of: the silence before the first probe (seconds), the time between
# probes (seconds), and the number of unanswered probes. macOS calls TCP_KEEPIDLE by another name.
_SECONDS = number((int, float), "a number", "from 1 to 32767", lambda it: 1 <= it <= 32767)
_COUNT = number((int, float), "a number", "from 1 to 127", lambda it: 1 <= it <= 127)
_KEEP_ALIVE = (
    ("idle", ("TCP_KEEPIDLE", "TCP_KEEPALIVE"), 60, _SECONDS),
    ("interval", ("TCP_KEEPINTVL",), 10, _SECONDS),
    ("count", ("TCP_KEEPCNT",), 6, _COUNT),
)

check_tos = number(int, "a whole number", "from 0 to 255", lambda it: 0 <= it <= 255)
_TOS = {
    socket.AF_INET: (socket.IPPROTO_IP, socket.IP_TOS),
    socket.AF_INET6: (socket.IPPROTO_IPV6, getattr(socket, "IPV6_TCLASS", -1)),  # -1: Windows
}

# Offsets, in bytes, of 32-bit counters of milliseconds in Linux's struct tcp_info (linux/tcp.h).
_LAST_DATA_SENT = 44
_LAST_DATA_RECEIVED = 52


def blocking(sock: socket.socket) -> socket.socket:
    """Make `sock` blocking whatever ``socket.setdefaulttimeout`` says, and return it.

    No system call if the program has set no such default.
    """
    if sock.gettimeout() is not None:
        sock.settimeout(None)
    return sock


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """``socket.socketpair()``, both of them blocking."""
    one, other = socket.socketpair()
    return blocking(one), blocking(other)


def is_ip(sock: socket.socket) -> bool:
    """Whether `sock` has an IPv4 or IPv6 address, and so is TCP."""
    return sock.family in (socket.AF_INET, socket.AF_INET6)


def set_no_delay(sock: socket.socket, on: bool) -> None:
    """Set TCP_NODELAY (tcp(7)). Does nothing to a socket that is not TCP."""
    if is_ip(sock):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, on)


def check_keep_alive(idle: object, interval: object, count: object) -> None:
    """TypeError or ValueError unless `set_keep_alive` takes these; None stands for a default."""
    for (name, _, _, check), value in zip(_KEEP_ALIVE, (idle, interval, count), strict=True):
        if value is not None:
            check(name, value)


def set_keep_alive(
    sock: socket.socket,
    on: bool,
    idle: float | None = None,
    interval: float | None = None,
    count: int | None = None,
) -> None:
    """Set up keep-alive probes (RFC 9293 section 3.8.4). Does nothing to a socket that is not TCP.

    `idle` and `interval` are in seconds, rounded down, since the kernel knows whole seconds only.
    """
    if not is_ip(sock):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, on)
    for (_, names, default, _), value in zip(_KEEP_ALIVE, (idle, interval, count), strict=True):
        option = next((getattr(socket, name) for name in names if hasattr(socket, name)), None)
        if on and option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, int(value or default))


def set_tos(sock: socket.socket, value: int) -> None:
    """Set IP_TOS, or for IPv6 IPV6_TCLASS. Does nothing to other sockets."""
    if is_ip(sock):
        sock.setsockopt(*_TOS[sock.family], value)


def tos(sock: socket.socket) -> int:
    """Return IP_TOS or IPV6_TCLASS, whose lowest two bits the kernel may change; else 0."""
    return sock.getsockopt(*_TOS[sock.family]) if is_ip(sock) else 0


def set_acknowledgement_timeout(sock: socket.socket, seconds: float | None) -> None:
    """Limit how long sent bytes may stay unacknowledged (TCP_USER_TIMEOUT, RFC 5482, tcp(7)).

    After that time, and also if the peer's window stays closed for so long, the kernel gives the
    connection up with ETIMEDOUT. None restores the kernel's own limit, about 15 minutes. Does
    nothing on a platform without the option.
    """
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if option is not None and is_ip(sock):
        milliseconds = 0 if seconds is None else min(max(int(seconds * 1000), 1), 2**31 - 1)
        sock.setsockopt(socket.IPPROTO_TCP, option, milliseconds)


def limit_wait(sock: socket.socket, option: int, seconds: float | None) -> None:
    """Limit each wait of a blocking socket; recv or send raises BlockingIOError after it.

    `option` is SO_RCVTIMEO or SO_SNDTIMEO (socket(7)): ``settimeout`` costs a ``poll()`` for each
    call. None is no limit.
    """
    if sys.platform == "win32":  # pragma: no cover - another layout of the option
        sock.settimeout(seconds)
        return
    sock.setsockopt(socket.SOL_SOCKET, option, _timeval(seconds))


@functools.lru_cache(maxsize=64)  # a server has the same limits for all its clients
def _timeval(seconds: float | None) -> bytes:
    whole, fraction = divmod(min(seconds or 0.0, threading.TIMEOUT_MAX), 1)
    # A timeval of zero means no limit, so the smallest limit is a microsecond.
    microseconds = max(int(fraction * 1_000_000), 0 if seconds is None or whole else 1)
    return struct.pack("@ll", int(whole), microseconds)


def local_name(sock: socket.socket) -> Any:
    """Return ``getsockname()``; None if the system has no name for a connection that was reset."""
    try:
        return sock.getsockname()
    except OSError:
        return None


def readable(sock: socket.socket) -> bool:
    """Whether a recv would return without waiting, with data or with the end of input."""
    return bool(_poll(sock, select.POLLIN, 0))


def writable(sock: socket.socket) -> bool:
    """Whether a send would not wait, since the kernel takes some bytes, or raise an error."""
    return bool(_poll(sock, select.POLLOUT, 0))


def wait_until_ready(sock: socket.socket, writing: bool, seconds: float | None) -> bool:
    """Wait until a send (`writing`) or a recv would not wait. False if `seconds` have passed.

    Signals do not extend the time. None stands for `LONGEST_WAIT`, which is also the maximum.
    """
    events = select.POLLOUT if writing else select.POLLIN
    return bool(_poll(sock, events, LONGEST_WAIT if seconds is None else seconds))


def hung_up(sock: socket.socket, seconds: float = 0.0) -> bool:
    """Whether the connection is over in both directions: reset, or closed by both ends.

    Waits for that, at most `seconds`.
    """
    return bool(_poll(sock, 0, seconds) & (select.POLLHUP | select.POLLERR | select.POLLNVAL))


def _poll(sock: socket.socket, events: int, seconds: float) -> int:
    descriptor = sock.fileno()
    if descriptor < 0:  # another thread may have just closed it; a call fails without waiting
        return select.POLLNVAL
    poll = select.poll()
    poll.register(descriptor, events)
    ready = poll.poll(min(seconds, LONGEST_WAIT) * 1000)  # milliseconds
    return ready[0][1] if ready else 0


def unsent(sock: socket.socket) -> bool:
    """Whether the peer's kernel has yet to acknowledge written bytes (Linux: SIOCOUTQ, tcp(7)).

    True where the platform cannot tell.
    """
    if _SIOCOUTQ is None:  # pragma: no cover - not Linux
        return True
    return sock.fileno() >= 0 and any(fcntl.ioctl(sock, _SIOCOUTQ, bytes(4)))


def seconds_until_quiet(sock: socket.socket, quiet: float) -> float:
    """Return the seconds after which the peer counts as idle if it sends no more; 0.0 if it is.

    A peer is idle if our last bytes are newer than its last (a reply: the request is complete), or
    if it has sent nothing for `quiet` seconds. From TCP_INFO (Linux, tcp(7)); elsewhere 0.0.
    """
    if sys.platform != "linux" or not is_ip(sock):
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


def below_tls(sock: Any, method: str) -> Any:
    """Return a method of a socket; of an ``ssl.SSLSocket``, that of the TCP socket below TLS."""
    if isinstance(sock, socket.socket) and hasattr(sock, "do_handshake"):
        return functools.partial(getattr(socket.socket, method), sock)
    return getattr(sock, method)


def shut_down(sock: socket.socket, how: int) -> None:
    """Call ``sock.shutdown(how)``; do nothing if the connection is over.

    An ``ssl.SSLSocket`` is shut down below TLS: its own method discards the TLS session, and a
    write of another thread would then be sent unencrypted.
    """
    try:  # for each connection, and contextlib.suppress costs three calls
        if type(sock) in PLAIN:
            sock.shutdown(how)
        else:
            below_tls(sock, "shutdown")(how)
    except OSError:
        return


def force_close(sock: socket.socket) -> None:
    """Close the descriptor at once: ``socket.close`` waits for the files of ``makefile``."""
    try:
        if type(sock) not in PLAIN:  # TLS has more to free
            sock.close()
        descriptor = sock.detach()
        if descriptor >= 0:
            os.close(descriptor)
    except OSError:
        return


def reset_on_close(sock: socket.socket) -> None:
    """Have the close send a reset and discard unsent bytes (SO_LINGER, socket(7))."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0))


def set_options(sock: socket.socket, options: Options) -> None:
    """Set the options of a client's socket, or of a listener, from which clients inherit them."""
    set_no_delay(sock, options.no_delay)
    set_keep_alive(sock, options.keep_alive)
