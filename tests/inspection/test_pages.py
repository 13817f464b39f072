"""Statistics of pages, by marks; a plain count of whole pages says the same."""

from __future__ import annotations

import random
import zlib

import numpy as np
import pytest

from colo.errors import ColoError
from colo.inspection.pages import Pages, Statistics, page_marks, statistics
from colo.migration.format import PAGE_SIZE
from colo.migration.ram import PageRun, RamBlock
from tests.streams import RAM, RSDP, blank, content, fill, pages_of, paint

ZERO = bytes(PAGE_SIZE)


def run_of(block: RamBlock, *pages: tuple[int, bytes]) -> PageRun:
    """Pages in full, whatever is in them."""
    offsets = np.array([number * PAGE_SIZE for number, _ in pages], np.int64)
    data = b"".join(data for _, data in pages)
    return PageRun(block, offsets, np.frombuffer(data, np.uint8).reshape(-1, PAGE_SIZE))


def memory_of(*runs: PageRun) -> dict[str, Pages]:
    """Both blocks, after some runs of pages."""
    memory = {block.name: Pages(block, RAM.pages + RSDP.pages) for block in (RAM, RSDP)}
    for run in runs:
        memory[run.block.name].write(run)
    return memory


def counted_plainly(*runs: PageRun) -> dict[str, tuple[int, int, int, int]]:
    """Zero, fill, equal and unique pages of each block."""
    images = blank((RAM, RSDP))
    paint(images, pages_of(runs))
    seen: set[bytes] = set()
    found = {}
    for name, image in images.items():
        kinds = [0, 0, 0, 0]
        for at in range(0, len(image), PAGE_SIZE):
            page = bytes(image[at : at + PAGE_SIZE])
            if page == page[:1] * PAGE_SIZE:
                kinds[1 if page[0] else 0] += 1
            else:
                kinds[2 if page in seen else 3] += 1
                seen.add(page)
        found[name] = (kinds[0], kinds[1], kinds[2], kinds[3])
    return found


def counted(memory: dict[str, Pages]) -> dict[str, tuple[int, int, int, int]]:
    return {
        name: (found.zero, found.fill, found.equal, found.unique)
        for name, found in statistics(memory).items()
    }


def test_pages_of_every_kind() -> None:
    one, two = content(1), content(2)
    runs = (
        run_of(RAM, (0, one), (1, two), (2, one), (3, ZERO), (4, b"\5" * PAGE_SIZE)),
        fill(RAM, [5, 6], 7),
        fill(RAM, [7]),
        run_of(RSDP, (0, two)),
    )
    memory = memory_of(*runs)
    assert counted(memory) == counted_plainly(*runs)
    assert counted(memory) == {RAM.name: (10, 3, 1, 2), RSDP.name: (0, 0, 1, 0)}


def test_the_last_content_counts() -> None:
    one = content(1)
    runs = (
        run_of(RAM, (0, one), (1, one), (2, one), (3, one)),
        fill(RAM, [0]),
        fill(RAM, [1], 9),
        run_of(RAM, (2, content(2)), (2, content(3))),
        fill(RAM, [4], 9),
        run_of(RAM, (4, one)),
    )
    memory = memory_of(*runs)
    assert counted(memory) == counted_plainly(*runs)
    sizes = [len(zlib.compress(page, 1)) for page in (content(3), one, one)]
    found = statistics(memory)[RAM.name]
    assert (found.sampled, found.sampled_bytes) == (3, sum(sizes))


@pytest.mark.parametrize("seed", range(20))
def test_counts_are_those_of_a_plain_count(seed: int) -> None:
    draw = random.Random(seed)
    runs = []
    for _ in range(draw.randrange(1, 30)):
        block = draw.choice((RAM, RAM, RSDP))
        numbers = [draw.randrange(block.pages) for _ in range(draw.randrange(1, 6))]
        if draw.random() < 0.4:
            runs.append(fill(block, numbers, draw.choice((0, 0, 1, 255))))
        else:
            filled = bytes([draw.choice((0, 3))]) * PAGE_SIZE
            choice = [content(1), content(2), content(3), filled]
            runs.append(run_of(block, *((number, draw.choice(choice)) for number in numbers)))
    assert counted(memory_of(*runs)) == counted_plainly(*runs)


def test_marks_tell_pages_apart_by_any_byte() -> None:
    pages = np.zeros((PAGE_SIZE + 3, PAGE_SIZE), np.uint8)
    np.fill_diagonal(pages, 1)  # a one at a place of its own in each
    pages[PAGE_SIZE + 1] = 1
    pages[PAGE_SIZE + 2] = 2
    assert len({mark.tobytes() for mark in page_marks(pages)}) == len(pages)


def test_a_page_has_one_mark_however_it_comes() -> None:
    for value in (0, 1, 255):
        short = np.full((1, 1), value, np.uint8)
        whole = np.full((1, PAGE_SIZE), value, np.uint8)
        assert (page_marks(short) == page_marks(whole)).all()
    assert page_marks(np.zeros((0, PAGE_SIZE), np.uint8)).shape == (0, 16)


def test_no_page_and_no_block() -> None:
    assert statistics({}) == {}
    found = statistics(memory_of())
    assert found[RAM.name] == Statistics(16, 16, 0, 0, 0, 0, 0)
    assert found[RAM.name].ratio is None


def test_a_small_memory_is_sampled_as_a_whole() -> None:
    half = content(1)[: PAGE_SIZE // 2] + bytes(PAGE_SIZE // 2)
    found = statistics(memory_of(run_of(RAM, *((n, half) for n in range(16)))))[RAM.name]
    assert found.sampled == 16
    assert found.ratio == pytest.approx(0.5, abs=0.02)


def test_of_a_large_memory_some_pages_are_sampled_all_over_it() -> None:
    block = RamBlock("large", 1024 * PAGE_SIZE)
    pages = Pages(block, 64 * 16_384)
    page = b"ab" * (PAGE_SIZE // 2)
    pages.write(run_of(block, *((number, page) for number in range(block.pages))))
    assert 8 <= len(pages.sample) <= 24  # one of 64


def test_a_block_that_is_too_large_is_refused() -> None:
    with pytest.raises(ColoError, match=r"huge .* too large for this machine"):
        Pages(RamBlock("huge", 1 << 60), 1 << 48)
