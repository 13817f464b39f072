"""Whether to code a checkpoint at all, by what came of it: how long the others took to get there.

What a byte costs to code and to send is known (``choice``); what it costs the other host to decode,
and how much of a checkpoint's time is no byte's at all, is not.  So checkpoints are compared by
the time from when all of one is here until the other host has it, for each of their bytes, coded
and as they are.  The other one is tried for a few checkpoints in a row, right behind those that it
is compared with: links and guests change.  The first of each such row does not count: what is
coded by differences has nothing to differ from yet.
"""

from __future__ import annotations

from collections import deque
from statistics import fmean
from typing import Final

__all__ = ["Verdict"]

#: So many checkpoints are compared, at first and then; and so many go between two trials.
_ROW: Final = 4
_KEPT: Final = 8
_TRY_EVERY: Final = 64
#: What is coded has to be better by so much: it takes both hosts' time.
_BETTER: Final = 0.9
#: Where it takes so much longer than when it was chosen, the other one is tried at once.
_WORSE: Final = 2.0


class Verdict:
    """``is_coded`` says how the next checkpoint goes, ``note`` is told what came of it."""

    def __init__(self) -> None:
        self.is_coded = False
        self._is_trial = False
        self._row = 0  # how many have gone in this way
        self._took: deque[float] = deque(maxlen=_KEPT)  # seconds for each byte
        self._before = 0.0  # of the way that a trial is compared with; else when it was chosen
        self._next_trial = _ROW

    def note(self, is_coded: bool, size: int, seconds: float) -> None:
        """A checkpoint of ``size`` bytes in the stream, above 0, took so long."""
        if is_coded is not self.is_coded:
            return
        self._row += 1
        if self._row > 1:
            self._took.append(seconds / size)
        if self._is_trial and self._row >= _ROW:
            self._decide()
        elif not self._is_trial and (self._row >= self._next_trial or self._is_worse()):
            self._begin(not self.is_coded, is_trial=True)

    def _is_worse(self) -> bool:
        known = len(self._took) == _KEPT and self._before > 0
        return known and fmean(self._took) > _WORSE * self._before

    def _decide(self) -> None:
        here, before = fmean(self._took), self._before
        coded, plain = (here, before) if self.is_coded else (before, here)
        self._begin(coded < _BETTER * plain, is_trial=False)
        self._before = min(here, before)
        self._next_trial = _TRY_EVERY

    def _begin(self, is_coded: bool, is_trial: bool) -> None:
        if is_trial:
            self._before = fmean(self._took)
        self.is_coded, self._is_trial, self._row = is_coded, is_trial, 0
        self._took.clear()
