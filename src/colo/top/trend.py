"""How times went of late: of each VM, what a checkpoint took on average between two looks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from colo.status.overview import View

__all__ = ["PHASES", "Trends", "sparkline"]

#: What is followed, by its name in a view's sums.
PHASES: Final = ("stopped", "held")
_LOOKS: Final = 120
_BARS: Final = "▁▂▃▄▅▆▇█"
_ASCII_BARS: Final = "_.:-=+*#"


class Trends:
    """Of each VM and phase, the last looks: seconds on average, or None where there was none."""

    def __init__(self) -> None:
        self._last: dict[tuple[Path, str], tuple[int, float]] = {}
        self._found: dict[tuple[Path, str], deque[float | None]] = {}

    def look(self, views: Iterable[View]) -> None:
        """Take what they say now; who is not among them any more is forgotten."""
        last, found = self._last, self._found
        self._last, self._found = {}, {}
        for view in views:
            sums = view.sums or {}
            for phase in PHASES:
                key = view.folder, phase
                self._found[key] = found.get(key, deque(maxlen=_LOOKS))
                now = sums.get(phase)
                before = last.get(key)
                if now is not None:
                    self._last[key] = now
                self._found[key].append(_mean(before, now) if view.is_alive else None)

    def of(self, view: View, phase: str) -> Sequence[float | None]:
        """The last ones, the newest last."""
        return list(self._found.get((view.folder, phase), ()))


def _mean(before: tuple[int, float] | None, now: tuple[int, float] | None) -> float | None:
    """What each took that came between; a colo that has begun anew counts from nothing."""
    if before is None or now is None or now[0] <= before[0]:
        return None
    return max(0.0, (now[1] - before[1]) / (now[0] - before[0]))


def sparkline(values: Sequence[float | None], width: int, ascii_only: bool = False) -> str:
    """The last ``width`` values as bars, the highest of them as high as can be."""
    bars = _ASCII_BARS if ascii_only else _BARS
    shown = list(values)[-width:] if width > 0 else []
    most = max((value for value in shown if value is not None), default=0.0)
    text = "".join(
        " " if value is None else bars[round(value / most * (len(bars) - 1)) if most else 0]
        for value in shown
    )
    return text.rjust(max(width, 0))
