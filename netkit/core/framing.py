"""Framings divide a stream into messages: by lengths, netstrings, fixed sizes or delimiters.

A framing encodes a message as bytes (`Framing.encode`) and finds the first message in received
bytes (`Framing.measure`). It does not receive: `Reader.messages` does. Rules:

1. A message is taken from the received bytes only when it is complete. So a read can be repeated
   after any failure, and a stopping server knows that a message has begun.
2. A size above the limit is an error as soon as the size is received, before the message is.
3. The result of a measurement depends on the bytes only, not on the pieces in which they arrived.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from .buffer import ReceiveBuffer
from .errors import FramingError, MessageTooLongError
from .kinds import check_bytes
from .reader import Reader

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_VARINT_BYTES = 10  # for 64 bits, seven in each byte; so the tenth has one bit
_NETSTRING_DIGITS = 20  # of the largest number of 64 bits
_LENGTHS = {
    (order, size): struct.Struct(sign + code).unpack_from  # reads without a copy
    for order, sign in (("big", ">"), ("little", "<"))
    for size, code in ((1, "B"), (2, "H"), (4, "I"), (8, "Q"))
}
_ZERO, _COLON, _COMMA = b"0:,"


class Framing(ABC):
    """How a stream is divided into messages. Immutable, so many connections can share one.

    `max_message` is the largest number of bytes in a message that is read. If it is None, the limit
    is `Reader.max_message`. Messages that are written have no limit.
    """

    __slots__ = ()
    max_message: int | None = None

    def __post_init__(self) -> None:
        if self.max_message is not None:
            check_bytes("max_message", self.max_message)

    @abstractmethod
    def encode(self, data: ReadableBuffer) -> bytes:
        """Return the frame of the message `data`. ValueError if the framing has no frame for it."""

    @abstractmethod
    def measure(self, received: ReceiveBuffer, limit: int | None) -> tuple[int, int, int]:
        """Return the size of the first frame in `received`, and the start and end of its message.

        A size larger than `received` says that so many bytes are needed before the next call. A
        size of 0 says that the number of bytes needed is not known. `limit` is the largest number
        of bytes in a message, None for no limit. Implementations must not change `received`.
        MessageTooLongError for a longer message, FramingError for invalid bytes.
        """

    def read(self, reader: Reader[Any]) -> bytes | None:
        """Return the next message of `reader`; see `Reader.read_message`."""
        return reader.read_message(self)


@dataclass(frozen=True, slots=True)
class LengthPrefix(Framing):
    """Each message follows its number of bytes, an unsigned integer of 1, 2, 4 or 8 bytes.

    `encode` refuses a message that is too long for such a number.
    """

    size: int = 4
    byteorder: Literal["big", "little"] = "big"
    max_message: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if type(self.size) is not int or self.size not in (1, 2, 4, 8):
            raise ValueError(f"a length prefix has 1, 2, 4 or 8 bytes, not {self.size!r}")
        if self.byteorder not in ("big", "little"):
            raise ValueError(f"byteorder must be 'big' or 'little', not {self.byteorder!r}")
        Framing.__post_init__(self)

    def encode(self, data: ReadableBuffer) -> bytes:
        message = _message(data)
        try:
            return len(message).to_bytes(self.size, self.byteorder) + message
        except OverflowError:
            most = (1 << 8 * self.size) - 1
            text = f"a length prefix of {self.size} bytes can be {most} at most, not {len(message)}"
            raise ValueError(text) from None

    def measure(self, received: ReceiveBuffer, limit: int | None) -> tuple[int, int, int]:
        header = self.size
        if len(received) < header:
            return header, 0, 0
        end = header + _LENGTHS[self.byteorder, header](received)[0]
        _check_length(end - header, limit)
        return end, header, end


@dataclass(frozen=True, slots=True)
class VarintPrefix(Framing):
    """Each message follows its number of bytes, as a varint of Protocol Buffers (LEB128).

    Each byte has seven bits of the number, the lowest bits first. Its top bit says that another
    byte follows. The number has at most 64 bits, and its shortest form only is valid.
    """

    max_message: int | None = field(default=None, kw_only=True)

    def encode(self, data: ReadableBuffer) -> bytes:
        message = _message(data)
        rest = len(message)
        prefix = bytearray()
        while rest > 0x7F:
            prefix.append(0x80 | rest & 0x7F)
            rest >>= 7
        prefix.append(rest)
        return bytes(prefix) + message

    def measure(self, received: ReceiveBuffer, limit: int | None) -> tuple[int, int, int]:
        length = 0
        for at, byte in enumerate(received[:_VARINT_BYTES]):
            if at == _VARINT_BYTES - 1 and byte > 1:
                raise FramingError("a varint of more than 64 bits")
            if not byte and at:
                shown = received.peek(at + 1)
                raise FramingError(f"a varint that is not in its shortest form: {shown!r}")
            length |= (byte & 0x7F) << 7 * at
            if byte < 0x80:
                _check_length(length, limit)
                return at + 1 + length, at + 1, at + 1 + length
        return len(received) + 1, 0, 0


@dataclass(frozen=True, slots=True)
class Netstrings(Framing):
    """Each message is a netstring, ``5:hello,``: decimal length, colon, message, comma.

    Leading zeros of the length are invalid.
    """

    max_message: int | None = field(default=None, kw_only=True)

    def encode(self, data: ReadableBuffer) -> bytes:
        message = _message(data)
        return b"%d:%b," % (len(message), message)

    def measure(self, received: ReceiveBuffer, limit: int | None) -> tuple[int, int, int]:
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
    """Each message has `size` bytes, and `encode` refuses any other. There is no other limit."""

    size: int

    def __post_init__(self) -> None:
        check_bytes("size", self.size)

    def encode(self, data: ReadableBuffer) -> bytes:
        message = _message(data)
        if len(message) != self.size:
            raise ValueError(f"a message has {self.size} bytes, not {len(message)}")
        return message

    def measure(self, received: ReceiveBuffer, limit: int | None) -> tuple[int, int, int]:
        return self.size, 0, self.size


@dataclass(frozen=True, slots=True)
class Delimiter(Framing):
    """Each message ends with `delimiter`, any bytes that the message does not contain.

    `encode` refuses a message with which the frame would contain the delimiter before its end.
    """

    delimiter: bytes
    max_message: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.delimiter, bytes):
            raise TypeError(f"the delimiter must be bytes, not {self.delimiter!r}")
        if not self.delimiter:
            raise ValueError("the delimiter must not be empty")
        Framing.__post_init__(self)

    def encode(self, data: ReadableBuffer) -> bytes:
        message = _message(data)
        frame = message + self.delimiter
        # Also where the two meet: b"-" and b"--" are b"---", which would begin an empty message.
        if (at := frame.find(self.delimiter)) != len(message):
            raise ValueError(f"the message contains its delimiter {self.delimiter!r} at {at}")
        return frame

    def measure(self, received: ReceiveBuffer, limit: int | None) -> tuple[int, int, int]:
        size = received.search(self.delimiter)
        least = size if size >= 0 else len(received)
        if limit is not None and least > limit + len(self.delimiter) - (size < 0):
            raise MessageTooLongError(limit)
        return (size, 0, size - len(self.delimiter)) if size >= 0 else (0, 0, 0)


def _check_length(length: int, limit: int | None) -> None:
    if limit is not None and length > limit:
        raise MessageTooLongError(limit, length)


def _message(data: ReadableBuffer) -> bytes:
    return data if type(data) is bytes else memoryview(data).tobytes()
