"""When a checkpoint is asked for, and for how much of its time a VM stands still."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.packets.pace import WINDOW_S, Pace, StoppedShare, due_at

PACE = Pace(stopped_share_max=0.25, run_min_s=0.001, age_max_s=1.0, high_water=1000)


@pytest.mark.parametrize(
    ("case", "held_since", "held_bytes", "resumed_at", "stopped_s", "due"),
    [
        ("nothing is held: when the last one is too old", None, 0, 10.0, 0.0, 11.0),
        ("the VM has run long enough: at once", 20.0, 60, 10.0, 0.001, 20.0),
        (
            "held right after the VM went on: the VM runs a little first",
            10.0,
            60,
            10.0,
            0.0,
            10.001,
        ),
        ("the last stop was long: the VM runs in proportion", 10.0, 60, 10.0, 0.030, 10.090),
        ("and so it does where nothing is held", None, 0, 10.0, 2.0, 16.0),
        ("much is held: the VM need not run a little first", 10.0, 1000, 10.0, 0.0, 10.0),
        ("but its share it runs, however much is held", 10.0, 1000, 10.0, 0.030, 10.090),
    ],
)
def test_due(
    case: str,
    held_since: float | None,
    held_bytes: int,
    resumed_at: float,
    stopped_s: float,
    due: float,
) -> None:
    assert due_at(PACE, held_since, held_bytes, resumed_at, stopped_s) == pytest.approx(due), case


SECONDS = st.floats(0, 100)


@given(
    share=st.floats(0.01, 0.99),
    held_for=st.none() | SECONDS,
    held_bytes=st.integers(0, 2000),
    stopped_s=SECONDS,
)
def test_whatever_asks_a_vm_stands_still_for_no_more_than_its_share(
    share: float, held_for: float | None, held_bytes: int, stopped_s: float
) -> None:
    pace = Pace(stopped_share_max=share, high_water=1000)
    since = None if held_for is None else 1000.0 - held_for
    ran = due_at(pace, since, held_bytes, 1000.0, stopped_s) - 1000.0
    assert stopped_s <= share * (stopped_s + ran) + 1e-9


def test_the_share_is_of_the_last_minute() -> None:
    share = StoppedShare()
    assert share.at(1000.0) == 0
    share.add(6.0, 1006.0)
    assert share.at(1006.0) == pytest.approx(0.1)
    share.add(3.0, 1009.0)
    assert share.at(1009.0) == pytest.approx(0.15)
    assert share.at(1003.0 + WINDOW_S) == pytest.approx(0.1), "half of the first is too old"
    assert share.at(1009.0 + WINDOW_S) == 0


def test_a_stop_longer_than_the_window_is_all_of_it() -> None:
    share = StoppedShare()
    share.add(2 * WINDOW_S, 1000.0)
    assert share.at(1000.0) == 1


@given(st.lists(st.tuples(st.floats(0.001, 40), st.floats(0, 40)), max_size=30), st.floats(0, 90))
def test_the_share_is_what_the_stops_in_the_window_sum_up_to(
    rounds: list[tuple[float, float]], later: float
) -> None:
    share, now, stops = StoppedShare(), 1000.0, []
    for stopped_s, ran_s in rounds:
        stops.append((now, now + stopped_s))
        now += stopped_s
        share.add(stopped_s, now)
        assert 0 <= share.at(now) <= 1 + 1e-9
        now += ran_s
    began = now + later - WINDOW_S
    stood_s = sum(max(0.0, until - max(since, began)) for since, until in stops)
    assert share.at(now + later) == pytest.approx(stood_s / WINDOW_S, abs=1e-9)
