"""The kinds of values that the TLS options of a server and of a client have.

Any value may be a key, or a password that was meant for another option, so no error shows a value.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from .kinds import TEXT, Kind, instance, kind_of

Pem = str | os.PathLike[str] | bytes  # the path of a file, or the contents of such a file

LONGEST_PASSWORD = 1024  # bytes; OpenSSL's limit


_check_path = instance((str, os.PathLike, bytes), "the path of a file, or bytes", is_secret=True)


def _check_pem(name: str, value: Any) -> Any:
    _check_path(name, value)
    if isinstance(value, str) and ("\n" in value or "\r" in value or "-----BEGIN" in value):
        raise ValueError(f"{name} is PEM as text: pass bytes (text.encode())")
    return value


def _check_context(name: str, value: Any) -> Any:
    ssl = sys.modules.get("ssl")  # a program that has a context has imported it
    if ssl is None or not isinstance(value, ssl.SSLContext):
        raise TypeError(f"{name} must be an ssl.SSLContext, not {kind_of(value)}")
    if value.protocol == ssl.PROTOCOL_TLS_CLIENT:
        raise ValueError(f"{name} must be a server's context (PROTOCOL_TLS_SERVER), not a client's")
    return value


def _check_client_tls(name: str, value: Any) -> Any:
    ssl = sys.modules.get("ssl")
    if not isinstance(value, bool) and not (ssl and isinstance(value, ssl.SSLContext)):
        raise TypeError(f"{name} must be True, False or an ssl.SSLContext, not {kind_of(value)}")
    return value


def _check_sni(name: str, value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise TypeError(
            f"{name} must map host names to (certificate, key), not be {kind_of(value)}"
        )
    for host, files in value.items():
        if not (isinstance(host, str) and isinstance(files, tuple) and len(files) == 2):
            raise TypeError(f"{name} must map host names to (certificate, key)")
        try:
            host.encode("idna")
        except UnicodeError:
            raise ValueError(f"{name} has an invalid host name") from None
        if files[0] is None:
            raise TypeError(f"{name} has no certificate for one of its hosts")
        for pem in files:
            if pem is not None:
                _check_pem(name, pem)
    return value


def _check_names(name: str, value: Any) -> Any:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{name} must be a list of names, not {kind_of(value)}")
    if not all(isinstance(each, str) and each.isascii() and 0 < len(each) < 256 for each in value):
        raise ValueError(f"{name} must be names of 1 to 255 ASCII characters")
    return value


def _parse_sni(text: str) -> dict[str, tuple[str, str | None]]:
    found: dict[str, tuple[str, str | None]] = {}
    for entry in text.split(","):
        name, equals, files = entry.partition("=")
        if not (name and equals and files):
            raise ValueError("it must be NAME=CERTIFICATE:KEY,...")
        cert, _, key = files.partition(":")
        found[name] = cert, key or None
    return found


def parse_password(text: str) -> str:
    """Read the password in a file (``@FILE``) or in an environment variable (``env:NAME``).

    The newline at the end of the file does not belong to it. ValueError, which does not show
    `text`, for any other form; OSError if the file cannot be read.
    """
    if text.startswith("@"):
        with open(text[1:], "rb") as file:
            line = file.read(LONGEST_PASSWORD + 3).removesuffix(b"\n").removesuffix(b"\r")
        if len(line) > LONGEST_PASSWORD or b"\n" in line:
            raise ValueError(f"it must be one line of at most {LONGEST_PASSWORD} bytes: {text!r}")
        return line.decode("utf-8", "surrogateescape")
    form, colon, name = text.partition(":")
    if form != "env" or not colon:
        raise ValueError(
            "it must be @FILE or env:NAME, since other users can see what is on the command line"
        )
    password = os.environ.get(name, "")
    if not password:
        raise ValueError("the environment variable of env:NAME is not set")
    return password


PEM = Kind("path, bytes", _check_pem, str, "FILE", group="TLS")
PASSWORD = Kind("text", TEXT.check, parse_password, "@FILE|env:NAME", group="TLS")
CERTIFICATES = Kind("mapping", _check_sni, _parse_sni, "NAME=CERT:KEY,...", group="TLS")
PROTOCOLS = Kind(
    "list of names", _check_names, lambda text: tuple(text.split(",")), "NAME,...", group="TLS"
)
CONTEXT = Kind("`ssl.SSLContext`", _check_context, group="TLS")
CLIENT_TLS = Kind("True, False or `ssl.SSLContext`", _check_client_tls, group="TLS")
