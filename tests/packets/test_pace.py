"""When a checkpoint is asked for, and for how much of its time a VM stands still."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.packets.costs import Costs
from colo.packets.pace import WINDOW_S, Pace, StoppedShare, due_at


def idle() -> Costs:
    """What a VM costs that writes next to nothing."""
    costs = Costs()
    for _ in range(20):
        costs.stopped(1.0, 400_000, 0.002)
    return costs


def writing(
    rate: float, seconds_a_byte: float, sizes: tuple[float, ...] = (0.1, 0.2, 0.4)
) -> Costs:
    """A VM that writes ``rate`` bytes a second; 1 ms of each stop is of no byte."""
    costs = Costs()
    for ran_s in (0.001, 0.1, 0.2, 0.4) * 20:
        size = int(rate * ran_s) + 1
        costs.stopped(ran_s, size, 0.001 + size * seconds_a_byte)
        costs.covered(size, 0.002 + 2 * size * seconds_a_byte)
    return costs


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
    assert due_at(PACE, idle(), held_since, held_bytes, resumed_at, stopped_s) == pytest.approx(
        due
    ), case


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
    ran = due_at(pace, idle(), since, held_bytes, 1000.0, stopped_s) - 1000.0
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


def test_the_first_checkpoint_comes_soon_as_nothing_is_known() -> None:
    assert due_at(PACE, Costs(), None, 0, 10.0, 0.0) == pytest.approx(10.05)
    assert due_at(replace(PACE, age_max_s=0.01), Costs(), None, 0, 10.0, 0.0) == pytest.approx(
        10.01
    )


def test_a_busy_vm_is_checkpointed_before_that_would_stop_it_for_longer_than_is_wanted() -> None:
    """100 MB a second at 2.5 ns a byte: the goal of 50 ms is reached after 0.2 s, or a bit
    before."""
    due = due_at(PACE, writing(1e8, 2.5e-9), None, 0, 10.0, 0.0)
    assert due - 10.0 == pytest.approx(0.049 / 0.25, rel=0.2)


def test_one_whose_every_checkpoint_takes_longer_is_not_checkpointed_without_end() -> None:
    """Its share of the time it runs, whatever is wanted."""
    costs = writing(1e8, 2.5e-9)
    assert due_at(replace(PACE, stop_goal_s=1e-6), costs, None, 0, 10.0, 0.1) == pytest.approx(10.3)


@pytest.mark.parametrize("goal_s", [0.05, 0.1, 0.5])
def test_an_answer_may_wait_for_company(goal_s: float) -> None:
    """It leaves when it is wanted to: the checkpoint begins so much sooner as it takes."""
    costs, pace = writing(1e8, 1e-9), replace(PACE, latency_goal_s=goal_s, age_max_s=10.0)
    due = due_at(pace, costs, 10.3, 60, 10.0, 0.0)
    covered_s = 0.002 + 2e-9 * 1e8 * (due - 10.0)
    assert due == pytest.approx(10.3) or due + covered_s == pytest.approx(10.3 + goal_s, rel=0.01)


def test_much_held_output_does_not_wait() -> None:
    pace = replace(PACE, latency_goal_s=1.0)
    assert due_at(pace, idle(), 10.3, 1000, 10.0, 0.0) == pytest.approx(10.3)


@given(st.lists(st.tuples(st.floats(1e-3, 10), st.integers(1, 10**9), SECONDS), max_size=80))
def test_whatever_was_measured_a_time_comes_of_it(
    checkpoints: list[tuple[float, int, float]],
) -> None:
    costs = Costs()
    for ran_s, size, stopped_s in checkpoints:
        costs.stopped(ran_s, size, stopped_s)
        costs.covered(size, stopped_s)
    pace = replace(PACE, latency_goal_s=0.2)
    for held in (None, 1000.5):
        due = due_at(pace, costs, held, 60, 1000.0, 0.01)
        assert 1000.0 <= due <= 1000.5 + max(pace.age_max_s, pace.latency_goal_s) + 0.03
