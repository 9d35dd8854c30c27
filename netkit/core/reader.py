"""Reads a stream in the units of a handler: chunks, sizes, separators, lines, text or messages.

The bytes come from a `Source`, a connection or a test. A method receives only while the received
bytes are not enough for its result.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from .buffer import CHUNK, ReceiveBuffer, Source
from .decoder import IncrementalDecoder
from .encodings import REPLACE, encode_separator, to_bytes
from .errors import IncompleteReadError, LineTooLongError, MessageTooLongError
from .generic import DataT_co, Generic
from .lines import lines

if TYPE_CHECKING:  # a program without messages does not import it
    from typing import TypeVar

    from .framing import Framing

    _Result = TypeVar("_Result")


def _check_size(size: object) -> None:
    if not isinstance(size, int):
        raise TypeError(f"size must be a number of bytes, not {size!r}")


def set_encoding(reader: Reader[Any], encoding: str | None = "utf-8", errors: str = REPLACE) -> Any:
    """Have reads return text in this encoding, or bytes again if it is None.

    Returns the reader itself. `Connection.set_encoding` describes all of this.
    """
    decoder = None
    if encoding is not None:
        decoder = IncrementalDecoder(encoding, reader.max_message, errors)
    reader._decoder = decoder
    reader._decoded_size = 0
    reader.encoding = encoding or reader.encoding
    return reader


class Reader(Generic[DataT_co]):
    """The reading half of a connection. Not thread-safe: one thread at a time may use it.

    A read returns ``bytes`` as they came, unless text was asked for. `lines` asks for text.
    `set_encoding` asks for text (``str``) in all later reads but messages, `peek`, `read_into` and
    ``lines(encoding=None)``. Messages, and the lines of `lines`, come without what ends them;
    `readline` and `readuntil` keep it, so that only the end of input is empty. Text never ends
    within a character, and invalid bytes become U+FFFD unless `errors` says otherwise.

    `timeout` bounds a read, or each line or message of a loop, in seconds: TimeoutError
    (``timeout: ...``), however slowly bytes arrive. With 0, a read returns what has arrived, or
    raises. None sets no limit. TypeError or ValueError for an invalid or negative number.

    An exception of the source loses no byte: the next call of the same method begins with all bytes
    received.
    """

    __slots__ = (
        *("_ahead", "_buffer", "_decoded_size", "_decoder", "_mixed", "_overlong", "_receive"),
        *("_source", "encoding", "max_line", "max_message"),
    )

    lines = lines
    set_encoding = set_encoding  # pyright takes more precise types of a subclass if it is no `def`

    def __init__(
        self,
        source: Source,
        buffer: ReceiveBuffer,
        encoding: str,
        max_line: int,
        max_message: int | None,
    ) -> None:
        """`buffer` must be empty; `source` may share it to see what has been received.

        `max_message` is the largest number of bytes in the result of one read; None for no limit.
        """
        self._source = source
        self._receive = source.receive
        self.encoding: str = encoding
        self.max_line: int = max_line
        self.max_message: int | None = max_message
        self._buffer = buffer
        self._decoder: IncrementalDecoder | None = None
        self._decoded_size = 0  # by the decoder, in bytes: its position within a code unit
        self._overlong: tuple[bytes, int, int] | None = None  # a long line to skip
        self._ahead: list[bytes] | None = None  # lines before the buffer without \n, the last first
        self._mixed = False  # other reads come between lines, so none are split in advance

    def read(self, size: int = -1, *, timeout: float | None = None) -> DataT_co:
        """Read up to `size` bytes, or everything to the end of input if `size` is negative.

        With a size it waits for the first bytes only. An empty result is the end of input. Text
        (`set_encoding`) is never cut within a character, and `size` still counts bytes.
        MessageTooLongError if there are more than `max_message` bytes to the end; they stay unread.
        """
        if timeout is not None:
            return self._within(timeout, self.read, size)
        if type(size) is not int:  # a call for each read would cost more
            _check_size(size)
        if size == 0:
            return self._decoded(b"")
        if self._source.interruption is not None or self._ahead or self._overlong:
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
            data = self._buffer.take(size) if self._buffer else self._receive()
            if len(data) > size:
                self._buffer.feed(data)
                data = self._buffer.take(size)
            if self._decoder is None:
                return data  # type: ignore[return-value]
            text = self._decoded(data, final=not data)
            if text or not data:
                return text

    def __iter__(self) -> Iterator[DataT_co]:
        """Yield the chunks of input as they arrive, until the end of input."""
        while True:
            if self._buffer or self._decoder or self._overlong or self._ahead:
                chunk: Any = self.read(CHUNK)
            else:
                chunk = self._receive()
            if not chunk:
                return
            yield chunk

    def readexactly(self, size: int, *, timeout: float | None = None) -> DataT_co:
        """Read exactly `size` bytes. IncompleteReadError if the input ends before that.

        MessageTooLongError, without a wait, if `size` is more than `max_message`.
        """
        if timeout is not None:
            return self._within(timeout, self.readexactly, size)
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

    def readuntil(
        self, separator: str | bytes = b"\n", *, timeout: float | None = None
    ) -> DataT_co:
        """Read up to and including `separator`.

        IncompleteReadError if the input ends before the separator. LineTooLongError if more than
        `max_line` bytes come before it; the next read of any kind then skips the line to its end.
        For longer messages (`max_message`) use `read_message` with a `Delimiter`.
        """
        if timeout is not None:
            return self._within(timeout, self.readuntil, separator)
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

    def readline(self, *, timeout: float | None = None) -> DataT_co:
        """Read one line with its newline, which the last line may lack.

        Empty at the end of input. LineTooLongError as by `readuntil`.
        """
        if timeout is not None:
            return self._within(timeout, self.readline)
        newline, width = encode_separator("\n", self.encoding)
        while True:  # the text of a line may be empty until the next one (base64)
            line, complete = self._read_until(newline, width)
            text = self._decoded(line, final=not complete)
            if text or not line:
                return text

    def messages(self, framing: Framing, *, timeout: float | None = None) -> Iterator[bytes]:
        """Yield the messages, as `read_message` returns them, until the input ends after one."""
        return iter(lambda: self.read_message(framing, timeout=timeout), None)

    def read_message(self, framing: Framing, *, timeout: float | None = None) -> bytes | None:
        """Read one message, always as bytes. None if the input ends before a message begins.

        IncompleteReadError if the input ends within the message or its length: `partial` has all
        bytes received of both, and `expected` the least number needed. MessageTooLongError, as soon
        as the size is known, for more than `max_message` bytes (of the framing, or else of the
        reader). FramingError for invalid bytes. The last two leave the bytes unread, so each
        further call raises them again: close the connection.
        """
        if timeout is not None:
            return self._within(timeout, self.read_message, framing)
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

    def peek(self, size: int = CHUNK, *, timeout: float | None = None) -> bytes:
        """Return up to `size` bytes, always as bytes, and leave them for the next read.

        Waits for the first bytes. Empty at the end of input.
        """
        _check_size(size)
        if timeout is not None:
            self._within(timeout, self.peek, size)
        self._settle()
        if not self._buffer:
            self._fill()
        return self._buffer.peek(size)

    def read_into(self, buffer: Any, *, timeout: float | None = None) -> int:
        """Read into a writable `buffer`. Returns the number of bytes, 0 at the end of input.

        ValueError for an empty buffer, and after `set_encoding`.
        """
        with memoryview(buffer).cast("B") as room:
            if not room:
                raise ValueError("the buffer has no room")
            if self._decoder is not None:
                raise ValueError("text cannot be read into a buffer")
            data: Any = self.read(len(room), timeout=timeout)
            room[: len(data)] = data
        return len(data)

    def unread(self, data: str | bytes) -> None:
        """Put `data` back, so that the next read begins with it. `encoding` encodes text."""
        self._settle()
        self._buffer.put_back(to_bytes(data, self.encoding))

    def _within(self, seconds: float, read: Callable[..., _Result], *arguments: Any) -> _Result:
        with self._source.within(seconds, "timeout"):
            return read(*arguments)

    def _decoded(self, data: bytes, final: bool = False) -> DataT_co:
        if self._decoder is None:
            return data  # type: ignore[return-value]
        self._decoded_size += len(data)
        return self._decoder.decode(data, final)  # type: ignore[return-value]

    def _fill(self) -> bool:
        """Receive one more chunk into the buffer. Returns False at the end of input."""
        self._buffer.feed(data := self._receive())
        return bool(data)

    def _read_until(
        self, separator: bytes, width: int, wanted: bytes = b"\n"
    ) -> tuple[bytes, bool]:
        """Read up to and including `separator`, and True; at the end of input the rest, and False.

        LineTooLongError names the separator `wanted`.
        """
        if self._source.interruption is not None or self._ahead or self._overlong:
            self._settle()
        longest = self.max_line + len(separator)
        if width == 1:  # most lines arrive whole, alone or many at once
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
        # The decoder may hold the first part of a code unit.
        phase = 0 if self._decoder is None else -self._decoded_size % width
        while (end := self._buffer.search(separator, width, phase)) < 0:
            if len(self._buffer) >= longest:
                break
            if not self._fill():
                return self._buffer.take(len(self._buffer)), False
        if end < 0 or end > longest:
            self._overlong = separator, width, phase
            raise LineTooLongError(self.max_line, wanted)
        return self._buffer.take(end), True

    def _forget_received(self) -> bytes:
        self._join_ahead()
        return self._buffer.take(len(self._buffer))

    def _holds_input(self) -> bool:
        undecoded = self._decoder is not None and self._decoder.pending
        return bool(self._buffer or self._ahead or self._overlong or undecoded)

    def _held(self) -> int:
        """Return the number of bytes that have been received and not read."""
        return len(self._buffer) + sum(len(line) + 1 for line in self._ahead or ())

    def _join_ahead(self) -> None:
        if self._ahead:
            self._buffer.put_back(b"\n".join([*reversed(self._ahead), b""]))
            self._ahead = None
            self._mixed = True

    def _settle(self) -> None:
        """Begin a read. Afterwards the buffer begins with the bytes to be read."""
        if (reason := self._source.interruption) is not None:
            raise self._source.failure(reason)
        self._join_ahead()
        if self._overlong:
            self._skip_overlong(*self._overlong)

    def _skip_overlong(self, separator: bytes, width: int, phase: int) -> None:
        self._buffer.restart_search()
        while (end := self._buffer.search(separator, width, phase)) < 0:
            self._buffer.skip(separator, width)
            if not self._fill():
                end = len(self._buffer)
                break
        self._buffer.take(end)
        self._overlong = None
        self._buffer.skipped = 0
        if self._decoder is not None:  # its part of the line is dropped, too
            with contextlib.suppress(UnicodeError):
                self._decoder.decode(b"", final=True)
            self._decoded_size = 0
