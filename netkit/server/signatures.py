"""The types of what a program gives to a server: a handler and options. For type checkers only.

The table of the options is in `netkit.core.options`; a test compares both. netkit does not import
this module when a program runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    import socketserver
    import ssl
    from typing import Concatenate

    from ..core.blocklist import BlockList
    from ..core.tls_options import Pem
    from ..net.connection import Connection
    from .handlers import Handler

    # The option `handler_args` has the further arguments of a function. A wrapper around a request
    # handler class is called as the class is.
    AnyHandler = (
        Callable[Concatenate[Connection, ...], object]
        | type[Handler[Any, Any]]
        | type[socketserver.BaseRequestHandler]
        | Callable[[Any, Any, Any], socketserver.BaseRequestHandler]
    )


class ServerOptions(TypedDict, total=False):
    """The options of a server with their types. docs/options.md has the meanings and the defaults.

    A program that passes options on annotates them as ``**options: Unpack[netkit.ServerOptions]``.
    Times are seconds, sizes are bytes, and None disables a limit. A list of addresses is a
    `BlockList`, rules as for `BlockList.add`, the path object of a file with rules, or text: rules
    with commas between them, or ``@`` and the path.
    """

    profile: Literal["public"] | None
    drain_timeout: float
    stop_delay: float
    idle_timeout: float | None
    read_timeout: float | None
    write_timeout: float | None
    handshake_timeout: float | None
    lifetime: float | None
    min_rate: float | None
    max_connections: int | None
    when_full: Literal["wait", "refuse"] | float
    refusal: str | None
    max_connections_per_ip: int | None
    max_connection_rate: float | None
    allow: BlockList | os.PathLike[str] | Iterable[Any] | None
    deny: BlockList | os.PathLike[str] | Iterable[Any] | None
    proxy_from: BlockList | os.PathLike[str] | Iterable[Any] | None
    tls: ssl.SSLContext | None
    tls_cert: Pem | None
    tls_key: Pem | None
    tls_key_password: str | None
    tls_client_ca: Pem | None
    tls_sni: Mapping[str, tuple[Pem, Pem | None]] | None
    tls_alpn: Sequence[str]
    starttls: bool
    encoding: str
    max_line: int
    max_message: int | None
    no_delay: bool
    keep_alive: bool
    handler_args: Mapping[str, Any]
    raise_errors: bool
