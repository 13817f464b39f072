"""A replica as its users see it; what a crash leaves of it is in test_histories."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from uuid import UUID

import pytest

from colo.disks.blockfile import RealFile
from colo.disks.head import HEADS_SIZE
from colo.disks.replica import Replica
from colo.disks.standing import At, Condition, Limits, Stale
from colo.errors import DiskDamaged, DiskError, DiskFull, InvariantBroken, LimitExceeded
from tests.disks.simulated import SimulatedFile

ID, OTHER = UUID(int=1), UUID(int=2)
SIZE = 64 << 10
MEMORY = Limits(memory_bytes=1 << 20)
SPILLED = Limits(memory_bytes=0)


class Disk:
    """A replica that is whole at checkpoint 0, and its two files."""

    def __init__(self, limits: Limits = MEMORY, ring: int = 256 << 10) -> None:
        self.first = Random(1).randbytes(SIZE)
        self.base = SimulatedFile("base", bytes(SIZE))
        self.file = SimulatedFile("journal", bytes(HEADS_SIZE + ring))
        self.limits = limits
        self.replica = Replica.create("vda", self.base, self.file, ID, limits)
        self.replica.write(0, self.first)
        self.replica.end_copy(0)

    def checkpoint(self, number: int) -> None:
        self.replica.cut()
        self.replica.commit(number)

    def again(self) -> Replica:
        """What is found after the power failed, and nothing was written that was not synced."""
        base = SimulatedFile("base", bytes(self.base.durable))
        return Replica.open("vda", base, SimulatedFile("journal", bytes(self.file.durable)))


@pytest.fixture(params=[MEMORY, SPILLED], ids=["in memory", "spilled"])
def disk(request: pytest.FixtureRequest) -> Disk:
    return Disk(request.param)


def test_the_newest_and_what_is_committed_are_two(disk: Disk) -> None:
    replica = disk.replica
    assert replica.standing == At(ID, 0)
    assert replica.read_committed(0, SIZE) == disk.first
    replica.write(1000, b"of epoch 1")
    replica.cut()
    replica.write(1003, b"2")
    replica.zero(0, 10)
    assert replica.read(998, 12) == disk.first[998:1000] + b"of 2poch 1"
    assert replica.read_committed(0, SIZE) == disk.first
    replica.commit(1)
    assert replica.standing == At(ID, 1)
    assert replica.read_committed(1000, 10) == b"of epoch 1"
    assert replica.read(0, 11) == bytes(10) + disk.first[10:11]
    assert disk.base.cache == disk.first, "a commit does no I/O on the base"
    assert replica.lag == 1
    assert replica.merge() == 1
    assert replica.lag == 0
    assert disk.base.cache[1000:1010] == b"of epoch 1"
    assert disk.base.cache[:10] == disk.first[:10]
    assert replica.read(0, 11) == bytes(10) + disk.first[10:11]


def test_a_commit_does_no_io_at_all(disk: Disk) -> None:
    disk.replica.write(0, b"x" * 5000)

    def no_io(file: SimulatedFile, what: str) -> None:
        raise AssertionError(f"{what} {file.name}")

    disk.base.on_step = disk.file.on_step = no_io
    disk.replica.cut()
    disk.replica.require_commit(1)
    disk.replica.commit(1)
    disk.replica.drop()


def test_what_is_dropped_was_never_there(disk: Disk) -> None:
    replica = disk.replica
    replica.write(5, b"kept")
    disk.checkpoint(1)
    replica.write(5, b"lost")
    replica.cut()
    replica.zero(0, 100)
    replica.drop()
    assert replica.read(0, 100) == replica.read_committed(0, 100)
    assert replica.read(5, 4) == b"kept"
    replica.write(6, b"e")
    disk.checkpoint(2)
    assert replica.merge() == 2
    assert replica.held_bytes == 0
    assert disk.base.cache[5:9] == b"kept"
    assert disk.again().standing == At(ID, 2)


def test_epochs_that_wait_are_merged_as_one(disk: Disk) -> None:
    for number in range(1, 6):
        disk.replica.write(100, b"%d" % number * 512)
        disk.replica.write(2000 + number * 512, b"%d" % number * 512)
        disk.checkpoint(number)
    writes: list[str] = []
    disk.base.on_step = lambda file, what: writes.append(what)
    assert disk.replica.merge() == 5
    assert writes == ["write", "write", "sync"]
    assert disk.base.durable[100:612] == b"5" * 512
    assert disk.base.durable[2512:5072] == b"".join(b"%d" % n * 512 for n in range(1, 6))


def test_nothing_written_is_a_checkpoint_too(disk: Disk) -> None:
    disk.checkpoint(4)
    assert disk.again().standing == At(ID, 0)
    writes: list[str] = []
    disk.base.on_step = lambda file, what: writes.append(what)
    assert disk.replica.merge() == 1
    assert writes == []
    assert disk.again().standing == At(ID, 4)
    assert disk.replica.merge() == 0


def test_writes_of_nothing_are_nothing(disk: Disk) -> None:
    disk.replica.write(SIZE, b"")
    disk.replica.zero(SIZE, 0)
    assert disk.replica.held_bytes == 0
    assert disk.replica.read(SIZE, 0) == b""


def test_the_peers_word_is_no_limit(disk: Disk) -> None:
    with pytest.raises(LimitExceeded, match="a write to disk vda"):
        disk.replica.write(SIZE - 1, b"xx")
    with pytest.raises(LimitExceeded):
        disk.replica.zero(0, SIZE + 1)
    with pytest.raises(LimitExceeded, match="a read of disk vda"):
        disk.replica.read(SIZE, 1)


# Memory and room


def test_over_the_limit_writes_lie_in_the_journal() -> None:
    disk = Disk(Limits(memory_bytes=20_000))
    for index in range(10):
        disk.replica.write(index * 5000, bytes([index + 1]) * 5000)
    assert 15_000 < disk.replica.held_bytes < 21_000
    assert disk.file.pending, "they were not synced"
    expected = b"".join(bytes([index + 1]) * 5000 for index in range(10))
    assert disk.replica.read(0, 50_000) == expected
    disk.checkpoint(1)
    disk.replica.merge()
    assert disk.base.durable[:50_000] == expected


def test_a_checkpoint_is_wanted_then_writes_are_unwelcome_then_they_are_refused(disk: Disk) -> None:
    replica = disk.replica
    marks: list[tuple[bool, bool]] = []
    with pytest.raises(DiskFull, match="disk vda: no room for 4096 bytes more"):
        for index in range(1000):
            replica.write(index % 16 * 4096, bytes([index % 256]) * 4096)
            if index % 16 == 15:
                replica.cut()
                replica.commit(index)
            else:
                marks.append((replica.wants_checkpoint, replica.full))
    assert list(dict.fromkeys(marks)) == [(False, False), (True, False), (True, True)]
    assert replica.full
    with pytest.raises(DiskFull, match="lost already"):
        replica.write(0, b"x")
    with pytest.raises(DiskError, match="lacks a write"):
        replica.cut()
    assert replica.condition is Condition.WHOLE
    replica.drop()
    committed = replica.read_committed(0, SIZE)
    assert replica.merge() > 1, "there is room for all that was held"
    assert disk.base.durable == committed
    assert not replica.full
    replica.write(0, b"x")


def test_too_many_ranges_are_refused() -> None:
    disk = Disk(Limits(extents=10))
    for index in range(4):
        disk.replica.zero(index * 20, 10)
    assert not disk.replica.wants_checkpoint
    disk.replica.zero(4 * 20, 10)
    assert disk.replica.wants_checkpoint
    with pytest.raises(DiskFull):
        for index in range(5, 20):
            disk.replica.zero(index * 20, 10)


def test_what_is_dropped_gives_its_room_back() -> None:
    disk = Disk(SPILLED)
    for _ in range(20):
        for block in range(16):
            disk.replica.write(block * 4096, bytes(4096))
        disk.replica.drop()
    assert not disk.replica.full


def test_a_long_epoch_keeps_its_room_while_others_are_merged() -> None:
    disk = Disk(SPILLED)
    disk.replica.write(0, b"1" * 4096)
    disk.replica.cut()
    disk.replica.write(4096, b"2" * 4096)
    disk.replica.commit(1)
    disk.replica.merge()
    disk.replica.merge()
    assert disk.replica.read(0, 8192) == b"1" * 4096 + b"2" * 4096
    disk.checkpoint(2)
    disk.replica.merge()
    assert disk.base.durable[:8192] == b"1" * 4096 + b"2" * 4096


# The first copy


def test_the_first_copy_is_stale_until_it_has_ended() -> None:
    base, file = SimulatedFile("base", bytes(SIZE)), SimulatedFile("journal", bytes(1 << 16))
    replica = Replica.create("vda", base, file, ID)
    replica.write(0, b"mirrored")
    replica.write(3, b"guest")
    replica.zero(100, 5)
    assert base.cache[:8] == b"mirguest"
    assert replica.standing == Stale("its first copy runs")
    assert replica.read(0, 8) == b"mirguest"
    with pytest.raises(DiskError, match="its first copy runs"):
        replica.read_committed(0, 8)
    assert Replica.open("vda", base, file).standing == Stale("its first copy was cut off")


def test_what_is_written_after_the_cut_is_of_the_next_epoch() -> None:
    base, file = SimulatedFile("base", bytes(SIZE)), SimulatedFile("journal", bytes(1 << 16))
    replica = Replica.create("vda", base, file, ID)
    replica.write(0, b"first")
    assert replica.merge() == 0
    assert base.durable[:5] == b"first"
    replica.cut()
    with pytest.raises(InvariantBroken, match="cut once"):
        replica.cut()
    replica.write(0, b"later")
    replica.end_copy(10)
    assert replica.standing == At(ID, 10)
    assert replica.read_committed(0, 5) == bytes(base.cache[:5]) == b"first"
    assert replica.read(0, 5) == b"later"
    with pytest.raises(InvariantBroken, match="checkpoint 10 follows 10"):
        replica.cut()
        replica.commit(10)


def test_writes_come_while_the_first_copy_ends() -> None:
    base, file = SimulatedFile("base", bytes(SIZE)), SimulatedFile("journal", bytes(1 << 16))
    replica = Replica.create("vda", base, file, ID, SPILLED)
    replica.write(0, b"first")
    replica.cut()
    steps: list[str] = []

    def beside(each: SimulatedFile, what: str) -> None:
        base.on_step = lambda each, what: None
        replica.write(0, b"later")
        with pytest.raises(InvariantBroken, match="not dropped while it ends"):
            replica.drop()
        with pytest.raises(InvariantBroken, match="ends once"):
            replica.end_copy(1)
        steps.append(what)

    base.on_step = beside
    replica.end_copy(0)
    assert steps == ["sync"]
    assert replica.read_committed(0, 5) == base.durable[:5] == b"first"
    assert replica.read(0, 5) == b"later"
    replica.drop()
    assert replica.read(0, 5) == b"first"


def test_a_first_copy_that_is_dropped_is_stale_and_may_begin_again(disk: Disk) -> None:
    replica = disk.replica
    replica.write(0, b"waits")
    disk.checkpoint(1)
    replica.begin_copy(OTHER)
    assert replica.condition is Condition.COPYING
    assert isinstance(disk.again().standing, Stale)
    replica.write(0, b"copied")
    replica.drop()
    assert replica.standing == Stale("its first copy was cut off")
    refused: list[Callable[[], object]] = [replica.cut]
    refused += [lambda: replica.write(0, b"x"), lambda: replica.end_copy(1)]
    for each in refused:
        with pytest.raises(InvariantBroken, match="cut off"):
            each()
    replica.begin_copy(OTHER)
    replica.write(0, b"copied")
    replica.end_copy(0)
    assert replica.standing == disk.again().standing == At(OTHER, 0)
    assert disk.base.durable[:6] == b"copied"


def test_a_copy_begins_on_what_no_journal_is_known_of() -> None:
    base, file = SimulatedFile("base", bytes(SIZE)), SimulatedFile("journal", bytes(1 << 16))
    replica = Replica.open("vda", base, file)
    assert replica.standing == Stale("there is no journal in it")
    assert not replica.wants_checkpoint
    assert not replica.full
    assert replica.merge() == 0
    replica.begin_copy(ID)
    replica.end_copy(3)
    assert Replica.open("vda", base, file).standing == At(ID, 3)
    longer = SimulatedFile("base", bytes(2 * SIZE))
    replica = Replica.open("vda", longer, file)
    assert replica.standing == Stale(f"it has {2 * SIZE} bytes, its journal is for {SIZE}")
    replica.begin_copy(OTHER)
    replica.end_copy(0)
    assert Replica.open("vda", longer, file).standing == At(OTHER, 0)


# The end


def test_a_disk_that_was_handed_over_is_at_no_checkpoint(disk: Disk) -> None:
    replica = disk.replica
    replica.write(0, b"x")
    disk.checkpoint(1)
    replica.write(0, b"y")
    replica.cut()
    replica.write(1, b"z")
    committed = replica.read_committed(0, SIZE)
    replica.hand_over()
    assert disk.base.cache == committed
    assert replica.condition is Condition.HANDED_OVER
    assert isinstance(replica.standing, Stale)
    assert disk.again().standing == Stale("a VM has run on it")
    for refused in (lambda: replica.write(0, b"x"), replica.cut, lambda: replica.read(0, 1)):
        with pytest.raises(InvariantBroken, match="belongs to a VM"):
            refused()
    replica.close()


# I/O that fails


@pytest.mark.parametrize("file", ["base", "journal"])
@pytest.mark.parametrize("what", ["write", "sync"])
def test_a_merge_that_fails_leaves_what_is_committed_readable(
    disk: Disk, file: str, what: str
) -> None:
    replica = disk.replica
    replica.write(100, b"committed")
    disk.checkpoint(1)
    replica.write(100, b"cut in it")
    replica.cut()
    failing = disk.base if file == "base" else disk.file
    failing.fails = lambda asked: asked == what
    with pytest.raises(DiskError, match=f"disk vda: {file}: cannot {what}") as caught:
        replica.merge()
    assert replica.condition is Condition.FAILED
    assert replica.error is caught.value
    assert replica.read_committed(100, 9) == b"committed"
    replica.commit(2)  # one that was ready
    assert replica.read_committed(100, 9) == b"cut in it"
    assert replica.standing == At(ID, 2)
    for refused in (lambda: replica.write(0, b"x"), replica.cut, replica.merge):
        with pytest.raises(DiskError, match="it has failed: disk vda") as again:
            refused()
        assert again.value.__cause__ is caught.value
    with pytest.raises(DiskError, match="it has failed"):
        replica.require_commit(3)
    replica.drop()
    failing.fails = lambda asked: False
    opened = Replica.open("vda", disk.base, disk.file)
    assert isinstance(opened.standing, At)
    assert opened.standing.epoch in (0, 1)


def test_a_write_that_fails_is_not_committed() -> None:
    disk = Disk(SPILLED)
    disk.replica.write(0, b"cut")
    disk.replica.cut()
    disk.file.fails = lambda what: True
    with pytest.raises(DiskError, match="cannot write"):
        disk.replica.write(0, b"x")
    disk.file.fails = lambda what: False
    assert disk.replica.condition is Condition.FAILED
    disk.replica.commit(1)
    with pytest.raises(DiskError, match="has failed"):
        disk.replica.cut()
    assert disk.replica.read_committed(0, 3) == b"cut"


@pytest.mark.parametrize("what", ["write", "sync"])
def test_a_first_copy_that_fails_is_none(what: str) -> None:
    base, file = SimulatedFile("base", bytes(SIZE)), SimulatedFile("journal", bytes(1 << 16))
    replica = Replica.create("vda", base, file, ID)
    base.fails = lambda asked: asked == what
    with pytest.raises(DiskError):
        replica.write(0, b"x")
        replica.end_copy(0)
    assert replica.condition is Condition.FAILED
    assert isinstance(replica.standing, Stale)
    with pytest.raises(DiskError):
        replica.read_committed(0, 1)
    replica.drop()
    base.fails = lambda asked: False
    assert isinstance(Replica.open("vda", base, file).standing, Stale)


@pytest.mark.parametrize("do", ["begin_copy", "hand_over"])
def test_a_head_that_cannot_be_written_is_a_failure(do: str, disk: Disk) -> None:
    disk.file.fails = lambda what: what == "sync"
    with pytest.raises(DiskError, match="cannot sync"):
        disk.replica.begin_copy(OTHER) if do == "begin_copy" else disk.replica.hand_over()
    assert disk.replica.condition is Condition.FAILED
    assert disk.base.cache == disk.first


def test_no_memory_for_a_merge_is_a_failure(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*args: object) -> None:
        raise MemoryError

    disk.replica.write(0, b"x")
    disk.checkpoint(1)
    monkeypatch.setattr("colo.disks.durable.write_into", none_left)
    with pytest.raises(DiskError, match="no memory"):
        disk.replica.merge()
    assert disk.replica.condition is Condition.FAILED
    assert disk.replica.read_committed(0, 1) == b"x"


def test_a_record_that_changed_in_the_journal_is_not_merged_silently() -> None:
    disk = Disk(SPILLED)
    disk.replica.write(0, b"a" * 100)
    disk.checkpoint(1)
    disk.file.cache[HEADS_SIZE + 50] ^= 1
    with pytest.raises(DiskDamaged, match="a record"):
        disk.replica.read_committed(0, 10)
    with pytest.raises(DiskDamaged, match="a record"):
        disk.replica.merge()
    assert disk.replica.condition is Condition.FAILED
    assert disk.base.cache == disk.first


def test_a_write_out_of_range_is_one_that_is_lacking(disk: Disk) -> None:
    with pytest.raises(LimitExceeded):
        disk.replica.write(SIZE, b"x")
    with pytest.raises(DiskError, match="lacks a write: a write to disk vda"):
        disk.replica.cut()
    disk.replica.drop()
    disk.replica.begin_copy(OTHER)
    with pytest.raises(LimitExceeded):
        disk.replica.zero(SIZE, 1)
    for ends in (disk.replica.cut, lambda: disk.replica.end_copy(1)):
        with pytest.raises(DiskError, match="lacks a write"):
            ends()


# Several threads


def test_a_reader_that_merges_outrun_reads_one_checkpoint() -> None:
    disk = Disk(SPILLED)
    numbers: Iterator[int] = iter(range(1, 100))

    def advance() -> None:
        number = next(numbers)
        disk.replica.write(0, b"%02d" % number * 1000)
        disk.checkpoint(number)

    advance()
    pread = disk.base.pread

    def outrun(offset: int, length: int) -> bytes:
        if not disk.replica._lock.locked():  # else it is held against us
            disk.replica.merge()
            advance()
        return pread(offset, length)

    disk.base.pread = outrun  # type: ignore[method-assign]
    found = disk.replica.read_committed(0, 2000)
    assert found == b"%02d" % (next(numbers) - 1) * 1000


def test_a_merge_in_a_thread_while_the_guest_writes(tmp_path: Path) -> None:
    base = RealFile.make(tmp_path / "vda", "vda", 1 << 20)
    file = RealFile.make(tmp_path / "journal", "vda", 2 << 20)
    replica = Replica.create("vda", base, file, ID, Limits(memory_bytes=100_000))
    replica.end_copy(0)
    random, model = Random(3), bytearray(1 << 20)
    committed, asked, failures = threading.Event(), threading.Event(), []

    def merging() -> None:
        try:
            while not asked.is_set() or replica.lag:
                committed.wait()
                committed.clear()
                replica.merge()
                whole = replica.read_committed(0, 8192)
                assert whole[:4096] == whole[4096:], "two checkpoints in one read"
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=merging)
    thread.start()
    for number in range(1, 120):
        for _ in range(20):
            data = random.randbytes(random.choice((512, 4096, 5000)))
            offset = random.randrange(8192, (1 << 20) - len(data))
            replica.write(offset, data)
            model[offset : offset + len(data)] = data
        both = random.randbytes(4096)
        model[:8192] = both + both
        replica.write(0, both)
        replica.write(4096, both)
        replica.cut()
        replica.commit(number)
        committed.set()
        while replica.full and thread.is_alive():
            committed.set()
    asked.set()
    committed.set()
    thread.join()
    assert failures == []
    replica.merge()
    assert base.pread(0, base.size) == model
    replica.close()
    opened = Replica.open(
        "vda", RealFile(tmp_path / "vda", "vda"), RealFile(tmp_path / "journal", "vda")
    )
    assert opened.standing == At(ID, 119)
    opened.close()
