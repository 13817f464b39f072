"""What a checkpoint took between two looks, and how that is drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.status.overview import Health, View
from colo.top.trend import Trends, sparkline


def view(name: str, alive: bool = True, **sums: tuple[int, float]) -> View:
    folder = Path("/s") / name
    return View(folder, name, "primary", "PROTECTED", "", Health.WELL, alive, sums=sums)


def test_each_look_has_the_average_of_what_came_since_the_one_before() -> None:
    trends = Trends()
    for count, total in ((10, 1.0), (20, 2.0), (20, 2.0), (21, 2.5), (1, 0.1), (3, 0.5)):
        trends.look([view("a", stopped=(count, total))])
    found = trends.of(view("a"), "stopped")
    assert found == [None, pytest.approx(0.1), None, pytest.approx(0.5), None, pytest.approx(0.2)]
    assert trends.of(view("a"), "held") == [None] * 6
    assert trends.of(view("b"), "stopped") == []


def test_who_is_gone_is_forgotten_and_who_is_dead_took_nothing() -> None:
    trends = Trends()
    trends.look([view("a", stopped=(1, 1.0)), view("b", stopped=(1, 1.0))])
    trends.look([view("a", stopped=(2, 2.0))])
    trends.look([view("a", False, stopped=(3, 3.0)), view("b", stopped=(2, 2.0))])
    assert trends.of(view("a"), "stopped") == [None, 1.0, None]
    assert trends.of(view("b"), "stopped") == [None]


@pytest.mark.parametrize(
    ("values", "width", "text"),
    [
        ([], 4, "    "),
        ([0.0, None, 7.0], 5, "  ▁ █"),
        ([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], 8, "▁▂▃▄▅▆▇█"),
        ([9.0, 1.0, 1.0], 2, "██"),
        ([0.0, 0.0], 2, "▁▁"),
        ([None], 0, ""),
        ([1.0], -1, ""),
    ],
)
def test_bars(values: list[float | None], width: int, text: str) -> None:
    assert sparkline(values, width) == text


@given(st.lists(st.none() | st.floats(0, 1e9), max_size=200), st.integers(0, 200))
def test_bars_are_as_wide_as_they_may_be(values: list[float | None], width: int) -> None:
    assert len(sparkline(values, width)) == width
    assert sparkline(values, width, ascii_only=True).isascii()
