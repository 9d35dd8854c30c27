"""Opens the connection of ``netkit connect``: to a server, or with ``--listen`` to one client."""

from __future__ import annotations

import argparse
import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Any

from ..core import events
from ..core.addresses import SocketAddress, is_ip
from ..core.endpoint import Endpoint
from ..net import bind
from ..net.addresses import describe_peer
from ..net.connection import Connection
from ..net.explain import in_seconds
from .arguments import say, self_signed

if TYPE_CHECKING:
    from ..server.server import Server


def dial(arguments: argparse.Namespace) -> Connection:
    """Connect to the server that `arguments` name. OSError, TlsConfigError."""
    from ..client.connect import connect  # here because servers do without

    if arguments.insecure:
        say("netkit: warning: --insecure: the server's certificate is not verified")
    endpoint, family = arguments.endpoint, arguments.family
    to_unix, host = endpoint.kind == "unix", endpoint.host or "localhost"
    same = ("family", "retry", "tls", "tls_ca", "tls_cert", "tls_key")
    with contextlib.ExitStack() as stack:
        if arguments.verbose:
            stack.callback(events.subscribe(_say_attempt))
        try:
            conn = connect(
                port=None if to_unix else endpoint.port,
                host=host,
                path=endpoint.path if to_unix else None,
                connect_timeout=arguments.timeout,
                source_address=arguments.source,
                tls_verify=not arguments.insecure,
                server_hostname=arguments.server_name,
                proxy=_header(arguments),
                **{name: getattr(arguments, name) for name in same},
            )
        except socket.gaierror as error:
            if not family or error.errno != socket.EAI_NONAME:
                raise
            text = f"cannot connect to {host}: no IPv{family} address of it is known"
            raise OSError(text) from None
    if arguments.verbose:
        _say_connected(conn, f"connected to {conn.peer}")
    return conn


def _header(arguments: argparse.Namespace) -> Any:
    """Return the option `proxy` for the flags, or None."""
    if arguments.proxy_client is None:
        return arguments.proxy
    from ..client.introduction import Pretended

    version = 1 if arguments.proxy == "v1" else 2
    return Pretended(version, SocketAddress(*arguments.proxy_client))


def _say_attempt(event: events.Event) -> None:
    if isinstance(event, events.AttemptStarted):
        say(f"trying {event.address}")
    elif isinstance(event, events.AttemptFailed):
        say(f"{event.address}: {event.error.strerror}")


def accept(arguments: argparse.Namespace) -> Connection:
    """Wait for one client within ``--timeout``, and stop listening once it has connected.

    OSError, TlsConfigError, MissingExtraError.
    """
    from ..server.server import create_server  # here because clients do without

    context = None
    if arguments.tls:
        from ..tls.context import TlsFiles, server_context

        made = self_signed(arguments.endpoint.host) if arguments.tls_self_signed else None
        context = server_context(TlsFiles(made or arguments.tls_cert, arguments.tls_key))
    with contextlib.closing(create_server(max_connections=1)) as server:
        server.listen_on(_of_family(arguments.endpoint, arguments.family))
        say(f"listening on {describe_peer(server.socket.getsockname())}")
        conn = Connection(_first_client(server, arguments.timeout))
    try:
        if context is not None:
            conn.start_tls(context, server_side=True)
    except BaseException:
        conn.destroy()
        raise
    if arguments.verbose:
        _say_connected(conn, f"{conn.peer} connected")
    return conn


def _first_client(server: Server, seconds: float | None) -> socket.socket:
    with contextlib.ExitStack() as stack:
        if seconds is not None:
            timer = threading.Timer(seconds, server.request_stop)
            stack.callback(timer.cancel)
            timer.start()
        for conn in server:
            return conn.detach()[0]
    assert seconds is not None, "nothing else stops the server"
    raise TimeoutError(f"nobody connected within {in_seconds(seconds)}")


def _say_connected(conn: Connection, text: str) -> None:
    say(text if conn.tls is None else f"{text} with {conn.tls.version}")


def _of_family(endpoint: Endpoint, family: int) -> Endpoint:
    """Return `endpoint` with a host: one of IPv4 or IPv6, if `family` is 4 or 6. OSError."""
    host = endpoint.host or ("::1" if family == 6 else "127.0.0.1")
    if family and not is_ip(host):
        found = [each.address[0] for each in bind.candidates(host, endpoint.port)]
        addresses = [address for address in found if is_ip(address) == family]
        if not addresses:
            raise OSError(f"{host} has no IPv{family} address")
        host = addresses[0]
    return endpoint if endpoint.kind == "unix" else endpoint._replace(host=host)
