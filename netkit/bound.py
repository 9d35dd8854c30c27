"""A socket that has its address, and nothing more yet: no clients, and no peer."""

from __future__ import annotations

import os
import socket
from typing import Any

from . import binding, sockets, unixsocket
from .addresses import SocketAddress, check_port, is_ip
from .endpoints import Endpoint
from .errors import ServerStateError
from .unixsocket import SocketFile


class BoundSocket:
    """An address that is taken before it is used: ``server.listen(sock=bound)``.

    To have the number of a port before there is a server, say, or to bind as one user and serve as
    another. Use it in a ``with`` block, which closes it unless a server has taken it over. For one
    thread at a time.
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
        """Bind at once. `host` is numeric; None: every IPv4 address, or with `ipv6_only` IPv6.

        The others as for `Server.listen`, and so are its errors, but that `syscall` is ``"bind"``.
        """
        check_port(port)
        settings: dict[str, Any] = {"mode": mode, "owner": owner}
        settings.update(ipv6_only=ipv6_only, reuse_port=reuse_port)
        endpoint = Endpoint.of(port, host, path=path, **settings)
        self._file: SocketFile | None = None
        self._taken = False
        if endpoint.kind == "unix":
            self._socket = sockets.waiting(socket.socket(unixsocket.family()))
            self._bind_path(endpoint)
        else:
            self._socket = self._bind(endpoint)

    def _bind_path(self, endpoint: Endpoint) -> None:
        try:
            path, mode, owner = endpoint.path, endpoint.mode, endpoint.owner
            self._file = unixsocket.bind(self._socket, path, mode, owner)
        except BaseException:
            self._socket.close()
            raise

    def _bind(self, endpoint: Endpoint) -> socket.socket:
        host = endpoint.host
        if host is None:
            host = "::" if endpoint.ipv6_only else "0.0.0.0"
        if not isinstance(host, str) or not is_ip(host):
            hint = "; the host comes first, and then the port" if isinstance(host, int) else ""
            raise ValueError(f"host must be an IPv4 or IPv6 address, not {host!r}{hint}")
        family, address = binding.candidates(host, endpoint.port, endpoint.ipv6_only)[0]
        sock = sockets.waiting(socket.socket(family))
        try:
            if os.name == "posix":  # pragma: no branch - elsewhere two servers could share a port
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            binding.prepare(sock, endpoint.reuse_port, endpoint.ipv6_only)
            sock.bind(address)
        except BaseException as error:
            sock.close()
            if isinstance(error, OSError):
                raise binding.explain(error, address, "bind") from None
            raise
        return sock

    @property
    def address(self) -> SocketAddress | str:
        """A `SocketAddress`, or a Unix socket's path. ServerStateError once it is not ours."""
        name = self._own().getsockname()
        return SocketAddress.from_sockname(name) or os.fsdecode(name)

    def fileno(self) -> int:
        """The descriptor. ServerStateError once it is not ours."""
        return self._own().fileno()

    def adopt(self) -> tuple[socket.socket, SocketFile | None]:
        """The socket, and the file that its new owner is to remove in the end.

        ServerStateError if another one has it already, or if it is closed.
        """
        sock, file = self._own(), self._file
        self._taken, self._file = True, None
        return sock, file

    def close(self) -> None:
        """Give the address back, if it is still ours. Idempotent."""
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
