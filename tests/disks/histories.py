"""Random histories of a replica, with a model beside it, and a judge at every step of its I/O.

The judge lets the power fail there, in each way, opens what is left, lets the power fail at each
step of that too, and complains unless the base is exactly the disk at a checkpoint: at one that is
not older than what was durable by the journal's rules, and not newer than the last commit.
"""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Final
from uuid import UUID

from colo.disks.head import HEADS_SIZE, HeadState
from colo.disks.replica import Replica
from colo.disks.standing import At, Condition, Limits, Stale
from colo.errors import DiskError, DiskFull
from tests.disks.simulated import LOSSES, SimulatedFile

__all__ = ["DISK_SIZE", "Complaint", "History"]

DISK_SIZE: Final = 12 << 10
RING_SIZES: Final = (32 << 10, 48 << 10, 96 << 10)
MEMORY_SIZES: Final = (0, 5000, 20_000)
SIZES: Final = (1, 17, 511, 512, 513, 1024, 2048, 4096, 4097, 6000)


class Complaint(AssertionError):
    """The replica is not what it has to be."""


class _Killed(Exception):
    """The process dies."""


class History:
    """One history, drawn from ``seed``; ``failing``: now and then its I/O does.

    ``counts`` is what it came across.
    """

    def __init__(self, seed: int, failing: bool = False, nested: float = 0.3) -> None:
        self.random = Random(seed)
        self.judging = Random(seed + 1)  # of its own, so that a history is the same without it
        self.nested = nested
        self.counts: Counter[str] = Counter()
        self.has_failed = False
        self.failing = failing
        self.fails_at = self.random.randrange(1, 300) if failing else 0
        self.in_merge = False
        self.identity = UUID(int=1)
        #: The model: what the guest sees, at the cut, and at each checkpoint.
        self.newest = bytearray(self.random.randbytes(DISK_SIZE))
        self.at_cut: bytes | None = None
        self.states: dict[int, bytes] = {}
        self.high = -1
        self.low = -1  # what is durable
        self.may_be_stale = True
        self.limits = Limits(self.random.choice(MEMORY_SIZES), extents=self.random.choice((20, 99)))
        garbage = self.random.randbytes(HEADS_SIZE + self.random.choice(RING_SIZES))
        self.base = SimulatedFile("base", self.random.randbytes(DISK_SIZE), self._step)
        self.file = SimulatedFile("journal", garbage, self._step)
        for each in (self.base, self.file):
            each.fails = self._fails
        self.replica: Replica | None = None

    # -- the world ------------------------------------------------------------------------

    def _fails(self, what: str) -> bool:
        self.fails_at -= 1
        if self.fails_at == 0:
            self.has_failed = True
            self.fails_at = self.random.randrange(1, 300)
            self.counts[f"{what} fails"] += 1
            return True
        return False

    def _step(self, file: SimulatedFile, what: str) -> None:
        self.counts[f"{file.name} {what}"] += 1
        self._learn_what_is_durable()
        for loss in LOSSES:
            self._lose_power(loss)
        if self.random.random() < 0.01:
            raise _Killed
        if self.in_merge and self.random.random() < 0.4:
            self.in_merge = False  # what acts is one thread
            try:
                self._act_beside_a_merge()
            finally:
                self.in_merge = True

    def _learn_what_is_durable(self) -> None:
        if self.replica is None or self.may_be_stale:
            return
        head = self.replica._durable.journal.head
        if head.state in (HeadState.CLEAN, HeadState.JOURNAL):
            self.low = max(self.low, head.epoch)

    def _lose_power(self, loss: str) -> None:
        self.counts["power lost"] += 1
        base = self.base.after_power_loss(loss, self.judging)
        journal = self.file.after_power_loss(loss, self.judging)
        self._judge(base, journal, nested=self.judging.random() < self.nested)

    def _judge(self, base: bytes, journal: bytes, nested: bool) -> None:
        """Open what is left, in a world of its own."""
        files = [SimulatedFile("base", base), SimulatedFile("journal", journal)]
        left: list[tuple[bytes, bytes]] = []

        def lose_again(file: SimulatedFile, what: str) -> None:
            for loss in ("some", self.judging.choice(list(LOSSES))):
                one, other = (each.after_power_loss(loss, self.judging) for each in files)
                left.append((one, other))

        if nested:
            for each in files:
                each.on_step = lose_again
        replica = Replica.open("vda", files[0], files[1], self.limits)
        self._require_checkpoint(replica, bytes(files[0].cache))
        for again in left:
            self.counts["power lost again"] += 1
            self._judge(*again, nested=False)

    def _require_checkpoint(self, replica: Replica, base: bytes) -> None:
        standing = replica.standing
        if isinstance(standing, Stale):
            self.counts["stale"] += 1
            if not self.may_be_stale and not self.has_failed:
                raise Complaint(f"stale, but checkpoint {self.low} was durable: {standing}")
            return
        self.counts["recovered"] += 1
        if not self.low <= standing.epoch <= self.high:
            raise Complaint(f"{standing.epoch} is not within {self.low} to {self.high}")
        if standing.identity != self.identity:
            raise Complaint("a checkpoint of another replication")
        if base != self.states.get(standing.epoch):
            raise Complaint(f"a mixture passes for checkpoint {standing.epoch}")

    # -- what happens ---------------------------------------------------------------------

    @property
    def here(self) -> Replica:
        assert self.replica is not None
        return self.replica

    def run(self, actions: int = 60) -> Counter[str]:
        """Play it."""
        self._guarded(self._create)
        for _ in range(actions):
            if self.replica is None or self.here.condition is Condition.FAILED:
                self._guarded(self._open)
            elif self.here.condition is Condition.STALE:
                self._guarded(self._copy_again)
            elif self.here.condition is Condition.COPYING:
                self._guarded(self._end_copy)
            else:
                self._guarded(self._act)
            self._lose_power("some")
        return self.counts

    def _guarded(self, action: object) -> None:
        assert callable(action)
        try:
            action()
        except _Killed:
            self.counts["killed"] += 1
            self.replica, self.in_merge = None, False
        except DiskError as error:
            if not self.has_failed:
                raise Complaint(f"fails for no reason: {error}") from error
            self.in_merge = False
            self._after_failure()

    def _after_failure(self) -> None:
        """What is committed can be read; nothing is written any more."""
        replica = self.replica
        if replica is None or self.may_be_stale:
            return
        if replica.condition is Condition.FAILED:
            self._require_same(replica.read_committed(0, DISK_SIZE), self.states[self.high])
            try:
                replica.write(0, b"lost")
            except DiskError:
                return
            raise Complaint("it goes on after a failure")

    def _create(self) -> None:
        self.replica = None
        self.replica = Replica.create("vda", self.base, self.file, self.identity, self.limits)
        self._copy()

    def _copy(self) -> None:
        for offset in range(0, DISK_SIZE, 4096):
            self.here.write(offset, self.newest[offset : offset + 4096])
            if self.random.random() < 0.5:
                self._write()
        if self.random.random() < 0.5:
            self.here.merge()

    def _end_copy(self) -> None:
        if self.random.random() < 0.2:
            self._drop()
            return
        self.at_cut = bytes(self.newest)
        if self.random.random() < 0.5:
            self.here.cut()
            self._write()
        self.high += 1
        self.states[self.high] = self.at_cut
        self.here.end_copy(self.high)
        self.low, self.may_be_stale = self.high, False
        self.at_cut = None

    def _copy_again(self) -> None:
        """A new replication; until it is durable that it begins, the old one may be found."""
        self.may_be_stale = True
        self.at_cut = None
        new = UUID(int=self.identity.int + 1)
        self.here.begin_copy(new)
        self.identity = new
        self.states.clear()
        self.newest = bytearray(self.random.randbytes(DISK_SIZE))
        self._copy()

    def _open(self) -> None:
        """The process dies, and is started again; the power may fail with it."""
        self.replica = None
        if self.random.random() < 0.5:
            loss = self.random.choice(list(LOSSES))
            for each in (self.base, self.file):
                each.durable = bytearray(each.after_power_loss(loss, self.random))
                each.cache = bytearray(each.durable)
                each.pending.clear()
        self.counts["opened"] += 1
        self.replica = Replica.open("vda", self.base, self.file, self.limits)
        self._require_checkpoint(self.replica, bytes(self.base.cache))
        self.at_cut = None
        standing = self.replica.standing
        if isinstance(standing, At):
            self.low, self.may_be_stale = standing.epoch, False
            self.high = self.low
            self.states = {self.high: self.states[self.high]}
            self.newest = bytearray(self.states[self.high])
        else:
            self.may_be_stale = True

    def _act(self) -> None:
        chosen = self.random.random()
        if chosen < 0.2:
            self._merge()
        elif chosen < 0.22:
            self._open()
        elif chosen < 0.23:
            self._copy_again()
        elif chosen < 0.24:
            self._hand_over()
        else:
            self._act_beside_a_merge()

    def _act_beside_a_merge(self) -> None:
        chosen = self.random.random()
        if self.may_be_stale or self.here.condition is not Condition.WHOLE:
            return
        if chosen < 0.5:
            self._write()
        elif chosen < 0.9:
            self._cut_or_commit()
        elif chosen < 0.93:
            self._drop()
        else:
            self._read()

    def _write(self) -> None:
        size = min(self.random.choice(SIZES), DISK_SIZE)
        offset = self.random.randint(0, DISK_SIZE - size)
        if self.random.random() < 0.5:
            offset -= offset % 512
        zeroes = self.random.random() < 0.25
        data = bytes(size) if zeroes else self.random.randbytes(size)
        try:
            if zeroes:
                self.here.zero(offset, size)
            else:
                self.here.write(offset, data)
        except DiskFull:
            self.counts["full"] += 1
            assert self.here.full
            self._drop()
            return
        except DiskError:
            self.counts["a write fails"] += 1
            raise
        self.newest[offset : offset + size] = data

    def _cut_or_commit(self) -> None:
        if self.at_cut is None:
            self.here.cut()
            self.at_cut = bytes(self.newest)
            return
        number = self.high + self.random.choice((1, 1, 3))
        self.here.require_commit(number)
        self.states[number] = self.at_cut
        self.high = number
        self.here.commit(number)
        self.at_cut = None
        self.counts["committed"] += 1

    def _drop(self) -> None:
        self.here.drop()
        self.at_cut = None
        self.counts["dropped"] += 1
        if self.here.condition is Condition.STALE:
            self.may_be_stale = True
        else:
            self.newest = bytearray(self.states[self.high])

    def _read(self) -> None:
        self._require_same(self.here.read(0, DISK_SIZE), self.newest)
        begin = self.random.randrange(DISK_SIZE)
        length = self.random.randint(0, DISK_SIZE - begin)
        part = self.here.read_committed(begin, length)
        self._require_same(part, self.states[self.high][begin : begin + length])

    def _require_same(self, read: bytes, expected: bytes | bytearray) -> None:
        if read != expected:
            raise Complaint("what is read is not what was written")

    def _merge(self) -> None:
        before = self.high
        self.in_merge = True
        try:
            self.counts["merged"] += self.here.merge()
        finally:
            self.in_merge = False
        self._learn_what_is_durable()
        if self.low < before:
            raise Complaint("what was committed before a merge is not durable after it")

    def _hand_over(self) -> None:
        """Whatever of it is merged by now, and whatever of the next epoch is there."""
        if self.random.random() < 0.5:
            self._merge()
        self.may_be_stale = True
        self.here.hand_over()
        if bytes(self.base.cache) != self.states[self.high]:
            raise Complaint("what is handed over is not the disk at the last commit")
        self.states.clear()
        self.counts["handed over"] += 1
        self.replica = None
