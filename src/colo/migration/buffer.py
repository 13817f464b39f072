"""The bytes received and not yet used up, in one piece of memory.

Bytes are received straight into the memory and parsed where they lie.  A parser is a
generator: it yields whenever it needs more bytes than there are, and is resumed when more have
arrived.  So a format reads from top to bottom, and can be cut at every byte.
"""

from __future__ import annotations

import struct
from collections.abc import Generator
from typing import TypeVar

from colo.errors import LimitExceeded, StreamError

__all__ = ["Parser", "ReceiveBuffer", "name", "need", "text", "u8", "u16", "u32", "u64"]

T = TypeVar("T")

#: A parser that results in a T.
Parser = Generator[None, None, T]

_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")


class ReceiveBuffer:
    """A window over ``memory``: ``data[start:end]`` is received and not yet used up."""

    def __init__(self, memory: bytearray | memoryview, what: str = "received data") -> None:
        self.data = memoryview(memory).cast("B")
        self.start = 0
        self.end = 0
        #: The furthest that was received to, since its owner set it back.
        self.high = 0
        self._what = what
        self._moved = 0

    @property
    def available(self) -> int:
        """How many bytes wait to be parsed."""
        return self.end - self.start

    @property
    def position(self) -> int:
        """The place of ``data[start]`` in the whole stream, in bytes from its beginning."""
        return self._moved + self.start

    def writable(self, at_most: int) -> memoryview:
        """The free memory behind the received bytes, to receive into.

        Raises LimitExceeded where there is none: the peer sent more than was agreed.
        """
        if self.end == len(self.data):
            raise LimitExceeded(self._what, self.end + 1, len(self.data))
        return self.data[self.end : self.end + at_most]

    def wrote(self, count: int) -> None:
        """Say that ``count`` bytes have been received into ``writable()``."""
        self.end += count
        self.high = max(self.high, self.end)

    def append(self, data: bytes | bytearray | memoryview) -> None:
        """Receive a copy of ``data``; for those who have it in memory already."""
        if self.end + len(data) > len(self.data):
            raise LimitExceeded(self._what, self.end + len(data), len(self.data))
        self.data[self.end : self.end + len(data)] = data
        self.wrote(len(data))

    def take(self, count: int) -> memoryview:
        """Use ``count`` available bytes up and return a view of them."""
        self.start += count
        return self.data[self.start - count : self.start]

    def rewind(self) -> None:
        """Move what is not used up to the front; views of used-up bytes become invalid."""
        if self.start:
            count = self.available
            self.data[:count] = self.data[self.start : self.end]
            self._moved += self.start
            self.start, self.end = 0, count


def need(buffer: ReceiveBuffer, count: int) -> Parser[None]:
    """Wait until ``count`` bytes are available."""
    while buffer.available < count:
        yield


def u8(buffer: ReceiveBuffer) -> Parser[int]:
    """Read one byte."""
    yield from need(buffer, 1)
    buffer.start += 1
    return buffer.data[buffer.start - 1]


def u16(buffer: ReceiveBuffer) -> Parser[int]:
    """Read a big-endian u16."""
    yield from need(buffer, 2)
    return int(_U16.unpack(buffer.take(2))[0])


def u32(buffer: ReceiveBuffer) -> Parser[int]:
    """Read a big-endian u32."""
    yield from need(buffer, 4)
    return int(_U32.unpack(buffer.take(4))[0])


def u64(buffer: ReceiveBuffer) -> Parser[int]:
    """Read a big-endian u64."""
    yield from need(buffer, 8)
    return int(_U64.unpack(buffer.take(8))[0])


def name(buffer: ReceiveBuffer) -> Parser[str]:
    """Read a length byte and a name of that length.  Raises StreamError for no printable ASCII."""
    length = yield from u8(buffer)
    yield from need(buffer, length)
    return text(buffer, length)


def text(buffer: ReceiveBuffer, length: int) -> str:
    """Take ``length`` available bytes as text.  Raises StreamError for no printable ASCII."""
    position = buffer.position
    data = bytes(buffer.take(length))
    if not data.isascii() or not data.decode().isprintable():
        raise StreamError(f"{data!r} is no name", position)
    return data.decode()
