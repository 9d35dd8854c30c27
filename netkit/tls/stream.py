"""TLS on a connection: one thread reads while others write.

Rules:

1. Two threads cannot use one ``ssl.SSLSocket`` at once: CPython before 3.13 does not lock it, and
   later versions hold their lock while a read waits. So OpenSSL works in memory here (`Engine`).
   `_lock` is held for that work alone, and never while a thread waits for the network.
2. `_sending` is held from encrypting until the ciphertext is sent, since records are numbered: they
   must leave in the order in which they were made. `_receiving` is held from receiving until
   OpenSSL has the bytes. Both come before `_lock`. No thread takes one of the two while it holds
   the other, except a writer that OpenSSL tells to read first. All three are re-entrant, so that a
   signal handler does not wait for the thread that it has interrupted (`Exclusive`,
   `Engine.is_decrypting`).
3. Reading may make answers (key updates, alerts), and so does the end of a handshake (the tickets
   of a server). The engine keeps them until the next send. The reader sends them only if it has to
   wait for input and no writer is sending, and a thread that releases `_sending` looks for answers
   again. So a reader never waits for a writer whose peer is slow, and every answer is sent.
"""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from ..core.errors import (
    ConnectionClosedError,
    NotBegunError,
    PeerError,
    TlsError,
    WriteAfterEndError,
)
from .engine import Bytes, Engine
from .exclusive import INTERRUPTED, Exclusive

# How much is encrypted at once (bytes), for the highest throughput.
PIECE = 64 * 1024

# The most bytes of answers that the reader leaves to a writer; with more, it waits for the writer.
# Otherwise a peer that requests answers, and does not read them, could fill the memory.
MOST_ANSWERS = 64 * 1024

_TOO_EARLY = "the handshake is not over"


def _closed(_: object) -> NoReturn:
    raise ConnectionClosedError


class TlsStream:
    """TLS between a connection and its socket, and the results of the handshake.

    One thread may read while any number of others write. Any thread may use the properties. Before
    the end of `handshake`, `recv` and `send` raise ValueError.

    `receive(n)` waits for 1 to n bytes of ciphertext, and returns ``b""`` at the end of the TCP
    input. A thread that reads calls it, or one that writes if OpenSSL needs input first.

    `send(data)` sends at least the first byte of `data`, and returns how many bytes it has sent. If
    it raises, it has sent none of them.

    Two threads never call either function at once. Exceptions of both are passed on, and the next
    call of the method continues where the failed one stopped.
    """

    def __init__(
        self,
        receive: Callable[[int], bytes],
        send: Callable[[bytes], int],
        context: ssl.SSLContext,
        *,
        server_side: bool,
        server_hostname: str | None = None,
    ) -> None:
        """Nothing is sent or received yet, and `context` is not changed.

        ValueError for an invalid `server_hostname`, and for none if `context` checks it.
        """
        self._receive = receive
        self._send = send
        self._engine = Engine(context, server_side, server_hostname)
        self.free_locks()
        self._ended = False  # our close_notify has been made
        self._unsent = b""  # ciphertext that `send` has not sent

    def free_locks(self) -> None:
        """Make all locks anew, in a forked child: threads that held them do not exist there."""
        self._lock = threading.RLock()
        self._sending, self._receiving = Exclusive(), Exclusive()
        self._engine.is_decrypting = False

    # The handshake

    def handshake(self) -> None:
        """Agree on keys with the peer, and check its certificate as the context says.

        HandshakeError; the peer is sent an alert if possible. NotBegunError, a subclass, if a
        client disconnects without sending a byte. No lock is held, so no other thread may use the
        stream yet.
        """
        engine = self._engine
        accepted = engine.peer == "client"
        if accepted and not engine.fed:  # a client speaks first
            try:
                engine.feed(self._receive(engine.chunk))
            except ConnectionResetError:
                raise NotBegunError from None
        while not engine.advance():
            flight = engine.outgoing.read()
            if engine.failure:
                with contextlib.suppress(OSError):
                    self._transmit(flight)
                raise engine.failure
            self._transmit(flight)
            engine.feed(self._receive(engine.chunk))
        if accepted and engine.ssl.version() != "TLSv1.2":
            engine.answered = True  # tickets, which no client waits for: the next send takes them
        else:
            self._transmit(engine.outgoing.read())
        engine.end_handshake()

    # Reading

    def recv(self, size: int) -> bytes:
        """Return 1 to `size` bytes, at most 64 KiB; ``b""`` after the peer's close_notify.

        Waits for the first byte. TruncatedError if the TCP input ends without a close_notify;
        TlsError if a record is invalid, or for an alert of the peer; HandshakeError if the alert
        rejects our certificate. Only one thread at a time may call it.
        """
        if size < 1:
            raise ValueError(f"size must be at least 1 byte, not {size}")
        engine = self._engine
        if engine.handshaking:
            raise engine.failure or ValueError(_TOO_EARLY)
        try:
            while True:
                with self._lock:
                    if engine.decrypted or not engine.needs_input:
                        data = engine.read(size)
                        if data is not None:
                            return data
                    seen = engine.fed
                if engine.answered:
                    self._send_answers()
                data = self._take_in(seen, size)
                if data is not None:
                    return data
        except TlsError:
            self._send_answers()  # the last of them is the alert
            raise

    def _take_in(self, seen: int, size: int = 0) -> bytes | None:
        """Wait for ciphertext, unless `Engine.fed` has changed from `seen`; then decrypt it."""
        engine = self._engine
        with self._receiving:
            if engine.fed == seen:
                ciphertext = self._receive(engine.chunk)
                with self._lock:
                    engine.feed(ciphertext)
                    return engine.decrypt(size) if size else None
        return None

    def pending(self) -> bool:
        """Whether `recv` would return, or raise, without waiting for the network."""
        with self._lock:
            return self._engine.is_pending()

    def buffered(self) -> int:
        """Return the number of bytes that have been decrypted and not read."""
        return len(self._engine.decrypted)

    def has_begun(self) -> bool:
        """Whether a record has been received in part, or the handshake is under way."""
        with self._lock:
            engine = self._engine
            return engine.fed > 0 if engine.handshaking else engine.within_record()

    @property
    def eof(self) -> bool:
        """Whether the TCP input has ended."""
        return self._engine.eof

    # Writing

    def send(self, data: Bytes) -> int:
        """Send what is owed, and all of `data`. Return its number of bytes. Thread-safe.

        The data of two calls are not mixed. WriteAfterEndError after `end`; TlsError if TLS has
        failed; RuntimeError in a signal handler that has interrupted this. After an error of the
        function `send`, the next call first sends the bytes that are left.
        """
        size = len(data) if type(data) is bytes else memoryview(data).nbytes
        engine = self._engine
        try:
            with self._sending:
                if engine.handshaking:
                    raise engine.failure or ValueError(_TOO_EARLY)
                if self._ended:
                    raise WriteAfterEndError
                if size <= PIECE:
                    self._transmit(self._encrypted(data) if size else b"")
                else:
                    with memoryview(data).cast("B") as whole:
                        for at in range(0, size, PIECE):
                            self._transmit(self._encrypted(whole[at : at + PIECE]))
        except TlsError:  # there may be an alert for the peer
            self._send_answers()
            raise
        if engine.answered:
            self._send_answers()
        return size

    def send_now(self, data: Bytes, send: Callable[[bytes], int]) -> int:
        """Encrypt at most 64 KiB of `data`, and return how many bytes; 0 if one would have to wait.

        `send` sends what it can of the ciphertext, and returns 0 instead of waiting. The rest is
        owed. TlsError; the errors of `send`. Thread-safe.
        """
        if not self._sending.acquire(blocking=False):
            return 0
        try:
            engine = self._engine
            must_wait = engine.handshaking or self._ended or self._unsent
            with self._lock:
                if must_wait or (ciphertext := engine.encrypt(data[:PIECE])) is None:
                    return 0
            self._unsent = ciphertext
            while self._unsent and (sent := send(self._unsent)):
                self._unsent = self._unsent[sent:]
            return min(len(data), PIECE)
        finally:
            self._sending.release()

    def owes(self) -> bool:
        """Whether ciphertext or answers are left, which the next `send` sends first."""
        return bool(self._unsent) or self._engine.answered

    def end(self) -> None:
        """Send our close_notify: the peer sees the end of input (half-close). Idempotent.

        The peer's data can still be read. Nothing is sent before the end of the handshake, or after
        TLS has failed. RuntimeError in a signal handler that has interrupted `send` or decrypting.
        """
        with self._sending:
            with self._lock:
                if self._engine.is_decrypting:
                    raise RuntimeError(INTERRUPTED)
                if not self._ended:
                    self._ended = True
                    self._engine.end()
                flight = self._engine.outgoing.read()
            self._transmit(flight)

    def is_interrupted(self) -> bool:
        """Whether this runs in a signal handler that has interrupted a send of the same thread."""
        return self._sending.is_interrupted()

    def _encrypted(self, piece: Bytes) -> bytes:
        engine = self._engine
        while True:
            with self._lock:
                ciphertext = engine.encrypt(piece)
                if ciphertext is not None:
                    return ciphertext
                seen = engine.fed
            self._take_in(seen)

    def _send_answers(self) -> None:
        """Send the engine's answers, unless another thread is sending, which then sends them."""
        engine = self._engine
        while True:
            with self._lock:
                waiting = engine.outgoing.pending
                engine.answered = bool(waiting)
            if not waiting or not self._sending.acquire(blocking=waiting > MOST_ANSWERS):
                return
            try:
                with self._lock:
                    answers = engine.outgoing.read()
                if not self._ended:  # nothing may follow a close_notify
                    self._transmit(answers)
            except ConnectionResetError as error:  # the kernel reports it once
                engine.reset = error
            except OSError:  # the next write raises it; data of the peer can still be read
                pass
            finally:
                self._sending.release()

    def _transmit(self, ciphertext: bytes) -> None:
        """Send `ciphertext` after the bytes left by an error. `_sending` is held, if shared."""
        left = self._unsent + ciphertext if self._unsent else ciphertext
        try:
            while left:
                left = left[self._send(left) :]
        finally:
            self._unsent = left

    def release(self) -> None:
        """Drop all references to the closed connection, so that both objects are freed at once."""
        self._receive = self._send = _closed
        self._engine.failure = self._engine.reset = None

    # The results of the handshake

    def _agreed(self, get: Callable[[ssl.SSLObject], Any]) -> Any:
        try:
            with self._lock:
                return None if self._engine.handshaking else get(self._engine.ssl)
        except UnicodeDecodeError:
            raise PeerError("the peer has sent a name that is not UTF-8") from None

    @property
    def version(self) -> str | None:
        """``"TLSv1.3"`` or ``"TLSv1.2"``; None before the handshake is over."""
        version: str | None = self._agreed(ssl.SSLObject.version)
        return version

    @property
    def cipher(self) -> str | None:
        """The name of the cipher suite, as OpenSSL calls it; None before the handshake is over."""
        return (self._agreed(ssl.SSLObject.cipher) or (None,))[0]

    @property
    def peer_certificate(self) -> dict[str, Any] | None:
        """The peer's verified certificate, as ``ssl.SSLSocket.getpeercert`` shows it, or None.

        PeerError if it has text that is not UTF-8.
        """
        return self._agreed(ssl.SSLObject.getpeercert) or None

    @property
    def peer_certificate_der(self) -> bytes | None:
        """The peer's certificate, verified or not, in DER; None if it has sent none."""
        der: bytes | None = self._agreed(lambda session: session.getpeercert(binary_form=True))
        return der

    @property
    def alpn_protocol(self) -> str | None:
        """The protocol that ALPN chose (RFC 7301), or None. PeerError if it is not UTF-8."""
        protocol: str | None = self._agreed(ssl.SSLObject.selected_alpn_protocol)
        return protocol

    @property
    def server_name(self) -> str | None:
        """The host that the client asked for by SNI (RFC 6066 section 3); None unless in ASCII."""
        return self._engine.server_name
