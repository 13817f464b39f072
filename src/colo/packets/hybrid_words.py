"""The hybrid link: what the hosts tell each other of two VMs that run side by side.

The primary connects, says which VM and under which grant in a line of JSON, and the secondary
answers with one.  From then on both send *words*: a header of 16 bytes, big-endian, and as many
bytes as it says::

    u8 kind · u8 zero · u16 card · u32 length · u64 number

The primary says, in this order among themselves::

    INPUT   whole frames that the network brought for a card
    CUT     the VM stood still for checkpoint ``number``: it has all that was said before
    START   that checkpoint is safe: have a secondary VM run from it
    HEARD   ``number`` bytes of what the secondary VM said on a card have left, or are covered

and the secondary::

    READY   a QEMU waits that could run the secondary VM
    RUNS    the secondary VM runs, from checkpoint ``number``
    SAID    it says these whole frames on a card; it runs from checkpoint ``number``
    GONE    no secondary VM runs from checkpoint ``number`` any more, or will; a text says why

Frames are as QEMU's filters have them (see ``packets.frames``).  No I/O, no clock; a word may come
in pieces of any size.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from colo.errors import LimitExceeded, PeerError

__all__ = ["HYBRID_MAGIC", "HYBRID_VERSION", "Kind", "Said", "WordReader", "encode"]

#: The first bytes of a hybrid link, where a control link has «COLO».
HYBRID_MAGIC: Final = b"CHYB"
HYBRID_VERSION: Final = 1
_HEADER: Final = struct.Struct(">BBHIQ")
#: More than is taken from a socket at once.
_PAYLOAD_MAX: Final = 4 << 20


class Kind(IntEnum):
    """What a word is."""

    INPUT = 1
    CUT = 2
    START = 3
    HEARD = 4
    READY = 5
    RUNS = 6
    SAID = 7
    GONE = 8


@dataclass(frozen=True)
class Said:
    """A word."""

    kind: Kind
    card: int = 0
    number: int = 0
    payload: bytes = b""


def encode(said: Said) -> bytes:
    """A whole word."""
    size = len(said.payload)
    return _HEADER.pack(said.kind, 0, said.card, size, said.number) + said.payload


class WordReader:
    """Turns bytes, in pieces of any size, into words of ``cards`` cards."""

    def __init__(self, cards: int) -> None:
        self._cards = cards
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[Said]:
        """Take more bytes; yield each word that they complete.  Raises PeerError."""
        self._data += data
        start = 0
        while len(self._data) - start >= _HEADER.size:
            kind, zero, card, size, number = _HEADER.unpack_from(self._data, start)
            if size > _PAYLOAD_MAX:
                raise LimitExceeded("a word of the hybrid link", size, _PAYLOAD_MAX)
            if zero or kind not in Kind.__members__.values() or card >= max(1, self._cards):
                raise PeerError(f"the hybrid link says a word {kind} of card {card}")
            begin = start + _HEADER.size
            if len(self._data) < begin + size:
                break
            start = begin + size
            yield Said(Kind(kind), card, number, bytes(self._data[begin:start]))
        del self._data[:start]
