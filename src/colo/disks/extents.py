"""What an epoch wrote to a disk, as a map from ranges to where their bytes lie.  Pure.

The newest write wins.  An extent is a range with its source: bytes in memory, a record of the
journal, or none, which means zeroes.  Extents never overlap.  Neighbours whose bytes lie side by
side in one source are one extent, so zeroes grow together.

The extents lie in order, in chunks of a few hundred: a write looks for its chunk, then for its
place in there.  So a random write costs the same few microseconds whether there are a thousand
extents or a hundred thousand, and zeroing a whole disk is one extent.

A source is held as long as any part of it counts: ``memory_bytes`` is what is really held.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import Final, NamedTuple

__all__ = ["Extent", "Extents", "Source", "folded"]

#: A chunk that has more extents than this is cut into two.
_CHUNK_MAX: Final = 512
#: What Python takes for an extent and its source, roughly, besides the bytes themselves.
_EXTENT_BYTES: Final = 320

_start = itemgetter(0)


@dataclass(frozen=True, eq=False, slots=True)
class Source:
    """``size`` bytes: ``data``, or the journal's record at ``position`` with checksum ``crc``."""

    size: int
    data: bytes | None = None
    position: int = -1
    crc: int = 0


class Extent(NamedTuple):
    """Bytes ``start`` to ``end`` of a disk: those of ``source`` from ``at`` on; without, zeroes."""

    start: int
    end: int
    source: Source | None
    at: int


class Extents:
    """The map.  It is iterated in the order of the disk."""

    def __init__(self) -> None:
        self._chunks: list[list[Extent]] = []
        self._firsts: list[int] = []  # where each chunk begins
        self._uses: dict[Source, int] = {}
        self._count = 0
        self._data_bytes = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Extent]:
        for chunk in self._chunks:
            yield from chunk

    @property
    def sources(self) -> Iterable[Source]:
        """All the sources that extents refer to, each once."""
        return self._uses.keys()

    @property
    def data_bytes(self) -> int:
        """The bytes of the sources that lie in memory, whole as they are held."""
        return self._data_bytes

    @property
    def memory_bytes(self) -> int:
        """About what all this takes up in memory."""
        return self._data_bytes + self._count * _EXTENT_BYTES

    def put(self, start: int, end: int, source: Source | None, at: int = 0) -> None:
        """Write: ``start`` to ``end`` are now what ``source`` has from ``at`` on."""
        assert 0 <= start < end
        if not self._chunks:
            self._chunks.append([])
            self._firsts.append(start)
        first = max(bisect_right(self._firsts, start) - 1, 0)
        last = max(bisect_right(self._firsts, end) - 1, first)
        chunk = self._chunks[first]
        low = bisect_left(chunk, start, key=_start)
        if low and chunk[low - 1].end >= start:
            low -= 1  # it reaches into the new one, or touches it
        high = bisect_right(self._chunks[last], end, key=_start)
        if first == last:
            old = chunk[low:high]
            new = self._with_remains(old, Extent(start, end, source, at))
            chunk[low:high] = new
        else:
            old = chunk[low:]
            for between in self._chunks[first + 1 : last]:
                old += between
            old += self._chunks[last][:high]
            new = self._with_remains(old, Extent(start, end, source, at))
            chunk[low:] = new + self._chunks[last][high:]
            del self._chunks[first + 1 : last + 1], self._firsts[first + 1 : last + 1]
        self._firsts[first] = chunk[0].start
        if len(chunk) > _CHUNK_MAX:
            half = len(chunk) // 2
            self._chunks.insert(first + 1, chunk[half:])
            self._firsts.insert(first + 1, chunk[half].start)
            del chunk[half:]
        self._count += len(new) - len(old)
        self._account(old, new)

    @staticmethod
    def _with_remains(old: list[Extent], new: Extent) -> list[Extent]:
        """The new extent with what is left of the old ones, which overlap it or touch it."""
        if not old:
            return [new]
        result = []
        left, right = old[0], old[-1]
        if left.start < new.start:
            left = left._replace(end=min(left.end, new.start))
            if _are_one(left, new):
                new = new._replace(start=left.start, at=left.at)
            else:
                result.append(left)
        result.append(new)
        if right.end > new.end:
            begin = max(right.start, new.end)
            moved = right.at + begin - right.start if right.source is not None else 0
            right = Extent(begin, right.end, right.source, moved)
            if _are_one(new, right):
                result[-1] = new._replace(end=right.end)
            else:
                result.append(right)
        return result

    def _account(self, old: list[Extent], new: list[Extent]) -> None:
        uses = self._uses
        for _, _, source, _ in new:
            if source is not None:
                count = uses.get(source, 0)
                uses[source] = count + 1
                if not count and source.data is not None:
                    self._data_bytes += source.size
        for _, _, source, _ in old:
            if source is not None:
                uses[source] -= 1
                if not uses[source]:
                    del uses[source]
                    if source.data is not None:
                        self._data_bytes -= source.size

    def overlaps(self, start: int, end: int) -> Iterator[Extent]:
        """The extents within ``start`` to ``end``, cut to it."""
        chunk = max(bisect_right(self._firsts, start) - 1, 0)
        for number in range(chunk, len(self._chunks)):
            extents = self._chunks[number]
            low = max(bisect_right(extents, start, key=_start) - 1, 0) if number == chunk else 0
            for index in range(low, len(extents)):
                extent = extents[index]
                if extent.start >= end:
                    return
                if extent.end > start < end:
                    yield _cut(extent, start, end)


def _are_one(left: Extent, right: Extent) -> bool:
    """Whether the bytes of two neighbours lie side by side in one source."""
    if left.source is not right.source:
        return False
    return left.source is None or left.at + left.end - left.start == right.at


def _cut(extent: Extent, start: int, end: int) -> Extent:
    if start <= extent.start and extent.end <= end:
        return extent
    begin = max(start, extent.start)
    at = extent.at + begin - extent.start if extent.source is not None else 0
    return Extent(begin, min(end, extent.end), extent.source, at)


def folded(maps: Iterable[Extents]) -> Extents:
    """One map of several, from the oldest to the newest; they are left as they are.

    Where there is only one it is that one.
    """
    every = [each for each in maps if len(each)]
    if len(every) == 1:
        return every[0]
    result = Extents()
    for each in every:
        for start, end, source, at in each:
            result.put(start, end, source, at)
    return result
