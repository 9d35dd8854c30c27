"""Where one message ends and the next one begins: lengths, netstrings, fixed sizes, delimiters.

Pure: a framing turns a message into bytes (`Framing.encode`), and finds messages in received bytes
(`Framing.measure`); `Reader.messages` does the receiving.

Rules:

1. Nothing is taken from what has been received before the whole message is there. So a read may
   be tried again after any failure, and a stopping server knows that a message is under way.
2. A size that is too large is refused as soon as it can be read, before what it announces comes.
3. What a measurement gives depends on the bytes alone, never on the pieces that they came in.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from .buffer import ReceiveBuffer
from .errors import FramingError, MessageTooLongError
from .kinds import check_bytes
from .reader import Reader

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_VARINT_BYTES = 10  # what 64 bits take, seven in each byte
_VARINT_TOP = 1  # the most that the tenth of them may hold: one bit is left
_NETSTRING_DIGITS = 20  # what the largest number of 64 bits has
_LENGTHS = {
    (order, size): struct.Struct(sign + code).unpack_from  # nothing is copied for it
    for order, sign in (("big", ">"), ("little", "<"))
    for size, code in ((1, "B"), (2, "H"), (4, "I"), (8, "Q"))
}
_ZERO, _COLON, _COMMA = b"0:,"


class Framing(ABC):
    """How messages stand in a stream. Immutable, and so for any number of connections at once.

    `max_message` is the most bytes that a message to be read may have; None: the reader's
    `Reader.max_message` counts. It bounds nothing that is written.
    """

    __slots__ = ()
    max_message: int | None = None

    @abstractmethod
    def encode(self, data: ReadableBuffer) -> bytes:
        """The message `data` as it is written. ValueError if it cannot be framed in this way."""

    @abstractmethod
    def measure(self, received: ReceiveBuffer, limit: int | None) -> tuple[int, int, int]:
        """The first frame in `received`: its size, and where in it the message begins and ends.

        A size of more than has been received means that at least so much is needed to say more; 0
        means that it is not known how much. `limit` is the most bytes that the message may have,
        None for any number. `received` must not be changed. MessageTooLongError, FramingError.
        """

    def read(self, reader: Reader) -> bytes | None:
        """The next message of `reader`: see `Reader.read_message`."""
        return reader.read_message(self)


@dataclass(frozen=True, slots=True)
class LengthPrefix(Framing):
    """Before each message its number of bytes, in 1, 2, 4 or 8 bytes."""

    size: int = 4
    byteorder: Literal["big", "little"] = "big"
    max_message: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if type(self.size) is not int or self.size not in (1, 2, 4, 8):
            raise ValueError(f"a length prefix has 1, 2, 4 or 8 bytes, not {self.size!r}")
        if self.byteorder not in ("big", "little"):
            raise ValueError(f"byteorder must be 'big' or 'little', not {self.byteorder!r}")
        _check_limit(self.max_message)

    def encode(self, data: ReadableBuffer) -> bytes:
        """The length, then `data`. ValueError if there is more than the prefix can count."""
        message = _message(data)
        try:
            return len(message).to_bytes(self.size, self.byteorder) + message
        except OverflowError:
            most = (1 << 8 * self.size) - 1
            text = f"a length prefix of {self.size} bytes counts to {most}, not to {len(message)}"
            raise ValueError(text) from None

    def measure(self, received: ReceiveBuffer, limit: int | None) -> tuple[int, int, int]:
        """As for any framing; every length is a valid one."""
        header = self.size
        if len(received) < header:
            return header, 0, 0
        end = header + _LENGTHS[self.byteorder, header](received)[0]
        _check_length(end - header, limit)
        return end, header, end


@dataclass(frozen=True, slots=True)
class VarintPrefix(Framing):
    """Before each message its number of bytes, as a varint of Protocol Buffers (LEB128).

    Seven bits in a byte, the lowest first; the top bit says that more follow. At most 64 bits, and
    in no more bytes than they need: each length has one form.
    """

    max_message: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        _check_limit(self.max_message)

    def encode(self, data: ReadableBuffer) -> bytes:
        """The length, then `data`."""
        message = _message(data)
        rest = len(message)
        prefix = bytearray()
        while rest > 0x7F:
            prefix.append(0x80 | rest & 0x7F)
            rest >>= 7
        prefix.append(rest)
        return bytes(prefix) + message

    def measure(self, received: ReceiveBuffer, limit: int | None) -> tuple[int, int, int]:
        """As for any framing. FramingError for what takes more than 64 bits, or needless bytes."""
        length = 0
        for at, byte in enumerate(received[:_VARINT_BYTES]):
            if at == _VARINT_BYTES - 1 and byte > _VARINT_TOP:
                raise FramingError("a varint of more than 64 bits")
            if not byte and at:
                raise FramingError(f"a varint with needless bytes: {received.peek(at + 1)!r}")
            length |= (byte & 0x7F) << 7 * at
            if byte < 0x80:
                _check_length(length, limit)
                return at + 1 + length, at + 1, at + 1 + length
        return len(received) + 1, 0, 0


@dataclass(frozen=True, slots=True)
class Netstrings(Framing):
    """``5:hello,``: the length in decimal digits, a colon, the message, a comma."""

    max_message: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        _check_limit(self.max_message)

    def encode(self, data: ReadableBuffer) -> bytes:
        """`data` as a netstring."""
        message = _message(data)
        return b"%d:%b," % (len(message), message)

    def measure(self, received: ReceiveBuffer, limit: int | None) -> tuple[int, int, int]:
        """As for any framing. FramingError for another form, a needless zero in front included."""
        for at, byte in enumerate(received[: _NETSTRING_DIGITS + 1]):
            if byte == _COLON and at:
                break
            if byte not in b"0123456789" or (at and received[0] == _ZERO):
                raise FramingError(f"a netstring cannot begin with {received.peek(at + 1)!r}")
            if at == _NETSTRING_DIGITS:
                raise FramingError(f"a netstring whose length has more than {at} digits")
        else:
            return len(received) + 1, 0, 0
        end = at + 1 + int(received[:at])
        _check_length(end - at - 1, limit)
        if len(received) > end and received[end] != _COMMA:
            last = bytes(received[end : end + 1])
            raise FramingError(f"a netstring ends with a comma, not with {last!r}")
        return end + 1, at + 1, end


@dataclass(frozen=True, slots=True)
class FixedSize(Framing):
    """Each message has `size` bytes. No other limit counts."""

    size: int

    def __post_init__(self) -> None:
        check_bytes("size", self.size)

    def encode(self, data: ReadableBuffer) -> bytes:
        """`data` as it is. ValueError if it has another size."""
        message = _message(data)
        if len(message) != self.size:
            raise ValueError(f"a message has {self.size} bytes, not {len(message)}")
        return message

    def measure(self, received: ReceiveBuffer, limit: int | None) -> tuple[int, int, int]:
        """As for any framing; any bytes are valid."""
        return self.size, 0, self.size


@dataclass(frozen=True, slots=True)
class Delimiter(Framing):
    """After each message `delimiter`, any bytes, which no message contains."""

    delimiter: bytes
    max_message: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.delimiter, bytes):
            raise TypeError(f"the delimiter must be bytes, not {self.delimiter!r}")
        if not self.delimiter:
            raise ValueError("the delimiter must not be empty")
        _check_limit(self.max_message)

    def encode(self, data: ReadableBuffer) -> bytes:
        """`data`, then the delimiter. ValueError if the message would end before that."""
        message = _message(data)
        frame = message + self.delimiter
        # Not only within: b"-" before b"--" makes b"---", which would be an empty message.
        if (at := frame.find(self.delimiter)) != len(message):
            raise ValueError(f"the message contains its delimiter {self.delimiter!r} at {at}")
        return frame

    def measure(self, received: ReceiveBuffer, limit: int | None) -> tuple[int, int, int]:
        """As for any framing; the size is not known before the delimiter has come."""
        size = received.search(self.delimiter)
        least = size if size >= 0 else len(received)
        if limit is not None and least > limit + len(self.delimiter) - (size < 0):
            raise MessageTooLongError(limit)
        return (size, 0, size - len(self.delimiter)) if size >= 0 else (0, 0, 0)


def _check_limit(max_message: int | None) -> None:
    if max_message is not None:
        check_bytes("max_message", max_message)


def _check_length(length: int, limit: int | None) -> None:
    if limit is not None and length > limit:
        raise MessageTooLongError(limit, length)


def _message(data: ReadableBuffer) -> bytes:
    return data if type(data) is bytes else memoryview(data).tobytes()
