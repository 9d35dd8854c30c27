"""Opens the connection of ``netkit connect``: to a server, or with ``--listen`` to one client."""

from __future__ import annotations

import argparse
import contextlib
import socket
from typing import Any

from ..core import events
from ..core.endpoint import Endpoint
from ..net import bind, sockopts, unix
from ..net.addresses import describe_peer
from ..net.connection import Connection
from ..net.unix import SocketFile
from .arguments import say, self_signed

_NUMBERS: dict[int, int] = {socket.AF_INET: 4, socket.AF_INET6: 6}


def dial(arguments: argparse.Namespace) -> Connection:
    """Connect to the server that `arguments` name. OSError, TlsConfigError."""
    from ..client.connect import connect  # here because servers do without

    if arguments.insecure:
        say("netkit: warning: --insecure: the server's certificate is not verified")
    endpoint, family = arguments.endpoint, arguments.family
    host = endpoint.host or "localhost"
    if endpoint.kind == "unix":
        where: dict[str, Any] = {"path": endpoint.path}
    else:
        where = {"port": endpoint.port, "host": host}
    with contextlib.ExitStack() as stack:
        if arguments.verbose:
            stack.callback(events.subscribe(_say_attempt))
        try:
            conn = connect(
                **where,
                connect_timeout=arguments.timeout,
                source_address=arguments.source,
                family=family,
                retry=arguments.retry,
                tls=arguments.tls,
                tls_ca=arguments.tls_ca,
                tls_cert=arguments.tls_cert,
                tls_key=arguments.tls_key,
                tls_verify=not arguments.insecure,
                server_hostname=arguments.server_name,
            )
        except socket.gaierror as error:
            if not family or error.errno != socket.EAI_NONAME:
                raise
            text = f"cannot connect to {host}: no IPv{family} address of it is known"
            raise OSError(text) from None
    if arguments.verbose:
        _say_connected(conn, f"connected to {conn.peer}")
    return conn


def _say_connected(conn: Connection, text: str) -> None:
    say(text if conn.tls is None else f"{text} with {conn.tls.version}")


def _say_attempt(event: events.Event) -> None:
    if isinstance(event, events.AttemptStarted):
        say(f"trying {event.address}")
    elif isinstance(event, events.AttemptFailed):
        say(f"{event.address}: {event.error.strerror}")


def accept(arguments: argparse.Namespace) -> Connection:
    """Wait for one client, within ``--timeout``. OSError, TlsConfigError, MissingExtraError."""
    context = _server_context(arguments)
    listener, file = _listener(arguments.endpoint, arguments.family)
    with listener:
        try:
            say(f"listening on {describe_peer(listener.getsockname())}")
            listener.settimeout(arguments.timeout)
            sock, address = listener.accept()
            sockopts.waiting(sock)
        except TimeoutError:
            raise TimeoutError(f"nobody connected within {arguments.timeout:g} seconds") from None
        finally:
            if file is not None:
                file.remove()
    conn = Connection(sock, address)
    try:
        if context is not None:
            conn.start_tls(context, server_side=True)
    except BaseException:
        conn.destroy()
        raise
    if arguments.verbose:
        _say_connected(conn, f"{conn.peer} connected")
    return conn


def _server_context(arguments: argparse.Namespace) -> Any:
    """Make the context for TLS. None without TLS."""
    if not arguments.tls:
        return None
    from ..tls.context import TlsFiles, server_context

    cert = arguments.tls_cert
    if arguments.tls_self_signed:
        cert = self_signed(arguments.endpoint.host)
    return server_context(TlsFiles(cert, arguments.tls_key))


def _listener(endpoint: Endpoint, family: int) -> tuple[socket.socket, SocketFile | None]:
    """Make a socket that listens, and its file, which the caller removes in the end."""
    if endpoint.kind == "unix":
        return _listening(unix.family(), endpoint.path)
    host = "127.0.0.1" if endpoint.host is None and family != 6 else endpoint.host or "::1"
    found = bind.candidates(host, endpoint.port)
    found = [each for each in found if family in (0, _NUMBERS[each[0]])]
    if not found:
        raise OSError(f"{host} has no IPv{family} address")
    *others, last = found
    for candidate in others:
        try:
            return _listening(*candidate)
        except OSError as error:
            if not bind.worth_another(error):
                raise
    return _listening(*last)


def _listening(family: int, address: Any) -> tuple[socket.socket, SocketFile | None]:
    with contextlib.ExitStack() as stack:
        sock, file = stack.enter_context(sockopts.waiting(socket.socket(family))), None
        if isinstance(address, str):
            file = unix.bind(sock, address, backlog=1)
        else:
            try:
                bind.bind(sock, address)
                sock.listen(1)
            except OSError as error:
                raise bind.explain(error, address) from None
        stack.pop_all()
    return sock, file
