"""The staging area: where bytes from the primary arrive, and stay until they are applied.

A checkpoint is parsed where it was received, into runs of pages that point into this memory.
Once it is whole the runs are applied to the images; cut off before, they are forgotten.  So a
received byte is copied once from the socket and once into the image.

The memory is reserved for the largest checkpoint there can be, every page at once, but takes up
only what recent checkpoints really filled.
"""

from __future__ import annotations

import mmap
from collections import deque
from typing import Final

from colo.migration.buffer import ReceiveBuffer
from colo.migration.format import PAGE_SIZE
from colo.migration.ram import Limits, PageRun
from colo.store.image import reserve

__all__ = ["StagingArea"]

_KEPT_MIN: Final = 4 << 20
#: Memory that was given back has to be cleared again, and that with the VM stopped.
_KEPT_CHECKPOINTS: Final = 64
_NAMES_AND_MESSAGES: Final = 1 << 20


class StagingArea:
    """``buffer`` is received into; ``runs`` are the pages of the checkpoint under way."""

    def __init__(self, limits: Limits) -> None:
        size = limits.ram_bytes // PAGE_SIZE * (PAGE_SIZE + 8)
        size += limits.device_bytes + limits.description_bytes + _NAMES_AND_MESSAGES
        self._map = reserve(size)
        self.buffer = ReceiveBuffer(memoryview(self._map), "a checkpoint")
        self.runs: list[PageRun] = []
        self._filled: deque[int] = deque(maxlen=_KEPT_CHECKPOINTS)

    @property
    def pages(self) -> int:
        """How many pages are staged."""
        return sum(len(run) for run in self.runs)

    def clear(self) -> None:
        """Forget the runs, reuse their memory, and return what was unusually much of it."""
        self.runs = []
        self._filled.append(self.buffer.end)
        self.buffer.rewind()
        kept = max(_KEPT_MIN, *self._filled)
        kept += -kept % mmap.PAGESIZE
        if kept < len(self._map):
            self._map.madvise(mmap.MADV_DONTNEED, kept, len(self._map) - kept)
