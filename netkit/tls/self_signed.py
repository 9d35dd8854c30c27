"""A certificate that is signed by its own key."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from typing import Any

from ..core.errors import MissingExtraError
from .context import a_labels

SELF_SIGNED_LIFE = datetime.timedelta(days=30)
CLOCK_SKEW = datetime.timedelta(hours=1)  # by which a client's clock may be slow


def self_signed(hosts: Sequence[str]) -> tuple[bytes, bytes]:
    """Make a certificate for these host names and addresses. Returns it and its key, in PEM.

    It is valid for 30 days, and only for tests, since no client has a reason to trust it.
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
        return x509.DNSName(a_labels(host))
