"""What the handshake of a TLS connection has agreed on, for programs to look at."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from ..core.errors import PeerError

_Text = TypeVar("_Text")


class Agreed:
    """What `TlsStream` derives from, with its locks; not used by itself. Thread-safe."""

    def __init__(self, ssl_object: ssl.SSLObject) -> None:
        self.free_locks()
        self._ssl = ssl_object
        self._first: bytes | None = b""  # what the peer began with; None after the handshake
        self._server_name: str | None = None

    def free_locks(self) -> None:
        """In a forked child, which has none of the threads that may have held them.

        See the rules of `netkit.tls.stream`.
        """
        self._lock = threading.RLock()
        self._sending, self._is_sending = threading.RLock(), False
        self._receiving, self._is_receiving = threading.RLock(), False
        self._is_decrypting = False

    @property
    def version(self) -> str | None:
        """``"TLSv1.3"`` or ``"TLSv1.2"``; None before the handshake is over."""
        with self._lock:
            return self._ssl.version() if self._first is None else None

    @property
    def cipher(self) -> str | None:
        """The name of the cipher suite, as OpenSSL calls it; None before the handshake is over."""
        with self._lock:
            return (self._ssl.cipher() or (None,))[0]

    @property
    def peer_certificate(self) -> dict[str, Any] | None:
        """The peer's verified certificate, as ``ssl.SSLSocket.getpeercert`` shows it, or None.

        PeerError if it has text that is not UTF-8.
        """
        with self._lock:
            return (_text(self._ssl.getpeercert) or None) if self._first is None else None

    @property
    def peer_certificate_der(self) -> bytes | None:
        """The peer's certificate, verified or not, in DER; None if it has sent none."""
        with self._lock:
            return self._ssl.getpeercert(binary_form=True) if self._first is None else None

    @property
    def alpn_protocol(self) -> str | None:
        """The protocol that ALPN chose (RFC 7301), or None. PeerError if it is not UTF-8."""
        with self._lock:
            return _text(self._ssl.selected_alpn_protocol)

    @property
    def server_name(self) -> str | None:
        """What host the client asked for by SNI (RFC 6066 section 3); None if it is no ASCII."""
        return self._server_name


def _text(get: Callable[[], _Text]) -> _Text:
    """The result of `get`, which decodes text of the peer."""
    try:
        return get()
    except UnicodeDecodeError:
        raise PeerError("the peer has sent a name that is not UTF-8") from None
