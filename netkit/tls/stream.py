"""TLS on a connection: one thread reads while others write.

Rules:

1. Two threads cannot use one ``ssl.SSLSocket`` at once: CPython before 3.13 does not lock it, and
   later ones hold their lock while a read waits. So OpenSSL works in memory here. `_lock` is held
   for that work alone, never while anybody waits for the network.
2. `_sending` is held from encrypting until the ciphertext is sent, since records are numbered: they
   must leave in the order in which they were made. `_receiving` is held from receiving until
   OpenSSL has the bytes. Both come before `_lock`, and no thread takes one while it holds the
   other, but a writer that OpenSSL tells to read first. All three are re-entrant: a signal handler
   does not wait for the thread that it has interrupted. `_is_sending`, `_is_receiving` and
   `_is_decrypting` tell it that the thread is amid one of these, and that it may not.
3. Reading may make answers (key updates, alerts), and so does the end of a handshake (a server's
   tickets). They wait in `_outgoing` for whoever sends next; the reader sends them only when it is
   about to wait itself, and if no writer is at it. A thread that gives `_sending` back looks for
   answers again. So a reader never waits for a writer whose peer is slow, and none is forgotten.
4. What came and could be decrypted is delivered, whatever befell the connection after it.
5. The end of the TCP input proves nothing, since anybody on the way can end it: only the peer's
   close_notify ends the stream (RFC 8446 section 6.1).
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable
from typing import NoReturn

from ..core.buffer import ReceiveBuffer
from ..core.errors import (
    ConnectionClosedError,
    NotBegunError,
    TlsError,
    TruncatedError,
    WriteAfterEndError,
)
from ..core.source import CHUNK, FIRST_CHUNK, next_chunk
from . import explain
from .agreed import Agreed
from .context import OwnContext
from .records import HEADER, LONGEST_HELLO, Records, server_name

RECORD = 16 * 1024  # the most plaintext that a record holds, RFC 8446 section 5.1

# How much is received, and how much is encrypted, at once (bytes): what gives the most throughput.
# OpenSSL's buffers in memory keep the size that they once had.
RECEIVED = 256 * 1024
PIECE = 64 * 1024

# Bytes of answers that the reader leaves to a writer; with more, it waits for the writer. A peer
# that asks and asks, and does not read, is not to fill the memory.
MOST_ANSWERS = 64 * 1024

_TOO_EARLY = "the handshake is not over"
_AMID = "a signal handler cannot use TLS amid what its own thread does with it"
_Bytes = bytes | bytearray | memoryview


def _closed(_: object) -> NoReturn:
    raise ConnectionClosedError


class TlsStream(Agreed):
    """What lies between a connection and its socket once TLS has begun: bytes in, bytes out.

    One thread may read while any number of others write. `handshake` comes first: ValueError from
    `recv` and `send` before it is over.

    `receive(n)` waits for 1 to n bytes of ciphertext, and returns ``b""`` at the end of the TCP
    input. It is called by a thread that reads, or, when OpenSSL cannot write before it has read
    more, by one that writes; never by two at once.

    `send(data)` sends all of it, or, if it returns a number, so many bytes of it, at least 1 (as
    ``socket.send`` does); the rest is given to it again. If it raises, none of `data` has been
    sent: only then are later calls good. It is never called by two threads at once.

    What the two raise passes through, and a later call goes on where this one was.
    """

    def __init__(
        self,
        receive: Callable[[int], bytes],
        send: Callable[[bytes], object],
        context: ssl.SSLContext,
        *,
        server_side: bool,
        server_hostname: str | None = None,
    ) -> None:
        """Nothing is sent or received yet, and `context` is not changed.

        ValueError for a `server_hostname` that cannot be one, or for none if `context` checks it.
        """
        if context.check_hostname and not (server_side or server_hostname):
            # As Python does for a socket; in memory it would check nothing.
            raise ValueError("a context with check_hostname needs a server_hostname")
        self._receive = receive
        self._send = send
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        bios = self._incoming, self._outgoing
        super().__init__(context.wrap_bio(*bios, server_side, server_hostname))
        self._read, self._write = self._ssl.read, self._ssl.write
        self._peer = "client" if server_side else "server"
        self._records = Records()
        self.fed = 0  # how often there was something new from `receive`
        self._chunk = RECORD  # what `receive` is asked for
        self._hungry = True  # OpenSSL has read all there is, and more may come
        self._answered = False  # there are answers to be sent
        self.eof = False  # of the TCP input
        self._closed = False  # the peer has sent its close_notify
        self._ended = False  # we have sent ours
        self._failure: TlsError | None = None
        self._reset: ConnectionResetError | None = None  # that answers have met
        self._decrypted = ReceiveBuffer()  # ahead of the reader
        self._unsent = b""  # ciphertext that `send` has not taken

    # The handshake

    def handshake(self) -> None:
        """Agree on keys with the peer, and check its certificate as the context says.

        HandshakeError, for which the peer has been sent an alert as far as possible; NotBegunError,
        which is one, if a client has left without a byte. No lock is held: it is called before any
        other thread knows of this stream.
        """
        if self._peer == "client" and not self.fed:  # it speaks first
            try:
                self._feed(self._receive(self._chunk))
            except ConnectionResetError:
                raise NotBegunError from None
        while not self._shake_hands():
            flight = self._outgoing.read()
            if self._failure:
                with contextlib.suppress(OSError):
                    self._transmit(flight)
                raise self._failure
            self._transmit(flight)
            self._feed(self._receive(self._chunk))
        if self._peer == "client" and self._ssl.version() != "TLSv1.2":
            self._answered = True  # tickets, for which nobody waits: they go with what comes next
        else:
            self._transmit(self._outgoing.read())
        if self._peer == "client" and self._first:
            self._server_name = server_name(self._first)
        self._first = None
        self._chunk = FIRST_CHUNK

    def _shake_hands(self) -> bool:
        """One step. True if it was the last one; a failure is noted."""
        if self._failure:
            return False
        try:
            self._ssl.do_handshake()
        except ssl.SSLWantReadError:
            first = self._first or b""
            if self.eof or explain.plain_text(first):  # OpenSSL would wait for five bytes
                self._failure = explain.handshake_failure(None, self._peer, first)
            return False
        except ssl.SSLError as error:
            own = isinstance(self._ssl.context, OwnContext)
            self._failure = explain.handshake_failure(error, self._peer, self._first or b"", own)
            return False
        self._hungry = not (self._incoming.pending or self.eof)
        return True

    # Reading

    def recv(self, size: int) -> bytes:
        """From 1 to `size` bytes, at most `CHUNK`; ``b""`` after the peer's close_notify.

        Waits for the first of them. TruncatedError if the TCP input ends without a close_notify;
        TlsError if what came is not what the peer had sent, or if it broke off; HandshakeError if
        that was for our certificate. For one thread at a time.
        """
        if size < 1:
            raise ValueError(f"size must be at least 1 byte, not {size}")
        if self._first is not None:
            raise self._failure or ValueError(_TOO_EARLY)
        try:
            while True:
                with self._lock:
                    if self._decrypted or not self._hungry:
                        data = self._decrypted.take(size) or self._decrypt(size)
                        if data is not None:
                            return data
                    seen = self.fed
                if self._answered:
                    self._send_answers()
                data = self._take_in(seen, size)
                if data is not None:
                    return data
        except TlsError:
            self._send_answers()  # the last of them is the alert
            raise

    def pending(self) -> bool:
        """Whether `recv` would return, or raise, without waiting for the network."""
        with self._lock:
            try:
                return bool(self._decrypted) or self._decrypt_ahead() is not None
            except TlsError:
                return True

    def buffered(self) -> int:
        """How many bytes have been decrypted and not been read."""
        return len(self._decrypted)

    def within_record(self) -> bool:
        """Whether a part of a record has come, and not a whole one that nobody has read."""
        with self._lock:
            return self._is_decrypting or not (self.pending() or self._records.whole)

    def _decrypt_ahead(self) -> bytes | None:
        data = None if self._hungry or self._is_decrypting else self._decrypt(CHUNK)
        if data:
            self._decrypted.feed(data)
        return data

    def _decrypt(self, size: int) -> bytes | None:
        """The next plaintext, ``b""`` at the end, or None: OpenSSL is hungry."""
        if self._failure:
            raise self._failure.with_traceback(None)
        if self._closed:
            return b""
        if self._first is not None:
            return None
        data = None
        try:
            self._is_decrypting = True  # what a signal handler decrypted now would come too early
            most = size if size < RECORD else RECORD
            data = self._read(most)
            if not data:
                self._closed = True
            elif self._incoming.pending or self.eof or (len(data) == most and self._ssl.pending()):
                if len(data) < size:
                    data = self._joined(data, size)
            else:
                self._hungry = True  # asking it in vain costs an exception
        except ssl.SSLWantReadError:
            if self.eof:
                raise self._reset or TruncatedError from None
            self._hungry = True
        except ssl.SSLZeroReturnError:  # an empty read, once we have ended our side
            self._closed = True
            data = b""
        except ssl.SSLError as error:
            self._failure = explain.failure(error, self._peer)
            raise self._failure from None
        finally:
            self._is_decrypting = False
            self._answered = self._outgoing.pending > 0
        return data

    def _joined(self, data: bytes, size: int) -> bytes:
        """`data`, and what else has come, up to `size` bytes in all."""
        parts = [data]
        left = size - len(data)
        try:
            while left and not self._hungry and (data := self._read(min(left, RECORD))):
                parts.append(data)
                left -= len(data)
                self._hungry = not (self._incoming.pending or self._ssl.pending() or self.eof)
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            pass  # the next read will meet it again
        except ssl.SSLError as error:
            self._failure = explain.failure(error, self._peer)
        return b"".join(parts)

    def _feed(self, ciphertext: bytes) -> None:
        """What `_receive` has returned."""
        self.fed += 1
        if not (size := len(ciphertext)):
            self.eof, self._hungry = True, False
            return
        self._incoming.write(ciphertext)
        # One small record is what comes most often.
        if not (
            self._records.whole
            and size > HEADER
            and size - HEADER == ciphertext[3] << 8 | ciphertext[4]
        ):
            self._records.feed(ciphertext)
        chunk = self._chunk
        if size == chunk or chunk > FIRST_CHUNK:
            self._chunk = RECEIVED if size == chunk >= CHUNK else next_chunk(chunk, size)
        if self._first is not None and len(self._first) < LONGEST_HELLO:
            self._first += ciphertext
        self._hungry = False  # last: a signal handler that looks before finds nothing

    def _take_in(self, seen: int, size: int = 0) -> bytes | None:
        """Wait for more ciphertext, if none has come since `seen`; up to `size` bytes of it."""
        with self._receiving:
            if self._is_receiving:
                raise RuntimeError(_AMID)
            try:
                self._is_receiving = True
                if self.fed == seen:
                    ciphertext = self._receive(self._chunk)
                    with self._lock:
                        self._feed(ciphertext)
                        return self._decrypt(size) if size else None
            finally:
                self._is_receiving = False
        return None

    # Writing

    def send(self, data: _Bytes) -> int:
        """Send all of `data`, and return its number of bytes.

        From any thread: what one call sends stays together. WriteAfterEndError after `end`;
        TlsError if TLS has failed; RuntimeError in a signal handler that has interrupted its own
        thread amid this. After an error of `send`, what it did not take is sent first.
        """
        size = len(data) if type(data) is bytes else memoryview(data).nbytes
        try:
            with self._sending:
                if self._is_sending:
                    raise RuntimeError(_AMID)
                try:
                    self._is_sending = True
                    if self._first is not None:
                        raise self._failure or ValueError(_TOO_EARLY)
                    if self._ended:
                        raise WriteAfterEndError
                    if 0 < size <= PIECE:
                        self._transmit(self._encrypted(data))
                    elif size:
                        with memoryview(data).cast("B") as whole:
                            for at in range(0, size, PIECE):
                                self._transmit(self._encrypted(whole[at : at + PIECE]))
                finally:
                    self._is_sending = False
        except TlsError:  # there may be an alert for the peer
            self._send_answers()
            raise
        if self._answered:
            self._send_answers()
        return size

    def end(self) -> None:
        """Send our close_notify: the peer sees the end of input (half-close). Idempotent.

        Reading goes on, up to the peer's close_notify. What `send` raises passes through. Nothing
        is sent before the handshake is over, or once TLS has failed. RuntimeError also in a signal
        handler that has interrupted the decrypting of its own thread.
        """
        with self._sending:
            if self._is_sending:
                raise RuntimeError(_AMID)
            try:
                self._is_sending = True
                with self._lock:
                    if self._is_decrypting:
                        raise RuntimeError(_AMID)
                    if not self._ended:
                        self._ended = True
                        self._shut_down()
                    flight = self._outgoing.read()
                self._transmit(flight)
            finally:
                self._is_sending = False

    def is_interrupted(self) -> bool:
        """Whether this is a signal handler that has interrupted the sending of its own thread."""
        if not self._sending.acquire(blocking=False):
            return False
        try:
            return self._is_sending
        finally:
            self._sending.release()

    def _encrypted(self, piece: _Bytes) -> bytes:
        while True:
            with self._lock:
                if self._failure:
                    raise self._failure.with_traceback(None)
                try:
                    self._write(piece)
                    self._answered = False
                    return self._outgoing.read()
                except ssl.SSLWantReadError:  # it wants the rest of a message about keys first
                    seen = self.fed
                    if self.eof:
                        raise TruncatedError from None
                except ssl.SSLError as error:
                    self._failure = explain.failure(error, self._peer)
                    raise self._failure from None
            self._take_in(seen)

    def _shut_down(self) -> None:
        if self._first is not None or self._failure:
            return
        # Python looks for the peer's close_notify as well, and would fail on data before it.
        with contextlib.suppress(TlsError):
            while self._decrypt_ahead():
                pass
        if not self._failure:
            with contextlib.suppress(OSError):  # that it has not come
                self._ssl.unwrap()

    def _send_answers(self) -> None:
        """What reading has made, if there is any, and if no thread is sending, which will do it."""
        while True:
            with self._lock:
                waiting = self._outgoing.pending
                self._answered = bool(waiting)
            if not waiting or not self._sending.acquire(blocking=waiting > MOST_ANSWERS):
                return
            try:
                if self._is_sending:  # a signal handler has interrupted it
                    return
                self._transmit_answers()
            finally:
                self._sending.release()

    def _transmit_answers(self) -> None:
        try:
            self._is_sending = True
            with self._lock:
                answers = self._outgoing.read()
            if not self._ended:  # nothing may follow a close_notify
                self._transmit(answers)
        except ConnectionResetError as error:  # the kernel tells of it once
            self._reset = error
        except OSError:  # the next write meets it: what the peer sent can be read all the same
            pass
        finally:
            self._is_sending = False

    def _transmit(self, ciphertext: bytes) -> None:
        """Send it after what is left from before. Holds `_sending`, but in the handshake."""
        left = self._unsent + ciphertext if self._unsent else ciphertext
        try:
            while left:
                sent = self._send(left)
                left = left[sent:] if isinstance(sent, int) and sent < len(left) else b""
        finally:
            self._unsent = left

    def let_go(self) -> None:
        """The connection is closed: refer to it no more, so that both are freed at once."""
        self._receive = self._send = _closed
        self._failure = self._reset = None
