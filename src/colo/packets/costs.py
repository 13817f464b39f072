"""What the next checkpoint will cost, by what the last ones have cost: a model, without a clock.

Two things are measured as a VM runs.  How much it has written for each second that it has run, at
most, of late: a guest writes in bursts, and the next one is not announced.  The rest of a
checkpoint, its devices and what a guest writes that does nothing, is there in any.  And how long a
checkpoint of so many bytes stops the VM, and takes until the secondary has it: both are lines, a
fixed part and one for each byte, fitted to the last checkpoints, the older the less.
"""

from __future__ import annotations

from collections import deque
from typing import Final

__all__ = ["Costs", "Line"]

#: How much of what is known fades with each new checkpoint.
_FADE: Final = 1 / 16
#: A guest that wrote fast may do so again within so many seconds of its run.
_MEMORY_S: Final = 10.0
#: What any checkpoint has is the least of so many; known once there have been a few.
_LEAST_OF: Final = 64
_FEW: Final = 8
#: Sizes that differ by less than this share say nothing of what a byte costs.
_SPREAD: Final = 0.1


class Line:
    """``y = fixed + slope · x``, by least squares; neither is below 0."""

    def __init__(self) -> None:
        self._weight = self._x = self._y = self._xx = self._xy = 0.0
        self.fixed = self.slope = 0.0

    def add(self, x: float, y: float) -> None:
        """Another pair; ``x`` above 0."""
        keep = 1 - _FADE
        self._weight = self._weight * keep + 1
        self._x = self._x * keep + x
        self._y = self._y * keep + y
        self._xx = self._xx * keep + x * x
        self._xy = self._xy * keep + x * y
        mean_x, mean_y = self._x / self._weight, self._y / self._weight
        variance = self._xx / self._weight - mean_x * mean_x
        slope = mean_y / mean_x  # all of it is of its bytes, as long as nothing tells
        if variance > (_SPREAD * mean_x) ** 2:
            slope = max(0.0, (self._xy / self._weight - mean_x * mean_y) / variance)
        self.slope, self.fixed = slope, max(0.0, mean_y - slope * mean_x)

    def at(self, x: float) -> float:
        """Return y."""
        return self.fixed + self.slope * x


class Costs:
    """What checkpoints of one VM cost; times in seconds."""

    def __init__(self) -> None:
        self._sizes: deque[int] = deque(maxlen=_LEAST_OF)
        self._stop, self._covered = Line(), Line()
        self._ran_s = 0.0
        self._rates: deque[tuple[float, float]] = deque()  # when it had run so long; falling

    def stopped(self, ran_s: float, size: int, stopped_s: float) -> None:
        """After it had run for so long, a checkpoint of ``size`` bytes stopped the VM so long."""
        self._sizes.append(size)
        if len(self._sizes) == _FEW:
            self._rates.clear()  # what they had in any case was taken for written
        self._stop.add(size, stopped_s)
        self._ran_s += ran_s
        rate = (size - self._always) / max(ran_s, 1e-6)
        while self._rates and self._rates[-1][1] <= rate:
            self._rates.pop()
        self._rates.append((self._ran_s, rate))
        while self._rates[0][0] < self._ran_s - _MEMORY_S:
            self._rates.popleft()

    def covered(self, size: int, covered_s: float) -> None:
        """And so long after its beginning the secondary had it."""
        self._covered.add(size, covered_s)

    @property
    def is_known(self) -> bool:
        """Whether there was a checkpoint yet."""
        return bool(self._rates)

    @property
    def _written(self) -> float:
        """The most that it wrote of late, in bytes a second of its run."""
        return self._rates[0][1] if self._rates else 0.0

    @property
    def _always(self) -> int:
        """The bytes that any checkpoint has."""
        return min(self._sizes) if len(self._sizes) >= _FEW else 0

    def size_at(self, ran_s: float) -> float:
        """How many bytes a checkpoint has to be expected to have after so long a run."""
        return self._always + self._written * ran_s

    def stop_at(self, ran_s: float) -> float:
        """And how long it stops the VM."""
        return self._stop.at(self.size_at(ran_s))

    def run_for_stop(self, stop_s: float) -> float:
        """How long the VM may run until its checkpoint has to be expected to stop it so long."""
        more = stop_s - self.stop_at(0.0)
        each = self._stop.slope * self._written
        return max(0.0, more) / each if each > 0 else float("inf")

    def run_for_answer(self, held_at: float, goal_s: float) -> float:
        """How long it may run, for what it sent after ``held_at`` to leave ``goal_s`` later."""
        each = self._covered.slope * self._written
        return max(0.0, held_at + goal_s - self._covered.at(self.size_at(0.0))) / (1 + each)
