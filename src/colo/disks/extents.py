"""What an epoch wrote to a disk, as a map from ranges to where their bytes lie.  Pure.

The newest write wins.  An extent is a range with its source: bytes in memory, a record of the
journal, or none, which means zeroes.  Extents never overlap.  Neighbours whose bytes lie side by
side in one source are one extent, so zeroes grow together.

The extents lie in order, in chunks of a few hundred: a write looks for its chunk, then for its
place in there.  So a random write costs the same few microseconds whether there are a thousand
extents or a hundred thousand, and zeroing a whole disk is one extent.

Extents and records are plain tuples, of what is no container: Python's garbage collector does not
go through those.  Over a hundred thousand objects it would stop everything for tens of
milliseconds.

A source is held as long as any part of it counts: ``data_bytes`` is what is really held.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from operator import itemgetter
from typing import Final

__all__ = ["Extent", "Extents", "Record", "Source", "folded"]

#: A record of the journal: its size, its position in the ring, its checksum.
Record = tuple[int, int, int]
#: Where bytes lie.  One is told from another by being that object, not by what it holds.
Source = bytes | Record
#: From where to where on the disk; where its bytes lie, None for zeroes; where in there.
Extent = tuple[int, int, Source | None, int]

#: A chunk that has more extents than this is cut into two.
_CHUNK_MAX: Final = 512
#: What Python takes for an extent and its source, roughly, besides the bytes themselves.
_EXTENT_BYTES: Final = 320

_start = itemgetter(0)


class Extents:
    """The map.  It is iterated in the order of the disk."""

    def __init__(self) -> None:
        self._chunks: list[list[Extent]] = []
        self._firsts: list[int] = []  # where each chunk begins
        self._uses: dict[int, int] = {}  # in how many extents a source is, by its id
        self._count = 0
        self._data_bytes = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Extent]:
        for chunk in self._chunks:
            yield from chunk

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
        first = max(bisect_left(self._firsts, start) - 1, 0)  # which may end where this begins
        last = max(bisect_right(self._firsts, end) - 1, first)
        chunk = self._chunks[first]
        low = bisect_left(chunk, start, key=_start)
        if low and chunk[low - 1][1] >= start:
            low -= 1  # it reaches into the new one, or touches it
        high = bisect_right(self._chunks[last], end, key=_start)
        if first == last:
            old = chunk[low:high]
            new = _with_remains(old, start, end, source, at)
            chunk[low:high] = new
        else:
            old = chunk[low:]
            for between in self._chunks[first + 1 : last]:
                old += between
            old += self._chunks[last][:high]
            new = _with_remains(old, start, end, source, at)
            chunk[low:] = new + self._chunks[last][high:]
            del self._chunks[first + 1 : last + 1], self._firsts[first + 1 : last + 1]
        self._firsts[first] = chunk[0][0]
        if len(chunk) > _CHUNK_MAX:
            half = len(chunk) // 2
            self._chunks.insert(first + 1, chunk[half:])
            self._firsts.insert(first + 1, chunk[half][0])
            del chunk[half:]
        self._count += len(new) - len(old)
        self._account(old, new)

    def _account(self, old: list[Extent], new: list[Extent]) -> None:
        uses = self._uses
        for _, _, source, _ in new:
            if source is not None:
                count = uses.get(id(source), 0)
                uses[id(source)] = count + 1
                if not count and isinstance(source, bytes):
                    self._data_bytes += len(source)
        for _, _, source, _ in old:
            if source is not None:
                count = uses[id(source)] - 1
                uses[id(source)] = count
                if not count:
                    del uses[id(source)]
                    if isinstance(source, bytes):
                        self._data_bytes -= len(source)

    def overlaps(self, start: int, end: int) -> Iterator[Extent]:
        """The extents within ``start`` to ``end``, cut to it."""
        chunk = max(bisect_right(self._firsts, start) - 1, 0)
        for number in range(chunk, len(self._chunks)):
            extents = self._chunks[number]
            low = max(bisect_right(extents, start, key=_start) - 1, 0) if number == chunk else 0
            for index in range(low, len(extents)):
                begin, finish, source, at = extents[index]
                if begin >= end:
                    return
                if finish > start < end:
                    cut = max(begin, start)
                    yield cut, min(finish, end), source, _moved(source, at, cut - begin)


def _with_remains(
    old: list[Extent], start: int, end: int, source: Source | None, at: int
) -> list[Extent]:
    """A new extent with what is left of the old ones, which overlap it or touch it."""
    if not old:
        return [(start, end, source, at)]
    left, right = [], []
    begin, finish, before, where = old[0]
    if begin < start:
        finish = min(finish, start)
        if finish == start and _is_next(before, where + start - begin, source, at):
            start, at = begin, where
        else:
            left.append((begin, finish, before, where))
    begin, finish, after, where = old[-1]
    if finish > end:
        where = _moved(after, where, max(end - begin, 0))
        begin = max(begin, end)
        if begin == end and _is_next(source, at + end - start, after, where):
            end = finish
        else:
            right.append((begin, finish, after, where))
    return [*left, (start, end, source, at), *right]


def _is_next(left: Source | None, after: int, right: Source | None, at: int) -> bool:
    """Whether the bytes of two neighbours lie side by side: ``after`` is where the left ends."""
    return left is right and (left is None or after == at)


def _moved(source: Source | None, at: int, by: int) -> int:
    return at + by if source is not None else 0


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
