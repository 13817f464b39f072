"""What an encoder does with each class of data, what it counts, and what it leaves alone."""

from __future__ import annotations

import numpy as np
import pytest

from colo.migration.format import PAGE_SIZE
from colo.migration.ram import PageRun
from colo.wire.choice import TRY_FIRST, WORK_MIN, Choice, Cost, Way
from colo.wire.encoder import Data, Encoder
from colo.wire.frames import MAX_DECODED, RECORD_SIZE, Kind, parse
from colo.wire.sent import SentPages
from tests.wire.hosts import BLOCKS, SLOW, Pair, Ticks, pages, stream


@pytest.mark.parametrize("rate", [None, 1 / WORK_MIN])
def test_a_fast_link_costs_no_look_at_the_clock_and_no_copy(rate: float | None) -> None:
    clock = Ticks()
    encoder = Encoder(SentPages(64), True, clock)
    encoder.set_blocks(BLOCKS)
    encoder.rate = rate
    run = pages(range(4), [10, 20, 30, 40])
    data = memoryview(stream(run))
    for _ in range(5):
        head, body = encoder.pages(run, data)
        assert parse(head, 0).is_raw
        assert isinstance(body, memoryview) and body.obj is data.obj
        encoder.plain(bytes(5000))
        encoder.devices(bytes(5000))
        encoder.begin_checkpoint()
    assert not clock.read
    assert encoder.figures.total.stream_bytes == 5 * (len(data) + 10000)
    assert encoder.figures.total.wire_bytes == 5 * (len(data) + 10000 + 3 * 16)
    assert encoder.figures.total.work_s == 0


def test_what_was_sent_while_nothing_could_pay_is_no_base_later() -> None:
    pair = Pair(None)
    pair.encoder.rate = SLOW
    pair.pages(pages([1], [10]))
    pair.checkpoint()
    pair.encoder.rate = None
    pair.pages(pages([1], [20]))
    pair.others(pages([2], [20]))
    pair.checkpoint()
    pair.encoder.choices = Pair().encoder.choices
    assert pair.pages(pages([1], [11])) > PAGE_SIZE


def test_a_slow_link_gets_the_smaller_way() -> None:
    pair = Pair(None)
    seen = []
    for number in range(20):
        run = pages(range(8), [10 * page + number % 10 for page in range(8)])
        seen.append(pair.pages(run))
        pair.checkpoint()
    assert seen[0] > 4 * PAGE_SIZE
    assert max(seen[-5:]) < PAGE_SIZE
    ways = pair.encoder.figures.by_way
    assert ways["difference"].stream_bytes >= TRY_FIRST * 8 * RECORD_SIZE
    assert ways["difference+zstd"].stream_bytes >= TRY_FIRST * 8 * RECORD_SIZE
    assert sum(way.wire_bytes for way in ways.values()) == sum(seen)
    assert all(way.work_s > 0 for name, way in ways.items() if name != "plain")


def test_text_is_compressed_on_a_slow_link_and_noise_is_not() -> None:
    pair = Pair(None)
    text = b"all work and no play " * 500
    sizes = [pair.plain(text) for _ in range(5)]
    assert sizes[-1] < len(text) / 10
    assert parse(pair.wire, 0).kind is Kind.PLAIN
    noise = np.random.default_rng(1).bytes(10000)
    assert pair.plain(noise) == len(noise) + 16


def test_a_few_bytes_are_never_coded() -> None:
    pair = Pair(Way.ZSTD)
    assert pair.plain(bytes(1000)) == 1016
    assert pair.plain(bytes(2000)) < 100
    assert pair.plain(b"") == 0


def test_without_zstd_and_without_a_cache_all_goes_as_it_is() -> None:
    pair = Pair(None, slots=0, compress=False)
    run = pages(range(4), [0, 0, 0, 0])
    for _ in range(3):
        assert pair.pages(run) == len(run) * RECORD_SIZE + 16
        pair.checkpoint()
    assert pair.clock.read == 0


def test_runs_of_few_pages_are_measured_apart() -> None:
    pair = Pair(None)
    pair.pages(pages([1], [10]))
    assert set(pair.encoder.choices[Data.FEW_PAGES].costs) == {Way.PLAIN, Way.ZSTD}
    assert set(pair.encoder.choices[Data.PAGES].costs) == {Way.PLAIN}
    pair.pages(pages(range(16), range(16)))
    assert set(pair.encoder.choices[Data.PAGES].costs) == {Way.PLAIN, Way.ZSTD}


def test_a_long_run_goes_in_batches_and_as_it_is_in_large_pieces() -> None:
    encoder = Encoder(None, True, Ticks())
    run = PageRun(BLOCKS[0], np.zeros(1000, np.int64), np.zeros((1000, PAGE_SIZE), np.uint8))
    data = memoryview(stream(run))
    assert len(encoder.pages(run, data)) == 2 * -(-len(data) // MAX_DECODED)
    encoder.rate = SLOW
    assert len(encoder.pages(run, data)) == 2 * 4


def test_a_block_that_is_not_in_the_list_goes_without_differences() -> None:
    pair = Pair(Way.DIFFERENCE)
    pair.encoder.set_blocks(BLOCKS[1:])
    for _ in range(2):
        assert pair.pages(pages([1], [10])) == 16 + RECORD_SIZE
        pair.others(pages([1], [10]))
        pair.checkpoint()


def test_what_the_ways_cost_is_kept_over_a_reset() -> None:
    pair = Pair(None)
    pair.pages(pages([1], [10]))
    costs = pair.encoder.choices[Data.FEW_PAGES].costs
    pair.lose()
    assert pair.encoder.choices[Data.FEW_PAGES].costs == costs
    assert costs[Way.ZSTD] != Cost(0.0, 1.0)


def test_where_even_the_least_work_takes_longer_the_clock_is_not_read_any_more() -> None:
    pair = Pair(None)
    choice: Choice = pair.encoder.choices[Data.PLAIN]
    for _ in range(TRY_FIRST):
        choice.note(Way.ZSTD, 1.0, 10**9, 10**8)
    read = pair.clock.read
    pair.encoder.rate = 1.1e9
    pair.plain(bytes(5000))
    assert pair.clock.read == read
    pair.encoder.rate = 0.8e9
    pair.plain(bytes(5000))
    assert pair.clock.read > read
