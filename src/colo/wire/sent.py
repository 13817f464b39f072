"""What was last sent of each page: host A's memory of host B's image.

Strategy.  A cache with one place for a page, given by its number: of a guest whose memory is larger
than the cache, pages that share a place push each other out.  A page that is not in the cache goes
to host B in full, and is in it from then on.

Rules.

- *A base is never stale.*  Whatever is sent of a page, in whatever form, is learned here, or the
  page is forgotten.
- *Host B's base is its image, which is the last whole checkpoint.*  So what was sent within the
  current checkpoint is no base yet: a page's place knows in which generation it was filled, and
  the current one does not count.  When a checkpoint begins, host B must have said that it has
  the one before.
- Of two pages of one call that share a place, or two contents of one page, the last one stays.

The contents are one array, which takes up only what of it was ever filled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from colo.migration.format import PAGE_SIZE
from colo.migration.ram import Bytes, Offsets, RamBlock
from colo.wire.difference import Mask

__all__ = ["SentPages"]

_NOBODY: Final = -1


class SentPages:
    """A cache of ``slots`` pages, each 4096 bytes and 16 more.

    Pages are given by the index of their block in the list, and their numbers in it, (n,) int64.
    ``memory``: at least so many pages of memory to keep them in, else it is taken from the heap.
    """

    def __init__(self, slots: int, memory: memoryview | None = None) -> None:
        if slots < 1:
            raise ValueError("a cache without a place")
        self.slots = slots
        size = slots * PAGE_SIZE
        whole = np.empty(size, np.uint8) if memory is None else np.frombuffer(memory, np.uint8)
        self._content: Bytes = whole[:size].reshape(slots, PAGE_SIZE)
        self._owners: Offsets = np.full(slots, _NOBODY, np.int64)
        self._filled: Offsets = np.zeros(slots, np.int64)  # in which generation
        self._generation = 0
        self._firsts: list[int] = []

    def set_blocks(self, blocks: Sequence[RamBlock]) -> None:
        """A stream begins, with this list of blocks: nothing is known of what host B has."""
        self._firsts, first = [], 0
        for block in blocks:
            self._firsts.append(first)
            first += block.pages
        self._owners[:] = _NOBODY

    def begin_checkpoint(self) -> None:
        """Host B has all that was sent so far, whole."""
        self._generation += 1

    def known(self, block: int, numbers: Offsets) -> Mask:
        """Of which of these pages host B's image is known: (n,)."""
        pages = numbers + self._firsts[block]
        slots = pages % self.slots
        mask: Mask = self._owners[slots] == pages
        mask &= self._filled[slots] != self._generation
        return mask

    def content(self, block: int, numbers: Offsets) -> Bytes:
        """What is in the pages' places, (n, 4096): theirs, where they are known.

        It may be a view, which is of no use any more when something is learned.
        """
        slots = (numbers + self._firsts[block]) % self.slots
        part = _row(slots)
        return self._content[slots if part is None else part]

    def learn(self, block: int, numbers: Offsets, content: Bytes) -> None:
        """These pages are sent, with this content: (n, 4096)."""
        pages = numbers + self._firsts[block]
        slots = pages % self.slots
        part = _row(slots)
        if part is not None:
            self._content[part] = content
            self._owners[part] = pages
            self._filled[part] = self._generation
            return
        self._content[slots] = content  # of places that are named twice, numpy keeps the last
        self._owners[slots] = pages
        self._filled[slots] = self._generation

    def forget(self, block: int, numbers: Offsets) -> None:
        """These pages are sent, in a form that is not kept."""
        pages = numbers + self._firsts[block]
        slots = pages % self.slots
        self._owners[slots[self._owners[slots] == pages]] = _NOBODY


def _row(slots: Offsets) -> slice | None:
    """The places as a slice, where each is next to the one before; quicker by half."""
    first, last = int(slots[0]), int(slots[-1])
    if last - first != len(slots) - 1 or (np.diff(slots) != 1).any():
        return None
    return slice(first, last + 1)
