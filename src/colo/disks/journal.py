"""The journal of a disk: a committed epoch is durable here before it is written into the base.

Its file has two places for a head (see ``head``) and a ring.  Into the ring go

- *records*: bytes that the guest wrote, and nothing besides.  Those of an epoch that is large come
  as it is written, those of a small one once it is committed.
- an *index* for each batch of epochs that are merged together: which range of the disk has which
  bytes of which record.  Each entry has the record's checksum, and the head has the index's.  So
  the head is the mark of a commit, and nothing lost, old, moved or changed passes for a part of it.

Positions in the ring only grow; where they lie in the file is the remainder.  What is reserved of
it is whole blocks of 4 KiB, so what is durable shares none with what is written later.

The order in which things become durable, by these rules:

1. The base is written for COPYING only once a head that says so is durable.
2. A head says JOURNAL only once the records and the index that it names are durable.
3. A committed epoch is written into the base only once a head that says JOURNAL is durable.
4. A head says CLEAN only once the base is durable as it says.
5. The ring's room is reused only once the head after the one that needs it is durable.
6. A head found in a file may not be durable yet, or not all copies of it: whoever opens the journal
   writes it once more before anything else.  What it says is durable by rules 2 and 4.
7. Where a sync has failed nothing is done any more, as nothing is known.

Nothing of this is in the way of a commit: records written before are synced with their batch.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Final
from uuid import UUID

from colo.disks.blockfile import BlockFile, Data
from colo.disks.extents import Extents, Record, Source
from colo.disks.head import HEADS_SIZE, Head, HeadState, Unreadable, newest
from colo.errors import DiskDamaged, DiskError, DiskFull

__all__ = ["BLOCK_SIZE", "RECORD_MAX", "RING_MIN", "Journal", "room_for"]

BLOCK_SIZE: Final = 4096
#: The most that a write puts into one record; a longer one has several.
RECORD_MAX: Final = 256 << 10
#: A ring smaller than this would be full all the time.
RING_MIN: Final = 32 << 10
#: Of an extent: start, end, position of its record, its checksum, its size, where in it.
_ENTRY: Final = struct.Struct("<QQQIII")
_ZEROES: Final = (1 << 64) - 1  # for a position: there is no record, the range is zeroes
_POSITION: Final = struct.Struct("<Q")


def _rounded(size: int) -> int:
    return -(-size // BLOCK_SIZE) * BLOCK_SIZE


def room_for(data_bytes: int, extents: int) -> int:
    """The most of the ring that merging takes for so much in memory, in so many extents.

    Merged with other epochs, an extent may cut one of theirs into two.
    """
    if not extents:
        return 0
    return _rounded(data_bytes) + _rounded(2 * extents * _ENTRY.size) + BLOCK_SIZE


class Journal:
    """The journal in ``file``, for the disk named ``disk``, with the newest head of it.

    Its user calls ``reserve``, ``release`` and ``used`` under one lock of its own; the others do
    I/O.  All raise DiskError.
    """

    def __init__(self, file: BlockFile, disk: str, head: Head) -> None:
        self._file = file
        self._disk = disk
        self._head = head
        self._next = self._tail = head.next
        self._seed = zlib.crc32(head.identity.bytes)

    @classmethod
    def make(cls, file: BlockFile, disk: str, identity: UUID, disk_size: int) -> Journal:
        """Begin a journal, for a base that is a mixture yet."""
        ring = (file.size - HEADS_SIZE) // BLOCK_SIZE * BLOCK_SIZE
        if ring < RING_MIN:
            raise DiskError(disk, f"the journal needs {HEADS_SIZE + RING_MIN} bytes at least")
        journal = cls(file, disk, Head(0, identity, disk_size, ring))
        journal._write_head(journal._head)
        journal._write_head(replace(journal._head, number=1))
        return journal

    @classmethod
    def open(cls, file: BlockFile, disk: str) -> Journal:
        """Open a journal; nothing is written.  Raises Unreadable where there is none."""
        if file.size < HEADS_SIZE + RING_MIN:
            raise Unreadable("there is no journal in it")
        head = newest(file.pread(0, HEADS_SIZE))
        if head.ring != (file.size - HEADS_SIZE) // BLOCK_SIZE * BLOCK_SIZE:
            raise Unreadable("the journal's file has another size than it was made with")
        return cls(file, disk, head)

    @property
    def head(self) -> Head:
        """The newest head that is durable, or was found."""
        return self._head

    def close(self) -> None:
        """Close its file."""
        self._file.close()

    # -- the ring -------------------------------------------------------------------------

    @property
    def used(self) -> int:
        """How much of the ring is needed still."""
        return self._next - self._tail

    @property
    def next(self) -> int:
        """Where the ring goes on."""
        return self._next

    def room_with(self, length: int) -> int:
        """What would be free once so many bytes were reserved."""
        return self._head.ring - self.used - _rounded(length)

    def reserve(self, length: int) -> int:
        """Take so many bytes of the ring; return where.  Raises DiskFull, and has taken nothing."""
        after = self._next + _rounded(length)
        if after - self._tail > self._head.ring:
            raise DiskFull(self._disk, "the journal is full")
        position, self._next = self._next, after
        return position

    def release(self, tail: int) -> None:
        """What lies before ``tail`` is not needed any more."""
        assert self._tail <= tail <= self._next
        self._tail = tail

    def write(self, position: int, data: Data) -> Record:
        """Write a record to a place that was reserved; it is not synced."""
        self._put(position, data)
        return len(data), position, self._sum(position, data)

    def read(self, source: Source) -> bytes:
        """Read a record, or what is in memory; checked."""
        if isinstance(source, bytes):
            return source
        size, position, crc = source
        data = b"".join(self._file.pread(at, length) for at, length in self._parts(position, size))
        self._check(crc == self._sum(position, data), "a record")
        return data

    def _sum(self, position: int, data: Data) -> int:
        """Of data at its place: the same elsewhere, or of another disk, has another one."""
        return zlib.crc32(data, zlib.crc32(_POSITION.pack(position), self._seed))

    def _check(self, holds: bool, what: str) -> None:
        if not holds:
            raise DiskDamaged(self._disk, f"{what} in its journal is damaged")

    def _parts(self, position: int, length: int) -> Iterator[tuple[int, int]]:
        """Where in the file a part of the ring lies, which may go over its end."""
        at = position % self._head.ring
        first = min(length, self._head.ring - at)
        yield HEADS_SIZE + at, first
        if length > first:
            yield HEADS_SIZE, length - first

    def _put(self, position: int, data: Data) -> None:
        rest = memoryview(data)
        for at, length in self._parts(position, len(rest)):
            self._file.pwrite(at, rest[:length])
            rest = rest[length:]

    # -- a batch --------------------------------------------------------------------------

    @staticmethod
    def size_of(extents: Extents) -> int:
        """What ``write_batch`` needs of the ring."""
        data = sum(end - start for start, end, source, _ in extents if isinstance(source, bytes))
        return _rounded(data) + _rounded(len(extents) * _ENTRY.size)

    def write_batch(self, position: int, epoch: int, extents: Extents) -> None:
        """Make committed extents durable as ``epoch``, in the place reserved for them."""
        entries: list[bytes] = []
        pieces: list[memoryview] = []  # of a record, which several extents share
        waiting: list[tuple[int, int, int]] = []
        size = 0
        at = position

        def flush() -> None:
            nonlocal pieces, waiting, size, at
            _, _, crc = self.write(at, b"".join(pieces))
            for start, end, where in waiting:
                entries.append(_ENTRY.pack(start, end, at, crc, size, where))
            at += size
            pieces, waiting, size = [], [], 0

        for start, end, source, where in extents:
            if source is None:
                entries.append(_ENTRY.pack(start, end, _ZEROES, 0, 0, 0))
            elif isinstance(source, bytes):
                pieces.append(memoryview(source)[where : where + end - start])
                waiting.append((start, end, size))
                size += end - start
                if size >= RECORD_MAX:
                    flush()
            else:
                length, there, crc = source
                entries.append(_ENTRY.pack(start, end, there, crc, length, where))
        if pieces:
            flush()
        self._seal(position + _rounded(at - position), epoch, b"".join(entries))

    def _seal(self, position: int, epoch: int, index: bytes) -> None:
        self._put(position, index)
        self._file.sync()  # rule 2
        self._write_head(
            replace(
                self._head.after(HeadState.JOURNAL, epoch, position + _rounded(len(index))),
                index_at=position,
                index_length=len(index),
                index_crc=self._sum(position, index),
            )
        )

    def batch(self) -> Extents:
        """The extents of the batch that the head names; all of it is read, and checked."""
        head = self._head
        assert head.state is HeadState.JOURNAL
        whole = head.index_length <= head.ring and not head.index_length % _ENTRY.size
        self._check(whole, "the index")
        index = self.read((head.index_length, head.index_at, head.index_crc))
        records: dict[int, Record] = {}
        extents = Extents()
        for start, end, position, crc, size, at in _ENTRY.iter_unpack(index):
            self._check(start < end <= head.disk_size, "the index")
            if position == _ZEROES:
                extents.put(start, end, None)
                continue
            record = records.get(position)
            if record is None:
                self._check(size <= 2 * RECORD_MAX, "the index")
                record = records[position] = (size, position, crc)
                self.read(record)
            self._check(record == (size, position, crc) and at + end - start <= size, "the index")
            extents.put(start, end, record, at)
        return extents

    # -- heads ----------------------------------------------------------------------------

    def say(self, state: HeadState, epoch: int = 0, identity: UUID | None = None) -> None:
        """Make it durable that the base is so; another identity begins another replication."""
        head = self._head.after(state, epoch, self._next)
        if identity is not None:
            head = replace(head, identity=identity)
        self._write_head(head)
        self._seed = zlib.crc32(head.identity.bytes)

    def renew(self) -> None:
        """Make the head that was found durable (rule 6)."""
        self._write_head(self._head)

    def _write_head(self, head: Head) -> None:
        self._file.pwrite(head.place, head.packed())
        self._file.sync()
        self._head = head
