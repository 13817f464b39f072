"""Digests of a disk, block by block, by which two hosts find out where their copies differ."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Final

__all__ = ["BLOCK_SIZE", "DIGEST_SIZE", "ZERO_DIGEST", "digest", "digests", "is_zeroes"]

BLOCK_SIZE: Final = 64 << 10
DIGEST_SIZE: Final = 16
#: Of a block, or a part of one, that is nothing but zeroes: most of a new disk.
ZERO_DIGEST: Final = bytes(DIGEST_SIZE)
#: How much is read at a time.
_READ_BLOCKS: Final = 16
_ZEROES: Final = bytes(BLOCK_SIZE)


def is_zeroes(block: bytes | memoryview) -> bool:
    """Whether at most ``BLOCK_SIZE`` bytes are nothing but zeroes."""
    return block == (_ZEROES if len(block) == BLOCK_SIZE else bytes(len(block)))


def digest(block: bytes) -> bytes:
    """The digest of at most ``BLOCK_SIZE`` bytes."""
    if is_zeroes(block):
        return ZERO_DIGEST
    return hashlib.blake2b(block, digest_size=DIGEST_SIZE).digest()


def digests(read: Callable[[int, int], bytes], offset: int, length: int) -> Iterator[bytes]:
    """Yield the digest of each block of a range, which begins at one; the last may be shorter.

    ``read`` is the ``pread`` of a BlockFile, or a replica's ``read``.  Raises what it
    raises.
    """
    assert offset % BLOCK_SIZE == 0
    at_once = BLOCK_SIZE * _READ_BLOCKS
    for begin in range(offset, offset + length, at_once):
        data = read(begin, min(at_once, offset + length - begin))
        for at in range(0, len(data), BLOCK_SIZE):
            yield digest(data[at : at + BLOCK_SIZE])
