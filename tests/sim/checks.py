"""What sees everything, and says what may never be.

A VM's history is a tree: each start from a checkpoint begins a new *life* of it, at a position in
the life that the checkpoint was taken of.  A packet is heard from a life at a position.  Whatever
was heard has to be in the past of whoever is heard next: else something that the world saw is
undone, or two VMs speak at once.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Checks", "Moment", "Violation"]


class Violation(Exception):
    """Something happened that may never happen."""


@dataclass(frozen=True)
class Moment:
    """A position in a life of the VM."""

    life: int
    position: int


class Checks:
    """The history of one VM, and what of it was heard."""

    def __init__(self) -> None:
        self._born_at: list[Moment | None] = []  # of each life
        self._heard: dict[int, int] = {}  # the last position heard, of each life that is not undone
        self._voice = -1
        self._first = 0  # lives before this one are undone
        self.packets = 0
        self.lives = 0

    def born(self, at: Moment | None) -> int:
        """A new life begins: at a checkpoint, or from nothing but the disks."""
        self._born_at.append(at)
        self.lives += 1
        return len(self._born_at) - 1

    def undone(self) -> None:
        """All that was heard is undone, and rightly: the VM begins anew, as somebody ordered."""
        self._heard.clear()
        self._voice, self._first = -1, len(self._born_at)

    def heard(self, at: Moment) -> None:
        """The world hears a packet."""
        self.packets += 1
        if at.life != self._voice:
            self._turn_to(at.life)
            self._voice = at.life
        if at.position <= self._heard.get(at.life, -1):
            raise Violation(f"{at} is heard twice")
        self._heard[at.life] = at.position

    def _turn_to(self, life: int) -> None:
        """Another life is heard than before: all that was heard has to be in its past."""
        past: dict[int, int] = {}
        born = self._born_at[life]
        while born is not None:
            past[born.life] = born.position
            born = self._born_at[born.life]
        for other, position in self._heard.items():
            if other == life:
                continue
            if other not in past:
                raise Violation(
                    f"life {life} is heard, and life {other} was, which is not its past"
                )
            if position > past[other]:
                raise Violation(
                    f"life {life} goes on from position {past[other]} of life {other}, of which "
                    f"{position} was heard"
                )

    def is_newest(self, at: Moment) -> bool:
        """Whether no later life of the VM was heard."""
        return not self._heard or max(self._heard) <= at.life

    def covers(self, at: Moment | None) -> bool:
        """Whether a VM could go on from there with all that was heard in its past."""
        past: dict[int, int] = {}
        if at is None or at.life < self._first:
            return False
        while at is not None:
            past[at.life] = at.position
            at = self._born_at[at.life]
        return all(position <= past.get(life, -1) for life, position in self._heard.items())
