"""The guest in memory: what it saves, and what it loads."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from colo.errors import GuestError
from colo.guest.interface import PrimaryGuest, Saved, SecondaryGuest
from colo.guest.memory import MemoryGuest
from colo.migration.ram import Limits, PageRun, RamBlock
from colo.migration.reader import Header, Migration
from colo.migration.vmdesc import walk
from colo.migration.writer import device_state
from colo.store.store import Store


def save(guest: MemoryGuest, everything: bool = False) -> tuple[Saved, list[PageRun]]:
    saved = asyncio.run(guest.save(everything))
    return saved, list(saved.pages)


def numbers(runs: list[PageRun]) -> list[list[int]]:
    return [(run.offsets // 4096).tolist() for run in runs]


def write(guest: MemoryGuest, *pages: int, value: int = 1) -> None:
    guest.write(np.array(pages), np.full((len(pages), 4096), value, np.uint8))


def test_it_is_a_guest_for_both_roles() -> None:
    guest = MemoryGuest(4)
    primary: PrimaryGuest = guest
    secondary: SecondaryGuest = guest
    assert primary.blocks == (RamBlock("memory", 4 * 4096),)
    assert secondary is guest


def test_everything_is_every_page_and_zero_ones_are_fills() -> None:
    guest = MemoryGuest(600)
    write(guest, 300, 301)
    for _ in range(2):  # as often as it is asked for
        _, runs = save(guest, everything=True)
        assert sorted(page for run in numbers(runs) for page in run) == list(range(600))
        assert numbers([run for run in runs if not run.is_fill]) == [[300, 301]]
    assert save(guest)[1] == []


def test_what_was_written_is_saved_once() -> None:
    guest = MemoryGuest(1024)
    save(guest, everything=True)
    write(guest, 7, 3, 3, 900)
    assert numbers(save(guest)[1]) == [[3, 7, 900]]
    assert save(guest)[1] == []
    write(guest, *range(100, 400))
    assert numbers(save(guest)[1]) == [list(range(100, 400))]


def test_of_equal_numbers_the_last_counts() -> None:
    guest = MemoryGuest(4)
    content = np.stack([np.full(4096, value, np.uint8) for value in (1, 2, 3)])
    guest.write(np.array([2, 2, 1]), content)
    assert guest.memory[:, 0].tolist() == [0, 3, 2, 0]


def test_pages_are_not_copied() -> None:
    guest = MemoryGuest(64)
    write(guest, 10, 12, 13)
    (run,) = save(guest)[1]
    assert np.shares_memory(run.source, guest.memory)
    assert run.content.tobytes() == guest.memory[[10, 12, 13]].tobytes()


def test_the_blob_is_described() -> None:
    guest = MemoryGuest(1)
    guest.blob = b"all else"
    saved, _ = save(guest)
    (device,) = walk(saved.description, memoryview(saved.device_state))
    assert (device.name, device.end - device.start) == ("blob", len(saved.device_state) - 1)
    assert b"all else" in saved.device_state


def test_it_runs_between_resume_and_suspend() -> None:
    guest = MemoryGuest(1)
    seen = [guest.running.is_set()]

    async def run() -> None:
        for step in (guest.run, guest.suspend, guest.suspend, guest.resume, guest.resume):
            await step()
            seen.append(guest.running.is_set())

    asyncio.run(run())
    assert seen == [False, True, False, False, True, True]


# -- load ---------------------------------------------------------------------------------


def stored(folder: Path, block: RamBlock, state: bytes) -> Store:
    """A store with a first migration of pages that are full of ones."""
    store = Store(folder / "store", (block,), Limits(1 << 20))
    store.images[block.name].pages[:] = 1
    store.commit_migration(Migration(Header("memory"), 2, (block,), state, (), {}))
    return store


@pytest.mark.parametrize("blob", [b"", b"\0", b"blob", bytes(1000)])
def test_what_was_saved_is_loaded(blob: bytes, tmp_path: Path) -> None:
    guest = MemoryGuest(4)
    guest.blob = b"before"
    write(guest, 2, value=9)
    store = stored(tmp_path, guest.block, device_state([("blob", blob)])[0])
    asyncio.run(guest.load(store))
    assert guest.blob == blob
    assert (guest.memory == 1).all()
    guest.memory[0] = 2
    assert (store.images["memory"].pages == 1).all()


@pytest.mark.parametrize(
    "state",
    [
        b"\0",
        device_state([])[0],
        device_state([("bulb", b"blob")])[0],
        device_state([("blob", b"blob"), ("blob", b"")])[0],
        device_state([("blob", b"blob")])[0] + b"\0",
    ],
)
def test_another_guests_state_is_refused(state: bytes, tmp_path: Path) -> None:
    guest = MemoryGuest(4)
    with pytest.raises(GuestError, match="device state"):
        asyncio.run(guest.load(stored(tmp_path, guest.block, state)))
    assert not guest.memory.any()


def test_other_memory_is_refused(tmp_path: Path) -> None:
    store = stored(tmp_path, RamBlock("memory", 8 * 4096), device_state([("blob", b"")])[0])
    with pytest.raises(GuestError, match="other memory"):
        asyncio.run(MemoryGuest(4).load(store))
