"""Pages to a socket as they lie in memory: the kernel gathers their headers and their contents.

Copied together first, each byte of a checkpoint would be copied once more before it is sent, and
that is what a large checkpoint would wait for.  Python's own ``sendmsg`` takes objects, two for
each page, which cost as much as the copy; here the vector is an array, made by array operations.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

import numpy as np

from colo.migration.ram import PageRun
from colo.migration.writer import RamWriter

__all__ = ["VECTOR_PAGES", "Vector"]

#: So many pages fit one call: Linux takes 1024 pieces, and a page has two.
VECTOR_PAGES: Final = 512
_WRITEV: Final = ctypes.CDLL(None, use_errno=True).writev
_WRITEV.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
_WRITEV.restype = ctypes.c_ssize_t


class Vector:
    """``before`` and then a run of 1 to VECTOR_PAGES, to be written to a file as they are.

    ``left`` counts the bytes that are not written yet; ``size`` are all.
    """

    def __init__(self, ram: RamWriter, run: PageRun, before: bytes | bytearray = b"") -> None:
        first, others = ram.heads(run)
        numbers, content = np.arange(len(run), dtype=np.uint64), run.content
        head = np.frombuffer(bytes(before) + first, np.uint8)
        self._pieces = np.empty((2 * len(run), 2), np.uint64)  # struct iovec: address, length
        self._pieces[0] = head.ctypes.data, len(head)
        self._pieces[2::2, 0] = others.ctypes.data + 8 * numbers[:-1]
        self._pieces[2::2, 1] = 8
        self._pieces[1::2, 0] = content.ctypes.data + content.strides[0] * numbers
        self._pieces[1::2, 1] = content.shape[1]
        self._alive = head, others, content
        self._ends = self._pieces[:, 1].cumsum()
        self.left = self.size = int(self._ends[-1])

    def write(self, file: int) -> None:
        """Write what the file takes now.  Raises OSError: BlockingIOError where it takes none."""
        done = self.size - self.left
        at = int(self._ends.searchsorted(done, side="right"))
        rest, piece = int(self._ends[at]) - done, self._pieces[at]
        piece[0] += piece[1] - np.uint64(rest)
        piece[1] = rest
        rest_of = self._pieces[at:]
        sent = _WRITEV(file, rest_of.ctypes.data, len(rest_of))
        if sent < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        self.left -= sent
