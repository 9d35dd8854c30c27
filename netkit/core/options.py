"""The options of a server, in one place for the library and the command line.

An option ``max_line`` of the library is the flag ``--max-line`` of the command line: both come from
the table below. Times are seconds, sizes are bytes, None disables.
"""

from __future__ import annotations

import functools
import math
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from .encodings import check_encoding, to_bytes
from .profiles import PROFILES
from .tls_options import (
    check_context,
    check_names,
    check_pem,
    check_sni,
    check_text,
    kind_of,
    names_from,
    password_from,
    representation,
    sni_from,
)

if TYPE_CHECKING:
    import ssl

    from .blocklist import BlockList

# With the GIL. One worker that stays on its core nearly fills it; a second one uses the core while
# threads of the first wait for its GIL, above all if handlers compute (docs/benchmarks).
WORKERS_PER_CORE = 2
MAX_WORKERS = 1024  # more must be a mistake

# The memory that one peer can make a program hold by default: a server and a client alike, since
# neither knows the other end. Lines of text protocols have some hundred bytes.
MAX_LINE = 64 * 1024
MAX_MESSAGE = 16 * 1024 * 1024


class _Values(NamedTuple):
    profile: str | None = None
    # With CUT_GRACE, less than the 10 seconds after which service managers kill (docker stop).
    drain_timeout: float = 7.0
    idle_timeout: float | None = None
    read_timeout: float | None = None
    write_timeout: float | None = None
    handshake_timeout: float | None = 10.0
    lifetime: float | None = None
    min_rate: float | None = None
    max_connections: int | None = None
    when_full: str | float = "wait"
    refusal: str | None = None
    max_connections_per_ip: int | None = None
    max_connection_rate: float | None = None
    allow: BlockList | None = None
    deny: BlockList | None = None
    tls: ssl.SSLContext | None = None
    tls_cert: str | os.PathLike[str] | bytes | None = None
    tls_key: str | os.PathLike[str] | bytes | None = None
    tls_key_password: str | None = None
    tls_client_ca: str | os.PathLike[str] | bytes | None = None
    tls_sni: Mapping[str, tuple[Any, Any]] | None = None
    tls_alpn: Sequence[str] = ()
    starttls: bool = False
    encoding: str = "utf-8"
    max_line: int = MAX_LINE
    max_message: int | None = MAX_MESSAGE
    # Replies are written whole, so that waiting to fill a packet (RFC 896) only delays them.
    no_delay: bool = True
    # A peer that lost its power never says goodbye: without probes its thread waits for ever.
    keep_alive: bool = True
    handler_args: Mapping[str, Any] = MappingProxyType({})


def unknown_option(name: str, known: Sequence[str]) -> TypeError:
    import difflib  # here because only a mistake needs it

    close = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]!r}? The" if close else "the"
    return TypeError(f"unknown option {name!r}; {hint} options are {', '.join(known)}")


class Options(_Values):
    """The keyword arguments of `Server`, `create_server` and `serve`. Immutable.

    TypeError or ValueError (LookupError for an encoding), which names the option, if a value is
    invalid. TypeError if an option does not exist. OSError if a file with a list of addresses
    cannot be read.
    """

    __slots__ = ()

    def __new__(cls, **given: Any) -> Options:
        given = {**_profile(given), **given}
        for name, value in given.items():
            if name not in cls._fields:
                raise unknown_option(name, cls._fields)
            if name == "handler_args":
                if not isinstance(value, Mapping):
                    raise TypeError(f"handler_args must be a mapping, not {kind_of(value)}")
            elif name in ("allow", "deny"):
                given[name] = _address_list(name, value)
            elif name == "tls":
                check_context(name, value)
            else:
                FLAGS[name].check(name, value)
        options = super().__new__(cls, **given)
        options._check_tls()
        options._check_refusal()
        return options

    __repr__ = representation  # a traceback or a debugger may show it

    def changed(self, **given: Any) -> Options:
        """A copy with the values of `given` and of a profile in it. Raises as the constructor."""
        return Options(**{**self._asdict(), **_profile(given), **given})

    @property
    def limited(self) -> bool:
        """Whether any option limits which clients are served, how many, or for how long."""
        return any(getattr(self, name) is not None for name in _LIMITS)

    def _check_refusal(self) -> None:
        if self.refusal is not None:
            try:
                to_bytes(self.refusal, self.encoding)
            except UnicodeError:
                raise ValueError(
                    f"refusal cannot be written in {self.encoding}: {self.refusal!r}"
                ) from None

    def _check_tls(self) -> None:
        if self.tls is not None and self.tls_cert is not None:
            raise ValueError("tls and tls_cert cannot both be given")
        for name in ("tls_key", "tls_key_password", "tls_client_ca", "tls_sni", "tls_alpn"):
            if getattr(self, name) and self.tls_cert is None:
                raise ValueError(f"{name} needs tls_cert")
        if self.starttls and self.tls is None and self.tls_cert is None:
            raise ValueError("starttls needs tls_cert")

    @property
    def time_limits(self) -> TimeLimits | None:
        """The time limits of each connection; None if there are none."""
        limits = TimeLimits(*(getattr(self, name) for name in TimeLimits._fields))
        return limits if any(limits) else None


# Without any of these options, every client is served, and for any time.
_LIMITS = (
    *("idle_timeout", "read_timeout", "write_timeout", "min_rate", "lifetime"),
    *("max_connections", "max_connections_per_ip", "max_connection_rate", "allow", "deny"),
)


def _profile(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the profile in `given`."""
    name = given.get("profile")
    if name is None:
        return {}
    _check_profile("profile", name)
    return PROFILES[name]()


class TimeLimits(NamedTuple):
    """The options of these names, which `netkit.net.timeouts` applies to a connection."""

    idle_timeout: float | None = None
    read_timeout: float | None = None
    write_timeout: float | None = None
    min_rate: float | None = None


def check_seconds(name: str, value: object, zero: bool = True) -> None:
    """TypeError or ValueError, with `name`, unless `value` is a finite time, positive or 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if not (0 < value < math.inf or (zero and value == 0)):
        least = "0 or more" if zero else "more than 0"
        raise ValueError(f"{name} must be {least} seconds, not {value!r}")
    if value > threading.TIMEOUT_MAX:  # about 300 years
        raise ValueError(
            f"{name} must be at most {threading.TIMEOUT_MAX:.0f} seconds, not {value!r}"
        )


def has_gil() -> bool:
    """Whether the threads of this process run Python one at a time."""
    return getattr(sys, "_is_gil_enabled", lambda: True)()


def usable_cores() -> tuple[int, ...]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))  # pragma: no cover - macOS


def check_workers(count: object) -> int:
    """The number of processes that `count` stands for. TypeError or ValueError if it is invalid.

    ``"auto"`` is 1 on a free-threaded build, and `WORKERS_PER_CORE` for each core elsewhere.
    """
    if count == "auto":
        return len(usable_cores()) * WORKERS_PER_CORE if has_gil() else 1
    if isinstance(count, bool) or not isinstance(count, int):
        raise TypeError(f"workers must be a number of processes, or 'auto', not {count!r}")
    if not 1 <= count <= MAX_WORKERS:
        raise ValueError(f"workers must be from 1 to {MAX_WORKERS}, not {count}")
    if count > 1 and os.name != "posix":  # pragma: no cover - Windows
        raise ValueError("worker processes need a POSIX system; leave workers at 1")
    return count


def _optional(check: Callable[[str, Any], object]) -> Callable[[str, Any], object]:
    """`check`, but None is valid, too."""

    def check_unless_none(name: str, value: object) -> None:
        if value is not None:
            check(name, value)

    return check_unless_none


def check_count(name: str, value: object) -> None:
    """TypeError or ValueError, with `name`, unless `value` is a number of connections."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a number of connections, not {value!r}")
    if value < 0:
        raise ValueError(f"{name} must be 0 or more connections, not {value}")


def _check_rate(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number for each second, not {value!r}")
    if not 0 < value <= sys.float_info.max:
        raise ValueError(f"{name} must be more than 0 for each second, not {value!r}")


def _check_when_full(name: str, value: object) -> None:
    if value not in ("wait", "refuse"):
        if isinstance(value, str):
            raise ValueError(f"{name} must be 'wait', 'refuse' or seconds to hold, not {value!r}")
        check_seconds(name, value)


def _check_profile(name: str, value: object) -> None:
    if value not in tuple(PROFILES):
        raise ValueError(f"{name} must be {', '.join(map(repr, PROFILES))}, not {value!r}")


def _word_or_seconds(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def _address_list(name: str, value: Any) -> BlockList | None:
    """As `BlockList.of`; a string has rules with commas between them, or ``@`` and a file."""
    if value is None:
        return None
    from .blocklist import BlockList  # here because most programs do without

    try:
        if isinstance(value, str):
            rules = value.split(",")
            return BlockList.load(value[1:]) if value.startswith("@") else BlockList.of(rules)
        return BlockList.of(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from None
    except OSError as error:
        raise type(error)(error.errno, f"{name}: {error.strerror}", error.filename) from None


def check_bytes(name: str, value: object) -> None:
    """TypeError or ValueError, with `name`, unless `value` is a positive number of bytes."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a number of bytes, not {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1 byte, not {value}")


def check_switch(name: str, value: object) -> None:
    """TypeError, with `name`, unless `value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")


class Flag(NamedTuple):
    """The check of an option, and its form on the command line."""

    check: Callable[[str, Any], object]
    type: Callable[[str], Any]
    metavar: str
    help: str


_TIME = _optional(functools.partial(check_seconds, zero=False))
_RATE = _optional(_check_rate)
_COUNT = _optional(check_count)

FLAGS = {
    "profile": Flag(
        _optional(_check_profile),
        str,
        "NAME",
        "a set of limits: 'public' is for servers on the Internet",
    ),
    "drain_timeout": Flag(
        check_seconds,
        float,
        "SECONDS",
        "time that busy clients have to finish when the server stops",
    ),
    "idle_timeout": Flag(
        _TIME, float, "SECONDS", "longest silence while waiting for a client's data"
    ),
    "read_timeout": Flag(
        _TIME, float, "SECONDS", "longest time for a line or message, from its first byte on"
    ),
    "write_timeout": Flag(_TIME, float, "SECONDS", "longest time without progress of a write"),
    "handshake_timeout": Flag(_TIME, float, "SECONDS", "longest time for a TLS handshake"),
    "lifetime": Flag(_TIME, float, "SECONDS", "longest life of a connection"),
    "min_rate": Flag(
        _RATE, float, "BYTES", "minimum bytes per second within a message, after 5 seconds"
    ),
    "max_connections": Flag(_COUNT, int, "N", "most clients connected at once"),
    "when_full": Flag(
        _check_when_full,
        _word_or_seconds,
        "wait|refuse|SECONDS",
        "whether more clients wait in the queue, are refused, or are refused after TIME",
    ),
    "refusal": Flag(check_text, str, "TEXT", "message sent to refused clients"),
    "max_connections_per_ip": Flag(
        _COUNT, int, "N", "most clients at once from one address (IPv6: one /64 network)"
    ),
    "max_connection_rate": Flag(
        _RATE,
        float,
        "N",
        "most new connections per second from one address, also the largest burst",
    ),
    "allow": Flag(
        _address_list,
        str,
        "LIST",
        "addresses and networks to serve, separated by commas, or @FILE with one on each line",
    ),
    "deny": Flag(
        _address_list,
        str,
        "LIST",
        "addresses to refuse; the most specific rule of --allow and --deny wins",
    ),
    "tls_cert": Flag(
        check_pem, str, "FILE", "use TLS with this certificate (and its chain), in PEM"
    ),
    "tls_key": Flag(check_pem, str, "FILE", "key of --tls-cert, if it is not in the same file"),
    "tls_key_password": Flag(
        check_text,
        password_from,
        "@FILE|env:NAME",
        "password of the encrypted keys, in a file or in an environment variable",
    ),
    "tls_client_ca": Flag(
        check_pem, str, "FILE", "require a client certificate signed by one of these authorities"
    ),
    "tls_sni": Flag(
        check_sni,
        sni_from,
        "NAME=CERT:KEY,...",
        "other certificates by server name (SNI); *.NAME matches names of one more label",
    ),
    "tls_alpn": Flag(check_names, names_from, "NAME,...", "protocols offered by ALPN, best first"),
    "starttls": Flag(
        check_switch, bool, "on|off", "begin without TLS; the handler starts it (STARTTLS)"
    ),
    "encoding": Flag(
        lambda _, value: check_encoding(value),
        str,
        "NAME",
        "encoding of text that is written and of lines that are read",
    ),
    "max_line": Flag(check_bytes, int, "BYTES", "longest line"),
    "max_message": Flag(_optional(check_bytes), int, "BYTES", "longest message"),
    "no_delay": Flag(check_switch, bool, "on|off", "send small writes at once (TCP_NODELAY)"),
    "keep_alive": Flag(check_switch, bool, "on|off", "probe silent connections to find dead ones"),
}
