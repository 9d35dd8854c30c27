"""Certificates and keys in PEM (RFC 7468), from files or from memory.

OpenSSL's only message for most faults of a file is "PEM lib". So netkit checks files first, and its
own messages name the file. They never show its contents, which may be a private key.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from typing import Any

from ..core.errors import TlsConfigError
from ..core.tls_options import Pem

MOST_PEM = 4 * 1024 * 1024  # bytes; all authorities that browsers trust have 0.3 MB


def named(what: str, pem: Pem) -> str:
    """Return the words for `pem` in a message: ``the key file 'server.key'`` if `what` is "key"."""
    if isinstance(pem, bytes):
        return f"the {what} in memory"
    return f"the {what} file {os.fspath(pem)!r}"


def _open_without_waiting(path: str, flags: int) -> int:
    # An open of a pipe would wait until a process writes to it (fifo(7)).
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def contents(pem: Pem) -> bytes:
    """Return the bytes of `pem`. OSError.

    ValueError for a pipe, for more than 4 MiB, and for a null character in the path.
    """
    if isinstance(pem, bytes):
        return pem
    with open(pem, "rb", opener=_open_without_waiting) as file:
        if stat.S_ISFIFO(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is a pipe, which OpenSSL could not read a second time")
        found = file.read(MOST_PEM + 1)
    if len(found) > MOST_PEM:
        raise ValueError(f"it has more than {MOST_PEM} bytes")
    return found


@contextlib.contextmanager
def as_file(pem: Pem) -> Iterator[str | os.PathLike[str]]:
    """Yield the path of `pem`, or of a temporary file with these bytes.

    OpenSSL reads keys from files only. On Linux the temporary file is in memory, and has no name
    that another process could open.
    """
    if not isinstance(pem, bytes):
        yield pem
        return
    with _file_in_memory() or tempfile.NamedTemporaryFile(suffix=".pem") as file:
        file.write(pem)
        file.flush()
        yield file.name if isinstance(file.name, str) else f"/proc/self/fd/{file.fileno()}"


def _file_in_memory() -> Any:
    """Make a file without a name. None if the system has no such files."""
    if os.path.isdir("/proc/self/fd"):
        with contextlib.suppress(OSError, AttributeError):  # in a sandbox; outside Linux
            file = open(os.memfd_create("netkit-pem"), "w+b")  # noqa: SIM115 - the caller closes it
            os.fchmod(file.fileno(), 0o600)  # other users may try the path in /proc
            return file
    return None


def look_for(what: str, pem: Pem, label: bytes) -> bytes:
    """Return the bytes of `pem`. TlsConfigError unless they have a block with this label."""
    try:
        found = contents(pem)
    except (OSError, ValueError) as error:
        text = getattr(error, "strerror", None) or error
        raise TlsConfigError(f"{named(what, pem)}: {text}") from None
    if label not in found:
        thing = "private key" if what == "key" else "certificate"
        raise TlsConfigError(f"{named(what, pem)} has no {thing} in it (in PEM)")
    return found
