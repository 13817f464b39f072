"""The wire between two colos: frames, each a header of 16 bytes and a body.

Big-endian::

    u8 kind · u8 flags · u16 block · u32 body size · u32 decoded size · u32 crc32

``block`` is the index of a block in the stream's list of memory blocks, and zero but for PAGES.
The crc is ``zlib.crc32`` of what the frame decodes to.  What that is::

    PLAIN     the body
    PAGES     n pages that continue a block, each a u64 header and 4096 bytes, as in the stream.
              Body: u32 n · n × the u64 header · n × 64 bytes bitmap · words.  A bit stands for one
              of the 512 words of a page; the words whose bit is set follow, those of one page
              after those of the other, and all others are as in the image of the host that
              decodes: the page's content at the last whole checkpoint.  A page whose bits are all
              set needs no image.
    DEVICES   a checkpoint's device state.  Body: bitmap · words, as above, beside the state that
              the last DEVICES frame had, which is of equal size.  A last word that is cut short
              is filled up with zeroes.

The first bit of a bitmap is the lowest of its first byte.  A word is 8 bytes, in the order in which
they lie in memory.  The flags::

    COMPRESSED   the body is a zstd frame that says its size, and has in it what is said above
    WHOLE        of DEVICES: the body is the state itself

*Limits.*  A frame decodes to 1 to MAX_DECODED bytes, and neither its body nor what is compressed
in that is larger than what it decodes to: else the bytes would have gone as they are.

*The crc finds a base that was not the other host's.*  A PLAIN body that is not compressed has
none, and zero in its place: nothing was computed, so there is nothing to check, and its bytes can
be used before the last one is here.  The connection below guards it as it guards a stream that
is not coded.  Kinds differ in two bits.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

from colo.errors import LimitExceeded, StreamError
from colo.migration.format import CONTINUE, PAGE, PAGE_SIZE

__all__ = [
    "BITMAP_SIZE",
    "COUNT_SIZE",
    "FRAME_HEADER_SIZE",
    "HEAD_SIZE",
    "MAX_DECODED",
    "PAGE_FLAGS",
    "RECORD_SIZE",
    "WIRE_MAGIC",
    "WIRE_VERSION",
    "WORD_SIZE",
    "Flag",
    "FrameHeader",
    "Kind",
    "parse",
]

#: What a channel that carries frames begins with, and which ones a colo says that it takes.
WIRE_MAGIC: Final = b"CWIR"
WIRE_VERSION: Final = 1

#: What a frame decodes to at most, in bytes.
MAX_DECODED: Final = 2 << 20

WORD_SIZE: Final = 8
#: A page's header in the stream, and what it and the page take together.
HEAD_SIZE: Final = 8
RECORD_SIZE: Final = HEAD_SIZE + PAGE_SIZE
#: The flags in that header.
PAGE_FLAGS: Final = PAGE | CONTINUE
#: The bitmap of a page, in bytes.
BITMAP_SIZE: Final = PAGE_SIZE // WORD_SIZE // 8
#: What says n.
COUNT_SIZE: Final = 4

_HEADER: Final = struct.Struct(">BBHIII")
FRAME_HEADER_SIZE: Final = _HEADER.size


class Kind(IntEnum):
    """What a frame's body is."""

    PLAIN = 1
    PAGES = 2
    DEVICES = 4


class Flag(IntFlag):
    """How it is written."""

    COMPRESSED = 1
    WHOLE = 2


_FLAGS: Final = {
    Kind.PLAIN: Flag.COMPRESSED,
    Kind.PAGES: Flag.COMPRESSED,
    Kind.DEVICES: Flag.COMPRESSED | Flag.WHOLE,
}


@dataclass(frozen=True)
class FrameHeader:
    """A frame without its body; sizes in bytes."""

    kind: Kind
    flags: Flag
    block: int
    size: int
    decoded: int
    crc: int

    @property
    def is_raw(self) -> bool:
        """Whether the body is the stream's bytes, which can be used as they come."""
        return self.kind is Kind.PLAIN and not self.flags

    def pack(self) -> bytes:
        """The header as it is on the wire."""
        return _HEADER.pack(self.kind, self.flags, self.block, self.size, self.decoded, self.crc)


def parse(data: bytes | bytearray | memoryview, position: int) -> FrameHeader:
    """Read a header; ``position`` is its place on the wire.  Raises StreamError, LimitExceeded."""
    number, flags, block, size, decoded, crc = _HEADER.unpack_from(data)
    try:
        kind = Kind(number)
    except ValueError:
        raise StreamError(
            f"between the hosts there is no frame of kind {number}", position
        ) from None
    text = None
    if flags & ~int(_FLAGS[kind]):  # an IntFlag's ~ has no bits but its own
        text = f"flags {flags:#x}"
    elif block and kind is not Kind.PAGES:
        text = f"{block} where 0 belongs"
    elif not 0 < size <= decoded:
        text = f"a body of {size} bytes for {decoded}"
    elif kind is Kind.PAGES and decoded % RECORD_SIZE:
        text = f"{decoded} bytes, no whole number of pages"
    if text is not None:
        raise StreamError(f"a frame {kind.name} with {text}", position)
    if decoded > MAX_DECODED:
        raise LimitExceeded(f"what a frame {kind.name} decodes to", decoded, MAX_DECODED)
    header = FrameHeader(kind, Flag(flags), block, size, decoded, crc)
    if header.is_raw and (size != decoded or crc):
        raise StreamError(
            f"a frame {kind.name} with a body of {size} bytes for {decoded} and crc {crc:#x}, "
            "though it is not compressed",
            position,
        )
    return header
