"""When to checkpoint: a pure decision.

An answer that the guest gave waits for the next checkpoint, so a held packet asks for one at once,
or as late as its user lets it wait: the fewer checkpoints, the less of the guest's time they take.
Where nothing is held the VM is checkpointed when the last one is too old; and before it has written
so much that the checkpoint has to be expected to stop it for longer than is wanted (``costs``).

*A checkpoint stops the VM, and it stands still for no more than a share of its time*: after each
one it runs in proportion to how long that has stopped it, whatever asks for the next, age and
much held output too.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from colo.packets.costs import Costs

__all__ = ["WINDOW_S", "Pace", "StoppedShare", "due_at"]

#: The first checkpoint after a first copy comes so soon: how much the VM writes is not known yet.
_FIRST_S: Final = 0.05
#: The share of time that a VM stands still is told over so many seconds.
WINDOW_S: Final = 60.0


@dataclass(frozen=True)
class Pace:
    """The bounds; times in seconds, ``high_water`` in bytes.

    ``stopped_share_max``: of a stop and the run after it, the stop is at most this share, between 0
    and 1; ``run_min_s``: and the VM runs at least so long, unless ``high_water`` is held;
    ``age_max_s``: a checkpoint gets no older, as far as the share allows; ``stop_goal_s``: nor,
    where nothing is held, so old that the next one stops the VM for longer; ``latency_goal_s``:
    output may be held for so long.
    """

    stopped_share_max: float = 0.5
    run_min_s: float = 0.0005
    age_max_s: float = 1.0
    high_water: int = 4 << 20
    stop_goal_s: float = 0.05
    latency_goal_s: float = 0.0


def due_at(
    pace: Pace,
    costs: Costs,
    held_since: float | None,
    held_bytes: int,
    resumed_at: float,
    stopped_s: float,
) -> float:
    """Return when the next checkpoint is due.

    ``held_since``: since when output is held, or None; ``resumed_at``: when the VM last went on;
    ``stopped_s``: how long it had been stopped.
    """
    run_s = stopped_s * (1 - pace.stopped_share_max) / pace.stopped_share_max
    if held_since is None:
        soon_s = costs.run_for_stop(pace.stop_goal_s) if costs.is_known else _FIRST_S
        return resumed_at + max(min(pace.age_max_s, soon_s), run_s)
    if held_bytes >= pace.high_water:
        return max(held_since, resumed_at + run_s)
    run_s = max(run_s, pace.run_min_s)
    if pace.latency_goal_s:
        run_s = max(run_s, costs.run_for_answer(held_since - resumed_at, pace.latency_goal_s))
    return max(held_since, resumed_at + run_s)


class StoppedShare:
    """The share of the last ``WINDOW_S`` seconds that a VM stood still.

    It is asked after each of some hundred checkpoints a second: so their sum is kept.
    """

    def __init__(self) -> None:
        self._stops: deque[tuple[float, float]] = deque()  # how long, until when
        self._sum_s = 0.0

    def add(self, stopped_s: float, until: float) -> None:
        """It has stood still for so long; ``until`` never goes back, and stops do not overlap."""
        self._stops.append((stopped_s, until))
        self._sum_s += stopped_s

    def at(self, now: float) -> float:
        """Return the share, 0 to 1, as of ``now``, which never goes back."""
        began = now - WINDOW_S
        while self._stops and self._stops[0][1] <= began:
            self._sum_s -= self._stops.popleft()[0]
        if not self._stops:
            self._sum_s = 0.0  # and not what rounding has left
            return 0.0
        stopped_s, until = self._stops[0]
        too_old_s = max(0.0, began - (until - stopped_s))
        return (self._sum_s - too_old_s) / WINDOW_S
