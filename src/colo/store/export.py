"""The store's checkpoint as a migration stream that a stock QEMU loads."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, Final, cast

from colo.errors import StoreError, StreamError
from colo.migration.format import IGNORE_SHARED, PAGE_SIZE
from colo.migration.ram import PageRun
from colo.migration.reader import Header
from colo.migration.redescribe import redescribe
from colo.migration.writer import RamWriter, migration, page_runs
from colo.store.store import Checkpoint, Store
from colo.store.view import View

__all__ = ["describe", "export_stream", "migration_stream", "new_file"]

_NONE_MAPPED: Final[Mapping[str, int]] = MappingProxyType({})
_UNDESCRIBED: Final[dict[str, Any]] = {"page_size": PAGE_SIZE, "devices": []}


def migration_stream(
    store: Store, mapped: Mapping[str, int] = _NONE_MAPPED, *, is_shared: bool = True
) -> Iterator[bytes]:
    """Yield the last whole checkpoint as an ordinary migration stream, from magic to description.

    The pages of the blocks named in ``mapped``, each with its address in the machine's memory,
    are left out: the QEMU that loads this has the capability x-ignore-shared on and the images
    of those blocks as its shared memory; where it is not ``is_shared``, it has the capability off.
    The store must be applied.
    """
    checkpoint = store.checkpoint
    assert checkpoint is not None and store.is_applied
    pages = _pages(store, checkpoint, mapped)
    told = mapped if is_shared else _NONE_MAPPED
    return _stream(checkpoint, pages, _UNDESCRIBED, told)


def export_stream(view: View) -> Iterator[bytes]:
    """Return the same of the checkpoint that the view's store holds now, while that goes on.

    The store must be applied.  Raises StoreError.
    """
    checkpoint = view.open()

    def stream() -> Iterator[bytes]:
        yield from _stream(checkpoint, view.pages(), describe(checkpoint))

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


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that is not there yet, to be written: it is there only once that has ended well.

    Raises StoreError, also of what is raised by the writing.
    """
    try:
        if path.exists():
            raise StoreError(f"{path} is there already: remove it, or name another file")
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-") as part:
            yield cast(BinaryIO, part)
            part.flush()
            os.fsync(part.fileno())
            os.link(part.name, path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}") from error
