"""Figures of the last checkpoints: per series the median, the 99th percentile and the maximum.

What is timed is also counted by how long it took, since the start: whoever looks twice sees what
came between.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Final

__all__ = ["BOUNDS_S", "PHASES", "Figures", "Summary", "Times", "summarise", "summary"]

_SAMPLES: Final = 1024

#: The phases of a checkpoint, in order, in seconds.  The primary sees those of its VM, the
#: secondary the others.
PHASES: Final = {
    "prepare": "asked → reply; the VM runs",
    "ram": "VM stopped → all pages here",
    "devices": "→ devices here, committed",
    "received": "VM stopped → all of it here",
    "covered": "VM stopped → safe, packets go",
    "stopped": "the VM is stopped",
    "apply": "into the image; the VM runs",
}

_PRIMARYS: Final = ("covered", "stopped")

#: By these times what took so long or less is counted, in seconds.
BOUNDS_S: Final = (
    *(0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0),
)


@dataclass(frozen=True)
class Summary:
    """What a series of samples comes to, in the samples' unit."""

    median: float
    p99: float
    max: float


def summarise(samples: deque[float] | list[float]) -> Summary | None:
    """Return the summary of some samples, or None of none; percentiles are nearest-rank."""
    if not samples:
        return None
    ordered = sorted(samples)
    return Summary(
        ordered[(len(ordered) - 1) // 2], ordered[-(-99 * len(ordered) // 100) - 1], ordered[-1]
    )


def summary(of: Summary | None, factor: float = 1.0) -> dict[str, float] | None:
    """A summary as a table for the status file, its values times ``factor``."""
    return None if of is None else {key: value * factor for key, value in asdict(of).items()}


def _series() -> deque[float]:
    return deque(maxlen=_SAMPLES)


class Times(deque[float]):
    """The last 1024 of what is timed, in seconds; all of them are counted by how long they took."""

    def __init__(self) -> None:
        super().__init__(maxlen=_SAMPLES)
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self._sum_s = 0.0

    def append(self, seconds: float, /) -> None:
        """One more."""
        super().append(seconds)
        self._counts[bisect_left(BOUNDS_S, seconds)] += 1
        self._sum_s += seconds

    def extend(self, many: Iterable[float], /) -> None:
        """Some more."""
        more = tuple(many)
        super().extend(more)
        for seconds in more:
            self._counts[bisect_left(BOUNDS_S, seconds)] += 1
        self._sum_s += sum(more)

    def counted(self) -> dict[str, Any]:
        """For the status file: how many took no longer than each of the bounds, and their sum.

        The last of ``counts`` is that of all.
        """
        counts, so_far = [], 0
        for count in self._counts:
            so_far += count
            counts.append(so_far)
        return {"counts": counts, "sum_s": self._sum_s}


@dataclass
class Figures:
    """The last 1024 samples of each phase, and counts since the start."""

    phases: dict[str, Times] = field(
        default_factory=lambda: {phase: Times() for phase in PHASES if phase not in _PRIMARYS}
    )
    pages: deque[float] = field(default_factory=_series)
    bytes: deque[float] = field(default_factory=_series)
    pages_total: int = 0
    bytes_total: int = 0

    def checkpoint(self, pages: int, size: int) -> None:
        """Count a checkpoint of so many pages and so many bytes on the wire."""
        self.pages.append(pages)
        self.bytes.append(size)
        self.pages_total += pages
        self.bytes_total += size

    def status(self) -> dict[str, Any]:
        """What the status file has of them; phases in milliseconds."""
        return {
            "pages_total": self.pages_total,
            "bytes_total": self.bytes_total,
            "pages": summary(summarise(self.pages)),
            "bytes": summary(summarise(self.bytes)),
            "phases_ms": {
                name: summary(summarise(samples), 1e3) for name, samples in self.phases.items()
            },
            "times": {name: samples.counted() for name, samples in self.phases.items()},
        }
