"""What systemd, or another service manager, has passed to this process: sockets, and variables.

The protocols are those of sd_listen_fds(3), sd_notify(3) and sd_watchdog_enabled(3). Rules:

1. The variables are removed from the environment as they are read, and the descriptors are not
   inherited: a program that this process starts must not take them for its own.
2. Variables that are malformed, or are for another process, count as missing.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
from collections.abc import MutableMapping, Sequence
from typing import Any, TypeVar

from ..core.endpoint import Endpoint
from ..core.record import NamedTuple

_Place = TypeVar("_Place")

_VARIABLES = (
    *("LISTEN_FDS", "LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDNAMES"),
    *("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"),
)
_FIRST = 3  # the first descriptor that is passed
_UNNAMED = "unknown"  # the name of a descriptor without one
_MOST = 65536  # more descriptors must be a mistake
_TYPES = {"SOCK_DGRAM": "a datagram socket", "SOCK_SEQPACKET": "a socket for sequenced packets"}


class ServiceManager(NamedTuple):
    """What the service manager has passed to the process `pid`."""

    pid: int = 0
    sockets: tuple[tuple[str, int], ...] = ()
    """The name and the descriptor of each socket, in order."""
    named: bool = False
    """Whether the sockets have been passed with their names."""
    why_none: str = "systemd has passed no sockets: LISTEN_FDS is not set"
    """The error of a server that needs sockets, if there are none."""
    notify_socket: str = ""
    """The address to send notifications to, which begins with an ``@`` if it is abstract."""
    watchdog: float = 0.0
    """The seconds after which the watchdog expires; 0 without a watchdog."""

    @property
    def supervises(self) -> bool:
        """Whether a service manager has started this process."""
        return bool(self.sockets or self.notify_socket)


_passed = ServiceManager()  # the last that was read, perhaps by the parent of this process


def service_manager(environment: MutableMapping[str, str] = os.environ) -> ServiceManager:
    """Return what has been passed to this process. The variables in `environment` are removed.

    Later calls return the same, unless the program has set variables again. A forked child has been
    passed nothing. Call it before this process starts others, and in one thread at a time.
    """
    global _passed
    found = {name: environment.pop(name) for name in _VARIABLES if name in environment}
    pid = os.getpid()
    if found:
        _passed = _read(found, pid)
        for _, descriptor in _passed.sockets:
            with contextlib.suppress(OSError):  # it is not open, which matters if it is used
                os.set_inheritable(descriptor, False)
    return _passed if _passed.pid == pid else ServiceManager()


def _read(variables: dict[str, str], pid: int) -> ServiceManager:
    address, microseconds = variables.get("NOTIFY_SOCKET", ""), variables.get("WATCHDOG_USEC", "")
    is_watched = _is_number(microseconds) and variables.get("WATCHDOG_PID", str(pid)) == str(pid)
    passed = ServiceManager(
        pid,
        named="LISTEN_FDNAMES" in variables,
        notify_socket=address if re.match("[/@].", address) else "",
        watchdog=int(microseconds) / 1e6 if is_watched else 0.0,
    )
    reason = _why_no_sockets(variables, pid)
    if reason is not None:
        return passed._replace(why_none=reason)
    count = int(variables["LISTEN_FDS"])
    names = variables["LISTEN_FDNAMES"].split(":") if passed.named else []
    names = [*names[:count], *[_UNNAMED] * (count - len(names))]
    return passed._replace(sockets=tuple(zip(names, range(_FIRST, _FIRST + count), strict=True)))


def _why_no_sockets(variables: dict[str, str], pid: int) -> str | None:
    count, for_pid = variables.get("LISTEN_FDS"), variables.get("LISTEN_PID", str(pid))
    if count is None:
        return ServiceManager().why_none
    if not _is_number(count) or int(count) > _MOST:
        return f"systemd has passed no sockets: LISTEN_FDS is {count!r}"
    if for_pid != str(pid):
        return (
            f"LISTEN_PID is {for_pid} and this is {pid}: "
            "begin the last line of the script that starts netkit with exec"
        )
    wanted, own = variables.get("LISTEN_PIDFDID"), _pidfd_id()
    if wanted is not None and own is not None and wanted != str(own):
        return f"LISTEN_PIDFDID is {wanted} and that of this process is {own}"
    return None


def _is_number(text: str) -> bool:
    return bool(re.fullmatch("[0-9]{1,18}", text)) and int(text) > 0


def _pidfd_id() -> int | None:
    """Return the number of this process that, unlike its PID, is never used again (Linux 6.9).

    None if the kernel has no such numbers.
    """
    if not hasattr(os, "pidfd_open"):  # pragma: no cover - not Linux
        return None
    with contextlib.suppress(OSError), select.epoll() as other:
        descriptor = os.pidfd_open(os.getpid())
        try:
            status = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        # Before, the kernel gave one number to all its descriptors that are no files.
        if status.st_dev != os.fstat(other.fileno()).st_dev:
            return status.st_ino
    return None


# Sockets to listen on


def expanded(places: Sequence[_Place]) -> list[_Place]:
    """Replace the endpoints of ``systemd:`` by those of the descriptors that they stand for.

    The settings of the address hold for each of them. ValueError as by `descriptors`.
    """
    found: list[Any] = []
    for place in places:
        if isinstance(place, Endpoint) and place.kind == "systemd":
            found += [place._replace(kind="fd", fd=each) for each in descriptors(place.name)]
        else:
            found.append(place)
    return found


def descriptors(name: str = "") -> list[int]:
    """Return the descriptors of the sockets that were passed, or of those that are called `name`.

    All of them are stream sockets that listen. ValueError of one line if there are none, or one of
    them is anything else.
    """
    passed = service_manager()
    if not passed.sockets:
        raise ValueError(passed.why_none)
    found = [each for called, each in passed.sockets if name in ("", called)]
    if not found:
        names = ", ".join(map(repr, dict.fromkeys(called for called, _ in passed.sockets)))
        reason = f"LISTEN_FDNAMES has only {names}" if passed.named else "LISTEN_FDNAMES is not set"
        raise ValueError(f"systemd:{name}: {reason}")
    for each in found:
        problem = _problem_of(each)
        if problem is not None:
            raise ValueError(f"descriptor {each} {problem}")
    return found


def _problem_of(descriptor: int) -> str | None:
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError:
        with contextlib.suppress(OSError):
            os.fstat(descriptor)
            return "is not a socket"
        return "is not open"
    try:
        kind = sock.type
        if kind != socket.SOCK_STREAM:
            return f"is {_TYPES.get(getattr(kind, 'name', ''), 'not a stream socket')}"
        if not bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)):
            return "does not listen: its .socket unit must not have Accept=yes"
    finally:
        sock.detach()  # a listener makes a socket of its own of the descriptor
    return None
