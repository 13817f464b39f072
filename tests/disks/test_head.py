"""Heads: the newest is found whatever one crash or one damaged byte leaves, or nothing is."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from uuid import UUID

import pytest

from colo.disks.head import HEADS_SIZE, PLACE_SIZE, Head, HeadState, Unreadable, newest

HEAD = Head(6, UUID(int=9), 1 << 40, 1 << 30, HeadState.JOURNAL, 77, 8192, 4096, 72, 0xFFFFFFFF)
OLD = replace(HEAD, number=5, state=HeadState.CLEAN, epoch=76)


def places(even: Head, odd: Head) -> bytearray:
    return bytearray(even.packed() + odd.packed())


@pytest.mark.parametrize("state", HeadState)
def test_what_is_packed_is_found(state: HeadState) -> None:
    head = replace(HEAD, state=state)
    assert len(head.packed()) == PLACE_SIZE
    assert newest(bytes(places(head, OLD))) == head
    after = replace(head, number=7)
    assert newest(bytes(places(head, after))) == after
    assert (head.place, after.place) == (0, PLACE_SIZE)


def test_a_head_that_follows_has_no_index() -> None:
    after = HEAD.after(HeadState.CLEAN, 77, 12288)
    assert after == Head(7, HEAD.identity, 1 << 40, 1 << 30, HeadState.CLEAN, 77, 12288)


def test_no_damaged_byte_hides_anything() -> None:
    whole = places(HEAD, OLD)
    for at in range(HEADS_SIZE):
        whole[at] ^= 0x10
        assert newest(bytes(whole)) == HEAD
        whole[at] ^= 0x10


@pytest.mark.parametrize("copies", range(9))
def test_a_head_counts_once_any_copy_is_there(copies: int) -> None:
    before = replace(HEAD, number=4, epoch=75)
    there = Random(copies).sample(range(8), copies)
    both = places(before, OLD)
    for copy in there:
        both[copy * 512 : copy * 512 + 512] = HEAD.packed()[:512]
    assert newest(bytes(both)) == (HEAD if copies else OLD)


def test_a_torn_copy_is_none() -> None:
    before = replace(HEAD, number=4, epoch=75)
    for length in range(512):
        both = places(before, OLD)
        both[:length] = HEAD.packed()[:length]
        assert newest(bytes(both)) == OLD


@pytest.mark.parametrize("place", [0, 1])
def test_where_a_place_is_lost_nothing_is_known(place: int) -> None:
    both = places(HEAD, OLD)
    both[place * PLACE_SIZE : (place + 1) * PLACE_SIZE] = Random(1).randbytes(PLACE_SIZE)
    with pytest.raises(Unreadable, match="head is damaged"):
        newest(bytes(both))


@pytest.mark.parametrize(("even", "odd"), [(6, 3), (2, 5), (6, 6), (5, 6), (5, 4)])
def test_heads_that_do_not_follow_each_other_say_nothing(even: int, odd: int) -> None:
    with pytest.raises(Unreadable, match="head is damaged"):
        newest(bytes(places(replace(HEAD, number=even), replace(HEAD, number=odd))))


def test_what_is_no_head_is_none() -> None:
    for content in (bytes(HEADS_SIZE), Random(1).randbytes(HEADS_SIZE)):
        with pytest.raises(Unreadable, match="no journal"):
            newest(content)
