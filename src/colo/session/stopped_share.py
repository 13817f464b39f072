"""How much of its time a VM stands still for checkpoints."""

from __future__ import annotations

import time
from collections import deque
from typing import Final

__all__ = ["StoppedShare"]

_WINDOW_S: Final = 60.0
#: In less time than this a first checkpoint, which is long, would say nothing.
_ENOUGH_S: Final = 10.0


class StoppedShare:
    """The stops of the last minute, and the sum of all; moments are monotonic seconds."""

    def __init__(self) -> None:
        self._stops: deque[tuple[float, float]] = deque()  # when the VM went on, and how long
        self._began: float | None = None
        self._sum_s = 0.0
        self._told = False
        self.total_s = 0.0
        #: When the first of them began, by the wall clock; None where there was none.
        self.since: float | None = None

    def stopped(self, length_s: float, now: float) -> None:
        """The VM goes on after a stop of this length."""
        if self._began is None:
            self._began, self.since = now - length_s, time.time() - length_s
        self._stops.append((now, length_s))
        self._sum_s += length_s
        self.total_s += length_s
        self._forget(now)

    def of_late(self, now: float) -> float | None:
        """The share of the last minute, 0 to 1; None where too little is known."""
        if self._began is None or now - self._began < _ENOUGH_S:
            return None
        self._forget(now)
        return self._sum_s / min(_WINDOW_S, now - self._began)

    def exceeds(self, limit: float, now: float) -> str | None:
        """A line for the user where the share is above ``limit``, once each time it gets there."""
        share = self.of_late(now)
        if share is None or share <= limit:
            self._told &= share is not None and share > limit
            return None
        if self._told:
            return None
        self._told = True
        return (
            f"the VM stood still for {share:.0%} of the last minute, more than stopped_share_max "
            f"({limit:.0%}): so much output is held, or checkpoints take so long"
        )

    def _forget(self, now: float) -> None:
        while self._stops and self._stops[0][0] < now - _WINDOW_S:
            self._sum_s -= self._stops.popleft()[1]
