"""Makes the `ssl.SSLContext` of a server or a client from its options.

The effect of a TLS option belongs here, in `server_context` or `client_context`, which
`netkit.server.reload` and `netkit.client.connect` call. The row of an option is in
`netkit.core.options` or `netkit.client.options`, and a new kind of value in
`netkit.core.tls_options`. If OpenSSL refuses a value, raise TlsConfigError, which the command line
reports without a traceback. OpenSSL never asks for a password on the terminal.
"""

from __future__ import annotations

import os
import ssl
import stat
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ..core import events
from ..core.errors import TlsConfigError
from ..core.record import NamedTuple
from ..core.tls_options import Pem
from .expiry import expiry_of
from .pem import as_file, look_for, named

# OpenSSL's reasons if a key does not belong to a certificate, the last for one of another kind.
_NO_MATCH = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")


class TlsFiles(NamedTuple):
    """The certificates and keys of a server.

    If `key` is None, the file of `cert` has the key, too. `key_password` decrypts all keys. With
    `client_ca`, a client needs a certificate that one of these authorities has signed. `sni` maps
    host names to the certificates and keys that clients get if they ask for that name. The star in
    ``*.example.org`` stands for one label (RFC 9525 section 6.3). `alpn` lists protocols, best
    first.
    """

    cert: Pem
    key: Pem | None = None
    key_password: str | None = None
    client_ca: Pem | None = None
    sni: Mapping[str, tuple[Pem, Pem | None]] = MappingProxyType({})
    alpn: Sequence[str] = ()

    def __repr__(self) -> str:  # a field may be a key
        return f"<{type(self).__name__}>"


class OwnContext(ssl.SSLContext):
    """A context that netkit has made. A context for servers always has a certificate."""

    expiry: int | None = None
    """When its certificate ends, in seconds since 1970; None if that is not known."""
    named: Mapping[str, OwnContext] = MappingProxyType({})
    """The contexts for clients that ask for another name, see `TlsFiles`."""


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """Make a server's context for TLS 1.2 and later. TlsConfigError if a file cannot be used."""
    context = _server_context(files, files.cert, files.key)
    if files.sni:
        named = {
            a_labels(host): _server_context(files, cert, key)
            for host, (cert, key) in files.sni.items()
        }

        def choose(session: Any, name: str | None, __: ssl.SSLContext) -> None:
            host = (name or "").lower()
            label, _, domain = host.partition(".")
            chosen = named.get(host) or (named.get("*." + domain) if label else None)
            if chosen:
                session.context = chosen

        context.sni_callback, context.named = choose, named
    return context


def client_context(
    ca: Pem | None = None,
    cert: Pem | None = None,
    key: Pem | None = None,
    key_password: str | None = None,
    alpn: Sequence[str] = (),
    verify: bool = True,
) -> ssl.SSLContext:
    """Make a client's context for TLS 1.2 and later. TlsConfigError if a file cannot be used.

    `ca` has the authorities to trust, instead of the system's. `cert` is sent to a server that asks
    for a certificate. If `verify` is False, any certificate of the server is accepted.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT, alpn)
    # As in the default context of Python 3.13, on every Python: certificates must follow RFC 5280,
    # and any trusted certificate ends the chain.
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    context.hostname_checks_common_name = False  # RFC 9525 section 2: alternative names alone count
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif ca is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        _trust(context, ca)
    if cert is not None:
        _load(context, cert, key, key_password)
    return context


def a_labels(host: str) -> str:
    """Return `host` as certificates and SNI have it (RFC 5890). TlsConfigError if it is invalid."""
    try:
        return host.encode("idna").decode().lower()
    except UnicodeError:
        raise TlsConfigError(f"no certificate can have the host name {host!r}") from None


def _context(protocol: int, alpn: Sequence[str]) -> OwnContext:
    context = OwnContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A renegotiation (TLS 1.2) would make writes wait for input, and can be attacked (RFC 5746).
    context.options |= ssl.OP_NO_RENEGOTIATION
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        # OpenSSL's default is two, for two connections at once (RFC 8446 section 4.6.1). A ticket
        # costs a twentieth of a handshake, and few clients use even one.
        context.num_tickets = 1
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def _server_context(files: TlsFiles, cert: Pem, key: Pem | None) -> OwnContext:
    context = _context(ssl.PROTOCOL_TLS_SERVER, files.alpn)
    _load(context, cert, key, files.key_password)
    if files.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        _trust(context, files.client_ca)
    return context


def _load(context: OwnContext, cert: Pem, key: Pem | None, password: str | None) -> None:
    key = cert if key is None else key
    certificate, key_file = named("certificate", cert), named("key", key)
    context.expiry = expiry_of(look_for("certificate", cert, b"CERTIFICATE-----"))
    look_for("key", key, b"PRIVATE KEY-----")
    asked = False

    def give_password() -> bytes:
        nonlocal asked
        asked = True
        if password is None:
            raise TlsConfigError(f"{key_file} needs a password, and none is given")
        return password.encode("utf-8", "surrogateescape")  # it may be any bytes (PEP 383)

    _warn_of_readable(key)
    try:
        with as_file(cert) as cert_path, as_file(key) as key_path:
            context.load_cert_chain(cert_path, key_path, give_password)
    except ssl.SSLError as error:
        if error.reason in _NO_MATCH:
            text = f"{key_file} does not match {certificate}"
        elif error.reason and error.reason.endswith(("_TOO_SMALL", "_TOO_WEAK")):
            reason = error.reason.lower().replace("_", " ")
            text = f"{certificate} is not safe enough for OpenSSL: {reason}"
        elif asked:
            text = f"{key_file}: wrong password"
        elif not _are_certificates(cert, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)):
            text = f"{certificate} is damaged"
        else:
            text = f"{key_file} is damaged, or of a kind that OpenSSL does not support"
        raise TlsConfigError(text) from None
    except ValueError as error:  # the password is too long for OpenSSL
        if isinstance(error, TlsConfigError):
            raise
        raise TlsConfigError(f"{key_file}: {error}") from None


_warned_of: set[str] = set()  # names of files


def _warn_of_readable(key: Pem) -> None:
    """Emit `KeyReadable`, once for each file, if every user of the machine may read the key."""
    if isinstance(key, bytes) or os.name != "posix":
        return
    name = os.path.abspath(os.fspath(key))
    if os.stat(key).st_mode & stat.S_IROTH and name not in _warned_of:
        _warned_of.add(name)
        events.emit(events.KeyReadable(name))


def _trust(context: ssl.SSLContext, ca: Pem) -> None:
    look_for("CA", ca, b"CERTIFICATE-----")
    if not _are_certificates(ca, context):
        raise TlsConfigError(f"{named('CA', ca)} is damaged")


def _are_certificates(pem: Pem, context: ssl.SSLContext) -> bool:
    """Make `context` trust the certificates in `pem`. Returns False if they are damaged."""
    try:
        with as_file(pem) as path:
            context.load_verify_locations(path)
    except ssl.SSLError:
        return False
    return True
