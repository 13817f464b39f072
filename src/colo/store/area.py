"""Memory to receive into: as much of it as is filled, and what a burst took is given back."""

from __future__ import annotations

import contextlib
import mmap
from collections import deque
from typing import Final

from colo.errors import StoreError
from colo.migration.buffer import ReceiveBuffer

__all__ = ["Area", "reserve"]

_MAP_NORESERVE: Final = 0x4000  # Linux; Python's mmap module names it only in later versions
_KEPT_MIN: Final = 4 << 20
#: Memory that was given back has to be cleared again, and that with the VM stopped.
_KEPT_TIMES: Final = 64


def reserve(size: int) -> mmap.mmap:
    """Reserve private memory that takes up only what of it is filled.  Raises StoreError."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    try:
        return mmap.mmap(-1, size, flags=flags)
    except (OSError, ValueError) as error:
        raise StoreError(
            f"cannot reserve {size / (1 << 20):,.0f} MiB of address space: {error}"
        ) from error


class Area:
    """``buffer`` is received into, ``size`` bytes at most.  ``what``: see its errors."""

    def __init__(self, size: int, what: str) -> None:
        self._map = reserve(size)
        with contextlib.suppress(OSError):  # a kernel may have no huge pages
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self.buffer = ReceiveBuffer(memoryview(self._map), what)
        self._filled: deque[int] = deque(maxlen=_KEPT_TIMES)
        self._kept = 0

    @property
    def memory_bytes(self) -> int:
        """How much memory it may take up now."""
        return max(self._kept, self.buffer.high)

    def clear(self) -> None:
        """What was received for one purpose is used up: return what was unusually much of it."""
        buffer = self.buffer
        self._kept = self.memory_bytes
        self._filled.append(buffer.high)
        buffer.rewind()
        buffer.high = buffer.end
        kept = max(_KEPT_MIN, *self._filled)
        kept += -kept % mmap.PAGESIZE
        if kept < self._kept:
            self._map.madvise(mmap.MADV_DONTNEED, kept, len(self._map) - kept)
            self._kept = kept
