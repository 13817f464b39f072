"""The ``ram`` section: blocks, and pages in runs.

Strategy.  A page is a u64 header, its offset in the block with flags in the low 12 bits, and
then its content: 4096 bytes (PAGE) or the one byte it is filled with (ZERO).  Unless CONTINUE
is set, a length byte and the block's name stand between the two.  CONTINUE refers to the last
block named in the whole stream, also across sections and checkpoints; so one RamReader lives
as long as the stream.

QEMU walks its dirty bitmap upwards, so pages of one kind come in long runs: PAGE|CONTINUE at a
stride of 4104 bytes, ZERO|CONTINUE at one of 9.  A header at a stride is a header only if all
before it were; therefore a run is as long as the flags agree, which one array comparison
tells.  A run is handed on as arrays that point into the receive buffer, and copied from there
once, into the image.

Source: ``save_page_header``, ``ram_save_setup`` and ``ram_load_precopy`` in ``migration/ram.c``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from colo.errors import LimitExceeded, StreamError, UnsupportedFeature
from colo.migration.buffer import Parser, ReceiveBuffer, name, need, u64
from colo.migration.format import CONTINUE, EOS, PAGE, PAGE_SIZE, ZERO, RamFlag

__all__ = ["Bytes", "Limits", "Offsets", "PageRun", "RamBlock", "RamReader"]

_FLAGS: Final = PAGE_SIZE - 1
_OFFSET: Final = np.uint64(0xFFFFFFFFFFFFFFFF & ~_FLAGS)
_LOW_HALF: Final = 6  # the flags are in a header's last two bytes
_STRIDE: Final = {PAGE | CONTINUE: 8 + PAGE_SIZE, ZERO | CONTINUE: 8 + 1}

#: How many headers are compared at once: at first, when a run may be short, and how much more
#: each time that it goes on.
_LOOK_FIRST: Final = 64
_LOOK_GROWTH: Final = 4

_UNSUPPORTED: Final = {
    RamFlag.XBZRLE: ("XBZRLE pages", "switch the capability xbzrle off"),
    RamFlag.COMPRESS_PAGE: ("compressed pages", "switch the capability compress off"),
    RamFlag.HOOK: ("RDMA", "migrate to a unix: or tcp: address"),
    RamFlag.MULTIFD_FLUSH: ("multifd", "switch the capability multifd off"),
}

Bytes: TypeAlias = NDArray[np.uint8]
Offsets: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Limits:
    """What a primary may send at most; sizes in bytes.  Never taken from the peer's word."""

    ram_bytes: int
    blocks: int = 256
    device_bytes: int = 64 << 20
    description_bytes: int = 16 << 20


@dataclass(frozen=True)
class RamBlock:
    """A block of guest memory: ``pc.ram``, a ROM, the memory of a graphics card."""

    name: str
    length: int

    @property
    def pages(self) -> int:
        """How many pages it has."""
        return self.length // PAGE_SIZE


@dataclass(frozen=True)
class PageRun:
    """n pages of one block and one kind.

    ``offsets``: (n,) int64, in bytes from the start of the block, below its length and
    page-aligned.  ``source``: (n, 4096) uint8 where the pages came in full, (n, 1) uint8 where
    only their fill byte came; it may point into a receive buffer.  With ``rows``, (n,) int64, the
    pages are these rows of a larger ``source``.
    """

    block: RamBlock
    offsets: Offsets
    source: Bytes
    rows: Offsets | None = None

    @property
    def content(self) -> Bytes:
        """The pages, of the shape (n, 4096) or (n, 1); a copy where ``rows`` are given."""
        return self.source if self.rows is None else self.source[self.rows]

    @property
    def is_fill(self) -> bool:
        """Whether each page is one byte repeated: a ZERO page."""
        return bool(self.source.shape[1] == 1)

    def cut(self, start: int, end: int) -> PageRun:
        """Those of its pages that come from ``start`` on, and before ``end``."""
        part = slice(start, end)
        if self.rows is None:
            return PageRun(self.block, self.offsets[part], self.source[part])
        return PageRun(self.block, self.offsets[part], self.source, self.rows[part])

    def __len__(self) -> int:
        return len(self.offsets)


class RamReader:
    """Reads the ram sections of one stream; see the module's text."""

    def __init__(self, buffer: ReceiveBuffer, limits: Limits) -> None:
        self._buffer = buffer
        self._limits = limits
        self._current: RamBlock | None = None
        #: How many bytes up to the buffer's start the run is that is handed on now, where each of
        #: its pages continues a block; else 0.
        self.run_bytes = 0
        self.blocks: dict[str, RamBlock] = {}

    def read_blocks(self) -> Parser[None]:
        """Read the section's start: the total size, the block list, the end mark."""
        total = yield from self._header(RamFlag.MEM_SIZE)
        if total > self._limits.ram_bytes:
            raise LimitExceeded("guest memory, all blocks", total, self._limits.ram_bytes)
        while total:
            block = RamBlock((yield from name(self._buffer)), (yield from u64(self._buffer)))
            if not block.length or block.length % PAGE_SIZE or block.length > total:
                self._fail(f"block {block.name} with {block.length} bytes, {total} are left")
            if block.name in self.blocks:
                self._fail(f"block {block.name} is listed twice")
            if len(self.blocks) == self._limits.blocks:
                raise LimitExceeded(
                    "memory blocks", len(self.blocks) + 1, self._limits.blocks, "blocks"
                )
            self.blocks[block.name] = block
            total -= block.length
        yield from self._header(RamFlag.EOS)

    def read_pages(self, on_pages: Callable[[PageRun], None]) -> Parser[None]:
        """Read pages up to the end mark; each run goes to ``on_pages`` as soon as it is here."""
        buffer = self._buffer
        while True:
            yield from need(buffer, 8)
            header = int.from_bytes(buffer.data[buffer.start : buffer.start + 8], "big")
            flags = header & _FLAGS
            if flags in _STRIDE:
                if self._current is None:
                    self._fail("a page that continues a block before any was named")
                yield from need(buffer, _STRIDE[flags])
                self._take_run(flags, on_pages)
            elif flags in (PAGE, ZERO):
                yield from self._first_page(header, flags, on_pages)
            elif flags == EOS:
                buffer.start += 8
                return
            else:
                self._refuse(flags)

    def _first_page(
        self, header: int, kind: int, on_pages: Callable[[PageRun], None]
    ) -> Parser[None]:
        """Read a page that names its block."""
        buffer, size = self._buffer, PAGE_SIZE if kind == PAGE else 1
        buffer.start += 8
        block_name = yield from name(buffer)
        block = self.blocks.get(block_name)
        if block is None:
            self._fail(f"a page of block {block_name!r}, which was never listed")
        self._current = block
        yield from need(buffer, size)
        content = np.frombuffer(buffer.take(size), np.uint8).reshape(1, size)
        self.run_bytes = 0
        on_pages(self._run(np.array([header & ~_FLAGS], np.uint64), content))

    def _take_run(self, flags: int, on_pages: Callable[[PageRun], None]) -> None:
        """Hand on the run of pages that begins here, as far as it has arrived."""
        buffer = self._buffer
        stride = _STRIDE[flags]
        count = self._count_run(flags, stride)
        headers = np.ndarray((count,), ">u8", buffer.data, buffer.start, (stride,))
        content = np.ndarray(
            (count, stride - 8), np.uint8, buffer.data, buffer.start + 8, (stride, 1)
        )
        run = self._run(headers & _OFFSET, content)
        self.run_bytes = count * stride
        buffer.start += self.run_bytes
        on_pages(run)

    def _count_run(self, flags: int, stride: int) -> int:
        """How many pages from here on have these flags; the first one has."""
        buffer = self._buffer
        arrived = buffer.available // stride
        count, look = 1, _LOOK_FIRST
        while count < arrived:
            most = min(arrived - count, look)
            at = buffer.start + count * stride + _LOW_HALF
            lows = np.ndarray((most,), ">u2", buffer.data, at, (stride,))
            others = (lows & _FLAGS) != flags
            first = int(others.argmax())
            if others[first]:
                return count + first
            count += most
            look *= _LOOK_GROWTH
        return count

    def _run(self, offsets: NDArray[np.uint64], content: Bytes) -> PageRun:
        block = self._current
        assert block is not None
        highest = int(offsets.max())
        if highest >= block.length:
            self._fail(f"a page at {highest:#x} in block {block.name} of {block.length} bytes")
        return PageRun(block, offsets.astype(np.int64), content)

    def _header(self, flag: RamFlag) -> Parser[int]:
        """Read a header that has to have just this flag; return its number."""
        header = yield from u64(self._buffer)
        if header & _FLAGS != flag:
            self._refuse(header & _FLAGS)
        return header & ~_FLAGS

    def _refuse(self, flags: int) -> NoReturn:
        for flag, (feature, advice) in _UNSUPPORTED.items():
            if flags & flag:
                raise UnsupportedFeature(feature, advice)
        self._fail(f"flags {flags:#x} in the ram section")

    def _fail(self, text: str) -> NoReturn:
        raise StreamError(text, self._buffer.position)
