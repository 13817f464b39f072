"""The replica of a disk: its writes are staged by epoch, and a commit moves references.

*What is committed always equals the disk at the last whole checkpoint.*  A write goes into the
current epoch: to memory, or to the journal where memory is full.  ``cut`` ends the epoch: all that
the guest wrote before its checkpoint is in it.  ``commit`` makes it a part of what is committed, at
once and without I/O.  ``drop`` forgets what is not.  ``merge`` then writes what is committed into
the base, by way of the journal, in a thread of its own, while the next writes arrive.  Several
epochs that wait are merged as one.

The first copy is the exception: it goes straight into the base, mirrored blocks and the guest's
writes as they come, and the journal says so.  ``cut`` ends it: what is written from then on is of
the next epoch.  ``end_copy`` makes the base the first commit.

Four invariants; a step that would break one raises and changes nothing:

- *the order*: a checkpoint commits the epoch that is cut, one at most waits for that, and numbers
  rise; an epoch that lacks a write is never committed;
- *the base*: it is written only with what the journal holds durably as committed, or while the
  journal says durably that it is a mixture;
- *a way out*: all that is held can be merged, the room for that in the journal is kept free;
- *no silence*: once I/O has failed the replica has FAILED: what is committed can be read, nothing
  is written any more.

``write``, ``zero``, ``cut``, ``commit`` and ``drop`` are one thread's, the event loop's; ``merge``
and ``end_copy`` may be another's; anyone may read.  The lock is not held during I/O, but by a
reader whom merges have outrun.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from uuid import UUID

from colo.disks.blockfile import BlockFile, Data
from colo.disks.durable import Durable
from colo.disks.epochs import Epochs
from colo.disks.extents import Extent, Extents, Source, folded
from colo.disks.journal import RECORD_MAX
from colo.disks.overlay import painted
from colo.disks.standing import At, Condition, Limits, Stale
from colo.disks.view import DiskView
from colo.errors import (
    ColoError,
    DiskDamaged,
    DiskError,
    DiskFull,
    InvariantBroken,
    LimitExceeded,
)

__all__ = ["Replica"]

#: How often a read is tried while merges go on beside it, before it makes them wait.
_READ_TRIES: Final = 3
_LIMITS: Final = Limits()
_CUT_OFF: Final = Stale("its first copy was cut off")


class Replica:
    """The replica of the disk named ``disk``: ``base``, as long as the disk, and its journal.

    Made by ``create`` or ``open``.  All raise DiskError where I/O fails or has failed, and
    InvariantBroken where they are out of order.
    """

    def __init__(self, disk: str, durable: Durable, standing: At | Stale, limits: Limits) -> None:
        self.disk = disk
        self.limits = limits
        self.error: DiskError | None = None  # why it has FAILED
        self._durable = durable
        self._found = standing
        whole = isinstance(standing, At)
        self._condition = Condition.WHOLE if whole else Condition.STALE
        self._epochs = Epochs(disk, standing.epoch if isinstance(standing, At) else -1)
        self._copied = False  # the first copy is cut: writes are staged
        self._ending = False  # and is being made durable
        self._views: list[DiskView] = []
        self._generation = 0  # changes whenever what a reader sees may go away under it
        self._lock = threading.Lock()

    @classmethod
    def create(
        cls, disk: str, base: BlockFile, file: BlockFile, identity: UUID, limits: Limits = _LIMITS
    ) -> Replica:
        """Make a replica whose first copy begins, with a journal in ``file``."""
        self = cls(disk, Durable(disk, base, file), _CUT_OFF, limits)
        self.begin_copy(identity)
        return self

    @classmethod
    def open(cls, disk: str, base: BlockFile, file: BlockFile, limits: Limits = _LIMITS) -> Replica:
        """Open what an earlier run, or a crash, left; ``standing`` says what that is.

        What the journal holds of a committed epoch is written into the base.
        """
        durable = Durable(disk, base, file)
        return cls(disk, durable, durable.recover(), limits)

    def close(self) -> None:
        """Close both files; what is not merged is lost."""
        self._end_views("it is kept here no longer")
        self._durable.close()

    # -- what it is -----------------------------------------------------------------------

    @property
    def condition(self) -> Condition:
        """What it is."""
        return self._condition

    @property
    def size(self) -> int:
        """The disk's size, in bytes."""
        return self._durable.base.size

    @property
    def standing(self) -> At | Stale:
        """Which checkpoint is committed, whether merged or not; or why there is none."""
        if self._has_commit:
            return At(self._durable.journal.head.identity, self._epochs.committed)
        return Stale(self._why)

    @property
    def _has_commit(self) -> bool:
        readable = self._condition in (Condition.WHOLE, Condition.FAILED)
        return readable and self._epochs.committed >= 0

    @property
    def held_bytes(self) -> int:
        """About what is held in memory."""
        return self._epochs.memory_bytes

    @property
    def epoch_bytes(self) -> int:
        """How many bytes were written since the last cut."""
        return self._epochs.current.written

    @property
    def lag(self) -> int:
        """How many committed epochs are not in the base yet."""
        return len(self._epochs.waiting) + len(self._epochs.merging)

    @property
    def wants_checkpoint(self) -> bool:
        """Whether so much was written that a checkpoint should come soon."""
        return len(self._epochs.current.extents) > 0 and self._taken >= self.limits.wanted

    @property
    def full(self) -> bool:
        """Whether nothing should be written before a merge has ended: it might not be held."""
        return self._epochs.current.lacks is not None or self._taken >= self.limits.full

    @property
    def _taken(self) -> float:
        if not self._durable.ring:
            return 0.0
        epochs = self._epochs
        room = self._durable.journal.used + epochs.older_room + epochs.current.room()
        extents = epochs.older_extents + len(epochs.current.extents)
        return max(room / self._durable.ring, extents / self.limits.extents)

    # -- the guest's writes ---------------------------------------------------------------

    def write(self, offset: int, data: Data) -> None:
        """The guest writes, or the first copy.  Raises DiskFull where that cannot be held.

        After any error the current epoch lacks a write: it can only be dropped.
        """
        whole = memoryview(data)
        try:
            if self._goes_straight(offset, len(whole)):
                with self._failing():
                    self._durable.copy(offset, whole)
                return
            for at in range(0, len(whole), RECORD_MAX):
                self._stage(offset + at, whole[at : at + RECORD_MAX])
        except ColoError as error:
            self._lose(error)
            raise

    def zero(self, offset: int, length: int) -> None:
        """The guest writes zeroes, or the first copy.  Raises as ``write`` does."""
        try:
            if self._goes_straight(offset, length):
                with self._failing():
                    self._durable.copy_zeroes(offset, length)
            elif length:
                with self._lock:
                    self._require_room(0, 0)
                    self._epochs.current.extents.put(offset, offset + length, None)
                    self._epochs.current.written += length
        except ColoError as error:
            self._lose(error)
            raise

    def _lose(self, error: ColoError) -> None:
        if self._epochs.current.lacks is None:
            self._epochs.current.lacks = error

    def _goes_straight(self, offset: int, length: int) -> bool:
        if offset < 0 or offset + length > self.size:
            raise LimitExceeded(f"a write to disk {self.disk}", offset + length, self.size)
        self._require(Condition.WHOLE, Condition.COPYING)
        return not self._copied and self._condition is Condition.COPYING

    def _stage(self, offset: int, data: memoryview) -> None:
        length = len(data)
        epoch = self._epochs.current
        position = -1
        with self._lock:
            if self._epochs.memory_bytes + length <= self.limits.memory_bytes:
                self._require_room(length, 0)
            else:
                self._require_room(0, length)
                position = self._durable.journal.reserve(length)
                if epoch.first is None:
                    epoch.first = position
        if position < 0:
            source: Source = bytes(data)
        else:
            with self._failing():
                source = self._durable.journal.write(position, data)
        with self._lock:
            epoch.extents.put(offset, offset + length, source)
            epoch.written += length

    def _require_room(self, in_memory: int, spilled: int) -> None:
        """Raise DiskFull where what is held could not be merged with so much more."""
        epochs = self._epochs
        if epochs.current.lacks is not None:
            raise DiskFull(self.disk, "a write is lost already") from epochs.current.lacks
        room = self._durable.journal.room_with(spilled) - epochs.older_room
        count = epochs.older_extents + len(epochs.current.extents)
        if epochs.current.room(in_memory, 2) > room or count >= self.limits.extents:
            raise DiskFull(
                self.disk,
                f"no room for {in_memory + spilled} bytes more in a journal of "
                f"{self._durable.ring}: make it larger, or checkpoint more often",
            )

    # -- checkpoints ----------------------------------------------------------------------

    def cut(self) -> None:
        """All that the guest wrote before its checkpoint has come; what comes is of the next."""
        self._require(Condition.WHOLE, Condition.COPYING)
        with self._lock:
            if self._condition is Condition.COPYING:
                self._guard(not self._copied, "the first copy is cut once")
                self._epochs.require_whole()
                self._copied = True
            else:
                self._epochs.end_current()

    def require_commit(self, epoch: int) -> None:
        """Raise what is in the way of ``commit``; it does not raise then, in the same step."""
        self._require(Condition.WHOLE)
        self._epochs.require_commit(epoch)

    def commit(self, epoch: int) -> None:
        """The epoch that is cut is the disk at checkpoint ``epoch``, from now on.

        This does no I/O, and works even where a merge has just failed.
        """
        self._require(Condition.WHOLE, Condition.FAILED)
        with self._lock:
            self._epochs.commit(epoch)

    def drop(self) -> None:
        """Forget what is not committed.  A first copy that has not ended is STALE then."""
        with self._lock:
            self._guard(not self._ending, "a first copy is not dropped while it ends")
            self._epochs.drop()
            self._generation += 1
            if self._condition is Condition.WHOLE and not self._epochs.merging:
                self._release()
            elif self._condition is Condition.COPYING:
                self._condition, self._found, self._copied = Condition.STALE, _CUT_OFF, False

    # -- the base -------------------------------------------------------------------------

    def begin_copy(self, identity: UUID) -> None:
        """From now on all goes straight into the base; what was committed is no more."""
        self._require(Condition.WHOLE, Condition.STALE)
        with self._lock:
            self._guard(not self._epochs.merging, "no copy begins while a merge goes on")
            self._epochs = Epochs(self.disk)
            self._generation += 1
            self._condition, self._copied = Condition.COPYING, False
            self._end_views("it is being copied anew")
        with self._failing():
            self._durable.begin_copy(identity)

    def end_copy(self, epoch: int) -> None:
        """The base, up to the cut, is the disk at checkpoint ``epoch``: return once that is safe.

        Where nothing was cut, it is here.
        """
        self._require(Condition.COPYING)
        with self._lock:
            self._guard(not self._ending, "a first copy ends once")
            if not self._copied:
                self._epochs.require_whole()
            self._copied = self._ending = True
        try:
            with self._failing():
                self._durable.end_copy(epoch)
            with self._lock:
                self._epochs.committed = epoch
                self._condition = Condition.WHOLE
        finally:
            self._ending = False

    def merge(self) -> int:
        """Write all that is committed into the base; return how many epochs that were.

        During the first copy it makes durable what has come, so that ``end_copy`` is short.
        """
        self._require(*(set(Condition) - {Condition.FAILED}))
        copying = self._condition is Condition.COPYING
        with self._lock:
            batch = self._epochs.take()
            self._generation += 1
        with self._failing():
            if copying:
                self._durable.base.sync()
            if not batch:
                return 0
            extents = folded(epoch.extents for epoch in batch)
            size = self._durable.journal.size_of(extents)
            with self._lock:
                position = self._durable.journal.reserve(size)
                self._epochs.placed()
                views = tuple(self._views)
            for view in views:
                view.before(extents)
            self._durable.merge(position, batch[-1].number, extents)
        with self._lock:
            self._epochs.merged()
            self._release()
            self._generation += 1
        return len(batch)

    def _release(self) -> None:
        """Give room of the journal back (rule 5)."""
        journal, first = self._durable.journal, self._epochs.first
        journal.release(journal.next if first is None else first)

    def hand_over(self, over: Extents | None = None) -> None:
        """A VM is about to run on the base: make it the disk at the last commit.

        ``over``: what the VM has written over that already, beside.

        First it is made durable that it is at no checkpoint any more.  So what is not merged yet
        is written at once, and nobody waits for that to be durable: the VM's own writes follow.
        """
        self._require(Condition.WHOLE)
        with self._lock:
            self._guard(not self._epochs.merging, "no disk is handed over while a merge goes on")
            self._epochs.drop()
            batch = self._epochs.take()
            self._generation += 1
            self._condition = Condition.HANDED_OVER
            self._end_views("a VM runs on it")
        with self._failing():
            written = [epoch.extents for epoch in batch] + ([over] if over is not None else [])
            rest = folded(written)
            self._durable.hand_over(self._epochs.committed, rest)
        with self._lock:
            self._epochs.merged()

    # -- reading --------------------------------------------------------------------------

    def read(self, offset: int, length: int) -> bytes:
        """Read the newest: what the guest would read."""
        self._require(Condition.WHOLE, Condition.COPYING)
        return self._read(offset, length, newest=True)

    def read_committed(self, offset: int, length: int) -> bytes:
        """Read the disk at the last commit."""
        if not self._has_commit:
            raise DiskError(self.disk, self._why)
        return self._read(offset, length, newest=False)

    def view(self, aside: BlockFile) -> DiskView:
        """View the disk at the last commit, which is merged, until ``end_view``.

        ``aside``: a file of the disk's size, which the view owns.
        """
        self._require(Condition.WHOLE)
        with self._lock:
            self._guard(not self.lag, "a view is opened where all that is committed is merged")
            self._views.append(DiskView(self.disk, self._durable.base, aside))
            return self._views[-1]

    def end_view(self, view: DiskView) -> None:
        """Nobody reads it any more."""
        with self._lock:
            self._views = [each for each in self._views if each is not view]
        view.close()

    def _end_views(self, why: str) -> None:
        for view in self._views:
            view.end(why)

    def _read(self, offset: int, length: int, newest: bool) -> bytes:
        if offset < 0 or offset + length > self.size:
            raise LimitExceeded(f"a read of disk {self.disk}", offset + length, self.size)
        load = self._durable.journal.read
        for _ in range(_READ_TRIES):
            with self._lock:
                generation, pieces = self._generation, self._pieces(offset, length, newest)
            try:
                content = painted(self._durable.base, offset, length, pieces, load)
            except DiskDamaged:
                if generation == self._generation:
                    raise
                continue
            with self._lock:
                if generation == self._generation:
                    return content
        with self._lock:
            pieces = self._pieces(offset, length, newest)
            return painted(self._durable.base, offset, length, pieces, load)

    def _pieces(self, offset: int, length: int, newest: bool) -> list[Extent]:
        layers = self._epochs.layers(newest)
        return [each for layer in layers for each in layer.overlaps(offset, offset + length)]

    # -- rules ----------------------------------------------------------------------------

    @property
    def _why(self) -> str:
        if self._condition is Condition.STALE and isinstance(self._found, Stale):
            return self._found.reason
        return self._condition.value

    def _require(self, *conditions: Condition) -> None:
        if self._condition in conditions:
            return
        if self.error is not None:
            raise DiskError(self.disk, f"it has failed: {self.error}") from self.error
        raise InvariantBroken(f"disk {self.disk}: {self._why}")

    def _guard(self, holds: bool, rule: str) -> None:
        if not holds:
            raise InvariantBroken(f"disk {self.disk}: {rule}")

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """I/O that fails is the end of all writing."""
        try:
            yield
        except DiskError as error:
            self._fail(error)
            raise
        except MemoryError as error:
            failure = DiskError(self.disk, "no memory is left for it")
            self._fail(failure)
            raise failure from error

    def _fail(self, error: DiskError) -> None:
        with self._lock:
            if self.error is None:
                self.error = error
            self._condition = Condition.FAILED
