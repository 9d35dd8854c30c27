"""Opens the connection of ``netkit connect``: to a server, or with ``--listen`` to one client."""

from __future__ import annotations

import argparse
import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Any

from ..core import events
from ..core.addresses import is_ip
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
    with contextlib.ExitStack() as stack:
        if arguments.verbose:
            stack.callback(events.subscribe(_say_attempt))
        try:
            conn = connect(**_options(arguments))
        except socket.gaierror as error:
            family = arguments.family
            if not family or error.errno != socket.EAI_NONAME:
                raise
            host = arguments.endpoint.host or "localhost"
            text = f"cannot connect to {host}: no IPv{family} address of it is known"
            raise OSError(text) from None
    if arguments.verbose:
        _say_connected(conn, f"connected to {conn.peer}")
    return conn


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `netkit.connect`."""
    endpoint = arguments.endpoint
    where = {"port": endpoint.port, "host": endpoint.host or "localhost"}
    if endpoint.kind == "unix":
        where = {"path": endpoint.path}
    return {
        **where,
        "connect_timeout": arguments.timeout,
        "source_address": arguments.source,
        "family": arguments.family,
        "retry": arguments.retry,
        "tls": arguments.tls,
        "tls_ca": arguments.tls_ca,
        "tls_cert": arguments.tls_cert,
        "tls_key": arguments.tls_key,
        "tls_verify": not arguments.insecure,
        "server_hostname": arguments.server_name,
    }


def _say_connected(conn: Connection, text: str) -> None:
    say(text if conn.tls is None else f"{text} with {conn.tls.version}")


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

    context = _server_context(arguments)
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
            sock, _ = conn.detach()
            return sock
    assert seconds is not None, "nothing else stops the server"
    raise TimeoutError(f"nobody connected within {in_seconds(seconds)}")


def _server_context(arguments: argparse.Namespace) -> Any:
    """Make the context for TLS. None without TLS."""
    if not arguments.tls:
        return None
    from ..tls.context import TlsFiles, server_context

    cert = arguments.tls_cert
    if arguments.tls_self_signed:
        cert = self_signed(arguments.endpoint.host)
    return server_context(TlsFiles(cert, arguments.tls_key))


def _of_family(endpoint: Endpoint, family: int) -> Endpoint:
    """Return `endpoint` with a host: one of IPv4 or IPv6, if `family` is 4 or 6. OSError."""
    if endpoint.kind == "unix":
        return endpoint
    host = endpoint.host or ("::1" if family == 6 else "127.0.0.1")
    if family and not is_ip(host):
        found = [each.address[0] for each in bind.candidates(host, endpoint.port)]
        addresses = [address for address in found if is_ip(address) == family]
        if not addresses:
            raise OSError(f"{host} has no IPv{family} address")
        host = addresses[0]
    return endpoint._replace(host=host)
