"""A view: one whole checkpoint to read at leisure, while the store goes on to the next ones.

Whoever reads the store, to export it or to hand it on to a further secondary, must neither see
pages of two checkpoints nor make the primary wait.  So the store is not held up: before it
overwrites a page that an open view has yet to read, the view sets the old content aside.

What is set aside takes up memory, at most as much as the guest has.  Where there is none left it
is the view that ends, with an error for its reader: the store never fails for one.  And there are
only so many at once.

A view also knows which pages were written since it was last opened.  Opened again and again it
reads a series of checkpoints, each time only what changed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Final

import numpy as np

from colo.errors import StoreError
from colo.migration.format import PAGE_SIZE
from colo.migration.ram import Bytes, Offsets, PageRun
from colo.migration.writer import RUN_PAGES, by_kind
from colo.store.area import reserve
from colo.store.image import Image
from colo.store.store import Checkpoint, Store

__all__ = ["VIEWS_MAX", "View"]

#: How many views of a store there are at once: each may take up as much memory as the guest.
VIEWS_MAX: Final = 4


class View:
    """A reader of ``store``, which holds a checkpoint.  Raises StoreError where it does not.

    ``machine``, ``blocks`` and ``return_path`` are those of its checkpoints.  It may read in
    another thread than the store's.
    """

    def __init__(self, store: Store) -> None:
        if store.checkpoint is None:
            raise StoreError("there is no whole checkpoint yet")
        if store.given_up:
            raise StoreError("there is no checkpoint any more: its VM runs")
        if len(store.images[store.main[0].name].watchers) >= VIEWS_MAX:
            raise StoreError(f"{VIEWS_MAX} others read this store already: wait for one to end")
        self._store = store
        self._epoch = store.epoch
        self.machine = store.checkpoint.header.machine
        self.return_path = store.checkpoint.return_path
        self.blocks = store.checkpoint.blocks
        self._lock = threading.Lock()
        self._blocks = [_Block(store.images[ram.name], self._lock) for ram in self.blocks]

    def open(self) -> Checkpoint:
        """Show the checkpoint that the store holds now, and is applied, until it is opened again.

        Raises StoreError where the store has begun anew, or its VM runs.
        """
        self._check()
        assert self._store.checkpoint is not None and self._store.is_applied
        with self._lock:
            for block in self._blocks:
                block.open()
        return self._store.checkpoint

    def pages(self) -> Iterator[PageRun]:
        """Read, once, the pages written since the view was opened before; the first time all.

        Zero pages come before the others of their block.  The runs hold copies.  Raises
        StoreError where the checkpoint is no more.
        """
        for block in self._blocks:
            numbers = np.flatnonzero(block.wanted)
            for start in range(0, len(numbers), RUN_PAGES):
                some = numbers[start : start + RUN_PAGES]
                with self._lock:
                    content = block.take(some)
                self._check()  # afterwards: what was read before that was of this checkpoint
                yield from by_kind(block.ram, some, content)

    def close(self) -> None:
        """End the view: the store does not know it any more."""
        for block in self._blocks:
            block.close()

    def _check(self) -> None:
        if self._store.epoch != self._epoch:
            raise StoreError("this checkpoint is no more: its VM runs, or a new primary has come")
        for block in self._blocks:
            if block.broken is not None:
                raise StoreError(
                    "the store went on, and no memory was left to keep what was still to be read"
                ) from block.broken


class _Block:
    """One block of a view.  ``wanted``: pages still to be read; ``changed``: written since;
    ``broken``: why what was to be read could not be set aside.

    Whoever calls ``open`` or ``take`` holds ``lock``.
    """

    def __init__(self, image: Image, lock: threading.Lock) -> None:
        self.ram = image.block
        self._image = image
        self._lock = lock
        count = image.block.pages
        self.wanted = np.zeros(count, np.bool_)
        self._changed = np.ones(count, np.bool_)
        self._is_aside = np.zeros(count, np.bool_)
        self._aside: Bytes | None = None
        self.broken: Exception | None = None
        image.watchers.append(self._before)

    def close(self) -> None:
        # a new list: the store's thread may be going through the old one
        self._image.watchers = [each for each in self._image.watchers if each != self._before]

    def open(self) -> None:
        self.wanted |= self._changed  # what was not read the last time is still to be read
        self._changed[:] = False
        self._is_aside[:] = False
        self._aside = None

    def _before(self, numbers: Offsets) -> None:
        with self._lock:
            if self.broken is not None:
                return
            try:
                self._set_aside(numbers)
            except (StoreError, MemoryError) as error:
                self.broken, self._aside = error, None
                self._is_aside[:] = False

    def _set_aside(self, numbers: Offsets) -> None:
        self._changed[numbers] = True
        lost = numbers[self.wanted[numbers] & ~self._is_aside[numbers]]
        if len(lost):
            if self._aside is None:
                room = reserve(self.ram.length)
                self._aside = np.frombuffer(room, np.uint8).reshape(-1, PAGE_SIZE)
            self._aside[lost] = self._image.pages[lost]
            self._is_aside[lost] = True

    def take(self, numbers: Offsets) -> Bytes:
        """Read these pages, which are wanted; they are not any more."""
        content = self._image.pages[numbers]
        aside = self._is_aside[numbers]
        if aside.any():
            assert self._aside is not None
            content[aside] = self._aside[numbers[aside]]
        self.wanted[numbers] = False
        return content
