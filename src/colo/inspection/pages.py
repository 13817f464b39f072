"""What the pages of a stream are, without keeping them.

A page may come several times, and its last content counts.  So each page has a mark of 16 bytes,
which is replaced when it comes again: zeros for a page of zeros, the byte and zeros for a page
that one byte fills, and else a digest.  A guest of 4 GiB takes 16 MiB of marks, and two guests are
compared by them: it would take some 2^64 pages until two have one digest by chance.

How well pages compress takes longer to tell, so that is measured on a sample of the pages, drawn
by their numbers.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

import numpy as np
from numpy.typing import NDArray

from colo.errors import ColoError
from colo.migration.format import PAGE_SIZE
from colo.migration.ram import PageRun, RamBlock

__all__ = ["Pages", "Statistics", "page_marks", "statistics"]

_MARK_SIZE: Final = 16
_SAMPLE_PAGES: Final = 16_384
_SPREAD: Final = 2_654_435_761  # odd, so multiplying by it modulo 2^32 permutes the page numbers
_ZLIB_LEVEL: Final = 1

Marks = NDArray[np.uint8]


@dataclass(frozen=True)
class Statistics:
    """``pages`` = ``zero`` + ``fill`` (one other byte, repeated) + ``equal`` + ``unique``.

    ``equal``: their content is that of an earlier page, of any block.  Of the pages neither zero
    nor fill ``sampled`` were compressed by themselves, to ``sampled_bytes`` together.
    """

    pages: int
    zero: int
    fill: int
    equal: int
    unique: int
    sampled: int
    sampled_bytes: int

    @property
    def ratio(self) -> float | None:
        """To which part of their size the sampled pages were compressed."""
        return self.sampled_bytes / (self.sampled * PAGE_SIZE) if self.sampled else None


class Pages:
    """The pages of one block: a mark for each; see the module's text.

    Of ``total`` pages of all blocks, about 16,384 are drawn to be compressed.
    """

    def __init__(self, block: RamBlock, total: int) -> None:
        self.block = block
        try:
            self.marks: Marks = np.zeros((block.pages, _MARK_SIZE), np.uint8)
            self._compressed = np.zeros(block.pages, np.uint16)
        except MemoryError:
            raise ColoError(
                f"block {block.name} of {block.length} bytes is too large for this machine"
            ) from None
        self._below = min(1 << 32, (_SAMPLE_PAGES << 32) // max(total, 1))

    def write(self, run: PageRun) -> None:
        """Take note of a run of pages."""
        numbers = run.offsets // PAGE_SIZE
        self.marks[numbers] = page_marks(run.content)
        if run.is_fill:
            return
        drawn = (numbers * _SPREAD) % (1 << 32) < self._below
        for at in np.flatnonzero(drawn):
            size = len(zlib.compress(run.content[at], _ZLIB_LEVEL))
            self._compressed[numbers[at]] = size

    @property
    def mixed(self) -> NDArray[np.bool_]:
        """Which pages are neither zero nor fill."""
        return np.asarray(self.marks[:, 1:].any(axis=1))

    @property
    def sample(self) -> NDArray[np.uint16]:
        """The compressed sizes of the pages that were sampled and are neither zero nor fill."""
        sizes = self._compressed[self.mixed]
        return sizes[sizes > 0]


def page_marks(content: Marks) -> Marks:
    """The marks of pages: ``content`` of shape (n, 4096), or (n, 1) where one byte fills each."""
    marks = np.zeros((len(content), _MARK_SIZE), np.uint8)
    marks[:, 0] = content[:, 0]
    if content.shape[1] == 1:
        return marks
    mixed = np.flatnonzero((content != content[:, :1]).any(axis=1))
    digests = b"".join(blake2b(content[at], digest_size=_MARK_SIZE).digest() for at in mixed)
    marks[mixed] = np.frombuffer(digests, np.uint8).reshape(-1, _MARK_SIZE)
    return marks


def statistics(memory: dict[str, Pages]) -> dict[str, Statistics]:
    """Count the pages of each block by their kind."""
    digests = {name: pages.marks[pages.mixed] for name, pages in memory.items()}
    again = _again([*digests.values()])
    found, at = {}, 0
    for name, pages in memory.items():
        mixed = len(digests[name])
        filled = int(np.count_nonzero(pages.marks[:, 0][~pages.mixed]))
        equal = int(np.count_nonzero(again[at : at + mixed]))
        at += mixed
        sample = pages.sample
        found[name] = Statistics(
            pages=pages.block.pages,
            zero=pages.block.pages - mixed - filled,
            fill=filled,
            equal=equal,
            unique=mixed - equal,
            sampled=len(sample),
            sampled_bytes=int(sample.sum()),
        )
    return found


def _again(all_digests: list[Marks]) -> NDArray[np.bool_]:
    """Which digests have come before."""
    digests = np.concatenate([np.zeros((0, _MARK_SIZE), np.uint8), *all_digests])
    halves = digests.view(np.uint64)
    order = np.lexsort((halves[:, 0], halves[:, 1]))  # stable: the earliest of equals comes first
    ordered = halves[order]
    again = np.zeros(len(digests), np.bool_)
    again[order[1:]] = (ordered[1:] == ordered[:-1]).all(axis=1)
    return again
