"""The options of a client: the table of them. docs/client.md explains each.

Times are seconds and sizes are bytes. None disables a limit.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..core.addresses import check_port, is_ip
from ..core.kinds import LIST, SIZE, SWITCH, TIMEOUT, Kind, instance, number
from ..core.options import Options
from ..core.table import OptionTable, option
from ..core.tls_options import CLIENT_TLS, PASSWORD, PEM, Pem
from ..net import sockopts
from . import introduction
from .happy_eyeballs import Cancel

if TYPE_CHECKING:
    import ssl
    from typing import Literal

    from ..core.blocklist import BlockList
    from ..core.proxyheader import ProxyHeader
    from ..net.connection import Connection

FAMILIES = {0: socket.AF_UNSPEC, 4: socket.AF_INET, 6: socket.AF_INET6}

Resolver = Callable[[str, int], Iterable[str]]


# Kinds of values that only clients have


def _check_family(name: str, value: Any) -> int:
    if isinstance(value, bool) or value not in tuple(FAMILIES):
        raise ValueError(f"{name} must be 4, 6, or 0 for both, not {value!r}")
    family: int = value
    return family


def _check_source(name: str, value: Any) -> tuple[str, int]:
    if not (isinstance(value, tuple) and len(value) == 2):
        raise TypeError(f"{name} must be (address, port), not {value!r}")
    address, port = value
    if not (isinstance(address, str) and is_ip(address)):
        raise ValueError(f"{name} must have an IP address, not {address!r}")
    return address, check_port(port)


def _instance_of(kind: Any, noun: str) -> Kind:
    return Kind(noun, instance(kind, noun))


def _check_keep_alive(name: str, value: Any) -> Any:
    if not isinstance(value, bool):
        if not (isinstance(value, tuple) and len(value) == 3):
            raise TypeError(f"{name} must be True, False or (idle, interval, count), not {value!r}")
        sockopts.check_keep_alive(*value)
    return value


RETRIES = Kind("number", number(int, "a whole number", "0 or more", lambda it: it >= 0))
FAMILY = Kind("0, 4 or 6", _check_family)
SOURCE = Kind("(address, port)", _check_source)
KEEP_ALIVE = Kind("True, False or (idle, interval, count)", _check_keep_alive)
HEADER = Kind('`"v1"`, `"v2"`, `"local"`, ProxyHeader or Connection', introduction.check)
TOS = Kind("number from 0 to 255", sockopts.check_tos)


_SAME: Any = Options.rows  # rows that servers and clients share


class ConnectOptions(OptionTable):
    """The keyword arguments of `netkit.connect`.

    Type checkers have their types from `netkit.client.signatures`. ValueError if options
    contradict each other, and what `OptionTable` raises.
    """

    connect_timeout: float | None = option(
        30.0, TIMEOUT, "longest time to connect, TLS included", optional=True
    )
    attempt_delay: float = option(  # RFC 8305 section 8
        0.25, TIMEOUT, "time between the starts of attempts that race"
    )
    retry: int = option(0, RETRIES, "how often to try again, after growing pauses")
    family: Literal[0, 4, 6] = option(0, FAMILY, "4 or 6: use only addresses of this family")
    source_address: tuple[str, int] | None = option(
        None, SOURCE, "address and port of this end; port 0 stands for any"
    )
    resolver: Resolver | None = option(
        None,
        _instance_of(Callable, "a function"),
        "called with host and port; returns addresses, instead of the system's resolver",
    )
    block_list: BlockList | None = option(None, LIST, "addresses to which no connection is made")
    cancel: Cancel | None = option(
        None, _instance_of(Cancel, "a netkit.Cancel"), "ends the call from another thread"
    )
    no_delay: bool = _SAME["no_delay"]
    keep_alive: bool | tuple[float | None, float | None, int | None] = option(
        True, KEEP_ALIVE, "probe a silent server; idle and interval are seconds"
    )
    tos: int | None = option(None, TOS, "type of service, or traffic class (IPv6)")
    receive_buffer: int | None = option(None, SIZE, "the kernel's buffer for input")
    send_buffer: int | None = option(None, SIZE, "the kernel's buffer for output")
    idle_timeout: float | None = option(None, TIMEOUT, "longest silence while reading")
    read_timeout: float | None = _SAME["read_timeout"]
    write_timeout: float | None = _SAME["write_timeout"]
    min_rate: float | None = _SAME["min_rate"]
    encoding: str = _SAME["encoding"]
    max_line: int = _SAME["max_line"]
    max_message: int | None = _SAME["max_message"]
    proxy: Literal["v1", "v2", "local"] | ProxyHeader | Connection | None = option(
        None, HEADER, "PROXY header to send first: a word, a header, or a client to introduce"
    )
    tls: bool | ssl.SSLContext = option(False, CLIENT_TLS, "use TLS, or a context of your own")
    tls_ca: Pem | None = option(None, PEM, "authorities to trust, instead of the system's")
    tls_cert: Pem | None = option(None, PEM, "certificate of the client, and its chain")
    tls_key: Pem | None = _SAME["tls_key"]
    tls_key_password: str | None = option(None, PASSWORD, "password of the encrypted key")
    tls_alpn: Sequence[str] = _SAME["tls_alpn"]
    tls_verify: bool = option(True, SWITCH, "verify the certificate of the server")
    server_hostname: str | None = option(
        None, _instance_of(str, "a name"), "name in the certificate, if it is not the host"
    )

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._check_source_address()
        self._check_tls()

    def _check_source_address(self) -> None:
        if self.source_address is not None:
            address = self.source_address[0]
            if self.family not in (0, is_ip(address)):
                raise ValueError(f"source_address {address} is no IPv{self.family} address")

    def _check_tls(self) -> None:
        names = list(self.rows)
        if self.tls is False:
            self._check_unset("needs tls=True", *names[names.index("tls") + 1 :])
        elif self.tls is not True:
            own = [name for name in names if name.startswith("tls_")]
            self._check_unset("has no effect on a context of your own", *own)
        elif self.tls_cert is None:
            self._check_unset("needs tls_cert", "tls_key", "tls_key_password")

    def _check_unset(self, problem: str, *names: str) -> None:
        for name in names:
            if getattr(self, name) != self.rows[name].default:
                raise ValueError(f"{name} {problem}")
