"""What runs in the demo's memory guest, and can tell whether its memory is right.

It counts.  Each step writes some pages, drawn by the step's number, and says one line: that number,
from 0.  All that it knows is in the guest: how many steps it took with which seed in its blob, and
in each page words that follow from the write that made it.  So from the blob alone it can tell what
every page has to hold, also in a guest that was just taken over: a page that is stale, from the
future or damaged does not hold that.  After a takeover it goes on with another seed, as a real
guest would not do the same again either: so what is left of steps that were undone shows.

Its lines go to an ``Outlet``, which holds them until the checkpoint that covers them is safe.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from colo.demo.verdicts import Words, mix, multiples
from colo.errors import GuestError
from colo.guest.memory import MemoryGuest
from colo.migration.format import PAGE_SIZE
from colo.migration.ram import Bytes

__all__ = ["Outlet", "Workload"]

#: Pages written by a step, and the time between two.
_STEP_PAGES: Final = 16
_STEP_S: Final = 0.002
_PAGE_WORDS: Final = PAGE_SIZE // 8
_VERIFIED_PAGES: Final = 1024  # at once
_BLOB: Final = struct.Struct(">QQ")


class Outlet:
    """The guest's output, on its way to ``send``: it passes, or is held until ``release``."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send
        self._held = b""
        self.holding = False

    def say(self, line: bytes) -> None:
        """Take what the guest says."""
        if self.holding:
            self._held += line
        else:
            self._send(line)

    def release(self) -> None:
        """All that is held is covered by a checkpoint that is safe, or the guest runs alone."""
        data, self._held = self._held, b""
        if data:
            self._send(data)


class Workload:
    """Runs in ``guest``, from where that stands, and draws by ``seed`` from now on."""

    def __init__(self, guest: MemoryGuest, say: Callable[[bytes], None], seed: int) -> None:
        self._guest = guest
        self._say = say
        self._before = guest.blob
        self._seed = seed
        self._since = 0
        self.steps = sum(steps for _, steps in _BLOB.iter_unpack(guest.blob))
        self._keep()

    async def run(self) -> None:
        """Step as long as the guest runs, until cancelled.  A step is never cut in two."""
        while True:
            while not self._guest.running.is_set():
                await self._guest.running.wait()
            self.step()
            await asyncio.sleep(_STEP_S)

    def step(self) -> None:
        """Write some pages, count, and say the count."""
        words = _writes(self._seed, self._since, 1)
        self._guest.write(self._pages(words), _content(words))
        self._since += 1
        self.steps += 1
        self._keep()
        self._say(b"%d\n" % (self.steps - 1))

    def verify(self) -> None:
        """Look at every page.  Raises GuestError with the first that is not as it has to be."""
        count = len(self._guest.memory)
        last: Words = np.zeros(count, np.uint64)
        for seed, steps in _BLOB.iter_unpack(self._guest.blob):
            words = _writes(seed, 0, steps)
            last[self._pages(words)] = words  # of several writes to a page the last one counts
        for first in range(0, count, _VERIFIED_PAGES):
            some = last[first : first + _VERIFIED_PAGES]
            expected = np.where((some != 0)[:, np.newaxis], _content(some), np.uint8(0))
            wrong = (self._guest.memory[first : first + len(some)] != expected).any(axis=1)
            if wrong.any():
                page = first + int(wrong.argmax())
                raise GuestError(f"page {page} is not as {self.steps} steps have left it")

    def _keep(self) -> None:
        self._guest.blob = self._before + _BLOB.pack(self._seed, self._since)

    def _pages(self, words: Words) -> NDArray[np.int64]:
        return (words % np.uint64(len(self._guest.memory))).astype(np.int64)


def _writes(seed: int, step: int, steps: int) -> Words:
    """One word for each write of some steps: it decides which page, and what goes into it."""
    return mix(multiples(step * _STEP_PAGES + 1, steps * _STEP_PAGES, seed))


def _content(words: Words) -> Bytes:
    """The pages that these writes make: (n, 4096) uint8."""
    return mix(words[:, np.newaxis] + multiples(1, _PAGE_WORDS)).view(np.uint8)
