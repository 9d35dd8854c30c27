"""Binds the socket of a server, and explains its errors in words that name the address."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

from ..core.addresses import (
    NEEDS_ZONE,
    check_name,
    check_port,
    format_address,
    format_unix,
    is_ip,
    needs_zone,
    zoned,
)
from ..core.record import NamedTuple
from . import sockopts
from .addresses import describe_peer
from .forks import problem_of_main

# The machine has no address of the family; an address of the other family may succeed.
_TRY_NEXT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ENOPROTOOPT)


class Candidate(NamedTuple):
    """An address that a socket may be bound or connected to, and its family."""

    family: int
    address: Any

    def __str__(self) -> str:
        return describe_peer(self.address)


def look_up(host: str, port: int, family: int = 0, flags: int = 0) -> list[Candidate]:
    """Resolve the addresses of a host. socket.gaierror; UnicodeError if `host` is not a name."""
    check_name(host)
    # As bytes, an address needs no codec for names, whose import takes longer than the call.
    name = host.encode() if is_ip(host) else host
    found = socket.getaddrinfo(name, port, family, socket.SOCK_STREAM, flags=flags)
    return [Candidate(each, address) for each, _, _, _, address in found]


def candidates(host: str | None, port: int, ipv6_only: bool = False) -> list[Candidate]:
    """Return the families and addresses that `listen` tries, the first one first.

    Without a host (None, ``""`` or ``"*"``) these are the addresses that stand for all, first that
    of IPv6: a socket bound to it also serves IPv4. socket.gaierror, with `address` and `port`, if a
    name does not resolve; ValueError if `ipv6_only` is set and the host has no IPv6 address.
    """
    if host in (None, "", "*"):
        every = {socket.AF_INET6: "::", socket.AF_INET: "0.0.0.0"}
        found = [Candidate(family, (address, port)) for family, address in every.items()]
    elif not isinstance(host, str):
        raise TypeError(f"host must be a name or an address, not {host!r}")
    else:
        try:
            found = look_up(host, port, flags=socket.AI_PASSIVE)
        except (OSError, UnicodeError) as error:  # UnicodeError: no name of RFC 5890
            raise explain(error, (host, port)) from None
    if ipv6_only:
        found = [candidate for candidate in found if candidate.family == socket.AF_INET6]
        if not found:
            raise ValueError(f"ipv6_only, but {host!r} has no IPv6 address")
    return found


def worth_another(error: OSError) -> bool:
    """Whether the next candidate may succeed after this error."""
    return error.errno in _TRY_NEXT


def family_of(server_address: Any, family: int) -> int:
    """Return `family`, or IPv6 if an IPv4 server is given an IPv6 address."""
    host = server_address[0] if isinstance(server_address, tuple) else None
    is_ipv6 = family == socket.AF_INET and isinstance(host, str) and ":" in host
    return socket.AF_INET6 if is_ipv6 else family


def checked(server_address: Any) -> Any:
    """Return `server_address` with its port as a number; a path is returned as it is.

    ValueError or TypeError as `check_port`.
    """
    if isinstance(server_address, tuple) and len(server_address) > 1:
        host, port, *rest = server_address
        return (host, check_port(port), *rest)
    return server_address


def check_type(socket_type: int) -> None:
    """TypeError unless `socket_type` is SOCK_STREAM."""
    if socket_type != socket.SOCK_STREAM:
        raise TypeError(
            f"socket_type must be SOCK_STREAM, not {socket.SocketKind(socket_type).name}: "
            "a netkit server serves connections; for datagrams, use socketserver.ThreadingUDPServer"
        )


def check_address(address: Any, family: int) -> None:
    """TypeError unless a socket of this family can be bound to `address`."""
    if family in (socket.AF_INET, socket.AF_INET6) and not isinstance(address, tuple):
        raise TypeError(
            f"server_address must be (host, port), not {address!r}; "
            "create_server(handler).listen(path=...) is for the path of a Unix socket"
        )
    if isinstance(address, tuple) and family == getattr(socket, "AF_UNIX", None):
        raise TypeError(f"server_address must be the path of a Unix socket, not {address!r}")


def scoped(address: Any) -> Any:
    """Replace the zone of `address` (``fe80::1%eth0``) by the number of its link, for ``bind``.

    socket.gaierror if no interface has this name.
    """
    if isinstance(address, tuple) and isinstance(address[0], str) and "%" in address[0]:
        host, port, *_ = address
        return look_up(host, port, socket.AF_INET6, socket.AI_NUMERICHOST)[0].address
    return address


def prepare(sock: socket.socket, reuse_port: bool, ipv6_only: bool = False) -> None:
    """Set the options that a server needs before ``bind``, and that `socketserver` does not set.

    Unless `ipv6_only` is set, a server on ``::`` serves IPv4 clients too, whatever the default of
    the system is. OSError if `reuse_port` is set and the system cannot share ports.
    """
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, ipv6_only)
    if reuse_port and sock.family in (socket.AF_INET, socket.AF_INET6):
        if not hasattr(socket, "SO_REUSEPORT"):  # pragma: no cover - Windows
            raise OSError(errno.EOPNOTSUPP, "this system has no SO_REUSEPORT")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


def name_of_all(listener: socket.socket) -> Any:
    """Return the local name of every connection of `listener`; None if it has several addresses."""
    name = listener.getsockname()
    return None if isinstance(name, tuple) and name[0] in ("0.0.0.0", "::") else name


def adopted(fd: int) -> socket.socket:
    """Return the socket of a descriptor that another program, such as systemd, has opened.

    OSError if the descriptor is not a stream socket.
    """
    try:
        sock = sockopts.blocking(socket.socket(fileno=fd))
    except OSError as error:
        raise explain(error, f"fd:{fd}") from None
    if sock.type != socket.SOCK_STREAM:
        sock.detach()  # its owner closes it
        raise explain(OSError(errno.EINVAL, ""), f"fd:{fd}", reason="it is not a stream socket")
    return sock


def is_listening(sock: socket.socket) -> bool:
    """Whether `sock` is a listener."""
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def explain(
    error: Exception, server_address: Any, syscall: str = "listen", reason: str | None = None
) -> OSError:
    """Return an error of the same class whose text says what failed, where, and why.

    Its attributes are those of Node: `code` (the name of the errno), `address`, `port` (None for a
    Unix socket) and `syscall`. An error that has them already is returned unchanged. `reason`
    replaces the text of the errno.
    """
    if isinstance(error, OSError) and hasattr(error, "syscall"):
        return error
    host, port = server_address, None
    if isinstance(server_address, tuple):
        host, port, *_ = server_address
        if isinstance(host, str):
            host = zoned(server_address)
        where = format_address(os.fsdecode(host), port)  # bytes are an address, too
    else:
        where = format_unix(server_address).removeprefix("unix:")
    attempt = f"cannot {_ATTEMPTS[syscall]} {where}"
    code = None
    if not isinstance(error, OSError):
        error, reason = socket.gaierror(socket.EAI_NONAME, ""), "it is not a host name"
    if error.errno is None:  # a path that is too long
        explained = type(error)(f"{attempt}: {error}")
    else:
        code = errno.errorcode.get(error.errno, str(error.errno))
        if isinstance(error, socket.gaierror):
            code = "EAI_AGAIN" if error.errno == socket.EAI_AGAIN else "ENOTFOUND"
        reason = reason or _reason(error, host, port)
        explained = type(error)(error.errno, f"{attempt}: {reason} ({code})")
    vars(explained).update(code=code, address=host, port=port, syscall=syscall)
    return explained


_ATTEMPTS = {
    "listen": "listen on",
    "bind": "bind to",
    "accept": "accept clients on",
    "connect": "connect to",
}

# The meaning of an errno for an address, where the text of the system does not say it.
_REASONS = {
    errno.EADDRNOTAVAIL: "this machine does not have this address",
    errno.EAFNOSUPPORT: "this machine does not support this family of addresses",
}
_REASONS_WITHOUT_PORT = {  # of a path, or of a descriptor
    **_REASONS,
    errno.EBADF: "the descriptor is not open",
    errno.ENOTSOCK: "it is not a socket",
    errno.EACCES: "permission denied: this user may not create files in the folder",
    errno.ENOENT: "the folder does not exist",
}

# The meaning of an error of looking up a name. Not every system has all of them.
_LOOKUPS = {
    socket.EAI_AGAIN: "the name servers do not answer",
    socket.EAI_NONAME: "the name is not known",
    getattr(socket, "EAI_ADDRFAMILY", None): "it has no address of this family",
    getattr(socket, "EAI_NODATA", None): "the name has no address",
}


def _reason(error: OSError, host: Any, port: int | None) -> str:
    number = error.errno or 0
    if isinstance(error, socket.gaierror):
        is_zone = number == socket.EAI_NONAME and "%" in str(host)
        known = "unknown network interface" if is_zone else _LOOKUPS.get(number)
        return known or str(error.strerror)
    if number == errno.EACCES and port is not None and port < 1024:
        return "permission denied: ports under 1024 need privileges"
    if number == errno.EINVAL and isinstance(host, str) and needs_zone(host):
        return NEEDS_ZONE
    problem = problem_of_main() if number == errno.EADDRINUSE else None
    if problem is not None:
        return f"address already in use: {problem}"
    reasons = _REASONS_WITHOUT_PORT if port is None else _REASONS
    return reasons.get(number) or os.strerror(number).lower()
