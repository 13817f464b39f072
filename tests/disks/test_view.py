"""A view of a disk shows one commit, whatever is merged while it is read."""

from __future__ import annotations

import threading
from random import Random
from uuid import UUID

import pytest

from colo.disks.extents import Extents
from colo.disks.head import HEADS_SIZE
from colo.disks.replica import Replica
from colo.disks.standing import Limits
from colo.disks.view import DiskView
from colo.errors import DiskError, InvariantBroken
from tests.disks.simulated import SimulatedFile

#: More than what is read at a time, and no whole number of blocks.
SIZE = (2 << 20) + 1536
MEMORY = Limits()


def replica(content: bytes, limits: Limits = MEMORY, base: SimulatedFile | None = None) -> Replica:
    made = Replica.create(
        "vda",
        base or SimulatedFile("base", bytes(len(content))),
        SimulatedFile("journal", bytes(HEADS_SIZE + (4 << 20))),
        UUID(int=1),
        limits,
    )
    made.write(0, content)
    made.end_copy(0)
    return made


def view_of(of: Replica) -> DiskView:
    return of.view(SimulatedFile("aside", bytes(of.size)))


def read(view: DiskView) -> bytes:
    found = bytearray(view.size)
    for offset, data in view.content():
        assert data.count(0) < len(data), "zeroes are left out"
        found[offset : offset + len(data)] = data
    return bytes(found)


def write_some(to: Replica, random: Random, number: int) -> None:
    for _ in range(random.randint(0, 12)):
        length = random.choice([1, 512, 4096, 5000, 70_000])
        offset = random.randrange(to.size - length)
        if random.random() < 0.2:
            to.zero(offset, length)
        else:
            to.write(offset, random.randbytes(length))
    to.cut()
    to.commit(number)
    if random.random() < 0.8:
        to.merge()


@pytest.mark.parametrize("seed", range(40))
def test_a_view_is_of_its_commit_whatever_is_merged_between_two_reads(seed: int) -> None:
    random = Random(seed)
    first = bytearray(random.randbytes(SIZE))
    first[300_000:900_000] = bytes(600_000)
    disk = replica(bytes(first), Limits(memory_bytes=random.choice([0, 1 << 20])))
    number = 0
    for _ in range(3):
        number += 1
        write_some(disk, random, number)
        disk.merge()
        must, view = disk.read_committed(0, SIZE), view_of(disk)
        found = bytearray(SIZE)
        for offset, data in view.content():
            found[offset : offset + len(data)] = data
            if random.random() < 0.3:
                number += 1
                write_some(disk, random, number)
        assert bytes(found) == must
        disk.end_view(view)


def test_a_merge_in_another_thread_never_shows() -> None:
    random = Random(5)
    disk = replica(random.randbytes(SIZE))
    ended = threading.Event()

    def go_on() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            write_some(disk, random, number)
            disk.merge()

    for _ in range(20):
        ended.clear()
        must, view = disk.read_committed(0, SIZE), view_of(disk)
        thread = threading.Thread(target=go_on)
        thread.start()
        try:
            assert read(view) == must
        finally:
            ended.set()
            thread.join()
            disk.end_view(view)
        disk = replica(disk.read_committed(0, SIZE))


def test_several_views_are_each_of_their_own_commit() -> None:
    disk = replica(bytes([1]) * SIZE)
    views = [view_of(disk)]
    for number in (1, 2):
        disk.write(number * 100_000, bytes([7 + number]) * 10)
        disk.cut()
        disk.commit(number)
        disk.merge()
        views.append(view_of(disk))
    found = [read(view) for view in views]
    assert [each[100_000] for each in found] == [1, 8, 8]
    assert [each[200_000] for each in found] == [1, 1, 9]


def test_a_view_is_opened_where_all_is_merged() -> None:
    disk = replica(bytes(SIZE))
    disk.write(0, b"x")
    disk.cut()
    disk.commit(1)
    with pytest.raises(InvariantBroken, match="where all that is committed is merged"):
        view_of(disk)


@pytest.mark.parametrize("how", ["hand_over", "begin_copy", "close"])
def test_a_view_ends_with_what_it_shows(how: str) -> None:
    disk = replica(Random(1).randbytes(SIZE))
    view = view_of(disk)
    content = view.content()
    next(content)
    disk.begin_copy(UUID(int=9)) if how == "begin_copy" else getattr(disk, how)()
    with pytest.raises(DiskError, match=r"a VM runs on it|is being copied anew|no longer"):
        list(content)


def test_where_nothing_can_be_set_aside_the_view_ends_and_the_disk_goes_on() -> None:
    disk = replica(Random(1).randbytes(SIZE))
    aside = SimulatedFile("aside", bytes(SIZE))
    aside.fails = lambda what: what == "write"
    view = disk.view(aside)
    disk.write(SIZE - 4, b"last")
    disk.cut()
    disk.commit(1)
    assert disk.merge() == 1
    with pytest.raises(DiskError, match="what was to be read is lost"):
        read(view)
    assert disk.read_committed(SIZE - 4, 4) == b"last"


def test_what_was_read_is_not_set_aside() -> None:
    disk = replica(Random(1).randbytes(SIZE))
    aside = SimulatedFile("aside", bytes(SIZE))
    view = disk.view(aside)
    read(view)
    extents = Extents()
    extents.put(0, SIZE, None)
    view.before(extents)
    assert bytes(aside.cache) == bytes(SIZE)
