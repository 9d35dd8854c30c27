"""Reading a stream in the units a handler wants: chunks, sizes, separators, lines, text, messages.

Pure: the bytes come from a `Source`. Nothing is received before it is needed: a method receives
only while what it holds is not enough.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from .buffer import ReceiveBuffer
from .decoder import IncrementalDecoder
from .encodings import encode_separator, is_utf8, to_bytes
from .errors import IncompleteReadError, LineTooLongError, MessageTooLongError
from .options import MAX_MESSAGE

if TYPE_CHECKING:  # it stands above: a program that has no messages does not import it
    from .framing import Framing

CHUNK = 64 * 1024  # the most bytes received at once, and that one chunk of iteration has

# A wait for input keeps the memory that it asks for, and most connections wait most of the time. So
# the first one asks for what Python's allocator of small objects holds: 512 bytes, less the 33 of a
# bytes object.
FIRST_CHUNK = 512 - 33
CHUNK_GROWTH = 8

# How much of what has been received `lines` splits at once (bytes): many short lines, and little
# memory, even if each is empty.
AHEAD = 2048

# How a method of a socket, or of a file, is called here.
_OTHER_NAMES = {
    "send": "write",
    "sendall": "write",
    "writelines": "write, once for each",
    "recv": "read",
    "recv_into": "read_into",
    "readlines": "lines",
    "makefile": "read, readline, lines and write, which it has itself",
    "shutdown": "end",
    "settimeout": "set_timeout",
    "getpeername": "remote_address and remote_port",
    "getsockname": "local_address and local_port",
    "setsockopt": "socket.setsockopt",
    "getsockopt": "socket.getsockopt",
}


def next_chunk(chunk: int, size: int) -> int:
    """How many bytes to ask for next, after `chunk` were asked for and `size` came.

    Bulk is soon received in the largest chunks. They get smaller again step by step, so that
    neither an odd small message nor the end of a large one cuts the next one into pieces.
    """
    if size == chunk:
        return min(chunk * CHUNK_GROWTH, CHUNK)
    if size < max(chunk // CHUNK_GROWTH, FIRST_CHUNK):
        return max(chunk // 2, FIRST_CHUNK)
    return chunk


def _check_size(size: object) -> None:
    if not isinstance(size, int):
        raise TypeError(f"size must be a number of bytes, not {size!r}")


class Source(Protocol):
    """Where a `Reader` has its bytes from. What its methods raise passes through."""

    interruption: OSError | None
    """If set, the next read raises `failure` of it, also where there is something to read."""

    def receive(self) -> bytes:
        """Wait for the next bytes, 1 to `CHUNK` of them; ``b""`` at the end, however often."""

    def failure(self, error: OSError) -> OSError:
        """The exception to raise for `error`."""


class Reader:
    """The reading half of a connection. Not thread-safe: it belongs to one thread at a time.

    The methods return ``bytes``, or ``str`` once `set_encoding` was called (typed as Any, since
    only the caller knows), and an empty one at the end of input. What the source raises passes
    through, and nothing that was received is lost by it.
    """

    __slots__ = (
        *("_ahead", "_buffer", "_decoded_size", "_decoder", "_mixed", "_overlong", "_receive"),
        *("_source", "encoding", "max_line", "max_message"),
    )

    def __init__(
        self,
        source: Source,
        buffer: ReceiveBuffer,
        encoding: str,
        max_line: int,
        max_message: int | None = MAX_MESSAGE,
    ) -> None:
        """`buffer` is an empty one, which `source` may look at.

        `max_message` is the most bytes that one read may gather, None for any number.
        """
        self._source = source
        self._receive = source.receive
        self.encoding: str = encoding
        self.max_line: int = max_line
        self.max_message: int | None = max_message
        self._buffer = buffer
        self._decoder: IncrementalDecoder | None = None
        self._decoded_size = 0  # bytes given to the decoder: where it stands within a code unit
        self._overlong: tuple[bytes, int, int] | None = None  # a long line that is to be skipped
        self._ahead: list[bytes] | None = None  # lines before the buffer, without \n, last first
        self._mixed = False  # other reads come between lines: no more are split off ahead of time

    if not TYPE_CHECKING:  # for which each name would be known then

        def __getattr__(self, name: str) -> Any:
            text = f"{type(self).__name__!r} object has no attribute {name!r}"
            if name in _OTHER_NAMES:
                text += f": use {_OTHER_NAMES[name]}"
            raise AttributeError(text, name=name, obj=self)

    def read(self, size: int = -1) -> Any:
        """Up to `size` bytes, as soon as there are any; without `size`, everything to the end.

        Waits until something has come. An empty result is the end of input. Text (`set_encoding`)
        is never cut within a character, and `size` still counts bytes. MessageTooLongError if there
        are more than `max_message` bytes to the end; nothing is taken then.
        """
        _check_size(size)
        if size == 0:
            return self._decoded(b"")
        self._settle()
        if size < 0:
            limit = self.max_message
            while limit is None or len(self._buffer) <= limit:
                if not self._fill():
                    break
            else:
                raise MessageTooLongError(limit)
            return self._decoded(self._buffer.take(len(self._buffer)), final=True)
        while True:
            data = self._read_some(size)
            if self._decoder is None:
                return data
            text = self._decoded(data, final=not data)
            if text or not data:
                return text

    def __iter__(self) -> Iterator[Any]:
        """The chunks of input as they come, until it ends."""
        while True:
            if self._buffer or self._decoder or self._overlong or self._ahead:
                chunk = self.read(CHUNK)
            else:
                chunk = self._receive()
            if not chunk:
                return
            yield chunk

    def readexactly(self, size: int) -> Any:
        """Exactly `size` bytes. IncompleteReadError if the input ends before that.

        MessageTooLongError if `size` is more than `max_message`; nothing is received then.
        """
        _check_size(size)
        if size < 0:
            raise ValueError(f"size must be 0 or more, not {size}")
        if self.max_message is not None and size > self.max_message:
            raise MessageTooLongError(self.max_message, size)
        self._settle()
        while len(self._buffer) < size:
            if not self._fill():
                partial = self._buffer.take(size)
                raise IncompleteReadError(self._decoded(partial, final=True), size)
        return self._decoded(self._buffer.take(size))

    def readuntil(self, separator: str | bytes = b"\n") -> Any:
        """Everything up to and including `separator`.

        IncompleteReadError if the input ends before it, LineTooLongError if it does not come within
        `max_line` bytes; the line is then skipped, to its end, by the next read of any kind. For
        messages, which may be longer (`max_message`), use `read_message` with a `Delimiter`.
        """
        if isinstance(separator, str):
            found, width = encode_separator(separator, self.encoding)
        else:
            found, width = to_bytes(separator), 1
        if not found:
            raise ValueError("the separator must not be empty")
        line, complete = self._read_until(found, width, found if width == 1 else b"\n")
        if complete:
            return self._decoded(line)
        raise IncompleteReadError(self._decoded(line, final=True), None)

    def readline(self) -> Any:
        """One line with its newline; the last one may have none; empty at the end of input.

        LineTooLongError as for `readuntil`.
        """
        newline, width = encode_separator("\n", self.encoding)
        while True:  # a line that is no text (base64) may only complete what comes after it
            line, complete = self._read_until(newline, width)
            text = self._decoded(line, final=not complete)
            if text or not line:
                return text

    def lines(self) -> Iterator[str]:
        r"""The lines as text, without their endings (``\n`` or ``\r\n``), until the input ends.

        Decoded with the encoding of `set_encoding`, or else with `encoding` (UTF-8), in which what
        is invalid becomes U+FFFD. LineTooLongError as for `readuntil`: the iterator is still good
        and goes on with the next line.
        """
        newline, width = encode_separator("\n", self.encoding)
        decoder = self._decoder or IncrementalDecoder(self.encoding, self.max_message)
        source = self._source
        simple = newline == b"\n" and is_utf8(decoder.encoding)  # it keeps nothing after a line

        def next_line() -> str | None:
            ahead = self._ahead
            if ahead and simple and len(ahead[-1]) <= self.max_line and not source.interruption:
                return ahead.pop().decode("utf-8", "replace").removesuffix("\r")
            line, complete = self._read_until(newline, width)
            if simple and self._buffer and not self._mixed:
                self._split_ahead()
            if decoder is self._decoder:
                self._decoded_size += len(line)
            text = decoder.decode(line, final=not complete)
            if not (line or text):
                return None
            return text.removesuffix("\n").removesuffix("\r")

        return iter(next_line, None)

    def messages(self, framing: Framing) -> Iterator[bytes]:
        """The messages, until the input ends after one. Always bytes. Errors: `read_message`."""
        return iter(lambda: self.read_message(framing), None)

    def read_message(self, framing: Framing) -> bytes | None:
        """One message, always bytes; None if the input ends before it begins.

        IncompleteReadError if the input ends within one, also within its length: `partial` is what
        came of it, with the length, and `expected` what it needs at least. MessageTooLongError if
        it has more than `max_message` bytes (the framing's, or else the reader's), as soon as that
        is known. FramingError if it is none. After the last two every further call raises the same,
        since nothing has been taken: close the connection.
        """
        self._settle()
        self._buffer.restart_search()
        limit = self.max_message if framing.max_message is None else framing.max_message
        size = 1
        while True:
            needed = size or len(self._buffer) + 1
            while len(self._buffer) < needed:
                if not self._fill():
                    partial = self._buffer.take(needed)
                    if not partial:
                        return None
                    raise IncompleteReadError(partial, size or None)
            size, start, end = framing.measure(self._buffer, limit)
            if 0 < size <= len(self._buffer):
                return self._buffer.take(size)[start:end]

    def peek(self, size: int = CHUNK) -> bytes:
        """Up to `size` bytes that the next read will return, without taking them.

        Waits until there is at least one; ``b""`` at the end of input. Always bytes.
        """
        _check_size(size)
        self._settle()
        if not self._buffer:
            self._fill()
        return self._buffer.peek(size)

    def read_into(self, buffer: Any) -> int:
        """Read into the caller's writable `buffer`; how many bytes, 0 at the end of input.

        For programs that keep one buffer for all they read. ValueError for a buffer without room,
        and after `set_encoding`.
        """
        with memoryview(buffer).cast("B") as room:
            if not room:
                raise ValueError("the buffer has no room")
            if self._decoder is not None:
                raise ValueError("text cannot be read into a buffer")
            data = self.read(len(room))
            room[: len(data)] = data
        return len(data)

    def unread(self, data: str | bytes) -> None:
        """Put `data` back: the next read begins with it. Text is encoded as `write` does it."""
        self._settle()
        self._buffer.put_back(to_bytes(data, self.encoding))

    def set_encoding(self, encoding: str | None = "utf-8") -> None:
        """From now on, reads return text in this encoding, or with None bytes again.

        Applies to what has been received and not read. A character that arrives in pieces is
        returned whole. `encoding` also becomes the one that `write` uses. UnknownEncodingError.
        """
        self._decoder = None if encoding is None else IncrementalDecoder(encoding, self.max_message)
        self._decoded_size = 0
        self.encoding = encoding or self.encoding

    def _decoded(self, data: bytes, final: bool = False) -> Any:
        if self._decoder is None:
            return data
        self._decoded_size += len(data)
        return self._decoder.decode(data, final)

    def _read_some(self, size: int) -> bytes:
        if self._buffer:
            return self._buffer.take(size)
        data = self._receive()
        if len(data) <= size:
            return data
        self._buffer.feed(data)
        return self._buffer.take(size)

    def _fill(self) -> bool:
        """Receive one more chunk into the buffer. False at the end of input."""
        data = self._receive()
        self._buffer.feed(data)
        return bool(data)

    def _read_until(
        self, separator: bytes, width: int, wanted: bytes = b"\n"
    ) -> tuple[bytes, bool]:
        """Up to and including `separator` (True), or all there is if the input ends before it.

        `wanted` is what LineTooLongError names. A `Delimiter` cannot replace a wide separator.
        """
        self._settle()
        longest = self.max_line + len(separator)
        if width == 1:  # most lines come whole: alone, or many at once
            if not self._buffer:
                data = self._receive()
                if data.find(separator) == len(data) - len(separator) >= 0 and len(data) <= longest:
                    return data, True
                self._buffer.feed(data)
                if not data:
                    return data, False
            at = self._buffer.find(separator)
            if 0 <= at <= self.max_line:
                return self._buffer.take(at + len(separator)), True
        self._buffer.restart_search()
        phase = self._phase(width)
        while (end := self._buffer.search(separator, width, phase)) < 0:
            if len(self._buffer) >= longest:
                break
            if not self._fill():
                return self._buffer.take(len(self._buffer)), False
        if end < 0 or end > longest:
            self._overlong = separator, width, phase
            raise LineTooLongError(self.max_line, wanted)
        return self._buffer.take(end), True

    def _phase(self, width: int) -> int:
        """Where code units of `width` bytes begin: the decoder may hold the first part of one."""
        return 0 if self._decoder is None else -self._decoded_size % width

    def _split_ahead(self) -> None:
        end = self._buffer.rfind(b"\n", 0, AHEAD)
        if end >= 0:
            self._ahead = self._buffer.take(end + 1)[:end].split(b"\n")
            self._ahead.reverse()

    def _forget_received(self) -> bytes:
        """All that has been received and not been read, which is given up."""
        self._join_ahead()
        return self._buffer.take(len(self._buffer))

    def _holds_input(self) -> bool:
        """Whether anything has been received and not been read, or only in part."""
        pending = self._decoder is not None and self._decoder.pending
        return bool(self._buffer or self._ahead or self._overlong or pending)

    def _held(self) -> int:
        """How many bytes have been received and not been read."""
        ahead = self._ahead or ()
        return len(self._buffer) + sum(map(len, ahead)) + len(ahead)

    def _join_ahead(self) -> None:
        if self._ahead:
            self._buffer.put_back(b"\n".join([*reversed(self._ahead), b""]))
            self._ahead = None
            self._mixed = True

    def _settle(self) -> None:
        """Before any read: the buffer begins with what is to be read next."""
        if (reason := self._source.interruption) is not None:
            raise self._source.failure(reason)
        self._join_ahead()
        if self._overlong:
            self._skip_overlong(*self._overlong)

    def _skip_overlong(self, separator: bytes, width: int, phase: int) -> None:
        """Drop the rest of a line that was too long, piece by piece, to and including its end."""
        self._buffer.restart_search()
        while (end := self._buffer.search(separator, width, phase)) < 0:
            spare = max(0, len(self._buffer) - len(separator) + 1)  # the rest may be half of it
            dropped = self._buffer.take(spare - spare % width)  # whole code units: the phase stays
            self._buffer.skipped += len(dropped)
            if not self._fill():
                end = len(self._buffer)
                break
        self._buffer.take(end)
        self._overlong = None
        self._buffer.skipped = 0
        if self._decoder is not None:  # what it holds of the line is dropped, too
            with contextlib.suppress(UnicodeError):
                self._decoder.decode(b"", final=True)
            self._decoded_size = 0
