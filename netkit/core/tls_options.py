"""Checks of the TLS options of a server and of a client.

Any value may be a key, or a password that was meant for another option, so no error and no
representation shows a value.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

LONGEST_PASSWORD = 1024  # bytes; OpenSSL's limit

_PASSWORD_FORMS = (
    "it must be @FILE or env:NAME, since other users can see what is on the command line"
)


def representation(values: Any) -> str:
    """The ``repr`` of a named tuple of options.

    It shows neither the values of TLS options nor the arguments of the handler, which may be
    secrets, too.
    """

    def shown(name: str, value: object) -> str:
        is_private = name.startswith("tls_") or name == "handler_args"
        return f"{name}={'...' if value and is_private else repr(value)}"

    return (
        f"{type(values).__name__}({', '.join(shown(*each) for each in values._asdict().items())})"
    )


def kind_of(value: object) -> str:
    """The description, in an error, of a value that may be a secret."""
    return f"of type {type(value).__name__}"


def check_text(name: str, value: object) -> None:
    """TypeError, with `name`, unless `value` is text."""
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{name} must be text, not {kind_of(value)}")


def check_pem(name: str, value: object) -> None:
    """TypeError or ValueError, with `name`, unless `value` is a file's path, or its contents."""
    if value is not None and not isinstance(value, (str, os.PathLike, bytes)):
        raise TypeError(f"{name} must be the path of a file, or bytes, not {kind_of(value)}")
    if isinstance(value, str) and ("\n" in value or "\r" in value or "-----BEGIN" in value):
        raise ValueError(f"{name} is PEM as text: pass bytes (text.encode())")


def check_context(name: str, value: object) -> None:
    """TypeError or ValueError, with `name`, unless `value` is a context for servers."""
    if value is None:
        return
    ssl = sys.modules.get("ssl")  # a program that has a context has imported it
    if ssl is None or not isinstance(value, ssl.SSLContext):
        raise TypeError(f"{name} must be an ssl.SSLContext, not {kind_of(value)}")
    if value.protocol == ssl.PROTOCOL_TLS_CLIENT:
        raise ValueError(f"{name} must be a server's context (PROTOCOL_TLS_SERVER), not a client's")


def check_client_tls(name: str, value: object) -> None:
    """TypeError, with `name`, unless `value` is True, False or a context."""
    ssl = sys.modules.get("ssl")
    if not isinstance(value, bool) and not (ssl and isinstance(value, ssl.SSLContext)):
        raise TypeError(f"{name} must be True, False or an ssl.SSLContext, not {kind_of(value)}")


def check_sni(name: str, value: object) -> None:
    """TypeError or ValueError, with `name`, unless `value` maps hosts to certificate and key."""
    if value is None:
        return
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
            check_pem(name, pem)


def check_names(name: str, value: object) -> None:
    """TypeError or ValueError, with `name`, unless `value` is a list of protocols for ALPN."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{name} must be a list of names, not {kind_of(value)}")
    if not all(isinstance(each, str) and each.isascii() and 0 < len(each) < 256 for each in value):
        raise ValueError(f"{name} must be names of 1 to 255 ASCII characters")


# Conversions of flags of the command line


def sni_from(text: str) -> dict[str, tuple[str, str | None]]:
    """Convert ``NAME=CERTIFICATE[:KEY],...``. ValueError."""
    found: dict[str, tuple[str, str | None]] = {}
    for entry in text.split(","):
        name, equals, files = entry.partition("=")
        if not (name and equals and files):
            raise ValueError("it must be NAME=CERTIFICATE:KEY,...")
        cert, _, key = files.partition(":")
        found[name] = cert, key or None
    return found


def names_from(text: str) -> tuple[str, ...]:
    """Convert ``NAME,...``."""
    return tuple(text.split(","))


def password_from(text: str) -> str:
    """The password in a file (``@FILE``, without its newline) or in a variable (``env:NAME``).

    ValueError, which does not show `text`, for any other form; OSError if the file cannot be read.
    """
    if text.startswith("@"):
        with open(text[1:], "rb") as file:
            line = file.read(LONGEST_PASSWORD + 3).removesuffix(b"\n").removesuffix(b"\r")
        if len(line) > LONGEST_PASSWORD or b"\n" in line:
            raise ValueError(f"it must be one line of at most {LONGEST_PASSWORD} bytes: {text!r}")
        return line.decode("utf-8", "surrogateescape")
    form, colon, name = text.partition(":")
    if form != "env" or not colon:
        raise ValueError(_PASSWORD_FORMS)
    password = os.environ.get(name, "")
    if not password:
        raise ValueError("the environment variable of env:NAME is not set")
    return password
