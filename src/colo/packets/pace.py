"""When to checkpoint: a pure decision.

An answer that the guest gave waits for the next checkpoint, so a held packet asks for one at once.
But a checkpoint stops the VM; so the VM runs between two of them for so long that the last one's
stop is no more than its share of the time.  An idle guest is checkpointed only when the last one
is too old.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Pace", "due_at"]


@dataclass(frozen=True)
class Pace:
    """The bounds; times in seconds, ``high_water`` in bytes.

    ``run_min_s``: the VM runs at least so long between two checkpoints; ``stopped_share_max``: and
    so long that a stop and the run behind it have the VM stand still for no more than this share;
    ``age_max_s``: a checkpoint is never older, unless that share forbids it; ``high_water``: so
    much held output asks at once, whatever the share, as what is over the limit would be dropped.
    """

    run_min_s: float = 0.0005
    stopped_share_max: float = 0.5
    age_max_s: float = 1.0
    high_water: int = 4 << 20

    def runs_s(self, stopped_s: float) -> float:
        """How long the VM runs at least behind a stop of this length."""
        share = self.stopped_share_max
        return max(self.run_min_s, stopped_s * (1 - share) / share)


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
    if held_since is not None and held_bytes >= pace.high_water:
        return held_since
    earliest = resumed_at + pace.runs_s(stopped_s)
    return max(earliest, resumed_at + pace.age_max_s if held_since is None else held_since)
