"""When to checkpoint: a pure decision.

An answer that the guest gave waits for the next checkpoint, so a held packet asks for one at once.
But a checkpoint stops the VM; so the VM may run between two of them at least as long as the last
one stopped it, times a factor.  An idle guest is checkpointed only when the last one is too old.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Pace", "due_at"]


@dataclass(frozen=True)
class Pace:
    """The bounds; times in seconds, ``high_water`` in bytes.

    ``run_min_s``: the VM runs at least so long between two checkpoints; ``run_factor``: and at
    least so many times as long as the last one stopped it; ``age_max_s``: a checkpoint is
    never older; ``high_water``: so much held output asks at once, whatever the spacing.
    """

    run_min_s: float = 0.0005
    run_factor: float = 1.0
    age_max_s: float = 1.0
    high_water: int = 4 << 20


def due_at(
    pace: Pace,
    held_since: float | None,
    held_bytes: int,
    resumed_at: float,
    stopped_s: float,
) -> float:
    """Return when the next checkpoint is due.

    ``held_since``: since when output is held, or None; ``resumed_at``: when the VM last went on;
    ``stopped_s``: how long it had been stopped.
    """
    if held_since is None:
        return resumed_at + pace.age_max_s
    if held_bytes >= pace.high_water:
        return held_since
    spacing = max(pace.run_min_s, pace.run_factor * stopped_s)
    return max(held_since, resumed_at + spacing)
