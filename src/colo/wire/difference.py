"""What differs between two pieces of memory, in words of 8 bytes, and how to undo that.

Strategy.  A bitmap says which words differ, and those words follow.  All of it is array operations
over some hundred pages at a time, which stay in the processor's cache: to compare costs less than
to copy, and no operation is done page by page.

Pure functions of arrays; the layout is that of ``frames``.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from colo.migration.ram import Bytes
from colo.wire.frames import BITMAP_SIZE, COUNT_SIZE, HEAD_SIZE, RECORD_SIZE, WORD_SIZE

__all__ = [
    "Mask",
    "Misshapen",
    "apply_to_bytes",
    "apply_to_pages",
    "difference_of_bytes",
    "difference_of_pages",
    "heads_of",
    "records",
]

#: True for what differs, or is so.
Mask: TypeAlias = NDArray[np.bool_]

_ORDER: Final = "little"  # of the bits in a byte
#: Where one word in so many differs, or more, to number them is quicker than to use the mask: the
#: processor cannot guess the mask's next bit.
_DENSE: Final = 24


class Misshapen(ValueError):
    """A difference that does not fit what it is said to be; its text says in what."""


def records(data: memoryview) -> Bytes:
    """Pages as they are in the stream, as (n, 4104) bytes.  A view."""
    return np.frombuffer(data, np.uint8).reshape(-1, RECORD_SIZE)


def difference_of_pages(new: Bytes, old: Bytes, known: Mask) -> tuple[bytes, memoryview] | None:
    """The body of a PAGES frame in two pieces, or None where it is not smaller than the pages.

    ``new``: (n, 4104), see ``records``; ``old``: (n, 4096), what the other host has; ``known``:
    (n,), of which pages that is so: the others go in full.
    """
    words = np.ascontiguousarray(new[:, HEAD_SIZE:]).view(np.uint64)
    differs: Mask = words != old.view(np.uint64)
    if not known.all():
        differs[~known] = True
    count = len(new)
    size = COUNT_SIZE + count * (HEAD_SIZE + BITMAP_SIZE)
    many = int(np.count_nonzero(differs))
    if size + WORD_SIZE * many >= count * RECORD_SIZE:
        return None
    bitmap = np.packbits(differs, axis=1, bitorder=_ORDER)
    begin = b"".join(
        (count.to_bytes(COUNT_SIZE, "big"), new[:, :HEAD_SIZE].tobytes(), bitmap.tobytes())
    )
    if many * _DENSE < differs.size:
        picked = words[differs]
    else:
        picked = words.reshape(-1).take(np.flatnonzero(differs))
    return begin, picked.view(np.uint8).data


def heads_of(body: Bytes, count: int) -> Bytes:
    """The pages' headers in the body of a PAGES frame, as (count, 8) bytes.  Raises Misshapen."""
    if len(body) < COUNT_SIZE + count * (HEAD_SIZE + BITMAP_SIZE):
        raise Misshapen(f"{len(body)} bytes for {count} pages")
    said = int.from_bytes(body[:COUNT_SIZE].tobytes(), "big")
    if said != count:
        raise Misshapen(f"{said} pages where {count} belong")
    return body[COUNT_SIZE:][: count * HEAD_SIZE].reshape(count, HEAD_SIZE)


def apply_to_pages(body: Bytes, old: Bytes, target: Bytes) -> None:
    """Undo ``difference_of_pages``, into ``target``, (n, 4104).  Raises Misshapen."""
    count = len(target)
    target[:, :HEAD_SIZE] = heads_of(body, count)
    begin = COUNT_SIZE + count * HEAD_SIZE
    end = begin + count * BITMAP_SIZE
    bitmap = body[begin:end].reshape(count, BITMAP_SIZE)
    differs = np.unpackbits(bitmap, axis=1, bitorder=_ORDER).view(np.bool_)
    words = _words(body[end:], differs)
    if len(words) * _DENSE < differs.size:
        target[:, HEAD_SIZE:] = old
        target[:, HEAD_SIZE:].view(np.uint64)[differs] = words
    else:
        content = old.copy()
        content.reshape(-1).view(np.uint64)[np.flatnonzero(differs)] = words
        target[:, HEAD_SIZE:] = content


def difference_of_bytes(new: bytes | memoryview, old: bytes) -> bytes:
    """The body of a DEVICES frame, for two states of equal size."""
    words = _padded(new)
    differs: Mask = words != _padded(old)
    bitmap = np.packbits(differs, bitorder=_ORDER)
    return bitmap.tobytes() + words[differs].tobytes()


def apply_to_bytes(body: Bytes, old: bytes) -> bytes:
    """Undo ``difference_of_bytes``.  Raises Misshapen."""
    words = _padded(old).copy()
    size = -(-len(words) // 8)
    if len(body) < size:
        raise Misshapen(f"{len(body)} bytes where a bitmap has {size}")
    bits = np.unpackbits(body[:size], bitorder=_ORDER)
    if bits[len(words) :].any():
        raise Misshapen("bits behind the last word")
    differs = bits[: len(words)].view(np.bool_)
    words[differs] = _words(body[size:], differs)
    data = words.tobytes()
    if any(data[len(old) :]):
        raise Misshapen("bytes behind the last one")
    return data[: len(old)]


def _words(body: Bytes, differs: Mask) -> NDArray[np.uint64]:
    count = int(np.count_nonzero(differs))
    if len(body) != count * WORD_SIZE:
        raise Misshapen(f"{len(body)} bytes where {count} words belong")
    return body.view(np.uint64)


def _padded(data: bytes | memoryview) -> NDArray[np.uint64]:
    """The words of ``data``, the last one filled up with zeroes; a view where none has to be."""
    missing = -len(data) % WORD_SIZE
    return np.frombuffer(b"".join((data, bytes(missing))) if missing else data, np.uint64)
