"""Percentiles by the nearest rank, over a bounded number of samples."""

from __future__ import annotations

import math
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.status.figures import BOUNDS_S, PHASES, Figures, Summary, Times, summarise

CASES = [
    ([], None),
    ([7.0], Summary(7.0, 7.0, 7.0)),
    ([2.0, 1.0], Summary(1.0, 2.0, 2.0)),
    ([3.0, 1.0, 2.0], Summary(2.0, 3.0, 3.0)),
    ([4.0, 3.0, 2.0, 1.0], Summary(2.0, 4.0, 4.0)),
    (list(range(1, 101)), Summary(50, 99, 100)),
    (list(range(100, 0, -1)), Summary(50, 99, 100)),
    (list(range(1, 102)), Summary(51, 100, 101)),
    (list(range(1, 201)), Summary(100, 198, 200)),
    (list(range(1, 1025)), Summary(512, 1014, 1024)),
]


@pytest.mark.parametrize(("samples", "expected"), CASES)
def test_samples_are_summarised(samples: list[float], expected: Summary | None) -> None:
    assert summarise(samples) == expected
    assert summarise(deque(samples)) == expected


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300))
def test_a_percentile_is_the_least_sample_that_so_many_do_not_exceed(samples: list[float]) -> None:
    found = summarise(samples)
    assert found is not None
    for share, value in ((50, found.median), (99, found.p99), (100, found.max)):
        assert sum(sample <= value for sample in samples) >= math.ceil(share * len(samples) / 100)
        fewer = sum(sample < value for sample in samples)
        assert fewer < math.ceil(share * len(samples) / 100)


def test_only_the_last_samples_are_kept_but_all_are_counted() -> None:
    figures = Figures()
    for number in range(1, 2001):
        figures.checkpoint(number, 10 * number)
    assert len(figures.pages) == len(figures.bytes) == 1024
    assert (figures.pages[0], figures.bytes[-1]) == (977, 20_000)
    assert (figures.pages_total, figures.bytes_total) == (2_001_000, 20_010_000)


def test_there_is_a_bounded_series_for_each_phase() -> None:
    figures = Figures()
    assert set(PHASES) - set(figures.phases) == {"covered", "stopped"}, "the primary sees these"
    assert {series.maxlen for series in figures.phases.values()} == {1024}
    assert Figures().phases["ram"] is not figures.phases["ram"]


@given(st.lists(st.floats(0, 100), max_size=1500))
def test_what_is_timed_is_counted_by_how_long_it_took_and_the_last_are_kept(
    seconds: list[float],
) -> None:
    times = Times()
    times.extend(seconds[:700])
    for each in seconds[700:]:
        times.append(each)
    assert list(times) == seconds[-1024:]
    counted = times.counted()
    assert counted["counts"] == [
        sum(each <= bound for each in seconds) for bound in (*BOUNDS_S, math.inf)
    ]
    assert counted["sum_s"] == pytest.approx(sum(seconds))
