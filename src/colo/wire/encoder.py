"""Host A's end of the wire: the stream, piece by piece, as frames.

Strategy.  Whoever reads the stream says what its bytes are: a run of pages, a checkpoint's device
state, or anything else.  For each of these ``choice`` says how they go, at the link's rate; pages
go in batches that stay in the processor's cache.  All that comes out, in the order in which it was
given, decodes to the stream's bytes.

Rules.

- *SentPages learns of every page that is sent*, whichever way it goes, or forgets it.
- Runs of few pages are a class of their own: for them an array operation's beginning counts.
- Within a batch, a page without a base goes in full, in the same frame.  Where few have a base, or
  a page comes twice, differences are not used.
- Where no way can pay, nothing is measured, and the clock is not read.

The pieces may be views of what was given: they have to be sent before that memory is used again.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, TypeAlias

import numpy as np
import zstandard

from colo.migration.format import PAGE_SIZE
from colo.migration.ram import Offsets, PageRun, RamBlock
from colo.wire.choice import Choice, Way
from colo.wire.difference import difference_of_bytes, difference_of_pages, records
from colo.wire.frames import MAX_DECODED, RECORD_SIZE, Flag, FrameHeader, Kind
from colo.wire.sent import SentPages

__all__ = ["BATCH_PAGES", "ByWay", "Data", "Encoder", "Piece", "WireFigures"]

Piece: TypeAlias = bytes | memoryview

#: So many pages are coded at a time.
BATCH_PAGES: Final = 256
#: A run of fewer pages is a short one.
_FEW: Final = 16
#: A batch in which fewer than one page in so many has a base has no use for differences.
_KNOWN_SHARE: Final = 4
#: Fewer bytes than this are sent as they are.
_WORTH_BYTES: Final = 1024
#: zstd's level 1: quicker ones pay from about the same rate down (measured), and leave more.
_LEVEL: Final = 1


class Data(Enum):
    """The classes of data."""

    PLAIN = "plain"
    FEW_PAGES = "few pages"
    PAGES = "pages"
    DEVICES = "devices"


@dataclass
class ByWay:
    """What has gone one way: bytes of the stream, bytes on the wire, seconds of work."""

    stream_bytes: int = 0
    wire_bytes: int = 0
    work_s: float = 0.0


@dataclass
class WireFigures:
    """What an encoder has done since it was made, by the name of the way."""

    by_way: dict[str, ByWay] = field(default_factory=lambda: {way.value: ByWay() for way in Way})

    @property
    def total(self) -> ByWay:
        """All ways together."""
        parts = self.by_way.values()
        return ByWay(
            sum(each.stream_bytes for each in parts),
            sum(each.wire_bytes for each in parts),
            sum(each.work_s for each in parts),
        )


class Encoder:
    """Codes one stream after the other.

    ``sent``: the memory for differences of pages, else there are none; ``compress``: whether zstd
    may be used; ``clock`` gives seconds and never goes back.  ``rate``, which its owner sets, is
    the link's, in bytes a second, or None: not known, or as fast as memory.
    """

    def __init__(self, sent: SentPages | None, compress: bool, clock: Callable[[], float]) -> None:
        self.rate: float | None = None
        self.figures = WireFigures()
        self._sent = sent
        self._clock = clock
        self._zstd = zstandard.ZstdCompressor(_LEVEL, write_checksum=False) if compress else None
        alone = {Way.PLAIN} | ({Way.ZSTD} if compress else set())
        also = alone | {Way.DIFFERENCE} | ({Way.BOTH} if compress else set())
        self.choices = {
            Data.PLAIN: Choice(alone),
            Data.FEW_PAGES: Choice(also if sent is not None else alone),
            Data.PAGES: Choice(also if sent is not None else alone),
            Data.DEVICES: Choice(also),
        }
        self._alone: Final = frozenset(alone)
        self._also: Final = frozenset(also)
        self._blocks: dict[str, int] = {}
        self._devices: bytes | None = None  # what host B has of the last DEVICES frame

    # -- the stream's course --------------------------------------------------------------

    def reset(self) -> None:
        """Another stream begins, to a host of which nothing is known.

        What the ways cost is kept, and so are the figures.
        """
        self.set_blocks(())
        self._devices = None

    def set_blocks(self, blocks: Sequence[RamBlock]) -> None:
        """The stream's list of memory blocks; before it is known, pages go without differences."""
        self._blocks = {block.name: index for index, block in enumerate(blocks)}
        if self._sent is not None:
            self._sent.set_blocks(blocks)

    def begin_checkpoint(self) -> None:
        """The next checkpoint begins: host B has said that it has all that was sent, whole."""
        if self._sent is not None:
            self._sent.begin_checkpoint()

    # -- what is sent ---------------------------------------------------------------------

    def plain(self, data: bytes | memoryview) -> list[Piece]:
        """Any bytes of the stream."""
        if len(data) < _WORTH_BYTES or not self.choices[Data.PLAIN].may_pay(self.rate):
            return self._as_they_are(data)
        pieces: list[Piece] = []
        for part in _cut(data, BATCH_PAGES * RECORD_SIZE):
            pieces += self._coded(Data.PLAIN, part)
        return pieces

    def pages(self, run: PageRun, data: memoryview) -> list[Piece]:
        """A run of full pages that continue their block; ``data`` is all of it in the stream."""
        assert len(data) == len(run) * RECORD_SIZE and not run.is_fill
        kind = Data.FEW_PAGES if len(run) < _FEW else Data.PAGES
        if not self.choices[kind].may_pay(self.rate):
            self.learn(run)
            return self._as_they_are(data)
        pieces: list[Piece] = []
        for start in range(0, len(run), BATCH_PAGES):
            end = min(start + BATCH_PAGES, len(run))
            batch = data[start * RECORD_SIZE : end * RECORD_SIZE]
            pieces += self._batch(kind, run.cut(start, end), batch)
        return pieces

    def learn(self, run: PageRun) -> None:
        """Pages that are sent by ``plain``: one that names its block, and those of one byte.

        Those of one byte are forgotten, and so are all where no way can pay at the link's rate.
        """
        index = self._blocks.get(run.block.name)
        if self._sent is None or index is None or not len(run):
            return
        numbers = run.offsets // PAGE_SIZE
        classes = (self.choices[Data.FEW_PAGES], self.choices[Data.PAGES])
        if run.is_fill or not any(each.may_pay(self.rate) for each in classes):
            self._sent.forget(index, numbers)
            return
        for start in range(0, len(run), BATCH_PAGES):
            end = start + BATCH_PAGES
            self._sent.learn(index, numbers[start:end], run.cut(start, end).content)

    def devices(self, data: bytes | memoryview) -> list[Piece]:
        """A checkpoint's device state, whole."""
        if not self.choices[Data.DEVICES].may_pay(self.rate) or not 0 < len(data) <= MAX_DECODED:
            return self._as_they_are(data)
        old, new = self._devices, bytes(data)
        began = self._clock()
        comparable = old is not None and len(old) == len(new)
        way = self.choices[Data.DEVICES].next(self.rate, self._also if comparable else self._alone)
        body, flags = new, Flag.WHOLE
        if way.differs and old is not None:
            difference = difference_of_bytes(new, old)
            if len(difference) < len(new):
                body, flags = difference, Flag(0)
        pieces = self._frame(Kind.DEVICES, flags, 0, [body], memoryview(new), way)
        self._devices = new
        self._note(Data.DEVICES, way, self._clock() - began, len(new), pieces)
        return pieces

    # -- frames ---------------------------------------------------------------------------

    def _batch(self, kind: Data, run: PageRun, data: memoryview) -> list[Piece]:
        """The frame of a few pages, all of one block."""
        index = self._blocks.get(run.block.name)
        if self._sent is None or index is None:
            return self._coded(kind, data)
        numbers = run.offsets // PAGE_SIZE
        began = self._clock()
        known = self._sent.known(index, numbers)
        of_use = int(np.count_nonzero(known)) * _KNOWN_SHARE >= len(run) and _rises(numbers)
        way = self.choices[kind].next(self.rate, self._also if of_use else self._alone)
        if not way.differs:
            pieces = self._coded(kind, data, way)
            learning = self._clock()
            self._sent.learn(index, numbers, run.content)
            self.figures.by_way[way.value].work_s += self._clock() - learning
            return pieces
        old = self._sent.content(index, numbers)
        body = difference_of_pages(records(data), old, known)
        if body is None:
            pieces = self._frame(Kind.PLAIN, Flag(0), 0, [data], data, way)
        else:
            pieces = self._frame(Kind.PAGES, Flag(0), index, body, data, way)
        self._sent.learn(index, numbers, run.content)
        self._note(kind, way, self._clock() - began, len(data), pieces)
        return pieces

    def _coded(self, kind: Data, data: memoryview, way: Way | None = None) -> list[Piece]:
        """A PLAIN frame, compressed if that pays."""
        if way is None:
            way = self.choices[kind].next(self.rate, self._alone)
        began = self._clock()
        pieces = self._frame(Kind.PLAIN, Flag(0), 0, [data], data, way)
        self._note(kind, way, self._clock() - began, len(data), pieces)
        return pieces

    def _as_they_are(self, data: bytes | memoryview) -> list[Piece]:
        """PLAIN frames of which nothing is computed, and the clock is not read."""
        pieces: list[Piece] = []
        for part in _cut(data, MAX_DECODED):
            pieces += _raw(part)
        figures = self.figures.by_way[Way.PLAIN.value]
        figures.stream_bytes += len(data)
        figures.wire_bytes += sum(map(len, pieces))
        return pieces

    def _frame(
        self,
        kind: Kind,
        flags: Flag,
        block: int,
        body: Sequence[Piece],
        decoded: memoryview,
        way: Way,
    ) -> list[Piece]:
        size = sum(map(len, body))
        if way.compresses and self._zstd is not None:
            packed = self._zstd.compress(body[0] if len(body) == 1 else b"".join(body))
            if len(packed) < size:
                body, size, flags = [packed], len(packed), flags | Flag.COMPRESSED
        if kind is Kind.PLAIN and not flags:
            return _raw(decoded)
        crc = zlib.crc32(decoded)
        head = FrameHeader(kind, flags, block, size, len(decoded), crc).pack()
        return [head, *(piece for piece in body if len(piece))]

    def _note(self, kind: Data, way: Way, work_s: float, stream: int, pieces: list[Piece]) -> None:
        wire = sum(map(len, pieces))
        self.choices[kind].note(way, work_s, stream, wire)
        figures = self.figures.by_way[way.value]
        figures.stream_bytes += stream
        figures.wire_bytes += wire
        figures.work_s += work_s


def _raw(data: memoryview) -> list[Piece]:
    return [FrameHeader(Kind.PLAIN, Flag(0), 0, len(data), len(data), 0).pack(), data]


def _cut(data: bytes | memoryview, size: int) -> list[memoryview]:
    view = memoryview(data).cast("B")
    return [view[start : start + size] for start in range(0, len(view), size)]


def _rises(numbers: Offsets) -> bool:
    return bool((np.diff(numbers) > 0).all())
