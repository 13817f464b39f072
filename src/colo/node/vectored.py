"""Pages to a socket as they lie in memory: the kernel gathers their headers and their contents.

Copied together first, each byte of a checkpoint would be copied once more before it is sent, and
that is what a large checkpoint would wait for.  Python's own ``sendmsg`` takes objects, two for
each page, which cost as much as the copy.  Here the vector is a table, filled by a few array
operations, and all that does not change from one filling to the next stays in it.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Iterator
from typing import Final, TypeAlias

import numpy as np

from colo.migration.format import PAGE_SIZE
from colo.migration.ram import PageRun
from colo.migration.writer import Heads, RamWriter

__all__ = ["VECTOR_PAGES", "Gathered", "Vector"]

#: What is to be sent, in order.
Gathered: TypeAlias = Iterable[bytes | Iterable[PageRun]]

VECTOR_PAGES: Final = 4096
_BYTES_AT_ONCE: Final = 128 << 10
_HEAD: Final = 8
_PIECES_MAX: Final = 1024  # Linux's IOV_MAX
_PIECE_BYTES: Final = 16  # a struct iovec: address and length
_WRITEV: Final = ctypes.CDLL(None, use_errno=True).writev
_WRITEV.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
_WRITEV.restype = ctypes.c_ssize_t


class Vector:
    """Bytes, up to VECTOR_PAGES pages, and bytes, to be written to a file from where they lie.

    ``left`` counts the bytes that are not written yet; ``size`` are all.
    """

    def __init__(self, ram: RamWriter) -> None:
        self.size = self.left = 0
        self._ram = ram
        self._heads = np.empty(VECTOR_PAGES + 1, ">u8")
        self._heads_address = self._heads.ctypes.data
        # By turns a page's header and its content; the bytes around them take a header's place.
        self._table = np.empty((2 * VECTOR_PAGES + 1, 2), np.uint64)
        self._table[0::2, 0] = self._heads_address + _HEAD * np.arange(VECTOR_PAGES + 1)
        self._table[0::2, 1] = _HEAD
        self._table[1::2, 1] = PAGE_SIZE
        self._address = self._table.ctypes.data
        self._rows = 0  # so many are in use
        self._pages = 0
        self._first = 0  # the bytes of the first row: all before the first page
        self._alive: tuple[object, ...] = ()

    def fillings(self, gathered: Gathered) -> Iterator[Vector]:
        """Fill it with what is to be sent, as often as that takes; each time it is then written."""
        before, pages, text = b"", None, b""
        for part in self._parts(gathered):
            if isinstance(part, bytes):
                text += part
                if len(text) > _BYTES_AT_ONCE:
                    yield self._fill(before, pages, text)
                    before, pages, text = b"", None, b""
            else:
                if pages is not None:
                    yield self._fill(before, pages, b"")
                first, others = self._ram.heads(part)
                before, pages, text = text + first, (part, others), b""
        if pages is not None or text:
            yield self._fill(before, pages, text)

    def write(self, file: int) -> None:
        """Write what the file takes now.  Raises OSError: BlockingIOError where it takes none."""
        row, within = self._position(self.size - self.left)
        count = min(self._rows - row, _PIECES_MAX)
        address = self._address + row * _PIECE_BYTES
        if within:
            some = self._table[row : row + count].copy()
            some[0, 0] += np.uint64(within)
            some[0, 1] -= np.uint64(within)
            address = some.ctypes.data
        sent = _WRITEV(file, address, count)
        if sent < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        self.left -= sent

    def _position(self, done: int) -> tuple[int, int]:
        """The row that the byte number ``done`` is in, and its place there."""
        if done < self._first:
            return 0, done
        page = min((done - self._first) // (PAGE_SIZE + _HEAD), self._pages - 1)
        within = done - self._first - page * (PAGE_SIZE + _HEAD)
        return (2 * page + 1, within) if within < PAGE_SIZE else (2 * page + 2, within - PAGE_SIZE)

    def _parts(self, gathered: Gathered) -> Iterator[bytes | PageRun]:
        """Bytes, and runs of full pages that fit."""
        for each in gathered:
            if isinstance(each, bytes):
                yield each
                continue
            for run in each:
                if run.is_fill:
                    yield self._ram.pages(run)
                    continue
                for start in range(0, len(run), VECTOR_PAGES):
                    yield run.cut(start, start + VECTOR_PAGES)

    def _fill(self, before: bytes, pages: tuple[PageRun, Heads] | None, after: bytes) -> Vector:
        """``before`` ends with the first page's header; the others' come with the run."""
        table, rows = self._table, self._rows
        if rows % 2:  # there were bytes after the pages: it is a header's place again
            table[rows - 1] = self._heads_address + _HEAD * (rows // 2), _HEAD
        if pages is None:
            before, after, rows = before + after, b"", 1
            self._pages, self.size = 0, len(before)
        else:
            run, others = pages
            self._pages, rows = len(run), 2 * len(run)
            self.size = len(before) + (PAGE_SIZE + _HEAD) * len(run) - _HEAD + len(after)
            self._heads[1 : len(run)] = others
            numbers = np.arange(len(run)) if run.rows is None else run.rows
            table[1:rows:2, 0] = numbers * run.source.strides[0] + run.source.ctypes.data
            if after:
                table[rows] = np.frombuffer(after, np.uint8).ctypes.data, len(after)
                rows += 1
        table[0] = np.frombuffer(before, np.uint8).ctypes.data, len(before)
        self._first, self._rows, self.left = len(before), rows, self.size
        self._alive = before, pages, after
        return self
