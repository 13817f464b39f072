"""What of a disk is durable: the base and its journal, written in the order of the journal's rules.

The base is written only with what the journal holds durably as committed (rule 3), or while the
journal says durably that it is a mixture (rule 1), or that a VM writes it; the first two are
checked at each step.
"""

from __future__ import annotations

from uuid import UUID

from colo.disks.blockfile import BlockFile, Data
from colo.disks.extents import Extents
from colo.disks.head import HeadState, Unreadable
from colo.disks.journal import Journal
from colo.disks.overlay import write_into
from colo.disks.standing import At, Stale
from colo.errors import DiskDamaged, InvariantBroken

__all__ = ["Durable"]


class Durable:
    """``base``, as long as the disk named ``disk``, and a journal in ``file``, if there is one.

    Everything here does I/O, and raises DiskError where that fails: nothing may be done then.
    """

    def __init__(self, disk: str, base: BlockFile, file: BlockFile) -> None:
        self.base = base
        self._disk = disk
        self._file = file
        self._journal: Journal | None = None

    @property
    def journal(self) -> Journal:
        """The journal, which is there."""
        assert self._journal is not None
        return self._journal

    @property
    def ring(self) -> int:
        """How large the journal's ring is; 0 where there is no journal."""
        return self._journal.head.ring if self._journal is not None else 0

    def recover(self) -> At | Stale:
        """Say which checkpoint a crash, or an earlier run, left the base at.

        What the journal holds of a committed epoch is written into it first.
        """
        try:
            journal = self._journal = Journal.open(self._file, self._disk)
        except Unreadable as error:
            return Stale(str(error))
        head, size = journal.head, self.base.size
        if head.disk_size != size:
            return Stale(f"it has {size} bytes, its journal is for {head.disk_size}")
        if head.state is HeadState.COPYING:
            return Stale("its first copy was cut off")
        if head.state is HeadState.HANDED_OVER:
            return Stale("a VM has run on it", is_vms=True)
        if head.state is HeadState.JOURNAL:
            try:
                extents = journal.batch()
            except DiskDamaged as error:
                return Stale(str(error))
            journal.renew()  # rule 6
            self._finish(head.epoch, extents)
        else:
            journal.renew()
        return At(head.identity, head.epoch)

    def begin_copy(self, identity: UUID) -> None:
        """The base is a mixture from now on, of a new replication."""
        if self._journal is None or self._journal.head.disk_size != self.base.size:
            self._journal = Journal.make(self._file, self._disk, identity, self.base.size)
        else:
            self._journal.release(self._journal.next)
            self._journal.say(HeadState.COPYING, identity=identity)

    def copy(self, offset: int, data: Data) -> None:
        """Write to a base that is a mixture."""
        self._require_mixture()
        self.base.pwrite(offset, data)

    def copy_zeroes(self, offset: int, length: int) -> None:
        """The same of zeroes."""
        self._require_mixture()
        self.base.zero(offset, length)

    def end_copy(self, epoch: int) -> None:
        """The base is the disk at checkpoint ``epoch``."""
        self._require_mixture()
        self.base.sync()
        self.journal.say(HeadState.CLEAN, epoch)  # rule 4

    def merge(self, position: int, epoch: int, extents: Extents) -> None:
        """Write the extents of ``epoch`` into the base, by way of their place in the journal."""
        if len(extents):
            self.journal.write_batch(position, epoch, extents)
            self._finish(epoch, extents)
        else:
            self.journal.say(HeadState.CLEAN, epoch)  # the base is that already

    def _finish(self, epoch: int, extents: Extents) -> None:
        """Write what the journal holds into the base."""
        head = self.journal.head
        self._guard(
            head.state is HeadState.JOURNAL and head.epoch == epoch,
            "the base is written only with what the journal holds",
        )
        write_into(self.base, extents, self.journal.read)
        self.base.sync()
        self.journal.say(HeadState.CLEAN, epoch)  # rule 4

    def hand_over(self, epoch: int, rest: Extents) -> None:
        """The base, once the ``rest`` is in it at ``epoch``, is a VM's, and at no checkpoint."""
        self.journal.say(HeadState.HANDED_OVER, epoch)
        write_into(self.base, rest, self.journal.read)

    def close(self) -> None:
        """Close both files."""
        self.base.close()
        self._file.close()

    def _require_mixture(self) -> None:
        said = self.journal.head.state is HeadState.COPYING
        self._guard(said, "the base is written only while the journal calls it a mixture")

    def _guard(self, holds: bool, rule: str) -> None:
        if not holds:
            raise InvariantBroken(f"disk {self._disk}: {rule}")
