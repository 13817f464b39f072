"""What sees everything, and says what may never be.

A VM's history is a tree: each start from a checkpoint begins a new *life* of it, at a position in
the life that the checkpoint was taken of.  A packet is heard from a life at a position.  Whatever
was heard has to be in the past of whoever is heard next: else something that the world saw is
undone, or two VMs speak at once.

One thing is allowed: where a connection broke, host B takes over at once, and host A, which has
not noticed yet, may still release what host B had acknowledged.  That is in the past of host B's
VM, and late by less than ``LATE_S``: the world cannot tell it from a network that reorders.

In hybrid mode a second VM begins from a checkpoint of a life that goes on, and says what it says:
as far as both are alike, the one is in the past of the other.  What was acknowledged to a client,
who then throws it away, has to be in whoever is heard as well.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

__all__ = ["LATE_S", "Checks", "Moment", "Violation"]

#: A host's silence is known by then on both sides: the heartbeats' limit.
LATE_S: Final = 0.8


class Violation(Exception):
    """Something happened that may never happen."""


@dataclass(frozen=True)
class Moment:
    """A position in a life of the VM; ``guest``: what it is there, where that matters."""

    life: int
    position: int
    guest: object = field(default=None, compare=False, repr=False)


class Checks:
    """The history of one VM, and what of it was heard."""

    def __init__(self) -> None:
        self._born_at: list[Moment | None] = []  # of each life
        self._heard: dict[int, int] = {}  # the last position heard, of each life that is not undone
        self._voice = -1
        self._turned_at = 0.0  # when that one was heard first
        self._first = 0  # lives before this one are undone
        self._said: dict[int, list[int]] = {}  # in hybrid mode, by each life
        self._has: dict[int, list[int]] = {}  # and so much input it had then
        self._told: dict[int, list[int]] = {}  # of which it told its clients
        self._acked = 0
        self.beside = self.went_on = 0  # secondary VMs that ran, and that were taken over
        self.early = 0  # packets that left as both VMs said them
        self.packets = 0
        self.late = 0
        self.lives = 0

    def born(self, at: Moment | None) -> int:
        """A new life begins: at a checkpoint, or from nothing but the disks."""
        self._born_at.append(at)
        self.lives += 1
        return len(self._born_at) - 1

    def begins(self, life: int, inputs: int) -> None:
        """In hybrid mode: with so many inputs."""
        self._said[life], self._has[life], self._told[life] = [], [inputs], [0]

    def says(self, life: int, value: int, inputs: int, acknowledges: bool) -> None:
        """In hybrid mode: it says this at its next position, heard or not."""
        self._said[life].append(value)
        self._has[life].append(inputs)
        self._told[life].append(inputs if acknowledges else 0)

    def undone(self) -> None:
        """All that was heard is undone, and rightly: the VM begins anew, as somebody ordered."""
        self._heard.clear()
        self._acked = 0
        self._voice, self._first = -1, len(self._born_at)

    def heard(self, at: Moment, now_s: float) -> None:
        """The world hears a packet."""
        self.packets += 1
        if at.life != self._voice:
            if self._is_late(at, now_s):
                self.late += 1
            else:
                self._turn_to(at.life)
                self._voice, self._turned_at = at.life, now_s
        if at.position <= self._heard.get(at.life, -1):
            raise Violation(f"{at} is heard twice")
        self._heard[at.life] = at.position
        if at.life in self._told:
            self._acked = max(self._acked, self._told[at.life][at.position])
            if self._has[self._voice][-1] < self._acked:
                raise Violation(f"life {self._voice} lacks input that a client was told is here")

    def _is_late(self, at: Moment, now_s: float) -> bool:
        """Whether this is of the past of the VM that is heard, and only a little late."""
        in_its_past = at.position <= self._past_of(self._voice).get(at.life, -1)
        return in_its_past and now_s - self._turned_at < LATE_S

    def _past_of(self, life: int, until: int | None = None) -> dict[int, int]:
        """How far each other life is in the past of this one, or of it up to a position."""
        past: dict[int, int] = {}
        born = self._born_at[life] if life >= 0 else None
        while born is not None:
            until = born.position + self._alike(born, life, until)
            past[born.life] = until
            life, born = born.life, self._born_at[born.life]
        return past

    def _alike(self, born: Moment, life: int, until: int | None) -> int:
        """How far a life that was born there is alike that one, up to a position of its own."""
        count = 0
        mine, other = self._said.get(life, []), self._said.get(born.life, [])
        for one, two in zip(mine[:until], other[born.position :], strict=False):
            if one != two:
                break
            count += 1
        return count

    def _turn_to(self, life: int) -> None:
        """Another life is heard than before: all that was heard has to be in its past."""
        past = self._past_of(life)
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
        if at is None or at.life < self._first:
            return False
        past = {**self._past_of(at.life, at.position), at.life: at.position}
        if at.life in self._has and self._has[at.life][at.position] < self._acked:
            return False
        return all(position <= past.get(life, -1) for life, position in self._heard.items())
