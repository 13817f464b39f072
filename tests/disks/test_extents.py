"""Extents against an array of bytes: the newest write wins, nothing overlaps, nothing is counted
wrong."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

import colo.disks.extents
from colo.disks.extents import Extent, Extents, folded

SIZE = 300

#: (start, length, kind): zeroes, data, or data that lies at the disk's own offset in one buffer.
WRITES = st.lists(
    st.tuples(st.integers(0, SIZE - 1), st.integers(1, 60), st.sampled_from("zds")), max_size=60
)
SHARED = bytes(index % 251 for index in range(SIZE))


@pytest.fixture(autouse=True, params=[4, 512], ids=["small chunks", "one chunk"])
def chunks(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(colo.disks.extents, "_CHUNK_MAX", request.param)
        yield


def play(extents: Extents, model: list[int | None], writes: list[tuple[int, int, str]]) -> None:
    for number, (start, length, kind) in enumerate(writes):
        end = min(start + length, SIZE)
        if kind == "z":
            extents.put(start, end, None)
            model[start:end] = [0] * (end - start)
        elif kind == "d":
            source = bytes([number % 255 + 1]) * (end - start)
            extents.put(start, end, source)
            model[start:end] = [number % 255 + 1] * (end - start)
        else:
            extents.put(start, end, SHARED, start)
            model[start:end] = [index % 251 for index in range(start, end)]


def shown(extents: Iterator[Extent]) -> list[int | None]:
    result: list[int | None] = [None] * SIZE
    for start, end, source, at in extents:
        assert start < end
        assert result[start:end] == [None] * (end - start), "they overlap"
        if source is None:
            result[start:end] = [0] * (end - start)
        else:
            assert isinstance(source, bytes)
            data = source[at : at + end - start]
            assert len(data) == end - start
            result[start:end] = data
    return result


def checked(extents: Extents) -> list[int | None]:
    found = list(extents)
    assert found == sorted(found, key=lambda each: each[0])
    assert len(found) == len(extents)
    for left, right in pairwise(found):
        if left[1] == right[0] and left[2] is right[2]:
            assert left[2] is not None
            assert left[3] + left[1] - left[0] != right[3], "they are one"
    sources = {id(source): source for _, _, source, _ in found if isinstance(source, bytes)}
    assert extents.data_bytes == sum(map(len, sources.values()))
    assert (extents.memory_bytes > 0) == bool(found)
    return shown(iter(found))


@given(writes=WRITES, start=st.integers(0, SIZE - 1), length=st.integers(0, SIZE))
def test_it_is_an_array(writes: list[tuple[int, int, str]], start: int, length: int) -> None:
    extents = Extents()
    model: list[int | None] = [None] * SIZE
    play(extents, model, writes)
    assert checked(extents) == model
    end = min(start + length, SIZE)
    within = shown(extents.overlaps(start, end))
    assert within[start:end] == model[start:end]
    assert within[:start] + within[end:] == [None] * (SIZE - (end - start))


@given(epochs=st.lists(WRITES, max_size=4))
def test_the_newest_of_several_wins(epochs: list[list[tuple[int, int, str]]]) -> None:
    maps: list[Extents] = []
    model: list[int | None] = [None] * SIZE
    for writes in epochs:
        extents = Extents()
        play(extents, model, writes)
        maps.append(extents)
    before = [list(each) for each in maps]
    assert checked(folded(maps)) == model
    assert [list(each) for each in maps] == before


def test_many_aligned_writes_are_as_many_extents_and_zeroing_all_is_one() -> None:
    extents = Extents()
    blocks = 5000
    for index in range(blocks):
        block = index * 2741 % blocks
        extents.put(block * 8192, block * 8192 + 4096, bytes(4096))
    assert len(extents) == blocks
    assert extents.data_bytes == blocks * 4096
    extents.put(0, 1 << 40, None)
    assert list(extents) == [(0, 1 << 40, None, 0)]
    assert extents.data_bytes == 0


def test_a_source_counts_as_long_as_a_part_of_it_does() -> None:
    extents = Extents()
    extents.put(0, 100, bytes(100))
    extents.put(10, 90, None)
    assert len(extents) == 3
    assert extents.data_bytes == 100
    extents.put(0, 10, None)
    assert extents.data_bytes == 100
    extents.put(90, 100, None)
    assert (len(extents), extents.data_bytes) == (1, 0)


def test_what_lies_in_the_journal_is_not_in_memory() -> None:
    extents = Extents()
    extents.put(0, 100, (100, 4096, 1))
    assert extents.data_bytes == 0
    assert 0 < extents.memory_bytes < 1000
