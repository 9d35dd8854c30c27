"""A socket that is bound to its address and does not listen yet."""

from __future__ import annotations

import os
import socket

from ..core.addresses import SocketAddress, check_port, is_ip
from ..core.endpoint import Endpoint
from ..core.errors import ServerStateError
from . import bind, sockopts, unix
from .addresses import address_of
from .unix import SocketFile


class BoundSocket:
    """Takes an address before a server uses it: ``server.listen(sock=bound)``.

    So a program can know the number of a port before it has a server, or bind as one user and serve
    as another. Use it in a ``with`` block, which closes it unless a server has taken it over. Only
    one thread at a time may use it.
    """

    def __init__(
        self,
        host: str | None = None,
        port: int | str = 0,
        *,
        ipv6_only: bool = False,
        reuse_port: bool = False,
        path: str | os.PathLike[str] | None = None,
        mode: int | None = None,
        owner: str | None = None,
    ) -> None:
        """Bind at once, to every address of the machine if `host` (a numeric address) is None.

        Without `ipv6_only`, that is every IPv4 address. The other parameters, and the errors, are
        those of `Server.listen`; the `syscall` of an error is ``"bind"``.
        """
        check_port(port)
        flags = {"ipv6_only": ipv6_only, "reuse_port": reuse_port}
        endpoint = Endpoint.of(port, host, path=path, mode=mode, owner=owner, **flags)
        self._file: SocketFile | None = None
        self._taken = False
        is_unix = endpoint.kind == "unix"
        family, address = (unix.family(), endpoint.path) if is_unix else _numeric(endpoint)
        self._socket = sock = sockopts.blocking(socket.socket(family))
        try:
            if is_unix:
                self._file = unix.bind(sock, address, mode, owner)
            else:
                if os.name == "posix":  # pragma: no branch - elsewhere two servers could share it
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                bind.prepare(sock, reuse_port, ipv6_only)
                sock.bind(address)
        except BaseException as error:
            sock.close()
            if isinstance(error, OSError):
                raise bind.explain(error, address, "bind") from None
            raise

    @property
    def address(self) -> SocketAddress | str:
        """The `SocketAddress`, or the path of a Unix socket. ServerStateError as for `fileno`."""
        return address_of(self._own().getsockname())

    def fileno(self) -> int:
        """Return the descriptor. ServerStateError if a server has the socket, or it is closed."""
        return self._own().fileno()

    def adopt(self) -> tuple[socket.socket, SocketFile | None]:
        """Return the socket and its file, if it has one, which the caller closes from now on.

        ServerStateError as for `fileno`.
        """
        sock, file = self._own(), self._file
        self._taken, self._file = True, None
        return sock, file

    def close(self) -> None:
        """Close the socket unless a server has taken it over. Idempotent."""
        if not self._taken:
            if self._file is not None:
                self._file.remove()
            self._socket.close()

    def _own(self) -> socket.socket:
        if self._taken:
            raise ServerStateError("a server has taken over this socket")
        if self._socket.fileno() < 0:
            raise ServerStateError("the socket is closed")
        return self._socket

    def __enter__(self) -> BoundSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _numeric(endpoint: Endpoint) -> bind.Candidate:
    host = endpoint.host
    if host is None:
        host = "::" if endpoint.ipv6_only else "0.0.0.0"
    if not is_ip(host):
        hint = "; the host comes first, and then the port" if isinstance(host, int) else ""
        raise ValueError(f"host must be an IPv4 or IPv6 address, not {host!r}{hint}")
    return bind.candidates(host, endpoint.port, endpoint.ipv6_only)[0]
