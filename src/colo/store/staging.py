"""The staging area: where bytes from the primary arrive, and stay until they are applied.

A checkpoint is parsed where it was received, into runs of pages that point into this memory.
Once it is whole the runs are applied to the images; cut off before, they are forgotten.  So a
received byte is copied once from the socket and once into the image.

The memory is reserved for the largest checkpoint there can be, every page at once, but takes up
only what recent checkpoints really filled.
"""

from __future__ import annotations

from typing import Final

from colo.migration.format import PAGE_SIZE
from colo.migration.ram import Limits, PageRun
from colo.store.area import Area

__all__ = ["StagingArea"]

_NAMES_AND_MESSAGES: Final = 1 << 20


class StagingArea:
    """``buffer`` is received into; ``runs`` are the pages of the checkpoint under way."""

    def __init__(self, limits: Limits) -> None:
        size = limits.ram_bytes // PAGE_SIZE * (PAGE_SIZE + 8)
        size += limits.device_bytes + limits.description_bytes + _NAMES_AND_MESSAGES
        self._area = Area(size, "a checkpoint")
        self.buffer = self._area.buffer
        self.runs: list[PageRun] = []

    @property
    def pages(self) -> int:
        """How many pages are staged."""
        return sum(len(run) for run in self.runs)

    def clear(self) -> None:
        """Forget the runs, reuse their memory, and return what was unusually much of it."""
        self.runs = []
        self._area.clear()
