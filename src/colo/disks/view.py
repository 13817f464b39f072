"""A view of a disk: one commit to read at leisure, while the replica goes on to the next ones.

It is opened where all that is committed is in the base.  From then on, before a merge writes into
the base what the view has yet to read, the old content is set aside.  So no merge waits for a
reader; where setting aside fails, it is the view that ends.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Final

from colo.disks import digests
from colo.disks.blockfile import BlockFile
from colo.disks.extents import Extents
from colo.errors import DiskError

__all__ = ["DiskView"]

_BLOCK_SIZE: Final = 4096
#: How much is read at a time, and told from zeroes.
_READ_BYTES: Final = 1 << 20

#: What is known of a block: it was read, it is to be read, or it lies aside.
_READ, _WANTED, _ASIDE = b"\0", b"\1", b"\2"


class DiskView:
    """The disk named ``disk`` as ``base`` has it now.  ``aside``: a file of the same size.

    It owns ``aside``.  ``before`` and ``end`` are the replica's to call, from any thread.
    """

    def __init__(self, disk: str, base: BlockFile, aside: BlockFile) -> None:
        self.disk = disk
        self._base, self._aside = base, aside
        self._lock = threading.Lock()
        self._blocks = bytearray(_WANTED * -(-base.size // _BLOCK_SIZE))
        self._broken: DiskError | None = None

    @property
    def size(self) -> int:
        """The disk's size, in bytes."""
        return self._base.size

    def before(self, extents: Extents) -> None:
        """These ranges of the base are about to be written."""
        with self._lock:
            if self._broken is not None:
                return
            try:
                for start, end, _, _ in extents:
                    self._set_aside(start // _BLOCK_SIZE, -(-end // _BLOCK_SIZE))
            except DiskError as error:
                self._broken = DiskError(self.disk, f"what was to be read is lost: {error}")

    def end(self, why: str) -> None:
        """There is nothing to be read any more."""
        with self._lock:
            if self._broken is None:
                self._broken = DiskError(self.disk, why)

    def _set_aside(self, first: int, last: int) -> None:
        while (first := self._blocks.find(_WANTED, first, last)) >= 0:
            end = self._end_of_run(first, last)
            begin, length = self._range(first, end)
            self._aside.pwrite(begin, self._base.pread(begin, length))
            self._blocks[first:end] = _ASIDE * (end - first)
            first = end

    def _end_of_run(self, first: int, last: int) -> int:
        """Where the blocks end that are as the ``first`` one."""
        others = {_READ, _WANTED, _ASIDE} - {bytes(self._blocks[first : first + 1])}
        found = [self._blocks.find(each, first, last) for each in others]
        return min((each for each in found if each >= 0), default=last)

    def _range(self, first: int, end: int) -> tuple[int, int]:
        begin = first * _BLOCK_SIZE
        return begin, min(end * _BLOCK_SIZE, self.size) - begin

    def content(self) -> Iterator[tuple[int, bytes]]:
        """Yield, once, where something lies and what, in the order of the disk; not the zeroes.

        Raises DiskError where the view has ended.
        """
        at_once = _READ_BYTES // _BLOCK_SIZE
        for first in range(0, len(self._blocks), at_once):
            data = memoryview(self._take(first, min(first + at_once, len(self._blocks))))
            for at in range(0, len(data), digests.BLOCK_SIZE):
                grain = data[at : at + digests.BLOCK_SIZE]
                if not digests.is_zeroes(grain):
                    yield first * _BLOCK_SIZE + at, bytes(grain)

    def _take(self, first: int, last: int) -> bytes:
        parts = []
        with self._lock:
            if self._broken is not None:
                raise self._broken
            while first < last:
                end = self._end_of_run(first, last)
                source = self._aside if self._blocks.startswith(_ASIDE, first) else self._base
                parts.append(source.pread(*self._range(first, end)))
                self._blocks[first:end] = _READ * (end - first)
                first = end
        return b"".join(parts)

    def close(self) -> None:
        """Let go of what lies aside.  Raises DiskError."""
        self._aside.close()
