"""The options of a client, checked in one place. docs/client.md explains each.

Times are in seconds and sizes in bytes. None disables a limit.
"""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ..core.addresses import check_port, is_ip
from ..core.blocklist import BlockList
from ..core.options import FLAGS, MAX_LINE, MAX_MESSAGE, check_seconds, check_switch, unknown_option
from ..core.tls_options import check_client_tls, representation
from ..net import sockopts
from .happy_eyeballs import Cancel

FAMILIES = {0: socket.AF_UNSPEC, 4: socket.AF_INET, 6: socket.AF_INET6}

Resolver = Callable[[str, int], Iterable[str]]


class _Values(NamedTuple):
    connect_timeout: float | None = 30.0
    attempt_delay: float = 0.25  # RFC 8305 section 8
    retry: int = 0
    family: int = 0
    source_address: tuple[str, int] | None = None
    resolver: Resolver | None = None
    block_list: BlockList | None = None
    cancel: Cancel | None = None
    no_delay: bool = True
    keep_alive: Any = True
    tos: int | None = None
    receive_buffer: int | None = None
    send_buffer: int | None = None
    idle_timeout: float | None = None
    read_timeout: float | None = None
    write_timeout: float | None = None
    min_rate: float | None = None
    encoding: str = "utf-8"
    max_line: int = MAX_LINE
    max_message: int | None = MAX_MESSAGE
    tls: Any = False
    tls_ca: str | os.PathLike[str] | bytes | None = None
    tls_cert: str | os.PathLike[str] | bytes | None = None
    tls_key: str | os.PathLike[str] | bytes | None = None
    tls_key_password: str | None = None
    tls_alpn: tuple[str, ...] = ()
    tls_verify: bool = True
    server_hostname: str | None = None


class ConnectOptions(_Values):
    """The keyword arguments of `netkit.connect`. Immutable.

    TypeError or ValueError (LookupError for an encoding), which names the option, if a value is
    invalid. TypeError if an option does not exist.
    """

    __slots__ = ()

    def __new__(cls, **given: Any) -> ConnectOptions:
        for name, value in given.items():
            if name not in cls._fields:
                raise unknown_option(name, cls._fields)
            if name == "block_list":
                given[name] = None if value is None else BlockList.of(value)
            else:
                check = _CHECKS[name] if name in _CHECKS else FLAGS[name].check
                check(name, value)
        options = super().__new__(cls, **given)
        source = options.source_address
        if source is not None and options.family not in (0, is_ip(source[0])):
            raise ValueError(f"source_address {source[0]} is no IPv{options.family} address")
        if options.tls is False:
            for name in cls._fields[cls._fields.index("tls") + 1 :]:
                if getattr(options, name) != _Values._field_defaults[name]:
                    raise ValueError(f"{name} needs tls=True")
        elif options.tls is not True:
            for name in (name for name in cls._fields if name.startswith("tls_")):
                if getattr(options, name) != _Values._field_defaults[name]:
                    raise ValueError(f"{name} has no effect on a context of your own")
        elif options.tls_cert is None:
            for name in ("tls_key", "tls_key_password"):
                if getattr(options, name) is not None:
                    raise ValueError(f"{name} needs tls_cert")
        return options

    __repr__ = representation


def _check_rounds(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if value < 0:
        raise ValueError(f"{name} must be 0 or more, not {value}")


def _check_family(name: str, value: object) -> None:
    if isinstance(value, bool) or value not in tuple(FAMILIES):
        raise ValueError(f"{name} must be 4, 6, or 0 for both, not {value!r}")


def _check_source(name: str, value: object) -> None:
    if value is None:
        return
    if not (isinstance(value, tuple) and len(value) == 2):
        raise TypeError(f"{name} must be (address, port), not {value!r}")
    if not (isinstance(value[0], str) and is_ip(value[0])):
        raise ValueError(f"{name} must have an IP address, not {value[0]!r}")
    check_port(value[1])


def _check_kind(kind: Any, what: str) -> Callable[[str, object], None]:
    def check(name: str, value: object) -> None:
        if value is not None and not isinstance(value, kind):
            raise TypeError(f"{name} must be {what}, not {value!r}")

    return check


def _check_keep_alive(name: str, value: object) -> None:
    if isinstance(value, bool):
        return
    if not (isinstance(value, tuple) and len(value) == 3):
        raise TypeError(f"{name} must be True, False or (idle, interval, count), not {value!r}")
    sockopts.check_keep_alive(*value)


def _check_tos(_: str, value: object) -> None:
    if value is not None:
        sockopts.check_tos(value)


_CHECKS: Mapping[str, Callable[[str, Any], object]] = {
    "connect_timeout": FLAGS["idle_timeout"].check,
    "attempt_delay": functools.partial(check_seconds, zero=False),
    "retry": _check_rounds,
    "family": _check_family,
    "source_address": _check_source,
    "resolver": _check_kind(Callable, "a function"),
    "cancel": _check_kind(Cancel, "a netkit.Cancel"),
    "keep_alive": _check_keep_alive,
    "tos": _check_tos,
    "receive_buffer": FLAGS["max_message"].check,
    "send_buffer": FLAGS["max_message"].check,
    "tls": check_client_tls,
    "tls_ca": FLAGS["tls_client_ca"].check,
    "tls_verify": check_switch,
    "server_hostname": _check_kind(str, "a name"),
}
