"""The real file: all or an error that names the disk and the path."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from colo.disks import blockfile
from colo.disks.blockfile import BlockFile, RealFile
from colo.errors import DiskError

SIZE = 3 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vda.raw"


@pytest.fixture
def file(path: Path) -> RealFile:
    return RealFile.make(path, "vda", SIZE)


def test_what_is_written_is_read(file: RealFile, path: Path) -> None:
    as_interface: BlockFile = file
    assert as_interface.size == SIZE
    assert file.pread(0, SIZE) == bytes(SIZE)
    assert file.pread(SIZE, 0) == b""
    file.pwrite(5, b"hello")
    file.pwrite(SIZE - 3, memoryview(b"end"))
    file.pwrite(7, bytearray())
    file.sync()
    file.close()
    again = RealFile(path, "vda")
    assert again.pread(4, 7) == b"\0hello\0"
    assert again.pread(SIZE - 4, 4) == b"\0end"


@pytest.mark.parametrize("cannot", [0, 1, 2], ids=["hole", "zeroed range", "written zeroes"])
def test_zeroes_by_whatever_the_file_system_can(
    file: RealFile, cannot: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = blockfile._fallocate
    modes = []

    def fallocate(number: int, mode: int, offset: int, length: int) -> None:
        modes.append(mode)
        if len(modes) <= cannot:
            raise OSError(errno.EOPNOTSUPP, "no")
        real(number, mode, offset, length)

    monkeypatch.setattr(blockfile, "_fallocate", fallocate)
    for _ in range(2):
        file.pwrite(0, b"x" * SIZE)
        file.zero(3, SIZE - 5)
        file.zero(3, 0)
        assert file.pread(0, SIZE) == b"xxx" + bytes(SIZE - 5) + b"xx"
    assert len(modes) == (2 if cannot == 2 else 2 + cannot)  # asked once what it cannot do
    assert file.size == os.stat(file._file).st_size == SIZE


def test_a_range_that_a_device_cannot_zero_is_written(
    file: RealFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fallocate(*args: int) -> None:
        raise OSError(errno.EINVAL, "not at these bytes")

    file.pwrite(0, b"x" * 10)
    with monkeypatch.context() as patch:
        patch.setattr(blockfile, "_fallocate", fallocate)
        file.zero(1, 8)
    assert file.pread(0, 10) == b"x" + bytes(8) + b"x"
    assert len(file._zeroing) == 2


def test_partial_calls_go_on(file: RealFile, monkeypatch: pytest.MonkeyPatch) -> None:
    pread, pwrite = os.pread, os.pwrite
    monkeypatch.setattr(os, "pread", lambda fd, length, at: pread(fd, min(length, 3), at))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:2], at))
    file.pwrite(10, b"in small pieces")
    assert file.pread(9, 17) == b"\0in small pieces\0"


def test_an_interrupted_fallocate_is_called_again(
    file: RealFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [-1, -1, 0]

    def fallocate(*args: int) -> int:
        ctypes.set_errno(errno.EINTR)
        return answers.pop(0)

    monkeypatch.setattr(blockfile, "_FALLOCATE", fallocate)
    file.zero(0, 4096)
    assert answers == []


@pytest.mark.parametrize(
    ("function", "do"),
    [
        ("pread", lambda file: file.pread(0, 1)),
        ("pwrite", lambda file: file.pwrite(0, b"x")),
        ("fdatasync", lambda file: file.sync()),
    ],
)
def test_an_error_says_which_disk_and_keeps_its_cause(
    file: RealFile, path: Path, function: str, do: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, function, fails)
    with pytest.raises(DiskError, match=rf"disk vda: {path}: cannot \w+: Input/output") as caught:
        do(file)
    assert isinstance(caught.value.__cause__, OSError)
    assert (caught.value.disk, caught.value.path) == ("vda", str(path))


def test_a_failing_fallocate_is_an_error(file: RealFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def fallocate(*args: int) -> int:
        ctypes.set_errno(errno.EIO)
        return -1

    monkeypatch.setattr(blockfile, "_FALLOCATE", fallocate)
    with pytest.raises(DiskError, match="cannot zero"):
        file.zero(0, 4096)


def test_nothing_is_done_outside(file: RealFile, path: Path) -> None:
    for offset, data in ((SIZE, b"x"), (SIZE - 1, b"xy"), (-1, b"x")):
        with pytest.raises(DiskError, match="not in it"):
            file.pwrite(offset, data)
        with pytest.raises(DiskError, match="not in it"):
            file.zero(offset, len(data))
    with pytest.raises(DiskError, match=f"ends at byte {SIZE}"):
        file.pread(SIZE - 1, 2)
    assert path.stat().st_size == SIZE


def test_a_call_that_writes_nothing_is_an_error(
    file: RealFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pwrite", lambda *args: 0)
    with pytest.raises(DiskError, match="not written"):
        file.pwrite(0, b"x")


def test_only_one_has_it_open(file: RealFile, path: Path) -> None:
    with pytest.raises(DiskError, match="another colo"):
        RealFile(path, "vda")
    file.close()
    RealFile(path, "vda").close()


def test_a_file_that_is_there_is_not_made_again(file: RealFile, path: Path) -> None:
    with pytest.raises(DiskError, match="File exists"):
        RealFile.make(path, "vda", SIZE)
    with pytest.raises(DiskError, match="No such file"):
        RealFile(path.parent / "none", "vda")


def test_a_file_without_room_is_not_left(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DiskError, match="No space left"):
        RealFile.make(path, "vda", SIZE)
    assert not path.exists()
