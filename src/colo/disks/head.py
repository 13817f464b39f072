"""The head of a journal: what is known of the disk, in two places that are written in turns.

A head fits into a sector of 512 bytes, which a disk writes as a whole or not at all.  A place is
a block of 4 KiB with eight copies of it.  The heads are numbered, the even ones go to the first
place and the odd ones to the second.

- A crash while one is written leaves copies of the old one, of the new one, or of both in its
  place: the new one counts as soon as any copy is there.
- A damaged copy hides nothing, there are seven more.
- A damaged place would hide the newest head, and the one before it says what was true once.  So
  both places must have a head, and their numbers must follow each other: else nothing is known.

So a head may be acted upon once it is durable in its place, and written once all that it says is
true whether or not it becomes durable.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum
from typing import Final
from uuid import UUID

__all__ = ["HEADS_SIZE", "MAGIC", "PLACE_SIZE", "Head", "HeadState", "Unreadable", "newest"]

MAGIC: Final = b"colodsk1"
#: Magic, number, identity, disk's size, ring's size, state, epoch, next, index: at, length, crc.
_HEAD: Final = struct.Struct("<8sQ16sQQIQQQQI")
_CRC: Final = struct.Struct("<I")
_SECTOR: Final = 512
PLACE_SIZE: Final = 4096
HEADS_SIZE: Final = 2 * PLACE_SIZE


class HeadState(IntEnum):
    """What the base is."""

    COPYING = 1  #: a mixture: the first copy runs, or was cut off
    CLEAN = 2  #: the disk at checkpoint ``epoch``
    JOURNAL = 3  #: that, once what the journal has of ``epoch`` is written into it
    HANDED_OVER = 4  #: the disk of a VM that runs, or ran, on it


class Unreadable(ValueError):
    """There is no head that says what is true; the text says why."""


@dataclass(frozen=True)
class Head:
    """What one says.  ``identity``: which replication the epochs are of.

    ``ring``: how many bytes the journal's ring has.  ``next``: where it goes on.  ``index_at``,
    ``index_length``, ``index_crc``: the index of the epoch that the journal has.
    """

    number: int
    identity: UUID
    disk_size: int
    ring: int
    state: HeadState = HeadState.COPYING
    epoch: int = 0
    next: int = 0
    index_at: int = 0
    index_length: int = 0
    index_crc: int = 0

    @property
    def place(self) -> int:
        """Where in the journal's file it belongs."""
        return self.number % 2 * PLACE_SIZE

    def after(self, state: HeadState, epoch: int, next_: int) -> Head:
        """The head to follow this one, without an index."""
        number = self.number + 1
        return Head(number, self.identity, self.disk_size, self.ring, state, epoch, next_)

    def packed(self) -> bytes:
        """A place full of it."""
        body = _HEAD.pack(
            MAGIC,
            self.number,
            self.identity.bytes,
            self.disk_size,
            self.ring,
            self.state,
            self.epoch,
            self.next,
            self.index_at,
            self.index_length,
            self.index_crc,
        ).ljust(_SECTOR - _CRC.size, b"\0")
        return (body + _CRC.pack(zlib.crc32(body))) * (PLACE_SIZE // _SECTOR)


def _copy(sector: bytes) -> Head | None:
    body = sector[: -_CRC.size]
    if zlib.crc32(body) != _CRC.unpack(sector[-_CRC.size :])[0]:
        return None
    magic, number, identity, disk, ring, state, *rest = _HEAD.unpack_from(body)
    if magic != MAGIC:
        return None
    try:
        return Head(number, UUID(bytes=identity), disk, ring, HeadState(state), *rest)
    except ValueError:
        return None


def _in_place(place: bytes) -> Head | None:
    copies = [_copy(place[at : at + _SECTOR]) for at in range(0, PLACE_SIZE, _SECTOR)]
    return max((each for each in copies if each), key=lambda each: each.number, default=None)


def newest(both: bytes) -> Head:
    """The head that counts, of the ``HEADS_SIZE`` bytes of both places.  Raises Unreadable."""
    heads = [_in_place(both[at : at + PLACE_SIZE]) for at in (0, PLACE_SIZE)]
    even, odd = heads
    if even is None and odd is None:
        raise Unreadable("there is no journal in it")
    if even is None or odd is None or abs(even.number - odd.number) != 1 or even.number % 2:
        raise Unreadable("the journal's head is damaged")
    return max(even, odd, key=lambda each: each.number)
