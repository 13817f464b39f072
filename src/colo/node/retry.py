"""When to try again: soon where nobody was there, ever later where each try copies the whole VM."""

from __future__ import annotations

from typing import Final

__all__ = ["RETRY_MOST_S", "RETRY_S", "Retry"]

RETRY_S: Final = 1.0
RETRY_MOST_S: Final = 60.0


class Retry:
    """The pauses after copies that were in vain: each is twice as long as the one before."""

    def __init__(self) -> None:
        self._next_s = RETRY_S

    def pause_s(self) -> float:
        """How long to wait after one more copy in vain."""
        pause_s, self._next_s = self._next_s, min(2 * self._next_s, RETRY_MOST_S)
        return pause_s

    def succeeded(self) -> None:
        """A copy was not in vain: the next pause is the shortest again."""
        self._next_s = RETRY_S
