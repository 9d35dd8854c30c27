"""The types of the options of a client. For type checkers only.

The table of the options is in `netkit.client.options`; a test compares both. netkit does not import
this module when a program runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    import ssl

    from ..core.blocklist import BlockList
    from ..core.proxyheader import ProxyHeader
    from ..core.tls_options import Pem
    from ..net.connection import Connection
    from .happy_eyeballs import Cancel
    from .options import Resolver


class ClientOptions(TypedDict, total=False):
    """The options of `netkit.connect` with their types. docs/client.md explains each of them.

    A program that passes options on annotates them as ``**options: Unpack[netkit.ClientOptions]``.
    Times are seconds, sizes are bytes, and None disables a limit. `keep_alive` as a tuple is the
    idle time, the interval of probes and their number, each None for the system's default.
    """

    connect_timeout: float | None
    attempt_delay: float
    retry: int
    family: Literal[0, 4, 6]
    source_address: tuple[str, int] | None
    resolver: Resolver | None
    block_list: BlockList | os.PathLike[str] | Iterable[Any] | None
    cancel: Cancel | None
    no_delay: bool
    keep_alive: bool | tuple[float | None, float | None, int | None]
    tos: int | None
    receive_buffer: int | None
    send_buffer: int | None
    idle_timeout: float | None
    read_timeout: float | None
    write_timeout: float | None
    min_rate: float | None
    encoding: str
    max_line: int
    max_message: int | None
    proxy: Literal["v1", "v2", "local"] | ProxyHeader | Connection | None
    tls: bool | ssl.SSLContext
    tls_ca: Pem | None
    tls_cert: Pem | None
    tls_key: Pem | None
    tls_key_password: str | None
    tls_alpn: Sequence[str]
    tls_verify: bool
    server_hostname: str | None
