"""TLS by OpenSSL in memory: ciphertext and plaintext go in, plaintext and ciphertext come out.

No network and no threads: `netkit.tls.stream` receives and sends, and holds a lock for each call
here. Rules:

1. Data that can be decrypted is delivered, even if TLS or the connection has failed since.
2. Only the peer's close_notify ends the stream (RFC 8446 section 6.1). The end of the TCP input
   does not, since an attacker on the network can cause it.
"""

from __future__ import annotations

import contextlib
import ssl

from ..core.buffer import CHUNK, FIRST_CHUNK, ReceiveBuffer, next_chunk
from ..core.errors import TlsError, TruncatedError
from . import explain
from .context import OwnContext
from .records import HEADER, LONGEST_HELLO, Records, server_name

Bytes = bytes | bytearray | memoryview

RECORD = 16 * 1024  # the most bytes of plaintext in a record, RFC 8446 section 5.1

# The most ciphertext that is received at once (bytes), for the highest throughput. OpenSSL's
# buffers in memory keep the largest size that they ever had.
RECEIVED = 256 * 1024


def _forget_errors() -> None:
    """Empty the queue of errors that OpenSSL has for this thread.

    A program may use sockets with TLS of its own in the same thread. If one of them fails, Python
    can leave its OSError in the queue, and our next read that needs input raises it
    (python/cpython#148594). OpenSSL in memory has no such errors of its own.
    """
    with contextlib.suppress(ssl.SSLError):
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).set_ciphers("-")  # fails, and empties the queue


class Engine:
    """One TLS connection in memory. Not thread-safe."""

    __slots__ = (
        *("answered", "chunk", "decrypted", "eof", "failure", "fed", "needs_input", "incoming"),
        *("is_decrypting", "outgoing", "peer", "reset", "server_name", "handshaking", "ssl"),
        *("_closed", "_decrypt", "_encrypt", "_first", "_records"),
    )

    def __init__(
        self, context: ssl.SSLContext, server_side: bool, server_hostname: str | None
    ) -> None:
        """ValueError for an invalid `server_hostname`, and for none if `context` checks it."""
        if context.check_hostname and not (server_side or server_hostname):
            # As Python does for a socket; in memory it would check nothing.
            raise ValueError("a context with check_hostname needs a server_hostname")
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.ssl = context.wrap_bio(self.incoming, self.outgoing, server_side, server_hostname)
        self._decrypt, self._encrypt = self.ssl.read, self.ssl.write
        self.peer = "client" if server_side else "server"
        self.handshaking = True
        self.server_name: str | None = None  # the name that the client asked for
        self._first = b""  # the beginning of the peer's handshake
        self._records = Records()
        self.fed = 0  # how often `feed` was called
        self.chunk = RECORD  # how much ciphertext to receive next
        self.needs_input = True  # OpenSSL has read all ciphertext
        self.answered = False  # `outgoing` has answers to what was received
        self.eof = False  # the TCP input has ended
        self._closed = False  # the peer has sent its close_notify
        self.failure: TlsError | None = None
        self.reset: ConnectionResetError | None = None  # the error of sending an answer
        self.decrypted = ReceiveBuffer()  # plaintext that has not been read yet
        self.is_decrypting = False  # a signal handler must not decrypt now: bytes would be swapped

    # The handshake

    def advance(self) -> bool:
        """Do the next step of the handshake, and return whether it was the last.

        If the handshake fails, `failure` has the error.
        """
        if self.failure:
            return False
        first = self._first
        try:
            self.ssl.do_handshake()
        except ssl.SSLWantReadError:
            if self.eof or explain.plain_text(first):  # OpenSSL waits for a header of five bytes
                self.failure = explain.handshake_failure(None, self.peer, first)
            return False
        except ssl.SSLError as error:
            own = isinstance(self.ssl.context, OwnContext)
            self.failure = explain.handshake_failure(error, self.peer, first, own)
            return False
        self.needs_input = not (self.incoming.pending or self.eof)
        return True

    def end_handshake(self) -> None:
        """Change from the handshake to reading and writing, after its last step."""
        if self.peer == "client" and self._first:
            self.server_name = server_name(self._first)
        self.handshaking = False
        self._first = b""
        self.chunk = FIRST_CHUNK

    # Reading

    def feed(self, ciphertext: bytes) -> None:
        """Take in received bytes; ``b""`` is the end of the TCP input."""
        self.fed += 1
        if not (size := len(ciphertext)):
            self.eof, self.needs_input = True, False
            return
        self.incoming.write(ciphertext)
        # Most often one small record arrives.
        if not (
            self._records.whole
            and size > HEADER
            and size - HEADER == ciphertext[3] << 8 | ciphertext[4]
        ):
            self._records.feed(ciphertext)
        chunk = self.chunk
        if size == chunk or chunk > FIRST_CHUNK:
            self.chunk = RECEIVED if size == chunk >= CHUNK else next_chunk(chunk, size)
        if self.handshaking and len(self._first) < LONGEST_HELLO:
            self._first += ciphertext
        self.needs_input = False  # last: a signal handler that looks before finds nothing

    def read(self, size: int) -> bytes | None:
        """Return 1 to `size` bytes, ``b""`` at the end, or None if more ciphertext is needed.

        TlsError; TruncatedError if the TCP input has ended without a close_notify.
        """
        return self.decrypted.take(size) or self.decrypt(size)

    def decrypt(self, size: int) -> bytes | None:
        """As `read`, but without the bytes in `decrypted`."""
        if self.failure:
            raise self.failure.with_traceback(None)
        if self._closed:
            return b""
        if self.handshaking:
            return None
        data, most = None, size if size < RECORD else RECORD
        try:
            self.is_decrypting = True
            data = self._decrypt(most)
            if not data:
                self._closed = True
            elif self.incoming.pending or self.eof or (len(data) == most and self.ssl.pending()):
                if len(data) < size:
                    data = self._joined(data, size)
            else:
                self.needs_input = True  # to ask OpenSSL would cost an exception
        except ssl.SSLWantReadError:
            if self.eof:
                raise self.reset or TruncatedError from None
            self.needs_input = True
        except ssl.SSLZeroReturnError:  # an empty read, after we have ended our side
            self._closed = True
            data = b""
        except ssl.SSLError as error:
            self.failure = explain.failure(error, self.peer)
            raise self.failure from None
        except OSError:
            _forget_errors()
            data = self.decrypt(size)
        finally:
            self.is_decrypting = False
            self.answered = self.outgoing.pending > 0
        return data

    def _joined(self, data: bytes, size: int) -> bytes:
        """Return `data` and the bytes that can be decrypted after it, at most `size` in all."""
        parts = [data]
        left = size - len(data)
        try:
            while left and not self.needs_input and (data := self._decrypt(min(left, RECORD))):
                parts.append(data)
                left -= len(data)
                self.needs_input = not (self.incoming.pending or self.ssl.pending() or self.eof)
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            pass  # the next read raises it again
        except ssl.SSLError as error:
            self.failure = explain.failure(error, self.peer)
        except OSError:
            _forget_errors()
        return b"".join(parts)

    def decrypt_ahead(self) -> bytes | None:
        """Decrypt one more piece, for a later `read`. Results and errors as for `decrypt`."""
        data = None if self.needs_input or self.is_decrypting else self.decrypt(CHUNK)
        if data:
            self.decrypted.feed(data)
        return data

    def is_pending(self) -> bool:
        """Whether `read` would return something, or raise."""
        try:
            return bool(self.decrypted) or self.decrypt_ahead() is not None
        except TlsError:
            return True

    def within_record(self) -> bool:
        """Whether a record has been received in part, and all data before it has been read."""
        return self.is_decrypting or not (self.is_pending() or self._records.whole)

    # Writing

    def encrypt(self, piece: Bytes) -> bytes | None:
        """Return the ciphertext of `piece`, or None if OpenSSL needs input first."""
        if self.failure:
            raise self.failure.with_traceback(None)
        try:
            self._encrypt(piece)
        except ssl.SSLWantReadError:  # a message about keys has arrived in part
            if self.eof:
                raise TruncatedError from None
            return None
        except ssl.SSLError as error:
            self.failure = explain.failure(error, self.peer)
            raise self.failure from None
        self.answered = False
        return self.outgoing.read()

    def end(self) -> None:
        """Put our close_notify into `outgoing`, but not in the handshake or after a failure."""
        if self.handshaking or self.failure:
            return
        # `unwrap` also reads the peer's close_notify, and fails if data comes before it.
        with contextlib.suppress(TlsError):
            while self.decrypt_ahead():
                pass
        if not self.failure:
            with contextlib.suppress(OSError):  # the peer has not sent its close_notify
                self.ssl.unwrap()
