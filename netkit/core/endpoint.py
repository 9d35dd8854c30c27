"""Parses addresses to listen on, in one grammar for programs and the command line.

Nothing here resolves a name or touches a socket. Each of these is an address:

    8080   *:8080   127.0.0.1:8080   localhost:8080   [::1]:8080
    unix:/run/app.sock   @name   fd:3   systemd:   systemd:NAME

Settings follow after a ``?``, with ``&`` between them: ``ipv6_only=on`` and ``reuse_port=on`` for
TCP, ``mode=660`` and ``owner=USER:GROUP`` for the file of a Unix socket; for all, ``proxy=on``, and
``tls=on`` or ``tls=off``.
"""

from __future__ import annotations

import os
import re
import sys
from typing import Any

from .addresses import check_first_port, check_port, is_ip
from .kinds import number
from .record import NamedTuple

_SETTINGS = {
    "tcp": ("ipv6_only", "reuse_port", "proxy", "tls"),
    "unix": ("mode", "owner", "proxy", "tls"),
    "fd": ("proxy", "tls"),
    "systemd": ("proxy", "tls"),
}
_KINDS = {
    "tcp": "a port",
    "unix": "a Unix socket",
    "fd": "a descriptor",
    "systemd": "a socket of systemd",
}
_MAX_DESCRIPTOR = 2**31 - 1  # of C's int: Python would take the lower bits of a larger one
_OWNER = r"[^:]+(:[^:]+)?|:[^:]+"  # as for chown(1)

_THE_NUMBER = "the number of a descriptor"
_check_descriptor = number(int, _THE_NUMBER, _THE_NUMBER, lambda it: 0 <= it <= _MAX_DESCRIPTOR)


class Layers(NamedTuple):
    """What the clients of one listener send before the bytes that a handler reads.

    `tls` tells whether they speak TLS from the first byte on; None leaves that to the options of
    the server. With `proxy`, a PROXY header comes before everything else.
    """

    tls: bool | None = None
    proxy: bool = False


DIRECT = Layers()


class Endpoint(NamedTuple):
    """One address to listen on. Fields that do not belong to its `kind` have their defaults.

    `kind` is ``"tcp"``, ``"unix"``, ``"fd"`` or ``"systemd"``. `host` is None if the address names
    no host. The `path` of an abstract name begins with a null character; a descriptor has one if
    the server is to remove the file of its Unix socket. `name` is that of sockets that systemd has
    passed, and empty for all of them. `tls` and `proxy` are those of `Layers`.
    """

    kind: str = "tcp"
    host: str | None = None
    port: int = 0
    ipv6_only: bool = False
    reuse_port: bool = False
    path: str = ""
    mode: int | None = None
    owner: str | None = None
    fd: int = -1
    tls: bool | None = None
    name: str = ""
    proxy: bool = False

    @property
    def layers(self) -> Layers:
        """What clients send before the bytes that a handler reads."""
        return Layers(self.tls, self.proxy)

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Parse an address in the grammar. ValueError of one line if `text` is invalid."""
        address, question, settings = text.partition("?")
        endpoint = cls(**_parse_address(address))
        if question:
            endpoint = endpoint._replace(**_parse_settings(endpoint.kind, settings))
        return endpoint._checked()

    @classmethod
    def of(
        cls,
        port: int | str = 0,
        host: str | None = None,
        *,
        path: Any = None,
        fd: int | None = None,
        tls: bool | None = None,
        **settings: Any,
    ) -> Endpoint:
        """Make an endpoint from the parameters of `Server.listen`. TypeError, ValueError."""
        if [path is not None, fd is not None, (port, host) != (0, None)].count(True) > 1:
            raise TypeError("a server listens on one of port, path, fd and sock; see listen_on()")
        if path is not None:
            endpoint = cls("unix", path=os.fsdecode(path))
        elif fd is not None:
            endpoint = cls("fd", fd=fd)
        else:
            endpoint = cls("tcp", host, check_first_port(port))
        # By identity, since 0 is a valid mode.
        given = {key: it for key, it in settings.items() if it is not None and it is not False}
        for name in given:
            _check_setting(endpoint.kind, name, TypeError)
        return endpoint._replace(**given, tls=tls)._checked()

    @classmethod
    def from_any(cls, address: str | int | Endpoint) -> Endpoint:
        """Return the endpoint of a port, of text as for `parse`, or `address` itself."""
        if isinstance(address, Endpoint):
            return address
        return cls.parse(address) if isinstance(address, str) else cls.of(address)

    def _checked(self) -> Endpoint:
        if self.kind == "unix":
            _check_path(self)
        elif self.kind == "fd":
            _check_descriptor("fd", self.fd)
        if self.tls not in (None, True, False):
            raise TypeError(f"tls must be True, False or None, not {self.tls!r}")
        if not isinstance(self.proxy, bool):
            raise TypeError(f"proxy must be True or False, not {self.proxy!r}")
        return self


def status_endpoint(address: str | int) -> Endpoint:
    """Return where the status endpoint listens. A port without a host is on loopback.

    TypeError or ValueError if the address is invalid, or has settings that make no sense there.
    """
    if isinstance(address, str) and not re.search(r"[:/@]|^-?\d", address):
        text = "the address of the status endpoint must be PORT, HOST:PORT or unix:PATH"
        raise ValueError(f"{text}, not {address!r}")
    endpoint = Endpoint.from_any(address)
    for name in ("reuse_port", "tls", "proxy"):
        if getattr(endpoint, name):
            raise ValueError(f"the address of the status endpoint cannot have {name}=on")
    if endpoint.kind == "tcp" and endpoint.host is None:
        return endpoint._replace(host="127.0.0.1")
    return endpoint


def control_endpoint(address: str) -> Endpoint:
    """Return where the control socket listens: on a path, perhaps with ``?mode=660``. ValueError.

    Without a mode, only the user of the program may connect.
    """
    text = address.removeprefix("unix:")
    path = text.partition("?")[0]
    if path.startswith("@"):
        raise ValueError(f"control needs a file, whose mode says who may connect, not {address!r}")
    if "/" not in path and (path.isdecimal() or ":" in path):
        raise ValueError(f"control must be the path of a Unix socket, not {address!r}")
    endpoint = Endpoint.parse(f"unix:{text}")
    if endpoint.layers != Layers():
        raise ValueError(f"a control socket has no settings but mode and owner: {address!r}")
    return endpoint._replace(mode=0o600 if endpoint.mode is None else endpoint.mode)


def _parse_address(text: str) -> dict[str, Any]:
    if re.match("unix:|@|fd:|systemd:", text):
        return _parse_local(text)
    scheme, slashes, rest = text.partition("://")
    if slashes:
        address = rest.partition("/")[0] or "HOST:PORT"
        raise ValueError(f"an address has no {scheme}://: write {address!r}, not {text!r}")
    if "/" in text:
        raise ValueError(f"a path needs unix: before it: {'unix:' + text!r}, not {text!r}")
    host, colon, port = text.rpartition(":")
    if not colon:
        return {"port": check_port(port)}
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if is_ip(host) != 6:
            raise ValueError(f"the brackets of {text!r} must contain an IPv6 address")
    elif ":" in host:
        raise ValueError(f"an IPv6 address needs brackets: '[::1]:8080', not {text!r}")
    elif not host:
        raise ValueError(f"{text!r} has no host: write {'*' + text!r} for every address")
    return {"host": host, "port": check_port(port)}


def _parse_local(text: str) -> dict[str, Any]:
    if text.startswith("@"):
        return {"kind": "unix", "path": "\0" + text[1:]}
    kind, _, rest = text.partition(":")
    if kind == "unix":
        return {"kind": kind, "path": rest}
    if kind == "systemd":
        if ":" in rest:
            raise ValueError(f"a name of systemd has no colon, but {rest!r} has one")
        return {"kind": kind, "name": rest}
    if not re.fullmatch("-?[0-9]{1,9}", rest):
        raise ValueError(f"fd must be {_THE_NUMBER}, not {rest!r}")
    return {"kind": kind, "fd": int(rest)}


def _parse_settings(kind: str, text: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for setting in text.split("&"):
        name, _, value = setting.partition("=")
        _check_setting(kind, name, ValueError)
        if name in found:
            raise ValueError(f"the setting {name!r} is given twice")
        if name == "mode":
            if not re.fullmatch("[0-7]{3,4}", value):
                raise ValueError(f"mode must be three octal digits, such as 660, not {value!r}")
            found[name] = int(value, 8)
        elif name == "owner":
            found[name] = value
        elif value in ("on", "off"):
            found[name] = value == "on"
        else:
            raise ValueError(f"{name} must be on or off, not {value!r}")
    return found


def _check_setting(kind: str, name: str, error: type[Exception]) -> None:
    if name not in _SETTINGS[kind]:
        *others, last = _SETTINGS[kind]
        known = f"{', '.join(others)} and {last}" if others else last
        raise error(f"{_KINDS[kind]} has no setting {name!r}; it has {known}")


def _check_path(endpoint: Endpoint) -> None:
    path, mode, owner = endpoint.path, endpoint.mode, endpoint.owner
    if path in ("", "\0"):
        raise ValueError("a Unix socket must have a path or a name")
    if "\0" in path[1:]:
        raise ValueError(f"a Unix socket's path must not have null characters: {path!r}")
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        raise ValueError(f"a Unix socket's path must be encodable, not {path!r}") from None
    if path.startswith("\0"):
        if sys.platform != "linux":
            raise ValueError(f"only Linux has abstract names, such as {'@' + path[1:]!r}")
        if (mode, owner) != (None, None):
            raise ValueError("an abstract name has no mode and no owner: all users may connect")
    if mode is not None:
        if isinstance(mode, bool) or not isinstance(mode, int):
            raise TypeError(f"mode must be a number such as 0o660, not {mode!r}")
        if not 0 <= mode <= 0o777:
            raise ValueError(f"mode must be from 0 to 0o777, not {mode:#o}")
    if owner is not None:
        if not isinstance(owner, str):
            raise TypeError(f"owner must be text such as 'www-data:www-data', not {owner!r}")
        if not re.fullmatch(_OWNER, owner):
            raise ValueError(f"owner must be USER, USER:GROUP or :GROUP, not {owner!r}")
