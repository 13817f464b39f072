"""The staging area: large enough for any checkpoint, and no larger than recent ones for long."""

from __future__ import annotations

import mmap

import pytest

from colo.errors import LimitExceeded, StoreError
from colo.migration.ram import Limits
from colo.store.staging import StagingArea
from tests.streams import RAM, fill, full

LIMITS = Limits(ram_bytes=8 << 20, device_bytes=64 << 10, description_bytes=64 << 10)


def test_there_is_room_for_every_page_and_the_devices() -> None:
    area = StagingArea(LIMITS)
    pages = (LIMITS.ram_bytes // 4096) * 4104
    assert len(area.buffer.data) > pages + LIMITS.device_bytes
    area.buffer.wrote(len(area.buffer.data))
    with pytest.raises(LimitExceeded, match="a checkpoint: "):
        area.buffer.writable(1)


def test_pages_are_counted_until_they_are_cleared() -> None:
    area = StagingArea(LIMITS)
    assert area.pages == 0
    area.runs += [full(RAM, [1, 2]), fill(RAM, [3])]
    assert area.pages == 3
    area.clear()
    assert (area.pages, area.runs) == (0, [])


def test_what_has_arrived_already_of_the_next_checkpoint_is_kept() -> None:
    area = StagingArea(LIMITS)
    area.buffer.append(b"used up" + b"\0\0\0\1")
    area.buffer.take(7)
    position = area.buffer.position
    area.clear()
    assert (area.buffer.start, area.buffer.available, area.buffer.position) == (0, 4, position)
    assert bytes(area.buffer.take(4)) == b"\0\0\0\1"


def test_memory_that_recent_checkpoints_did_not_fill_is_given_back() -> None:
    area = StagingArea(LIMITS)
    at = 6 << 20
    area.buffer.wrote(at)
    area.buffer.append(b"large")
    area.buffer.take(area.buffer.available)
    for _ in range(8):
        area.clear()
        assert bytes(area.buffer.data[at : at + 5]) == b"large", "it was used a moment ago"
    for _ in range(1000):
        area.clear()
    assert bytes(area.buffer.data[at : at + 5]) == bytes(5)


def test_a_small_area_is_simply_kept() -> None:
    area = StagingArea(Limits(ram_bytes=4096, device_bytes=4096, description_bytes=4096))
    area.buffer.append(b"small")
    for _ in range(20):
        area.clear()
    assert bytes(area.buffer.data[:5]) == b"small"


def test_address_space_that_cannot_be_had_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refuse)
    with pytest.raises(StoreError, match=r"cannot reserve 9 MiB of address space: .*allocate"):
        StagingArea(LIMITS)
