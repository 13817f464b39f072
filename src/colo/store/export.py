"""The store's checkpoint as a migration stream that a stock QEMU loads."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from colo.errors import StoreError, StreamError
from colo.migration.format import IGNORE_SHARED, PAGE_SIZE
from colo.migration.ram import PageRun
from colo.migration.reader import Header
from colo.migration.redescribe import redescribe
from colo.migration.writer import RamWriter, migration, page_runs
from colo.store.store import Checkpoint, Store
from colo.store.view import View

__all__ = ["describe", "export_stream", "migration_stream", "write_file"]

_NONE_MAPPED: Final[Mapping[str, int]] = MappingProxyType({})
_UNDESCRIBED: Final[dict[str, Any]] = {"page_size": PAGE_SIZE, "devices": []}


def migration_stream(store: Store, mapped: Mapping[str, int] = _NONE_MAPPED) -> Iterator[bytes]:
    """Yield the last whole checkpoint as an ordinary migration stream, from magic to description.

    The pages of the blocks named in ``mapped``, each with its address in the machine's memory,
    are left out: the QEMU that loads this has the capability x-ignore-shared on and the images
    of those blocks as its shared memory.  The store must be applied.
    """
    checkpoint = store.checkpoint
    assert checkpoint is not None and store.is_applied
    pages = _pages(store, checkpoint, mapped)
    return _stream(checkpoint, pages, _UNDESCRIBED, mapped)


def export_stream(store: Store) -> Iterator[bytes]:
    """Return the same of the checkpoint that the store holds now, while it goes on.

    The store must be applied.  Raises StoreError.
    """
    view = View(store)
    checkpoint = view.open()

    def stream() -> Iterator[bytes]:
        with contextlib.closing(view):
            described = describe(checkpoint)
            yield from _stream(checkpoint, view.pages(), described)

    return stream()


def _pages(store: Store, checkpoint: Checkpoint, mapped: Mapping[str, int]) -> Iterator[PageRun]:
    for block in checkpoint.blocks:
        if block.name not in mapped:
            yield from page_runs(block, store.images[block.name].pages)


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """A description of the devices; an empty one, with which QEMU loads them too, if need be."""
    try:
        return redescribe(checkpoint.description, checkpoint.device_state)
    except StreamError:
        return _UNDESCRIBED


def _stream(
    checkpoint: Checkpoint,
    pages: Iterator[PageRun],
    described: dict[str, Any],
    mapped: Mapping[str, int] = _NONE_MAPPED,
) -> Iterator[bytes]:
    return migration(
        RamWriter(mapped or None),
        Header(checkpoint.header.machine, (IGNORE_SHARED,) if mapped else ()),
        checkpoint.ram_section,
        checkpoint.blocks,
        pages,
        (checkpoint.device_state, described),
    )


def write_file(path: Path, stream: Iterable[bytes]) -> int:
    """Write a stream to a file that is not there yet; return its size in bytes.

    The file is there only once it is whole.  Raises StoreError.
    """
    try:
        if path.exists():
            raise StoreError(f"{path} is there already: remove it, or name another file")
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-") as part:
            for piece in stream:
                part.write(piece)
            part.flush()
            os.fsync(part.fileno())
            os.link(part.name, path)
            return part.tell()
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}") from error
