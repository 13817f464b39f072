"""An export in memory, with a map of what is allocated; and one that waits until it is told."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import numpy as np

from colo.nbd.protocol import Extent

BLOCK = 4096


@dataclass
class MemoryExport:
    """A disk in memory.  ``calls``: what was asked of it, in words, where ``told`` is set."""

    name: str = "disk"
    size: int = 1 << 20
    read_only: bool = False
    told: bool = True
    calls: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.content = np.zeros(self.size, np.uint8)
        self.allocated = np.zeros(-(-self.size // BLOCK), bool)

    def say(self, call: str) -> None:
        if self.told:
            self.calls.append(call)

    async def read(self, offset: int, length: int) -> bytes | memoryview:
        self.say(f"read {offset} {length}")
        return self.content[offset : offset + length].tobytes()

    async def write(self, offset: int, data: memoryview | bytes, *, fua: bool) -> None:
        self.say(f"write {offset} {len(data)}{' fua' if fua else ''}")
        self.content[offset : offset + len(data)] = np.frombuffer(data, np.uint8)
        self.allocated[offset // BLOCK : -(-(offset + len(data)) // BLOCK)] = True

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool, fua: bool) -> None:
        self.say(f"zero {offset} {length}{' trim' if may_trim else ''}{' fua' if fua else ''}")
        self.content[offset : offset + length] = 0
        if may_trim:
            self.allocated[-(-offset // BLOCK) : (offset + length) // BLOCK] = False
        else:
            self.allocated[offset // BLOCK : -(-(offset + length) // BLOCK)] = True

    async def trim(self, offset: int, length: int) -> None:
        self.say(f"trim {offset} {length}")
        first, end = -(-offset // BLOCK), (offset + length) // BLOCK
        if first < end:
            self.content[first * BLOCK : end * BLOCK] = 0
            self.allocated[first:end] = False

    async def flush(self) -> None:
        self.say("flush")

    async def extents(self, offset: int, length: int) -> list[Extent]:
        self.say(f"extents {offset} {length}")
        found = []
        at, end = offset, min(offset + length, self.size)
        while at < end:
            block = at // BLOCK
            kind = bool(self.allocated[block])
            changes = np.flatnonzero(self.allocated[block:] != kind)
            until = min((block + int(changes[0])) * BLOCK if len(changes) else self.size, self.size)
            found.append(Extent(until - at, allocated=kind, zero=not kind))
            at = until
        return found


@dataclass
class WaitingExport(MemoryExport):
    """Everything waits for ``go``; ``begun`` is set by the first that does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.go = asyncio.Event()
        self.begun = asyncio.Event()
        self.under_way = 0
        self.most = 0
        self.given_up = 0

    async def wait(self) -> None:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        self.begun.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        finally:
            self.under_way -= 1

    async def read(self, offset: int, length: int) -> bytes | memoryview:
        await self.wait()
        return await super().read(offset, length)

    async def write(self, offset: int, data: memoryview | bytes, *, fua: bool) -> None:
        await self.wait()
        await super().write(offset, data, fua=fua)

    async def flush(self) -> None:
        await self.wait()
        await super().flush()
