"""A guest that is nothing but memory and a blob, in this process.

It shows what ``guest.interface`` asks for, carries the demo that needs no QEMU, and measures what a
checkpoint costs without one.  Whoever makes it run writes to its memory by ``write``, which keeps
the dirty pages, and only while it is ``running``; all else that it is goes into ``blob``.
"""

from __future__ import annotations

import asyncio
from typing import Final

import numpy as np
from numpy.typing import NDArray

from colo.errors import GuestError
from colo.guest.interface import Saved
from colo.migration.format import PAGE_SIZE
from colo.migration.ram import Bytes, PageRun, RamBlock
from colo.migration.writer import device_state, page_runs
from colo.store.store import Store

__all__ = ["MemoryGuest"]

_MACHINE: Final = "memory"
_BLOCK: Final = "memory"
_DEVICE: Final = "blob"
_EMPTY: Final = len(device_state([(_DEVICE, b"")])[0])
_TAIL: Final = 6  # bytes after the blob: the section's footer, and EOF


class MemoryGuest:
    """``memory``: (pages, 4096) uint8.  ``blob``: the device state, of any length.

    ``running`` is set while it runs.  It is a guest for the primary and for the secondary: one that
    took a checkpoint over can be protected again.
    """

    def __init__(self, pages: int) -> None:
        self.block = RamBlock(_BLOCK, pages * PAGE_SIZE)
        self.memory: Bytes = np.zeros((pages, PAGE_SIZE), np.uint8)
        self.blob = b""
        self.running = asyncio.Event()
        self._dirty = np.zeros(pages, np.bool_)

    def write(self, numbers: NDArray[np.int64], content: Bytes) -> None:
        """Write pages: ``numbers`` (n,), ``content`` (n, 4096).  Of equal ones the last counts."""
        self.memory[numbers] = content
        self._dirty[numbers] = True

    @property
    def dirty(self) -> int:
        """How many pages were written since the last ``save``."""
        return int(np.count_nonzero(self._dirty))

    # -- of the primary -------------------------------------------------------------------

    @property
    def machine(self) -> str:
        """What kind of guest this is."""
        return _MACHINE

    @property
    def blocks(self) -> tuple[RamBlock, ...]:
        """Its one block."""
        return (self.block,)

    async def suspend(self) -> None:
        """Stop it."""
        self.running.clear()

    async def save(self, everything: bool) -> Saved:
        """Return its pages: runs that point into the memory."""
        pages = page_runs(self.block, self.memory) if everything else self._changed()
        self._dirty[:] = False
        return Saved(pages, *device_state([(_DEVICE, self.blob)]))

    async def resume(self) -> None:
        """Have it run."""
        self.running.set()

    def _changed(self) -> list[PageRun]:
        """What was written, as rows of the memory."""
        (numbers,) = self._dirty.nonzero()
        if not len(numbers):
            return []
        return [PageRun(self.block, numbers * PAGE_SIZE, self.memory, numbers)]

    # -- of the secondary -----------------------------------------------------------------

    async def load(self, store: Store) -> None:
        """Copy the memory and take the blob.  Raises GuestError where they are another guest's."""
        checkpoint = store.checkpoint
        assert checkpoint is not None and store.is_applied
        if checkpoint.blocks != self.blocks:
            raise GuestError(f"the checkpoint has other memory than {self.block}")
        state = checkpoint.device_state
        blob = state[_EMPTY - _TAIL : -_TAIL]
        if device_state([(_DEVICE, blob)])[0] != state:
            raise GuestError("the checkpoint's device state is not that of a memory guest")
        self.memory[:] = store.images[_BLOCK].pages
        self.blob = blob

    async def run(self) -> None:
        """Have it run."""
        self.running.set()
