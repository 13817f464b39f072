"""Which way to code pays: a pure decision.

A way takes work, in seconds for each byte of the stream, and leaves a share of that byte to be
sent.  Nothing else goes on meanwhile: the guest stands still.  So a byte costs ``work + wire /
rate``, and the way with the least of it is taken.

*A fast link pays nothing.*  Where the rate is not known, all goes as it is.  So it does where the
rate is so high that even a way that left nothing to send would take longer by its work alone;
then no way is tried either.  Below that bound each way is tried at first, and once in a while from
then on: a guest changes what it does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

__all__ = [
    "TRY_EVERY",
    "TRY_FIRST",
    "WORK_MIN",
    "Choice",
    "Cost",
    "Way",
    "bounds",
    "break_even",
    "choose",
]

#: Every so often another way than the chosen one is tried.
TRY_EVERY: Final = 64
#: And so often each at first.  The first ones touch memory that was never touched: of these, the
#: least work counts.
TRY_FIRST: Final = 3

#: How much of an average is forgotten with each new measurement.
_FADE: Final = 1 / 8
#: No way ever takes less work than this, in seconds a byte: about what a copy takes.
WORK_MIN: Final = 5e-11


class Way(Enum):
    """How bytes are coded."""

    PLAIN = "plain"
    DIFFERENCE = "difference"
    ZSTD = "zstd"
    BOTH = "difference+zstd"

    @property
    def differs(self) -> bool:
        """Whether it has what differs from before."""
        return self in (Way.DIFFERENCE, Way.BOTH)

    @property
    def compresses(self) -> bool:
        """Whether it is compressed."""
        return self in (Way.ZSTD, Way.BOTH)


@dataclass(frozen=True)
class Cost:
    """``work``: seconds for each byte of the stream; ``wire``: bytes to be sent for each."""

    work: float
    wire: float


_FREE: Final = Cost(0.0, 1.0)


def choose(costs: Mapping[Way, Cost], rate: float | None) -> Way:
    """The way that costs least at ``rate``, in bytes a second; plain where that is not known."""
    if rate is None:
        return Way.PLAIN
    best, least = Way.PLAIN, costs.get(Way.PLAIN, _FREE)
    for way, cost in costs.items():
        if cost.work + cost.wire / rate < least.work + least.wire / rate:
            best, least = way, cost
    return best


def break_even(costs: Mapping[Way, Cost]) -> dict[Way, float]:
    """Below which rate, in bytes a second, each way is better than plain; 0 where it never is."""
    plain = costs.get(Way.PLAIN, _FREE)
    rates: dict[Way, float] = {}
    for way, cost in costs.items():
        if way is not Way.PLAIN:
            rates[way] = max(0.0, plain.wire - cost.wire) / _more_work(plain, cost)
    return rates


def bounds(costs: Mapping[Way, Cost]) -> dict[Way, float]:
    """The rate from which on each way could not pay even if it left nothing to be sent."""
    plain = costs.get(Way.PLAIN, _FREE)
    return {
        way: plain.wire / _more_work(plain, cost)
        for way, cost in costs.items()
        if way is not Way.PLAIN
    }


def _more_work(plain: Cost, cost: Cost) -> float:
    return max(cost.work - plain.work, WORK_MIN)


class Choice:
    """What the ways have cost for one class of data, and which is next.

    ``ways``: those that there are.  Plain is never tried: what it costs is known.
    """

    def __init__(self, ways: Collection[Way]) -> None:
        self._averages = {way: _Average() for way in Way if way in ways}
        self._bound = 1 / WORK_MIN
        self._turn = 0
        self._tries = 0

    @property
    def costs(self) -> dict[Way, Cost]:
        """What each way costs, of those that have been measured, and plain."""
        return {
            way: each.cost for way, each in self._averages.items() if each.count or way is Way.PLAIN
        }

    def may_pay(self, rate: float | None) -> bool:
        """Whether any way could be better than plain at this rate."""
        return rate is not None and len(self._averages) > 1 and rate < self._bound

    def next(self, rate: float | None, usable: Collection[Way]) -> Way:
        """The way for the data that comes now, of those that can be used for it, and plain."""
        if rate is None or not self.may_pay(rate):
            return Way.PLAIN
        there = [way for way in self._averages if way is Way.PLAIN or way in usable]
        for way in there[1:]:
            if self._averages[way].count < TRY_FIRST:
                return way
        costs = self.costs
        best = choose({way: costs[way] for way in there}, rate)
        self._turn += 1
        if self._turn % TRY_EVERY == 0:
            rates = bounds(costs)
            if others := [way for way in there[1:] if way is not best and rate < rates[way]]:
                self._tries += 1
                return others[self._tries % len(others)]
        return best

    def note(self, way: Way, work_s: float, stream: int, wire: int) -> None:
        """So much did it take and leave, for ``stream`` bytes, at least one."""
        self._averages[way].add(work_s, stream, wire)
        untried = any(
            each.count < TRY_FIRST
            for other, each in self._averages.items()
            if other is not Way.PLAIN
        )
        self._bound = 1 / WORK_MIN if untried else max(bounds(self.costs).values(), default=0.0)


class _Average:
    """A fading average, in which more bytes weigh more."""

    def __init__(self) -> None:
        self.count = 0
        self.cost = _FREE
        self._stream = 0.0
        self._wire = 0.0
        self._work_s = 0.0

    def add(self, work_s: float, stream: int, wire: int) -> None:
        keep = 1 - _FADE
        if self.count < TRY_FIRST:
            if self.count:
                work_s = min(work_s / stream, self.cost.work) * stream
            keep = 0.0
        self.count += 1
        self._stream = self._stream * keep + stream
        self._wire = self._wire * keep + wire
        self._work_s = self._work_s * keep + work_s
        self.cost = Cost(self._work_s / self._stream, self._wire / self._stream)
