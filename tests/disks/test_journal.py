"""The journal: a ring that is never overrun, batches that are whole or damaged, never half."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from uuid import UUID

import pytest

from colo.disks import journal as module
from colo.disks.extents import Extents
from colo.disks.head import HEADS_SIZE, Head, HeadState, Unreadable
from colo.disks.journal import BLOCK_SIZE, RING_MIN, Journal, room_for
from colo.disks.replica import Replica
from colo.disks.standing import At, Stale
from colo.errors import DiskDamaged, DiskError, DiskFull
from tests.disks.simulated import SimulatedFile

ID = UUID(int=3)
SIZE = 1 << 20


def made(ring: int = RING_MIN) -> tuple[SimulatedFile, Journal]:
    file = SimulatedFile("journal", Random(1).randbytes(HEADS_SIZE + ring))
    return file, Journal.make(file, "vda", ID, SIZE)


def batch(journal: Journal, data: list[bytes | None], spilled: bool) -> Extents:
    extents = Extents()
    for index, each in enumerate(data):
        start = index * 5000
        if each is None:
            extents.put(start, start + 700, None)
        elif spilled and index % 2:
            source = journal.write(journal.reserve(len(each)), each)
            extents.put(start, start + len(each), source)
        else:
            extents.put(start, start + len(each), each)
    return extents


def content(journal: Journal, extents: Extents) -> list[tuple[int, int, bytes | None]]:
    return [
        (start, end, None if source is None else journal.read(source)[at : at + end - start])
        for start, end, source, at in extents
    ]


def test_a_new_journal_says_that_the_base_is_a_mixture() -> None:
    file, journal = made()
    assert journal.head.state is HeadState.COPYING
    opened = Journal.open(SimulatedFile("journal", bytes(file.durable)), "vda")
    assert opened.head == journal.head
    assert opened.head.disk_size == SIZE
    assert opened.head.identity == ID
    assert opened.head.ring == RING_MIN


@pytest.mark.parametrize("seed", range(6))
def test_a_batch_is_found_as_it_was_written(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RECORD_MAX", 1500)
    random = Random(seed)
    file, journal = made(64 << 10)
    journal.reserve(random.randrange(60_000))
    journal.release(journal.next)
    data = [random.choice((None, random.randbytes(random.randrange(1, 1500)))) for _ in range(20)]
    extents = batch(journal, data, spilled=seed % 2 == 1)
    extents.put(5100, 5200, None)  # in the midst of one
    expected = content(journal, extents)
    size = journal.size_of(extents)
    position = journal.reserve(size)
    journal.write_batch(position, 7, extents)
    assert journal.head.next <= position + size <= journal.next
    opened = Journal.open(SimulatedFile("journal", bytes(file.durable)), "vda")
    assert (opened.head.state, opened.head.epoch) == (HeadState.JOURNAL, 7)
    assert content(opened, opened.batch()) == expected
    memory = sum(len(each) for each in data if each is not None)
    assert size <= room_for(memory, len(extents))


def test_the_ring_is_not_overrun() -> None:
    _, journal = made()
    whole = RING_MIN // BLOCK_SIZE
    positions = [journal.reserve(1) for _ in range(whole)]
    assert journal.used == RING_MIN
    assert journal.room_with(0) == 0
    with pytest.raises(DiskFull, match="disk vda: the journal is full"):
        journal.reserve(1)
    journal.release(positions[2])
    assert journal.room_with(1) == BLOCK_SIZE
    assert journal.reserve(2 * BLOCK_SIZE) == RING_MIN
    with pytest.raises(AssertionError):
        journal.release(positions[1])


def test_a_record_goes_over_the_end_of_the_ring() -> None:
    file, journal = made()
    journal.reserve(RING_MIN - BLOCK_SIZE)
    journal.release(journal.next)
    data = Random(2).randbytes(3 * BLOCK_SIZE)
    source = journal.write(journal.reserve(len(data)), data)
    assert journal.read(source) == data
    assert file.cache[HEADS_SIZE : HEADS_SIZE + 2 * BLOCK_SIZE] == data[BLOCK_SIZE:]


def test_a_record_is_one_of_its_place_and_of_its_replication() -> None:
    file, journal = made()
    source = journal.write(journal.reserve(5), b"hello")
    assert journal.read(source) == b"hello"
    size, position, crc = source
    moved = (size, position + RING_MIN, crc)
    with pytest.raises(DiskDamaged, match="disk vda: a record in its journal is damaged"):
        journal.read(moved)
    journal.say(HeadState.COPYING, identity=UUID(int=4))
    with pytest.raises(DiskDamaged):
        journal.read(source)
    assert Journal.open(file, "vda").head.identity == UUID(int=4)


def test_what_is_no_journal_is_not_opened() -> None:
    with pytest.raises(DiskError, match="at least"):
        Journal.make(SimulatedFile("journal", bytes(RING_MIN)), "vda", ID, SIZE)
    for size in (0, RING_MIN, HEADS_SIZE + RING_MIN):
        with pytest.raises(Unreadable, match="no journal"):
            Journal.open(SimulatedFile("journal", bytes(size)), "vda")
    file, _ = made()
    with pytest.raises(Unreadable, match="another size"):
        Journal.open(SimulatedFile("journal", bytes(file.cache) + bytes(BLOCK_SIZE)), "vda")


# Each byte of it damaged in turn, with the base half merged

BASE = Random(5).randbytes(30_000)


def half_merged() -> tuple[bytes, bytes, bytes, range]:
    """The base and the journal as a crash left them, what was committed, the ring's used part."""
    base, file = SimulatedFile("base", BASE), SimulatedFile("journal", bytes(HEADS_SIZE + RING_MIN))
    replica = Replica.create("vda", base, file, ID)
    replica.end_copy(1)
    replica.write(100, b"a" * 300)
    replica.write(9000, b"b" * 200)
    replica.zero(20_000, 600)
    replica.cut()
    replica.commit(2)
    whole = replica.read_committed(0, base.size)
    left: list[tuple[bytes, bytes]] = []

    def crash(_: SimulatedFile, what: str) -> None:
        if what == "write" and len(base.pending) > 1:
            left.append((bytes(base.cache), bytes(file.durable)))

    base.on_step = crash
    replica.merge()
    (halfway, *_), head = left, replica._durable.journal.head
    assert halfway[0] not in (BASE, whole)
    return *halfway, whole, range(HEADS_SIZE, HEADS_SIZE + head.next)


def damage_each_byte() -> dict[str, int]:
    base, journal, whole, used = half_merged()
    found = {"at 2": 0, "stale": 0}
    for at in [*range(used.stop), *range(used.stop, len(journal), 499)]:
        damaged = bytearray(journal)
        damaged[at] ^= 1 << at % 8
        replica, left = opened(base, bytes(damaged))
        if isinstance(replica.standing, Stale):
            assert left == base, "nothing is written"
            assert at in used, "a damaged head has its copies"
            found["stale"] += 1
        else:
            assert replica.standing == At(ID, 2)
            assert left == whole
            found["at 2"] += 1
    return found


def opened(base: bytes, journal: bytes) -> tuple[Replica, bytes]:
    file = SimulatedFile("base", base)
    replica = Replica.open("vda", file, SimulatedFile("journal", journal))
    return replica, bytes(file.cache)


def test_no_damaged_byte_leads_to_a_mixture() -> None:
    found = damage_each_byte()
    assert found["stale"] == 300 + 200 + 3 * 36  # the record, and the index


def _unchecked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Journal, "_check", lambda self, holds, what: None)


def _one_copy(patch: pytest.MonkeyPatch) -> None:
    whole = Head.packed
    patch.setattr(Head, "packed", lambda self: whole(self)[:512].ljust(4096, b"\0"))


@pytest.mark.parametrize("broken", [_unchecked, _one_copy])
def test_a_check_that_is_left_out_is_noticed(
    broken: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch)
    with pytest.raises(AssertionError):
        damage_each_byte()


def test_a_place_that_is_lost_is_not_taken_for_the_one_before() -> None:
    base, journal, _, _ = half_merged()
    for begin in (0, 4096):
        lost = bytearray(journal)
        lost[begin : begin + 4096] = bytes(4096)
        replica, left = opened(base, bytes(lost))
        assert replica.standing == Stale("the journal's head is damaged")
        assert left == base


def test_an_index_that_makes_no_sense_is_damaged() -> None:
    for start, end, size, at in (
        (5, 5, 9, 0),
        (0, SIZE + 1, 9, 0),
        (0, 9, 9, 1),
        (0, 9, 1 << 30, 0),
    ):
        _, journal = made()
        _, position, crc = journal.write(journal.reserve(9), bytes(9))
        entry = (start, end, position, crc, size, at)
        journal._seal(journal.reserve(100), 1, module._ENTRY.pack(*entry))
        with pytest.raises(DiskDamaged, match="is damaged"):
            journal.batch()
