"""When a checkpoint is asked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.packets.pace import Pace, due_at

PACE = Pace(run_min_s=0.001, stopped_share_max=0.25, age_max_s=1.0, high_water=1000)


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
        ("a stop of a second: an old checkpoint has to wait too", None, 0, 10.0, 1.0, 13.0),
        ("too much is held: at once, whatever the share", 10.0, 1000, 10.0, 0.030, 10.0),
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


@given(
    st.floats(0.01, 0.99),
    st.lists(st.tuples(st.floats(0, 5), st.none() | st.floats(0, 2)), min_size=1, max_size=30),
)
def test_the_vm_never_stands_still_for_more_than_its_share(
    share: float, steps: list[tuple[float, float | None]]
) -> None:
    """Whatever the stops, and whenever output comes: each is paid for by the run behind it."""
    pace = Pace(run_min_s=0.0, stopped_share_max=share, age_max_s=1.0, high_water=1 << 40)
    now = stopped = ran = 0.0
    for stop_s, output_after_s in steps:
        now, stopped = now + stop_s, stopped + stop_s
        resumed_at = now
        held_since = None if output_after_s is None else resumed_at + output_after_s
        now = due_at(pace, held_since, 60, resumed_at, stop_s)
        ran += now - resumed_at
    assert stopped <= share * (stopped + ran) + 1e-6
