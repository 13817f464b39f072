"""The store's checkpoint as a migration stream that a stock QEMU loads."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from colo.migration.format import IGNORE_SHARED, PAGE_SIZE
from colo.migration.ram import PageRun
from colo.migration.reader import Header
from colo.migration.writer import RamWriter, migration, page_runs
from colo.store.store import Checkpoint, Store
from colo.store.view import View

__all__ = ["export_stream", "migration_stream"]


def migration_stream(store: Store, mapped: Collection[str] = ()) -> Iterator[bytes]:
    """Yield the last whole checkpoint as an ordinary migration stream, from magic to description.

    The pages of the blocks named in ``mapped`` are left out: the QEMU that loads this has the
    capability x-ignore-shared on and the images of those blocks as its shared memory.  The
    store must be applied.
    """
    checkpoint = store.checkpoint
    assert checkpoint is not None and store.is_applied
    capabilities = (IGNORE_SHARED,) if mapped else ()
    return _stream(checkpoint, _pages(store, checkpoint, mapped), capabilities)


def export_stream(view: View) -> Iterator[bytes]:
    """Yield the checkpoint that the store holds now in the same way, while it goes on.

    The store must be applied when the first piece is asked for.  Raises StoreError.
    """
    return _stream(view.open(), view.pages(), ())


def _pages(store: Store, checkpoint: Checkpoint, mapped: Collection[str]) -> Iterator[PageRun]:
    for block in checkpoint.blocks:
        if block.name not in mapped:
            yield from page_runs(block, store.images[block.name].pages)


def _stream(
    checkpoint: Checkpoint, pages: Iterator[PageRun], capabilities: tuple[str, ...]
) -> Iterator[bytes]:
    return migration(
        RamWriter(),
        Header(checkpoint.header.machine, capabilities),
        checkpoint.ram_section,
        checkpoint.blocks,
        pages,
        (checkpoint.device_state, {"page_size": PAGE_SIZE, "devices": []}),
    )
