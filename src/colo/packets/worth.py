"""Whether a secondary VM pays: a model of what the last ones have brought.

In periodic mode each packet is held for a checkpoint, for some milliseconds.  What a secondary VM
brings is that time for each packet that left because both VMs said it, less what these had to wait
for it to say so; also while it began.  At its end, where it was found to differ, packets wait for
the checkpoint that covers the difference.  Where all that comes to a loss, the next one is put off,
ever longer, up to a minute; one that pays is followed at once.
"""

from __future__ import annotations

from typing import Final

__all__ = ["Worth"]

_FIRST_REST_S: Final = 0.5
_REST_MOST_S: Final = 60.0
_SMOOTH: Final = 0.1
#: One that lags by so many times what a checkpoint holds a packet, and by so much, is a bad deal.
_LAG: Final = 2.0
_LAG_LEAST_S: Final = 0.01


class Worth:
    """``always``: it is not asked whether it pays.  Times are of a clock that never goes back."""

    def __init__(self, always: bool) -> None:
        self._always = always
        self._held_s = 0.0
        self._alike = 0
        self._waited_s = 0.0
        self._misses = 0
        self.rests_until = 0.0

    def periodic(self, held_s: float) -> None:
        """So long a packet would have been held for a checkpoint."""
        self._held_s += (held_s - self._held_s) * (_SMOOTH if self._held_s else 1.0)

    def is_due(self, now: float) -> bool:
        """Whether one may begin."""
        return self._always or now >= self.rests_until

    def patience(self, most_s: float) -> float:
        """How long it pays to wait for one that lags."""
        return min(most_s, max(_LAG_LEAST_S, _LAG * self._held_s))

    def begins(self, alike: int, waited_s: float) -> None:
        """One begins.

        ``alike``: how many packets have ever left because both VMs said them; ``waited_s``: how
        long these have waited, together.
        """
        self._alike, self._waited_s = alike, waited_s

    def ended(self, now: float, alike: int, waited_s: float, waits_s: float) -> None:
        """It has ended; ``waits_s``: how long what is held now has waited for it in vain."""
        count = alike - self._alike
        gain_s = count * self._held_s - (waited_s - self._waited_s) - waits_s
        if gain_s >= 0:
            self._misses = 0
            return
        rest_s = min(_REST_MOST_S, _FIRST_REST_S * 2**self._misses)
        self._misses += 1
        self.rests_until = now + rest_s
