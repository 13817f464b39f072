"""Two hosts without a network: what host A's encoder says, host B's decoder hears.

Host B's images are written when a checkpoint is whole, and not before, as the store's are.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np

from colo.migration.buffer import ReceiveBuffer
from colo.migration.format import PAGE_SIZE
from colo.migration.ram import Bytes, Offsets, PageRun, RamBlock
from colo.migration.writer import RamWriter
from colo.wire.choice import Choice, Way
from colo.wire.decoder import Decoder
from colo.wire.encoder import Encoder, Piece
from colo.wire.frames import RECORD_SIZE
from colo.wire.sent import SentPages

BLOCKS = (RamBlock("pc.ram", 16 * PAGE_SIZE), RamBlock("vga.vram", 8 * PAGE_SIZE))
#: A rate at which everything pays.
SLOW = 1e6
#: More memory than any test's checkpoint takes.
ROOM = 16 << 20


class Ticks:
    """A clock that goes on by a microsecond whenever it is read."""

    def __init__(self) -> None:
        self.read = 0

    def __call__(self) -> float:
        self.read += 1
        return self.read * 1e-6


class Always(Choice):
    """One way, wherever it can be used."""

    def __init__(self, way: Way) -> None:
        super().__init__(tuple(Way))
        self.way = way

    def may_pay(self, rate: float | None) -> bool:
        return True

    def next(self, rate: float | None, usable: Collection[Way]) -> Way:
        return self.way if self.way in usable else Way.PLAIN


class Turns(Always):
    """Each of these ways in its turn."""

    def __init__(self, ways: Iterable[Way]) -> None:
        super().__init__(Way.PLAIN)
        self.turns = itertools.cycle(ways)

    def next(self, rate: float | None, usable: Collection[Way]) -> Way:
        self.way = next(self.turns)
        return super().next(rate, usable)


class HostB:
    """The decoder, the buffer behind it, and the images."""

    def __init__(self, blocks: Sequence[RamBlock] = BLOCKS, room: int = ROOM) -> None:
        self.blocks = blocks
        self.room = room
        self.images = [np.zeros((block.pages, PAGE_SIZE), np.uint8) for block in blocks]
        self.staged: list[PageRun] = []
        self.asked: list[tuple[int, list[int]]] = []
        self.connect()

    def connect(self) -> None:
        """Take a new stream in; what was not whole of the last one is gone."""
        self.staged.clear()
        self.buffer = ReceiveBuffer(bytearray(self.room))
        self.decoder = Decoder(self.buffer, self.bases)
        self.decoder.set_blocks(self.blocks)

    def bases(self, block: int, numbers: Offsets) -> Bytes:
        self.asked.append((block, numbers.tolist()))
        return self.images[block][numbers]

    def hear(self, data: bytes, cuts: Iterable[int] = ()) -> bytes:
        """Receive in pieces of these sizes, and what is left at once; return what was decoded."""
        sizes: Iterator[int] = iter(cuts)
        at = 0
        while at < len(data):
            window = self.decoder.writable(max(1, next(sizes, len(data))))
            count = min(len(window), len(data) - at)
            assert count
            window[:count] = data[at : at + count]
            self.decoder.received(count)
            at += count
        decoded = bytes(self.buffer.take(self.buffer.available))
        self.buffer.rewind()
        return decoded

    def commit(self) -> None:
        """The checkpoint is whole."""
        names = [block.name for block in self.blocks]
        for run in self.staged:
            for offset, content in zip(run.offsets.tolist(), run.content, strict=True):
                self.images[names.index(run.block.name)][offset // PAGE_SIZE] = content
        self.staged.clear()


class Pair:
    """Both, for a test that looks at one thing; each call sends, and sees that it is the same."""

    def __init__(
        self,
        way: Way | Choice | None = Way.DIFFERENCE,
        slots: int = 64,
        compress: bool = True,
        blocks: Sequence[RamBlock] = BLOCKS,
    ) -> None:
        self.clock = Ticks()
        self.sent = SentPages(slots) if slots else None
        self.encoder = Encoder(self.sent, compress, self.clock)
        self.encoder.set_blocks(blocks)
        self.encoder.rate = SLOW
        self.b = HostB(blocks)
        self.cuts: Iterable[int] = ()
        self.wire = b""
        if way is not None:
            choice = Always(way) if isinstance(way, Way) else way
            self.encoder.choices = dict.fromkeys(self.encoder.choices, choice)

    def plain(self, data: bytes) -> int:
        return self._pass(self.encoder.plain(data), data)

    def devices(self, data: bytes) -> int:
        return self._pass(self.encoder.devices(data), data)

    def pages(self, run: PageRun) -> int:
        """Full pages that continue their block."""
        data = bytearray(stream(run))
        there = np.frombuffer(data, np.uint8).reshape(-1, RECORD_SIZE)[:, 8:]
        given = PageRun(run.block, run.offsets, there)
        wire = b"".join(self.encoder.pages(given, memoryview(data)))
        expected = bytes(data)
        data[:] = bytes(len(data))  # the memory is used again
        size = self._pass([wire], expected)
        self.b.staged.append(run)
        return size

    def others(self, run: PageRun) -> int:
        """Pages that are no such run: of one byte, or naming their block."""
        data = RamWriter().pages(run)
        self.encoder.learn(run)
        size = self._pass(self.encoder.plain(data), data)
        self.b.staged.append(run)
        return size

    def checkpoint(self) -> None:
        """What was sent is whole on host B, and the next one begins."""
        self.b.commit()
        self.encoder.begin_checkpoint()

    def lose(self) -> None:
        """The connection is lost, and there is another one."""
        self.b.connect()
        self.encoder.reset()
        self.encoder.set_blocks(self.b.blocks)

    def _pass(self, pieces: Sequence[Piece], expected: bytes) -> int:
        self.wire = b"".join(pieces)
        assert self.b.hear(self.wire, self.cuts) == expected
        self.b.decoder.end()
        return len(self.wire)


def stream(run: PageRun) -> bytes:
    """Pages as they are in a stream that has named their block."""
    writer = RamWriter()
    writer.heads(run.cut(0, 1))
    return writer.pages(run)


def pages(numbers: Iterable[int], seeds: Iterable[int], block: RamBlock = BLOCKS[0]) -> PageRun:
    """A run of pages; see ``content``."""
    offsets = np.fromiter((number * PAGE_SIZE for number in numbers), np.int64)
    return PageRun(block, offsets, np.stack([content(seed) for seed in seeds]))


def content(seed: int) -> Bytes:
    """A page; those of seeds that are alike in tens differ in a few words only, 0 has zeroes."""
    page = np.random.default_rng(seed // 10).integers(0, 256, PAGE_SIZE, np.uint8)
    if seed < 10:
        page[:] = 0
    page.view(np.uint64)[:: 64 + seed % 7] ^= np.uint64(seed % 10)
    return page
