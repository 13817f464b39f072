"""The image of one block of guest memory: a file in the store's folder, mapped.

The files of the main blocks are the RAM of the waiting QEMU, which maps them too.  A file's room is
allocated when it is made: a full folder is an error with a text then, and not a SIGBUS later.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from colo.errors import StoreError
from colo.migration.format import PAGE_SIZE
from colo.migration.ram import Offsets, PageRun, RamBlock

__all__ = ["Image", "mib", "require_room"]


def mib(size: int) -> str:
    """A size in bytes as text, in MiB."""
    return f"{size / (1 << 20):,.0f} MiB"


def require_room(folder: Path, size: int, what: str) -> None:
    """Raise StoreError unless ``folder`` has ``size`` free bytes."""
    room = os.statvfs(folder)
    if not room.f_blocks:
        return  # a hugetlbfs without a limit of its own does not say: to allocate will
    free = room.f_bavail * room.f_frsize
    if free < size:
        raise StoreError(
            f"{folder} has {mib(free)} free, {what} needs {mib(size)}: make room, or point "
            "[store] folder in the VM file at another one (a container often has a small /dev/shm)"
        )


class Image:
    """``pages`` is the block's memory as an array of shape (pages, 4096), uint8.

    ``watchers`` are called with the numbers of the pages that are about to be overwritten.
    """

    def __init__(self, folder: Path, block: RamBlock) -> None:
        self.block = block
        self.path = folder / quote(block.name, safe="")
        self.watchers: list[Callable[[Offsets], None]] = []
        unit = os.statvfs(folder).f_bsize  # a huge page, where the folder is a hugetlbfs
        size = -(-block.length // unit) * unit
        try:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(f"block {block.name!r} of memory: {error.strerror}") from error
        try:
            os.posix_fallocate(file, 0, size)
            self._map = mmap.mmap(file, size)
        except OSError as error:
            self.path.unlink(missing_ok=True)
            if error.errno == errno.ENOSPC:
                require_room(folder, size, f"block {block.name}")
            raise StoreError(
                f"{self.path}: cannot allocate {mib(size)}: {error.strerror}"
            ) from error
        finally:
            os.close(file)
        whole: NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)
        self.pages = whole[: block.length].reshape(-1, PAGE_SIZE)
        self._written = np.zeros(block.pages, np.bool_)

    def write(self, run: PageRun) -> None:
        """Copy a run of pages into the image."""
        numbers = run.offsets // PAGE_SIZE
        if run.is_fill and not run.content.any():
            numbers = numbers[self._written[numbers]]  # the others are zero already
            self._warn(numbers)
            self.pages[numbers] = 0
            return
        self._warn(numbers)
        first, count = int(numbers[0]), len(numbers)
        if (np.diff(numbers) == 1).all():
            self.pages[first : first + count] = run.content
            self._written[first : first + count] = True
        else:
            self.pages[numbers] = run.content
            self._written[numbers] = True

    def _warn(self, numbers: Offsets) -> None:
        for watcher in self.watchers:
            watcher(numbers)

    def remove(self) -> None:
        """Remove the file; the memory goes when nobody maps it any more."""
        self.path.unlink(missing_ok=True)
