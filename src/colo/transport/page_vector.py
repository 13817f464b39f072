"""Bytes and pages on their way to a file, the pages from where they lie in memory.

The kernel gathers the pages' headers and their contents.  Copied together first, each byte of a
checkpoint would be copied once more before it is sent, and that is what a large checkpoint would
wait for.  Python's own ``sendmsg`` takes objects, two for each page, which cost as much as the
copy.  Here the vector is a table, filled by a few array operations, and all that does not change
from one filling to the next stays in it.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable, Iterator
from typing import Final, TypeAlias

import numpy as np

from colo.errors import LocalError
from colo.migration.format import PAGE_SIZE
from colo.migration.ram import Bytes, PageRun
from colo.migration.writer import RamWriter

__all__ = ["VECTOR_PAGES", "Gathered", "Outgoing", "Text", "Vector"]

#: What is to be sent, in order.
Gathered: TypeAlias = Iterable[bytes | Iterable[PageRun]]

VECTOR_PAGES: Final = 4096
_TEXT_BYTES: Final = 16 << 10  # zero pages of 7 MiB, which take some ms to find
_HEAD: Final = 8
_FIRST_HEAD: Final = _HEAD + 1 + 255  # the first page may name its block
_PIECES_MAX: Final = 1024  # Linux's IOV_MAX
_PIECE_BYTES: Final = 16  # a struct iovec: address and length
_WRITEV: Final = ctypes.CDLL(None, use_errno=True).writev
_WRITEV.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
_WRITEV.restype = ctypes.c_ssize_t


class Text:
    """Bytes, to be written to a file.  ``left`` counts those that are not yet; ``size`` are all."""

    def __init__(self, data: bytes) -> None:
        self.size = self.left = len(data)
        self._data = memoryview(data)

    def write(self, file: int) -> None:
        """Write what the file takes now.  Raises OSError: BlockingIOError where it takes none."""
        self.left -= os.write(file, self._data[self.size - self.left :])


class Vector:
    """Up to VECTOR_PAGES pages, to be written to a file from where they lie; as Text is."""

    def __init__(self, ram: RamWriter) -> None:
        self.size = self.left = 0
        self._ram = ram
        self._heads = np.empty(VECTOR_PAGES, ">u8")
        first = np.empty(_FIRST_HEAD, np.uint8)
        self._first = first.data
        # By turns a page's header and its content.
        self._table = np.empty((2 * VECTOR_PAGES, 2), np.uint64)
        self._table[0::2, 0] = self._heads.ctypes.data + _HEAD * np.arange(VECTOR_PAGES)
        self._table[0::2, 1] = _HEAD
        self._table[1::2, 1] = PAGE_SIZE
        self._table[0, 0] = first.ctypes.data
        self._address = self._table.ctypes.data
        self._rows = 0  # so many are in use
        self._first_size = 0
        self._source: Bytes | None = None  # of the pages; it stays alive while they are written
        self._source_address = 0

    def outgoing(self, gathered: Gathered) -> Iterator[Outgoing]:
        """Yield what is to be written: bytes and fills as text, pages as this, again and again."""
        text = b""
        for part in self._parts(gathered):
            if isinstance(part, bytes):
                text += part
                if len(text) < _TEXT_BYTES:
                    continue
            if text:
                yield Text(text)
                text = b""
            if not isinstance(part, bytes):
                self._fill(part)
                yield self
        if text:
            yield Text(text)

    def _parts(self, gathered: Gathered) -> Iterator[bytes | PageRun]:
        """In order: fills as bytes, pages as far as they fit."""
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
        if sent >= 0:
            self.left -= sent
        elif (error := ctypes.get_errno()) != errno.EINTR:
            raise OSError(error, os.strerror(error))

    def _position(self, done: int) -> tuple[int, int]:
        """The row that the byte number ``done`` is in, and its place there."""
        if done < self._first_size:
            return 0, done
        page, within = divmod(done - self._first_size, PAGE_SIZE + _HEAD)
        return (2 * page + 1, within) if within < PAGE_SIZE else (2 * page + 2, within - PAGE_SIZE)

    def _fill(self, run: PageRun) -> None:
        _require_pages(run)
        table, source, count = self._table, run.source, len(run)
        first, others = self._ram.heads(run)
        self._first[: len(first)] = first
        self._heads[1:count] = others
        if source is not self._source:
            self._source, self._source_address = source, source.ctypes.data
        numbers = np.arange(count) if run.rows is None else run.rows
        table[1 : 2 * count : 2, 0] = numbers * source.strides[0] + self._source_address
        table[0, 1] = self._first_size = len(first)
        self._rows = 2 * count
        self.size = self.left = len(first) + PAGE_SIZE + (count - 1) * (PAGE_SIZE + _HEAD)


def _require_pages(run: PageRun) -> None:
    """Raise LocalError for a run that does not say where its pages lie: addresses are next."""
    source, rows = run.source, run.rows
    count = len(source) if rows is None else len(rows)
    fits = count == len(run) and source.dtype == np.uint8 and source.strides[1] == 1
    if rows is not None:
        fits = fits and rows.min() >= 0 and rows.max() < len(source)
    if not fits:
        raise LocalError(
            f"{len(run)} pages of {run.block.name} from {source.shape} bytes"
            f"{'' if rows is None else f', {len(rows)} rows of them'}: a guest has to give as many "
            "pages of 4096 bytes, or rows, as offsets"
        )


#: What can be written, piece by piece.
Outgoing: TypeAlias = Text | Vector
