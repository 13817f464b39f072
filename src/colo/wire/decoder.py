"""Host B's end of the wire: frames, in pieces of any size, as the stream that host A was given.

Strategy.  What comes is received into memory of our own, up to the end of a frame, and decoded from
there into the stream's buffer.  A long body that is the stream's bytes is received into that
buffer at once, and not copied; its bytes can be used before the last one is here.

Rules.

- Nothing that a frame says is believed beyond its limits: a peer makes us hold one frame at most.
- A frame that is coded is handed on whole, after its crc fits, or not at all.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Final, NoReturn, Protocol

import numpy as np
import zstandard

from colo.errors import LimitExceeded, ShortRead, StreamError
from colo.migration.format import PAGE_SIZE
from colo.migration.ram import Bytes, Offsets, RamBlock
from colo.wire.difference import Misshapen, apply_to_bytes, apply_to_pages, heads_of
from colo.wire.frames import (
    FRAME_HEADER_SIZE,
    MAX_DECODED,
    PAGE_FLAGS,
    RECORD_SIZE,
    Flag,
    FrameHeader,
    Kind,
    parse,
)

__all__ = ["Bases", "Decoder", "Sink"]

#: Memory of so many bytes is kept; what a larger frame takes is given back.
_KEEP: Final = 256 << 10


class Sink(Protocol):
    """Where the stream goes: a ReceiveBuffer."""

    def writable(self, at_most: int) -> memoryview: ...
    def wrote(self, count: int) -> None: ...


#: What host B's image has, at the last whole checkpoint, of pages of a block given by its index:
#: (n, 4096) for their numbers, (n,) int64.
Bases = Callable[[int, Offsets], Bytes]


class Decoder:
    """Decodes one stream into ``sink``, in its order."""

    def __init__(self, sink: Sink, bases: Bases) -> None:
        self._sink = sink
        self._bases = bases
        self._blocks: Sequence[RamBlock] = ()
        self._zstd = zstandard.ZstdDecompressor(max_window_size=MAX_DECODED)
        self._memory = bytearray(_KEEP)
        self._start = self._end = 0  # what of it is received, and not yet decoded
        self._raw_left = 0  # what of a PLAIN frame that is not coded has not come yet
        self._raw_got = 0
        self._direct = False
        self._position = 0  # of self._start on the wire
        self._devices: bytes | None = None

    def set_blocks(self, blocks: Sequence[RamBlock]) -> None:
        """The stream's list of memory blocks; a difference of pages before it is an error."""
        self._blocks = tuple(blocks)

    def writable(self, at_most: int) -> memoryview:
        """Memory to receive into, not empty; for one ``received``.  Raises LimitExceeded."""
        self._direct = self._raw_left > 0 and self._start == self._end
        if self._direct:
            return self._sink.writable(min(at_most, self._raw_left))
        return memoryview(self._memory)[self._end : self._end + at_most]

    def received(self, count: int) -> None:
        """So many bytes have been received into ``writable``: decode what is whole.

        Raises StreamError, and LimitExceeded: the connection is of no more use.
        """
        if self._direct:
            self._sink.wrote(count)
            self._passed(count)
            return
        self._end += count
        while self._start < self._end and self._step():
            pass
        self._make_room()

    def end(self) -> None:
        """The connection has ended.  Raises ShortRead within a frame."""
        got = self._end - self._start
        if self._raw_left:
            got = FRAME_HEADER_SIZE + self._raw_got
        if got:
            raise ShortRead("a frame between the hosts", got)

    # -- steps ----------------------------------------------------------------------------

    def _step(self) -> bool:
        """Go on by a frame, or a part of a raw one; False where more has to come first."""
        if self._raw_left:
            self._pass_on()
            return True
        header = self._header()
        if header is None:
            return False
        if header.is_raw:
            self._start += FRAME_HEADER_SIZE
            self._position += FRAME_HEADER_SIZE
            self._raw_left, self._raw_got = header.size, 0
            return True
        size = FRAME_HEADER_SIZE + header.size
        if self._end - self._start < size:
            return False
        whole = memoryview(self._memory)[self._start : self._start + size]
        self._decode(header, whole[FRAME_HEADER_SIZE:])
        self._start += size
        self._position += size
        return True

    def _header(self) -> FrameHeader | None:
        if self._end - self._start < FRAME_HEADER_SIZE:
            return None
        return parse(self._memory[self._start : self._start + FRAME_HEADER_SIZE], self._position)

    def _pass_on(self) -> None:
        """Copy to the sink what of a raw frame came together with what was before it."""
        count = min(self._raw_left, self._end - self._start)
        target = self._sink.writable(count)
        count = len(target)
        target[:] = memoryview(self._memory)[self._start : self._start + count]
        self._sink.wrote(count)
        self._start += count
        self._passed(count)

    def _passed(self, count: int) -> None:
        self._raw_left -= count
        self._raw_got += count
        self._position += count

    def _make_room(self) -> None:
        """Have the memory hold what is to come of a frame, and no more than that needs."""
        header = None if self._raw_left else self._header()
        size = max(_KEEP, 0 if header is None else FRAME_HEADER_SIZE + header.size)
        if len(self._memory) == size and not self._start:
            return
        left = self._memory[self._start : self._end]
        if len(self._memory) != size:
            self._memory = bytearray(size)
        self._memory[: len(left)] = left
        self._start, self._end = 0, len(left)

    # -- frames ---------------------------------------------------------------------------

    def _decode(self, header: FrameHeader, body: memoryview) -> None:
        """Decode a whole frame into the sink."""
        target = self._sink.writable(header.decoded)
        if len(target) < header.decoded:
            raise LimitExceeded("what frames decode to", header.decoded, len(target))
        data: bytes | memoryview = body
        if Flag.COMPRESSED in header.flags:
            data = self._unpack(header, body)
        try:
            if header.kind is Kind.PAGES:
                self._pages(header, np.frombuffer(data, np.uint8), target)
            elif header.kind is Kind.DEVICES and Flag.WHOLE not in header.flags:
                target[:] = self._state(header, np.frombuffer(data, np.uint8))
            elif len(data) != header.decoded:
                raise Misshapen(f"{len(data)} bytes where {header.decoded} belong")
            else:
                target[:] = data
        except Misshapen as error:
            self._fail(header, str(error))
        if zlib.crc32(target) != header.crc:
            self._fail(header, "what it decodes to is not what was sent: its crc differs")
        if header.kind is Kind.DEVICES:
            self._devices = bytes(target)
        self._sink.wrote(header.decoded)

    def _unpack(self, header: FrameHeader, body: memoryview) -> bytes:
        """What is compressed in a body."""
        try:
            size = zstandard.frame_content_size(body)
            if not 0 < size <= header.decoded:
                self._fail(header, f"{size} compressed bytes for {header.decoded}")
            return self._zstd.decompress(body, allow_extra_data=False)
        except zstandard.ZstdError as error:
            self._fail(header, f"it cannot be decompressed: {error}")

    def _pages(self, header: FrameHeader, body: Bytes, target: memoryview) -> None:
        """A run of pages, from the image and what differs from it."""
        if header.block >= len(self._blocks):
            self._fail(header, f"block {header.block}, of {len(self._blocks)}")
        block = self._blocks[header.block]
        count = header.decoded // RECORD_SIZE
        heads = heads_of(body, count).view(">u8").reshape(count)
        if (heads % PAGE_SIZE != PAGE_FLAGS).any():
            self._fail(header, "a page that is not one which continues a block")
        numbers = heads // PAGE_SIZE
        highest = int(numbers.max())
        if highest >= block.pages:
            self._fail(header, f"page {highest} in block {block.name} of {block.pages} pages")
        old = self._bases(header.block, numbers.astype(np.int64))
        apply_to_pages(body, old, np.frombuffer(target, np.uint8).reshape(count, RECORD_SIZE))

    def _state(self, header: FrameHeader, body: Bytes) -> bytes:
        """A device state, from the last one and what differs from it."""
        if self._devices is None or len(self._devices) != header.decoded:
            has = "none" if self._devices is None else f"one of {len(self._devices)} bytes"
            self._fail(header, f"it differs from a state of {header.decoded} bytes, there is {has}")
        return apply_to_bytes(body, self._devices)

    def _fail(self, header: FrameHeader, text: str) -> NoReturn:
        raise StreamError(f"a frame {header.kind.name} between the hosts: {text}", self._position)
