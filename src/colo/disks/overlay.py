"""Extents over a base: written into it, or laid over what is read of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from colo.disks.blockfile import BlockFile
from colo.disks.extents import Extent, Source

__all__ = ["lay_over", "painted", "write_into"]

#: From this size on, neighbours are not gathered any more to be written at once.
_RUN_BYTES: Final = 1 << 20


def write_into(base: BlockFile, extents: Iterable[Extent], load: Callable[[Source], bytes]) -> None:
    """Write extents, in the order of the disk; ``load`` reads a source.  It is not synced."""
    run: list[memoryview] = []
    begin = position = 0
    last: Source | None = None
    data = memoryview(b"")
    for start, end, source, at in extents:
        if run and (start != position or source is None or position - begin >= _RUN_BYTES):
            base.pwrite(begin, _joined(run))
            run = []
        if source is None:
            base.zero(start, end - start)
            continue
        if source is not last:
            last, data = source, memoryview(load(source))
        if not run:
            begin = start
        run.append(data[at : at + end - start])
        position = end
    if run:
        base.pwrite(begin, _joined(run))


def _joined(run: list[memoryview]) -> bytes | memoryview:
    return run[0] if len(run) == 1 else b"".join(run)


def painted(
    base: BlockFile,
    offset: int,
    length: int,
    pieces: Iterable[Extent],
    load: Callable[[Source], bytes],
) -> bytes:
    """Read a range of the base with pieces of that range laid over it, the oldest first."""
    content = bytearray(base.pread(offset, length))
    lay_over(content, offset, pieces, load)
    return bytes(content)


def lay_over(
    content: bytearray, offset: int, pieces: Iterable[Extent], load: Callable[[Source], bytes]
) -> None:
    """Lay pieces over a range that was read at ``offset``, and that they are within."""
    for start, end, source, at in pieces:
        size = end - start
        data = memoryview(load(source))[at : at + size] if source is not None else bytes(size)
        content[start - offset : end - offset] = data
