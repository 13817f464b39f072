"""The epochs of a disk that are held, and what they take.  Pure.

    current ─ cut() ─▶ cut ─ commit() ─▶ waiting ─ take() ─▶ merging ─ merged() ─▶ (in the base)

Writes go into the current one, the two on the left are dropped where the primary is lost, the two
on the right are committed.  Whoever reads lays them over the base, the oldest first.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from colo.disks.extents import Extents
from colo.disks.journal import room_for
from colo.errors import ColoError, DiskError, InvariantBroken

__all__ = ["Epoch", "Epochs"]


@dataclass(eq=False)
class Epoch:
    """``number``: its checkpoint's.  ``first``: where in the journal its first record lies.

    ``lacks``: why a write of it is missing.  ``written``: how many bytes its writes had.
    """

    extents: Extents = field(default_factory=Extents)
    number: int = -1
    first: int | None = None
    lacks: ColoError | None = None
    written: int = 0

    def room(self, data_bytes: int = 0, extents: int = 0) -> int:
        """What merging it takes of the journal, with so much more in memory."""
        mine = self.extents
        return room_for(mine.data_bytes + data_bytes, len(mine) + extents)


class Epochs:
    """All of them; ``committed`` is the number of the last commit, -1 where there is none.

    ``older_memory``, ``older_room`` and ``older_extents`` are what all but the current one take.
    """

    def __init__(self, disk: str, committed: int = -1) -> None:
        self._disk = disk
        self.committed = committed
        self.current = Epoch()
        self.cut: Epoch | None = None
        self.waiting: list[Epoch] = []
        self.merging: list[Epoch] = []
        self._placed = False
        self.older_memory = 0
        self.older_room = 0
        self.older_extents = 0

    def end_current(self) -> None:
        """Cut: what comes is of the next epoch."""
        self._guard(self.cut is None, "one epoch at most is cut and not committed")
        self.require_whole()
        self.cut, self.current = self.current, Epoch()
        self._recount()

    def require_whole(self) -> None:
        """Raise DiskError where the current epoch lacks a write."""
        self._require_whole(self.current)

    def require_commit(self, number: int) -> Epoch:
        """Return what ``commit`` would commit, or raise as it would."""
        self._guard(self.cut is not None, f"checkpoint {number} commits an epoch that is cut")
        assert self.cut is not None
        self._guard(number > self.committed, f"checkpoint {number} follows {self.committed}")
        self._require_whole(self.cut)
        return self.cut

    def commit(self, number: int) -> None:
        """The epoch that is cut is committed as checkpoint ``number``."""
        epoch = self.require_commit(number)
        epoch.number = self.committed = number
        self.waiting.append(epoch)
        self.cut = None
        self._recount()

    def drop(self) -> None:
        """Forget what is not committed."""
        self.cut, self.current = None, Epoch()
        self._recount()

    def take(self) -> list[Epoch]:
        """Begin to merge all that waits; return it, the oldest first."""
        self._guard(not self.merging, "one merge at a time")
        self.merging, self.waiting, self._placed = self.waiting, [], False
        self._recount()
        return self.merging

    def placed(self) -> None:
        """What is merged has its room in the journal: that is counted there."""
        self._placed = True
        self._recount()

    def merged(self) -> None:
        """What was merged is in the base."""
        self.merging = []
        self._recount()

    def layers(self, newest: bool) -> list[Extents]:
        """What lies over the base, the oldest first: all, or what is committed."""
        epochs = self.merging + self.waiting
        if newest:
            epochs += [self.cut, self.current] if self.cut is not None else [self.current]
        return [epoch.extents for epoch in epochs if len(epoch.extents)]

    @property
    def first(self) -> int | None:
        """Where in the journal the oldest record lies that is needed, but for those merged."""
        held = [*self.waiting, self.current] + ([self.cut] if self.cut is not None else [])
        return min((each.first for each in held if each.first is not None), default=None)

    @property
    def memory_bytes(self) -> int:
        """About what they take up in memory."""
        return self.older_memory + self.current.extents.memory_bytes

    def _recount(self) -> None:
        older = self.merging + self.waiting + ([self.cut] if self.cut is not None else [])
        self.older_memory = sum(each.extents.memory_bytes for each in older)
        self.older_extents = sum(len(each.extents) for each in older)
        unplaced = older[len(self.merging) :] if self._placed else older
        self.older_room = sum(each.room() for each in unplaced)

    def _require_whole(self, epoch: Epoch) -> None:
        if epoch.lacks is not None:
            raise DiskError(self._disk, f"its epoch lacks a write: {epoch.lacks}") from epoch.lacks

    def _guard(self, holds: bool, rule: str) -> None:
        if not holds:
            raise InvariantBroken(f"disk {self._disk}: {rule}")
