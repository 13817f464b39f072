"""The image of a block: a private file whose bytes are the block's memory."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from colo.errors import StoreError
from colo.migration.ram import PageRun, RamBlock
from colo.store.image import Image, mib, require_room
from tests.streams import RAM, RSDP, blank, content, fill, full, pages_of, paint

WRITES: dict[str, list[PageRun]] = {
    "nothing": [],
    "pages in a row": [full(RAM, range(3, 9))],
    "pages in no order": [full(RAM, [9, 2, 14, 0])],
    "pages downwards": [full(RAM, [5, 4, 3])],
    "a page twice in a run": [
        PageRun(
            RAM,
            np.array([0x2000, 0x5000, 0x2000]),
            np.frombuffer(content(1) + content(2) + content(3), np.uint8).reshape(3, -1),
        )
    ],
    "a page twice": [full(RAM, [2, 3], 1), full(RAM, [3, 4], 2)],
    "a fill byte": [fill(RAM, range(4), 7), fill(RAM, [9, 3, 11], 0xFF)],
    "zeros over content": [full(RAM, range(16)), fill(RAM, range(16))],
    "zeros over a few": [full(RAM, [1, 5, 9]), fill(RAM, [0, 1, 2, 5])],
    "zeros over a fill byte": [fill(RAM, range(8), 1), fill(RAM, [2, 1, 2])],
    "zeros, content, zeros": [fill(RAM, [4]), full(RAM, [4]), fill(RAM, [4]), fill(RAM, [4])],
    "content over zeros": [fill(RAM, range(16)), full(RAM, [0, 15])],
    "fill bytes of which some are zero": [
        full(RAM, range(4)),
        PageRun(RAM, np.array([0, 0x1000, 0x2000]), np.array([[1], [0], [2]], np.uint8)),
        fill(RAM, [0, 1]),
    ],
    "full pages of zeros": [
        full(RAM, [6]),
        PageRun(RAM, np.array([0x6000]), np.zeros((1, 4096), np.uint8)),
        fill(RAM, [6]),
    ],
}  # fmt: skip


@pytest.mark.parametrize("runs", WRITES.values(), ids=WRITES)
def test_what_is_written_is_in_memory_and_in_the_file(runs: list[PageRun], tmp_path: Path) -> None:
    image, expected = Image(tmp_path, RAM), blank([RAM])
    for run in runs:
        image.write(run)
        paint(expected, pages_of([run]))
    assert image.pages.tobytes() == expected["pc.ram"]
    assert image.path.read_bytes()[: RAM.length] == expected["pc.ram"]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("pc.ram", "pc.ram"),
        ("/rom@etc/acpi/rsdp", "%2From%40etc%2Facpi%2Frsdp"),
        ("0000:00:02.0/vga.vram", "0000%3A00%3A02.0%2Fvga.vram"),
        ("../../up", "..%2F..%2Fup"),
        ("a%2Fb", "a%252Fb"),
        ("with space", "with%20space"),
    ],
)
def test_a_file_has_the_name_of_its_block_whatever_is_in_it(
    name: str, file: str, tmp_path: Path
) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    image = Image(folder, RamBlock(name, 4096))
    assert image.path == folder / file
    assert [path.name for path in folder.iterdir()] == [file]
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    image.remove()
    image.remove()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ["", ".", "..", "/" * 100])
def test_a_block_whose_name_can_be_no_file_is_an_error_with_its_name(
    name: str, tmp_path: Path
) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    with pytest.raises(StoreError):
        Image(folder, RamBlock(name, 4096))
    assert list(folder.iterdir()) == []


def test_a_file_is_open_to_its_owner_only_and_has_all_its_room(tmp_path: Path) -> None:
    image = Image(tmp_path, RSDP)
    status = image.path.stat()
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_blocks * 512 >= RSDP.length
    assert status.st_size >= RSDP.length


@pytest.mark.parametrize(
    ("unit", "length", "size"),
    [
        (4096, 4096, 4096),
        (4096, 3 * 4096, 3 * 4096),
        (2 << 20, 4096, 2 << 20),
        (2 << 20, 2 << 20, 2 << 20),
        (2 << 20, (2 << 20) + 4096, 4 << 20),
        (65536, 5 * 65536 - 4096, 5 * 65536),
    ],
)
def test_a_file_is_a_multiple_of_its_folders_unit(
    unit: int, length: int, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a hugetlbfs the unit is a huge page."""
    room = os.statvfs(tmp_path)
    fake = SimpleNamespace(f_blocks=1, f_bsize=unit, f_frsize=room.f_frsize, f_bavail=room.f_bavail)
    monkeypatch.setattr(os, "statvfs", lambda folder: fake)
    block = RamBlock("pc.ram", length)
    image = Image(tmp_path, block)
    assert image.path.stat().st_size == size
    assert image.pages.shape == (block.pages, 4096)
    last = full(block, [block.pages - 1])
    image.write(last)
    assert image.path.read_bytes()[length - 4096 : length] == last.content.tobytes()


def full_disk(file: int, at: int, size: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_block_without_room_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", full_disk)
    with pytest.raises(StoreError, match=r"cannot allocate 0 MiB: No space left on device"):
        Image(tmp_path, RSDP)
    fake = SimpleNamespace(f_blocks=1, f_bsize=4096, f_frsize=4096, f_bavail=1024)
    monkeypatch.setattr(os, "statvfs", lambda folder: fake)
    with pytest.raises(StoreError, match=r"has 4 MiB free, block pc\.ram needs 16 MiB: make room"):
        Image(tmp_path, RamBlock("pc.ram", 16 << 20))
    assert list(tmp_path.iterdir()) == []


def test_room_is_what_an_ordinary_user_may_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = SimpleNamespace(f_blocks=9, f_bsize=1 << 20, f_frsize=512, f_bavail=20, f_bfree=1 << 40)
    monkeypatch.setattr(os, "statvfs", lambda folder: fake)
    require_room(tmp_path, 10240, "this")
    with pytest.raises(StoreError, match=re.escape(str(tmp_path))):
        require_room(tmp_path, 10241, "this")


def test_a_file_system_that_says_nothing_of_its_room_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hugetlbfs does not, unless it was mounted with a size."""
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_blocks=0))
    require_room(tmp_path, 1 << 40, "this")


def test_sizes_are_told_in_mib() -> None:
    assert [mib(0), mib(1 << 20), mib(3 << 19), mib(5 << 30)] == [
        "0 MiB",
        "1 MiB",
        "2 MiB",
        "5,120 MiB",
    ]
