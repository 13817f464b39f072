"""Digests, block by block."""

from __future__ import annotations

import hashlib
from random import Random

from colo.disks.digests import BLOCK_SIZE, DIGEST_SIZE, ZERO_DIGEST, digest, digests
from tests.disks.simulated import SimulatedFile


def test_each_block_has_its_digest_and_a_zero_one_the_constant() -> None:
    random = Random(1)
    blocks = [
        random.randbytes(BLOCK_SIZE) if index % 3 else bytes(BLOCK_SIZE) for index in range(40)
    ]
    blocks.append(random.randbytes(1000))
    file = SimulatedFile("base", b"".join(blocks))
    found = list(digests(file.pread, 0, file.size))
    assert found == [digest(block) for block in blocks]
    assert [each == ZERO_DIGEST for each in found] == [not any(block) for block in blocks]
    assert found[1] == hashlib.blake2b(blocks[1], digest_size=DIGEST_SIZE).digest()
    assert list(digests(file.pread, BLOCK_SIZE * 3, BLOCK_SIZE * 2)) == found[3:5]
    assert list(digests(file.pread, BLOCK_SIZE, 0)) == []


def test_a_short_block_of_zeroes_is_one_too() -> None:
    assert digest(bytes(7)) == ZERO_DIGEST
    assert digest(b"\0" * 6 + b"\1") != ZERO_DIGEST
    assert len(digest(b"x")) == len(ZERO_DIGEST) == DIGEST_SIZE
