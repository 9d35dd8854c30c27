"""Contexts for TLS from certificates and keys, and a self-signed certificate.

Rules: OpenSSL reports "PEM lib" for most faults of a file, so the files are checked here first, and
a message names the file. OpenSSL never asks for a password on the terminal.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import socket
import ssl
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from ..core import events
from ..core.deadline import Deadline
from ..core.errors import ConnectionClosedError, MissingExtraError, TlsConfigError
from ..net import sockopts
from ..net.timeouts import timed_out
from .explain import SHOWN, handshake_failure, plain_text

Pem = str | os.PathLike[str] | bytes  # the path of a file, or the contents of such a file

SELF_SIGNED_LIFE = datetime.timedelta(days=30)
MOST_PEM = 4 * 1024 * 1024  # bytes of a file; all authorities that browsers trust have 0.3 MB
CLOCK_SKEW = datetime.timedelta(hours=1)  # by which a client's clock may be slow

# The last is the reason if the key is of another kind than that of the certificate.
_NO_MATCH = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")


class TlsFiles(NamedTuple):
    """The certificates of a server, and what belongs to them.

    If `key` is None, the file of `cert` has the key, too. `key_password` decrypts all keys. If
    there is a `client_ca`, a client needs a certificate that one of these authorities has signed.
    `sni` maps host names to other certificates and keys: a client gets those of the name that it
    asks for. In ``*.example.org`` the star stands for one label (RFC 9525 section 6.3). `alpn`
    lists protocols, best first.
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
    """A context that netkit has made. One for servers always has a certificate."""


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """A context of a server for TLS 1.2 and later. TlsConfigError if a file cannot be used."""
    context = _server_context(files, files.cert, files.key)
    if files.sni:
        named = {
            _a_labels(host): _server_context(files, cert, key)
            for host, (cert, key) in files.sni.items()
        }

        def choose(session: Any, name: str | None, __: ssl.SSLContext) -> None:
            host = (name or "").lower()
            label, _, domain = host.partition(".")
            chosen = named.get(host) or (named.get("*." + domain) if label else None)
            if chosen:
                session.context = chosen

        context.sni_callback = choose
    return context


def client_context(
    ca: Pem | None = None,
    cert: Pem | None = None,
    key: Pem | None = None,
    key_password: str | None = None,
    alpn: Sequence[str] = (),
    verify: bool = True,
) -> ssl.SSLContext:
    """A context of a client for TLS 1.2 and later. TlsConfigError if a file cannot be used.

    `ca` has the trusted authorities, in place of the system's. A server that asks for a certificate
    gets `cert`. If `verify` is False, any certificate of the server is accepted.
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


class StoppableSocket(ssl.SSLSocket):
    """Takes the end of the TCP input for the end of TLS's input, and can still write after it.

    A server that stops ends the input in this way. OpenSSL 3 would fail, send an alert and write no
    more, unless the context said otherwise; therefore OpenSSL never sees the end.
    """

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        """As of ``ssl.SSLSocket``, whose `recv`, `recv_into` and `makefile` call it."""
        try:
            if not self.pending() and not socket.socket.recv(self, 1, socket.MSG_PEEK):
                return b"" if buffer is None else 0
        except BlockingIOError:  # OpenSSL raises SSLWantReadError
            pass
        return super().read(len, buffer)


def wrap(request: socket.socket, context: ssl.SSLContext) -> ssl.SSLSocket:
    """A server's TLS socket, before its handshake, which takes over the descriptor of `request`.

    It is a `StoppableSocket`, unless the context has a class of its own for sockets. OSError if the
    client is gone.
    """
    request.getpeername()  # before Python 3.12, `wrap_socket` would leak the descriptor if it fails
    secured = context.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
    make_stoppable(secured)
    return secured


def make_stoppable(sock: ssl.SSLSocket) -> None:
    """Make it a `StoppableSocket`, without a change of its context."""
    if type(sock) is ssl.SSLSocket:
        sock.__class__ = StoppableSocket


def is_pending(sock: Any) -> bool:
    """Whether `sock` is an ``ssl.SSLSocket`` before its handshake."""
    return isinstance(sock, ssl.SSLSocket) and sock.version() is None


def shake_hands(sock: ssl.SSLSocket, seconds: float | None, peer: str) -> None:
    """Do a server's handshake within `seconds` in all (a timeout of the socket is for each packet).

    HandshakeError, TimeoutError. `sock` does not block afterwards. No descriptor is opened, since
    there may be none left.
    """
    deadline = Deadline(seconds)
    sock.settimeout(0.0)
    first = b""
    writing = False
    while True:
        sockopts.wait_until_ready(sock, writing, deadline.remaining())
        if deadline.expired():
            assert seconds is not None
            raise timed_out("handshake_timeout", seconds, peer)
        try:
            # For the log, if this is not TLS. `SSLSocket.recv` takes no flags.
            first = first or socket.socket.recv(sock, SHOWN + 1, socket.MSG_PEEK)
            return sock.do_handshake()
        except ssl.SSLWantReadError:
            writing = False
            if plain_text(first):
                raise handshake_failure(None, "client", first) from None
        except ssl.SSLWantWriteError:  # pragma: no cover - more than the kernel's buffer
            writing = True
        except ssl.SSLError as error:
            certified = isinstance(sock.context, OwnContext)
            raise handshake_failure(error, "client", first, certified) from None
        except BlockingIOError:  # a single wait may be shorter than `seconds`
            continue
        except ConnectionError:
            raise handshake_failure(None, "client", first) from None
        except OSError:
            if sock.fileno() < 0:
                raise ConnectionClosedError from None  # another thread has closed it
            raise


def self_signed(hosts: Sequence[str]) -> tuple[bytes, bytes]:
    """Make a certificate for these names and addresses, and its key, both in PEM.

    It is valid for `SELF_SIGNED_LIFE`, and for tests only: no client has a reason to trust it.
    MissingExtraError without the package ``cryptography``; TlsConfigError for an invalid name.
    """
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import NameOID
    except ImportError as error:
        raise MissingExtraError(
            'making a certificate needs the package "cryptography": pip install cryptography'
        ) from error
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "netkit, self-signed")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + SELF_SIGNED_LIFE)
        .add_extension(x509.SubjectAlternativeName([_san(x509, host) for host in hosts]), False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    return certificate.public_bytes(pem), key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _san(x509: Any, host: str) -> Any:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(_a_labels(host))


def _a_labels(host: str) -> str:
    """The name as certificates and SNI have it (RFC 5890). TlsConfigError if it is invalid."""
    try:
        return host.encode("idna").decode().lower()
    except UnicodeError:
        raise TlsConfigError(f"no certificate can have the host name {host!r}") from None


def _context(protocol: int, alpn: Sequence[str]) -> ssl.SSLContext:
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


def _server_context(files: TlsFiles, cert: Pem, key: Pem | None) -> ssl.SSLContext:
    context = _context(ssl.PROTOCOL_TLS_SERVER, files.alpn)
    _load(context, cert, key, files.key_password)
    if files.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        _trust(context, files.client_ca)
    return context


def _load(context: ssl.SSLContext, cert: Pem, key: Pem | None, password: str | None) -> None:
    key = cert if key is None else key
    certificate, key_file = _named("certificate", cert), _named("key", key)
    _look_for("certificate", cert, b"CERTIFICATE-----")
    _look_for("key", key, b"PRIVATE KEY-----")
    asked = False

    def give_password() -> str:
        nonlocal asked
        asked = True
        if password is None:
            raise TlsConfigError(f"{key_file} needs a password, and none is given")
        return password

    _warn_of_readable(key)
    try:
        with _as_file(cert) as cert_path, _as_file(key) as key_path:
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
            text = f"{key_file} is damaged, or of a kind that OpenSSL does not take"
        raise TlsConfigError(text) from None
    except ValueError as error:  # the password is too long for OpenSSL
        if isinstance(error, TlsConfigError):
            raise
        raise TlsConfigError(f"{key_file}: {error}") from None


_warned_of: set[str] = set()  # names of files


def _warn_of_readable(key: Pem) -> None:
    """Report, once for each file, that every user of the machine may read a key."""
    if isinstance(key, bytes) or os.name != "posix":
        return
    name = os.path.abspath(os.fspath(key))
    if os.stat(key).st_mode & stat.S_IROTH and name not in _warned_of:
        _warned_of.add(name)
        events.emit(events.KeyReadable(name))


def _trust(context: ssl.SSLContext, ca: Pem) -> None:
    _look_for("CA", ca, b"CERTIFICATE-----")
    if not _are_certificates(ca, context):
        raise TlsConfigError(f"{_named('CA', ca)} is damaged")


def _named(what: str, pem: Pem) -> str:
    if isinstance(pem, bytes):
        return f"the {what} in memory"
    return f"the {what} file {os.fspath(pem)!r}"


def _open_without_waiting(path: str, flags: int) -> int:
    """Open a file, or a pipe without waiting for a process that writes to it (fifo(7))."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def contents(pem: Pem) -> bytes:
    """The bytes of `pem`. OSError; ValueError if its path has a NUL, or if it is too large."""
    if isinstance(pem, bytes):
        return pem
    with open(pem, "rb", opener=_open_without_waiting) as file:
        if stat.S_ISFIFO(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is a pipe, which OpenSSL could not read once more")
        found = file.read(MOST_PEM + 1)
    if len(found) > MOST_PEM:
        raise ValueError(f"it has more than {MOST_PEM} bytes")
    return found


@contextlib.contextmanager
def _as_file(pem: Pem) -> Iterator[str | os.PathLike[str]]:
    """A path for OpenSSL, which reads keys from files only: of `pem`, or of a temporary file.

    On Linux the temporary file is in memory, and has no name that another process could open.
    """
    if not isinstance(pem, bytes):
        yield pem
        return
    with _file_in_memory() or tempfile.NamedTemporaryFile(suffix=".pem") as file:
        file.write(pem)
        file.flush()
        yield file.name if isinstance(file.name, str) else f"/proc/self/fd/{file.fileno()}"


def _file_in_memory() -> Any:
    """A file without a name; None if the system has no such files."""
    if os.path.isdir("/proc/self/fd"):
        with contextlib.suppress(OSError, AttributeError):  # in a sandbox; outside Linux
            file = open(os.memfd_create("netkit-pem"), "w+b")  # noqa: SIM115 - the caller closes it
            os.fchmod(file.fileno(), 0o600)  # others may try the path in /proc
            return file
    return None


def _look_for(what: str, pem: Pem, label: bytes) -> None:
    """TlsConfigError unless `pem` has a block with this label (RFC 7468)."""
    try:
        found = label in contents(pem)
    except (OSError, ValueError) as error:
        text = getattr(error, "strerror", None) or error
        raise TlsConfigError(f"{_named(what, pem)}: {text}") from None
    if not found:
        thing = "private key" if what == "key" else "certificate"
        raise TlsConfigError(f"{_named(what, pem)} has no {thing} in it (in PEM)")


def _are_certificates(pem: Pem, context: ssl.SSLContext) -> bool:
    """Have `context` trust the certificates in `pem`. False if they are damaged."""
    try:
        with _as_file(pem) as path:
            context.load_verify_locations(path)
    except ssl.SSLError:
        return False
    return True
