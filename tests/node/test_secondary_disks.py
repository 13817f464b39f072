"""A secondary VM's disks: the last commit with its own writes over it, and the files at the end."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest

from colo.disks.replica import Replica
from colo.disks.standing import Limits
from colo.errors import DiskError, ExportError
from colo.node.secondary_disks import SecondaryDisk, SecondaryDisks
from colo.qemu.monitor import Monitor
from tests.disks.simulated import SimulatedFile
from tests.disks.test_view import SIZE, replica, write_some

ROOM = 8 << 20


def never() -> None:
    raise AssertionError("it is not full")


async def write_beside(disk: SecondaryDisk, random: Random, model: bytearray) -> None:
    """The secondary VM writes something, somewhere."""
    length = random.choice([1, 512, 4096, 70_000])
    offset = random.randrange(SIZE - length)
    match random.randrange(4):
        case 0:
            await disk.write_zeroes(offset, length, may_trim=True, fua=False)
            model[offset : offset + length] = bytes(length)
        case 1:
            await disk.trim(offset, length)
            model[offset : offset + length] = bytes(length)
        case _:
            data = random.randbytes(length)
            await disk.write(offset, memoryview(data), fua=True)
            model[offset : offset + length] = data


async def check_read(disk: SecondaryDisk, random: Random, model: bytearray) -> None:
    length = random.choice([1, 4096, 300_000])
    offset = random.randrange(SIZE - length)
    assert await disk.read(offset, length) == model[offset : offset + length]


@pytest.mark.parametrize("seed", range(20))
def test_it_reads_the_last_commit_and_what_it_wrote_and_the_file_gets_both(seed: int) -> None:
    async def play() -> None:
        random = Random(seed)
        limits = Limits(memory_bytes=random.choice([0, ROOM]))
        first = random.randbytes(SIZE)
        base = SimulatedFile("base", bytes(SIZE))
        under = replica(first, limits, base)
        write_some(under, random, 1)
        model = bytearray(under.read_committed(0, SIZE))
        disk = SecondaryDisk(under, ROOM, never)
        for _ in range(30):
            match random.randrange(5):
                case 0:  # what the primary VM writes meanwhile is of the next checkpoint
                    under.write(random.randrange(SIZE - 5000), random.randbytes(5000))
                case 1:
                    under.merge()
                case 2:
                    await check_read(disk, random, model)
                case _:
                    await write_beside(disk, random, model)
        await check_read(disk, random, model)
        assert under.read_committed(0, SIZE) != model, "nothing of it is the replica's"
        under.hand_over(disk.written)
        assert base.pread(0, SIZE) == model

    asyncio.run(play())


def test_what_it_wrote_is_bounded_until_it_has_the_disk() -> None:
    async def play() -> None:
        told = []
        disk = SecondaryDisk(replica(bytes(SIZE)), 10_000, lambda: told.append(1))
        for at in range(3):
            await disk.write(at * 8192, bytes([1]) * 4096, fua=False)
        assert told == [1]
        waits = asyncio.create_task(disk.write(0, b"late", fua=False))
        done, _ = await asyncio.wait({waits}, timeout=0.05)
        assert not done
        assert await disk.read(0, 4) == bytes([1]) * 4, "reads go on"
        disk.let_go()
        await waits
        await disk.write(8192 * 9, bytes([2]) * 4096, fua=False)
        assert await disk.read(0, 4) == b"late"
        assert told == [1]

    asyncio.run(play())


def test_an_error_of_the_replica_is_the_guests_to_see() -> None:
    async def play() -> None:
        under = replica(bytes(SIZE))
        disk = SecondaryDisk(under, ROOM, never)
        under.hand_over()
        with pytest.raises(ExportError, match="vda"):
            await disk.read(0, 4096)

    asyncio.run(play())


class Qemu:
    """Writes down what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []

    async def execute(self, command: str, **arguments: Any) -> None:
        self.asked.append((command, arguments))


def test_its_drive_lies_on_ours_and_then_on_the_file(tmp_path: Path) -> None:
    async def play() -> None:
        qemu = Qemu()
        path = tmp_path / "vda.raw"
        disks = SecondaryDisks([replica(bytes(SIZE))], [path], tmp_path, never)
        await disks.begin(cast(Monitor, qemu))
        assert (tmp_path / "disks.sock").exists()
        await disks.become_files(cast(Monitor, qemu))
        await disks.close()
        assert not (tmp_path / "disks.sock").exists()
        (_, nbd), (_, to_ours), (_, file), (_, to_file), (last, gone) = qemu.asked
        assert (nbd["driver"], nbd["export"]) == ("nbd", "vda")
        assert to_ours["options"][0]["file"] == nbd["node_name"]
        assert (file["driver"], file["filename"]) == ("file", str(path))
        assert to_file["options"][0]["file"] == file["node_name"]
        assert (last, gone["node_name"]) == ("blockdev-del", nbd["node_name"])
        for options in (to_ours["options"][0], to_file["options"][0]):
            assert options["node-name"] == "vda"
            assert options["discard"] == options["detect-zeroes"] == "unmap"

    asyncio.run(play())


def test_where_there_are_none_nothing_is_asked(tmp_path: Path) -> None:
    async def play() -> None:
        qemu = Qemu()
        disks = SecondaryDisks([], [], tmp_path, never)
        await disks.begin(cast(Monitor, qemu))
        await disks.become_files(cast(Monitor, qemu))
        await disks.close()
        assert qemu.asked == []

    asyncio.run(play())


@pytest.mark.parametrize("over", [True, False])
def test_io_that_fails_at_the_end_is_said(over: bool) -> None:
    async def play() -> None:
        base = SimulatedFile("base", bytes(SIZE))
        under: Replica = replica(bytes(SIZE), base=base)
        disk = SecondaryDisk(under, ROOM, never)
        if over:
            await disk.write(0, b"x", fua=False)
        base.fails = lambda what: what == "write"
        if over:
            with pytest.raises(DiskError, match="vda"):
                under.hand_over(disk.written)
            assert under.error is not None
        else:
            under.hand_over(disk.written)

    asyncio.run(play())
