"""Failures of a handshake: one line for each cause, on the side that finds it and on the other."""

from __future__ import annotations

import contextlib
import datetime
import ssl
from collections.abc import Callable
from typing import Any

import pytest
from secure import (
    Joined,
    Starved,
    contexts,
    each_version,
    files,
)

from netkit.core.errors import HandshakeError, TlsError
from netkit.tls import explain
from netkit.tls.context import TlsFiles, client_context, server_context


def mutual() -> ssl.SSLContext:
    return server_context(TlsFiles(files().server, client_ca=files().ca))


def only(version: ssl.TLSVersion, context: ssl.SSLContext) -> ssl.SSLContext:
    context.minimum_version = context.maximum_version = version
    return context


def with_ciphers(ciphers: str, context: ssl.SSLContext) -> ssl.SSLContext:
    context.set_ciphers(ciphers)
    return only(ssl.TLSVersion.TLSv1_2, context)


def refusing_names() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(files().server)
    server.sni_callback = lambda *_: ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
    return server, contexts()[1]


V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
Contexts = Callable[[], tuple[ssl.SSLContext, ssl.SSLContext]]

# The contexts of the server and of the client, and the message of each of them.
CASES: dict[str, tuple[Contexts, str, str]] = {
    "a server that is too old": (
        lambda: (only(V12, server_context(TlsFiles(files().server))), contexts(V13)[1]),
        "no protocol version in common with the client",
        "the server has no protocol version in common with us",
    ),
    "a client that is too old": (
        lambda: (only(V13, server_context(TlsFiles(files().server))), contexts(V12)[1]),
        "no protocol version in common with the client",
        "the server has no protocol version in common with us",
    ),
    "no cipher": (
        lambda: (
            with_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256", server_context(TlsFiles(files().server))),
            with_ciphers("ECDHE-ECDSA-AES256-GCM-SHA384", client_context(files().ca)),
        ),
        "no cipher in common with the client",
        "the server sent an alert: handshake failure",
    ),
    "no certificate of the client": (
        lambda: (mutual(), contexts(V12)[1]),
        "the client sent no certificate, and one is required",
        "the server sent an alert: handshake failure",
    ),
    "a certificate of the client that a stranger has signed": (
        lambda: (mutual(), only(V12, client_context(files().ca, cert=files().strange_client))),
        "the certificate of the client is not valid: unable to get local issuer certificate",
        "the server does not trust our certificate: unknown CA",
    ),
    "a context without a certificate": (
        lambda: (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), contexts(V12)[1]),
        "no cipher in common with the client, or our context has no certificate",
        "the server sent an alert: handshake failure",
    ),
    "a context without a certificate, in TLS 1.3": (
        lambda: (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), contexts(V13)[1]),
        "no protocol version in common with the client, or our context has no certificate",
        "the server has no protocol version in common with us",
    ),
    "a callback that refuses the name": (
        refusing_names,
        "a callback of our context refused the client",
        "the server serves no host of the name that we asked for",
    ),
    "a certificate of the server that a stranger has signed": (
        lambda: (contexts()[0], client_context(files().other_ca)),
        "the client does not trust our certificate: unknown CA",
        "the certificate of the server is not valid: unable to get local issuer certificate",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_side_says_why_the_handshake_failed(case: str) -> None:
    make, of_server, of_client = CASES[case]
    errors = Joined(*make(), shake=False).refused()
    assert [str(error) for error in errors] == [of_server, of_client]
    for error in errors:
        assert isinstance(error, HandshakeError)
        assert isinstance(error, ConnectionError)


def test_a_certificate_for_another_host_is_refused() -> None:
    server, client = Joined(contexts()[0], hostname="example.com", shake=False).refused()
    assert str(client) == (
        "the certificate of the server is not valid: "
        "Hostname mismatch, certificate is not valid for 'example.com'."
    )
    assert str(server) == "the client does not accept our certificate: bad certificate"


def test_an_expired_certificate_is_refused() -> None:
    past = datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)
    issued = files().authority.issue_cert("localhost", not_after=past)
    path = files().write("expired.pem", issued.private_key_and_cert_chain_pem)
    joined = Joined(server_context(TlsFiles(path)), shake=False)
    server, client = joined.refused()
    assert str(client) == "the certificate of the server is not valid: certificate has expired"
    assert str(server) == "the client does not accept our certificate: certificate expired"


@pytest.mark.parametrize(
    ("cert", "text"),
    [
        (None, "the server requires a certificate, and none was sent"),
        ("strange_client", "the server does not trust our certificate: unknown CA"),
    ],
)
def test_in_tls_1_3_the_client_gets_the_alert_when_it_reads(cert: str | None, text: str) -> None:
    path = cert and getattr(files(), cert)
    joined = Joined(mutual(), only(V13, client_context(files().ca, cert=path)), shake=False)
    server, client = joined.refused()
    assert isinstance(server, HandshakeError)
    assert client is None
    with pytest.raises(HandshakeError) as error:
        joined.client.recv(1)
    assert str(error.value) == text


# --- Bytes that are not TLS ---


ZEROS = "something that is not TLS: '" + r"\x00" * 10 + "'"
RECORD = r"something that is not TLS: '\x17\x03\x03\x00\x05hello'"


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "plain text, not TLS: 'GET / HTTP/1.1'"),
        (b"SSH-2.0-OpenSSH_9.2p1 Deb\r\n", "plain text, not TLS: 'SSH-2.0-OpenSSH_9.2p1 Deb'"),
        (b"hello\n", "plain text, not TLS: 'hello'"),
        (b"hi\n", "plain text, not TLS: 'hi'"),
        (b"\r\n\r\n\r\n", r"plain text, not TLS: '\r\n\r\n\r\n'"),
        (b"GET /" + b"x" * 100, "plain text, not TLS: 'GET /" + "x" * 35 + "'..."),
        (b"caf\xc3\xa9 \x1b[31m\n", r"plain text, not TLS: 'caf\\xc3\\xa9 \x1b[31m'"),
        (b"\xc3\xa4" + b"a" * 9, "plain text, not TLS: '" + r"\\xc3\\xa4aaaaaaaaa'"),
        (b"\x17\x03\x03\x00\x05hello", RECORD),
        (bytes(10), ZEROS),
        (b"\x16" * 50, "something that is not TLS: '" + r"\x16" * 40 + "'..."),
    ],
)
@pytest.mark.parametrize("ended", [False, True])
def test_the_first_bytes_of_a_client_without_tls_are_shown(
    sent: bytes, text: str, ended: bool
) -> None:
    joined = Joined(shake=False)
    joined.up.send(sent)
    joined.up.ended = ended or len(sent) < 5  # OpenSSL waits for a header
    for _ in range(2):
        with pytest.raises(HandshakeError) as error:
            joined.server.handshake()
        assert str(error.value) == f"the client sent {text}"
    with pytest.raises(HandshakeError):
        joined.server.recv(1)
    joined.server.end()


@pytest.mark.parametrize("step", [1, 7])
def test_the_first_bytes_of_a_server_without_tls_are_shown_as_far_as_they_have_come(
    step: int,
) -> None:
    joined = Joined(shake=False)
    joined.down.send(b"220 mail.example.org ESMTP\r\n")
    joined.client._receive = lambda size: joined.down.receive(min(size, step))
    with pytest.raises(HandshakeError, match="^the server sent plain text, not TLS: '2"):
        joined.client.handshake()


@pytest.mark.parametrize(
    "sent", [b"\x16\x03\x01\x00\x05hello", b"\x80\x2e\x01\x03\x01" + bytes(50)]
)
def test_input_that_begins_as_tls_is_not_called_plain_text(sent: bytes) -> None:
    joined = Joined(shake=False)
    joined.up.send(sent)
    joined.up.ended = True
    with pytest.raises(HandshakeError) as error:
        joined.server.handshake()
    assert "plain text" not in str(error.value)
    assert "_ssl.c" not in str(error.value)
    assert "\n" not in str(error.value)


# --- Peers that leave ---


@each_version
def test_a_peer_may_leave_anywhere_in_the_handshake(version: ssl.TLSVersion) -> None:
    """The other side gets an error, however many bytes have come by then."""
    for stays, leaves in (("server", "client"), ("client", "server")):
        left, cut = True, 0
        while left:
            joined = Joined(version, shake=False)
            pipe = joined.up if leaves == "client" else joined.down
            receive, taken = pipe.receive, 0

            def until_it_left(size: int, receive: Any = receive, cut: int = cut) -> bytes:
                nonlocal taken
                if taken >= cut:
                    return b""
                data: bytes = receive(min(size, cut - taken))
                taken += len(data)
                return data

            stream = getattr(joined, stays)
            stream._receive = until_it_left
            error = joined.refused()[0 if stays == "server" else 1]
            left = error is not None
            if left and leaves == "client" and not cut:
                assert str(error) == "the client disconnected before the handshake"
            elif left:
                assert str(error) == f"the {leaves} disconnected during the handshake"
            cut += 13


def test_a_peer_may_end_tls_in_the_handshake() -> None:
    joined = Joined(V12, shake=False)
    for stream in (joined.client, joined.server):
        with pytest.raises(Starved):
            stream.handshake()
    joined.up.send(b"\x15\x03\x03\x00\x02\x01\x00")  # a close_notify
    with pytest.raises(HandshakeError, match="^the client disconnected during the handshake$"):
        joined.server.handshake()


def test_the_alert_is_sent_if_the_network_takes_it() -> None:
    joined = Joined(contexts()[0], client_context(files().other_ca), shake=False)
    for stream in (joined.client, joined.server):
        with contextlib.suppress(Starved):
            stream.handshake()

    def refuse(_: bytes) -> None:
        raise BrokenPipeError

    joined.client._send = refuse
    with pytest.raises(HandshakeError, match="the certificate of the server is not valid"):
        joined.client.handshake()


# --- Messages ---


def ssl_error(reason: str | None, text: str = "a text (_ssl.c:1)") -> ssl.SSLError:
    error = ssl.SSLError(1, text)
    error.reason = reason  # type: ignore[misc, assignment]
    return error


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("TLSV1_ALERT_INTERNAL_ERROR", "the client sent an alert: internal error"),
        ("SSLV3_ALERT_UNEXPECTED_MESSAGE", "the client sent an alert: unexpected message"),
        ("TLSV1_UNRECOGNIZED_NAME", "the client serves no host of the name that we asked for"),
        ("TLSV1_ALERT_DECODE_ERROR", "the client sent an alert: decode error"),
        ("CALLBACK_FAILED", "the client asked for a host by a name that is not ASCII"),
        (
            "SSL/TLS_ALERT_BAD_CERTIFICATE",
            "the client does not accept our certificate: bad certificate",
        ),
        ("BAD_PACKET", "the handshake with the client failed: bad packet"),
        (None, "the handshake with the client failed: a text"),
    ],
)
def test_an_unknown_reason_is_shown_in_the_words_of_openssl(reason: str | None, text: str) -> None:
    assert str(explain.handshake_failure(ssl_error(reason), "client", b"")) == text


def test_an_alert_about_our_certificate_is_a_handshake_error_whenever_it_arrives() -> None:
    assert type(explain.failure(ssl_error("TLSV13_ALERT_CERTIFICATE_REQUIRED"), "server")) is (
        HandshakeError
    )
    error = explain.failure(ssl_error("TLSV1_ALERT_INTERNAL_ERROR"), "server")
    assert type(error) is TlsError
    assert str(error) == "the server sent an alert: internal error"
    assert str(explain.failure(ssl_error("X_Y"), "server")) == "the server violated TLS: x y"
