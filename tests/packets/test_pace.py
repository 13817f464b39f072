"""When a checkpoint is asked for."""

from __future__ import annotations

import pytest

from colo.packets.pace import Pace, due_at

PACE = Pace(run_min_s=0.001, run_factor=2.0, age_max_s=1.0, high_water=1000)


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
        ("the last stop was long: the VM runs in proportion", 10.0, 60, 10.0, 0.030, 10.060),
        ("too much is held: at once, whatever the spacing", 10.0, 1000, 10.0, 0.030, 10.0),
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
    assert due_at(PACE, held_since, held_bytes, resumed_at, stopped_s) == due, case
