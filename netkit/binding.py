"""Which address a server binds, and errors that say which one could not be."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

from . import sockets
from .addresses import (
    NEEDS_ZONE,
    check_name,
    check_port,
    format_address,
    format_unix,
    needs_zone,
    zoned,
)
from .forks import problem_of_main

# What says that an address of this family cannot be had here, while another one may be.
_TRY_NEXT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ENOPROTOOPT)

Candidate = tuple[socket.AddressFamily, Any]


def candidates(host: str | None, port: int, ipv6_only: bool = False) -> list[Candidate]:
    """The families and addresses to try in turn for `listen`.

    No host (None, ``""`` or ``"*"``): every address, IPv6 and IPv4 on one socket where the machine
    has both. A name that does not resolve: socket.gaierror with `address` and `port`.
    `ipv6_only`: ValueError for a host that has no IPv6 address.
    """
    found = _all_candidates(host, port)
    if ipv6_only:
        found = [candidate for candidate in found if candidate[0] == socket.AF_INET6]
        if not found:
            raise ValueError(f"ipv6_only, but {host!r} has no IPv6 address")
    return found


def _all_candidates(host: str | None, port: int) -> list[Candidate]:
    if host in (None, "", "*"):
        return [(socket.AF_INET6, ("::", port)), (socket.AF_INET, ("0.0.0.0", port))]
    if not isinstance(host, str):
        raise TypeError(f"host must be a name or an address, not {host!r}")
    try:
        check_name(host)
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:  # UnicodeError: no name at all, by RFC 5890
        raise explain(error, (host, port)) from None
    return [(family, address) for family, _, _, _, address in found]


def worth_another(error: OSError) -> bool:
    """Whether the next candidate may succeed where this one failed."""
    return error.errno in _TRY_NEXT


def family_of(server_address: Any, family: int) -> int:
    """`family`, or IPv6 where an IPv4 server is given an IPv6 address."""
    if family == socket.AF_INET and isinstance(server_address, tuple):
        host = server_address[0]
        if isinstance(host, str) and ":" in host:
            return socket.AF_INET6
    return family


def checked(server_address: Any) -> Any:
    """`server_address` with a port that can be one; a Unix socket's path passes through."""
    if isinstance(server_address, tuple) and len(server_address) > 1:
        host, port, *rest = server_address
        return (host, check_port(port), *rest)
    return server_address


def check_type(socket_type: int) -> None:
    """TypeError unless it is that of streams."""
    if socket_type != socket.SOCK_STREAM:
        raise TypeError(
            f"socket_type must be SOCK_STREAM, not {socket.SocketKind(socket_type).name}: "
            "a netkit server serves connections; for datagrams, use socketserver.ThreadingUDPServer"
        )


def check_address(address: Any, family: int) -> None:
    """TypeError unless it is an address for a socket of this family."""
    if family in (socket.AF_INET, socket.AF_INET6) and not isinstance(address, tuple):
        raise TypeError(
            f"server_address must be (host, port), not {address!r}; "
            "create_server(handler).listen(path=...) is for the path of a Unix socket"
        )
    if isinstance(address, tuple) and family == getattr(socket, "AF_UNIX", None):
        raise TypeError(f"server_address must be the path of a Unix socket, not {address!r}")


def scoped(address: Any) -> Any:
    """`address` as ``bind`` takes it: a zone (``fe80::1%eth0``) becomes the number of its link.

    socket.gaierror if there is no such interface.
    """
    if isinstance(address, tuple) and isinstance(address[0], str) and "%" in address[0]:
        host, port, *_ = address
        numeric = socket.AI_NUMERICHOST
        found = socket.getaddrinfo(host, port, socket.AF_INET6, socket.SOCK_STREAM, flags=numeric)
        return found[0][4]
    return address


def prepare(sock: socket.socket, reuse_port: bool, ipv6_only: bool = False) -> None:
    """The socket options that `socketserver` leaves to chance, before `bind`.

    A server on ``::`` serves IPv4 clients too, unless `ipv6_only`, whatever the system's default
    is. OSError if `reuse_port` cannot be had: to share a port or not is nothing to be silent about.
    """
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, ipv6_only)
    if reuse_port and sock.family in (socket.AF_INET, socket.AF_INET6):
        if not hasattr(socket, "SO_REUSEPORT"):  # pragma: no cover - Windows
            raise OSError(errno.EOPNOTSUPP, "this system has no SO_REUSEPORT")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


def name_of_all(listener: socket.socket) -> Any:
    """What `getsockname` says of every connection it accepts; None if that is not known.

    It is not if it listens on several addresses.
    """
    name = listener.getsockname()
    return None if isinstance(name, tuple) and name[0] in ("0.0.0.0", "::") else name


def adopted(fd: int) -> socket.socket:
    """The socket that a descriptor is, which was opened by another program (systemd, say).

    OSError if it is none, or no stream.
    """
    try:
        sock = sockets.waiting(socket.socket(fileno=fd))
    except OSError as error:
        raise explain(error, f"fd:{fd}") from None
    if sock.type != socket.SOCK_STREAM:
        sock.detach()  # it is not ours to close
        unfit = OSError(errno.EINVAL, "")
        raise explain(unfit, f"fd:{fd}", reason="it is no stream socket")
    return sock


def is_listening(sock: socket.socket) -> bool:
    """Whether it is a listener already."""
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def explain(
    error: Exception, server_address: Any, syscall: str = "listen", reason: str | None = None
) -> OSError:
    """The same error, of the same class, that says what was attempted, and why it failed.

    It has the attributes `code` (the errno's name), `address`, `port` (None for a Unix socket) and
    `syscall`, as Node's errors do; an error that has them already stays as it is. `reason`: instead
    of what is known about the errno.
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
        code = _code(error)
        reason = reason or _reason(error, host, port)
        explained = type(error)(error.errno, f"{attempt}: {reason} ({code})")
    found = {"code": code, "address": host, "port": port, "syscall": syscall}
    for attribute, value in found.items():
        setattr(explained, attribute, value)
    return explained


_ATTEMPTS = {"listen": "listen on", "bind": "bind to", "connect": "connect to"}

# What an errno means here, where the system's words do not say it.
_REASONS = {
    errno.EADDRNOTAVAIL: "this machine does not have this address",
    errno.EAFNOSUPPORT: "this machine does not support this family of addresses",
}
_REASONS_WITHOUT_PORT = {  # of a path, or of a descriptor
    **_REASONS,
    errno.EBADF: "there is no such descriptor",
    errno.ENOTSOCK: "it is no socket",
    errno.EACCES: "permission denied: this user may not create files in the folder",
    errno.ENOENT: "the folder does not exist",
}

# Of looking up a name. Not every system has all of these numbers.
_LOOKUPS = {
    getattr(socket, "EAI_ADDRFAMILY", None): "it has no address of this family",
    getattr(socket, "EAI_NODATA", None): "the name has no address",
}


def _code(error: OSError) -> str:
    """The name of its errno, as Node has it."""
    if isinstance(error, socket.gaierror):
        return "EAI_AGAIN" if error.errno == socket.EAI_AGAIN else "ENOTFOUND"
    return errno.errorcode.get(error.errno or 0, str(error.errno))


def _reason(error: OSError, host: Any, port: int | None) -> str:
    number = error.errno or 0
    if isinstance(error, socket.gaierror):
        return _reason_of_lookup(error, host)
    if number == errno.EACCES and port is not None and port < 1024:
        return "permission denied: ports under 1024 need privileges"
    if number == errno.EINVAL and isinstance(host, str) and needs_zone(host):
        return NEEDS_ZONE
    problem = problem_of_main() if number == errno.EADDRINUSE else None
    if problem is not None:
        return f"address already in use: {problem}"
    known = _REASONS_WITHOUT_PORT if port is None else _REASONS
    return known.get(number) or os.strerror(number).lower()


def _reason_of_lookup(error: socket.gaierror, host: Any) -> str:
    if error.errno == socket.EAI_AGAIN:
        return "the name servers do not answer"
    if error.errno != socket.EAI_NONAME:
        return _LOOKUPS.get(error.errno or 0) or str(error.strerror)
    return "there is no such network interface" if "%" in str(host) else "the name is not known"
