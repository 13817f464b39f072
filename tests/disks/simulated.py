"""Disks that lose power: what was not synced may be on the platter, or not, sector by sector.

A ``SimulatedFile`` keeps what was written and not synced apart from what is durable.  Before each
sync, and after each write, it calls ``on_step``: there the power may fail.  ``after_power_loss``
then says what is on the platter, by one of the ``LOSSES``.  Without power loss, when only a process
dies, all that was written can be read by the next one, though it is not durable.

A sync may be told to fail: then what was not durable is lost, but can be read as if nothing had
happened, as Linux does it.  ``unsynced`` names functions whose syncs do nothing at all, for tests
that break a rule to see that it is missed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from random import Random
from typing import ClassVar, Final

from colo.disks.blockfile import Data
from colo.errors import DiskError

__all__ = ["LOSSES", "SECTOR", "SimulatedFile"]

SECTOR: Final = 512

#: What of the unsynced sectors is written, in the order in which they were; or with the last torn.
LOSSES: Final[dict[str, Callable[[Random, int], list[int]]]] = {
    "none": lambda random, count: [],
    "all": lambda random, count: list(range(count)),
    "prefix": lambda random, count: list(range(random.randint(0, count))),
    "some": lambda random, count: [at for at in range(count) if random.random() < 0.5],
    "most": lambda random, count: [at for at in range(count) if random.random() < 0.9],
    "the last": lambda random, count: list(range(random.randint(0, count), count)),
    "torn": lambda random, count: list(range(random.randint(0, count))),
}


class SimulatedFile:
    """A BlockFile.  ``name`` is for messages and hooks; ``content`` is durable from the start."""

    def __init__(
        self,
        name: str,
        content: bytes,
        on_step: Callable[[SimulatedFile, str], None] = lambda file, what: None,
    ) -> None:
        self.name = name
        self.on_step = on_step
        self.durable = bytearray(content)
        self.cache = bytearray(content)
        self.pending: list[tuple[int, bytes]] = []
        self.fails: Callable[[str], bool] = lambda what: False

    unsynced: ClassVar[frozenset[tuple[str, str]]] = frozenset()

    @property
    def size(self) -> int:
        return len(self.cache)

    def _may_fail(self, what: str) -> None:
        if self.fails(what):
            raise DiskError("vda", f"cannot {what}: no luck", self.name)

    def pread(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= self.size
        self._may_fail("read")
        return bytes(self.cache[offset : offset + length])

    def pwrite(self, offset: int, data: Data) -> None:
        assert 0 <= offset <= offset + len(data) <= self.size
        fails = self.fails("write")
        if fails:
            data = data[: len(data) // 2]
        self.cache[offset : offset + len(data)] = data
        for sector in range(offset // SECTOR, -(-(offset + len(data)) // SECTOR)):
            begin = sector * SECTOR
            self.pending.append((begin, bytes(self.cache[begin : begin + SECTOR])))
        self.on_step(self, "write")
        if fails:
            raise DiskError("vda", "cannot write: no luck", self.name)

    def zero(self, offset: int, length: int) -> None:
        self.pwrite(offset, bytes(length))

    def sync(self) -> None:
        if self.unsynced and (self.name, sys._getframe(1).f_code.co_name) in self.unsynced:
            return
        self.on_step(self, "sync")
        if self.fails("sync"):
            self.pending.clear()
            raise DiskError("vda", "cannot sync: no luck", self.name)
        for begin, content in self.pending:
            self.durable[begin : begin + SECTOR] = content
        self.pending.clear()

    def close(self) -> None:
        pass

    def after_power_loss(self, loss: str, random: Random) -> bytes:
        """What is on the platter."""
        platter = bytearray(self.durable)
        survivors = LOSSES[loss](random, len(self.pending))
        for at in survivors:
            begin, content = self.pending[at]
            if loss == "torn" and at == survivors[-1]:
                content = content[: random.randrange(SECTOR)]
            platter[begin : begin + len(content)] = content
        return bytes(platter)
