"""Contexts for TLS, and the errors of files that cannot be used."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import ssl
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from secure import Joined, contexts, files, optional, received
from support import observed

from netkit.core import events
from netkit.core.errors import MissingExtraError, PeerError, TlsConfigError
from netkit.core.tls_options import parse_password
from netkit.tls.context import TlsFiles, client_context, server_context
from netkit.tls.self_signed import self_signed


def issuer_of(joined: Joined) -> Any:
    assert joined.client.peer_certificate
    return joined.client.peer_certificate["subjectAltName"]


def talks(
    server: ssl.SSLContext, client: ssl.SSLContext, hostname: str | None = "localhost"
) -> Any:
    """What the client knows of the server's certificate, once bytes have gone both ways."""
    joined = Joined(server, client, hostname)
    joined.client.send(b"hello")
    assert received(joined.server) == b"hello"
    joined.server.send(b"good bye")
    assert received(joined.client) == b"good bye"
    return joined.client.peer_certificate and issuer_of(joined)


# --- Files that can be used ---


def test_certificate_and_key_may_be_in_one_file_or_in_two() -> None:
    paths = [TlsFiles(files().server), TlsFiles(files().cert, files().key)]
    paths.append(TlsFiles(Path(files().cert), Path(files().key)))
    for server in map(server_context, paths):
        assert talks(server, client_context(Path(files().ca)))


def test_nothing_older_than_tls_1_2_is_spoken() -> None:
    for context in (*contexts(), client_context(verify=False)):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_a_client_verifies_the_server_by_default() -> None:
    assert client_context().verify_mode == ssl.CERT_REQUIRED
    assert client_context().check_hostname
    assert (
        client_context().cert_store_stats()["x509_ca"] or not ssl.get_default_verify_paths().cafile
    )
    lenient = client_context(verify=False)
    assert talks(contexts()[0], lenient, "example.com") is None
    assert talks(contexts()[0], lenient, None) is None


def test_clients_may_have_to_show_a_certificate() -> None:
    server = server_context(TlsFiles(files().server, client_ca=files().ca))
    joined = Joined(server, client_context(files().ca, cert=files().client))
    assert joined.server.peer_certificate
    assert joined.server.peer_certificate["subjectAltName"] == (("email", "me@example.org"),)


@pytest.mark.parametrize(
    ("asked", "served"),
    [
        ("example.org", "example.org"),
        ("EXAMPLE.ORG", "example.org"),
        ("www.example.org", "*.example.org"),
        ("example.net", "example.net"),
        ("a.b.example.org", "localhost"),
        ("org", "localhost"),
        ("elsewhere.example", "localhost"),
        (None, "localhost"),
    ],
)
def test_the_certificate_is_that_of_the_name_asked_for(asked: str | None, served: str) -> None:
    sni = {host.upper(): (path, None) for host, path in files().named.items()}
    server = server_context(TlsFiles(files().server, sni=sni))
    client = client_context(files().ca)
    client.check_hostname = False
    joined = Joined(server, client, asked)
    assert issuer_of(joined)[0] == ("DNS", served)
    assert joined.server.server_name == asked


@pytest.mark.parametrize(
    ("host", "asked", "found"),
    [
        ("*.example.org", ".example.org", False),
        ("*.example.org", "a.example.org", True),
        ("B\xfccher.example", "xn--bcher-kva.example", True),
        ("*.b\xfccher.example", "a.xn--bcher-kva.example", True),
    ],
)
def test_a_star_stands_for_one_label_and_a_name_may_have_any_letters(
    host: str, asked: str, found: bool
) -> None:
    server = server_context(TlsFiles(files().server, sni={host: (files().server, None)}))
    session = types.SimpleNamespace(context=None)
    server.sni_callback(session, asked, server)
    assert (session.context is not None) is found


def test_clients_are_verified_and_alpn_works_with_every_name() -> None:
    sni = {"example.org": (files().named["example.org"], None)}
    server = server_context(
        TlsFiles(files().server, client_ca=files().ca, sni=sni, alpn=("one", "two"))
    )
    client = client_context(files().ca, cert=files().client, alpn=("two",))
    joined = Joined(server, client, "example.org")
    assert joined.server.alpn_protocol == "two"
    assert joined.server.peer_certificate
    refused, _ = Joined(server, client_context(files().ca), "example.org", shake=False).refused()
    assert str(refused) == "the client sent no certificate, and one is required"


# --- Files that cannot be used ---


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    text = "-----BEGIN {0}-----\nhello\n-----END {0}-----\n"
    (tmp_path / "text").write_text("hello\n")
    (tmp_path / "bad-cert").write_text(text.format("CERTIFICATE"))
    (tmp_path / "bad-key").write_text(text.format("PRIVATE KEY"))
    return tmp_path


def config_error(*arguments: Any, **named: Any) -> str:
    with pytest.raises(TlsConfigError) as error:
        server_context(TlsFiles(*arguments, **named))
    assert isinstance(error.value, ValueError)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_missing_file_is_named() -> None:
    cert = files().cert
    assert config_error("/no/cert") == "the certificate file '/no/cert': No such file or directory"
    assert config_error(cert, "/no/key") == "the key file '/no/key': No such file or directory"
    assert config_error(files().server, client_ca="/no/ca") == (
        "the CA file '/no/ca': No such file or directory"
    )
    assert config_error(files().server, sni={"a": ("/no/sni", None)}) == (
        "the certificate file '/no/sni': No such file or directory"
    )


def test_a_folder_is_not_a_file(folder: Path) -> None:
    assert config_error(folder) == f"the certificate file '{folder}': Is a directory"


@contextlib.contextmanager
def without_privileges() -> Iterator[None]:
    """Root may read anything."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_file_without_permission_to_read_is_named(folder: Path) -> None:
    key = folder / "secret"
    key.write_bytes(Path(files().key).read_bytes())
    key.chmod(0)
    with without_privileges():
        text = certificate_error(key)
    assert text == f"the CA file '{key}': Permission denied"


def certificate_error(ca: Path) -> str:
    with pytest.raises(TlsConfigError) as error:
        client_context(ca)
    return str(error.value)


def test_a_file_without_pem_is_named(folder: Path) -> None:
    cert, key, text = files().cert, files().key, folder / "text"
    assert config_error(text) == f"the certificate file '{text}' has no certificate in it (in PEM)"
    assert (
        config_error(key, key) == f"the certificate file '{key}' has no certificate in it (in PEM)"
    )
    assert config_error(cert, text) == f"the key file '{text}' has no private key in it (in PEM)"
    assert config_error(cert) == f"the key file '{cert}' has no private key in it (in PEM)"
    assert certificate_error(text) == f"the CA file '{text}' has no certificate in it (in PEM)"


def test_a_file_without_end_is_too_large() -> None:
    assert re.fullmatch(
        r"the certificate file '/dev/zero': it has more than \d+ bytes", config_error("/dev/zero")
    )


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name")
def test_a_pipe_is_no_file_and_is_not_waited_for(folder: Path) -> None:
    path = folder / "pipe"
    os.mkfifo(path)
    text = f"the key file '{path}': it is a pipe, which OpenSSL could not read a second time"
    assert config_error(files().cert, path) == text


def test_a_damaged_file_is_named(folder: Path) -> None:
    cert, key = folder / "bad-cert", folder / "bad-key"
    assert config_error(cert, files().key) == f"the certificate file '{cert}' is damaged"
    assert config_error(files().cert, key) == (
        f"the key file '{key}' is damaged, or of a kind that OpenSSL does not support"
    )
    assert certificate_error(cert) == f"the CA file '{cert}' is damaged"


def test_a_certificate_that_is_too_weak_for_openssl_is_named(folder: Path) -> None:
    optional("cryptography")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import rsa

    weak, key = folder / "weak", rsa.generate_private_key(65537, 1024)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "weak")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now)
    pem = certificate.sign(key, hashes.SHA256()).public_bytes(_pem()[0])
    weak.write_bytes(pem + key.private_bytes(*_pem()))
    assert config_error(weak) == (
        f"the certificate file '{weak}' is not safe enough for OpenSSL: ee key too small"
    )


def test_a_key_must_be_that_of_the_certificate(folder: Path) -> None:
    optional("cryptography")
    from cryptography.hazmat.primitives.asymmetric import rsa

    other = folder / "rsa"
    other.write_bytes(rsa.generate_private_key(65537, 2048).private_bytes(*_pem()))
    cert = files().cert
    for key in (files().client, other):
        assert config_error(cert, key) == (
            f"the key file '{key}' does not match the certificate file '{cert}'"
        )


def _pem(form: str = "PKCS8", password: bytes | None = None) -> tuple[Any, Any, Any]:
    """How `cryptography` writes a key."""
    from cryptography.hazmat.primitives import serialization

    encryption: Any = serialization.NoEncryption()
    if password is not None:
        encryption = serialization.BestAvailableEncryption(password)
    return serialization.Encoding.PEM, getattr(serialization.PrivateFormat, form), encryption


def locked(path: Path, form: str, password: bytes) -> Path:
    """Write the server's key, encrypted."""
    serialization = optional("cryptography.hazmat.primitives.serialization")
    clear = serialization.load_pem_private_key(Path(files().key).read_bytes(), None)
    path.write_bytes(clear.private_bytes(*_pem(form, password)))
    return path


@pytest.mark.parametrize("form", ["TraditionalOpenSSL", "PKCS8"])
def test_a_key_may_have_a_password(folder: Path, form: str) -> None:
    cert, key = files().cert, locked(folder / "locked", form, b"sesame")
    assert talks(server_context(TlsFiles(cert, key, "sesame")), contexts()[1])
    for password, problem in (
        ("wrong", ": wrong password"),
        ("", ": wrong password"),
        (None, " needs a password, and none is given"),
        ("x" * 2000, ": password cannot be longer than 1024 bytes"),
    ):
        assert config_error(cert, key, password) == f"the key file '{key}'{problem}"


def test_the_password_in_a_file_may_be_any_bytes(folder: Path) -> None:
    secret = "sésame".encode("latin-1")
    (folder / "password").write_bytes(secret + b"\n")
    password = parse_password(f"@{folder / 'password'}")
    assert server_context(
        TlsFiles(files().cert, locked(folder / "latin1", "PKCS8", secret), password)
    )


@pytest.mark.skipif(os.name != "posix", reason="files have owners and modes on POSIX only")
def test_a_key_file_that_every_user_can_read_is_reported_once(folder: Path) -> None:
    key = folder / "open.pem"
    key.write_bytes(Path(files().server).read_bytes())
    key.chmod(0o644)
    with observed(events.KeyReadable) as seen:
        for _ in range(2):
            server_context(TlsFiles(key))
        server_context(TlsFiles(files().server))
        server_context(TlsFiles(files().cert, Path(files().key).read_bytes()))
    assert seen == [events.KeyReadable(str(key))]


def test_a_password_that_no_key_needs_is_ignored() -> None:
    assert server_context(TlsFiles(files().server, key_password="sesame"))


# --- Self-signed certificates ---


def test_a_self_signed_certificate_is_for_its_hosts() -> None:
    optional("cryptography")
    cert, key = self_signed(["localhost", "127.0.0.1", "::1", "m\u00fcnchen.example"])
    with tempfile.NamedTemporaryFile() as file:
        file.write(cert)
        file.flush()
        trusting = client_context(file.name)
    for host in ("localhost", "127.0.0.1", "::1", "xn--mnchen-3ya.example"):
        assert talks(server_context(TlsFiles(cert, key)), trusting, host) == (
            ("DNS", "localhost"),
            ("IP Address", "127.0.0.1"),
            ("IP Address", "0:0:0:0:0:0:0:1"),
            ("DNS", "xn--mnchen-3ya.example"),
        )
    server = server_context(TlsFiles(cert, key))
    _, refused = Joined(server, trusting, "example.org", shake=False).refused()
    assert "Hostname mismatch" in str(refused)
    shown: Any = Joined(server, trusting).client.peer_certificate
    hour = 3600
    assert ssl.cert_time_to_seconds(shown["notBefore"]) < time.time() - hour / 2
    assert ssl.cert_time_to_seconds(shown["notAfter"]) > time.time() + 7 * 24 * hour


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".example"])
def test_an_invalid_host_name_of_a_self_signed_certificate_is_named(host: str) -> None:
    optional("cryptography")
    with pytest.raises(TlsConfigError, match=f"no certificate can have the host name '{host}'"):
        self_signed([host])


def test_the_error_without_the_extra_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(MissingExtraError) as error:
        self_signed(["localhost"])
    assert str(error.value) == (
        'making a certificate needs the package "cryptography": pip install cryptography'
    )
    assert isinstance(error.value, ImportError)


def test_certificates_and_keys_may_come_from_memory() -> None:
    cert, key, ca, own, named = (
        Path(path).read_bytes()
        for path in (files().cert, files().key, files().ca, files().client, files().server)
    )
    server = server_context(TlsFiles(cert, key, client_ca=ca, sni={"localhost": (named, None)}))
    assert talks(server, client_context(ca=ca, cert=own))
    assert config_error(cert) == "the key in memory has no private key in it (in PEM)"
    assert config_error(b"") == "the certificate in memory has no certificate in it (in PEM)"
    assert config_error(cert, own) == "the key in memory does not match the certificate in memory"


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_key_from_memory_leaves_no_file(
    in_memory: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if in_memory and not hasattr(os, "memfd_create"):
        pytest.skip("no files in memory here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    if not in_memory:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    modes: list[int] = []
    load = ssl.SSLContext.load_cert_chain

    def note_modes(context: Any, cert: str, key: str, *rest: Any) -> None:
        modes.extend(os.stat(path).st_mode & 0o777 for path in (cert, key))
        assert len(list(tmp_path.iterdir())) == (0 if in_memory else 2)
        load(context, cert, key, *rest)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", note_modes)
    cert, key = (Path(path).read_bytes() for path in (files().cert, files().key))
    context = server_context(TlsFiles(cert, key, alpn=["one"]))
    assert modes == [0o600, 0o600]
    assert list(tmp_path.iterdir()) == []
    assert talks(context, contexts()[1])
    with pytest.raises(TlsConfigError):
        server_context(TlsFiles(cert, Path(files().client).read_bytes()))
    assert list(tmp_path.iterdir()) == []


def test_a_key_from_memory_needs_no_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "isdir", lambda path: False)
    cert, key = (Path(path).read_bytes() for path in (files().cert, files().key))
    assert talks(server_context(TlsFiles(cert, key)), contexts()[1])


# --- Odd certificates ---


def certificate(*names: str, **options: Any) -> bytes:
    """A certificate of the tests' authority with the common name localhost, and its key.

    `names`: its alternative names. `odd`: one of four bytes instead. `identified`: whether it
    names the key that has signed it.
    """
    x509 = optional("cryptography.x509")
    hashes = optional("cryptography.hazmat.primitives.hashes")
    serialization = optional("cryptography.hazmat.primitives.serialization")
    ec = optional("cryptography.hazmat.primitives.asymmetric.ec")
    authority = files().authority
    issuer = x509.load_pem_x509_certificate(authority.cert_pem.bytes())
    issuers_key = serialization.load_pem_private_key(authority.private_key_pem.bytes(), None)
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(issuer.not_valid_before_utc)
        .not_valid_after(issuer.not_valid_after_utc)
    )
    if "odd" in options:
        names_of_bytes = x509.UnrecognizedExtension(
            x509.ObjectIdentifier("2.5.29.17"), b"\x30\x06\x82\x04" + options["odd"]
        )
        builder = builder.add_extension(names_of_bytes, True)
    if names:
        alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
        builder = builder.add_extension(alternatives, False)
    if options.get("identified", True):
        signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuers_key.public_key())
        builder = builder.add_extension(signer, False)
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    signed = builder.sign(issuers_key, hashes.SHA256()).public_bytes(pem)
    return bytes(signed + key.private_bytes(pem, form, serialization.NoEncryption()))


def refusal(pem: bytes, client: ssl.SSLContext) -> str:
    return str(Joined(server_context(TlsFiles(pem)), client, shake=False).refused()[1])


def test_text_of_the_peer_that_is_not_utf_8_is_the_peers_fault() -> None:
    server = server_context(TlsFiles(files().server, client_ca=files().ca))
    joined = Joined(server, client_context(files().ca, cert=certificate(odd=b"a\xffb\xfe")))
    with pytest.raises(PeerError, match="the peer has sent a name that is not UTF-8"):
        joined.server.peer_certificate  # noqa: B018
    assert joined.server.peer_certificate_der


def test_a_certificate_without_an_alternative_name_is_refused() -> None:
    client = client_context(ca=files().ca)
    assert "Hostname mismatch, certificate is not valid for 'localhost'" in refusal(
        certificate(), client
    )
    assert talks(server_context(TlsFiles(certificate("localhost"))), client)


def test_a_certificate_is_verified_as_strictly_as_by_pythons_newest_default_context() -> None:
    client = client_context(ca=files().ca)
    unidentified = certificate("localhost", identified=False)
    assert "Missing Authority Key Identifier" in refusal(unidentified, client)
    if sys.version_info >= (3, 13):
        flags = ssl.create_default_context(cafile=files().ca).verify_flags
        assert client.verify_flags & flags == flags
