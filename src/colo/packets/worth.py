"""Whether a secondary VM pays: a model of what the last ones have brought.

What one brings is each packet that left because both VMs said it, times how long a packet is held
in periodic mode.  What it costs is that packets wait for it to begin; and at the end, where it was
found to differ, for the checkpoint that covers the difference.  Where it brought less than it
cost, the next one is put off, ever longer, up to a minute; one that pays is followed at once.
"""

from __future__ import annotations

from typing import Final

__all__ = ["Worth"]

_FIRST_REST_S: Final = 0.5
_REST_MOST_S: Final = 60.0
_SMOOTH: Final = 0.1


class Worth:
    """``always``: it is not asked whether it pays.  Times are of a clock that never goes back."""

    def __init__(self, always: bool) -> None:
        self._always = always
        self._held_s = 0.0
        self._begins_at = self._runs_at = 0.0
        self._alike = 0
        self._misses = 0
        self.rests_until = 0.0

    def periodic(self, held_s: float) -> None:
        """So long a packet would have been held for a checkpoint."""
        self._held_s += (held_s - self._held_s) * (_SMOOTH if self._held_s else 1.0)

    def is_due(self, now: float) -> bool:
        """Whether one may begin."""
        return self._always or now >= self.rests_until

    def begins(self, now: float, alike: int) -> None:
        """One begins; ``alike``: how many packets have ever left because both VMs said them."""
        self._begins_at = now
        self._runs_at = 0.0
        self._alike = alike

    def runs(self, now: float) -> None:
        """It runs."""
        self._runs_at = now

    def ended(self, now: float, alike: int, has_failed: bool) -> None:
        """It has ended; ``has_failed``: by a difference, or because it died."""
        gain_s = (alike - self._alike) * self._held_s
        cost_s = (self._runs_at or now) - self._begins_at
        if has_failed:
            cost_s += self._held_s
        if gain_s >= cost_s or not has_failed:
            self._misses = 0
            return
        rest_s = min(_REST_MOST_S, _FIRST_REST_S * 2**self._misses)
        self._misses += 1
        self.rests_until = now + rest_s
