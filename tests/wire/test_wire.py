"""Both ends together: what host B decodes is what host A was given, whatever was sent before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colo.migration.format import PAGE_SIZE
from colo.migration.ram import PageRun
from colo.wire.choice import Way
from colo.wire.frames import MAX_DECODED, RECORD_SIZE, Kind, parse
from colo.wire.sent import SentPages
from tests.wire.hosts import BLOCKS, SLOW, Pair, Turns, content, pages

NUMBERS = st.lists(st.integers(0, 4), min_size=1, max_size=5)
SEEDS = st.sampled_from([0, 1, 10, 11, 12, 13])
Step = tuple[str, Any]


@st.composite
def steps(draw: st.DrawFn) -> Step:
    """Something that is sent."""
    kind = draw(st.sampled_from(["run", "run", "run", "run", "named", "fill", "plain", "devices"]))
    block = draw(st.sampled_from(BLOCKS))
    if kind == "run":
        numbers = draw(NUMBERS)
        if draw(st.integers(0, 3)):
            numbers = sorted(set(numbers))
        return kind, pages(numbers, [draw(SEEDS) for _ in numbers], block)
    if kind == "named":
        return kind, pages([draw(st.integers(0, 4))], [draw(SEEDS)], block)
    if kind == "fill":
        offsets = np.array([number * PAGE_SIZE for number in draw(NUMBERS)])
        return kind, PageRun(block, offsets, np.full((len(offsets), 1), draw(SEEDS), np.uint8))
    if kind == "plain":
        return kind, draw(st.binary(max_size=20)) * draw(st.sampled_from([1, 100]))
    size = draw(st.sampled_from([0, 1, 7, 8, 9, 64, 65, 1000]))
    return kind, content(draw(SEEDS))[:size].tobytes()


@st.composite
def scripts(draw: st.DrawFn) -> list[Step]:
    """Some checkpoints; one in four is lost, with the connection."""
    script: list[Step] = []
    for _ in range(draw(st.integers(1, 6))):
        script += draw(st.lists(steps(), min_size=1, max_size=5))
        script.append((draw(st.sampled_from(["whole", "whole", "whole", "lost"])), None))
    return script


def play(pair: Pair, script: list[Step]) -> None:
    calls = {"run": pair.pages, "named": pair.others, "fill": pair.others}
    for kind, what in script:
        if kind in calls:
            calls[kind](what)
        elif kind == "plain":
            pair.plain(what)
        elif kind == "devices":
            pair.devices(what)
        elif kind == "whole":
            pair.checkpoint()
        else:
            pair.lose()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    scripts(),
    st.lists(st.sampled_from(list(Way)), min_size=1, max_size=7),
    st.sampled_from([1, 2, 3, 7, 64]),
    st.lists(st.integers(1, 6000), max_size=6),
)
def test_whatever_is_sent_is_what_arrives(
    script: list[Step], ways: list[Way], slots: int, cuts: list[int]
) -> None:
    pair = Pair(Turns(ways), slots)
    pair.cuts = cuts
    play(pair, script)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    scripts(),
    st.sampled_from([0, 64]),
    st.booleans(),
    st.sampled_from([None, SLOW, 1e9]),
)
def test_and_by_its_own_choice(
    script: list[Step], slots: int, compress: bool, rate: float | None
) -> None:
    pair = Pair(None, slots, compress)
    for number in range(3):
        pair.encoder.rate = rate if number != 1 else SLOW
        play(pair, script)


def test_it_may_be_cut_at_every_byte() -> None:
    sender = Pair(Turns([Way.DIFFERENCE, Way.BOTH]))
    small = Pair(Turns([Way.DIFFERENCE, Way.BOTH]))
    first = pages(range(3), [10, 20, 30])
    for pair in (sender, small):
        pair.pages(first)
        pair.checkpoint()
    wire = expected = b""
    for run in (pages(range(3), [11, 21, 31]), pages([1], [22]), pages(range(2), [11, 21])):
        sender.pages(run)
        wire += sender.wire
    sender.devices(bytes(100))
    wire += sender.wire
    sender.plain(b"the end")
    wire += sender.wire
    expected = small.b.hear(wire)
    assert len(expected) == 6 * RECORD_SIZE + 107
    for cut in range(len(wire) + 1):
        small.b.connect()
        got = small.b.hear(wire[:cut]) + small.b.hear(wire[cut:])
        assert got == expected
        small.b.decoder.end()
    small.b.connect()
    assert small.b.hear(wire, [1] * len(wire)) == expected


def test_unchanged_pages_are_nearly_free() -> None:
    pair = Pair()
    run = pages(range(16), range(10, 170, 10))
    assert pair.pages(run) == 16 + len(run) * RECORD_SIZE
    pair.checkpoint()
    assert pair.pages(run) == 16 + 4 + len(run) * 72


def test_what_was_sent_within_the_checkpoint_is_no_base() -> None:
    pair = Pair()
    pair.pages(pages([3], [10]))
    pair.checkpoint()
    pair.pages(pages([3], [11]))
    assert pair.pages(pages([3], [12])) > PAGE_SIZE
    pair.checkpoint()
    assert pair.pages(pages([3], [13])) < PAGE_SIZE


def test_nor_is_it_one_in_a_frame_of_pages_that_have_theirs() -> None:
    pair = Pair()
    pair.pages(pages(range(4), [10, 20, 30, 40]))
    pair.checkpoint()
    pair.pages(pages([3], [41]))
    size = pair.pages(pages(range(4), [11, 21, 31, 42]))
    assert parse(pair.wire, 0).kind is Kind.PAGES
    assert PAGE_SIZE < size < 2 * PAGE_SIZE


def test_a_page_of_one_byte_is_no_base_and_what_was_before_it_neither() -> None:
    pair = Pair()
    pair.pages(pages([3], [10]))
    pair.checkpoint()
    pair.others(PageRun(BLOCKS[0], np.array([3 * PAGE_SIZE]), np.zeros((1, 1), np.uint8)))
    pair.checkpoint()
    assert pair.pages(pages([3], [10])) > PAGE_SIZE


def test_a_page_that_names_its_block_is_a_base() -> None:
    pair = Pair()
    pair.others(pages([3], [10]))
    pair.checkpoint()
    assert pair.pages(pages([3], [11])) < PAGE_SIZE


def test_pages_without_a_base_go_in_full_within_the_frame() -> None:
    pair = Pair()
    pair.pages(pages([1, 2], [10, 20]))
    pair.checkpoint()
    size = pair.pages(pages([0, 1, 2, 5], [0, 11, 21, 30]))
    assert 2 * PAGE_SIZE < size < 3 * PAGE_SIZE
    assert parse(pair.wire, 0).kind is Kind.PAGES
    assert pair.b.asked[-1] == (0, [0, 1, 2, 5])


def test_where_few_have_a_base_none_is_used() -> None:
    pair = Pair()
    pair.pages(pages([1], [10]))
    pair.checkpoint()
    pair.pages(pages(range(5), [0, 10, 20, 30, 40]))
    assert parse(pair.wire, 0).kind is Kind.PLAIN


def test_a_page_that_comes_twice_in_a_run_is_right() -> None:
    pair = Pair()
    pair.pages(pages([1, 2], [10, 20]))
    pair.checkpoint()
    pair.pages(pages([1, 2, 1], [11, 21, 12]))
    assert parse(pair.wire, 0).kind is Kind.PLAIN
    pair.checkpoint()
    pair.pages(pages([1], [12]))
    assert len(pair.wire) == 16 + 4 + 72, "the last one counts"


def test_what_does_not_get_smaller_goes_as_it_is() -> None:
    pair = Pair(Way.BOTH)
    run = pages(range(4), [10, 20, 30, 40])
    pair.pages(run)
    pair.checkpoint()
    pair.pages(pages(range(4), [110, 120, 130, 140]))
    assert parse(pair.wire, 0).is_raw
    assert len(pair.wire) == 16 + len(run) * RECORD_SIZE


def test_a_lost_connection_leaves_nothing() -> None:
    pair = Pair()
    pair.pages(pages([1], [10]))
    pair.devices(bytes(1000))
    pair.checkpoint()
    pair.pages(pages([1], [11]))
    pair.devices(bytes(999) + b"1")
    pair.lose()
    assert pair.pages(pages([1], [11])) > PAGE_SIZE
    assert pair.devices(bytes(999) + b"1") > 1000
    pair.checkpoint()
    assert pair.pages(pages([1], [12])) < PAGE_SIZE


def test_what_was_sent_in_a_lost_checkpoint_is_never_a_base() -> None:
    pair = Pair()
    pair.pages(pages([1], [10]))
    pair.lose()
    pair.checkpoint()
    assert pair.pages(pages([1], [11])) > PAGE_SIZE


def test_a_device_state_is_told_by_what_has_changed() -> None:
    pair = Pair()
    assert pair.devices(bytes(10_001)) == 16 + 10_001
    assert pair.devices(bytes(10_000) + b"1") == 16 + 157 + 8
    assert pair.devices(bytes(10_002)) == 16 + 10_002
    assert pair.devices(bytes(10_002)) == 16 + 157


def test_a_device_state_that_is_too_large_goes_as_it_is() -> None:
    pair = Pair()
    assert pair.devices(bytes(MAX_DECODED + 1)) == MAX_DECODED + 1 + 2 * 16
    assert pair.devices(bytes(8)) == 24


@pytest.mark.parametrize("way", Way)
def test_large_pieces_are_split(way: Way) -> None:
    pair = Pair(way, slots=2000, blocks=(big := (BLOCKS[0].__class__("pc.ram", 2000 << 12),)))
    run = pages(range(1100), [seed % 90 for seed in range(1100)], big[0])
    pair.pages(run)
    pair.checkpoint()
    pair.pages(run)
    pair.plain(bytes(5_000_001))


def test_memory_for_the_cache_may_be_given() -> None:
    memory = bytearray(5 * PAGE_SIZE)
    sent = SentPages(5, memoryview(memory))
    sent.set_blocks(BLOCKS)
    sent.learn(0, np.array([6]), content(30).reshape(1, -1))
    assert memory[PAGE_SIZE : 2 * PAGE_SIZE] == content(30).tobytes()
