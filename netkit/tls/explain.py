"""Explains failures of TLS in one line, from OpenSSL's reason and the peer's first bytes."""

from __future__ import annotations

import re
import ssl

from ..core.errors import HandshakeError, NotBegunError, TlsError

# The first byte of a peer's first record: an alert or a handshake (RFC 8446 section 5.1), or the
# length of a ClientHello in the frame of SSL 2 (RFC 5246 appendix E.2).
_FIRST_BYTES = frozenset((21, 22, *range(0x80, 0x100)))

SHOWN = 40  # the most bytes of plain text that a message shows

# RFC 8446 section 6.2, in OpenSSL's words. Each follows "the client" or "the server".
_ALERTS = {
    "UNKNOWN_CA": "does not trust our certificate: unknown CA",
    "BAD_CERTIFICATE": "does not accept our certificate: bad certificate",
    "CERTIFICATE_UNKNOWN": "does not accept our certificate: certificate unknown",
    "CERTIFICATE_EXPIRED": "does not accept our certificate: certificate expired",
    "CERTIFICATE_REVOKED": "does not accept our certificate: certificate revoked",
    "UNSUPPORTED_CERTIFICATE": "does not accept our certificate: unsupported certificate",
    "CERTIFICATE_REQUIRED": "requires a certificate, and none was sent",
    "PROTOCOL_VERSION": "has no protocol version in common with us",
}

# Alerts that are not about our certificate.
_OTHER_ALERTS = {
    "UNRECOGNIZED_NAME": "serves no host of the name that we asked for",
    "NO_APPLICATION_PROTOCOL": "has no application protocol (ALPN) in common with us",
}

# Failures that OpenSSL finds on our side. "{}" is "client" or "server".
_REASONS = {
    "UNSUPPORTED_PROTOCOL": "no protocol version in common with the {}",
    "WRONG_SSL_VERSION": "no protocol version in common with the {}",
    "NO_SHARED_CIPHER": "no cipher in common with the {}",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the {} sent no certificate, and one is required",
    "DECRYPTION_FAILED_OR_BAD_RECORD_MAC": "the {} sent a damaged or forged record",
    "RECORD_LAYER_FAILURE": "the {} sent a damaged or forged record",  # from OpenSSL 3.5 on
    "NO_SUITABLE_KEY_SHARE": "no group for the key exchange in common with the {}",
    "NO_SHARED_GROUPS": "no group for the key exchange in common with the {}",
    "NO_SUITABLE_SIGNATURE_ALGORITHM": "no signature algorithm in common with the {}",
    "NO_SHARED_SIGNATURE_ALGORITHMS": "no signature algorithm in common with the {}",
    "CALLBACK_FAILED": "a callback of our context refused the {}",
}

# The reasons if a server's context has no certificate at all, among others.
_UNCERTIFIED = ("UNSUPPORTED_PROTOCOL", "NO_SHARED_CIPHER", "NO_SUITABLE_SIGNATURE_ALGORITHM")

_NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST")  # of a first record
_TEXT = re.compile(rb"[\t\n\r\x1b -~\x80-\xff]+")
_ALERT = re.compile(r"(?:SSLV3|TLSV1|TLSV13|SSL/TLS)_(?:ALERT_)?(.+)")


def plain_text(first: bytes) -> str | None:
    """Return the beginning of `first`, printable and short; None if `first` can be TLS."""
    return None if not first or first[0] in _FIRST_BYTES else _shown(first)


def _shown(first: bytes) -> str:
    line = re.split(rb"[\r\n]", first, maxsplit=1)[0] or first
    shown = repr(line[:SHOWN].decode("ascii", "backslashreplace"))
    return f"{shown}..." if len(line) > SHOWN else shown


def handshake_failure(
    error: ssl.SSLError | None, peer: str, first: bytes, certified: bool = True
) -> HandshakeError:
    """Return the error of a failed handshake.

    `error` is OpenSSL's, or None if the TCP input ended. `peer` is ``"client"`` or ``"server"``.
    `first` has the first bytes of the peer: all of them, or more than `SHOWN`. `certified` says
    that our context certainly has a certificate.
    """
    if plain_text(first) or (error is not None and error.reason in _NO_TLS and first):
        is_text = _TEXT.fullmatch(first[:SHOWN])
        what = "plain text, not TLS" if is_text else "something that is not TLS"
        return HandshakeError(f"the {peer} sent {what}: {_shown(first)}")
    if error is None or isinstance(error, (ssl.SSLZeroReturnError, ssl.SSLEOFError)):
        if peer == "client" and not first:
            return NotBegunError()
        ended = HandshakeError(f"the {peer} disconnected during the handshake")
        ended.by_end = True
        return ended
    if error.reason == "CALLBACK_FAILED" and certified:  # Python cannot decode the name in SNI
        return HandshakeError(f"the {peer} asked for a host by a name that is not ASCII")
    text = _explained(error, peer, f"the handshake with the {peer} failed")
    if error.reason in _UNCERTIFIED and peer == "client" and not certified:
        text += ", or our context has no certificate"
    return HandshakeError(text)


def failure(error: ssl.SSLError, peer: str) -> TlsError:
    """Return the error of a failure after the handshake."""
    kind = HandshakeError if _alert(error) in _ALERTS else TlsError
    return kind(_explained(error, peer, f"the {peer} violated TLS"))


def _alert(error: ssl.SSLError) -> str | None:
    """Return the name of the peer's alert, or None if `error` has another reason."""
    found = _ALERT.fullmatch(error.reason or "")
    return found[1] if found else None


def _explained(error: ssl.SSLError, peer: str, otherwise: str) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate of the {peer} is not valid: {error.verify_message}"
    alert = _alert(error)
    if alert:
        known = _ALERTS.get(alert) or _OTHER_ALERTS.get(alert)
        return f"the {peer} " + (known or f"sent an alert: {_in_words(alert)}")
    known = _REASONS.get(error.reason or "")
    if known:
        return known.format(peer)
    # The text ends with a line number of CPython's source, which does not help.
    text = _in_words(error.reason or "") or re.sub(r" \(_ssl\.c:\d+\)$", "", str(error.args[-1]))
    return f"{otherwise}: {text}"


def _in_words(reason: str) -> str:
    return reason.lower().replace("_", " ")
