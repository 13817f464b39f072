"""The memory of what was sent: by its own account, against one that has room for everything."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.migration.format import PAGE_SIZE
from colo.migration.ram import Bytes
from colo.wire.sent import SentPages
from tests.wire.hosts import BLOCKS

LISTS = st.lists(st.integers(0, 7), min_size=1, max_size=6)


def filled(values: list[int]) -> Bytes:
    return np.repeat(np.array(values, np.uint8)[:, np.newaxis], PAGE_SIZE, axis=1)


@given(
    st.integers(1, 30),
    st.lists(
        st.tuples(st.sampled_from(["learn", "learn", "forget", "begin"]), st.integers(0, 1), LISTS),
        max_size=30,
    ),
)
def test_what_is_known_is_true(slots: int, script: list[tuple[str, int, list[int]]]) -> None:
    sent = SentPages(slots)
    sent.set_blocks(BLOCKS)
    truth: dict[tuple[int, int], tuple[int, int]] = {}  # a page: its content, and since when
    generation = value = 0
    for what, block, pages in script:
        numbers = np.array(pages)
        if what == "learn":
            values = [(value := value % 255 + 1) for _ in pages]
            sent.learn(block, numbers, filled(values))
            truth |= {(block, page): (v, generation) for page, v in zip(pages, values, strict=True)}
        elif what == "forget":
            sent.forget(block, numbers)
            for page in pages:
                truth.pop((block, page), None)
        else:
            sent.begin_checkpoint()
            generation += 1
        for index in range(2):
            every = np.arange(8)
            known, content = sent.known(index, every), sent.content(index, every)
            for page in range(8):
                of_use = truth.get((index, page), (0, generation))[1] < generation
                if slots >= 24:
                    assert known[page] == of_use
                if known[page]:
                    assert of_use
                    assert (content[page] == truth[index, page][0]).all()


def test_pages_that_share_a_place_push_each_other_out() -> None:
    sent = SentPages(3)
    sent.set_blocks(BLOCKS)
    sent.learn(0, np.array([0, 3, 1]), filled([1, 2, 3]))
    sent.begin_checkpoint()
    assert sent.known(0, np.arange(4)).tolist() == [False, True, False, True]
    assert sent.content(0, np.array([3]))[0, 0] == 2


def test_another_stream_knows_nothing() -> None:
    sent = SentPages(30)
    sent.set_blocks(BLOCKS)
    sent.learn(0, np.arange(4), filled([1, 2, 3, 4]))
    sent.begin_checkpoint()
    assert sent.known(0, np.arange(4)).all()
    sent.set_blocks(BLOCKS)
    assert not sent.known(0, np.arange(4)).any()


def test_a_cache_has_a_place() -> None:
    with pytest.raises(ValueError, match="without a place"):
        SentPages(0)
