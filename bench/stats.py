"""A series of samples, and what is said of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Series", "median", "summarise"]


@dataclass(frozen=True)
class Series:
    """n samples in one unit; percentiles are nearest-rank."""

    n: int
    median: float
    p95: float
    p99: float
    max: float


def _rank(ordered: Sequence[float], percent: int) -> float:
    return ordered[-(-percent * len(ordered) // 100) - 1]


def median(samples: Sequence[float]) -> float:
    """The nearest-rank median."""
    return _rank(sorted(samples), 50)


def summarise(samples: Sequence[float], digits: int = 3) -> Series:
    """Sum up at least one sample."""
    ordered = sorted(samples)
    values = [round(_rank(ordered, percent), digits) for percent in (50, 95, 99, 100)]
    return Series(len(ordered), *values)
