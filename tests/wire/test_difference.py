"""Differences: what they are byte by byte, and that they can be undone, wherever memory lies."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.migration.format import PAGE_SIZE
from colo.wire.difference import (
    Misshapen,
    apply_to_bytes,
    apply_to_pages,
    difference_of_bytes,
    difference_of_pages,
    records,
)
from colo.wire.frames import RECORD_SIZE

ALL = np.ones(1, np.bool_)


def test_the_difference_of_a_page_word_by_word() -> None:
    old = np.zeros((1, PAGE_SIZE), np.uint8)
    record = bytearray(RECORD_SIZE)
    record[:8] = bytes.fromhex("0000000000003028")
    record[8 + 3] = 7  # word 0
    record[8 + 9 * 8 : 8 + 10 * 8] = b"changed!"
    body = difference_of_pages(records(memoryview(record)), old, ALL)
    assert body is not None
    begin, words = body
    assert begin == bytes.fromhex("00000001 0000000000003028 0102") + bytes(62)
    assert bytes(words) == bytes.fromhex("0000000700000000") + b"changed!"


@given(
    st.integers(1, 5),
    st.integers(0, 7),
    st.sampled_from([0.0, 0.002, 0.1, 0.9]),
    st.integers(0, 1 << 31),
)
def test_the_difference_of_pages_can_be_undone_at_any_alignment(
    count: int, at: int, share: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    old = np.frombuffer(rng.bytes(count * PAGE_SIZE), np.uint8).reshape(count, PAGE_SIZE)
    memory = bytearray(at + count * RECORD_SIZE)
    new = records(memoryview(memory)[at:])
    new[:, :8] = rng.integers(0, 256, (count, 8))
    new[:, 8:] = old
    new[:, 8:].view(np.uint64)[rng.random((count, 512)) < share] ^= np.uint64(1 << 40)
    known = rng.random(count) < 0.8
    body = difference_of_pages(new, np.where(known[:, np.newaxis], old, 0).astype(np.uint8), known)
    if body is None:
        assert share == 0.9 or not known.all()
        return
    target = np.empty(at + count * RECORD_SIZE, np.uint8)[at:].reshape(count, RECORD_SIZE)
    packed = np.frombuffer(bytes(at) + b"".join(body), np.uint8)[at:]
    apply_to_pages(packed, old, target)
    assert (target == new).all()


def test_a_difference_that_is_not_smaller_is_none() -> None:
    old = np.zeros((1, PAGE_SIZE), np.uint8)
    record = np.zeros((1, RECORD_SIZE), np.uint8)
    words = record[:, 8:].view(np.uint64)
    words[0, :503] = 1
    assert difference_of_pages(record, old, ALL) is not None
    words[0, :504] = 1
    assert difference_of_pages(record, old, ALL) is None


@given(st.binary(min_size=1, max_size=700), st.lists(st.integers(0, 699), max_size=9))
def test_the_difference_of_bytes_can_be_undone(old: bytes, changed: list[int]) -> None:
    new = bytearray(old)
    for at in changed:
        new[at % len(new)] ^= 0x55
    body = np.frombuffer(difference_of_bytes(bytes(new), old), np.uint8)
    assert apply_to_bytes(body, old) == new


def test_the_difference_of_bytes_word_by_word() -> None:
    assert difference_of_bytes(bytes(16) + b"ab", bytes(18)).hex() == "04" + b"ab".hex() + 12 * "0"


PAGE_BODY = (1).to_bytes(4, "big") + bytes(8) + b"\1" + bytes(63)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "0 bytes for 1 pages"),
        (PAGE_BODY[:-1], "75 bytes for 1 pages"),
        (b"\0\0\0\2" + PAGE_BODY[4:], "2 pages where 1 belong"),
        (PAGE_BODY, "0 bytes where 1 words belong"),
        (PAGE_BODY + bytes(9), "9 bytes where 1 words belong"),
        (PAGE_BODY + bytes(16), "16 bytes where 1 words belong"),
    ],
)
def test_a_body_of_pages_that_does_not_fit(body: bytes, text: str) -> None:
    target = np.empty((1, RECORD_SIZE), np.uint8)
    old = np.zeros((1, PAGE_SIZE), np.uint8)
    with pytest.raises(Misshapen, match=text):
        apply_to_pages(np.frombuffer(body, np.uint8), old, target)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("", "0 bytes where a bitmap has 1"),
        ("08", "bits behind the last word"),
        ("01", "0 bytes where 1 words belong"),
        ("04 6162 000000000001", "bytes behind the last one"),
    ],
)
def test_a_body_of_bytes_that_does_not_fit(body: str, text: str) -> None:
    with pytest.raises(Misshapen, match=text):
        apply_to_bytes(np.frombuffer(bytes.fromhex(body), np.uint8), bytes(18))
