"""The options of a server: the one table of them, for the library and the command line.

The option ``max_line`` of the library is the flag ``--max-line`` and the variable
``NETKIT_MAX_LINE`` of the command line. Times are seconds, sizes are bytes, None disables.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from .encodings import to_bytes
from .kinds import (
    BYTE_RATE,
    COUNT,
    DURATION,
    ENCODING,
    LIST,
    MAPPING,
    RATE,
    SIZE,
    SWITCH,
    TEXT,
    TIMEOUT,
    WHEN_FULL,
    Kind,
)
from .record import NamedTuple
from .table import OptionTable, option
from .tls_options import CERTIFICATES, CONTEXT, PASSWORD, PEM, PROTOCOLS, Pem

if TYPE_CHECKING:
    from typing import Literal

    from .blocklist import BlockList

# The memory that one peer can make a program hold by default: a server and a client alike, since
# neither knows the other end. Lines of text protocols have some hundred bytes.
MAX_LINE = 64 * 1024
MAX_MESSAGE = 16 * 1024 * 1024

# A client needs a descriptor, and its handler often another one (a file, a database). The rest is
# for connections that are being closed, and for clients that are being refused.
_DESCRIPTORS_PER_CLIENT = 2
_MOST_CLIENTS = 10_000  # some 200 MB, or 600 with TLS, while they are idle


def public() -> dict[str, Any]:
    """Return the options of the profile ``public``. docs/security.md gives the reasons."""
    return {
        "max_connections": clients_for(_descriptors()),
        "max_connections_per_ip": 50,
        "max_connection_rate": 20.0,
        "idle_timeout": 60.0,
        "read_timeout": 120.0,
        "write_timeout": 30.0,
        "min_rate": 500.0,
        "max_message": 1024 * 1024,
    }


def clients_for(descriptors: float) -> int:
    """Return `max_connections` of the profile for a process with this limit of descriptors."""
    return int(max(1, min(descriptors / _DESCRIPTORS_PER_CLIENT, _MOST_CLIENTS)))


def _descriptors() -> float:
    if sys.platform == "win32":  # pragma: no cover - sockets are no descriptors there
        return float("inf")
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return float("inf") if soft == resource.RLIM_INFINITY else soft


def _check_profile(name: str, value: Any) -> Any:
    if value != "public":
        raise ValueError(f"{name} must be 'public', not {value!r}")
    return value


_PROFILE = Kind("name", _check_profile, str, "NAME")


class Options(OptionTable):
    """The keyword arguments of `Server`, `create_server` and `serve`.

    Type checkers have their types from `netkit.server.signatures`. ValueError if options
    contradict each other, and what `OptionTable` raises.
    """

    profile: Literal["public"] | None = option(
        None, _PROFILE, "a set of limits; 'public' is for servers on the Internet"
    )
    # With CUT_GRACE, less than the 10 seconds after which service managers kill (docker stop).
    drain_timeout: float = option(
        7.0, DURATION, "how long busy clients may take to finish when the server stops"
    )
    stop_delay: float = option(
        0.0, DURATION, "how long SIGTERM lets the server accept clients before it stops"
    )
    idle_timeout: float | None = option(
        None, TIMEOUT, "longest silence while waiting for a client's data"
    )
    read_timeout: float | None = option(
        None, TIMEOUT, "longest time for a line or message, from its first byte"
    )
    write_timeout: float | None = option(
        None, TIMEOUT, "longest time that a write may make no progress"
    )
    handshake_timeout: float | None = option(
        10.0,
        TIMEOUT,
        "longest time for a PROXY header and a TLS handshake",
        group="TLS",
        optional=True,
    )
    lifetime: float | None = option(None, TIMEOUT, "longest duration of a connection")
    min_rate: float | None = option(
        None, BYTE_RATE, "minimum bytes per second of a message, after its first 5 seconds"
    )
    max_connections: int | None = option(None, COUNT, "maximum number of clients at once")
    when_full: Literal["wait", "refuse"] | float = option(
        "wait",
        WHEN_FULL,
        "what the next clients do: wait in the queue, get refused, or get refused after TIME",
    )
    refusal: str | None = option(None, TEXT, "message sent to refused clients")
    max_connections_per_ip: int | None = option(
        None, COUNT, "maximum number of clients at once from one address (IPv6: one /64 network)"
    )
    max_connection_rate: float | None = option(
        None, RATE, "maximum number of new clients per second from one address, and in a burst"
    )
    allow: BlockList | None = option(
        None,
        LIST,
        "addresses and networks to serve, separated by commas, or @FILE with one on each line",
    )
    deny: BlockList | None = option(
        None,
        LIST,
        "addresses and networks to refuse; the most specific rule of 'allow' and 'deny' wins",
    )
    proxy_from: BlockList | None = option(
        None, LIST, "proxies to trust at addresses with ?proxy=on (default: 127.0.0.0/8,::1)"
    )
    tls: Any = option(None, CONTEXT, "a context of your own, instead of 'tls_cert'")
    tls_cert: Pem | None = option(
        None, PEM, "use TLS with this certificate (and its chain), in PEM"
    )
    tls_key: Pem | None = option(None, PEM, "key of the certificate, if it is not in the same file")
    tls_key_password: str | None = option(None, PASSWORD, "password of the encrypted keys")
    tls_client_ca: Pem | None = option(
        None, PEM, "require a client certificate signed by one of these authorities"
    )
    tls_sni: Mapping[str, tuple[Pem, Pem | None]] | None = option(
        None,
        CERTIFICATES,
        "other certificates by server name (SNI); *.NAME matches names of one more label",
    )
    tls_alpn: Sequence[str] = option((), PROTOCOLS, "protocols offered by ALPN, best first")
    starttls: bool = option(
        False, SWITCH, "begin without TLS; the handler starts it (STARTTLS)", group="TLS"
    )
    encoding: str = option(
        "utf-8", ENCODING, "encoding of text that is written and of lines that are read"
    )
    max_line: int = option(MAX_LINE, SIZE, "longest line")
    max_message: int | None = option(MAX_MESSAGE, SIZE, "longest message", optional=True)
    # Replies are written whole, so that waiting to fill a packet (RFC 896) only delays them.
    no_delay: bool = option(True, SWITCH, "send small writes at once (TCP_NODELAY)")
    # A peer that loses its power sends nothing more: without probes its thread waits forever.
    keep_alive: bool = option(True, SWITCH, "probe silent connections to find dead ones")
    handler_args: Mapping[str, Any] = option(
        MappingProxyType({}), MAPPING, "keyword arguments of the handler"
    )
    raise_errors: bool = option(
        False,
        SWITCH._replace(parse=None),  # for programs: commands have no `with` block
        "at the end of a `with` block, raise what handlers have raised",
    )

    def __init__(self, **given: Any) -> None:
        super().__init__(**_with_profile(given))
        self._check_tls()
        self._check_refusal()

    def changed(self, **given: Any) -> Options:
        """Return a copy with the values of `given`, and of a profile in it.

        Raises as the constructor.
        """
        return super().changed(**_with_profile(given))

    @property
    def limited(self) -> bool:
        """Whether any option limits which clients are served, how many, or for how long."""
        return any(getattr(self, name) is not None for name in _LIMITS)

    @property
    def time_limits(self) -> TimeLimits | None:
        """The time limits of each connection; None if no limit is set."""
        limits = TimeLimits.of(self)
        return limits if any(limits) else None

    def _check_tls(self) -> None:
        if self.tls is not None and self.tls_cert is not None:
            raise ValueError("tls and tls_cert cannot both be given")
        for name in ("tls_key", "tls_key_password", "tls_client_ca", "tls_sni", "tls_alpn"):
            if getattr(self, name) and self.tls_cert is None:
                raise ValueError(f"{name} needs tls_cert")
        if self.starttls and self.tls is None and self.tls_cert is None:
            raise ValueError("starttls needs tls_cert")

    def _check_refusal(self) -> None:
        if self.refusal is not None:
            try:
                to_bytes(self.refusal, self.encoding)
            except UnicodeError:
                raise ValueError(
                    f"refusal cannot be written in {self.encoding}: {self.refusal!r}"
                ) from None


class TimeLimits(NamedTuple):
    """The options of these names, which `netkit.net.timeouts` applies to a connection."""

    idle_timeout: float | None = None
    read_timeout: float | None = None
    write_timeout: float | None = None
    min_rate: float | None = None

    @classmethod
    def of(cls, options: OptionTable) -> TimeLimits:
        """Return the values that `options` have for these names."""
        return cls(*(getattr(options, name) for name in cls._fields))


# Without any of these options, every client is served, and for any time.
_LIMITS = (
    *TimeLimits._fields,
    *("lifetime", "max_connections", "max_connections_per_ip", "max_connection_rate"),
    *("allow", "deny"),
)


def _with_profile(given: dict[str, Any]) -> dict[str, Any]:
    """Return `given`, and the other options of the profile in it, if any. ValueError."""
    if given.get("profile") is None:
        return given
    _check_profile("profile", given["profile"])
    return {**public(), **given}
